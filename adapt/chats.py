"""Conversations about images, as data: turns of text and images, without the images themselves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

Role = Literal["system", "user", "assistant"]
IMAGE = None  # the part of a turn where the conversation's next image stands


@dataclass(frozen=True)
class Turn:
    """A turn of a conversation: its role, and its parts in order, which are texts and images (`IMAGE`)."""

    role: Role
    parts: tuple[str | None, ...]
    learned: bool = True
    """Whether training learns this answer; ignored for turns of the user and the system."""

    @property
    def text(self) -> str:
        """The words of the turn, without its images."""
        return "".join(part for part in self.parts if part is not IMAGE)

    @property
    def images(self) -> int:
        """The number of images in the turn."""
        return sum(part is IMAGE for part in self.parts)


@dataclass(frozen=True)
class Chat:
    """A conversation: its turns in order. Its images are given beside it, in the order of the turns' parts."""

    turns: tuple[Turn, ...]

    @classmethod
    def about(cls, question: str, answer: str | None = None, images: int = 1) -> Chat:
        """Return a conversation of one question about `images` images, with its answer if that is given."""
        asked = cls((Turn("user", (*[IMAGE] * images, question)),))
        return asked if answer is None else asked.answered(answer)

    @property
    def images(self) -> int:
        """The number of images in the conversation."""
        return sum(turn.images for turn in self.turns)

    @property
    def answer(self) -> str:
        """The text of the last turn if it is the assistant's, else ""."""
        return self.turns[-1].text if self.turns[-1].role == "assistant" else ""

    @property
    def question(self) -> Chat:
        """The conversation up to its last answer, which is left out."""
        return replace(self, turns=self.turns[:-1]) if self.turns[-1].role == "assistant" else self

    def without_images(self, instead: str | None = None) -> Chat:
        """Return the conversation with the text `instead` in the place of each image, or nothing."""
        turns = []
        for turn in self.turns:
            parts = tuple(instead if part is IMAGE else part for part in turn.parts)
            turns.append(replace(turn, parts=tuple(part for part in parts if part is not None)))
        return replace(self, turns=tuple(turns))

    def asked(self, question: str) -> Chat:
        """Return the conversation with `question` as its next turn."""
        return replace(self, turns=(*self.turns, Turn("user", (question,))))

    def answered(self, answer: str) -> Chat:
        """Return the conversation with `answer` as its next turn."""
        return replace(self, turns=(*self.turns, Turn("assistant", (answer,))))

    def with_context(self, title: str, context: str) -> Chat:
        """Return the conversation with a titled text behind the images that begin its first question.

        If that begins with words, the text comes before everything, as STIC's descriptions (`stic/add_des_to_data.py`).
        """
        place = next(place for place, turn in enumerate(self.turns) if turn.role == "user")
        parts = self.turns[place].parts
        images = next((at for at, part in enumerate(parts) if part is not IMAGE), len(parts))
        text = f"{title}:\n{context}\n\n"
        rest = parts[images:]
        if images and rest and str(rest[0]).startswith("\n"):  # the line break of an image's mark stays with it
            text, rest = f"\n{text}", (str(rest[0])[1:], *rest[1:])
        turn = replace(self.turns[place], parts=(*parts[:images], text, *rest))
        return replace(self, turns=(*self.turns[:place], turn, *self.turns[place + 1 :]))

    def after(self, examples: Iterable[Chat]) -> Chat:
        """Return the conversation after others, whose answers do not count as learned."""
        earlier = [replace(turn, learned=False) for chat in examples for turn in chat.turns]
        return Chat((*earlier, *self.turns))

    def ending(self, answer: str) -> Chat:
        """Return the conversation with `answer` as its next turn, the only one that counts as learned."""
        return Chat((Turn("assistant", (answer,)),)).after([self])

    def messages(self, end: str = "") -> list[dict[str, object]]:
        """Return the conversation in the form that chat templates of transformers read, images without pixels.

        `end` is put behind each answer.
        """
        return [{"role": turn.role, "content": list(_content(turn, end))} for turn in self.turns]


def _content(turn: Turn, end: str) -> Iterator[dict[str, str]]:
    parts = (*turn.parts, end) if end and turn.role == "assistant" else turn.parts
    for is_image, group in groupby(parts, lambda part: part is IMAGE):
        if is_image:
            yield from ({"type": "image"} for _ in group)
        else:
            yield {"type": "text", "text": "".join(part or "" for part in group)}
