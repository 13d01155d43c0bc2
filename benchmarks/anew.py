"""Vision towers of `mini-clip`'s form that begin anew and learn, by class tokens alone, the names of drawings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from random import Random
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.sources import bundled
from adapt.data.emoji import questions
from adapt.data.emoji.scenes import scenes
from benchmarks.drawings import zero_shot

STEPS, BATCH, RATE, SCALE, WARMUP = 400, 32, 1e-3, 20.0, 50
TESTED = 1020  # scenes, of drawings in a style that no training scene has, as many of each thing


def tower(seed: int) -> Any:
    """Return the vision tower of `mini-clip`, as open_clip's module, with weights that are drawn anew."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**json.loads((bundled() / "open_clip_config.json").read_text())["model_cfg"]).visual


def learned(vision: nn.Module, seed: int) -> Tensor:
    """Train the weights of `vision` that are not frozen, and return which test scenes `(n,)` it names, as 0 or 1.

    Each step has fresh scenes of one drawing, and cross-entropy of cosines to the frozen features of all names.
    """
    weights = [weight for weight in vision.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / STEPS))
    drawn, texts = _scenes("train", STEPS * BATCH, seed), _texts()
    for _ in range(STEPS):
        images, numbers = _stacked(islice(drawn, BATCH))
        loss = F.cross_entropy(SCALE * F.normalize(vision(images), dim=-1) @ texts.T, numbers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        rates.step()
    vision.eval()
    images, numbers = _tested()
    with torch.no_grad():
        features = torch.cat([vision(part) for part in images.split(60)])
    return (features @ texts.T).argmax(-1).eq(numbers).double()


def things() -> list[str]:
    """Return the thing that each test scene shows, by its number."""
    return [str(number) for number in _tested()[1].tolist()]


@cache
def _tested() -> tuple[Tensor, Tensor]:
    return _stacked(_scenes("test", TESTED, 0))


def _stacked(labelled: Iterable[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, numbers = zip(*labelled, strict=True)
    return torch.stack(images), torch.tensor(numbers)


def _scenes(part: str, count: int, seed: int) -> Iterator[tuple[Tensor, int]]:
    known, transform = questions.drawings("emoji-questions", part), zero_shot().transform()
    numbers = {drawn[0].concept.name: number for number, drawn in enumerate(known)}
    for scene in scenes(known, count, Random(f"{part}/{seed}")):
        if scene.kind == "one":
            yield transform(scene.draw()), numbers[scene.concepts[0].name]


@torch.no_grad()
def _texts() -> Tensor:
    return zero_shot().encode_texts([drawn[0].concept.name for drawn in questions.drawings("emoji-questions", "train")])
