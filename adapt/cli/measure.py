"""`adapt eval`, `adapt sets`, `adapt certify`, `adapt zeroshot` and `adapt verify`"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import click

from adapt import tasks
from adapt.cli import options as common
from adapt.cli.options import Option, command
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, check_writable, write_json, write_text
from adapt.common.errors import AdaptError, nearest
from adapt.common.hub import is_name
from adapt.common.shown import first_of, readable_bytes, shown
from adapt.data.bags import has_bags, singles
from adapt.data.emoji import bundled
from adapt.data.readers import load as load_data
from adapt.data.readers import published
from adapt.protocols import papers

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.data.split import Split
    from adapt.evaluation.scores import Difference, Scores
    from adapt.models.base import Adapted
    from adapt.protocols.reproduction import Reproduction


@command("eval")
def evaluate_adapter(
    adapter: Path,
    *,
    data: common.DataToMeasure,
    root: common.Root = None,
    columns: common.ColumnNames = None,
    names: common.ReadableNames = None,
    part: common.PartToMeasure = "test",
    data_classes: Annotated[bool, "Classify among the data's class names, not the adapter's."] = False,
    blend: Annotated[
        str | None, "Shares of the adapter against zero-shot (WiSE-FT), such as 0,0.5,1, each measured by itself."
    ] = None,
    against: Annotated[Path | None, "Another adapter, which answers the same images: the difference is told."] = None,
    report: Annotated[Path | None, "HTML file to write, with pictures of what --against answers otherwise."] = None,
    level: Annotated[
        float | None,
        Option("Also measure the sets of classes at this level, such as 0.9.", "--sets", min=0, max=1, metavar="LEVEL"),
    ] = None,
    languages: Annotated[
        str | None, "List text,translation,language of class names: the accuracy in each language instead."
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
      adapt eval runs/first/adapter.safetensors --data emoji --against runs/second/adapter.safetensors
      adapt eval runs/first --data emoji --against runs/second --report difference.html
      adapt eval runs/first/adapter.safetensors --data photos --data-classes
      adapt eval runs/first/adapter.safetensors --data new_photos --part all
      adapt eval runs/vlora/adapter.safetensors --data emoji-questions
    """
    split = load_data(data, root, names, note=True, columns=columns)
    shares = [] if blend is None else common.numbers("blend", blend, float)
    if (shares or languages) and (against is not None or level is not None):
        raise AdaptError("--blend or --languages is given with --against or --sets: measure one after the other")
    if report is not None:
        check_writable(report)
        if against is None or report.suffix.lower() not in (".html", ".htm"):
            raise AdaptError(f"--report is {report}; expected a file that ends in .html, and --against beside it")
    models, paths = [], [adapter] if against is None else [adapter, against]
    for path in paths:
        model = common.load_adapter(path, backbone, device, split.class_names if data_classes else None)
        if model.class_names and set(split.class_names) != set(model.class_names):
            raise AdaptError(_other_classes(data, split.class_names, path, model.class_names))
        common.set_at_use(model, at_use)
        models.append(model)
    model = models[0]
    blended = [model.blended(share, split.template) for share in shares]  # all are checked before any is measured
    for share, each in zip(shares, blended, strict=True):
        if not as_json:
            click.echo(f"blend {share:g}: ", nl=False)
        _print(each, split, part, as_json, cache, blended=True)
    if languages:
        _print_languages(model, measured_items(split, part), load_data(languages).items(), as_json, cache)
    elif not shares:
        other = None if against is None else (against, models[1])
        page = None if report is None else (report, f"First {adapter}, second {against}")
        _print(model, split, part, as_json, cache, against=other, level=level, report=page)
    for path in paths if part != "train" else ():
        note_learned(path, split, measured_items(split, part))
    if not as_json:
        _tell_parts(split, part)


