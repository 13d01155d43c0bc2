"""Fine-tuning: a step of `finetune` beside the same step in a loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from statistics import median
from time import process_time

import torch
import torch.nn.functional as F
from torch.optim import AdamW

import adapt
from adapt.data import load
from adapt.methods.base import total
from benchmarks.measure import Row

ROUNDS, BATCH = 20, 32


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the ratio of a step to the step of a loop by hand, over a copy of the model whose parameters train."""
    torch.set_num_threads(1)
    progress("a step and a loop by hand, by turns")
    names = load("emoji").class_names
    backbone = adapt.load_backbone("mini-clip", "cpu")
    model = adapt.wrap(backbone, adapt.methods.find("finetune")(), names).train()
    other = deepcopy(backbone)
    other.model.eval().requires_grad_(True)
    texts = other.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in names])
    images = torch.randn(BATCH, 3, other.preprocess.size, other.preprocess.size)
    labels, scale = torch.randint(len(names), (BATCH,)), other.logit_scale
    optimizers = [AdamW(parameters, lr=1e-6) for parameters in (model.parameters(), other.model.parameters())]

    def ours() -> None:
        optimizers[0].zero_grad()
        total(model.losses(model.step(images, labels))[0]).backward()
        optimizers[0].step()

    def by_hand() -> None:
        optimizers[1].zero_grad()
        features, classes = F.normalize(other.encode_image(images)), F.normalize(other.encode_text(texts))
        F.cross_entropy(scale * features @ classes.T, labels).backward()
        optimizers[1].step()

    seconds = {ours: list[float](), by_hand: list[float]()}
    for round_ in range(ROUNDS + 1):
        for step in (ours, by_hand) if round_ % 2 else (by_hand, ours):
            started = process_time()
            step()
            seconds[step] += [process_time() - started] if round_ else []  # the first one warms up
    ratio = median(one / other for one, other in zip(seconds[ours], seconds[by_hand], strict=True))
    own, hand = (median(each) for each in seconds.values())
    yield {"case": "step", "ratio": ratio, "text": f"{own:.3f} s, by hand {hand:.3f} s, ratio {ratio:.3f}"}
