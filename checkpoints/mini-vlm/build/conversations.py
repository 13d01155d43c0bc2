"""Conversations for training, without end: about random scenes in the seen styles, and about single drawings.

The scenes are of the kinds of `emoji-chats`, from the drawings of its training part; none of its own scenes is drawn
but by chance. Nothing is in the unseen style, and answers are short.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from PIL import Image

from adapt.chats import Chat
from adapt.data.decoding.files import zip_root
from adapt.data.decoding.images import open_image
from adapt.data.emoji import bundled, chats, questions, scenes
from adapt.data.emoji.scenes import Scene

DESCRIBE, NAME = "describe the picture.", questions.WHAT


@dataclass(frozen=True)
class Drawn:
    """A conversation with what its pictures are made of: scenes, or the paths of single drawings."""

    chat: Chat
    of: tuple[Scene | str, ...]

    def pictures(self) -> list[Image.Image]:
        return [each.draw() if isinstance(each, Scene) else open_image(each) for each in self.of]


def without_end(stream: Random) -> Iterator[Drawn]:
    """Conversations in random order: one in five about a single drawing, one in five about two scenes."""
    drawings, names = questions.drawings("emoji-questions", "train"), _named()
    while True:
        made = list(scenes.scenes(drawings, 16, stream))
        several = [scene for scene in made if scene.kind == "several"]
        drawn = [_one(scene, stream) for scene in made]
        drawn += [_two(*stream.sample(several, 2)) for _ in range(16)]
        drawn += [_single(*stream.choice(names)) for _ in range(16)]
        yield from stream.sample(drawn, len(drawn))


def _one(scene: Scene, stream: Random) -> Drawn:
    kind, number = stream.random(), stream.randrange(1000)
    if kind < 0.2:
        chat = Chat.about(DESCRIBE, questions.caption(scene, turned=False))
    elif kind < 0.4:
        there = {concept.name for concept in scene.concepts}
        asked = stream.choice([*there, stream.choice(list(questions.concepts().values())).name])
        question = f"is there {questions.with_article(asked)}?"
        chat = Chat.about(question, "yes" if asked in there else "no")
    else:
        chat = chats.about_one(scene, number, _short)
    return Drawn(chat, (scene,))


def _two(first: Scene, second: Scene) -> Drawn:
    return Drawn(chats.about_two(first, second, _short), (first, second))


def _short(question: str, answer: str) -> str:
    """An answer in a word or two, as mini-lm knows it; `emoji-chats` has sentences."""
    return answer


def _single(path: str, name: str) -> Drawn:
    return Drawn(Chat.about(NAME, name), (path,))


def _named() -> list[tuple[str, str]]:
    """The drawings of all concepts that are not held out, in the seen styles, with their names."""
    root = zip_root(bundled.ARCHIVE)
    return [
        (root + entry["file"], entry["concept"])
        for entry in bundled.index()["items"]
        if entry["style"] != bundled.UNSEEN_STYLE and not entry["held_out"] and entry["split"] != "test"
    ]