@command()
def sets(
    adapter: Path,
    *,
    data: Annotated[str | None, f"Labelled images to calibrate on, unless there are --folds: {common.SOURCES}."] = None,
    root: common.Root = None,
    names: common.ReadableNames = None,
    part: common.PartToMeasure = "all",
    out: Annotated[Path, "New file for the adapter with its sets."],
    score: Annotated[
        Literal["lac", "aps", "raps", "aps_random", "raps_random", "margin", "top_k"] | None,
        "How strange a class is: lac gives the smallest sets, aps sets that grow with the difficulty of the image.  "
        "[default: lac]",
    ] = None,
    by_class: Annotated[bool, "Keep the promise for each class, which needs images of each."] = False,
    together: Annotated[
        bool,
        "Calibrate for folders that `adapt predict --together --sets` answers: often somewhat smaller sets where "
        "classes are about equally frequent.",
    ] = False,
    folds: Annotated[
        int | None,
        "Need no new images: average so many adapters, each trained again without another part of the images (CV+).",
    ] = None,
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
) -> None:
    """Calibrate ADAPTER on labelled images, so that `adapt predict --sets 0.9` gives sets of classes with a guarantee.

    An adapter that predicts a number then gives an interval that holds the true number.

    The images must be new to the adapter: it has not learned from them, and no setting, number of epochs or temperature
    was chosen on them. At 90 % that takes at least 9 images, and better some hundred. Any level can be asked for later.

    \b
    Examples:
      adapt sets runs/first --data calibration_photos --out sets.safetensors
      adapt sets runs/first --data photos --part test --by-class --out sets.safetensors
      adapt sets runs/first --data calibration_photos --together --out sets.safetensors
      adapt sets runs/counts --data calibration.csv --out intervals.safetensors
      adapt sets runs/first --folds 8 --out crossed.safetensors
    """
    check_free(out, "file")
    if (folds is None) == (data is None) or (folds and (root or names or part != "all" or by_class or together)):
        raise AdaptError(
            "give --data, new labelled images to calibrate on, or --folds, which is by those that were learned from, "
            "without --root, --names, --part, --by-class and --together"
        )
    seen, noun, how = set[str](), "images", "calibrated on"
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.sets import LEVEL, calibrated
    from adapt.training.repeating import crossed, provenance
    from adapt.training.run import seen_images

    if data is None:
        given = {"backbone": backbone, "device": device, "cache": None if cache else False}
        changes = [(key, value) for key, value in given.items() if value is not None]
        model, found = crossed(provenance(adapter), folds or 0, score or "lac", changes)
        how = f"averages {folds} adapters, each trained without one of {folds} random parts of"
    else:
        split = load_data(data, root, names, note=True)
        items, noun, seen = measured_items(split, part), split.noun, seen_images(adapter) or {""}
        model, using = common.load_adapter(adapter, backbone, device), Inference(cache=cache)
        found = calibrated(model, items, score, by_class=by_class, together=together, learned=seen, inference=using)
    model.answers = replace(model.answers, sets=found)
    found.check(LEVEL, model.settings_id, found.of_items, together)
    model.save(out)
    if "" in seen:
        _note_unknown(adapter, noun)
    ask = "--together " * together
    click.echo(f"{how} {found.images:,} {noun}: {found.promise(LEVEL, model.class_names)}")
    click.echo(
        f"adapter    {out} ({readable_bytes(out.stat().st_size)}); adapt predict {out} IMAGES {ask}--sets {LEVEL:g}"
    )


