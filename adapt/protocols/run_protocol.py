"""Runs a protocol and writes what it found: one JSON and one CSV beside the run directories."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from adapt import plain
from adapt.disk import write_csv, write_text
from adapt.progress import readable_time
from adapt.protocols.engines import Engine
from adapt.protocols.protocol import Figures, Protocol
from adapt.protocols.runs import Row, check
from adapt.tracking import Track, trackers
from adapt.training.processes import check_alone
from adapt.training.run import environment

LOCAL = Engine()
SHORT = 5.0  # seconds that need no word


def run_protocol(
    protocol: Protocol,
    out: Path,
    engine: Engine = LOCAL,
    progress: Callable[[str], None] | None = None,
    track: Track = (),
) -> dict[str, Any]:
    """Makes the runs of `protocol` in `out` and returns what its JSON file holds.

    Runs that are there are not repeated, an interrupted one goes on. `track` is told of each, as in `fit`. Raises
    AdaptError for what can be refused before anything is trained, and where a folder holds a run of another recipe.
    """
    check_alone()
    trackers(track, out)
    check(protocol.runs)
    rows: list[Row] = []
    started = time.monotonic()
    for row in engine.rows(protocol.runs, out, track):
        rows.append(row)
        if progress is not None:
            shown = ", ".join(f"{name} {100 * row[name]:.1f} %" for name in protocol.figures)
            left = (time.monotonic() - started) / len(rows) * (len(protocol.runs) - len(rows))
            more = f"  (about {readable_time(left)} left)" if left > SHORT else ""
            progress(f"{len(rows)} of {len(protocol.runs)}  {row['run']}: {shown}{more}")
    results = {
        "protocol": protocol.name,
        "recipe": protocol.recipe.model_dump(mode="json"),
        "environment": environment() | {"threads": engine.threads},
        "runs": rows,
        "summary": summaries(protocol, rows),
    }
    write_text(out / f"{protocol.name}.json", plain.dump(results, indent=2) + "\n")
    write_csv(out / f"{protocol.name}.csv", rows)
    return results


def summaries(protocol: Protocol, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means and standard deviations over the seeds, in [0, 1], the frozen model's beside.

    Of each number of shots, of each setting of a sweep, or of each domain that is left out.
    """
    groups: dict[tuple[int | None, str | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["shots"], row.get("setting")), []).append(row)
    found = []
    for (shots, setting), group in groups.items():
        tried = {} if setting is None else {"setting": setting, "val": mean_of(row["val"] for row in group)}
        found.append({"shots": shots, **tried, "runs": len(group), **_summary(protocol, group)})
    return found


def mean_of(values: Iterable[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _summary(protocol: Protocol, rows: Sequence[Row]) -> dict[str, Figures]:
    zero_shot = [{name: row[f"zero_shot_{name}"] for name in protocol.figures} for row in rows]
    adapted = [{name: row[name] for name in protocol.figures} for row in rows]
    each = [figures | protocol.derive(figures) for figures in adapted]
    return {
        "mean": _mean(protocol, adapted),
        "std": {
            name: statistics.stdev(figures[name] for figures in each) if len(each) > 1 else 0.0 for name in each[0]
        },
        "zero_shot": _mean(protocol, zero_shot),
    }


def _mean(protocol: Protocol, rows: Sequence[Figures]) -> Figures:
    mean = {name: statistics.mean(row[name] for row in rows) for name in protocol.figures}
    return mean | protocol.derive(mean)
