"""Local features of an image (one per patch of a CLIP), by attention of values to values in the frozen blocks.

In the last blocks of a CLIP, attention mixes information from the entire image into every patch. A second stream of
tokens avoids this. It gets its values from the ordinary stream, attends by the similarity of the values, so that
patches only mix with similar ones, and skips the MLPs (AnoVL, arXiv 2308.15939).
"""

from __future__ import annotations

from functools import partial
from math import isqrt

from torch import Tensor

from adapt.backbones.base import ImageEncoder
from adapt.common.errors import AdaptError
from adapt.engine import vision
from adapt.engine.blocks import run_block
from adapt.engine.frozen import frozen
from adapt.engine.plan import Plan


def local_features(backbone: ImageEncoder, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return patch features `(b, rows, columns, e)` and image features `(b, e)` of images `(b, 3, h, w)`.

    Both kinds of features are before normalisation and come from one forward pass. The module docstring defines patch
    features. Raises AdaptError for a vision tower without a class token, or with blocks of another form than CLIP's.
    """
    reason = vision.reason_against(backbone)
    tower, nothing = backbone.towers.get("vision"), Plan()
    if reason is None and tower is not None and tower.form.registers:
        reason = "it has registers between the class token and the patches"
    if reason is None and tower is not None and tower.form.pooling != "class":
        reason = f"it is read at {tower.form.pooling!r}, not at a class token in front of the patches"
    if reason is not None or tower is None:
        raise AdaptError(f"{backbone.describe()} has no patch features: {reason}. Use a CLIP with a ViT")
    assert tower.vision is not None  # or reason_against had refused
    assert tower.final_norm is not None
    attend = partial(vision.attend, tower.heads, None, 0)
    with frozen(backbone.model):
        stream = local = vision.entered(tower, nothing, images.to(backbone.dtype))
        for index, block in enumerate(tower.blocks):
            values = block.projections["v"](block.norm1(stream))
            local = local + block.scale1(block.projections["out"](attend(values, values, values)))
            stream = run_block(block, index, nothing, stream, attend)
        features = tower.vision.project(tower.final_norm(local[:, 1:]))
        image_features = vision.pooled(tower, nothing, stream)
    rows = isqrt(features.shape[1] * images.shape[-2] // images.shape[-1])
    return features.unflatten(1, (rows, -1)), image_features
