"""Classification by description: how well an image matches short phrases about a class, which say why.

Paper: Menon and Vondrick, Visual Classification via Description from Large Language Models, ICLR 2023.
Reference: classify_by_description_release `d1a3d89`, `load.py`, `loading_helpers.py`, `main.py`.
Deviations:
* Descriptors are those of the class that they name; the reference takes the file's order for that of the labels.
* Logits are the scores times the backbone's scale; the reference leaves them as they are, which ranks alike.

`random_words` are our reading of the control of Roth et al., Waffling Around for Performance, ICCV 2023 (WaffleCLIP):
each class keeps as many descriptors, and those are random letters. Theirs are random words of a list as well.
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
from adapt.data.readers.descriptors_file import read_descriptors
from adapt.errors import AdaptError, nearest
from adapt.methods.base import ImageStep, Method, MethodConfig
from adapt.methods.base.traits import AveragesPrompts, ChecksAdapter, Explains
from adapt.prompts import Prompt, of_text, readable

logger = logging.getLogger("adapt")
NAME, DESCRIPTOR = "{name}", "{descriptor}"
Table = dict[str, tuple[str, ...]]  # descriptors by class


def _described(table: Table | str) -> Table | str:
    if not table:
        raise ValueError("there is no descriptor: give a table of them, or the name of a file that has one")
    for name, phrases in {} if isinstance(table, str) else table.items():
        if not all(phrase.strip() for phrase in phrases):
            raise ValueError(f"a descriptor of {name!r} is empty: take it out, or write one")
    return table


def _places(template: str) -> str:
    if DESCRIPTOR not in template:
        raise ValueError(f"a template must contain {DESCRIPTOR} where the descriptor goes")
    return template


class DescriptionsConfig(MethodConfig):
    descriptors: Annotated[Table | str, AfterValidator(_described)]
    """Phrases by class, or where they are: a .json {class: [descriptor, ...]}, a .csv (class,descriptor), or emoji, the
    bundled ones. What is built has the phrases themselves, and so has its adapter."""
    score: Literal["mean", "max"] = "mean"
    """What a class's score is: the mean of the cosines with its descriptors, or the largest of them."""
    template: Annotated[str, AfterValidator(_places)] = "{name}, {descriptor}"
    """The text of a descriptor, {descriptor} being its sentence, such as "which has a long tail"."""
    sentences: bool = True
    """Whether {descriptor} is a sentence; else the phrase as it is written, such as "a long tail"."""
    random_words: int | None = Field(default=None, ge=0)
    """A seed of random words in place of the descriptors: the control that tells whether their meaning matters."""


class Descriptions(Method[ImageStep], Explains, AveragesPrompts, ChecksAdapter):
    """`Descriptions(descriptors={"cat": ["whiskers", "a long tail"], ...})`, or a file's name. Nothing trains."""

    name = "descriptions"
    title = "Classification by description (Menon and Vondrick, ICLR 2023)"
    Config = DescriptionsConfig
    prompt_average = "mean"
    example = {"descriptors": "emoji"}

    def check_settings(self) -> None:
        if isinstance(self.config.descriptors, str):
            raise AdaptError("the adapter names a file of descriptors, where it has to hold them: it is damaged")

    def build(self, backbone: DualEncoder, class_names: Sequence[str]) -> None:  # type: ignore[override]
        given = self.config.descriptors
        if isinstance(given, str):
            self.config = self.config.model_copy(update={"descriptors": _read(given)})
        for name in class_names:
            if self.descriptors(name) == ("",):
                logger.warning("there is no descriptor of %r: as published, its text ends in 'which has '", name)

    def descriptors(self, class_name: str) -> Sequence[str]:
        table: Table = self.config.descriptors
        if class_name not in table:
            raise AdaptError(
                f"descriptions: there is no descriptor of the class {class_name!r}; {nearest(class_name, table)}. Add "
                "it to method.descriptors, by its name in the data"
            )
        own = table[class_name] or ("",)  # as published: "which has " alone
        seed = self.config.random_words
        return own if seed is None else [_random(seed, number) for number in range(len(own))]

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        template = self.config.template.replace(NAME, readable(class_name))
        phrases = self.descriptors(class_name)
        said = map(sentence, phrases) if self.config.sentences else phrases
        return [of_text(tokenizer, template.replace(DESCRIPTOR, each)) for each in said]

    def logits(self, step: ImageStep) -> Tensor:
        if self.config.score == "mean":
            return super().logits(step)
        features = step.prompt_features
        logits = step.cosine_logits(torch.cat(features)).split([len(own) for own in features], dim=-1)
        return torch.stack([own.max(-1).values for own in logits], dim=-1)


def _read(source: str) -> Table:
    try:
        return read_descriptors(source)
    except AdaptError as error:
        raise AdaptError(f"{error} method.descriptors says which file it is.") from error


def sentence(descriptor: str) -> str:
    """A descriptor as part of a sentence about a class, by the reference's rules of its first letters."""
    if descriptor.startswith(("a", "used")):
        return f"which is {descriptor}"
    if descriptor.startswith(("has", "often", "typically", "may", "can")):
        return f"which {descriptor}"
    return f"which has {descriptor}"


def _random(seed: int, number: int) -> str:
    """The random descriptor of this number, the same one for all classes: two words of 3 to 8 letters."""
    stream = Random(f"{seed}/{number}")
    return " ".join("".join(stream.choices(ascii_lowercase, k=stream.randint(3, 8))) for _ in range(2))
