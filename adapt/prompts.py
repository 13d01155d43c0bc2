"""Prompts as data: the ids of one text, some of which are places for learned tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapt.backbones.tokenizer import TextTokenizer

PLACEHOLDER = "X"  # CoOp's; its embedding is overwritten, its id only keeps the place


@dataclass(frozen=True)
class Prompt:
    """One tokenised text, from the start token to the end token, unpadded.

    `slots[i]` is the index of the learned token that stands at position `i`, or None where the text itself does.
    """

    ids: tuple[int, ...]
    slots: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.slots):
            raise ValueError(f"{len(self.ids)} ids but {len(self.slots)} slots")


def readable(class_name: str) -> str:
    """A class name as it stands in a prompt: underscores read as spaces (CoOp)."""
    return class_name.replace("_", " ")


def from_template(tokenizer: TextTokenizer, template: str, class_name: str) -> Prompt:
    """The prompt of a hand-written template with `{}` for the class name."""
    ids = tokenizer.row(template.replace("{}", readable(class_name)))
    return Prompt(tuple(ids), (None,) * len(ids))


def shared_prefix(prompts: Sequence[Prompt], per_class: bool) -> int:
    """How many leading positions all prompts share, leaving at least the end token of each to itself.

    With `per_class` tokens a learned token ends the prefix: its value differs though its slot does not.
    """
    length = 0
    for column in zip(*(zip(prompt.ids, prompt.slots) for prompt in prompts)):
        if any(entry != column[0] for entry in column) or (per_class and column[0][1] is not None):
            break
        length += 1
    return min(length, min(len(prompt.ids) for prompt in prompts) - 1)