@command()
def certify(
    adapter: Path,
    *,
    out: Annotated[Path | None, "New .json file.  [default: NAME.certificate.json beside NAME.safetensors]"] = None,
    seconds: Annotated[
        float, Option("Time to measure one image, and 32 at once, each.", kind=click.FloatRange(0, min_open=True))
    ] = 30.0,
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    quiet: common.Quiet = False,
    as_json: common.AsJson = False,
) -> None:
    """Measure what answering with ADAPTER costs on this machine, and write its certificate.

    The certificate holds the latency (p50 and p99, the 50th and 99th percentile, of one image and of 32 at once),
    images a second, peak memory, operations, the size of the file, and the machine. If it lies beside the adapter,
    `adapt inspect` shows it and `adapt push` publishes it. Measure while nothing else runs.

    \b
    Examples:
      adapt certify runs/first
      adapt certify runs/first --device cpu --out first-on-cpu.json
    """
    from adapt.loading import located

    if is_name(adapter) and out is None:
        raise AdaptError("an adapter of the hub has no folder of yours: say with --out where to write the certificate")
    from adapt.formats import certificate

    file = located(adapter)
    if not file.is_file():
        raise AdaptError(f"there is no adapter file at {adapter}: give a .safetensors file, or the folder of a run")
    out = out or certificate.place_of(file)
    check_free(out, "file with --out, or delete it to measure again")
    found = certificate.measured(common.load_adapter(file, backbone, device), file, seconds, not quiet)
    write_json(out, told := found.model_dump(mode="json"))
    if as_json:
        click.echo(plain.dump(told, indent=2))
    else:
        for title, text in found.rows().items():
            click.echo(f"{title:20} {shown(text)}")
        click.echo(f"{'certificate':20} {out}")


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
    backbone = common.say_backbone(backbone, data)
    split = load_data(data, root, names, note=True)
    from adapt.backbones.load import load_backbone
    from adapt.backbones.vision_encoder import VisionEncoder
    from adapt.evaluation.inference import Inference
    from adapt.models.unadapted import unadapted

    turning = load_backbone(backbone, device).turning(split.turned)
    if isinstance(turning, VisionEncoder):
        raise AdaptError(f"{backbone} reads no class names: measure class means with `adapt train nearest_mean`")
    model = unadapted(turning, split.class_names, templates or split.template)
    tasks.of(split.items()).fit_answers(model, split.train or measured_items(split, part), Inference(cache=cache))
    _print(model, split, part, as_json, cache)
    if not as_json:
        _tell_parts(split, part)


def note_learned(adapter: Path, split: Split, items: Sequence[Item]) -> None:
    """Print a warning if `adapter`, a file or the folder of a run, has learned from some of the `items`.

    Tasks in which an image has several items, such as questions, may learn from one and be measured on another.
    """
    from adapt.data.decoding.files import file_id
    from adapt.training.run import seen_images

    try:
        seen = seen_images(adapter) or {""} if split.task.once_an_image else set()
    except AdaptError as error:
        click.echo(f"warning: whether {shown(adapter)} was trained on these {split.noun} is unknown: {error}", err=True)
        return
    if "" in seen:
        _note_unknown(adapter, split.noun)
    if known := sum(not seen.isdisjoint(map(file_id, item.paths)) for item in items) if seen - {""} else 0:
        click.echo(
            f"warning: {shown(adapter)} was trained on {known:,} of these {len(items):,} {split.noun}, or something "
            "was chosen on them, so that the figures say little about new ones",
            err=True,
        )


def _note_unknown(adapter: Path, noun: str) -> None:
    what = f"a training run of {shown(adapter)} is not here, so it is unknown whether it learned from these {noun}"
    click.echo(f"warning: {what}", err=True)


def _other_classes(data: str, own: Sequence[str], adapter: Path, learned: Sequence[str]) -> str:
    """Return an error message that lists the differences between the class names of the data and of an adapter."""
    unknown, lacking = ([name for name in one if name not in other] for one, other in ((own, learned), (learned, own)))
    differences = [f"{data} has other classes than {adapter}"]
    differences += [f"the adapter does not know {first_of(list(map(repr, unknown)), 3)}"] if unknown else []
    differences += [f"the data has no {first_of(list(map(repr, lacking)), 3)}"] if lacking else []
    return "; ".join(differences) + ": rename them, or add --data-classes to classify among the data's own names"


