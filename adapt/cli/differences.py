"""`adapt repeat` and `adapt diff`: a training once more, and two adapters side by side."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import click

from adapt.cli import options as common
from adapt.cli.measure import in_words
from adapt.cli.options import command
from adapt.common import plain
from adapt.common.disk import check_free
from adapt.common.shown import first_of, shown

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
        from adapt.evaluation.scores import difference
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

        found = repeated(first, out or Path(temporary) / "run", changes, progress=not quiet, tell=tell)
    left = {key: pair for key, pair in found.facts.items() if not key.startswith(_TOLD_BEFORE)}
    same = not (found.tensors or [key for key in left if not key.startswith("metrics.")])
    verdict = "the same bits" if same else "differs"
    if as_json:
        about = {"verdict": verdict, "adapter": str(adapter), "run": out and str(out), "known_before": causes}
        click.echo(plain.dump(about | found.to_dict()))
    else:
        after = replace(found, facts=left, blocks={}, images={})
        why = f"perhaps because of {first_of(causes, 8, '; ')}" if causes else "though nothing that is recorded differs"
        both = found.answers
        answers = [f"the first minus the second: {in_words(both[0], difference(*both))}"] if both else []
        click.echo("\n".join([verdict, *_tables(after, "then", "now"), *answers, *([] if same else [why])]))
        click.echo(f"run        {out}" * (out is not None), nl=out is not None)
    if not same or left:
        sys.exit(_OTHER_BITS)


@command()
def diff(
    first: Path,
    second: Path,
    *,
    as_json: common.AsJson = False,
) -> None:
    """Show what the adapters FIRST and SECOND, files or folders of runs, differ in.

    These are settings, versions and machines, the images that they learned from (where both runs are here), and how
    much each block changed: the norm of the difference over the larger of the two norms. What their answers differ in
    is told by `adapt eval FIRST --against SECOND`.

    \b
    Examples:
      adapt diff runs/first runs/second
    """
    from adapt.training.repeating import differences, provenance

    both = (provenance(first), provenance(second))
    found = differences(*both)
    if as_json:
        click.echo(plain.dump({"first": str(first), "second": str(second)} | found.to_dict()))
        return
    heads = [f"{word:<10} {_described(each)}" for word, each in zip(("first", "second"), both, strict=True)]
    # figures of other test images say little
    alike = replace(found, facts={key: found.facts[key] for key in found.facts if key[:8] != "metrics."})
    click.echo("\n".join([*heads, *_tables(alike, "first", "second")]))


def _described(adapter: Provenance) -> str:
    header = adapter.header
    return f"{shown(adapter.file)}: {header.method} on {shown(header.backbone)}, seed {header.seed}"


def _tables(found: Differences, first: str, second: str) -> list[str]:
    """Return tables of what differs; `first` and `second` are the headings of the two adapters."""
    from adapt.protocols.tables import as_text

    tensors: dict[str, float | str] = dict(found.tensors)
    if found.equal_tensors:
        tensors = {f"{found.equal_tensors:,} with the same bits": "", **tensors}
    names = {kind: ["/".join(path.split("/")[-2:]) for path in paths] for kind, paths in found.images.items()}
    tables: dict[tuple[str, ...], list[tuple[object, ...]]] = {
        ("differs in", first, second): [(key, *map(_short, pair)) for key, pair in found.facts.items()],
        ("images", "", "such as"): [
            (kind, len(own), "" if "in both" in kind else first_of(own, 2)) for kind, own in names.items()
        ],
        ("block", "relative change"): [(name, value) for name, value in found.blocks.items() if value],
        ("tensors", "largest difference"): [*tensors.items()],
    }
    lines = list[str]()
    for header, rows in tables.items():
        rows[_MOST:] = [(f"and {len(rows) - _MOST:,} more: --json", *[""] * (len(header) - 1))] * (len(rows) > _MOST)
        texts = [[f"{cell:.3g}" if isinstance(cell, float) else shown(cell) for cell in row] for row in rows]
        lines += ["", as_text([header, *texts])] if rows else []
    return [*lines, ""]


def _short(value: object) -> str:
    """Return a value as text of at most 40 letters, or `none`."""
    text = "none" if value is None else shown(value if isinstance(value, str) else plain.dump(value))
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"
