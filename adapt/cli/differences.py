"""`adapt repeat` and `adapt diff`: a training once more, and two adapters side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.measure import in_words, measured_items, note_learned
from adapt.cli.options import Option, command
from adapt.common import plain
from adapt.common.devices import AUTO
from adapt.common.disk import check_free, check_writable, write_text
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.shown import first_of, shown
from adapt.data.readers import load as load_data

if TYPE_CHECKING:
    from adapt.training.repeating import Differences, Provenance

# facts that differ, which are known before a training; sets are calibrated after it
_TOLD_BEFORE = (
    "recipe", "environment.json", "sets", "backbone", "fingerprint", "versions.", "machine.", "metrics.train_set",
    "metrics.test_set",
)  # fmt: skip
_OTHER_BITS = 1  # the exit code where a repeated training differs
_MOST, _LETTERS = 15, 40  # rows of a table, and letters of a value in it


@command()
def repeat(
    adapter: Path,
    *,
    data: Annotated[str | None, f"Where the data is now, if elsewhere: {common.SOURCES}."] = None,
    root: common.Root = None,
    backbone: Annotated[str | None, "Where the backbone is now, if elsewhere."] = None,
    device: common.RecipeDevice = None,
    out: Annotated[Path | None, "New folder for the new run.  [default: a temporary one]"] = None,
    quiet: common.Quiet = False,
    as_json: common.AsJson = False,
) -> None:
    """Train ADAPTER again, as its header and the folder of its run record, and compare the two bit for bit.

    ADAPTER is an adapter file or the folder of a run, which is only read. What differs from the first training is told
    before: versions of libraries, changed images, the processor, files that do not agree. The recipe, the seed, the
    number of threads and the memory for texts are those of the first training.

    \b
    Examples:
      adapt repeat runs/first
      adapt repeat adapter.safetensors --data photos/ --out runs/again

    The verdict is `the same bits` or `differs`. Then follow the tensors, figures and answers that differ. The exit code
    is 1 if a tensor, a setting of the model or a figure differs, for whatever reason.
    """
    if out is not None:
        check_free(out)
    given = {"backbone": backbone, "device": device, "data.source": data, "data.root": root}
    changes = [(key, value) for key, value in given.items() if value is not None or (key == "data.root" and data)]
    with TemporaryDirectory() as temporary:
        from adapt.training.repeating import provenance
        from adapt.training.repeating import repeat as repeated

        first, causes = provenance(adapter), list[str]()

        def tell(before: Differences) -> None:
            causes.extend([*before.facts, *(kind for kind in before.images if "in both" not in kind)])
            before = replace(before, blocks={}, equal_tensors=0)
            lines = [f"repeats    {_described(first)}", *_tables(before, "then", "now")]
            lines += [] if causes else ["the same   all that is recorded of versions, machine and images"]
            lines += [] if first.machine else ["unknown    threads, processor and images then: its run is not here"]
            click.echo("\n".join(lines), err=as_json)

        where = Path(temporary) / "run" if out is None else out
        found = repeated(first, where, changes, progress=not quiet, tell=tell)
    left = {key: pair for key, pair in found.facts.items() if not key.startswith(_TOLD_BEFORE)}
    same = not (found.tensors or [key for key in left if not key.startswith("metrics.")])
    verdict = "the same bits" if same else "differs"
    if as_json:
        about = {"verdict": verdict, "adapter": str(adapter), "run": out and str(out), "known_before": causes}
        click.echo(plain.dump(about | found.to_dict()))
    else:
        after = replace(found, facts=left, blocks={}, images={})
        why = f"perhaps because of {first_of(causes, 8, '; ')}" if causes else "though nothing that is recorded differs"
        click.echo("\n".join([verdict, *_tables(after, "then", "now"), *([] if same else [why])]))
        click.echo(f"run        {out}" * (out is not None), nl=out is not None)
    if not same or left:
        sys.exit(_OTHER_BITS)


@command()
def diff(
    first: Path,
    second: Path,
    *,
    data: Annotated[str | None, f"Also answer labelled images with both: {common.SOURCES}."] = None,
    root: common.Root = None,
    names: common.ReadableNames = None,
    part: common.PartToMeasure = "test",
    report: Annotated[Path | None, "HTML file to write, with pictures of the images whose answer differs."] = None,
    backbone: common.OfAdapter = None,
    device: common.RunsOn = AUTO,
    cache: common.CacheFeatures = True,
    as_json: common.AsJson = False,
    as_csv: Annotated[bool, Option("Print a CSV row for each image whose answer differs.", "--csv")] = False,
) -> None:
    """Show what the adapters FIRST and SECOND, files or folders of runs, differ in.

    These are settings, versions and machines, the images that they learned from (where both runs are here), and how
    much each block changed: the norm of the difference over the larger of the two norms. With --data, both answer
    labelled images: the difference of their accuracies is told, with its interval and a test, and which answers differ.

    \b
    Examples:
      adapt diff runs/first runs/second
      adapt diff runs/first runs/second --data emoji --report difference.html
    """
    if as_csv and (as_json or data is None):
        raise AdaptError("--csv lists images whose answer differs: give labelled images with --data, and not --json")
    if report is not None:
        check_writable(report)
        if report.suffix.lower() not in (".html", ".htm"):
            raise AdaptError(f"--report is {report}; expected a file name that ends in .html")
    from adapt.protocols.tables import as_csv as as_table
    from adapt.training.repeating import differences, provenance

    both, lines = (provenance(first), provenance(second)), list[str]()
    found, told = differences(*both), JsonObject(first=str(first), second=str(second))
    if data is not None:
        from adapt.evaluation.evaluate import evaluate
        from adapt.evaluation.intervals import legend

        split = load_data(data, root, names, note=True)
        items = measured_items(split, part)
        models = [common.load_adapter(path, backbone, device) for path in (first, second)]
        scores = [evaluate(model, items, cache=cache) for model in models]
        found, told["scores"] = found.answered(*scores), [each.reported() for each in scores]
        for path, each in zip((first, second), scores, strict=True):
            note_learned(path, split, items)
            measured = f"{each.images} {split.noun} of {split.name}"
            lines += [f"{shown(path)}: {line}" for line in each.lines(measured)]
        assert found.answers is not None  # they are now
        lines.append(f"the first minus the second: {in_words(scores[0], found.answers)}")
        lines.append(f"in brackets: {legend(scores[0].images, len(set(scores[0].kept_with)))}")
    # figures of other test images say little beside those above
    compared = replace(found, facts={key: found.facts[key] for key in found.facts if key[:8] != "metrics."})
    if report is not None:
        from adapt.protocols.report import difference_report

        cells, turned = _cells(compared, "first", "second"), both[0].header.preprocess["turned"]
        write_text(report, difference_report(f"{first} and {second}", cells, lines, found.flips, turned))
    if as_csv:
        if found.answers is None or found.answers.alone is None:
            raise AdaptError("--csv lists answers that are right or wrong, and these are of another kind: leave it out")
        columns = ("path", "class", "first", "second", "kind")
        click.echo(as_table([columns, *([row[column] for column in columns] for row in found.flips)]))
    elif as_json:
        click.echo(plain.dump(told | found.to_dict()))
    else:
        heads = [f"{word:<10} {_described(each)}" for word, each in zip(("first", "second"), both, strict=True)]
        click.echo("\n".join([*heads, *_tables(compared, "first", "second"), *lines]))


def _described(adapter: Provenance) -> str:
    header = adapter.header
    return f"{shown(adapter.file)}: {header.method} on {shown(header.backbone)}, seed {header.seed}"


def _cells(found: Differences, first: str, second: str) -> list[list[Sequence[str]]]:
    """Return tables of what differs, each with a header; `first` and `second` are the headings of the two adapters."""
    kinds, tensors = [row["kind"] for row in found.flips], dict(found.tensors)
    if found.equal_tensors:
        tensors = {f"{found.equal_tensors:,} with the same bits": "", **tensors}
    names = {kind: ["/".join(path.split("/")[-2:]) for path in paths] for kind, paths in found.images.items()}
    compared = found.answers is not None and found.answers.alone is not None  # right or wrong, each
    counts = {kind: str(kinds.count(kind)) for kind in kinds or ["none"] * compared}
    tables: dict[tuple[str, ...], list[tuple[object, ...]]] = {
        ("differs in", first, second): [(key, *map(_short, pair)) for key, pair in found.facts.items()],
        ("images", "", "such as"): [
            (kind, len(own), "" if "in both" in kind else first_of(own, 2)) for kind, own in names.items()
        ],
        ("block", "relative change"): [(name, value) for name, value in found.blocks.items() if value],
        ("tensors", "largest difference"): [*tensors.items()],
        ("answers that differ", "images"): [*counts.items()],
    }
    cells: list[list[Sequence[str]]] = []
    for header, rows in tables.items():
        rows[_MOST:] = [(f"and {len(rows) - _MOST:,} more: --json", *[""] * (len(header) - 1))] * (len(rows) > _MOST)
        texts = [[f"{cell:.3g}" if isinstance(cell, float) else shown(cell) for cell in row] for row in rows]
        cells += [[header, *texts]] if rows else []
    return cells


def _tables(found: Differences, first: str, second: str) -> list[str]:
    """Return the tables of `_cells` as text, each with an empty line around it."""
    from adapt.protocols.tables import as_text

    return [text for cells in _cells(found, first, second) for text in ("", as_text(cells))] + [""]


def _short(value: object) -> str:
    """Return a value as text of at most 40 letters, or `none`."""
    text = "none" if value is None else shown(value if isinstance(value, str) else plain.dump(value))
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
