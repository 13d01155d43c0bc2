"""`recommend`: which method to use for a set of images, and how accurate it will be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from torch import Tensor

from adapt import tasks
from adapt.backbones.base import Backbone, DualEncoder, ImageEncoder
from adapt.backbones.load import load_backbone
from adapt.choosing.advice import advise
from adapt.choosing.candidates import candidates
from adapt.choosing.compare import BASELINE, WITHIN, Compared, Comparison, race, take
from adapt.choosing.recommendation import Recommendation, rows_of
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, check_outside
from adapt.common.errors import AdaptError
from adapt.common.progress import counting_bar
from adapt.common.shown import first_of
from adapt.data.item import items_id
from adapt.data.split import Split, usual_count
from adapt.evaluation.scores import Scores
from adapt.models.features import item_features
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run_recipe import decodable, listed_data, run_recipe

FOLDS = "folds"  # the folder with the results of a comparison that is not finished
# trained if nothing can be compared: class names weigh most, and the one image of each class adds to them
UNCOMPARED: tuple[str, dict[str, object]] = ("nearest_mean", {"method.words": 3.0})


def recommend(
    data: str,
    *,
    root: str | None = None,
    names: str | None = None,
    shots: int | None = None,
    seed: int = 1,
    backbone: str | Backbone | None = None,
    device: str = AUTO,
    overrides: Sequence[str] = (),
    folds: int | None = None,
    every: bool = False,
    budget: float | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    track: Track = (),
) -> Recommendation:
    """Compare methods on the training images of `data`, and train the chosen method on all training images.

    Methods are compared by cross-validation over `folds` stratified folds, by default the median number of images per
    class, but at most five. If the data names groups of images, a group is never split. Test images are not used for
    the choice. The candidates are zero-shot classification, methods without training steps, methods that train on
    cached features, and CoOp. `every` adds the methods that train through a tower, and a `budget` in seconds adds as
    many of these methods as there is time for. A method is dropped if it is behind the best method so far on the first
    folds (see `Comparison.raced`).

    `backbone` is a name or a loaded backbone, by default the zero-shot recipe's. `shots` images per class are used, by
    default all. `overrides` such as `data.broken=skip` apply to all recipes.
    `out`, a new folder, becomes the run directory of the chosen method. The comparison is also written to `out`, as
    recommendation.json, methods.csv, report.html and a CSV file for each kind of advice, and remains there even if the
    training fails. `resume` continues an interrupted comparison in `out`, with the same result as an uninterrupted one
    but for a `budget`, which begins anew. The trackers in `track` log the training, as in `fit`.

    Raises AdaptError for data without training images, with one class or with questions, for fewer than two folds, for
    an `out` that exists or is inside the data, and if no method can be trained.
    """
    tracked_by = trackers(track, out)
    named = backbone.describe() if isinstance(backbone, Backbone) else backbone
    given = {"data.root": root, "data.names": names, "backbone": named, "seed": seed, "device": device}
    changes: dict[str, object] = dict(map(pair, overrides))
    changes |= {key: value for key, value in given.items() if value is not None} | {"data.shots": shots}
    base = read_recipe("zero_shot", list(changes.items()), data)
    changes |= {"backbone": base.backbone, "data.sampling": base.data.sampling}
    with _reserved(out, data, resume) as folder:
        listed_split = listed_data(base, unlabelled=True)
        _check_comparable(listed_split)
        loaded = _image_encoder(backbone, base, device)
        task = tasks.of(listed_split.items())
        task.check_backbone(loaded)
        split = decodable(listed_split, base, progress)
        kept = None
        if folder is not None:
            origin = f"{loaded.content()[:16]}-{items_id([*split.train, *split.val, *split.unlabelled])}"
            kept = folder / FOLDS / origin
            if resume and not kept.exists() and any(kept.parent.iterdir()):
                raise AdaptError(
                    f"{folder} compares methods on other images, or on another backbone: choose another --out"
                )
        comparison = Comparison(split, loaded, folds or usual_count(split.train), seed, kept)
        slower = every or budget is not None
        arguments = data, changes, slower, loaded, task, bool(split.unlabelled)
        listed = candidates(*arguments) if comparison.items else []
        with loaded.unchanging():
            features = _features(split, loaded, progress)
            compared, left_out = race(comparison, listed, budget, progress)
        chosen, alike = take(compared) if compared else (None, [])
        baseline = comparison.baseline(base) if compared else None
        recommendation = Recommendation(
            chosen=chosen.name if chosen else UNCOMPARED[0],
            figure=chosen.scores.compared_by if chosen else Scores.compared_by,
            rows=rows_of([*compared, *filter(None, [baseline])]),
            alike=[each.name for each in alike],
            left_out=left_out,
            notes=_notes(split, comparison, compared, baseline),
            advice=advise(split, features, comparison.items, chosen),
            about=_about(split, base, comparison),
        )
        if folder is not None:
            recommendation.write(folder)
        alone = UNCOMPARED[1] if isinstance(loaded, DualEncoder) else {}
        name, usual = UNCOMPARED[0], list((changes | alone).items())
        recipe = chosen.candidate.recipe if chosen else read_recipe(name, usual, data)
        goes_on = folder is not None and (folder / "recipe.yaml").is_file()
        result = run_recipe(recipe, folder, goes_on, progress, split, loaded, tracked_by)
        name = chosen.candidate.called(result) if chosen else name
        recommendation = recommendation.trained(result, name)
        if folder is not None:
            recommendation.write(folder)
            recommendation.report(folder)
            shutil.rmtree(folder / FOLDS, ignore_errors=True)
    return recommendation


@contextmanager
def _reserved(out: str | Path | None, data: str, resume: bool) -> Iterator[Path | None]:
    """Create the folder `out` for the `with` block, and remove the folder afterwards if nothing was written to it.

    Raises AdaptError if `out` exists, cannot be created, or is inside the data; or to `resume`, if it was not begun.
    """
    check_alone()
    begun = out is not None and Path(out, FOLDS).is_dir()
    if resume and not begun:
        raise AdaptError(f"{out} has no interrupted comparison to resume: give its --out, or leave out --resume")
    if out is None:
        yield None
        return
    out = Path(out)
    check_outside(out, data, f"the data folder {data}")
    if not resume:
        check_free(out, "folder, or continue an interrupted comparison with --resume" if begun else "folder")
    made = [each for each in (out / FOLDS, out, *out.parents) if not each.exists()]
    try:
        (out / FOLDS).mkdir(parents=True, exist_ok=resume)
    except OSError as error:
        raise AdaptError(f"cannot create {out}: {error.strerror or error}; choose another --out") from error
    try:
        yield out
    finally:
        with suppress(OSError):  # not empty
            for each in made:
                each.rmdir()


def _check_comparable(split: Split) -> None:
    """Raise AdaptError if methods cannot be compared on the data: no images, another task, or nothing to tell apart."""
    if not split.train[0].paths:
        raise AdaptError(f"{split.name} contains texts, but methods are compared on images: train `close` on texts")
    if reason := tasks.of(split.items()).comparable:
        raise AdaptError(f"{split.name}: {reason}")
    if why := split.task.nothing_to_learn(split.train, split.class_names):
        raise AdaptError(f"{split.name} has {why}")
    if not split.task.one_class and len({item.kept_with for item in split.train}) < 2:
        raise AdaptError(
            f"{split.name} has one training image, or one group of them: give two, so that one is held out"
        )


def _image_encoder(given: str | Backbone | None, recipe: Recipe, device: str) -> ImageEncoder:
    """Return a given backbone, or else load the recipe's. Raises AdaptError if it does not encode images alone."""
    backbone = given if isinstance(given, Backbone) else load_backbone(recipe.backbone, device, recipe.quantize)
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
        "tried_classes": len(
            {item.stratum for item in comparison.items} if split.task.one_class else split.class_names
        ),
    }


