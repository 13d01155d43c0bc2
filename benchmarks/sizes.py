"""Which of two things is large: captions with one wrong word (SVLC, VladVA) on scenes of a large and a small thing."""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.base import DualEncoder
from adapt.backbones.embedding import EmbeddingVLM
from adapt.data import Item, Split
from adapt.data.emoji import questions
from adapt.data.emoji.scenes import SIDE, Piece, Scene
from adapt.evaluation.evaluate import evaluate
from adapt.methods import ZeroShot
from adapt.recipe import read_recipe
from benchmarks import sides
from benchmarks.drawings import SEEN, drawings, paired, per_cent, row_of, trained, zero_shot
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
SCENES = {"train": 6400, "test": 400}  # those of the test have drawings that no other scene has
SIZES = {"large": (30, 32), "small": (15, 18)}  # pixels, from and to
_OTHER = {"large": "small", "small": "large"}
# the words of captions that have twins
ARMS: dict[str, dict[str, list[str]]] = {"plain contrast": {}, "with twins": {"size": [*SIZES]}}
TRAINING: list[tuple[str, Any]] = [
    ("train.epochs", 5),
    ("train.lr", 0.003),
    ("method.rank", 16),
    ("method.towers", ["text"]),
]
OF_VLADVA = 1600  # of the training scenes, since a native model reads each image anew


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report captions preferred to their twins, recall at 1 both ways, and the zero-shot accuracy that is left."""
    native = adapt.load_backbone("embed:mini-vlm")
    assert isinstance(native, DualEncoder)

    def svlc(words: dict[str, list[str]], seed: int, split: Split) -> AdaptedModel:
        changes = [("seed", seed), ("method.words", words), *TRAINING]
        return trained(read_recipe("svlc", changes, "emoji-captions"), split)

    def vladva(words: dict[str, list[str]], seed: int, split: Split) -> AdaptedModel:
        changes = [("seed", seed), ("method.words", words), ("method.twins", bool(words)), ("train.epochs", 5)]
        few = replace(split, train=split.train[:OF_VLADVA], test=())
        return trained(read_recipe("vladva", changes, "emoji-captions"), few, native)

    with TemporaryDirectory() as folder:
        progress("scenes")
        splits = [_split(Path(folder) / str(seed), seed) for seed in SEEDS]
        seen, unseen = (sides.of_images(zero_shot(), [*drawn(part, 1500, 0)]) for part in SCENES)
        read = {name: per_cent([sides.sides_right(seen[name], unseen[name])[1]]) for name in seen}
        yield row_of("a linear readout", {name: f"the large one from {name} {value}" for name, value in read.items()})
        for name, before, learned in (
            ("svlc", zero_shot(), svlc),
            ("vladva", adapt.wrap(native, ZeroShot(), ()).eval(), vladva),
        ):
            yield _row(f"before {name}", [before] * len(SEEDS), splits)[0]
            items, plain = [item for split in splits for item in split.test], Tensor()
            for case, words in ARMS.items():
                models = list[AdaptedModel]()
                for seed, split in zip(SEEDS, splits, strict=True):
                    progress(f"{name}, {case}, seed {seed}")
                    models.append(learned(words, seed, split))
                row, rights = _row(f"{name}, {case}", models, splits)
                gain = f" ({paired([torch.cat(rights)], [plain], items)})" if len(plain) else ""
                plain = torch.cat(rights)
                yield {**row, "text": f"{row['text']}{gain}"}


def drawn(part: str, count: int, seed: int) -> Iterator[Scene]:
    """Yield scenes of a large and a small thing side by side, on any side each, the large one first."""
    stream = Random(f"{part}/{seed}")
    known = questions.drawings("emoji-questions", part)
    for _ in range(count):
        lefts = stream.sample((0, SIDE // 2), 2)
        pieces = []
        for drawings_of_one, left, (least, most) in zip(stream.sample(known, 2), lefts, SIZES.values(), strict=True):
            side = stream.randint(least, most)
            across, down = left + stream.randint(0, SIDE // 2 - side), stream.randint(0, SIDE - side)
            pieces.append(Piece(stream.choice(drawings_of_one), across, down, side, stream.random() < 0.5))
        yield Scene("pair", tuple(pieces))


def _split(folder: Path, seed: int) -> Split:
    """Return scenes with captions such as "a small dog beside a tree"; which one is described alternates."""
    folder.mkdir()
    with (folder / "pairs.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "text", "group", "split"])  # captions of one thing are not independent
        for part, count in SCENES.items():
            for number, scene in enumerate(drawn(part, count, seed)):
                (folder / f"{part}{number}.png").write_bytes(scene.png())
                size = [*SIZES][number % 2]
                own, other = (scene.concepts[place].name for place in (number % 2, 1 - number % 2))
                text = f"a {size} {own} beside {questions.with_article(other)}"
                table.writerow([f"{part}{number}.png", text, own, part])
    return adapt.data.load(folder / "pairs.csv")


def _row(case: str, models: Sequence[AdaptedModel], splits: Sequence[Split]) -> tuple[Row, list[Tensor]]:
    figures = defaultdict[str, list[Tensor]](list)
    for model, split in zip(models, splits, strict=True):
        for way, shares in evaluate(model, split.test).figures()["recall"].items():
            figures[way].append(torch.tensor(shares["1"]))
        if not isinstance(model.backbone, EmbeddingVLM):  # whose tokenizer reads two names of classes alike
            classes = model.with_classes(drawings(SEEN).class_names)
            figures["zero-shot"].append(torch.tensor(evaluate(classes, drawings(SEEN).test).accuracy))
        figures["twins"].append(preferred(model, split.test))
    return row_of(case, {name: f"{name} {per_cent(values)}" for name, values in figures.items()}), figures["twins"]


@torch.no_grad()
def preferred(model: AdaptedModel, items: Sequence[Item]) -> Tensor:
    """Return which captions are nearer to their images than with the other size, as 0 or 1."""
    transform = model.transform()
    images = model.image_features(torch.stack([transform(adapt.data.open_image(item)) for item in items]))
    texts = [item.text for item in items]
    turned = [re.sub("|".join(SIZES), lambda size: _OTHER[size.group()], text) for text in texts]
    right, wrong = (model.encode_texts(each) for each in (texts, turned))
    return ((images * right).sum(-1) > (images * wrong).sum(-1)).double()