def measured_items(split: Split, part: str) -> tuple[Item, ...]:
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


def _print(
    model: Adapted,
    split: Split,
    part: str,
    as_json: bool,
    cache: bool,
    blended: bool = False,
    against: tuple[Path, Adapted] | None = None,
    level: float | None = None,
    report: tuple[Path, str] | None = None,
) -> None:
    """Evaluate `model` on a part of the data (train, val, test or all), and print the scores as text or JSON.

    JSON includes `blend`, the weight against zero-shot predictions, if `blended` is true or if the weight is not 1.
    The model `against`, of a file, is evaluated as well, and the difference is printed, and written to the file of a
    page with a title, `report`. With a `level`, the sets of classes are measured too.
    """
    from adapt.evaluation.evaluate import evaluate
    from adapt.evaluation.inference import Inference
    from adapt.evaluation.intervals import in_percent, legend
    from adapt.evaluation.scores import compared, difference
    from adapt.evaluation.sets import measured as measured_sets
    from adapt.evaluation.watching import windows_of
    from adapt.models.answer import can_answer_together

    items = measured_items(split, part)
    if one := split.task.nothing_to_learn((), model.class_names):
        raise AdaptError(f"the adapter has {one}, so nothing can be measured: train it on several classes")
    held = None if level is None else measured_sets(model, items, level, Inference(cache=cache))
    scores = evaluate(model, items, cache=cache)
    measured = f"{scores.images} {'' if part == common.ALL else f'{part} '}{split.noun} of {split.name}"
    measured += f" ({len(split.class_names)} {split.task.classes_are})" if split.class_names else ""
    told: dict[str, object] = {"method": model.method.name, "backbone": model.backbone.name}
    told |= {"data": split.name, "part": part, "parts": _sizes(split)}
    if blended or model.answers.blend != 1:
        told["blend"] = model.answers.blend
    told |= scores.reported() | scores.details()
    lines = list(scores.lines(measured))
    if can_answer_together(model, items):
        together = evaluate(model, items, cache=cache, together=True)
        told["together"] = together.reported()
        lines += together.lines("the same, answered together as one set")
    if has_bags(items):
        by_image = evaluate(model, singles(items), cache=cache)
        told["by_image"] = by_image.reported()
        lines += by_image.lines(f"their {by_image.images} images, each by itself")
    if held is not None:
        told["sets"] = held._asdict()
        held_true = f"{held.level:g}: {100 * held.coverage:.1f} % ({in_percent(held.interval)}) hold the true"
        if held.by_class:
            least = min(held.by_class, key=lambda name: held.by_class[name])
            lines.append(
                f"sets at {held_true} class, {held.size:.2f} classes on average, {100 * held.empty:.1f} % empty; least "
                f"for {shown(least)}, {100 * held.by_class[least]:.1f} %"
            )
        else:
            lines.append(f"intervals at {held_true} number, {held.size:.3g} wide on average")
    if against is not None:
        other = evaluate(against[1], items, cache=cache)
        apart = difference(scores, other)
        both = compared(scores, other, apart)
        told["against"] = {"adapter": str(against[0]), **other.reported(), "difference": both}
        lines += [f"{shown(against[0])}: {line}" for line in other.lines(measured)]
        lines.append(f"the first minus the second: {in_words(scores, apart)}")
        if report is not None:
            from adapt.protocols.report import difference_report

            (page, title), turned = report, model.backbone.preprocess.turned
            write_text(page, difference_report(title, lines, both["flips"], turned))
    if windows := windows_of(model, items, Inference(cache=cache)):
        from adapt.models.watch import summary

        told["windows"] = [asdict(change) for change in windows]
        lines.append(summary(windows))
    lines.append(f"in brackets: {legend(scores.images, len(set(scores.kept_with)))}")
    click.echo(plain.dump(told) if as_json else "\n".join(lines))


