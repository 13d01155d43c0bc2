"""Classification by description: an image is compared with short phrases about each class, which explain the answer.

Paper: Menon and Vondrick, Visual Classification via Description from Large Language Models, ICLR 2023.
Reference: classify_by_description_release `d1a3d89`, `load.py`, `loading_helpers.py`, `main.py`.
Deviations:
* Descriptors are matched to classes by name; the reference assumes that the file lists the classes in label order.
* Logits are the scores times the backbone's scale; the reference does not scale them, which gives the same ranking.

`random_words` is our reading of the control of Roth et al., Waffling Around for Performance, ICCV 2023 (WaffleCLIP):
each class keeps its number of descriptors, and each becomes random letters. Theirs also uses random words of a list.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from random import Random
from string import ascii_lowercase
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from adapt.backbones.base import DualEncoder
from adapt.backbones.tokenizer import TextTokenizer
from adapt.common.errors import AdaptError, nearest
from adapt.methods.base import ImageStep, Method, MethodConfig
from adapt.methods.base.descriptors import Descriptors, HoldsDescriptors, Table
from adapt.methods.base.traits import AveragesPrompts, Explains
from adapt.prompts import Prompt, of_text, readable

logger = logging.getLogger("adapt")
NAME, DESCRIPTOR = "{name}", "{descriptor}"


def _places(template: str) -> str:
    if DESCRIPTOR not in template:
        raise ValueError(f"a template must contain {DESCRIPTOR} where the descriptor goes")
    return template


class DescriptionsConfig(MethodConfig):
    descriptors: Descriptors
    """Phrases by class, or their file: a .json {class: [descriptor, ...]}, a .csv (class,descriptor), or emoji, the
    bundled table. A built method, and its adapter, hold the phrases themselves."""
    score: Literal["mean", "max"] = "mean"
    """The score of a class: the mean of the cosines with its descriptors, or the largest."""
    template: Annotated[str, AfterValidator(_places)] = "{name}, {descriptor}"
    """The text of a prompt; {descriptor} becomes a clause, such as "which has a long tail"."""
    sentences: bool = True
    """Whether {descriptor} becomes a clause, or stays the phrase as written, such as "a long tail"."""
    random_words: int | None = Field(default=None, ge=0)
    """A seed for random words in place of the descriptors, a control for whether their meaning matters."""


class Descriptions(Method[ImageStep], Explains, AveragesPrompts, HoldsDescriptors):
    """A zero-shot classifier by phrases about classes: `Descriptions(descriptors={"cat": ["whiskers", ...], ...})`."""

    name = "descriptions"
    title = "Classification by description (Menon and Vondrick, ICLR 2023)"
    Config = DescriptionsConfig
    prompt_average = "mean"
    example = {"descriptors": "emoji"}

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        self.hold_descriptors()
        for name in class_names:
            if self.descriptors(name) == ("",):
                logger.warning("class %r has no descriptors: as published, its prompt ends in 'which has '", name)

    def descriptors(self, class_name: str) -> Sequence[str]:
        table: Table = self.config.descriptors
        if class_name not in table:
            raise AdaptError(
                f"descriptions: class {class_name!r} has no descriptors; {nearest(class_name, table)}. Add the "
                "descriptors to method.descriptors, under the name of the class in the data"
            )
        own = table[class_name] or ("",)  # as published: only "which has "
        seed = self.config.random_words
        return own if seed is None else [_random(seed, number) for number in range(len(own))]

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        template = self.config.template.replace(NAME, readable(class_name))
        phrases = self.descriptors(class_name)
        texts = map(sentence, phrases) if self.config.sentences else phrases
        return [of_text(tokenizer, template.replace(DESCRIPTOR, text)) for text in texts]

    def logits(self, step: ImageStep) -> Tensor:
        if self.config.score == "mean":
            return super().logits(step)
        features = step.prompt_features
        logits = step.cosine_logits(torch.cat(features)).split([len(own) for own in features], dim=-1)
        return torch.stack([own.max(-1).values for own in logits], dim=-1)


def sentence(descriptor: str) -> str:
    """Return a descriptor (a phrase) as a clause, such as "which has whiskers", with a suitable verb."""
    if descriptor.startswith(("a", "used")):
        return f"which is {descriptor}"
    if descriptor.startswith(("has", "often", "typically", "may", "can")):
        return f"which {descriptor}"
    return f"which has {descriptor}"


def _random(seed: int, number: int) -> str:
    """Return two random words of 3 to 8 letters as descriptor `number`, which is the same for all classes."""
    stream = Random(f"{seed}/{number}")
    return " ".join("".join(stream.choices(ascii_lowercase, k=stream.randint(3, 8))) for _ in range(2))
