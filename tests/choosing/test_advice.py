"""Planted faults in the bundled images are found: wrong labels, copies across parts, classes short of images."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checks import numbers
from PIL import Image, ImageOps
from selection import by_turns
from torch import Tensor
from torch.nn.functional import normalize

import adapt
from adapt.choosing import advice
from adapt.choosing.advice import WITNESSES, advise, near_duplicates
from adapt.data import Item, Split, open_image
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.features import item_features
from adapt.tasks.classes import Class

PLANTED, COPIES = 50, 20


@pytest.fixture(scope="module")
def emoji() -> Split:
    return adapt.data.load("emoji")


@pytest.fixture(scope="module")
def model(emoji: Split) -> AdaptedModel:
    found: AdaptedModel = adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), emoji.class_names)
    return found


@pytest.fixture(scope="module")
def features(emoji: Split, model: AdaptedModel) -> dict[str, Tensor]:
    parts = {"train": emoji.train, "val": emoji.val, "test": emoji.test}
    return {name: item_features(model, items, workers=0) for name, items in parts.items()}


@pytest.mark.full
@by_turns("seed", [1, 2])
def test_half_of_the_wrong_labels_are_among_as_many_suspects(
    emoji: Split, features: dict[str, Tensor], seed: int
) -> None:
    stream = random.Random(seed)
    wrong = stream.sample(range(len(emoji.train)), PLANTED)
    items = list(emoji.train)
    for place in wrong:
        number = emoji.class_names.index(items[place].answer) + stream.randrange(1, len(emoji.class_names))
        items[place] = items[place].labelled(Class(emoji.class_names[number % len(emoji.class_names)]))
    suspects = advise(replace(emoji, train=tuple(items)), features, [], None).suspects
    first = {row["path"] for row in suspects[:PLANTED]}
    assert len(first & {items[place].path for place in wrong}) >= PLANTED / 2
    assert len(suspects) < 3 * PLANTED
    assert all(row["class"] != row["likelier"] for row in suspects)


@pytest.mark.parametrize(("classes", "planted"), [(2, 3), (3, 4), (24, 36)])
def test_wrong_labels_are_found_among_few_classes_too(classes: int, planted: int) -> None:
    """Made features, whose cosines are 0.1 higher within a class than across."""
    torch.manual_seed(classes)
    centre, kinds, noise = torch.randn(512), torch.randn(classes, 512), torch.randn(30 * classes, 512)
    labels = torch.arange(classes).repeat_interleave(30)
    parts = (0.7, centre.expand(30 * classes, -1)), (0.1, kinds[labels]), (0.2, noise)
    features = normalize(sum(share**0.5 * normalize(part, dim=-1) for share, part in parts), dim=-1)  # type: ignore[arg-type]
    names = [f"class {label}" for label in range(classes)]
    stream = random.Random(1)
    wrong = set(stream.sample(range(len(labels)), planted))
    moved = {place: stream.randrange(1, classes) for place in wrong}
    said = [(int(label) + moved.get(place, 0)) % classes for place, label in enumerate(labels)]
    items = tuple(Item.of(path=str(place), label=names[label]) for place, label in enumerate(said))
    suspects = advise(Split("made", tuple(names), items, (), ()), {"train": features}, [], None).suspects
    assert {int(row["path"]) for row in suspects} == wrong


@pytest.mark.full
def test_copies_across_parts_are_found(
    emoji: Split, model: AdaptedModel, features: dict[str, Tensor], tmp_path: Path
) -> None:
    """Resized, recompressed, mirrored; the other images of the set that are listed are few."""
    known = near_duplicates(emoji, features)
    originals = random.Random(3).sample(emoji.train, COPIES)
    copies = tuple(_copied(item, tmp_path / f"{number}.jpg", number) for number, item in enumerate(originals))
    split = replace(emoji, test=copies + emoji.test)
    encoded = item_features(model, split.test, workers=0)
    found = near_duplicates(split, features | {"test": encoded})
    right = {
        row["path"]
        for row in found
        for item, copy in zip(originals, copies)
        if (row["path"], row["train_path"]) == (copy.path, item.path)
    }
    assert len(right) >= 18
    assert len(found) - len(right) <= 20
    assert len(found) - len(right) <= len(known) + COPIES - len(right)


def test_copies_are_found_beside_training_images_that_have_copies_themselves(
    emoji: Split, model: AdaptedModel, tmp_path: Path
) -> None:
    originals = random.Random(5).sample(emoji.train, 12)
    twins = tuple(_copied(item, tmp_path / f"{number}.png", number=2) for number, item in enumerate(originals))
    again = tuple(
        _copied(item, tmp_path / f"{number}-again.png", number=2) for number, item in enumerate(originals[:4])
    )
    split = Split("twins", emoji.class_names, (*originals, *twins), (), again, unseen=True)
    features = {name: item_features(model, getattr(split, name), workers=0) for name in ("train", "test")}
    assert {row["path"] for row in near_duplicates(split, features)} == {item.path for item in again}


def test_pieces_that_a_machine_photographs_alike_are_no_copies(model: AdaptedModel, tmp_path: Path) -> None:
    """Forty pictures of a grid, each with a scratch of its own: all correlate, and one alone is there again."""
    draw, pieces = random.Random(0), list[Item]()
    for number in range(40):
        picture = Image.new("L", (96, 96), 180)
        for line in range(0, 96, 24):
            picture.paste(60, (0, line, 96, line + 4))
        x, y = draw.randrange(80), draw.randrange(80)
        picture.paste(120, (x, y, x + 14, y + 3))
        picture.save(tmp_path / f"{number}.png")
        pieces.append(Item.of(path=str(tmp_path / f"{number}.png"), label="ab"[number % 2]))
    again = _copied(pieces[3], tmp_path / "again.jpg", number=2)
    split = Split("pieces", ("a", "b"), tuple(pieces[:20]), (), (*pieces[20:], again))
    features = {name: item_features(model, getattr(split, name), workers=0) for name in ("train", "test")}
    assert [row["path"] for row in near_duplicates(split, features)] == [again.path]
    [line] = [line for line in advise(split, features, [], None).lines() if "look like a training image" in line]
    assert line.startswith("1 test or validation image(s)")
    assert line.endswith("none is left out")


def _copied(item: Item, path: Path, number: int) -> Item:
    image = open_image(item)
    if number % 2:
        image = ImageOps.mirror(image)
    side = (40, 100, 160)[number % 3]
    image.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=(30, 60, 90)[number % 3])
    return replace(item, paths=(str(path),))


def test_classes_short_of_images(emoji: Split, features: dict[str, Tensor]) -> None:
    labels = numbers(emoji.train, emoji.class_names)
    kept = [place for place, label in enumerate(labels) if label > 1]
    kept += [place for place, label in enumerate(labels) if label == 0][:3]
    kept += [place for place, label in enumerate(labels) if label == 1][:12]
    split = replace(emoji, train=tuple(emoji.train[place] for place in kept))
    advice = advise(split, features | {"train": features["train"][kept]}, [], None)
    assert advice.few[0]["class"] == emoji.class_names[0]
    assert advice.few[0]["images"] == 3
    doubted = {row["class"] for row in advice.suspects}
    assert emoji.class_names[0] not in doubted  # of too few witnesses
    assert WITNESSES == 3
    [line] = [line for line in advice.lines() if line.startswith("More training images would help")]
    assert emoji.class_names[0] in line


def test_a_vote_is_the_mean_over_the_other_images_of_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "AT_ONCE", 3)
    features = normalize(torch.randn(7, 4, generator=torch.Generator().manual_seed(1)), dim=-1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 1])
    cosines = (features @ features.T).double()
    spread = float(cosines[~torch.eye(7, dtype=torch.bool)].std(correction=0))
    similar = (advice.SHARPNESS / spread * (cosines - 1)).exp()
    expected = torch.zeros(7, 3, dtype=torch.double)
    for image in range(7):
        for label in range(3):
            others = [other for other in range(7) if other != image and labels[other] == label]
            expected[image, label] = similar[image, others].mean() if others else 0.0
    assert torch.allclose(advice._votes(features, labels, 3).double(), expected, rtol=1e-4)