def _print_languages(model: Adapted, items: Sequence[Item], names: Iterable[Item], as_json: bool, cache: bool) -> None:
    """Evaluate `model` on `items` by the names of classes in each language, and print a table, or JSON."""
    from adapt.evaluation.evaluate import by_language
    from adapt.evaluation.scores import difference
    from adapt.protocols.tables import as_text

    told = dict[str, object]()
    cells = [["language", "classes", "images", "by its names", "by the data's", "difference"]]
    for language, own, data in by_language(model, items, names, cache):
        apart = difference(own, data)
        shares = own.share("accuracy"), data.share("accuracy"), in_words(own, apart).partition(" points")[0]
        cells.append([language, str(len({*own.actual})), str(own.images), *shares])
        told[language] = {"translated": own.reported(), "data": data.reported(), "difference": apart._asdict()}
    click.echo(plain.dump(told) if as_json else as_text(cells))


def in_words(scores: Scores, found: Difference) -> str:
    """Return the difference of two models as text, with its interval and the test that it was put to."""
    figure = scores.compared_by
    sign, form = (100, "+.1f") if figure.share else (-1, "+.4g")  # of errors, a merit is minus the figure
    merit, *ends = (format(sign * value + 0.0, form) for value in (found.merit, *(found.interval or ())))
    between = f" ({' to '.join(ends[:: 1 if figure.share else -1])})" if ends else ""
    text = f"{merit} {'points of ' * figure.share}{figure.title}{between}"
    grouped = len(set(scores.kept_with)) < scores.images
    if found.alone is None:
        return f"{text}, p = {found.p:.2g} by a t test between {'groups' if grouped else 'images'}"
    test = "a t test between groups" if grouped else "McNemar's exact test"
    alone = "{} right only by the first, {} only by the second".format(*found.alone)
    return f"{text}; {alone}, p = {found.p:.2g} by {test}"


_DIFFERENT = 1  # the exit code where a figure is not reproduced


@command()
def verify(
    backbone: str,
    *,
    data: Annotated[str, Option("Published data set (see `adapt data list`).", metavar="NAME")],
    root: Annotated[str, "Folder that holds the published sets."],
    called: Annotated[
        str | None,
        Option("The papers' name for BACKBONE, such as ViT-B/16.  [default: by its name]", "--as", metavar="NAME"),
    ] = None,
    recipe: Annotated[str | None, "Few-shot recipe to train and compare too, such as coop."] = None,
    shots: Annotated[int, Option("Training images per class.", min=1)] = 16,
    seeds: Annotated[str, "Seeds, a run for each; the mean is compared."] = "1,2,3",
    out: Annotated[Path | None, "Folder for the recipe's runs."] = None,
    overrides: common.Overrides = (),
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
    as_json: common.AsJson = False,
) -> None:
    """Compare the accuracy of BACKBONE on a published data set with the published accuracy, and list differences.

    \b
    Examples:
      adapt verify open_clip:RN50-quickgelu/openai --data eurosat --root data
      adapt verify open_clip:RN50-quickgelu/openai --data caltech101 --root data --recipe coop --out runs/verify

    The command compares zero-shot accuracy and, with --recipe, the recipe's mean accuracy over the seeds. It also lists
    differences from the published setting: weights, resizing, normalisation statistics, class names, numbers of images,
    seeds, settings changed with --set, and the recipe's documented departures from its paper.

    `reproduced` means that the measured accuracy is within 0.2 points of a zero-shot figure, or 1 point of a trained
    figure, from an official file [F]. Figures from secondary sources [S] are shown but do not affect the verdict. The
    exit code is 1 if a figure is not reproduced. The recipe's runs are kept in OUT and not repeated.
    """
    entry = published.find(data)
    if entry is None:
        raise AdaptError(
            f"--data {data} is not a published data set; {nearest(data, published.sets(), bundled.LISTED_BY)}"
        )
    if called is not None and called not in papers.backbones():
        raise AdaptError(
            f"--as {called} is not the name of a published backbone; {nearest(called, papers.backbones())}"
        )
    split, runs = load_data(entry.name, root), None
    if recipe is not None:
        from adapt.protocols.reproduction import RecipeRuns
        from adapt.recipe.shipped import find_recipe

        given: common.Options = {"data": entry.name, "root": root, "backbone": backbone, "device": device}
        chosen, file = common.read(recipe, overrides, given, "few_shot"), find_recipe(recipe, "few_shot")
        if out is None:
            raise AdaptError(f"--recipe {recipe} needs a folder for its training runs: give a folder with --out")
        runs_seeds = tuple(common.numbers("seeds", seeds))
        runs = RecipeRuns(chosen, file.name, shots, runs_seeds, out, file.under("Departures"), overrides)
    elif out is not None or overrides:
        raise AdaptError("--out and --set apply only to a recipe's runs: add --recipe, or leave out --out and --set")
    from adapt.backbones.load import load_backbone
    from adapt.protocols.reproduction import reproduce

    loaded, name = load_backbone(backbone, device), called or papers.published_backbone(backbone)
    reproduction = reproduce(
        loaded, split, entry, root, name, runs, cache=cache, progress=lambda line: click.echo(f"  {line}", err=True)
    )
    click.echo(plain.dump(reproduction.to_dict(), indent=2) if as_json else _as_text(reproduction))
    if reproduction.verdict == "not reproduced":
        sys.exit(_DIFFERENT)


