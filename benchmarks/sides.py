"""Loss of left and right: how well ridge regression reads the sides of two drawings from frozen features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt import AdaptedModel
from adapt.data.emoji import questions
from adapt.data.emoji import questions as captions
from adapt.data.emoji.scenes import Scene, scenes
from benchmarks.drawings import per_cent, zero_shot
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
TRAIN, TEST = 1500, 400  # scenes of two drawings; the test scenes have drawings that no other scene has
HELD_OUT = 0.2  # share of the pairs of things whose captions are only in the test
FEW = 60  # scenes whose patches are classified one by one
PENALTY = 10.0  # of the regression on standardised inputs
Pairs = tuple[Tensor, Tensor]  # inputs (n, d), and the numbers of the left and of the right thing (n, 2)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report how often the left one of 51 things is recognised, the order of two things, and the side of a patch."""
    model = zero_shot()
    things, sides, patches = (defaultdict[str, list[Tensor]](list) for _ in range(3))
    for seed in SEEDS:
        progress(f"seed {seed}")
        train, test = (scenes_of_two(part, count, seed) for part, count in (("train", TRAIN), ("test", TEST)))
        seen, unseen = (of_images(model, each) for each in (train, test))
        read = {name: (seen[name], unseen[name]) for name in seen} | {"captions": _of_captions(model, seed)}
        for name, (known, queries) in read.items():
            of_things, of_sides = sides_right(known, queries)
            things[name].append(of_things)
            sides[name].append(of_sides)
        for block in range(len(model.backbone.tower("vision").blocks)):
            known, queries = (_patches(model, block, each[:FEW]) for each in (train, test))
            right = scores(known, queries[0]).argmax(-1) == queries[1]
            patches[f"patches before block {block}"].append(right[:, 0].double())
    for name in things:
        figures = f"left thing {per_cent(things[name])}", f"order {per_cent(sides[name])}"
        yield {"case": name, "text": " | ".join(figures)}
    for name, rights in patches.items():
        yield {"case": name, "text": f"side {per_cent(rights)}"}


def scenes_of_two(part: str, count: int, seed: int) -> list[Scene]:
    """Return `count` scenes of two drawings that only this part of the data has."""
    drawn = scenes(questions.drawings("emoji-questions", part), count, Random(f"{part}/{seed}"))
    return [scene for scene in drawn if scene.kind == "pair"]


def numbers(listed: Sequence[tuple[str, ...]]) -> Tensor:
    """Return the numbers of things by their names, in the form of `listed`."""
    number = {concept.name: place for place, concept in enumerate(questions.concepts().values())}
    return torch.tensor([[number[name] for name in names] for names in listed])


@torch.no_grad()
def of_images(model: AdaptedModel, drawn: Sequence[Scene]) -> dict[str, Pairs]:
    transform, features, tokens = model.transform(), [], []
    for start in range(0, len(drawn), 50):
        images = torch.stack([transform(scene.draw()) for scene in drawn[start : start + 50]])
        features.append(model.image_features(images))
        tokens.append(model.image_tokens(images))
    patches = patches_of(torch.cat(tokens))
    side = round(patches.shape[1] ** 0.5)
    grid = patches.unflatten(1, (side, side))
    halves = torch.cat([half.mean((1, 2)) for half in grid.chunk(2, dim=2)], dim=-1)
    labels = numbers([(scene.concepts[0].name, scene.concepts[1].name) for scene in drawn])
    read = {"image features": torch.cat(features), "mean of the patches": patches.mean(1), "means by halves": halves}
    return {name: (values, labels) for name, values in read.items()}


def _of_captions(model: AdaptedModel, seed: int) -> tuple[Pairs, Pairs]:
    """Return captions to learn from, and captions of other pairs of things."""
    stream = Random(seed)
    listed: tuple[list[tuple[str, str]], list[tuple[str, str]]] = [], []
    for one, other in combinations([concept.name for concept in questions.concepts().values()], 2):
        listed[stream.random() < HELD_OUT].extend([(one, other), (other, one)])
    known, queries = (_of_texts(model, each) for each in listed)
    return known, queries


def _of_texts(model: AdaptedModel, listed: Sequence[tuple[str, str]]) -> Pairs:
    texts = [f"{captions.with_article(left)} left of {captions.with_article(right)}" for left, right in listed]
    texts += [f"{captions.with_article(right)} right of {captions.with_article(left)}" for left, right in listed]
    return model.text_features(texts), numbers([*listed, *listed])


@torch.no_grad()
def _patches(model: AdaptedModel, block: int, drawn: Sequence[Scene]) -> Pairs:
    """Return each patch before a block, and whether it lies in the right half."""
    transform, name = model.transform(), f"vision.{block}"
    images = torch.stack([transform(scene.draw()) for scene in drawn])
    patches = patches_of(model.frozen_blocks(images, [name])[name][0])
    side = round(patches.shape[1] ** 0.5)
    of_right = (torch.arange(side * side) % side >= side // 2).long().repeat(len(patches))
    return patches.flatten(0, 1), of_right[:, None]


def patches_of(tokens: Tensor) -> Tensor:
    """Return tokens `(b, l, d)` without the class token, normalised."""
    return F.layer_norm(tokens[:, 1:], tokens.shape[-1:])


def scores(known: Pairs, queries: Tensor) -> Tensor:
    """Return the scores `(n, labels, classes)` of a regression fitted on `known` for `queries`."""
    mean, spread = known[0].mean(0), known[0].std(0) + 1e-6
    inputs, queries = ((each - mean) / spread for each in (known[0], queries))
    targets = F.one_hot(known[1]).float()
    usual = targets.mean(0)
    penalised = inputs.T @ inputs + PENALTY * torch.eye(inputs.shape[1])
    weights = torch.linalg.solve(penalised, inputs.T @ (targets - usual).flatten(1))
    return (queries @ weights).unflatten(1, usual.shape) + usual


def sides_right(known: Pairs, queries: Pairs) -> tuple[Tensor, Tensor]:
    """Return whether the left thing is recognised, and whether the right order scores higher than the reverse."""
    found, (left, right) = scores(known, queries[0]), queries[1].T
    row = torch.arange(len(found))
    order = found[row, 0, left] + found[row, 1, right] > found[row, 0, right] + found[row, 1, left]
    return (found[:, 0].argmax(-1) == left).double(), order.double()
