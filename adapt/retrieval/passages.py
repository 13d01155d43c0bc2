"""Passages of a search index before questions, and wrong ones beside the right one in training (RoRA-VLM).

Paper: Qi et al., RoRA-VLM: Robust Retrieval-Augmented Vision Language Models, 2024, arXiv 2410.08876. No code is
published, and this is our reading of the abstract:
* One search by the images finds passages; the paper searches for entities, and with their names for texts.
* The right passage is the nearest one that contains the answer (as in DPR, Karpukhin et al., EMNLP 2020). Wrong ones
  are drawn from its neighbours that do not.
* All tokens of an image are kept; the paper drops those that are unlike the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from adapt.backbones.load import load_backbone
from adapt.chats import Chat
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.progress import Progress, counted
from adapt.common.shown import brief
from adapt.data.decoding.files import parted
from adapt.data.item import Item
from adapt.data.readers import parts
from adapt.data.readers.chats_file import row_of
from adapt.data.readers.folder import IMAGE_SUFFIXES
from adapt.data.split import Split
from adapt.evaluation.free_text import normalised
from adapt.models.image_model import ImageModel
from adapt.models.unadapted import unadapted
from adapt.retrieval.index import Index, index_images, index_texts

MOST = 100  # passages, and nearest entries among which the right one and its neighbours are looked for


class Retriever:
    """Finds passages for conversations in an `index` of texts or pairs, with the index's own backbone for queries.

    Raises AdaptError for an index of an adapter's features or of a backbone without a name, and if an entry is an
    image.
    """

    def __init__(self, index: Index, device: str = "cpu") -> None:
        paths = () if index.header.kind == "texts" else index.entries
        if image := next((each for each in paths if parted(each)[0].lower().endswith(IMAGE_SUFFIXES)), None):
            raise AdaptError(
                f"the index has the entry {brief(image)}, an image; expected passages in words: index a list of texts, "
                "or pairs with the passage in the column entity"
            )
        if not index.header.backbone:
            raise AdaptError("the index does not record its backbone: make it again with `adapt index`")
        model = unadapted(load_backbone(index.header.backbone, device).turning(True), ("object",))
        assert isinstance(model, ImageModel)  # as of every backbone that makes an index
        index.check(model)
        self.index, self.model = index, model

    def nearest(self, chat: Chat, images: Sequence[str], count: int) -> list[int]:
        """Return the `count` entries nearest to the mean feature of a conversation's images, the nearest first.

        A conversation without an image is found by its first question. Raises AdaptError for a broken image, and for a
        question that is too long for the text tower.
        """
        question = next(turn.text for turn in chat.turns if turn.role == "user")
        encoded = index_images(self.model, images) if images else index_texts(self.model, [question])
        _, [places] = self.index.nearest(encoded.features.mean(0, keepdim=True), count)
        return list(map(int, places))

    def before(self, chat: Chat, places: Sequence[int]) -> Chat:
        """Return a conversation with the entries at `places`, numbered, before its first question."""
        lines = [f"{number}. {self.index.entries[place]}" for number, place in enumerate(places, 1)]
        return chat.with_context("Passages", "\n".join(lines))

    def noisy(self, nearest: Sequence[int], answer: str, count: int, right: float, draw: Random) -> list[int]:
        """Return at most `count` entries in random order: wrong ones and, with the probability `right`, the right one.

        The right one is the first of the `nearest` that contains the last answer. If none does, none is returned.
        """

        def contains(place: int) -> bool:
            return f" {normalised(answer)} " in f" {normalised(self.index.entries[place])} "

        if (found := next(filter(contains, nearest), None)) is None:
            return []
        _, [near] = self.index.nearest(self.index.features[found : found + 1], MOST)
        wrong = [place for place in near.tolist() if not contains(place)][: 4 * count]
        places = draw.sample(wrong, min(count, len(wrong)))
        if draw.random() < right:
            places = [found, *places[: count - 1]]
        draw.shuffle(places)
        return places

    def rows(
        self, split: Split, count: int, right: float | None = None, seed: int = 0, progress: Progress | None = None
    ) -> list[JsonObject]:
        """Return conversations or questions with `count` passages each, as rows that `chats_file` reads.

        Passages are the nearest ones or, with `right`, in training conversations whose last answer one of the nearest
        100 entries contains, those that `noisy` draws; the key `source` of a row says which. Raises AdaptError for data
        of other tasks.
        """
        first = next(split.items())
        if "question" not in first.label.columns or len(first.task.chats(first, "")) > 1 or "boxes" in first.task.needs:
            raise AdaptError(f"{split.name} has {split.task.items_are}: give conversations, or questions about images")
        rows, draw = list[JsonObject](), Random(seed)
        asked = [(part, item) for part in parts.NAMES for item in getattr(split, part)]
        for part, item in counted(asked, len(asked), progress):
            chat, noisy = item.task.chat(item, ""), list[int]()
            nearest = self.nearest(chat, item.paths, MOST)
            if right is not None and part == "train":
                noisy = self.noisy(nearest, chat.answer, count, right, draw)
            informed = Item.of(chat=self.before(chat, noisy or nearest[:count]))
            row = row_of(replace(informed, paths=item.paths), part, split.root)
            rows.append(row | {"source": {"drawn": bool(noisy), "k": count, "right": right, "seed": seed}})
        return rows
