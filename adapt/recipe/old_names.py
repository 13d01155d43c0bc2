"""Names that recipes had while there was one for each data set. This module goes, whole, with the next release.

`METHOD/SET` is `METHOD` with `--data SET` now, and `METHOD/folder` is `METHOD` with `--data` and the folder.
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass

from adapt.data.readers import published

logger = logging.getLogger("adapt")

_OF_ALL = ("cocoop", "coop", "ivlp", "lora", "maple")  # methods that had a recipe for each published set
_OF_FOLDERS = ("cocoop", "coop", "lora", "maple")
_OF_EMOJI = (*_OF_ALL, "das", "dpl", "kgcoop", "linear_probe", "tip_adapter", "zero_shot")
PHOTOS = "photos"  # the folder that recipes for a user's own images named, to be replaced


@dataclass(frozen=True)
class Old:
    """What an old name stands for; `data` is None where the recipe itself says on what."""

    recipe: str
    data: str | None = None


_OTHERS = {
    "coop/emoji_base_to_new": Old("coop/base_to_new", "emoji"),
    "maple/imagenet_transfer": Old("maple/cross_dataset", "imagenet"),
    "das/emoji_questions": Old("das/few_shot", "emoji-questions@fluent-3d"),
    "projector/emoji_questions": Old("projector/questions"),
    "vlora/emoji_questions": Old("vlora/questions"),
    "tip_adapter/emoji_trained": Old("tip_adapter/trained", "emoji"),
    "compose/das_lora_emoji": Old("compose/das_lora"),
    "compose/vlora_lora_emoji_questions": Old("compose/vlora_lora"),
}


def find(name: str) -> Old | None:
    """What the old name of a recipe stands for; None for every other name."""
    method, _, data = name.partition("/")
    if data == "folder" and method in _OF_FOLDERS:
        return Old(f"{method}/few_shot", PHOTOS)
    if (data == "emoji" and method in _OF_EMOJI) or (data in published.trained() and method in _OF_ALL):
        return Old(f"{method}/few_shot", data)
    return _OTHERS.get(name)


def note(name: str, old: Old, protocol: str | None) -> None:
    """Tells of the new command."""
    command = protocol.replace("_", "-") if protocol else "train"
    logger.warning(
        "the recipe %s is called otherwise now, and its old name goes with the next release: adapt %s %s",
        name,
        command,
        arguments(old),
    )


def arguments(old: Old) -> str:
    """The new words of a command that stand for an old name."""
    method, _, protocol = old.recipe.partition("/")
    recipe = method if protocol == "few_shot" else old.recipe
    return recipe if old.data is None else f"{recipe} --data {shlex.quote(old.data)}"
