"""Which method for these images, and how good will it be?"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.advice import advise
from adapt.choosing.candidates import candidates
from adapt.choosing.compare import Compared, Comparison, take
from adapt.choosing.race import BASELINE, race
from adapt.choosing.recommendation import Recommendation, rows_of
from adapt.data.folds import usual_count
from adapt.data.split import Split
from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.features import item_features
from adapt.methods.zero_shot import ZeroShot
from adapt.models.wrap import wrap
from adapt.progress import counting_bar
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.shown import first_of
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run_recipe import decodable, listed_data, run_recipe

logger = logging.getLogger("adapt")

# what is trained where nothing can be compared: words weigh most, and the one image of each class adds to them
UNCOMPARED: tuple[str, dict[str, Any]] = ("nearest_mean", {"method.words": 3.0})


def recommend(
    data: str,
    *,
    root: str | None = None,
    names: str | None = None,
    shots: int | None = None,
    seed: int = 1,
    backbone: str | None = None,
    device: str = AUTO,
    overrides: Sequence[str] = (),
    folds: int | None = None,
    every: bool = False,
    budget: float | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    track: Track = (),
) -> Recommendation:
    """Compares methods on the training images of `data`, and trains the one to take on all of them.

    By cross-validation over `folds` stratified parts, by default as many as a class has images and at most five, whole
    groups at once where the data names groups; test images choose nothing. Zero-shot, methods without steps, those with
    steps on cached features, and CoOp; with `every` also those whose steps pass through a tower, and with a `budget` in
    seconds as many of them as it leaves time for. A method is given up where it does not keep up with the best so far
    on the first part (see `Comparison.raced`).
    `shots` images a class, all of them by default; `overrides` such as `data.broken=skip` are of all recipes. `out`, a
    new folder, becomes the run directory of the chosen one, with recommendation.json, methods.csv, report.html, and a
    list of files for each piece of advice; what was compared stays there, whatever becomes of the training. `track` is
    told of that training, as in `fit`.

    Raises AdaptError for data without training images, of one class or with questions, fewer than two folds, an `out`
    that exists or lies inside the data, and where no method can be trained.
    """
    told = trackers(track, out)
    given = {"data.root": root, "data.names": names, "backbone": backbone, "seed": seed, "device": device}
    changes = dict(map(pair, overrides)) | {key: value for key, value in given.items() if value is not None}
    changes["data.shots"] = shots
    base = read_recipe("zero_shot", list(changes.items()), data)
    changes |= {"backbone": base.backbone, "data.sampling": base.data.sampling}
    with _reserved(out, data) as folder:
        listed_split = listed_data(base)
        _check_comparable(listed_split)
        loaded = _dual_encoder(load_backbone(base.backbone, device, base.quantize))
        split = decodable(listed_split, base, progress)
        comparison = Comparison(split, loaded, folds or usual_count(split.train), seed)
        listed = candidates(data, changes, every or budget is not None) if comparison.items else []
        with loaded.unchanging():
            features = _features(split, loaded, progress)
            compared, left_out = race(comparison, listed, budget, progress)
        chosen, found = _decided(split, base, comparison, compared, left_out, features)
        if folder is not None:
            found.write(folder)
        settings = changes | ({} if chosen else UNCOMPARED[1])
        recipe = chosen.candidate.final if chosen else read_recipe(UNCOMPARED[0], list(settings.items()), data)
        result = run_recipe(recipe, folder, progress=progress, split=split, backbone=loaded, track=told)
        found = replace(found, result=result)
        if folder is not None:
            found.write(folder)
            found.report(folder)
    return found


def _decided(
    split: Split, recipe: Recipe, comparison: Comparison, compared: list[Compared], left_out: dict[str, str],
    features: dict[str, Tensor],
) -> tuple[Compared | None, Recommendation]:  # fmt: skip
    """The method to take, if any could be compared, and the recommendation before it is trained."""
    chosen, alike = take(compared) if compared else (None, [])
    return chosen, Recommendation(
        chosen=chosen.candidate.name if chosen else UNCOMPARED[0],
        rows=rows_of(compared),
        alike=[each.candidate.name for each in alike],
        left_out=left_out,
        notes=_notes(split, comparison, compared),
        advice=advise(split, features, comparison.items, chosen),
        about=_about(split, recipe, comparison),
    )


@contextmanager
def _reserved(out: str | Path | None, data: str) -> Iterator[Path | None]:
    """A new folder, which goes again where nothing was written to it."""
    check_alone()
    if out is None:
        yield None
        return
    out = Path(out)
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise AdaptError(
            f"{out} lies inside the data {data}, where it would be taken for a class: choose another --out"
        )
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise AdaptError(f"{out} exists already; name a new folder") from None
    except OSError as error:
        raise AdaptError(f"cannot make {out}: {error.strerror or error}; choose another place") from error
    try:
        yield out
    finally:
        with suppress(OSError):  # there is something in it
            out.rmdir()


def _check_comparable(split: Split) -> None:
    """AdaptError for data on which methods are not compared."""
    if not split.train[0].paths:
        raise AdaptError("methods are compared on images, and texts are in their place: train `close` on these")
    if split.task.comparable:
        raise AdaptError(f"{split.name}: {split.task.comparable}")
    if len(split.class_names) < 2:
        split.check_classes()
        raise AdaptError(f"{split.name} has one class, {split.class_names[0]!r}: there is nothing to tell apart")


def _dual_encoder(backbone: Backbone) -> DualEncoder:
    """AdaptError for a backbone on which methods are not compared."""
    if not isinstance(backbone, DualEncoder):
        raise AdaptError("what is compared tells classes apart by a CLIP or SigLIP: give images without questions")
    return backbone


def _about(split: Split, recipe: Recipe, comparison: Comparison) -> dict[str, Any]:
    """On what the figures are."""
    return {
        "data": recipe.data.source,
        "backbone": recipe.backbone,
        "shots": recipe.data.shots,
        "seed": recipe.seed,
        "folds": comparison.count,
        "train_images": len(split.train),
        "tried_images": len(comparison.items),
        "classes": len(split.class_names),
        "tried_classes": len({item.stratum for item in comparison.items}),
    }


def _features(split: Split, backbone: DualEncoder, progress: bool) -> dict[str, Tensor]:
    """Unit-length features `(n, e)` of all images by part: what comes after finds them in the cache."""
    model = wrap(backbone.turning(split.turned), ZeroShot(), split.class_names)
    with counting_bar("encoding", progress) as bar:
        parts = {"train": split.train, "val": split.val, "test": split.test}
        return {part: item_features(model, items, workers=2, progress=bar) for part, items in parts.items() if items}


def _notes(split: Split, comparison: Comparison, compared: Sequence[Compared]) -> list[str]:
    """Remarks on the figures: whether class names help, and which classes could not be tried."""
    if not comparison.items:
        return [
            "Every class has only one training image (or one group of images), so none can be held back: which method "
            "is best here, and how good it is, cannot be known. Two training images of each class are the least that "
            f"says something, and eight say much more. {UNCOMPARED[0]} is taken, beside the class names"
        ]
    untried = sorted({item.stratum for item in split.train} - {item.stratum for item in comparison.items})
    notes = [_of_words(each) for each in compared if each.candidate.name == BASELINE]
    if untried:
        notes.append(
            f"No image of {first_of(untried, 3)} was tried: every model needs the only one, or the only group, there is"
        )
    return notes


def _of_words(zero_shot: Compared) -> str:
    """Whether the class names say anything to the backbone."""
    chance = 1 / zero_shot.probabilities.shape[1]
    figures = f"zero-shot is right for {100 * zero_shot.accuracy:.1f} %, guessing for {100 * chance:.1f} %"
    if zero_shot.accuracy - chance < chance * (1 - chance):  # of many classes twice guessing, of two 75 %
        return f"Class names say little to this backbone ({figures}): what is learned from the images has to decide"
    return f"Class names help here ({figures}): a method that keeps them should win"
