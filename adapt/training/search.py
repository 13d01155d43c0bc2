"""The search of an architecture before training: random subsets of blocks are skipped, a bandit learns which may be.

Source: DAS `1d6a0d6`, `ViLT/vilt/modules/vilt_module_search.py`; the gates' rule is in `adapt/methods/das.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.adapted import Adapted
from adapt.data.split import Item
from adapt.errors import AdaptError
from adapt.evaluation.evaluate import check_labels
from adapt.files import write_text
from adapt.methods.das import updated_gates
from adapt.training.batches import Batches, training_batches
from adapt.training.loop import Trainer, autocast
from adapt.training.run import Run
from adapt.training.settings import TrainSettings

Found = dict[str, Any]  # chosen, blocks, trace (step, gates, subsets, losses), seconds


def search(
    model: Adapted[Any],
    batches: Batches,
    held_back: Sequence[Item],
    settings: TrainSettings,
    seed: int,
    cache: bool,
    run: Run | None,
    report: Callable[[dict[str, Any]], None],
) -> Found:
    """Chooses the blocks that `model.method` skips, from rewards on `held_back` images.

    With a run directory it is kept in search.json, and read from there when the run is resumed. Draws from torch's
    global random state. Raises AdaptError where nothing is held back, or there are too few subsets to compare.
    """
    if run is not None and run.resume and run.search.is_file():
        kept: Found = json.loads(run.search.read_text(encoding="utf-8"))
        return kept
    if not held_back:
        raise AdaptError(
            "the search compares architectures on validation images, and there are none: give some, or name the blocks "
            "by method.skipped"
        )
    check_labels(model, held_back)
    found = Search(model, _cycle(model, held_back, settings, seed, cache), settings).run(batches, report)
    if run is not None:
        write_text(run.search, json.dumps(found) + "\n")
    return found


def search_settings(model: Adapted[Any], settings: TrainSettings) -> TrainSettings:
    """Those of the training, for as long as the search takes."""
    method: Any = model.method
    return settings.model_copy(update={"epochs": method.config.search_epochs, "iterations": None})


class Search:
    """Gates, one for each block, and the trace of what changed them."""

    def __init__(self, model: Adapted[Any], held_back: Iterator[tuple[Batches, Any, Tensor]], settings: Any) -> None:
        self.model, self.held_back, self.settings = model, held_back, settings
        method: Any = model.method
        self.method, self.config = method, method.config
        self.names: tuple[str, ...] = method.blocks
        self.gates = torch.zeros(len(self.names), dtype=torch.float64)
        self.trace: list[dict[str, Any]] = []
        self.updating = 0.0  # seconds
        subsets = math.comb(len(self.names), self.config.skip)
        if subsets < self.config.draws:
            raise AdaptError(f"das: {self.config.draws} draws of different subsets are asked for; there are {subsets}")

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
        largest = self.gates.topk(self.config.skip).indices.tolist()
        return {
            "chosen": [self.names[i] for i in sorted(largest)],
            "blocks": list(self.names),
            "trace": self.trace,
            "seconds": round(position.seconds + self.updating, 3),  # as training counts them: without decoding
        }

    def _draw(self) -> tuple[int, ...]:
        """A random subset of blocks, the likelier to hold a block the larger its gate."""
        chosen = torch.multinomial(self.gates.sigmoid(), self.config.skip)
        return tuple(sorted(chosen.tolist()))

    def _select(self, subset: Sequence[int]) -> None:
        self.method.select([self.names[i] for i in subset])

    def _update(self, step: int) -> None:
        subsets: set[tuple[int, ...]] = set()
        while len(subsets) < self.config.draws:
            subsets.add(self._draw())
        compared = sorted(subsets)
        batches, inputs, labels = next(self.held_back)
        started = time.monotonic()
        losses = [self._loss(subset, batches, inputs, labels) for subset in compared]
        self.updating += time.monotonic() - started
        self.gates = updated_gates(self.gates, compared, losses, self.config.gate_lr)
        self.trace.append({"step": step, "gates": self.gates.tolist(), "subsets": compared, "losses": losses})

    @torch.no_grad()
    def _loss(self, subset: tuple[int, ...], batches: Batches, inputs: Any, labels: Tensor) -> float:
        self._select(subset)
        device = self.model.backbone.device
        with autocast(device, self.settings.precision):
            loss, _ = batches.objective(self.model, inputs, labels)
        return float(loss)


def _cycle(
    model: Adapted[Any], items: Sequence[Item], settings: TrainSettings, seed: int, cache: bool
) -> Iterator[tuple[Batches, Any, Tensor]]:
    """Batches of the held-back images as the model sees them in a test, again and again."""
    plain = settings.model_copy(update={"augment": "none", "views": None})
    batches = training_batches(model, items, plain, seed, cache, None)
    for epoch in count():
        for inputs, labels in batches.epoch(epoch, 0):
            yield batches, inputs, labels


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
