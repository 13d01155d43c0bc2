"""The family of two encoders of images as one backbone, named as FIRST&SECOND."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from adapt.backbones import families
from adapt.backbones.families.base import Family
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone, ImageEncoder


class JoinedEncoders(Family):
    name = "joined_encoders"
    forms: ClassVar = {
        "FIRST&SECOND": "the features of two models side by side, in quotes, e.g. 'mini-clip&hf:facebook/dinov2-small'",
    }

    def claims(self, spec: str) -> bool:
        first, _, second = spec.partition("&")
        _, _, after_prefix = spec.partition(":")
        of_a_folder = any(path and Path(path).is_dir() for path in (spec, after_prefix))
        return bool(first and second) and "+" not in spec and not of_a_folder

    def reads_texts_of(self, spec: str) -> bool:
        first, _, _ = spec.partition("&")
        return families.of(first).reads_texts_of(first)

    def load(self, spec: str, device: torch.device) -> Backbone:
        from adapt.backbones.joined import joined

        return joined(*two_encoders(spec, device), spec)


def two_encoders(spec: str, device: torch.device) -> tuple[ImageEncoder, ImageEncoder]:
    """Return the encoders of images named FIRST&SECOND. Raises AdaptError for other models, and for more than two."""
    from adapt.backbones.base import ImageEncoder
    from adapt.backbones.load import of_one_model

    first, _, second = spec.partition("&")
    if "&" in second:
        raise AdaptError(f"{spec} names more than two models: expected FIRST&SECOND")
    encoders = []
    for name in (first, second):
        encoder = of_one_model(name, device)
        if not isinstance(encoder, ImageEncoder) or encoder.as_decoded:
            what = "prepares images by itself" if encoder.as_decoded else f"is a {encoder.kind}"
            raise AdaptError(f"{name} {what}; expected two encoders of the same pixels around the &")
        encoders.append(encoder)
    return encoders[0], encoders[1]
