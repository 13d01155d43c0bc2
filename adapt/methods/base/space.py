"""Where features lie: those of two backbones are compared in one space only."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from adapt import plain
from adapt.backbones.base import DualEncoder


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
