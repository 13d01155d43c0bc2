"""A training as a method's own `prepare` and `finish` are given one: images and numbers of a published case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapt import AdaptedModel
from adapt.methods.base import total

Steps = Callable[[Iterable[torch.nn.Parameter], int], Iterator[Tensor]]


class Given:
    """Views of the training images `(v, n, 3, h, w)`, the features of validation images, and how steps are taken."""

    resumed = started = False
    seed, seconds = 0, 0.0

    def __init__(
        self,
        model: AdaptedModel,
        images: Tensor,
        labels: Tensor,
        val: tuple[Tensor, Tensor] | None = None,
        steps: Steps | None = None,
        **settings: Any,
    ) -> None:
        self.model = self.classifier = model
        self._images, self._labels, self._val, self._steps = images, labels, val, steps
        self.settings = SimpleNamespace(**{"views": 0, "epochs": None, "iterations": None} | settings)
        self.noted: dict[str, Any] = {}
        self.losses: list[Tensor] = []
        self.stages: list[str] = []

    def prepare(self) -> None:
        self.model.method.prepare(self)

    def features(self, part: str, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        if part == "val":
            assert self._val is not None
            assert unit
            assert projected
            return self._val[0]
        seen = self._images[:views] if views else self._images[:1]
        assert len(seen) == max(views, 1), f"the case has {len(self._images)} views"
        with torch.no_grad():
            flat = seen.flatten(0, 1)
            read = self.model.backbone.encode_image(flat) if projected else self.model.read_features(flat, unit=False)
        read = (F.normalize(read, dim=-1) if unit else read).unflatten(0, seen.shape[:2])
        return read.transpose(0, 1) if views else read[0]

    def labels(self, part: str) -> Tensor:
        if part == "train":
            return self._labels
        return self._labels[:0] if self._val is None else self._val[1]

    def items(self, part: str) -> list[Any]:
        return len(self.labels(part)) * [SimpleNamespace(paths=("an image",), text="", unit="")]

    def note(self, **figures: Any) -> None:
        self.noted |= figures

    def train(self, title: str, *, parameters: Iterable[torch.nn.Parameter] | None = None, **changed: Any) -> float:
        assert self._steps is not None
        self.stages.append(title)
        trained = self.model.method.trains() if parameters is None else parameters
        count = changed.get("iterations") or changed.get("epochs") or self.settings.iterations or self.settings.epochs
        self.losses += self._steps(trained, count)
        return 0.0


def stepped(
    model: AdaptedModel,
    batches: Sequence[tuple[Any, Tensor]],
    optimizer: torch.optim.Optimizer,
    count: int,
    before: Callable[[int, Any, Tensor], None] = lambda number, step, loss: None,
    after: Callable[[], None] = lambda: None,
) -> Iterator[Tensor]:
    """The loss before each of `count` steps over the batches in turn. `before` sees each step's gradients."""
    for number in range(count):
        step = model.step(*batches[number % len(batches)])
        loss = total(model.losses(step)[0])
        optimizer.zero_grad()
        loss.backward()
        before(number, step, loss)
        optimizer.step()
        after()
        yield loss.detach()


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> Iterator[list[tuple[tuple[Any, ...], Any]]]:
    """Inside, each call of `owner.name` adds what it was given, and what it gave, to the list that is yielded."""
    calls: list[tuple[tuple[Any, ...], Any]] = []
    function = getattr(owner, name)

    def watching(*given: Any, **options: Any) -> Any:
        found = function(*given, **options)
        calls.append((given, found))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, watching)
        yield calls
