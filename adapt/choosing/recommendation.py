"""The result of `adapt recommend`, as text and as files."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from adapt.choosing.advice import Advice
from adapt.choosing.compare import Compared
from adapt.common.disk import write_csv, write_json, write_text
from adapt.common.errors import missing
from adapt.common.plain import JsonObject
from adapt.common.shown import readable_bytes
from adapt.evaluation.scores import Figure
from adapt.training.result import Result

logger = logging.getLogger("adapt")


MethodRow = JsonObject
"""The results of one method in the comparison, and the command that trains the method, "" for an answer to any image.

The figure by which methods are compared, such as `accuracy`, has its own name, and comes from cross-validation. `error`
is its standard error, `behind` how much worse it is than the best method's, and `behind_error` the standard error of
this difference. `seconds` is what one training took, with all images encoded, and `answer_gflops` what answering one
image takes, in 1e9 operations.
"""


@dataclass(frozen=True)
class Recommendation:
    """The result of comparing methods: a row per method, the chosen method and its training, and advice on the images.

    `rows` describes the compared methods by the `figure` of their task, the best first. `alike` names the methods that
    are as good as the best method within the noise. `about` describes the data and settings of the comparison. `result`
    is the result of training the chosen method on all images, evaluated on the test images if there are any; before the
    training, `result` is None.
    """

    chosen: str
    figure: Figure
    rows: list[MethodRow]
    alike: list[str]
    left_out: dict[str, str]
    notes: list[str]
    advice: Advice
    about: dict[str, object]
    result: Result | None = None

    @property
    def command(self) -> str:
        """The command that trains the chosen method again; "" if nothing was compared."""
        return next((row["command"] for row in self.rows if row["method"] == self.chosen), "")

    @property
    def estimate(self) -> tuple[float, float] | None:
        """The chosen method's cross-validated figure and its standard error; None if nothing was compared."""
        return next(((row[self.figure.name], row["error"]) for row in self.rows if row["method"] == self.chosen), None)

    def trained(self, result: Result, name: str) -> Recommendation:
        """Return the recommendation with the chosen method's training, which says that the method is called `name`.

        The method keeps its name in the comparison if another one there has the new name.
        """
        if any(row["method"] == name for row in self.rows):
            return replace(self, result=result)
        renamed = {self.chosen: name}
        rows = [row | {"method": renamed.get(row["method"], row["method"])} for row in self.rows]
        alike = [renamed.get(each, each) for each in self.alike]
        return replace(self, chosen=name, rows=rows, alike=alike, result=result)

    def as_json(self) -> dict[str, object]:
        """Return the recommendation as a dict, which is the content of recommendation.json."""
        return {
            **self.about,
            "figure": self.figure._asdict(),
            "chosen": self.chosen,
            "alike": self.alike,
            "methods": self.rows,
            "left_out": self.left_out,
            "notes": self.notes,
            "advice": self.advice.lines(),
            "test": self.result.metrics.get("adapted") if self.result else None,
        }

    def __str__(self) -> str:
        lines = [f"{note}." for note in self.notes]
        if self.rows:
            lines += [*self._table(), "", *self._choice()]
        if self.result is not None and "adapted" in self.result.metrics:
            tested = self.result.metrics["adapted"]
            value = f"{self.figure.text(tested[self.figure.name])}{' %' * self.figure.share}"
            of = "On" if "text" in tested else f"{self.figure.heading} on"
            lines.append(
                f"{of} the {tested['images']} test images, which played no part in the choice: "
                f"{tested.get('text', value)}."
            )
        lines += [f"{line}." for line in self.advice.lines()]
        if self.command:
            lines.append(f"To train it again: {self.command}")
        return "\n".join(lines)

    def _table(self) -> list[str]:
        """Return the lines of a table: one line for each compared method, and one line for all omitted methods."""
        width, figure = max(len(row["method"]) for row in self.rows), self.figure
        beside = "".join(f"{title:>10}" for title in figure.beside.values())
        lines = [
            f"{'':{width}}  {figure.title + ', %' * figure.share:13}{beside}  training, s  answer, GFLOPs  adapter"
        ]
        for row in self.rows:
            mark = "  ← chosen" if row["method"] == self.chosen else ""
            shown = f"{figure.text(row[figure.name]):>5} ± {figure.text(row['error']):>4}"
            others = "".join(f"{row[name]:10.3f}" for name in figure.beside)
            lines.append(
                f"{row['method']:{width}}  {shown:13}{others}  "
                f"{row['seconds']:10.2f}  {row['answer_gflops']:14.3g}  {readable_bytes(row['adapter_bytes'])}{mark}"
            )
        reasons = set(self.left_out.values())
        if reasons:
            reason = f": {reasons.pop()}" if len(reasons) == 1 else " (reasons: left_out in recommendation.json)"
            lines.append(f"left out: {', '.join(self.left_out)}{reason}")
        return lines

    def _choice(self) -> list[str]:
        """Return sentences that explain why the method was chosen, and what to expect."""
        assert self.estimate is not None
        trained = [row["method"] for row in self.rows if row["command"]]
        best = trained[0]
        alike = [name for name in self.alike if name not in (self.chosen, best)]
        if len(trained) == 1:
            why = "it is the only method that could be compared."
        elif len(self.alike) == 1:
            why = "it is more than two standard errors better than every other method."
        elif best == self.chosen:
            why = "it is the most accurate."
        else:
            level = next(row["behind"] for row in self.rows if row["method"] == self.chosen) == 0
            why = (
                f"it is as accurate as {best}."
                if level
                else f"{best} is better, but by no more than two standard errors."
            )
        if alike:
            why += f" No more than two standard errors behind the best: {', '.join(alike)}."
        value, error = map(self.figure.text, self.estimate)
        where = "" if self.about["tried_classes"] == self.about["classes"] else " of the classes that were compared"
        return [
            f"{self.chosen} was chosen: {why}",
            f"Expect {value} ± {error} {self.figure.unit} on new images{where}: the cross-validated "
            f"{self.figure.title}, plus or minus one standard error.",
        ]

    def write(self, out: Path) -> None:
        """Write recommendation.json, methods.csv and the CSV files of the advice to the folder `out`."""
        write_json(out / "recommendation.json", self.as_json())
        if self.rows:
            write_csv(out / "methods.csv", self.rows)
        self.advice.write(out)

    def report(self, out: Path) -> None:
        """Write report.html, which describes the comparison and the training, to `out` if matplotlib is installed."""
        if find_spec("matplotlib") is None:
            logger.warning("report.html is not written: %s", missing("the report", "matplotlib", "plot"))
            return
        from adapt.protocols.report import report

        write_text(out / "report.html", report([out]))


def rows_of(compared: Sequence[Compared]) -> list[MethodRow]:
    """Return a row of results for each compared method, the best method first."""
    rows: list[MethodRow] = []
    ranked = sorted(compared, key=lambda each: -each.merit)
    for each in ranked:
        behind, behind_error = each.behind(ranked[0])
        figure, figures = each.scores.compared_by, each.scores.figures()
        rows.append(
            {
                "method": each.name,
                figure.name: figures[figure.name],
                "error": each.error,
                "behind": behind,
                "behind_error": behind_error,
                **{name: figures[name] for name in figure.beside},
                "seconds": round(each.seconds, 3),
                "answer_gflops": round(each.answering / 1e9, 6),
                "adapter_bytes": each.size,
                "command": each.candidate.command,
            }
        )
    return rows
