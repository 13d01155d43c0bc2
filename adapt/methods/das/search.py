"""The search for redundant blocks: a bandit learns from random subsets skipped while the full model trains.

Source: DAS `1d6a0d6`, `ViLT/vilt/modules/vilt_module_search.py`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base import Step, Training

if TYPE_CHECKING:
    from adapt.methods.das import DAS

LEAST_CHANCE = 1e-4  # the least chance of drawing a block, so that very low gates still allow different subsets


class Update(BaseModel):
    """One update of the gates, with the new gates, the compared subsets of skipped blocks and each subset's loss."""

    model_config = ConfigDict(allow_inf_nan=False)

    step: int
    gates: list[float]
    subsets: list[list[int]]
    losses: list[float]


class Found(BaseModel):
    """The result of a search for blocks to skip, stored as search.json in the run directory."""

    model_config = ConfigDict(allow_inf_nan=False)

    chosen: list[str]
    kept_flops: float
    blocks: list[str]
    trace: list[Update]
    seconds: float

    def summary(self, training_seconds: float) -> dict[str, object]:
        """Return a summary of the search for metrics.json."""
        return {
            "chosen": self.chosen,
            "gates": dict(zip(self.blocks, self.trace[-1].gates)) if self.trace else {},
            "updates": len(self.trace),
            "kept_flops": self.kept_flops,
            "seconds": self.seconds,
            "share_of_training": round(self.seconds / (self.seconds + training_seconds), 3),
        }


class Search:
    """A search for blocks to skip, with a learned gate (a number) for each block and a record of all gate updates.

    Random subsets are drawn from torch's global random state. Raises AdaptError if skipping cannot save as many FLOPs
    as `keep_flops` requires, or if there are fewer subsets of blocks than an update compares.
    """

    def __init__(self, method: DAS, training: Training) -> None:
        self.method, self.training, self.config = method, training, method.config
        self.names, self.most = method.blocks, method.most
        self.towers = [name.partition(".")[0] for name in self.names]
        self.gates = torch.zeros(len(self.names), dtype=torch.float64)
        self.trace: list[Update] = []
        self.updating = 0.0  # seconds that updates of the gates took
        self.since_update = 0
        self.random = torch.Generator().manual_seed(training.seed)  # so that all processes draw alike
        self.held_back: Iterator[Step] = training.held_back()
        self.operations, saved = block_flops(method, training)
        self.saved = [saved[name] for name in self.names]
        if self.config.keep_flops is None:
            self.gains, self.goal = [1.0] * len(self.names), float(self.config.count)
        else:
            # less by far than a block saves, so that rounding asks for no further block
            self.gains, self.goal = self.saved, (1 - self.config.keep_flops) * self.operations * (1 - 1e-9)
            self._check_goal()
        subsets = number_of_subsets(list(zip(self.towers, self.gains, strict=True)), self.goal, self.most)
        if subsets < self.config.draws:
            raise AdaptError(
                f"das: draws is {self.config.draws}; expected at most {subsets}, the number of subsets of blocks"
            )

    def _check_goal(self) -> None:
        saved = 0.0
        for tower, most in self.most.items():
            of_tower = [each for own, each in zip(self.towers, self.saved, strict=True) if own == tower]
            saved += sum(sorted(of_tower, reverse=True)[:most])
        if saved < self.goal:
            least = math.ceil(1000 * (1 - saved / self.operations)) / 1000
            skipped = " and ".join(f"{most} {tower} blocks" for tower, most in self.most.items())
            raise AdaptError(
                f"das: keep_flops is {self.config.keep_flops}, but a larger fraction remains with {skipped} skipped, "
                f"the largest number allowed: set keep_flops to at least {least}"
            )

    def run(self) -> Found:
        """Train for the search epochs while updating the gates, and return the blocks with the largest gates."""
        seconds = self.training.train("searching blocks", before=self._before, epochs=self.config.search_epochs)
        chosen = self._enough(self.gates.sort(descending=True, stable=True).indices.tolist())
        return Found(
            chosen=[self.names[i] for i in chosen],
            kept_flops=round(1 - sum(self.saved[i] for i in chosen) / self.operations, 4),
            blocks=list(self.names),
            trace=self.trace,
            seconds=round(seconds + self.updating, 3),  # as in training, without decoding of images
        )

    def _before(self, epoch: int, step: int) -> None:
        """Skip a new random subset of blocks in the next batch, after updating the gates if an update is due."""
        self.since_update += 1
        if self.since_update >= self.config.turn and epoch >= self.config.warmup_epochs:
            self.since_update = 0
            self._update(step)
        self._select(self._draw())

    def _draw(self) -> tuple[int, ...]:
        """Return the indices of a random subset of blocks to skip; blocks with larger gates are drawn more often."""
        chances = self.gates.sigmoid().clamp_min(LEAST_CHANCE)
        return self._enough(torch.multinomial(chances, len(self.names), generator=self.random).tolist())

    def _enough(self, order: Sequence[int]) -> tuple[int, ...]:
        """Return the first blocks in `order` that reach the goal (a count or saved FLOPs), at most `most` per tower."""
        taken: list[int] = []
        left = dict(self.most)
        for block in order:
            if sum(self.gains[i] for i in taken) >= self.goal:
                break
            if left[self.towers[block]]:
                left[self.towers[block]] -= 1
                taken.append(block)
        return tuple(sorted(taken))

    def _select(self, subset: Sequence[int]) -> None:
        self.method.select([self.names[i] for i in subset])

    def _update(self, step: int) -> None:
        subsets: set[tuple[int, ...]] = set()
        while len(subsets) < self.config.draws:
            subsets.add(self._draw())
        compared = sorted(subsets)
        batch = next(self.held_back)
        started = time.monotonic()
        losses = [self._loss(subset, batch.again()) for subset in compared]
        self.updating += time.monotonic() - started
        self.gates = updated_gates(self.gates, compared, losses, self.config.gate_lr)
        gates, drawn = self.gates.tolist(), [list(subset) for subset in compared]
        self.trace.append(Update(step=step, gates=gates, subsets=drawn, losses=losses))

    @torch.no_grad()
    def _loss(self, subset: tuple[int, ...], step: Step) -> float:
        self._select(subset)
        return float(self.training.loss(step))


