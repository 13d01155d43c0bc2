"""The depth of a method: the number of blocks of a tower, from the first, that it changes."""

from __future__ import annotations

from collections.abc import Sequence

from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError


def depth_in(towers: Sequence[Tower], depth: int | None, share: float, method: str, field: str) -> int:
    """Return `depth`, or if `depth` is None, the fraction `share` of the number of blocks in the shallowest tower.

    Raises AdaptError if a tower has fewer than `depth` blocks.
    """
    if depth is None:
        depth = max(1, int(share * min(len(tower.blocks) for tower in towers)))
    for tower in towers:
        check_depth(tower, depth, method, field)
    return depth


def check_depth(tower: Tower, depth: int, method: str, field: str) -> None:
    """Raise AdaptError, naming the setting `field` of `method`, if `tower` has fewer than `depth` blocks."""
    blocks = len(tower.blocks)
    if depth > blocks:
        raise AdaptError(
            f"{method}: {field} is {depth}, but the {tower.name} tower has {blocks} blocks: set method.{field} to 1 to "
            f"{blocks}"
        )
