"""Preferences that a native model makes of unlabelled scenes (STIC): how true they are, and what they teach."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

import adapt
from adapt.data import Item, load, open_image
from adapt.evaluation.free_text import token_f1
from adapt.labelling.describing import DESCRIBE, GOOD, Describer, PairMaker, write_rows
from adapt.models.native_vlm import ChatModel
from adapt.models.unadapted import unadapted
from benchmarks.measure import Row

SCENES, TESTED, SEEDS = 450, 250, (1, 2, 3)
RATES = (2e-5, 1e-4, 5e-4)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Yield how often the chosen answer is truer, and the described things before and after training on the pairs."""
    split = load("emoji-captions")
    scenes, tests = split.train[:SCENES], split.test[:TESTED]
    with TemporaryDirectory() as kept:
        folder = Path(kept)
        truth = {name: item.text for name, item in zip(_saved(scenes, folder / "train"), scenes, strict=True)}
        names = _saved(tests, folder / "test")
        before = _model()
        progress("describing before")
        plain = {prompt: _described(before, folder, names, tests, prompt) for prompt in (DESCRIBE, GOOD)}
        for prompt, score in plain.items():
            yield {"case": f"before, {prompt[:20]}", "f1": score, "text": f"{score:.3f}"}
        after: dict[float, list[float]] = {rate: [] for rate in RATES}
        for seed in SEEDS:
            progress(f"pairs of seed {seed}")
            out = folder / f"pairs{seed}.jsonl"
            made = write_rows(
                out, [*truth], PairMaker(before, str(folder / "train"), good=DESCRIBE, seed=seed, tokens=24)
            )
            yield from _truer(made, truth, seed)
            for rate in RATES:
                progress(f"training on pairs of seed {seed}, rate {rate:g}")
                backbone = adapt.load_backbone("mini-vlm", "cpu")
                torch.manual_seed(seed)
                model = adapt.wrap(
                    backbone,
                    adapt.methods.LoRA(rank=16, alpha=8, projections="all", towers=("decoder",), input_gradient=True),
                )
                settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "drop_last": False, "optimizer": "adamw"}
                settings |= {"schedule": "cosine_iteration", "warmup": 0.1, "weight_decay": 0, "max_grad_norm": 1.0}
                train = [*load(out, root=folder / "train").items()]
                dpo = {"chosen": 1 / 1024}
                adapt.fit(model, train, lr=rate, seed=seed, dpo=dpo, workers=0, progress=False, **settings)
                after[rate].append(_described(model, folder, names, tests, DESCRIBE))
        for rate, scores in after.items():
            text = f"{mean(scores):.3f} ± {stdev(scores):.3f}"
            yield {"case": f"after, rate {rate:g}", "f1": scores, "text": text}


def _model() -> ChatModel:
    model = unadapted(adapt.load_backbone("mini-vlm", "cpu"))
    assert isinstance(model, ChatModel)
    return model


def _saved(items: Sequence[Item], folder: Path) -> list[str]:
    """Write the scenes as files, and return their names."""
    folder.mkdir()
    names = [f"{place:04}.png" for place in range(len(items))]
    for name, item in zip(names, items, strict=True):
        image: Image.Image = open_image(item)
        image.save(folder / name)
    return names


def _described(model: ChatModel, folder: Path, names: Sequence[str], items: Sequence[Item], prompt: str) -> float:
    """Return the mean F1 of the words of descriptions and true captions."""
    made = write_rows(folder / "captions.jsonl", names, Describer(model, str(folder / "test"), prompt, tokens=24))
    (folder / "captions.jsonl").unlink()
    return mean(token_f1(str(row["caption"]), item.text) for row, item in zip(made, items, strict=True))


def _truer(made: Sequence[dict[str, object]], truth: dict[str, str], seed: int) -> Iterator[Row]:
    """Yield the shares of pairs whose chosen answer is truer, as true, and less true, by how they were made."""
    by_kind: dict[str, list[float]] = {}
    for row in made:
        caption, source = truth[str(row["image"])], row["source"]
        assert isinstance(source, dict)
        gain = token_f1(str(row["chosen"]), caption) - token_f1(str(row["rejected"]), caption)
        for kind in ("all", str(source["made"])):
            by_kind.setdefault(kind, []).append(gain)
    for kind, gains in sorted(by_kind.items()):
        share = [sum(sign * gain > 0 for gain in gains) / len(gains) for sign in (1, -1)]
        text = f"{len(gains)} pairs: truer {share[0]:.1%}, less true {share[1]:.1%}"
        yield {"case": f"seed {seed}, {kind}", "truer": share[0], "less": share[1], "pairs": len(gains), "text": text}
