"""Feature spaces: features of two backbones can be compared only within one space."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from adapt import plain
from adapt.backbones.base import DualEncoder
from adapt.methods.base.traits import Trait, trait

if TYPE_CHECKING:
    from adapt.methods.base.method import Method


class Space(BaseModel):
    """The feature space of a dual encoder, which depends on its weights and on how it reads images."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    """The backbone's name, or "" if it has none."""
    fingerprint: str
    reading: str
    """The preprocessing of its inputs, as JSON."""
    size: int = Field(ge=1)
    """The number of values in a feature."""

    @classmethod
    def of(cls, backbone: DualEncoder) -> Space:
        """Return the space of the features of `backbone`."""
        return cls(
            backbone=backbone.name or "",
            fingerprint=backbone.fingerprint.short(),
            reading=plain.dump(backbone.turning(False).reading()),  # a photograph turned lies in the same space
            size=backbone.embed_dim,
        )


class Projects(Trait):
    """Features of both towers are projected before they are compared, perhaps into another backbone's feature space."""

    @property
    @abstractmethod
    def space(self) -> Space | None:
        """The other backbone's feature space, or None if the method projects into a space of its own."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Return projections `(..., d)` of features `(..., e)` of either tower, which the caller normalises."""


def space_of(method: Method) -> Space | None:
    """Return the other backbone's feature space, if the method compares features in it, or else None."""
    projects = trait(method, Projects)
    return None if projects is None else projects.space
