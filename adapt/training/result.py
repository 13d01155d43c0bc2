"""The result of `fit`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt import methods
from adapt.common import plain
from adapt.common.errors import AdaptError, needing
from adapt.common.grouping import grouped
from adapt.common.plain import JsonObject
from adapt.common.progress import LogEntry
from adapt.evaluation.intervals import between, legend
from adapt.evaluation.scores import main_figure
from adapt.methods.base.traits import Reports

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# measurements of the machine, which differ between two equal runs
_OF_THE_MACHINE = ("seconds", "share_of_training", "estimated_bytes")


@dataclass(frozen=True)
class Result:
    """The result of a training run, with `metrics` as in metrics.json, and a `history` of one log entry per step."""

    metrics: JsonObject
    history: list[LogEntry]
    adapter: Path | None

    @property
    def accuracy(self) -> float:
        """The accuracy on the test images, in [0, 1]."""
        return float(self.metrics["adapted"]["accuracy"])

    @property
    def chosen(self) -> dict[str, object]:
        """The settings that the data chose."""
        return dict(self.metrics.get("chosen", {}).get("settings", {}))

    @property
    def zero_shot_accuracy(self) -> float:
        """The accuracy of the baseline on the test images, in [0, 1]."""
        return float(self.metrics["zero_shot"]["accuracy"])

    def __str__(self) -> str:
        count, seconds = self.metrics["trainable_parameters"], self.metrics["seconds"]
        lines = [f"{count:,} trained parameters, {seconds:.1f} s on {self.metrics['device']}"]
        if "processes" in self.metrics:
            lines[0] += f", as one of {self.metrics['processes']} processes"
        if kept := self.metrics.get("kept"):
            best = f"{kept['figure']} {kept['value']:.4g} on validation items".replace("_", " ")
            lines.append(f"kept       epoch {kept['epoch']} of {kept['of']}: {best}")
        lines += self._compared()
        lines += [f"{heading:<10} {text}" for heading, text in self.metrics.get("summary", {}).items()]
        if "intervals" in (adapted := self.metrics.get("adapted", {})):
            lines.append(f"in brackets: {legend(adapted['images'], adapted.get('groups', adapted['images']))}")
        if (calibration := self.metrics.get("calibration")) and "error_before" in calibration:
            before, after = calibration["error_before"], self.metrics["adapted"]["calibration_error"]
            worse = ", worse on the test images" * (after > before)
            lines.append(
                f"calibrated by a temperature of {calibration['temperature']:.2f}: calibration error "
                f"{100 * before:.1f} → {100 * after:.1f} %{worse}"
            )
        elif main_figure(adapted)[0] == "accuracy" and (error := adapted.get("calibration_error")):
            lines.append(f"not calibrated: calibration error {100 * error:.1f} %")
        if self._reports:
            lines += self._reports.lines(self.metrics)
        return "\n".join(lines)

    @property
    def _reports(self) -> type[Reports] | None:
        """The method's class if the method adds its own lines or pictures to reports, and otherwise None."""
        method = methods.find(self.metrics["method"])
        return method if issubclass(method, Reports) else None

    def draw(self, run: Path) -> None:
        """Save the figure of `plot` as curves.png in the folder `run`, and draw the method's pictures of the run."""
        self.plot(run / "curves.png")
        if self._reports:
            self._reports.draw(run)

    def _compared(self) -> list[str]:
        """Return lines of text with the main metric, such as accuracy, of the baseline and of the adapted model."""
        if "adapted" not in self.metrics:
            return [f"not measured, as the data has {self.metrics.get('not_measured', 'no labelled test images')}"]
        if "text" in self.metrics["adapted"]:
            names = {"zero_shot": self.metrics.get("baseline", "zero-shot"), "adapted": "adapted"}
            names |= {"by_image": "one image"}  # each of an item's by itself
            return [f"{name:10} {self.metrics[key]['text']}" for key, name in names.items() if key in self.metrics]
        (figure, title), lines, gain = main_figure(self.metrics["adapted"]), [], ""
        unit, adapted = "%" if figure == "accuracy" else f"% {title}", self.metrics["adapted"][figure]

        def line(name: str, part: str, more: str = "") -> str:
            measured = f"{100 * self.metrics[part][figure]:5.1f} {unit} {self._between(part, figure)}"
            return f"{name:10} {measured}{more}".rstrip()

        if "zero_shot" in self.metrics:
            lines.append(line(self.metrics.get("baseline", "zero-shot"), "zero_shot"))
            gain = f"  {100 * (adapted - self.metrics['zero_shot'][figure]):+.1f} points"
        lines.append(line("adapted", "adapted", gain))
        if alone := self.metrics.get("by_image"):
            lines.append(line("one image", "by_image", f"  each of {alone['images']} images by itself"))
        if together := self.metrics.get("together"):
            gain = f"  {100 * (together[figure] - adapted):+.1f} points; {together['images']} images as one set"
            lines.append(line("together", "together", gain))
        return lines

    def _between(self, part: str, figure: str) -> str:
        """Return the interval at 95 % of a figure that is a share as text, or "" if it has none."""
        return between(self.metrics[part].get("intervals", {}).get(figure))

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the loss terms, or an empty tuple if the loss has only one term."""
        return tuple(self.history[0].get("terms", ())) if self.history else ()

    def plot(self, path: str | Path | None = None) -> Figure:
        """Return a matplotlib figure with curves of the loss, the loss terms and the accuracies over epochs.

        The figure is saved at `path` if given. Raises AdaptError if matplotlib (the extra `plot`) is not installed.
        """
        with needing("A plot", "matplotlib", "plot"):
            from matplotlib.figure import Figure
        if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) is not None:
            from IPython.core.pylabtools import select_figure_formats

            select_figure_formats(shell, {"png"})  # which a notebook does by itself only with pyplot
        figure = Figure(figsize=(9, 3.7), layout="constrained")
        figure.suptitle(self._title())
        loss_axes, accuracy_axes = figure.subplots(1, 2)
        for axes in (loss_axes, accuracy_axes):
            axes.set_xlabel("epoch")
            axes.locator_params("x", integer=True)
        curves = {"loss": [entry["loss"] for entry in self.history]}
        curves |= {term: [entry["terms"][term] for entry in self.history] for term in self.terms}
        for term, values in curves.items():
            self._draw(loss_axes, values, "sum" if term == "loss" else term, thin=term != "loss")
        if self.terms:
            loss_axes.legend(fontsize="small")
        loss_axes.set_ylabel("loss on training images")
        of_numbers = any("text" in self.metrics.get(part, {}) for part in ("adapted", "val"))  # whose words say little
        fitted = [100 * entry["accuracy"] for entry in self.history if "accuracy" in entry and not of_numbers]
        if fitted:
            self._draw(accuracy_axes, fitted, "training images, during training", thin=True)
        accuracy_axes.set_ylabel("error" if of_numbers else "accuracy, %")
        if kept := self.metrics.get("kept"):
            unit, label = 1 if of_numbers else 100, f"validation items, {kept['figure']}".replace("_", " ")
            told = [(each["epoch"] + 1, unit * each["val"][kept["figure"]]) for each in self.history if "val" in each]
            accuracy_axes.plot(*zip(*told, strict=True), ".-", color="#d62728", label=label)
            accuracy_axes.axvline(kept["epoch"], color="#d62728", ls=":", label=f"epoch {kept['epoch']}, which is kept")
        if "adapted" in self.metrics and not of_numbers:
            accuracy = 100 * self.accuracy
            accuracy_axes.axhline(accuracy, color="#2ca02c", lw=2.5, label=f"test images, adapted: {accuracy:.1f} %")
            if ends := self.metrics["adapted"].get("intervals", {}).get("accuracy"):
                label = "its 95 % confidence interval"
                accuracy_axes.axhspan(*(100 * end for end in ends), color="#2ca02c", alpha=0.12, lw=0, label=label)
        if "zero_shot" in self.metrics and not of_numbers:
            frozen, name = 100 * self.zero_shot_accuracy, self.metrics.get("baseline", "zero-shot")
            accuracy_axes.axhline(frozen, color="#7f7f7f", ls="--", label=f"test images, {name}: {frozen:.1f} %")
        if accuracy_axes.has_data():
            accuracy_axes.set_ylim(0, None if of_numbers else 102)
            accuracy_axes.legend(fontsize="small", loc="best")
        else:  # images without labels, or with numbers
            accuracy_axes.remove()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _title(self) -> str:
        """Return the title of the plot, with method, backbone and accuracy."""
        method = f"{self.metrics['method']} on {self.metrics['backbone']}"
        if "adapted" not in self.metrics:
            return method
        if "text" in self.metrics["adapted"]:
            return f"{method}: {self.metrics['adapted']['text']}"
        outcome = f"{100 * self.accuracy:.1f} %{self._between('adapted', 'accuracy')} of test images right"
        if "zero_shot" in self.metrics:
            gain = 100 * (self.accuracy - self.zero_shot_accuracy)
            way = "above" if gain >= 0 else "below"
            outcome += f", {abs(gain):.1f} points {way} {self.metrics.get('baseline', 'zero-shot')}"
        return f"{method}: {outcome}"

    def _draw(self, axes: Axes, values: list[float], label: str, thin: bool = False) -> None:
        """Draw a curve with the mean of `values` in each epoch; `values` contains one value for each step."""
        by_epoch = grouped(zip((entry["epoch"] for entry in self.history), values, strict=True))
        means = [sum(each) / len(each) for each in by_epoch.values()]
        style = {"lw": 1.2, "ls": "-."} if thin else {"color": "#1f77b4"}
        axes.plot([epoch + 1 for epoch in by_epoch], means, label=label, **style)


def read_history(log: Path) -> list[LogEntry]:
    """Return the entries of a run's log.jsonl. Raises AdaptError if the file is damaged."""
    try:
        entries = [plain.parse(line) for line in log.read_bytes().splitlines()]
        if not all(isinstance(each, dict) and {"epoch", "loss"} <= each.keys() for each in entries):
            raise ValueError("a line of the file is not the log entry of a training step")
    except (OSError, ValueError) as error:
        raise AdaptError(f"{log} is damaged ({error}): train again with another --out") from error
    return entries


def reproducible(metrics: JsonObject) -> dict[str, object]:
    """Return nested `metrics` without times and memory sizes, so that two equal runs write identical adapters."""
    stable = {key: value for key, value in metrics.items() if key not in _OF_THE_MACHINE}
    return {key: reproducible(value) if isinstance(value, dict) else value for key, value in stable.items()}
