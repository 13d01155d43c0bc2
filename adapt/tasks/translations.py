"""Translations: names or sentences that a text tower knows, each with the same in another language."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapt.common.errors import AdaptError
from adapt.data.item import Cell, Item, Label, filled, labels_of, optional
from adapt.tasks.images import Images

if TYPE_CHECKING:
    from adapt.methods.base import Method, Step, Terms


@dataclass(frozen=True)
class Translation(Label):
    """The translation of an item's text, and the name of its language, or "" if no language is named."""

    words: str = ""
    language: str = ""

    @property
    def columns(self) -> dict[str, str]:
        return {"language": self.language}


class Translations(Images):
    """The task of learning languages in the text tower, from texts that it knows and their translations, no images."""

    name = "translations"
    title = noun = items_are = "texts with translations"
    label_type = Translation
    needs = frozenset({"text", "translation"})
    may_have = frozenset({"language"})
    once_an_image = False

    def read(self, cells: Mapping[str, Cell], where: str) -> Label:
        filled(cells, "text", where)
        return Translation(filled(cells, "translation", where), optional(cells, "language"))

    def check_learnt(self, method: Method, items: Sequence[Item]) -> None:
        if method.touches != {"text"}:
            towers = " and ".join(sorted(method.touches))
            raise AdaptError(f"translations teach the text tower, but {method.name} adapts {towers}: set towers=[text]")

    def loss(self, step: Step) -> Terms:
        """Return how far texts and translations, in the method's templates, are from the untouched tower's texts."""
        from adapt.prompts import readable, several

        model: Any = step.model  # of a dual encoder, as the task allows no other
        templates = several(model.method.config.template)

        def prompts(names: Iterable[str]) -> list[str]:
            return [template.replace("{}", readable(name)) for name in names for template in templates]

        translations = prompts(label.words for label in labels_of(step.items, Translation))
        learned = {"translations": translations, "texts": prompts(item.text for item in step.items)}
        taught = model.text_features(learned["texts"]).float()
        return {term: 1 - (model.encode_texts(own).float() * taught).sum(-1).mean() for term, own in learned.items()}
