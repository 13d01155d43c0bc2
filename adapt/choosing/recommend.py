"""`recommend`: which method to use for a set of images, and how accurate it will be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder, ImageEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.advice import advise
from adapt.choosing.candidates import candidates
from adapt.choosing.compare import Compared, Comparison, take
from adapt.choosing.race import BASELINE, race
from adapt.choosing.recommendation import Recommendation, rows_of
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, check_outside
from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of
from adapt.data.folds import usual_count
from adapt.data.split import Split
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run_recipe import decodable, listed_data, run_recipe

# trained if nothing can be compared: class names weigh most, and the one image of each class adds to them
UNCOMPARED: tuple[str, dict[str, object]] = ("nearest_mean", {"method.words": 3.0})


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
    """Compare methods on the training images of `data`, and train the chosen method on all training images.

    Methods are compared by cross-validation over `folds` stratified folds, by default the median number of images per
    class, but at most five. If the data names groups of images, a group is never split. Test images are not used for
    the choice. The candidates are zero-shot classification, methods without training steps, methods that train on
    cached features, and CoOp. `every` adds the methods that train through a tower, and a `budget` in seconds adds as
    many of these methods as there is time for. A method is dropped if it is behind the best method so far on the first
    fold (see `Comparison.raced`).

    `shots` images per class are used, by default all. `overrides` such as `data.broken=skip` apply to all recipes.
    `out`, a new folder, becomes the run directory of the chosen method. The comparison is also written to `out`, as
    recommendation.json, methods.csv, report.html and a CSV file for each kind of advice, and remains there even if the
    training fails. The trackers in `track` log the training, as in `fit`.

    Raises AdaptError for data without training images, with one class or with questions, for fewer than two folds, for
    an `out` that exists or is inside the data, and if no method can be trained.
    """
    tracked_by = trackers(track, out)
    given = {"data.root": root, "data.names": names, "backbone": backbone, "seed": seed, "device": device}
    changes: dict[str, object] = dict(map(pair, overrides))
    changes |= {key: value for key, value in given.items() if value is not None} | {"data.shots": shots}
    base = read_recipe("zero_shot", list(changes.items()), data)
    changes |= {"backbone": base.backbone, "data.sampling": base.data.sampling}
    with _reserved(out, data) as folder:
        listed_split = listed_data(base, unlabelled=True)
        _check_comparable(listed_split)
        loaded = _image_encoder(load_backbone(base.backbone, device, base.quantize))
        split = decodable(listed_split, base, progress)
        comparison = Comparison(split, loaded, folds or usual_count(split.train), seed)
        slower = every or budget is not None
        listed = candidates(data, changes, slower, loaded, bool(split.unlabelled)) if comparison.items else []
        with loaded.unchanging():
            features = _features(split, loaded, progress)
            compared, left_out = race(comparison, listed, budget, progress)
        chosen, alike = take(compared) if compared else (None, [])
        recommendation = Recommendation(
            chosen=chosen.name if chosen else UNCOMPARED[0],
            rows=rows_of(compared),
            alike=[each.name for each in alike],
            left_out=left_out,
            notes=_notes(split, comparison, compared),
            advice=advise(split, features, comparison.items, chosen),
            about=_about(split, base, comparison),
        )
        if folder is not None:
            recommendation.write(folder)
        alone = UNCOMPARED[1] if isinstance(loaded, DualEncoder) else {}
        name, usual = UNCOMPARED[0], list((changes | alone).items())
        recipe = chosen.candidate.recipe if chosen else read_recipe(name, usual, data)
        result = run_recipe(recipe, folder, progress=progress, split=split, backbone=loaded, track=tracked_by)
        name = chosen.candidate.called(result) if chosen else name
        recommendation = recommendation.trained(result, name)
        if folder is not None:
            recommendation.write(folder)
            recommendation.report(folder)
    return recommendation


@contextmanager
def _reserved(out: str | Path | None, data: str) -> Iterator[Path | None]:
    """Create the folder `out` for the `with` block, and remove the folder afterwards if nothing was written to it.

    Raises AdaptError if `out` exists, cannot be created, or is inside the data.
    """
    check_alone()
    if out is None:
        yield None
        return
    out = Path(out)
    check_outside(out, data, f"the data folder {data}")
    check_free(out)
    try:
        out.mkdir(parents=True)
    except OSError as error:
        raise AdaptError(f"cannot create {out}: {error.strerror or error}; choose another --out") from error
    try:
        yield out
    finally:
        with suppress(OSError):  # not empty
            out.rmdir()


def _check_comparable(split: Split) -> None:
    """Raise AdaptError if methods cannot be compared on the data: no images, no classification, or only one class."""
    if not split.train[0].paths:
        raise AdaptError(f"{split.name} contains texts, but methods are compared on images: train `close` on texts")
    if split.task.comparable:
        raise AdaptError(f"{split.name}: {split.task.comparable}")
    if len(split.class_names) < 2:
        split.check_classes()
        raise AdaptError(f"{split.name} has only one class, {split.class_names[0]!r}; expected at least two classes")


def _image_encoder(backbone: Backbone) -> ImageEncoder:
    """Return `backbone` unchanged. Raises AdaptError if it does not encode images by themselves."""
    if isinstance(backbone, ImageEncoder):
        return backbone
    raise AdaptError(
        f"{backbone.describe()} is a {backbone.kind}, but methods are only compared on a dual encoder such as CLIP "
        "or SigLIP, or on a vision encoder such as DINOv2: give another --backbone, and images without questions"
    )


def _about(split: Split, recipe: Recipe, comparison: Comparison) -> dict[str, object]:
    """Return a dict that describes a comparison's inputs: data set, backbone, folds, numbers of images and classes."""
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


def _features(split: Split, backbone: ImageEncoder, progress: bool) -> dict[str, Tensor]:
    """Return the unit-length features `(n, e)` of the images in train, val and test, and cache the features."""
    model = unadapted(backbone.turning(split.turned), split.class_names)
    assert isinstance(model, ImageModel)
    with counting_bar("encoding", progress) as bar:
        parts = {"train": split.train, "val": split.val, "test": split.test}
        return {part: item_features(model, items, workers=2, progress=bar) for part, items in parts.items() if items}


def _notes(split: Split, comparison: Comparison, compared: Sequence[Compared]) -> list[str]:
    """Return remarks on a comparison: whether class names help, and which classes have too few images to hold out."""
    if not comparison.items:
        return [
            "Every class has only one training image (or one group of images), so none can be held out: which method "
            "is best here, and how accurate it is, cannot be known. Comparing methods takes at least two training "
            f"images a class, and works much better with eight. {UNCOMPARED[0]} is used instead"
        ]
    untried = sorted({item.stratum for item in split.train} - {item.stratum for item in comparison.items})
    notes = [_on_class_names(each) for each in compared if each.candidate.name == BASELINE]
    if untried:
        notes.append(
            f"The estimates leave out {first_of(untried, 3)}: with only one training image (or one group of images) "
            "in a class, none can be held out"
        )
    return notes


def _on_class_names(zero_shot: Compared) -> str:
    """Return a remark on whether class names help with this backbone, by comparing zero-shot accuracy with chance."""
    chance = 1 / zero_shot.probabilities.shape[1]
    figures = f"zero-shot accuracy {100 * zero_shot.accuracy:.1f} %, chance {100 * chance:.1f} %"
    if zero_shot.accuracy - chance < chance * (1 - chance):  # for many classes twice chance, for two 75 %
        return f"Class names help little with this backbone ({figures}): the training images have to decide"
    return f"Class names help here ({figures}): a method that uses them should win"
