"""Feature spaces of backbones: features of two backbones can be compared only within one space."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from adapt.backbones.base import ImageEncoder
from adapt.common import plain
from adapt.methods.base.traits import Projects, trait

if TYPE_CHECKING:
    from adapt.methods.base.method import Method


class Space(BaseModel):
    """The identity of a dual encoder's feature space, as given by the encoder's weights and image preprocessing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str
    """The backbone's name, or "" if it has none."""
    fingerprint: str
    reading: str
    """The preprocessing of its inputs, as JSON."""
    size: int = Field(ge=1)
    """The number of values in a feature."""

    @classmethod
    def of(cls, backbone: ImageEncoder) -> Space:
        """Return the feature space of `backbone`."""
        return cls(
            backbone=backbone.name or "",
            fingerprint=backbone.fingerprint.short(),
            reading=plain.dump(backbone.turning(False).reading()),  # turned images lie in the same space
            size=backbone.embed_dim,
        )


def space_of(method: Method) -> Space | None:
    """Return the feature space of another backbone into which `method` projects features; None for any other method."""
    projects = trait(method, Projects)
    return None if projects is None else projects.space
