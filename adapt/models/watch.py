"""The watch: what the training images looked like to the frozen backbone, and whether later images look otherwise.

An image is looked at twice: fourteen properties of the pixels that the backbone reads, and the frozen backbone's
features under a seeded projection. Training keeps their means by class, and how far images lie from these. A window of
later images is then compared with the mixture of classes that explains it best, so that other shares of the classes are
no alarm.

Sources: Dempster, Biometrics 1960, for a mean in more dimensions than there are images; Robinson, Statistical Science
1991, for class means that few images support, which are drawn to the mean of all; Saerens, Latinne and Decaestecker,
Neural Computation 2002, for the shares of the classes. Their combination is our own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from random import Random
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import fdtrc, stdtr
from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.common.shown import first_of

WINDOW = 64  # images that are compared at a time
FEWEST = 16  # images that can be compared
LEVEL = 0.005  # the nominal rate of false alarms in a window, half of it for each look
MOST_CLASSES = 480  # with which the statistics take 32 KB, and features have 15 numbers
_BYTES, _NUMBERS = 32_000, 128  # of the statistics, and the most numbers of features
_TAILS = 0.5  # independent directions count half, as features differ more from image to image than normal numbers
_SOFT = 0.5  # features have heavier tails than normal ones, so that a class is less sure than these would make it
_OWN = 10  # images of a class that weigh as much as all in the variance of its features
_STORED = 2.0**-16  # of a square: a stored mean is off by 2**-11 at most, an eighth of the least deviation of an image
_PIXEL = 5e-3  # what rounding to 8 bits adds to a pixel, in units of the pixels' usual deviation
# light, red against green, and blue against yellow
_CHANNELS = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.0, -1.0, 0.0], [-0.5, -0.5, 1.0]])
# what is said of a window whose property is lower, or higher
_PROPERTIES = (
    ("darker", "brighter"), ("less contrast", "more contrast"),
    ("greener", "redder"), ("less colourful", "more colourful"),
    ("yellower", "bluer"), ("less colourful", "more colourful"),
    ("less fine detail", "more fine detail"),
    ("other directions of edges",) * 2, ("other directions of edges",) * 2,
    ("less coarse detail", "more coarse detail"),
    ("other directions of edges",) * 2, ("other directions of edges",) * 2,
    ("darker at the top", "darker at the bottom"), ("darker at the left", "darker at the right"),
)  # fmt: skip


class Sighting(NamedTuple):
    """An image as a watch saw it: its properties and the numbers of its features, and its class for the watch.

    `strangeness` says how many standard deviations the image lies from the training images of its class.
    """

    numbers: Tensor
    label: int
    strangeness: float


@dataclass(frozen=True)
class Window:
    """How a window of so many `images` compares with the training images.

    `p` is the probability of a window as unlike them, were it of their kind. It is an `alarm` below a half per cent,
    and `differs` then says in which respects. `strangest` are the names of the images that differ most.
    """

    images: int
    p: float
    alarm: bool
    differs: tuple[str, ...]
    strangest: tuple[str, ...]


def summary(windows: Sequence[Window]) -> str:
    """Return in words how windows compare with the training images."""
    alarms = [window for window in windows if window.alarm]
    images = sum(window.images for window in windows)
    which = f"the {images:,} images" if len(windows) == 1 else f"{len(alarms):,} of {len(windows):,} windows of images"
    if not alarms:
        return f"{which} look {'' if len(windows) == 1 else 'un'}like the training images"
    differs = ", ".join(dict.fromkeys(chain(*(window.differs for window in alarms))))
    strangest = [*chain(*(window.strangest for window in alarms))]
    such_as = f", such as {first_of(strangest, 3)}" * bool(strangest)
    return f"{which} look unlike the training images ({differs}){such_as}: check some answers before you trust them"


@dataclass(frozen=True)
class _Spread:
    """The distribution of numbers by class: means `(c, d)`, drawn to the mean of all, and the spread around them.

    `ratio` is the variance between classes over that within, and `variance` that within, of each number `(d,)` or of
    all together `(1,)`; `freedom` are the degrees of freedom of the variance.
    """

    means: Tensor
    ratio: Tensor
    variance: Tensor
    freedom: Tensor

    @classmethod
    def of(cls, numbers: Tensor, labels: Tensor, counts: Tensor, together: bool) -> _Spread:
        """Return the spread of `numbers` `(n, d)` of images with `labels` `(n,)`, `counts` `(c,)` of each class.

        A number varies at least as much as the rounding of its stored mean, and of pixels, can make it.
        """
        images, present = len(numbers), int((counts > 0).sum())
        overall = numbers.mean(0)
        stored = _total(numbers.square().mean(0) * _STORED, together)
        least = stored if together else stored + _rounded(overall).square()
        sums = torch.zeros(len(counts), numbers.shape[1]).to(numbers).index_add(0, labels, numbers)
        own = sums / counts[:, None].clamp_min(1)
        ratio = torch.zeros(1 if together else numbers.shape[1]).to(numbers)
        if present > 1:
            within = _total((numbers - own[labels]).square().sum(0), together) / (images - present)
            apart = _total((counts[:, None] * (own - overall).square()).sum(0), together) / (present - 1)
            usual = (images - counts.square().sum() / images) / (present - 1)
            ratio = ((apart - within) / usual).clamp_min(0) / within.maximum(least)
        known = counts[:, None] * ratio / (1 + counts[:, None] * ratio)
        means = overall + known * (own - overall)
        if together:
            freedom = images - 1 - (known * (1 - counts / images)[:, None]).sum(0)
            variance = _total((numbers - means[labels]).square().sum(0), together) / freedom
        else:  # with few images of each class, one number in fourteen would be thought too even by chance
            freedom = torch.full_like(ratio, images - 1.0)
            variance = numbers.var(0)
        return cls(means, ratio, variance.maximum(least), freedom)

    def noise(self, counts: Tensor, shares: Tensor, images: int) -> Tensor:
        """Return the variance of the mean of `images` around the mixture of classes, as a multiple of `variance`."""
        other = (shares - counts / counts.sum()).square()[:, None]
        return 1 / images + 1 / counts.sum() + (other * self.ratio / (1 + counts[:, None] * self.ratio)).sum(0)


@dataclass(frozen=True)
class Watch:
    """The training images as the frozen backbone saw them, with which windows of later images are compared.

    `counts` `(c,)` are the training images of each class; all are one class where an image has no single one, or where
    no class has two. `features` is None for a method that edits the vision tower. `rank` is the number of independent
    directions in which features vary, and `own` `(c,)` the variance of each class.
    """

    counts: Tensor
    pixels: _Spread
    features: _Spread | None = None
    rank: float = 1.0
    own: Tensor | None = None

    @classmethod
    def of(cls, pixels: Tensor, features: Tensor | None, labels: Tensor, classes: int) -> Watch:
        """Return the watch of training images with properties `(n, 14)`, features `(n, e)` and `labels` `(n,)`.

        There are at least 16 images, and at most 480 classes.
        """
        if int(torch.bincount(labels).max()) < 2 or len(labels) - len(labels.unique()) < 2:
            labels, classes = torch.zeros_like(labels), 1
        counts = torch.bincount(labels, minlength=classes).double()
        of_pixels = _Spread.of(pixels.double(), labels, counts, together=False)
        if features is None:
            return cls(counts, of_pixels)
        each = (_BYTES // classes - 2 * len(_PROPERTIES) - 8) // 2
        numbers = _projected(features, min(_NUMBERS, features.shape[1], each))
        spread = _Spread.of(numbers, labels, counts, together=True)
        apart, freedom = numbers - spread.means[labels], float(spread.freedom)
        total, squares = float(spread.variance), float((apart.T @ apart / freedom).square().sum())
        # without bias for normal features
        squares = freedom**2 / ((freedom - 1) * (freedom + 2)) * (squares - total**2 / freedom)
        rank = min(float(numbers.shape[1]), total**2 / max(squares, total**2 / numbers.shape[1]))
        sums = torch.zeros(classes).double().index_add(0, labels, apart.square().sum(1))
        return cls(counts, of_pixels, spread, max(rank * _TAILS, 1.0), (_OWN * total + sums) / (_OWN + counts))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors that the adapter file keeps, in half precision where they are many."""
        spreads = {"pixels": self.pixels} | ({} if self.features is None else {"features": self.features})
        tensors = {"counts": self.counts.int()}
        for look, spread in spreads.items():
            tensors |= {f"{look}.means": spread.means.half()}
            tensors |= {f"{look}.{name}": getattr(spread, name).float() for name in ("ratio", "variance", "freedom")}
        if self.own is not None:
            least = torch.finfo(torch.half).tiny  # of equal images, whose variance is none
            tensors |= {"rank": torch.tensor([self.rank]), "own": self.own.clamp_min(least).half()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: object) -> Self:
        """Return the watch that `tensors` give back. Raises AdaptError, naming the file `path`, if they do not fit."""
        own = {name: tensor.double() for name, tensor in tensors.items()}
        classes, means = (own.get(name, torch.zeros(0)).numel() for name in ("counts", "features.means"))
        numbers = means // max(classes, 1)
        looks = {"pixels": (len(_PROPERTIES), len(_PROPERTIES))} | ({"features": (numbers, 1)} if numbers else {})
        shapes: dict[str, tuple[int, ...]] = {"counts": (classes,)}
        shapes |= {"rank": (1,), "own": (classes,)} if numbers else {}
        for look, (width, apart) in looks.items():
            shapes |= {f"{look}.means": (classes, width)}
            shapes |= {f"{look}.{name}": (apart,) for name in ("ratio", "variance", "freedom")}
        sound = shapes == {name: tuple(tensor.shape) for name, tensor in own.items()}
        sound = sound and bool(own["counts"].sum() >= FEWEST)
        least = {"counts": 0.0, "ratio": 0.0, "means": -1e6}  # all others are positive
        for name, tensor in own.items():
            low = least.get(name.rpartition(".")[2], 1e-30)
            sound = sound and bool(((tensor >= low) & (tensor < 1e9)).all())
        if not sound:
            raise AdaptError(f"{path} has a damaged watch: fetch or train the adapter again")
        spreads = {look: _Spread(*(own[f"{look}.{each.name}"] for each in fields(_Spread))) for look in looks}
        rank = float(own["rank"]) if numbers else 1.0
        return cls(own["counts"], spreads["pixels"], spreads.get("features"), rank, own.get("own"))

    def look(self, properties: Tensor, features: Tensor | None, labels: Tensor) -> list[Sighting]:
        """Return what is seen of images, from `properties` `(b, 14)` of their pixels as the backbone reads them.

        `features` `(b, e)` are the frozen backbone's, of unit length, if the watch has features. `labels` `(b,)` are
        the classes that the model gives the images, which count where it has none.
        """
        numbers = properties
        if self.features is not None and features is not None:
            projected = _projected(features, self.features.means.shape[1])
            labels = self._likely(projected).argmax(1)
            numbers = torch.cat([numbers, projected], 1)
        elif len(self.counts) == 1:
            labels = torch.zeros_like(labels)
        own = self._strangeness(numbers, labels)
        return [Sighting(*each) for each in zip(numbers, labels.tolist(), own, strict=True)]

    def _strangeness(self, numbers: Tensor, labels: Tensor) -> list[float]:
        """Return how many standard deviations each image lies from its class, in the look in which it lies farther."""
        pixels, features = numbers[:, : len(_PROPERTIES)], numbers[:, len(_PROPERTIES) :]
        apart = ((pixels - self.pixels.means[labels]).abs() / self.pixels.variance.sqrt()).amax(1)
        if self.features is not None:
            squares = (features - self.features.means[labels]).square().sum(1) / self.features.variance
            apart = torch.maximum(apart, (squares - 1) * math.sqrt(self.rank / 2))
        return apart.tolist()

    def _likely(self, features: Tensor) -> Tensor:
        """Return the log-likelihood `(m, c)` of projected features `(m, d)` in each class, up to a constant."""
        assert self.features is not None
        return torch.cdist(features, self.features.means).square() * (-_SOFT * self.rank / 2 / self.features.variance)

    def _shares(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the shares `(c,)` of the classes in a window, by expectation and maximisation, or of its labels."""
        shares = self.counts / self.counts.sum()
        if self.features is None:
            return torch.bincount(labels, minlength=len(shares)).double() / len(labels)
        likely = self._likely(features)
        for _ in range(30):
            shares = (likely + shares.clamp_min(1e-12).log()).softmax(1).mean(0)
        return shares

    def compare(self, sightings: Sequence[Sighting], names: Sequence[str] = ()) -> Window:
        """Return how a window of images, with these `names`, compares with the training images.

        Copies count once, so that a window of one picture is compared as one image.
        """
        images = len(sightings)
        once = {tuple(each.numbers[: len(_PROPERTIES)].numpy().round(4)): each for each in sightings}
        numbers = torch.stack([each.numbers for each in once.values()])
        pixels, features = numbers[:, : len(_PROPERTIES)], numbers[:, len(_PROPERTIES) :]
        shares = self._shares(features, torch.tensor([each.label for each in once.values()]))
        noise = self.pixels.noise(self.counts, shares, len(once))
        t = (pixels.mean(0) - shares @ self.pixels.means) / (self.pixels.variance * noise).sqrt()
        by_property = 2 * stdtr(self.pixels.freedom.numpy(), -t.abs().numpy()) * len(t)
        p, order = float(by_property.min()), [at for at in np.argsort(by_property) if by_property[at] < LEVEL / 2]
        differs = [_PROPERTIES[at][int(t[at] > 0)] for at in order]
        if self.features is not None and self.own is not None:
            noise = self.features.noise(self.counts, shares, len(once)) * self.features.variance
            expected = float(noise) + float(shares @ self.own - self.features.variance) / len(once)
            distance = float((features.mean(0) - shares @ self.features.means).square().sum()) / expected
            of_features = float(fdtrc(self.rank, self.rank * float(self.features.freedom), distance))
            differs += ["other contents"] * (of_features < LEVEL / 2)
            p = min(p, of_features)
        ranked = sorted(zip(sightings, names), key=lambda pair: -pair[0].strangeness)
        strangest = tuple(name for _, name in ranked[:3])
        return Window(images, min(1.0, 2 * p), bool(differs), tuple(dict.fromkeys(differs)), strangest)


class Windows:
    """Disjoint windows of 64 of the images that a model answers, compared with its training images.

    They are compared as soon as there are `at_once`, of which each gets images drawn at random, as neighbours may be
    alike, such as those of one class in a folder. Without a `watch`, there are none.
    """

    def __init__(self, watch: Watch | None, at_once: int = 1) -> None:
        self.watch, self._at_once = watch, at_once
        self.last: Window | None = None  # the last one that was compared
        self._kept: list[tuple[Sighting, str]] = []

    def add(self, sighting: Sighting | None, name: str = "") -> list[Window]:
        """Count an image (`prediction.sighting`), and return the windows that it completes, compared."""
        if self.watch is not None and sighting is not None:
            self._kept.append((sighting, name))
        return self.rest() if len(self._kept) >= self._at_once * WINDOW else []

    def rest(self) -> list[Window]:
        """Return the windows of the images since the last ones, compared, of which one may have as few as 16."""
        kept, self._kept = self._kept, []
        Random(0).shuffle(kept)
        windows = []
        for start in range(0, len(kept), WINDOW):
            part = kept[start : start + WINDOW]
            if self.watch is not None and len(part) >= FEWEST:
                names = [name for _, name in part if name]
                windows.append(self.watch.compare([each for each, _ in part], names))
                self.last = windows[-1]
        return windows


def properties(pixels: Tensor) -> Tensor:
    """Return fourteen properties `(b, 14)` of images `(b, 3, h, w)`: their light, colours, details and directions.

    They are of sixteen bands of four rows, evenly spaced: all of a small image.
    """
    starts = torch.linspace(0, pixels.shape[2] - 4, 16).round().long()
    bands = pixels[:, :, (starts[:, None] + torch.arange(4)).flatten()].float()
    flat = bands.flatten(2)
    means = flat.mean(2)
    spread = torch.bmm(flat, flat.mT) / flat.shape[2] - means[:, :, None] * means[:, None]  # of the three channels
    found = []
    for weights in _CHANNELS.to(bands):  # many times quicker than the same of each pixel
        found += [means @ weights, _log((spread @ weights @ weights).clamp_min(0).sqrt())]
    light = bands.mean(1)
    rows = light.unflatten(1, (16, 4))
    coarse = F.avg_pool2d(light, 2).unflatten(1, (16, 2))
    for above, below in ((rows[:, :, 0], rows[:, :, 1]), (coarse[:, :, 0], coarse[:, :, 1])):
        steps = above.diff(dim=2), below - above
        slanted = below[..., 1:] - above[..., :-1], below[..., :-1] - above[..., 1:]
        strengths = (each.flatten(1).norm(dim=1) / math.sqrt(each[0].numel()) for each in (*steps, *slanted))
        across, down, falling, rising = map(_log, strengths)
        found += [across + down, across - down, falling - rising]
    for lines in (light.mean(2), light.mean(1)):
        half = lines.shape[1] // 2
        found.append(lines[:, :half].mean(1) - lines[:, half:].mean(1))
    return torch.stack(found, 1).cpu().double()


def _rounded(means: Tensor) -> Tensor:
    """Return the deviation `(14,)` that rounding pixels to 8 bits gives properties of these `means`."""
    strengths = torch.ones_like(means)
    strengths[1:6:2] = means[1:6:2].exp()  # a logarithm of little moves farther
    strengths[6:9], strengths[9:12] = (means[6] / 2).exp(), (means[9] / 2).exp()
    return _PIXEL / strengths


def _log(values: Tensor) -> Tensor:
    return (values + 1e-2).log()  # a hundredth of the pixels' usual deviation, below which all is flat


def _total(of_each: Tensor, together: bool) -> Tensor:
    return of_each.sum(0, keepdim=True) if together else of_each


def _projected(features: Tensor, numbers: int) -> Tensor:
    """Return features `(n, e)` under a seeded projection `(n, numbers)`."""
    if numbers > features.shape[1]:
        raise AdaptError(f"the watch is of {numbers} numbers, more than the {features.shape[1]} features: train again")
    return features.cpu().double() @ _projection(features.shape[1], numbers)


@cache
def _projection(width: int, numbers: int) -> Tensor:
    """Return an orthonormal projection `(width, numbers)`, the same for everybody."""
    drawn = np.random.RandomState(0).standard_normal((width, numbers))  # whose numbers numpy promises to keep
    basis, signs = np.linalg.qr(drawn)
    return torch.from_numpy(basis * np.sign(np.diag(signs)))