def block_flops(method: DAS, training: Training) -> tuple[float, dict[str, float]]:
    """Return the FLOPs of the searched towers without skipped blocks, and the FLOPs that skipping each block saves.

    After the call, the method skips no block.
    """
    towers = {name: name.partition(".")[0] for name in method.blocks}
    method.select(())
    full = {tower: training.flops([tower]) for tower in dict.fromkeys(towers.values())}
    together = training.flops(list(full))
    saved = {}
    for name, tower in towers.items():
        method.select([name])
        saved[name] = full[tower] - training.flops([tower])
    method.select(())
    return together, saved


def updated_gates(gates: Tensor, subsets: Sequence[Sequence[int]], losses: Sequence[float], lr: float) -> Tensor:
    """Return the gates after one update: `g_i += lr (R_k - mean R) p_i (1 - p_i)` for each block i of each subset k.

    `R = exp(-loss)` is the reward of a subset, and `p = sigmoid(g)` comes from the gates `(blocks,)` before the update.
    A larger gate means a more redundant block.
    """
    rewards = torch.tensor(losses, dtype=gates.dtype).neg().exp()
    advantages = rewards - rewards.mean()
    probabilities = gates.sigmoid()
    changed = gates.clone()
    for subset, advantage in zip(subsets, advantages):
        for block in subset:
            changed[block] += lr * advantage * probabilities[block] * (1 - probabilities[block])
    return changed


def number_of_subsets(blocks: Sequence[tuple[str, float]], goal: float, most: Mapping[str, int]) -> int:
    """Return the number of subsets of `blocks` (pairs of tower and gain) whose sum of gains just reaches `goal`.

    A subset is counted only if the sum without its largest gain misses the goal, and if the subset has at most `most`
    blocks of each tower.
    """
    sizes = Counter(blocks)  # blocks of a tower mostly have the same gain
    subsets = 0
    for counts in product(*(range(min(size, most[tower]) + 1) for (tower, _), size in sizes.items())):
        of_tower = Counter[str]()
        for (tower, _), taken in zip(sizes, counts):
            of_tower[tower] += taken
        gained = sum(gain * taken for (_, gain), taken in zip(sizes, counts))
        largest = max((gain for (_, gain), taken in zip(sizes, counts) if taken), default=0.0)
        if gained - largest < goal <= gained and all(of_tower[tower] <= most[tower] for tower in of_tower):
            subsets += math.prod(math.comb(size, taken) for size, taken in zip(sizes.values(), counts))
    return subsets


def plot_search(result: Found, path: Path) -> None:
    """Plot each block's gate over the steps of a search, with thick lines for the chosen blocks. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [update.step for update in result.trace]
    for index, name in enumerate(result.blocks):
        chosen = name in result.chosen
        gates = [update.gates[index] for update in result.trace]
        axes.plot(steps, gates, lw=2.5 if chosen else 1, label=f"{name}, skipped" if chosen else name)
    axes.set_xlabel("step of the search")
    axes.set_ylabel("gate: larger is more redundant")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)
