"""Which method for these images, and how good will it be?"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.advice import advise
from adapt.choosing.candidates import Candidate, candidates
from adapt.choosing.compare import Compared, Comparison, take
from adapt.choosing.recommendation import Recommendation, rows_of
from adapt.data.split import Split
from adapt.devices import AUTO
from adapt.errors import AdaptError
from adapt.features import item_features
from adapt.methods.zero_shot import ZeroShot
from adapt.models.wrap import wrap
from adapt.progress import counting_bar, readable_time
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.shown import first_of
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run_recipe import read_data, run_recipe

logger = logging.getLogger("adapt")

# what is trained where nothing can be compared: it takes no step, and without a search nothing is to be chosen either
UNCOMPARED = ("tip_adapter", {"method.search_alpha": None})


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
    folds: int = 3,
    every: bool = False,
    budget: float | None = None,
    out: str | Path | None = None,
    progress: bool = True,
    track: Track = (),
) -> Recommendation:
    """Compares methods on the training images of `data`, and trains the one to take on all of them.

    By cross-validation over `folds` stratified parts, whole groups at once where the data names groups; test images
    choose nothing. Zero-shot, methods without steps, those with steps on cached features, and CoOp; with `every` also
    those whose steps pass through a tower, and with a `budget` in seconds as many of them as it leaves time for.
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
        split = read_data(base, progress)
        loaded = _dual_encoder(split, load_backbone(base.backbone, device, base.quantize))
        comparison = Comparison(split, loaded, folds, seed)
        features = _features(split, loaded, progress)
        images = round(median(Counter(item.label for item in split.train).values()))
        listed = candidates(data, changes, images, every or budget is not None) if comparison.items else []
        compared, left_out = _compared(comparison, listed, budget, progress)
        chosen, alike = take(compared) if compared else (None, [])
        name, settings = (chosen.candidate.name, dict[str, Any]()) if chosen else UNCOMPARED
        found = Recommendation(
            chosen=name, rows=rows_of(compared), alike=[each.candidate.name for each in alike], left_out=left_out,
            notes=_notes(split, comparison), advice=advise(split, features, comparison.items, chosen),
            about=_about(split, base, comparison, folds),
        )  # fmt: skip
        if folder is not None:
            found.write(folder)
        recipe = chosen.candidate.recipe if chosen else read_recipe(name, list((changes | settings).items()), data)
        result = run_recipe(recipe, folder, progress=progress, split=split, backbone=loaded, track=told)
        found = replace(found, result=result)
        if folder is not None:
            found.write(folder)
            found.report(folder)
    return found


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


def _dual_encoder(split: Split, backbone: Backbone) -> DualEncoder:
    """`backbone`, where the methods can be compared on it and on these images."""
    if not split.train[0].path:
        raise AdaptError("methods are compared on images, and texts are in their place: train `close` on these")
    if split.train[0].question or not isinstance(backbone, DualEncoder):
        raise AdaptError("what is compared tells classes apart by a CLIP or SigLIP: give images without questions")
    if split.of_several:
        raise AdaptError(f"{split.name} has images of several classes, and what is compared gives each image one")
    if len(split.class_names) < 2:
        split.check_classes()
        raise AdaptError(f"{split.name} has one class, {split.class_names[0]!r}: there is nothing to tell apart")
    return backbone


def _about(split: Split, recipe: Recipe, comparison: Comparison, folds: int) -> dict[str, Any]:
    """On what the figures are."""
    return {
        "data": recipe.data.source,
        "backbone": recipe.backbone,
        "shots": recipe.data.shots,
        "seed": recipe.seed,
        "folds": folds,
        "train_images": len(split.train),
        "tried_images": len(comparison.items),
        "classes": len(split.class_names),
        "tried_classes": len({item.label for item in comparison.items}),
    }


def _features(split: Split, backbone: DualEncoder, progress: bool) -> dict[str, Tensor]:
    """Unit-length features `(n, e)` of all images by part: what comes after finds them in the cache."""
    model = wrap(backbone.turning(split.turned), ZeroShot(), split.class_names)
    with counting_bar("encoding", progress) as bar:
        parts = {"train": split.train, "val": split.val, "test": split.test}
        return {part: item_features(model, items, workers=2, progress=bar) for part, items in parts.items() if items}


def _compared(
    comparison: Comparison, listed: Sequence[Candidate], budget: float | None, progress: bool
) -> tuple[list[Compared], dict[str, str]]:
    """All that could be tried in the time, and why the others were not."""
    started, done, left_out = time.monotonic(), list[Compared](), dict[str, str]()
    for number, candidate in enumerate(listed, 1):
        try:
            if budget is not None and not candidate.always:
                left = budget - (time.monotonic() - started)
                needed = comparison.estimate(candidate) if left > 0 else 0.0
                if needed >= left:
                    more = f"would take about {readable_time(needed)} more" if needed else "not begun"
                    left_out[candidate.name] = f"{more}, and the budget is {readable_time(budget)}"
                    continue
            found = comparison.run(candidate)
        except (AdaptError, torch.OutOfMemoryError, torch.linalg.LinAlgError) as error:
            left_out[candidate.name] = str(error)
            continue
        done.append(found)
        if progress:
            seconds = (time.monotonic() - started) / number * (len(listed) - number)
            logger.info(
                "  %2d of %d  %-22s %5.1f ± %.1f %%  (about %s left)",
                number, len(listed), candidate.name, 100 * found.accuracy, 100 * found.error, readable_time(seconds),
            )  # fmt: skip
    if listed and not done:
        name, reason = next(iter(left_out.items()))
        raise AdaptError(f"no method could be compared; {name}: {reason}")
    return done, left_out


def _notes(split: Split, comparison: Comparison) -> list[str]:
    """What the figures cannot say."""
    untried = sorted({item.class_name for item in split.train} - {item.class_name for item in comparison.items})
    if not comparison.items:
        return [
            "No class has two images that are apart, so none can be held back: which method is best here, and how "
            "good it is, cannot be known. Two images of each class are the least that says something, and eight say "
            f"much more. Taken is {UNCOMPARED[0]}, which takes no training step"
        ]
    if not untried:
        return []
    named = first_of(untried, 3)
    return [f"No image of {named} was tried on: every model needs the only one, or the only group, that there is"]
