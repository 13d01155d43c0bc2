"""The search of an architecture before training: random subsets of blocks are skipped, a bandit learns which may be.

Source: DAS `1d6a0d6`, `ViLT/vilt/modules/vilt_module_search.py`; the gates' rule is in `adapt/methods/das.py`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt import plain
from adapt.adapted import Adapted
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.evaluation import stored
from adapt.evaluation.flops import block_flops
from adapt.files import write_text
from adapt.methods.das import updated_gates
from adapt.methods.step import Step, total
from adapt.training.batches import Batches, training_batches
from adapt.training.imitate import imitate
from adapt.training.loop import Plan, Trainer, autocast
from adapt.training.progress import training_bar
from adapt.training.settings import TrainSettings
from adapt.training.training import Training

LEAST_CHANCE = 1e-4  # of a block in a draw: gates that have gone far down leave other subsets to compare with
Found = dict[str, Any]  # chosen, kept_flops, blocks, trace (step, gates, subsets, losses), seconds


def search(training: Training, settings: TrainSettings, batches: Batches) -> Found:
    """Chooses the blocks that the method skips, from rewards on validation images.

    Imitation draws batches of its own. With a run directory the search is kept in search.json, and read from there when
    the run is resumed. Draws from torch's global random state. Raises AdaptError where the share of operations cannot
    be reached, or there are too few subsets to compare.
    """
    model, run, seed, progress = training.model, training.run, training.seed, training.progress
    if run is not None and run.resume and run.search.is_file():
        return stored.read(run.search, stored.Found, "search of blocks")
    searching = Search(model, _cycle(model, training.val_set, settings, seed, training.cache), settings)
    imitating = imitate(model, training.train_set, settings, seed, progress)
    steps = Plan.of(search_settings(model, settings), len(batches)).steps
    with training_bar(steps, 0, progress, "searching blocks") as report:
        found = searching.run(batches, report)
    found["seconds"] = round(found["seconds"] + imitating, 3)
    if run is not None:
        write_text(run.search, plain.dump(found) + "\n")
    return found


def search_settings(model: Adapted[Any], settings: TrainSettings) -> TrainSettings:
    """Those of the training, for as long as the search takes."""
    method: Any = model.method.searcher
    return settings.model_copy(update={"epochs": method.config.search_epochs, "iterations": None})


class Search:
    """Gates, one for each block, and the trace of what changed them."""

    def __init__(self, model: Adapted[Any], held_back: Iterator[tuple[Any, Tensor]], settings: Any) -> None:
        self.model, self.held_back, self.settings = model, held_back, settings
        method: Any = model.method.searcher
        self.method, self.config = method, method.config
        self.names: tuple[str, ...] = method.blocks
        self.gates = torch.zeros(len(self.names), dtype=torch.float64)
        self.trace: list[dict[str, Any]] = []
        self.updating = 0.0  # seconds
        self.operations, saved = block_flops(model)
        self.saved = [saved[name] for name in self.names]
        if self.config.keep_flops is None:
            self.gains, self.goal = [1.0] * len(self.names), float(self.config.count)
        else:
            self.gains, self.goal = self.saved, (1 - self.config.keep_flops) * self.operations
            self._check_goal()
        subsets = number_of_subsets(self.gains, self.goal)
        if subsets < self.config.draws:
            raise AdaptError(f"das: {self.config.draws} draws of different subsets are asked for; there are {subsets}")

    def _check_goal(self) -> None:
        most = sum(self.saved) - min(self.saved)
        if most < self.goal:
            least = math.ceil(1000 * (1 - most / self.operations)) / 1000
            raise AdaptError(
                f"das: keep_flops is {self.config.keep_flops}, and more remains with all but one of the "
                f"{len(self.names)} blocks skipped: give at least {least}"
            )

    def run(self, batches: Batches, report: Callable[[dict[str, Any]], None]) -> Found:
        """Trains for the search's epochs, updating the gates in turn, and chooses the blocks of the largest gates."""
        trainer = Trainer(self.model, batches, search_settings(self.model, self.settings), None)
        since_update = 0

        def told(entry: dict[str, Any]) -> None:
            nonlocal since_update
            since_update += 1
            if since_update >= self.config.turn and entry["epoch"] >= self.config.warmup_epochs:
                since_update = 0
                self._update(entry["step"])
            self._select(self._draw())
            report(entry)

        self._select(self._draw())
        position = trainer.train(told)
        chosen = self._enough(self.gates.sort(descending=True, stable=True).indices.tolist())
        return {
            "chosen": [self.names[i] for i in chosen],
            "kept_flops": round(1 - sum(self.saved[i] for i in chosen) / self.operations, 4),
            "blocks": list(self.names),
            "trace": self.trace,
            "seconds": round(position.seconds + self.updating, 3),  # as training counts them: without decoding
        }

    def _draw(self) -> tuple[int, ...]:
        """A random subset of blocks, the likelier to hold a block the larger its gate."""
        chances = self.gates.sigmoid().clamp_min(LEAST_CHANCE)
        return self._enough(torch.multinomial(chances, len(self.names)).tolist())

    def _enough(self, order: Sequence[int]) -> tuple[int, ...]:
        """The first blocks of `order` that reach the goal together."""
        taken: list[int] = []
        for block in order:
            if sum(self.gains[i] for i in taken) >= self.goal:
                break
            taken.append(block)
        return tuple(sorted(taken))

    def _select(self, subset: Sequence[int]) -> None:
        self.method.select([self.names[i] for i in subset])

    def _update(self, step: int) -> None:
        subsets: set[tuple[int, ...]] = set()
        while len(subsets) < self.config.draws:
            subsets.add(self._draw())
        compared = sorted(subsets)
        batch = self.model.step(*next(self.held_back))
        started = time.monotonic()
        losses = [self._loss(subset, batch.again()) for subset in compared]
        self.updating += time.monotonic() - started
        self.gates = updated_gates(self.gates, compared, losses, self.config.gate_lr)
        self.trace.append({"step": step, "gates": self.gates.tolist(), "subsets": compared, "losses": losses})

    @torch.no_grad()
    def _loss(self, subset: tuple[int, ...], step: Step) -> float:
        self._select(subset)
        with autocast(self.model.backbone.device, self.settings.precision):
            terms, _ = self.model.losses(step, self.settings.terms)
        return float(total(terms))


