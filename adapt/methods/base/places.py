"""The blocks of a tower, and the linear maps inside them, that a method changes, as its settings select them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from torch import nn

from adapt.backbones.base import Backbone
from adapt.backbones.tower import Projection, Tower
from adapt.common.errors import AdaptError
from adapt.methods.base.method import Method
from adapt.methods.base.traits import InsideBlocks


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


Place = tuple[str, int, str]  # tower, block, projection
Letter = Literal["q", "k", "v", "out", "fc1", "fc2", "gate", "up", "down"]
Projections = tuple[Letter, ...] | Literal["all"]


def places(method: Method, backbone: Backbone) -> Iterator[tuple[Place, Projection]]:
    """Yield each place that the settings `towers`, `blocks` and `projections` select, with the frozen projection.

    Raises AdaptError for blocks and projections that a tower does not have.
    """
    assert isinstance(method, InsideBlocks)
    for name in method.config.towers:
        tower = backbone.tower(name)
        first, stop = method.config.blocks or (0, len(tower.blocks))
        if not 0 <= first < stop <= len(tower.blocks):
            raise AdaptError(
                f"{method.name}: blocks are {first} to {stop}, but the {name} tower has {len(tower.blocks)} blocks: "
                "give the index of the first block and the index after the last block"
            )
        letters = tower.projections if method.config.projections == "all" else method.config.projections
        for letter in letters:
            if letter not in tower.projections:
                raise AdaptError(
                    f"{method.name}: projections has {letter}; expected names in {', '.join(tower.projections)} for "
                    f"the {name} tower"
                )
        for index, block in method.present(tower):
            if first <= index < stop:
                yield from (((name, index, letter), block.projections[letter]) for letter in letters)


def owner_of(method: nn.Module, path: Sequence[str], made: Callable[[], nn.Module] = nn.Module) -> Any:
    """Return the submodule of `method` at `path`, a list of names, after adding those that are not there by `made`."""
    owner = method
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, made())
        owner = owner.get_submodule(part)
    return owner


def check_mergeable(projection: Projection, method: str) -> None:
    """Raise AdaptError if a changed weight cannot replace that of `projection`, which is quantised or interleaved."""
    if projection.quantized:
        raise AdaptError(f"{method} cannot be merged into quantised weights: load the backbone without quantize")
    if not projection.is_view:
        raise AdaptError(
            f"{method} cannot be merged into weights interleaved by heads: keep the {method} as an adapter"
        )
