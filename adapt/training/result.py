"""What `fit` returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """`metrics` as in metrics.json; `history` has an entry for every optimiser step."""

    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    adapter: Path | None

    @property
    def accuracy(self) -> float:
        """On the test images, in [0, 1]."""
        return float(self.metrics["adapted"]["accuracy"])

    @property
    def zero_shot_accuracy(self) -> float:
        return float(self.metrics["zero_shot"]["accuracy"])

    def __str__(self) -> str:
        lines = [f"{self.metrics['trainable_parameters']:,} trained parameters, {self.metrics['seconds']:.1f} s"]
        if "adapted" in self.metrics:
            gain = ""
            if "zero_shot" in self.metrics:
                lines.append(f"{self.metrics.get('baseline', 'zero-shot'):10} {100 * self.zero_shot_accuracy:5.1f} %")
                gain = f"  ({100 * (self.accuracy - self.zero_shot_accuracy):+.1f} points)"
            lines.append(f"adapted    {100 * self.accuracy:5.1f} %{gain}")
        if (calibration := self.metrics.get("calibration")) and "error_before" in calibration:
            before, after = calibration["error_before"], self.metrics["adapted"]["calibration_error"]
            lines.append(
                f"calibrated by a temperature of {calibration['temperature']:.2f}: error {100 * before:.1f} → "
                f"{100 * after:.1f} %"
            )
        if search := self.metrics.get("search"):
            saved, share = 100 * (1 - search["kept_flops"]), 100 * search["share_of_training"]
            lines.append(f"skipped    {', '.join(search['chosen'])}: {saved:.0f} % of operations saved")
            lines.append(f"search     {search['seconds']:.1f} s, {share:.0f} % of search and training")
        return "\n".join(lines)

    @property
    def terms(self) -> tuple[str, ...]:
        """What the loss is the sum of, where that is more than one term."""
        return tuple(self.history[0].get("terms", ())) if self.history else ()

    def plot(self, path: str | Path | None = None) -> Any:
        """Loss, by its terms, and training accuracy by epoch, and the test accuracies as lines.

        Written to `path` if given. Needs matplotlib (`pip install -e ".[plot]"`).
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.4), layout="constrained")
        loss_axes, accuracy_axes = figure.subplots(1, 2)
        epochs = sorted({entry["epoch"] for entry in self.history})
        curves = {"loss": [entry["loss"] for entry in self.history]}
        curves |= {term: [entry["terms"][term] for entry in self.history] for term in self.terms}
        for term, values in curves.items():
            self._draw(loss_axes, epochs, values, "training" if term == "loss" else term, thin=term != "loss")
        if self.terms:
            loss_axes.legend(fontsize="small")
        self._draw(accuracy_axes, epochs, [entry["accuracy"] for entry in self.history], "training")
        loss_axes.set_ylabel("training loss")
        accuracy_axes.set_ylabel("accuracy")
        if "adapted" in self.metrics:
            accuracy_axes.axhline(self.accuracy, color="#2ca02c", label=f"test, adapted ({100 * self.accuracy:.1f} %)")
            zero_shot = self.zero_shot_accuracy
            accuracy_axes.axhline(
                zero_shot, color="#7f7f7f", ls="--", label=f"test, zero-shot ({100 * zero_shot:.1f} %)"
            )
        accuracy_axes.set_ylim(0, 1.02)
        accuracy_axes.legend(fontsize="small", loc="lower right")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def _draw(self, axes: Any, epochs: list[int], values: list[float], label: str, thin: bool = False) -> None:
        """The means of `values`, one for each step, over the epochs."""
        by_epoch: dict[int, list[float]] = {epoch: [] for epoch in epochs}
        for entry, value in zip(self.history, values, strict=True):
            by_epoch[entry["epoch"]].append(value)
        means = [sum(each) / len(each) for each in by_epoch.values()]
        style = {"lw": 1, "ls": "--"} if thin else {"color": "#1f77b4"}
        axes.plot([epoch + 1 for epoch in epochs], means, label=label, **style)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