def _features(split: Split, backbone: ImageEncoder, progress: bool) -> dict[str, Tensor]:
    """Return the unit-length features `(n, e)` of the images in train, val and test, and cache the features."""
    model = unadapted(backbone.turning(split.turned), split.class_names)
    assert isinstance(model, ImageModel)
    with counting_bar("encoding", progress) as bar:
        parts = {"train": split.train, "val": split.val, "test": split.test}
        return {part: item_features(model, items, workers=2, progress=bar) for part, items in parts.items() if items}


def _notes(split: Split, comparison: Comparison, compared: Sequence[Compared], baseline: Compared | None) -> list[str]:
    """Return remarks on a comparison: whether class names or images help, and which classes have too few images."""
    if not comparison.items:
        return [
            "Every class has only one training image (or one group of images), so none can be held out: which method "
            "is best here, and how accurate it is, cannot be known. Comparing methods takes at least two training "
            f"images a class, and works much better with eight. {UNCOMPARED[0]} is used instead"
        ]
    if not split.task.one_class:
        return [] if baseline is None else _on_images(compared, baseline)
    untried = sorted({item.stratum for item in split.train} - {item.stratum for item in comparison.items})
    notes = [_on_class_names(each) for each in compared if each.candidate.name == BASELINE]
    if untried:
        notes.append(
            f"The estimates leave out {first_of(untried, 3)}: with only one training image (or one group of images) "
            "in a class, none can be held out"
        )
    return notes


def _on_images(compared: Sequence[Compared], baseline: Compared) -> list[str]:
    """Return a remark if no method is clearly better than `baseline`, which does not look at the images."""
    ahead, error = baseline.behind(max(compared, key=lambda each: each.merit))
    name = baseline.candidate.name
    return (
        []
        if ahead > WITHIN * error
        else [
            f"No method is more than two standard errors better than the {name}, which looks at no image: this "
            "backbone may see nothing of what is to be predicted"
        ]
    )


def _on_class_names(zero_shot: Compared) -> str:
    """Return a remark on whether class names help with this backbone, by comparing zero-shot accuracy with chance."""
    chance = 1 / zero_shot.answers.shape[1]
    figures = f"zero-shot accuracy {100 * zero_shot.merit:.1f} %, chance {100 * chance:.1f} %"
    if zero_shot.merit - chance < chance * (1 - chance):  # for many classes twice chance, for two 75 %
        return f"Class names help little with this backbone ({figures}): the training images have to decide"
    return f"Class names help here ({figures}): a method that uses them should win"
