"""Running of a protocol, which writes its results to one JSON and one CSV file beside the run directories."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from filelock import FileLock

from adapt.common.disk import write_csv, write_json
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import readable_time
from adapt.evaluation import stored
from adapt.protocols.engines import Engine
from adapt.protocols.plain_runs import is_run
from adapt.protocols.protocol import Figures, Protocol
from adapt.protocols.runs import TEST_SET, Row, alike, check, recipe_in
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run import environment

LOCAL = Engine()
SHORT = 5.0  # seconds for which no time left is shown


class Summary(TypedDict):
    """Means and standard deviations of accuracies over the seeds, in [0, 1], and the zero-shot accuracies.

    `together` are mean accuracies of answers about the whole test set together, of a method that gives such answers.
    There is one summary for each number of shots, each `setting` of a sweep, or each left-out domain.
    """

    shots: int | None
    setting: NotRequired[str]
    val: NotRequired[float | None]
    runs: int
    mean: Figures
    std: Figures
    zero_shot: Figures
    together: NotRequired[Figures]


class Results(TypedDict):
    """The results of a protocol, as stored in a JSON file."""

    protocol: str
    recipe: JsonObject
    environment: dict[str, object]
    runs: list[Row]
    summary: list[Summary]


def run_protocol(
    protocol: Protocol,
    out: Path,
    engine: Engine = LOCAL,
    progress: Callable[[str], None] | None = None,
    track: Track = (),
) -> Results:
    """Train and test the runs of `protocol` in the folder `out`, write the results to `out`, and return the results.

    Finished runs are not repeated, and an interrupted run is continued. Results of finished runs that are in `out`
    already, such as of other seeds, stay among the results. The trackers in `track` follow each run, as in `fit`.
    Raises AdaptError before training if a run would fail because of its data or method, or if `out` has results of
    another recipe; later if the folder of a run contains a run of another recipe, or if the test images have changed
    between the runs.
    """
    check_alone()
    trackers(track, out)
    check(protocol.runs)
    _earlier(protocol, out)
    rows: list[Row] = []
    started = time.monotonic()
    for row in engine.rows(protocol.runs, out, track):
        rows.append(row)
        if progress is not None:
            shown = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in protocol.figures)
            left = (time.monotonic() - started) / len(rows) * (len(protocol.runs) - len(rows))
            more = f"  (about {readable_time(left)} left)" if left > SHORT else ""
            progress(f"{len(rows)} of {len(protocol.runs)}  {row['run']}: {shown}{more}")
    with FileLock(out / ".results.lock"):  # another command may add its runs
        earlier = _earlier(protocol, out)
        if earlier and progress is not None:
            progress(f"{len(earlier)} finished runs of earlier commands in {out} are among the results")
        rows += earlier
        settings = list(dict.fromkeys(row.get("setting") for row in rows))
        rows.sort(key=lambda row: (row["shots"] or 0, settings.index(row.get("setting")), row["seed"]))
        _check_one_test_set(rows)
        results: Results = {
            "protocol": protocol.name,
            "recipe": protocol.recipe.model_dump(mode="json"),
            "environment": environment() | {"threads": engine.threads},
            "runs": rows,
            "summary": summaries(protocol, rows),
        }
        write_json(out / f"{protocol.name}.json", results)
        columns = dict.fromkeys(key for row in rows for key in row)  # of rows with other targets, or of older versions
        write_csv(out / f"{protocol.name}.csv", [{key: row.get(key) for key in columns} for row in rows])
    return results


def _earlier(protocol: Protocol, out: Path) -> list[Row]:
    """Return the rows of finished runs in `out` that `protocol` does not make again, and that have all its figures.

    Raises AdaptError if the results in `out` are of another recipe.
    """
    file = out / f"{protocol.name}.json"
    if not file.exists():
        return []
    results = stored.read(file, stored.ProtocolResults, "results of a protocol")
    recipe = recipe_in(file, results["recipe"])
    if recipe is None:
        raise AdaptError(f"this version of adapt cannot read the recipe in {file}: choose another --out")
    if not alike(recipe, protocol.recipe):
        raise AdaptError(f"{out} holds results of another recipe: choose another --out")
    made = {run.name for run in protocol.runs}
    return [
        row
        for row in results["runs"]
        if row["run"] not in made and is_run(out / row["run"]) and row.keys() >= set(protocol.figures)
    ]


def _check_one_test_set(rows: Sequence[Row]) -> None:
    """Raise AdaptError if runs that stand in one average were measured on different test images."""
    first_of: dict[tuple[object, str], Row] = {}
    for row in rows:
        for key in row:
            if not key.startswith(TEST_SET) or row[key] is None:  # of an older version
                continue
            first = first_of.setdefault((row.get("setting"), key), row)
            if first[key] != row[key]:
                raise AdaptError(
                    f"the runs {first['run']} and {row['run']} were measured on different test images, as the data "
                    "changed between them: delete the folders of the runs that were made before, and give the command "
                    "again"
                )


def summaries(protocol: Protocol, rows: Sequence[Row]) -> list[Summary]:
    """Return a summary for each group of result rows that differ only by seed."""
    groups: dict[tuple[int | None, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["shots"], row.get("setting")), []).append(row)
    return [_summary(protocol, *key, group) for key, group in groups.items()]


def _summary(protocol: Protocol, shots: int | None, setting: str | None, rows: Sequence[Row]) -> Summary:
    validated = [row["val"] for row in rows if row.get("val") is not None]
    val = statistics.mean(validated) if validated else None
    tried = {} if setting is None else {"setting": setting, "val": val}
    adapted = [{name: row[name] for name in protocol.figures} for row in rows]
    each = [figures | protocol.derive(figures) for figures in adapted]
    together = all(f"together_{name}" in row for name in protocol.figures for row in rows)
    summary = {
        "shots": shots,
        **tried,
        "runs": len(rows),
        "mean": _mean(protocol, adapted),
        "std": {
            name: statistics.stdev(figures[name] for figures in each) if len(each) > 1 else 0.0 for name in each[0]
        },
        "zero_shot": _mean(protocol, rows, "zero_shot_"),
        **({"together": _mean(protocol, rows, "together_")} if together else {}),
    }
    return cast("Summary", summary)


def _mean(protocol: Protocol, rows: Sequence[Mapping[str, Any]], prefix: str = "") -> Figures:
    """Return the mean figures over the rows, of the figures whose names have a prefix, and what follows from them."""
    mean = {name: statistics.mean(row[f"{prefix}{name}"] for row in rows) for name in protocol.figures}
    return mean | protocol.derive(mean)
