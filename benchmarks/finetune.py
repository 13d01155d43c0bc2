"""What small adapters lose beside fine-tuning: accuracy by shots on the bundled drawings, and a step beside a loop.

The recipes are those that ship, with the drawings' own settings; iterations of fine-tuning for a shot are the
recipe's. Each cell is kept in a file, and a run that is started again goes on with the cells that lack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import gettempdir
from time import process_time

import torch
import torch.nn.functional as F
from torch.optim import AdamW

import adapt
from adapt.common import plain
from adapt.common.disk import write_text
from adapt.data import load
from adapt.methods.base import total
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe
from benchmarks.measure import Row

FOLDER = Path(gettempdir()) / "adapt-finetune"
SEEDS, SHOTS = (1, 2, 3), (1, 4, 16)
ROUNDS, BATCH = 20, 32
WAYS: dict[str, tuple[str, list[str]]] = {
    "lda": ("lda", []),
    "linear_probe": ("linear_probe", []),
    "tip_adapter": ("tip_adapter/trained", []),
    "lora": ("lora", []),
    "finetune": ("finetune", []),
    "finetune, last block": ("finetune", ["method.blocks=1"]),
    "finetune, WiSE-FT": ("finetune", ["method.alpha=null"]),
    "finetune, FLYP": ("finetune", ["method.loss=contrastive"]),
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield the ratio of a step to a loop by hand, and then a row for each way, once all of its cells are there."""
    torch.set_num_threads(1)
    progress("a step and a loop by hand, by turns")
    yield _step()
    for seed in SEEDS:
        for shots in SHOTS:
            for way, (recipe, changes) in WAYS.items():
                file = _cell(way, shots, seed)
                if not file.is_file():
                    own = [*changes, f"seed={seed}", f"data.shots={shots}", "device=cpu"]
                    metrics = run_recipe(read_recipe(recipe, own, "emoji"), None, progress=False).metrics
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_text(file, plain.dump({"accuracy": metrics["adapted"]["accuracy"]}))
                    progress(f"{way}, {shots} shots, seed {seed}: {100 * metrics['adapted']['accuracy']:.1f}")
    for way in WAYS:
        yield _row(way)


def _cell(way: str, shots: int, seed: int) -> Path:
    return FOLDER / f"{way.replace(', ', '-')}-{shots}-{seed}.json"


def _row(way: str) -> Row:
    cells = {shots: [plain.parse(_cell(way, shots, seed).read_bytes()) for seed in SEEDS] for shots in SHOTS}
    right = {shots: [100 * cell["accuracy"] for cell in own] for shots, own in cells.items()}
    shown = ", ".join(f"{shots}: {mean(own):.1f} ± {stdev(own):.1f}" for shots, own in right.items())
    return {"case": way, "accuracy": right, "text": shown}


def _step() -> Row:
    """Compare a step of `finetune` with a loop over a copy of the model, whose parameters train, by turns."""
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
    return {"case": "step", "ratio": ratio, "text": f"{own:.3f} s, by hand {hand:.3f} s, ratio {ratio:.3f}"}
