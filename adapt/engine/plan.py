"""The edits of one tower for one call, checked and sorted by the place in the tower where they act."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from adapt.backbones.tower import NORMS, Tower
from adapt.common.errors import AdaptError, nearest
from adapt.edits import After, Attention, Bypass, Edit, LowRank, Outputs, Parallel, Parameters, Replace, Tokens
from adapt.prompts import Prompt

_TAKES_TOKENS = ("text", "vision", "decoder")


@dataclass
class Plan:
    """The edits of a tower in one call (learned tokens, replaced or added modules), sorted by kind and block."""

    entering: Tokens | None = None
    overwriting: dict[int, Tokens] = field(default_factory=dict)
    replaced: dict[int, dict[str, nn.Module]] = field(default_factory=dict)
    attention: dict[int, Attention] = field(default_factory=dict)
    parallel: dict[int, dict[str, Parallel]] = field(default_factory=dict)
    bypassed: dict[int, nn.Module] = field(default_factory=dict)
    low_rank: dict[int, dict[str, LowRank]] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    outer: dict[str, nn.Module] = field(default_factory=dict)  # in place of the tower's own norms and projection
    after: nn.Module | None = None  # between the last block and the final norm
    outputs: Callable[[Tensor], None] | None = None  # takes the outputs of the learned tokens

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All modules that the edits add to the tower: replacements, parallel branches, bypasses and the one after."""
        yield from (*self.bypassed.values(), *self.outer.values())
        if self.after is not None:
            yield self.after
        for modules in self.replaced.values():
            yield from modules.values()
        for edits in self.parallel.values():
            yield from (edit.module for edit in edits.values())

    @property
    def images(self) -> int | None:
        """The number of images that have separate learned tokens; None if all images share the tokens."""
        return len(self.entering.values) if self.entering is not None and self.entering.per_image else None

    @property
    def learned(self) -> int:
        """The number of learned tokens in the tower, from where they enter on."""
        return 0 if self.entering is None else self.entering.values.shape[-2]

    def entering_at(self, block: int | None) -> Tokens | None:
        """Return the learned tokens that enter at the input of `block`, or of the tower if None; None without any."""
        return self.entering if self.entering is not None and self.entering.block == block else None

    def with_slots(self, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
        """Return `prompts` with slots for learned tokens, which the plan adds if these tokens enter at a block."""
        if self.entering is None or self.entering.block is None:
            return prompts
        return [prompt.with_slots(self.learned) for prompt in prompts]

    @property
    def prefix_per_class(self) -> bool:
        """Whether learned tokens differ between classes, by their values or because they attend to the class name."""
        tokens = [self.entering, *self.overwriting.values()]
        return any(each is not None and each.per_class for each in tokens) or any(
            edit.names_seen for edit in self.attention.values()
        )


def plan(tower: Tower | None, edits: Sequence[Edit]) -> Plan:
    """Sort the `edits` of `tower` into a `Plan`; `tower` may be None only if there are no edits.

    Raises AdaptError if an edit names a block, projection or site (a branch of a block: attn, mlp) that the tower does
    not have, or if this kind of tower does not support the edit. Also raises AdaptError if two edits change the same
    layer or block input, or if an edit changes learned tokens in a tower without learned tokens at its input.
    """
    sorted_out = Plan()
    for edit in edits:
        assert tower is not None  # methods get it from `Backbone.tower`, which raises
        place = _place(tower, edit)
        if isinstance(edit, Replace):
            within = sorted_out.outer if edit.block is None else sorted_out.replaced.setdefault(edit.block, {})
            _claim(within, edit.part, edit.module, place)
        elif isinstance(edit, Attention):
            _claim(sorted_out.attention, edit.block, edit, place)
        elif isinstance(edit, Parallel):
            _claim(sorted_out.parallel.setdefault(edit.block, {}), edit.site, edit, place)
        elif isinstance(edit, LowRank):
            _claim(sorted_out.low_rank.setdefault(edit.block, {}), edit.site, edit, place)
        elif isinstance(edit, Bypass):
            _claim(sorted_out.bypassed, edit.block, edit.module, place)
        elif isinstance(edit, After):
            if sorted_out.after is not None:
                raise AdaptError(f"two edits add a module after the blocks of {place}: keep one")
            sorted_out.after = edit.module
        elif isinstance(edit, Parameters):
            for name, value in edit.values.items():
                _claim(sorted_out.parameters, name, value, f"{name} of {place}")
        elif isinstance(edit, Outputs):
            sorted_out.outputs = edit.take
        elif edit.block is not None and not edit.enters:
            _claim(sorted_out.overwriting, edit.block, edit, place)
        elif sorted_out.entering is not None:
            raise AdaptError(f"two edits add learned tokens to the {tower.name} tower: keep one")
        else:
            sorted_out.entering = edit
    _check_entered(sorted_out)
    inside = set[int]().union(sorted_out.replaced, sorted_out.attention, sorted_out.parallel, sorted_out.low_rank)
    if wasted := sorted(sorted_out.bypassed.keys() & inside):
        raise AdaptError(f"block {wasted[0]} is bypassed by one edit and changed by another: remove one edit")
    for edit in sorted_out.overwriting.values():
        entering: Tokens = sorted_out.entering  # type: ignore[assignment]
        shape, entered = edit.values.shape, entering.values.shape
        if shape[-2:] != entered[-2:] or (edit.per_image and not entering.per_image):
            raise AdaptError(
                f"learned tokens {tuple(shape)} at block {edit.block} do not fit the learned tokens {tuple(entered)} "
                "at the input of the tower"
            )
    return sorted_out


def _check_entered(planned: Plan) -> None:
    """Raise AdaptError if an edit changes or reads learned tokens where the tower has none."""
    if planned.entering is None:
        if planned.overwriting or planned.attention or planned.outputs is not None:
            raise AdaptError(
                "an edit changes or reads learned tokens inside a tower, but no edit adds learned tokens at its input "
                "or at a block: add Tokens"
            )
    elif (first := planned.entering.block) is not None:
        early = [block for block in planned.attention if block < first]
        early += [block for block in planned.overwriting if block <= first]
        if early:
            raise AdaptError(
                f"an edit changes learned tokens at block {early[0]}, but they enter at the input of block {first}: "
                f"change blocks after {first}"
            )


def _place(tower: Tower, edit: Edit) -> str:
    """Return a text that names where `edit` acts. Raises AdaptError if the tower does not support the edit."""
    kind, where = type(edit).__name__, f"the {tower.name} tower"
    if isinstance(edit, Tokens | Attention) and tower.name not in _TAKES_TOKENS:
        raise AdaptError(f"learned tokens cannot be added to {where}; expected one of: {', '.join(_TAKES_TOKENS)}")
    if isinstance(edit, Tokens | Attention):
        tower.check_takes_tokens()
    if (
        isinstance(edit, Tokens)
        and edit.enters
        and not (tower.name == "vision" or (tower.form.causal and tower.form.pooling == "end"))
    ):
        raise AdaptError(
            f"learned tokens cannot enter at a block of {where}; expected a vision tower, or a causal text tower that "
            "pools at the end-of-text token: use another method, such as maple"
        )
    if isinstance(edit, Outputs) and (tower.name != "vision" or "final_norm" not in tower.parts):
        raise AdaptError(f"outputs of learned tokens require a vision tower with a final norm, which {where} is not")
    if isinstance(edit, LowRank) and tower.name != "decoder":
        raise AdaptError(f"low-rank updates of each image require a decoder, and cannot be applied to {where}")
    if isinstance(edit, After) and (tower.name != "vision" or tower.form.pooling == "none"):
        raise AdaptError(f"After requires a vision tower that pools its tokens, and cannot be applied to {where}")
    if edit.block is None:
        return _named(kind, edit.part, tower.parts, where) if isinstance(edit, Replace) else where
    if not 0 <= edit.block < len(tower.blocks):
        raise AdaptError(
            f"{kind} refers to block {edit.block} of {where}, which has blocks 0 to {len(tower.blocks) - 1}"
        )
    block = tower.blocks[edit.block]
    inside = f"block {edit.block} of {where}"
    if isinstance(edit, Replace):
        return _named(kind, edit.part, (*block.projections, *NORMS), inside)
    if isinstance(edit, Parallel):
        place = _named(kind, edit.site, (*block.sites, "block"), inside)
        if edit.normed and block.norm_of(edit.site) is None:
            raise AdaptError(f"Parallel with normed=True needs a norm before {place}: set normed=False")
        return place
    if isinstance(edit, LowRank):
        return _named(kind, edit.site, (*block.projections, *(("mlp",) if block.mlp is not None else ())), inside)
    return inside


def _named(kind: str, part: str, parts: Collection[str], where: str) -> str:
    if part not in parts:
        raise AdaptError(f"{kind} refers to {part!r}, which {where} does not have; {nearest(part, parts)}")
    return f"{part} of {where}"


def _claim(places: dict, key: object, edit: object, place: str) -> None:
    if key in places:
        raise AdaptError(f"two edits of the same kind change {place}: remove one of the edits")
    places[key] = edit