def _as_text(reproduction: Reproduction) -> str:
    """Return the text of a comparison: measured and published figures, the conditions that differ, and the verdict."""
    from adapt.evaluation.intervals import in_percent
    from adapt.protocols.tables import as_text

    cells = [["", "here", "published", "apart", "allowed", ""]]
    for each in reproduction.compared:
        figures = (f"{each.here:.2f}", f"{each.published:.2f}", f"{each.apart:+.2f}", f"{each.tolerance:g}")
        cells.append([f"{each.method} [{each.origin}]", *figures, "within" if each.reproduced else "outside"])
    beside = {each.method for each in reproduction.compared}
    cells += [
        [title, f"{value:.2f}", *[""] * 4] for title, value in reproduction.measured.items() if title not in beside
    ]
    lines = [f"{reproduction.data}, {reproduction.backbone}, accuracy in %", as_text(cells)]
    lines += [
        f"{title}: {in_percent(ends)}, 95 % confidence interval over other test images"
        for title, ends in reproduction.intervals.items()
    ]
    for each in reproduction.compared:
        more = f" and {len(each.templates) - 1} more templates" if len(each.templates) > 1 else ""
        templates = f", with {each.templates[0]!r}{more}" if each.templates else ""
        lines.append(f"{each.method}: {each.source or 'a secondary source'}{templates}")
    if reproduction.published_backbone is None:
        known = ", ".join(papers.backbones())
        lines.append(f"there are no published figures for this backbone; --as compares with one of {known}")
    lines += [
        f"differs: {each.what} {each.here}; published {each.published}"
        for each in reproduction.conditions
        if not each.same
    ]
    lines.append(f"the same: {', '.join(each.what for each in reproduction.conditions if each.same)}")
    if reproduction.departures:
        lines.append(f"departures of the recipe: {reproduction.departures}")
    lines.append(f"read: weights, fingerprint {reproduction.fingerprint}")
    lines += [f"read: {name}, SHA-256 {digest[:16]}" for name, digest in reproduction.lists.items()]
    versions = ", ".join(f"{name} {version}" for name, version in reproduction.environment["versions"].items())
    lines.append(f"with: {versions}; {reproduction.environment['precision']} on {reproduction.environment['device']}")
    return "\n".join([*lines, reproduction.verdict])
