"""The edits of one call of one tower, sorted by where they act."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from adapt.edits import Attention, Bypass, Edit, LowRank, Parallel, Replace, Tokens
from adapt.errors import AdaptError


@dataclass
class Plan:
    """Learned tokens that enter and those that overwrite them; what stands for, or beside, the parts of each block."""

    entering: Tokens | None = None
    overwriting: dict[int, Tokens] = field(default_factory=dict)
    replaced: dict[int, dict[str, nn.Module]] = field(default_factory=dict)
    attention: dict[int, Attention] = field(default_factory=dict)
    parallel: dict[int, dict[str, nn.Module]] = field(default_factory=dict)
    bypassed: dict[int, nn.Module] = field(default_factory=dict)
    low_rank: dict[int, dict[str, LowRank]] = field(default_factory=dict)

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All modules that compute something."""
        yield from self.bypassed.values()
        for by_place in (*self.replaced.values(), *self.parallel.values()):
            yield from by_place.values()

    @property
    def images(self) -> int | None:
        """How many images have learned tokens of their own; None where all share them."""
        return len(self.entering.values) if self.entering is not None and self.entering.per_image else None

    @property
    def prefix_per_class(self) -> bool:
        """Whether learned tokens come to differ from class to class, by their values or by what they look at."""
        tokens = [self.entering, *self.overwriting.values()]
        return any(each is not None and each.per_class for each in tokens) or any(
            edit.names_seen for edit in self.attention.values()
        )


def plan(edits: Sequence[Edit]) -> Plan:
    """Raises AdaptError where two edits claim one place, or tokens overwrite where none have entered."""
    sorted_out = Plan()
    for edit in edits:
        if isinstance(edit, Replace):
            _claim(sorted_out.replaced.setdefault(edit.block, {}), edit.projection, edit.module)
        elif isinstance(edit, Attention):
            _claim(sorted_out.attention, edit.block, edit)
        elif isinstance(edit, Parallel):
            _claim(sorted_out.parallel.setdefault(edit.block, {}), edit.site, edit.module)
        elif isinstance(edit, LowRank):
            _claim(sorted_out.low_rank.setdefault(edit.block, {}), edit.site, edit)
        elif isinstance(edit, Bypass):
            _claim(sorted_out.bypassed, edit.block, edit.module)
        elif edit.block is not None:
            _claim(sorted_out.overwriting, edit.block, edit)
        elif sorted_out.entering is not None:
            raise AdaptError("two edits want their learned tokens to enter one tower")
        else:
            sorted_out.entering = edit
    if sorted_out.entering is None and (sorted_out.overwriting or sorted_out.attention):
        raise AdaptError("an edit changes learned tokens inside a tower that none have entered")
    inside = set[int]().union(sorted_out.replaced, sorted_out.attention, sorted_out.parallel, sorted_out.low_rank)
    if wasted := sorted(sorted_out.bypassed.keys() & inside):
        raise AdaptError(f"block {wasted[0]} is skipped by one edit and changed inside by another")
    for edit in sorted_out.overwriting.values():
        _check_shape(edit, sorted_out.entering)  # type: ignore[arg-type]
    return sorted_out


def _check_shape(edit: Tokens, entering: Tokens) -> None:
    shape, entered = edit.values.shape, entering.values.shape
    if shape[-2:] != entered[-2:] or (edit.per_image and not entering.per_image):
        raise AdaptError(
            f"learned tokens {tuple(shape)} at block {edit.block} do not fit those that entered, {tuple(entered)}"
        )


def _claim(places: dict, place: object, edit: object) -> None:
    if place in places:
        raise AdaptError(f"two edits of one kind want the same place of a block: {place!r}")
    places[place] = edit