def number_of_subsets(gains: Sequence[float], goal: float) -> int:
    """How many sets of blocks reach `goal` with the one that was taken last, and not without it."""
    sizes = Counter(gains)  # blocks of one tower gain the same
    found = 0
    for counts in product(*(range(size + 1) for size in sizes.values())):
        gained = sum(gain * taken for gain, taken in zip(sizes, counts))
        largest = max((gain for gain, taken in zip(sizes, counts) if taken), default=0.0)
        if gained - largest < goal <= gained:
            found += math.prod(math.comb(size, taken) for size, taken in zip(sizes.values(), counts))
    return found


def _cycle(
    model: Adapted[Any], items: Sequence[Item], settings: TrainSettings, seed: int, cache: bool
) -> Iterator[tuple[Any, Tensor]]:
    """Batches of the held-back images as the model sees them in a test, by the loss of training, again and again."""
    unchanged = settings.model_copy(update={"augment": "none", "views": None})
    batches = training_batches(model, items, unchanged, seed, cache, None)
    for epoch in count():
        yield from batches.epoch(epoch, 0)


def plot_search(found: Found, path: Path) -> None:
    """The gates over the search's steps, those of the chosen blocks thick. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    steps = [entry["step"] for entry in found["trace"]]
    for index, name in enumerate(found["blocks"]):
        chosen = name in found["chosen"]
        gates = [entry["gates"][index] for entry in found["trace"]]
        axes.plot(steps, gates, lw=2.5 if chosen else 1, label=f"{name}, skipped" if chosen else name)
    axes.set_xlabel("step of the search")
    axes.set_ylabel("gate: larger is more redundant")
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=150)
