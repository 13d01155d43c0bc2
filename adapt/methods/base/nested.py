"""Nested (Matryoshka) results: any number of the first elements may be used, and each number is measured."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from adapt.common.plain import JsonObject
from adapt.methods.base.training import Training
from adapt.methods.base.traits import Reports, SetAtUse


class Nested(SetAtUse, Reports):
    """The trait of methods that answer with any number of the first elements of a result, as set when they answer.

    After training, answers to validation items are counted at several numbers, and plotted.
    """

    counted: ClassVar[str]
    """The setting at use that counts the elements, which also names the figures and the plot."""
    counted_as: ClassVar[str]
    """What it counts, for the axis of the plot, such as visual tokens."""

    @property
    @abstractmethod
    def compared(self) -> Sequence[int]:
        """The numbers that are compared after training, ascending. The last one is all elements."""

    @torch.no_grad()
    def finish(self, training: Training) -> None:
        """Note the share of right answers on validation items by the number of elements."""
        items, usual = len(training.items("val")), self.at_use
        if not items:
            return
        shares = {}
        for number in self.compared:
            self.set_at_use({self.counted: number})
            steps, right, left = training.held_back(), list[Tensor](), items
            while left > 0:
                step = next(steps)
                own = step.right if step.task is None else step.task.right(step)
                assert own is not None  # no method with this trait learns from images without labels
                right.append(own)
                left -= len(step.items)
            shares[number] = float(torch.cat(right).double().mean())
        self.at_use = usual
        training.note(**{self.counted: shares, f"{self.counted}_items": items})

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        """Yield a line on the share of right answers by the number of elements."""
        if cls.counted in metrics:
            shares = ", ".join(f"{number}: {100 * share:.1f} %" for number, share in metrics[cls.counted].items())
            yield f"by {cls.counted:7} {shares} (of {metrics[f'{cls.counted}_items']:,} validation items)"

    @classmethod
    def draw(cls, run: Path) -> None:
        """Plot right answers against the number of elements, and save the plot in the run directory, by matplotlib."""
        shares = json.loads((run / "metrics.json").read_text(encoding="utf-8")).get(cls.counted)
        if not shares:
            return
        from matplotlib.figure import Figure

        numbers = list(map(int, shares))
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.plot(numbers, [100 * share for share in shares.values()], marker="o")
        axes.set_xscale("log", base=2)
        axes.set_xticks(numbers, map(str, numbers))
        axes.set_xlabel(f"{cls.counted_as} in use")
        axes.set_ylabel("right answers, % of validation items")
        figure.savefig(run / f"{cls.counted}.png", dpi=150)


def powers(first: int, most: int) -> tuple[int, ...]:
    """Return `first` and its doubles up to `most`, and `most`, ascending."""
    doubles = (first * 2**power for power in range(most.bit_length()))
    return tuple(sorted({each for each in doubles if each < most} | {most}))
