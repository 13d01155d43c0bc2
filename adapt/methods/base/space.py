"""Where features lie: those of two backbones are compared in one space only."""

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
    """That of a dual encoder, which another one with other weights, or which reads images otherwise, does not share."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    """Its name; "" where it has none."""
    fingerprint: str
    reading: str
    """How inputs are prepared for it, as JSON."""
    size: int = Field(ge=1)
    """Values of a feature."""

    @classmethod
    def of(cls, backbone: DualEncoder) -> Space:
        """The space that `backbone` encodes into."""
        return cls(
            backbone=backbone.name or "",
            fingerprint=backbone.fingerprint.short(),
            reading=plain.dump(backbone.turning(False).reading()),  # a photograph turned lies in the same space
            size=backbone.embed_dim,
        )


class Projects(Trait):
    """Features of both towers are projected before they are compared, perhaps into the space of another backbone."""

    @property
    @abstractmethod
    def space(self) -> Space | None:
        """The other backbone's space; None for one of the method's own."""

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Return features `(..., e)` of either tower as they are compared, `(..., d)`. They get unit length again."""


def space_of(method: Method) -> Space | None:
    """Return the other backbone's space in which a method compares features; None where there is none."""
    projects = trait(method, Projects)
    return None if projects is None else projects.space
