"""What is wrong with the images, and of which there should be more: by the features that are there anyway."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from adapt.choosing.compare import Compared
from adapt.choosing.duplicates import near_duplicates
from adapt.data.item import Item
from adapt.data.split import Split
from adapt.disk import write_csv

SHARPNESS = 2.0  # of the vote on labels, over the standard deviation of cosines
SUSPICIOUS = 0.1  # votes for an image's own label, of those for the likeliest, below which it is listed
WITNESSES = 3  # other images of a class, with fewer of which no label of its is doubted
PAIRS = 5  # of classes that are taken for one another
AT_ONCE = 1024  # rows of similarities


@dataclass(frozen=True)
class Advice:
    """Rows for four lists, the worst first: each names files, and what is the matter with them.

    `few` has images of classes with fewer than half as many as is usual, or with one group alone; `confused` images
    that were taken for another class, of the pairs of classes where that happens most; `suspects` training images that
    look like another class; `duplicates` test and validation images that are training images too, or nearly.
    """

    few: list[dict[str, Any]]
    confused: list[dict[str, Any]]
    suspects: list[dict[str, Any]]
    duplicates: list[dict[str, Any]]

    def write(self, folder: Path) -> None:
        """A CSV for each list that has something."""
        for name, rows in vars(self).items():
            if rows:
                write_csv(folder / f"{name}.csv", rows)

    def lines(self) -> list[str]:
        """What a person reads, a line for each list that has something."""
        found = []
        if self.few:
            classes = list(dict.fromkeys(row["class"] for row in self.few))
            found.append(f"more images would help {_listed(classes)} most: few.csv")
        if self.confused:
            pairs = dict.fromkeys(" and ".join(sorted((row["class"], row["predicted"]))) for row in self.confused)
            found.append(f"taken for one another: {_listed(list(pairs), '; ')}: confused.csv")
        if self.suspects:
            found.append(
                f"{len(self.suspects)} training image(s) look like another class: check labels by suspects.csv"
            )
        if self.duplicates:
            found.append(f"{len(self.duplicates)} test or validation image(s) nearly in training too: duplicates.csv")
        return found


def advise(split: Split, features: dict[str, Tensor], held: Sequence[Item], winner: Compared | None) -> Advice:
    """Advice on the images of `split`, by unit-length `features` `(n, e)` of its parts by name.

    `held` are the images that `winner` was tried on; both are without content where nothing could be.
    """
    return Advice(
        few=_few(split.train),
        confused=_confused(split.class_names, held, winner) if winner else [],
        suspects=_suspects(split, features["train"]),
        duplicates=near_duplicates(split, features),
    )


def _few(items: Sequence[Item]) -> list[dict[str, Any]]:
    count = Counter(item.answer for item in items)
    groups = Counter(name for name, _ in {(item.answer, item.kept_with) for item in items})
    enough = median(count.values()) / 2
    rows: list[dict[str, Any]] = [
        {"path": item.path, "class": name, "images": count[name], "groups": groups[name]}
        for item in items
        if count[name := item.answer] < enough or groups[name] == 1
    ]
    return sorted(rows, key=lambda row: row["images"])


def _confused(names: Sequence[str], held: Sequence[Item], winner: Compared) -> list[dict[str, Any]]:
    taken = [names[label] for label in winner.probabilities.argmax(-1).tolist()]
    sure = winner.probabilities.amax(-1).tolist()
    wrong: list[dict[str, Any]] = [
        {"path": item.path, "class": item.answer, "predicted": answer, "confidence": round(confidence, 4)}
        for item, answer, confidence in zip(held, taken, sure, strict=True)
        if item.answer != answer
    ]
    pairs = Counter(frozenset((row["class"], row["predicted"])) for row in wrong)
    most = {pair: number for pair, number in pairs.most_common(PAIRS) if number > 1}
    kept = [row for row in wrong if frozenset((row["class"], row["predicted"])) in most]
    return sorted(kept, key=lambda row: (-most[frozenset((row["class"], row["predicted"]))], -row["confidence"]))


def _suspects(split: Split, features: Tensor) -> list[dict[str, Any]]:
    """Training images that resemble another class much more than their own, whose label few others are witnesses of."""
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
    """How much each image resembles each class `(n, classes)`, by the mean over all its other images.

    An image at cosine c counts exp(s c); s is larger where cosines differ little.
    """
    members = torch.nn.functional.one_hot(labels, classes).float()
    sharpness = SHARPNESS / _spread(features)
    found = []
    for start in range(0, len(features), AT_ONCE):
        part = features[start : start + AT_ONCE]
        similar = (sharpness * (part @ features.T - 1)).exp()
        rows = torch.arange(len(part))
        similar[rows, rows + start] = 0  # no image is its own witness
        others = members.sum(0) - members[start : start + AT_ONCE]
        found.append(similar @ members / others.clamp_min(1))
    return torch.cat(found)


def _spread(features: Tensor) -> float:
    """The standard deviation of the cosines of all pairs of unit-length features `(n, e)`."""
    features, pairs = features.double(), len(features) * (len(features) - 1)
    if not pairs:
        return 1.0
    mean = float(features.sum(0).square().sum() - len(features)) / pairs
    square = float((features.T @ features).square().sum() - len(features)) / pairs
    return max(square - mean**2, 1e-6) ** 0.5


def _listed(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:PAIRS]) + (f"{between}and {len(names) - PAIRS} more" if len(names) > PAIRS else "")
