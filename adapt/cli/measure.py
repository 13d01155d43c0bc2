"""`adapt eval` and `adapt zeroshot`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from adapt import tasks
from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common.devices import AUTO
from adapt.common.errors import AdaptError
from adapt.common.shown import first_of, shown

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.data.split import Split
    from adapt.models.base import Adapted


@command("eval")
def evaluate_adapter(
    adapter: Path,
    *,
    data: common.DataToMeasure,
    root: common.Root = None,
    names: common.ReadableNames = None,
    part: common.PartToMeasure = "test",
    data_classes: Annotated[bool, "Classify among the data's class names, not the adapter's."] = False,
    blend: Annotated[
        str | None, "Shares of the adapter against zero-shot (WiSE-FT), such as 0,0.5,1, each measured by itself."
    ] = None,
    at_use: common.AtUse = (),
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
    as_json: common.AsJson = False,
) -> None:
    """Evaluate ADAPTER on labelled images, or on questions about images.

    \b
    Examples:
      adapt eval runs/first/adapter.safetensors --data emoji
      adapt eval runs/first/adapter.safetensors --data emoji@fluent-3d
      adapt eval runs/first/adapter.safetensors --data emoji --blend 0,0.25,0.5,0.75,1
      adapt eval runs/first/adapter.safetensors --data photos --data-classes
      adapt eval runs/first/adapter.safetensors --data new_photos --part all
      adapt eval runs/vlora/adapter.safetensors --data emoji-questions
    """
    from adapt.data.readers import load as load_data

    split = load_data(data, root, names, note=True)
    shares = [] if blend is None else common.numbers("blend", blend, float)
    with common.quiet_libraries():
        model = common.load_adapter(adapter, backbone, device, split.class_names if data_classes else None)
        common.set_at_use(model, at_use)
        if model.class_names and set(split.class_names) != set(model.class_names):
            raise AdaptError(_other_classes(data, split.class_names, adapter, model.class_names))
        blended = [model.blended(share, split.template) for share in shares]  # all are checked before any is measured
        for share, each in zip(shares, blended, strict=True):
            if not as_json:
                click.echo(f"blend {share:g}: ", nl=False)
            _print(each, split, part, as_json, cache, blended=True)
        if not shares:
            _print(model, split, part, as_json, cache)
        if part != "train":
            _note_learned(adapter, split, _measured(split, part))
    if not as_json:
        _tell_parts(split, part)


@command()
def zeroshot(
    *,
    data: common.DataToMeasure,
    root: common.Root = None,
    names: common.ReadableNames = None,
    part: common.PartToMeasure = "test",
    backbone: Annotated[
        str | None, "Backbone to measure (see `adapt backbones`).  [default: the recipes' for this data]"
    ] = None,
    templates: Annotated[
        tuple[str, ...],
        Option(
            "Prompt with {} for the class name; repeated ones are averaged.  [default: a photo of a {}.]", "--template"
        ),
    ] = (),
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
    as_json: common.AsJson = False,
) -> None:
    """Evaluate a backbone on labelled images without training, with hand-written prompts (zero-shot).

    \b
    Examples:
      adapt zeroshot --data emoji
      adapt zeroshot --data photos --backbone open_clip:ViT-B-16-quickgelu/openai --template "a picture of a {}."
    """
    from adapt.data.readers import load as load_data

    backbone = backbone or common.default_backbone(data)
    common.say_backbone(backbone, data)
    split = load_data(data, root, names, note=True)
    with common.quiet_libraries():
        from adapt.backbones.load import load_backbone
        from adapt.backbones.vision_encoder import VisionEncoder
        from adapt.evaluation.inference import Inference
        from adapt.models.unadapted import unadapted

        turning = load_backbone(backbone, device).turning(split.turned)
        if isinstance(turning, VisionEncoder):
            raise AdaptError(f"{backbone} reads no class names: measure class means with `adapt train nearest_mean`")
        model = unadapted(turning, split.class_names, templates or split.template)
        tasks.of(split.items()).fit_answers(model, split.train or _measured(split, part), Inference(cache=cache))
        _print(model, split, part, as_json, cache)
    if not as_json:
        _tell_parts(split, part)


def _note_learned(adapter: Path, split: Split, items: Sequence[Item]) -> None:
    """Print a warning if the run that `adapter` is from, or the adapter of, was trained on some of the `items`.

    Tasks in which an image has several items, such as questions, may learn from one and be measured on another.
    """
    from adapt.data.readers.lines import csv_rows
    from adapt.training.run import PICKS

    listed = (adapter if adapter.is_dir() else adapter.parent) / PICKS
    if not (listed.is_file() and split.task.once_an_image):
        return
    try:
        learned = {row.get("path") for row in csv_rows(listed)[1]}
    except AdaptError as error:
        click.echo(f"warning: whether the adapter was trained on these {split.noun} is unknown: {error}", err=True)
        return
    if known := sum(not learned.isdisjoint(item.paths) for item in items):
        click.echo(
            f"warning: the adapter was trained on {known:,} of these {len(items):,} {split.noun} (listed in {listed}), "
            "so that the figures say little about new ones",
            err=True,
        )


def _other_classes(data: str, own: Sequence[str], adapter: Path, learned: Sequence[str]) -> str:
    """Return an error message that lists the differences between the class names of the data and of an adapter."""
    unknown, lacking = ([name for name in one if name not in other] for one, other in ((own, learned), (learned, own)))
    differences = [f"{data} has other classes than {adapter}"]
    differences += [f"the adapter does not know {first_of(list(map(repr, unknown)), 3)}"] if unknown else []
    differences += [f"the data has no {first_of(list(map(repr, lacking)), 3)}"] if lacking else []
    return "; ".join(differences) + ": rename them, or add --data-classes to classify among the data's own names"


def _measured(split: Split, part: str) -> tuple[Item, ...]:
    """Return the items to evaluate: the split `part` (train, val or test), or all items that can be, for `part` all."""
    if part == common.ALL:
        return tuple(filter(_is_measured, split.items()))
    items: tuple[Item, ...] = getattr(split, part)
    if not items:
        parts, noun = ", ".join(f"{name} {size:,}" for name, size in _sizes(split).items() if size), split.noun
        raise AdaptError(
            f"{shown(split.name)} has no {part} {noun}; its {noun}: {parts or 'none'}. Give --part all, or another"
        )
    return items


def _is_measured(item: Item) -> bool:
    """Return whether an item can be evaluated; a text that stands for images in training cannot."""
    return bool(item.paths) or item.task.mixes_texts


def _sizes(split: Split) -> dict[str, int]:
    """Return a dict with the number of items that can be evaluated in each part of the data (train, val, test)."""
    return {part: sum(map(_is_measured, getattr(split, part))) for part in common.PARTS}


def _tell_parts(split: Split, part: str) -> None:
    """Print which part (train, val, test) was evaluated, and how adapt divided data that came without a split."""
    sizes, noun = _sizes(split), split.noun
    every = sum(sizes.values())
    others = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size and name != part)
    if part == common.ALL:
        click.echo(f"measured: all {every:,} {noun} of the data ({others})")
        return
    if 0 < sizes[part] < every:
        click.echo(f"measured: {sizes[part]:,} {part} {noun} of {every:,} ({others}; --part all measures all)")
    if split.ratios is not None:
        train, val, test = (f"{100 * share:g} %" for share in split.ratios)
        of_each = "of each class, " * bool(split.class_names)
        click.echo(
            f"{shown(split.name)} came without parts and was divided by ratios: {of_each}{train} are for training, "
            f"{val} for validation and {test} for testing, drawn with a fixed seed"
        )


def _print(model: Adapted, split: Split, part: str, as_json: bool, cache: bool, blended: bool = False) -> None:
    """Evaluate `model` on a part of the data (train, val, test or all), and print the scores as text or JSON.

    JSON includes `blend`, the weight against zero-shot predictions, if `blended` is true or if the weight is not 1.
    """
    from adapt.data.bags import has_bags, singles
    from adapt.evaluation.evaluate import evaluate
    from adapt.models.answer import can_answer_together

    items = _measured(split, part)
    if one := split.task.nothing_to_learn((), model.class_names):
        raise AdaptError(f"the adapter has {one}, so nothing can be measured: train it on several classes")
    scores = evaluate(model, items, cache=cache)
    others = {}
    if can_answer_together(model, items):
        others["together"] = evaluate(model, items, cache=cache, together=True)
    if has_bags(items):
        others["by_image"] = evaluate(model, singles(items), cache=cache)
    if as_json:
        from adapt.common import plain

        blend = {"blend": model.answers.blend} if blended or model.answers.blend != 1 else {}
        figures = {
            "data": split.name,
            "part": part,
            "parts": _sizes(split),
            **blend,
            **scores.figures(),
            **scores.details(),
            **{name: each.figures() for name, each in others.items()},
        }
        click.echo(plain.dump({"method": model.method.name, "backbone": model.backbone.name, **figures}))
    else:
        of_part = "" if part == common.ALL else f"{part} "
        measured = f"{scores.images} {of_part}{split.noun} of {split.name}"
        measured += f" ({len(split.class_names)} {split.task.classes_are})" if split.class_names else ""
        lines = list(scores.lines(measured))
        for name, each in others.items():
            by_image = f"their {each.images} images, each by itself"
            lines += each.lines("the same, answered together as one set" if name == "together" else by_image)
        click.echo("\n".join(lines))
