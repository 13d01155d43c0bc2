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
    lines = list(found.notes)
    if found.rows:
        width = max(len(row["method"]) for row in found.rows)
        lines.append(f"{'':{width}}  accuracy, %    seconds  adapter")
        for row in found.rows:
            mark = "  ← taken" if row["method"] == found.chosen else ""
            lines.append(
                f"{row['method']:{width}}  {100 * row['accuracy']:5.1f} ± {100 * row['error']:3.1f}   "
                f"{row['seconds']:9.2f}  {row['adapter_bytes'] / 1024:.1f} KB{mark}"
            )
        for reason in dict.fromkeys(found.left_out.values()):
            named = [name for name, other in found.left_out.items() if other == reason]
            lines.append(f"left out: {', '.join(named)}: {reason}")
        lines += ["", _choice(found)]
    if found.result is not None and "adapted" in found.result.metrics:
        images = found.result.metrics["adapted"]["images"]
        lines.append(f"on the {images} test images, which chose nothing: {100 * found.result.accuracy:.1f} %")
    return [*lines, *found.advice.lines()]


def _choice(found: Recommendation) -> str:
    assert found.estimate is not None
    accuracy, error = found.estimate
    of = "" if found.about["tried_classes"] == found.about["classes"] else " of the classes that were tried"
    expected = f"expect {100 * accuracy:.1f} ± {100 * error:.1f} %{of}, by images that its models had not seen"
    best, others = found.rows[0]["method"], [name for name in found.alike if name != found.chosen]
    if found.chosen == "zero_shot" and len(found.rows) > 1:
        return f"nothing is surely better than zero-shot by these images, which is taken: more may tell. {expected}"
    if len(found.rows) == 1:
        return f"{found.chosen} is all that was compared: {expected}"
    if not others:
        return f"{found.chosen} is the best by more than the noise: {expected}"
    return (
        f"within the noise of the best, {best}: {', '.join(name for name in found.alike if name != best)}. "
        f"{found.chosen} is taken, the best of the quickest of these: {expected}"
    )
