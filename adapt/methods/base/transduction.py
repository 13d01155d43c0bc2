"""Transduction: the images of a set are answered together, each class as a Gaussian that the images themselves shape.

An image's probabilities come from the classifier's own answer, from the density of each class at the image, and from
the answers to the images nearest to it. Rounds alternate between these probabilities and the Gaussians.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adapt.methods.base.method import Method
from adapt.methods.base.step import ImageStep
from adapt.methods.base.traits import OverSet
from adapt.methods.zero_shot import TemplatesConfig

PASSES = 5  # over the images' probabilities, in each round
TEMPERATURE = 50.0
ROWS = 2048  # of cosines that are held at once


class TransductionConfig(TemplatesConfig):
    rounds: int = Field(default=10, ge=1)
    """How often the Gaussians of the classes are fitted to the images."""
    neighbours: int = Field(default=3, ge=1)
    """The number of nearest images whose answers an image shares."""
    neighbour_weight: float = Field(default=1.0, ge=0)
    """Weight of the neighbours' answers (the papers' lambda)."""


class Neighbours(NamedTuple):
    """The nearest other images of each image, as `places` `(n, k)` and `cosines` `(n, k)`."""

    places: Tensor
    cosines: Tensor

    @classmethod
    def of(cls, features: Tensor, count: int) -> Neighbours:
        """Return the `count` nearest neighbours of unit-length features `(n, e)`; cosines are computed in pieces."""
        cosines, places = [], []
        for start in range(0, features.shape[0], ROWS):
            piece = features[start : start + ROWS] @ features.T
            piece.diagonal(start).fill_(-torch.inf)
            nearest = piece.topk(count)
            cosines.append(nearest.values)
            places.append(nearest.indices)
        return cls(torch.cat(places), torch.cat(cosines))

    def sums(self, values: Tensor) -> Tensor:
        """Return, for each image, `values` `(n, c)` of its neighbours and of images that it neighbours, by cosine."""
        sums = torch.zeros_like(values)
        for places, cosines in zip(self.places.T, self.cosines.T[..., None], strict=True):
            sums += cosines * values[places]
            sums.index_add_(0, places, cosines * values)
        return sums


class Gaussians(NamedTuple):
    """A Gaussian for each class, with `mean` `(c, e)` and the diagonal of the covariance, `(c, e)` or `(1, e)`."""

    mean: Tensor
    variance: Tensor

    def log_density(self, features: Tensor) -> Tensor:
        """Return the log-densities `(n, c)` of features `(n, e)`, up to a constant."""
        variance = self.variance.clamp_min(torch.finfo(features.dtype).eps)  # of equal images
        precision = 1 / variance
        squares = features.square() @ precision.T - 2 * features @ (self.mean * precision).T
        return -(squares + (self.mean.square() * precision).sum(-1) + variance.log().sum(-1)) / 2


class Moments(NamedTuple):
    """The sums over images of class weights `(c, 1)`, of weighted features and of their squares, both `(c, e)`."""

    weight: Tensor
    sums: Tensor
    squares: Tensor

    @classmethod
    def of(cls, features: Tensor, weights: Tensor) -> Moments:
        """Return the moments of features `(n, e)` with weights `(n, c)`."""
        return cls(weights.sum(0)[:, None], weights.T @ features, weights.T @ features.square())

    @property
    def direction(self) -> Tensor:
        """The mean feature of each class, scaled to unit length `(c, e)`."""
        return F.normalize(self.sums, dim=-1)

    def around(self, mean: Tensor) -> Tensor:
        """Return the weighted sums `(c, e)` of squared distances to `mean` `(c, e)`."""
        return self.squares - 2 * mean * self.sums + mean.square() * self.weight


class Round(NamedTuple):
    """The log-probabilities `(n, c)` of a set of images after a round, and the Gaussians for the next round."""

    answers: Tensor
    classes: Gaussians


class Transduction(Method[ImageStep], OverSet):
    """The base class of methods that answer a set of images by Gaussians, without training."""

    serves = ("dual encoder", "vision encoder")
    learns_any_step = False  # the answers to a set are of one class each

    @property
    def smallest(self) -> int:
        return int(self.config.neighbours) + 1

    def infer_set(self, step: ImageStep) -> Tensor:
        *_, (answers, _) = self.rounds(step)
        return answers

    @abstractmethod
    def start(self, step: ImageStep) -> Gaussians:
        """Return the Gaussians of the classes at the start."""

    @abstractmethod
    def fitted(self, features: Tensor, weights: Tensor, start: Gaussians) -> Gaussians:
        """Return Gaussians for features `(n, e)` of the images and their probabilities `(n, c)` of the classes."""

    def rounds(self, step: ImageStep) -> Iterator[Round]:
        """Yield the rounds in which a set is answered; the last answers by the last Gaussians and fits none."""
        config, features, prior = self.config, step.features, step.logits.log_softmax(-1)
        neighbours = Neighbours.of(features, config.neighbours)
        weight = config.neighbour_weight * TEMPERATURE / (2 * config.neighbours)
        answers, start = prior, self.start(step)
        classes = start
        for number in range(config.rounds + 1):
            density = classes.log_density(features)
            for _ in range(PASSES):
                near = weight * neighbours.sums(answers.exp())
                answers = F.log_softmax(prior + (density + near) / TEMPERATURE, dim=-1)
            classes = self.fitted(features, answers.exp(), start) if number < config.rounds else classes
            yield Round(answers, classes)


def doubt_of_absent_classes(logits: Tensor) -> str:
    """Return that most classes seem to be absent from a set of images with logits `(n, c)`, or "" if they do not."""
    shares = logits.softmax(-1).mean(0)
    apparent, classes = float(torch.special.entr(shares).sum().exp()), logits.shape[1]
    if apparent >= classes / 2:
        return ""
    return f"about {apparent:.0f} of {classes} classes appear in the images, but each is expected to"
