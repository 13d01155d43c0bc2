"""What `adapt recommend` found, as people read it and as files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from adapt import plain
from adapt.choosing.advice import Advice
from adapt.choosing.compare import Compared
from adapt.disk import write_csv, write_text
from adapt.errors import missing
from adapt.training.result import Result

logger = logging.getLogger("adapt")


@dataclass(frozen=True)
class Recommendation:
    """What was compared, what is recommended and trained, and what would help most.

    `rows` are the methods, the best first: accuracy and its standard error in [0, 1] by cross-validation, how far it is
    `behind` the best with the standard error of that, seconds of a training, bytes of an adapter, and the command that
    trains it. `alike` are those that are as good as the best within the noise. `about` says on what data. `result` is
    of the chosen one, trained on all images and measured on the test part, if there is one; None until it is trained.
    """

    chosen: str
    rows: list[dict[str, Any]]
    alike: list[str]
    left_out: dict[str, str]
    notes: list[str]
    advice: Advice
    about: dict[str, Any]
    result: Result | None = None

    @property
    def command(self) -> str:
        """The command that trains the chosen method again; "" where nothing was compared."""
        return next((str(row["command"]) for row in self.rows if row["method"] == self.chosen), "")

    @property
    def estimate(self) -> tuple[float, float] | None:
        """The chosen method's accuracy by cross-validation and its standard error; None where nothing was compared."""
        return next(((row["accuracy"], row["error"]) for row in self.rows if row["method"] == self.chosen), None)

    def as_json(self) -> dict[str, Any]:
        """All of it that is plain data."""
        return {
            **self.about,
            "chosen": self.chosen,
            "alike": self.alike,
            "methods": self.rows,
            "left_out": self.left_out,
            "notes": self.notes,
            "advice": self.advice.lines(),
            "test": self.result.metrics.get("adapted") if self.result else None,
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))

    def write(self, out: Path) -> None:
        """recommendation.json, methods.csv and the lists of the advice, into the folder `out`."""
        write_text(out / "recommendation.json", plain.dump(self.as_json(), indent=2) + "\n")
        if self.rows:
            write_csv(out / "methods.csv", self.rows)
        self.advice.write(out)

    def report(self, out: Path) -> None:
        """report.html, on the run in the folder `out` too."""
        if find_spec("matplotlib") is None:
            logger.warning("report.html is left out: %s", missing("it", "matplotlib", "plot"))
            return
        from adapt.protocols.report import report

        write_text(out / "report.html", report([out]))


def rows_of(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """A row for each method that was compared, the best first."""
    if not compared:
        return []
    best = max(compared, key=lambda each: each.accuracy)
    rows = []
    for each in sorted(compared, key=lambda each: -each.accuracy):
        behind, behind_error = each.behind(best)
        rows.append(
            {
                "method": each.candidate.name,
                "accuracy": each.accuracy,
                "error": each.error,
                "behind": behind,
                "behind_error": behind_error,
                "seconds": round(each.seconds, 3),
                "adapter_bytes": each.size,
                "command": each.candidate.command,
            }
        )
    return rows


def _lines(found: Recommendation) -> list[str]:
    lines = [f"{note}." for note in found.notes]
    if found.rows:
        width = max(len(row["method"]) for row in found.rows)
        lines.append(f"{'':{width}}  accuracy, %    seconds  adapter")
        for row in found.rows:
            mark = "  ← taken" if row["method"] == found.chosen else ""
            lines.append(
                f"{row['method']:{width}}  {100 * row['accuracy']:5.1f} ± {100 * row['error']:3.1f}   "
                f"{row['seconds']:9.2f}  {row['adapter_bytes'] / 1024:.1f} KB{mark}"
            )
        lines += _left_out(found.left_out)
        lines += ["", *_choice(found)]
    if found.result is not None and "adapted" in found.result.metrics:
        images = found.result.metrics["adapted"]["images"]
        lines.append(
            f"On the {images} test images, which chose nothing, it is right for {100 * found.result.accuracy:.1f} %."
        )
    lines += found.advice.lines()
    if found.command:
        lines.append(f"To train it again: {found.command}")
    return lines


def _left_out(reasons: dict[str, str]) -> list[str]:
    """One line for all that have no figures; recommendation.json has the reason of each."""
    if not reasons:
        return []
    if len(set(reasons.values())) == 1:
        return [f"given up: {', '.join(reasons)}: {next(iter(reasons.values()))}"]
    return [f"given up: {', '.join(reasons)} (`left_out` in recommendation.json says why)"]


def _choice(found: Recommendation) -> list[str]:
    """Which method is taken, why, and what to expect of it."""
    assert found.estimate is not None
    accuracy, error = found.estimate
    of = "" if found.about["tried_classes"] == found.about["classes"] else " of the classes that were tried"
    expected = (
        f"Expect {100 * accuracy:.1f} ± {100 * error:.1f} % of new images{of} to be right: the share of the training "
        "images that were right while they were held back, and one standard error."
    )
    best, others = found.rows[0]["method"], [name for name in found.alike if name != found.chosen]
    if len(found.rows) == 1:
        return [f"{found.chosen} is the only method that could be compared.", expected]
    if not others:
        return [f"{found.chosen} is taken: it is better than all others by more than two standard errors.", expected]
    alike = f"As good within two standard errors: {', '.join(others)}."
    if best == found.chosen:
        return [f"{found.chosen} is taken: none is more accurate. {alike}", expected]
    return [f"{found.chosen} is taken: {best} is more accurate here, but not beyond the noise. {alike}", expected]
