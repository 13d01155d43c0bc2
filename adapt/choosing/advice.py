"""Advice on a data set, from computed features: classes with few images, wrong labels, confusions and duplicates.

Of near duplicates (resized, recompressed or mirrored images), features select possible ones, and thumbnails decide: by
features alone, two drawings of one object would count as the same image. What counts as the same depends on how alike
different training images are: photographs that a machine takes of its pieces are all alike, and differ by the crack
that matters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from adapt.choosing.compare import Compared
from adapt.common.disk import write_csv
from adapt.common.shown import first_of
from adapt.data.decoding.images import open_image
from adapt.data.item import Item
from adapt.data.split import Split

NEAREST = 3  # training images that each other image is compared with
SIDE = 12  # pixels of a thumbnail
SAME = 1e-3  # the distance up to which training images are copies themselves
UNLIKE = 0.02  # two images count as one if their thumbnails' correlation is nearer to 1 than this
SHARE = 0.1  # or than this share of the usual distance of a training image to the one most like it
SAMPLE = 100  # training images from which the usual distance is taken
KEPT = 4096  # thumbnails in memory

ListedImage = dict[str, str | float]  # a row of a list: the image's path and class, and why it is listed


def near_duplicates(split: Split, features: dict[str, Tensor]) -> list[ListedImage]:
    """Return a row for each test or validation image that looks like a training image, the most similar first.

    `features` contains unit-length features `(n, e)` of train, val and test.
    """
    thumbnail = lru_cache(KEPT)(_thumbnail)
    train = features["train"]

    def most_alike(item: Item, feature: Tensor, but: int = -1) -> tuple[float, int]:
        """Return the highest correlation with a training image other than `but`, mirrored or not, and its index."""
        near = (train @ feature).topk(min(NEAREST + 1, len(train))).indices.tolist()
        others = [place for place in near if place != but][:NEAREST]
        own = thumbnail(item.path, item.turned)
        found = [(thumbnail(split.train[place].path, item.turned), place) for place in others]
        alike = [(max(float((own * one).sum()), float((own * one.flip(-1)).sum())), place) for one, place in found]
        return max(alike, default=(0.0, 0))

    if not (split.val or split.test):
        return []
    step = max(1, len(train) // SAMPLE)
    usual = [1 - most_alike(split.train[place], train[place], place)[0] for place in range(0, len(train), step)]
    least = 1 - min(UNLIKE, SHARE * median([each for each in usual if each > SAME] or [1.0]))
    rows: list[ListedImage] = []
    for part, items in (("val", split.val), ("test", split.test)):
        for item, feature in zip(items, features.get(part, ())):
            correlation, place = most_alike(item, feature)
            if correlation > least:
                other = split.train[place]
                rows.append(
                    {
                        "path": item.path,
                        "part": part,
                        "class": item.answer,
                        "train_path": other.path,
                        "train_class": other.answer,
                        "correlation": round(correlation, 4),
                    }
                )
    return sorted(rows, key=lambda row: -float(row["correlation"]))


def _thumbnail(path: str, turned: bool) -> Tensor:
    """Return a thumbnail of an image as a tensor `(3, s, s)` with mean 0 and norm 1."""
    small = open_image(path, turned=turned).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = pil_to_tensor(small).float()
    pixels = pixels - pixels.mean()
    return pixels / pixels.norm().clamp_min(torch.finfo(pixels.dtype).tiny)


SHARPNESS = 2.0  # of the vote on labels, over the standard deviation of the cosines
SUSPICIOUS = 0.1  # votes for an image's own label over votes for the likeliest one, below which it is listed
WITNESSES = 3  # other images that a class needs before the labels of its images are doubted
PAIRS = 5  # pairs of classes that are listed as confused
AT_ONCE = 1024  # rows of similarities computed at once


@dataclass(frozen=True)
class Advice:
    """Advice on a data set, as four lists of images with the most serious cases first.

    `few` lists the images of classes that have fewer than half the median number of images, or only one group of
    images (such as photographs of one object). `confused` lists misclassified images of the most often confused pairs
    of classes. `suspects` lists training images that look like another class. `duplicates` lists test and validation
    images that look like a training image, as copies do.
    """

    few: list[ListedImage]
    confused: list[ListedImage]
    suspects: list[ListedImage]
    duplicates: list[ListedImage]

    def write(self, folder: Path) -> None:
        """Write each non-empty list of images to a CSV file in `folder`, such as few.csv."""
        for name, rows in vars(self).items():
            if rows:
                write_csv(folder / f"{name}.csv", rows)

    def lines(self) -> list[str]:
        """Return one sentence of advice for each non-empty list of images."""
        lines = []
        if self.few:
            classes = list(dict.fromkeys(row["class"] for row in self.few))
            lines.append(f"More training images would help most in these classes: {first_of(classes)} (few.csv)")
        if self.confused:
            pairs = dict.fromkeys(
                " and ".join(sorted((str(row["class"]), str(row["predicted"])))) for row in self.confused
            )
            lines.append(f"Most often confused: {first_of(list(pairs), between='; ')} (confused.csv)")
        if self.suspects:
            lines.append(
                f"Check the labels: {len(self.suspects)} training image(s) look like another class (suspects.csv)"
            )
        if self.duplicates:
            other = sum(row["class"] != row["train_class"] for row in self.duplicates)
            lines.append(
                f"{len(self.duplicates)} test or validation image(s) look like a training image"
                f"{f', {other} of them of another class' * bool(other)}: copies, or alike in all but what matters? "
                "Compare them (duplicates.csv); none is left out"
            )
        return lines


def advise(split: Split, features: dict[str, Tensor], held_out: Sequence[Item], winner: Compared | None) -> Advice:
    """Return advice on the images of `split`; `features` contains unit-length features `(n, e)` of train, val and test.

    `held_out` contains the images that the chosen candidate `winner` was evaluated on. If nothing could be compared,
    `held_out` is empty and `winner` is None. Where images do not have one class each, only duplicates are listed.
    """
    if not split.task.one_class:
        return Advice([], [], [], near_duplicates(split, features))
    return Advice(
        few=_few(split.train),
        confused=_confused(held_out, winner) if winner else [],
        suspects=_suspects(split, features["train"]),
        duplicates=near_duplicates(split, features),
    )


def _few(items: Sequence[Item]) -> list[ListedImage]:
    count = Counter(item.answer for item in items)
    groups = Counter(name for name, _ in {(item.answer, item.kept_with) for item in items})
    enough = median(count.values()) / 2
    return [
        {"path": item.path, "class": name, "images": count[name], "groups": groups[name]}
        for item in sorted(items, key=lambda item: count[item.answer])
        if count[name := item.answer] < enough or groups[name] == 1
    ]


def _confused(held_out: Sequence[Item], winner: Compared) -> list[ListedImage]:
    predictions = winner.scores.predicted
    pairs = [frozenset((item.answer, predicted)) for item, predicted in zip(held_out, predictions, strict=True)]
    count = dict(Counter(pair for pair in pairs if len(pair) == 2).most_common(PAIRS))
    wrong: list[tuple[int, ListedImage]] = [
        (
            count[pair],
            {"path": item.path, "class": item.answer, "predicted": predicted, "confidence": round(confidence, 4)},
        )
        for pair, item, predicted, confidence in zip(pairs, held_out, predictions, winner.scores.confidence)
        if count.get(pair, 0) > 1
    ]
    return [row for _, row in sorted(wrong, key=lambda each: (-each[0], -float(each[1]["confidence"])))]


def _suspects(split: Split, features: Tensor) -> list[ListedImage]:
    """Return the training images, of classes with three others, that resemble another class much more than theirs."""
    labels = split.task.numbers(split.train, split.class_names)
    votes = _votes(features, labels, len(split.class_names))
    most, likeliest = votes.max(-1)
    share = votes.gather(1, labels[:, None]).squeeze(1) / most.clamp_min(torch.finfo(votes.dtype).tiny)
    witnesses = labels.bincount(minlength=len(split.class_names))[labels] - 1
    listed = (share < SUSPICIOUS) & (witnesses >= WITNESSES)
    return [
        {
            "path": split.train[place].path,
            "class": split.train[place].answer,
            "likelier": split.class_names[int(likeliest[place])],
            "share": round(float(share[place]), 6),
        }
        for place in share.argsort(stable=True).tolist()
        if listed[place]
    ]


def _votes(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the similarity of each image to each class, `(n, classes)`, averaged over the other images of the class.

    The similarity of two images is proportional to exp(s c), where c is the cosine similarity of their features. The
    factor s is larger if the cosine similarities in the data set differ little.
    """
    members = torch.nn.functional.one_hot(labels, classes).float()
    sharpness = SHARPNESS / _spread(features)
    votes = []
    for start in range(0, len(features), AT_ONCE):
        part = features[start : start + AT_ONCE]
        similar = (sharpness * (part @ features.T - 1)).exp()
        rows = torch.arange(len(part))
        similar[rows, rows + start] = 0  # no image votes for itself
        others = members.sum(0) - members[start : start + AT_ONCE]
        votes.append(similar @ members / others.clamp_min(1))
    return torch.cat(votes)


def _spread(features: Tensor) -> float:
    """Return the standard deviation of the cosine similarities of all pairs of unit-length features `(n, e)`."""
    features, pairs = features.double(), len(features) * (len(features) - 1)
    if not pairs:
        return 1.0
    mean = float(features.sum(0).square().sum() - len(features)) / pairs
    square = float((features.T @ features).square().sum() - len(features)) / pairs
    return max(square - mean**2, 1e-6) ** 0.5
