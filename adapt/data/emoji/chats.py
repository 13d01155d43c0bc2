"""The bundled data set of conversations: several questions about a scene of emoji, or about two scenes.

`emoji-chats` has drawings in the seen styles, `emoji-chats@STYLE` in one style; scenes are made as those of
`emoji-questions`. A conversation asks everything about its scene, in an order that changes from scene to scene, so that
each question comes last in some. Two scenes with copies of a drawing are also compared. `emoji-preferences` has a wrong
answer beside the last answer of each conversation. `emoji-contrasts` has pairs of scenes that differ in one thing, with
a question about it and the answer to each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from adapt.chats import Chat
from adapt.common.grouping import grouped
from adapt.data.emoji import questions
from adapt.data.emoji.bundled import PARTS
from adapt.data.emoji.questions import with_article
from adapt.data.emoji.scenes import MOST, Scene
from adapt.data.item import Cell, Item, reading
from adapt.data.split import Split

Words = Callable[[str, str], str]  # how the answer to a question is worded
MORE = "which one has more?"
FIRST, SECOND, NEITHER = "the first", "the second", "neither"
_SENTENCES = {
    questions.WHAT: "it is {thing}.",
    questions.GROUP: "it is {thing}.",
    questions.ANIMAL: "it is {thing}.",
    questions.COLOUR: "it is {answer}.",
    questions.LEFT: "on the left is {thing}.",
    questions.RIGHT: "on the right is {thing}.",
    MORE: "it is {answer}.",
}


def read(spec: str) -> Split:
    """Return the data set `spec` of conversations, preferences or contrasts; an item's domain is its drawing style.

    Preferences are the last questions of the conversations, each with a right and a wrong answer. The wrong answer is
    the right one to the same question about another scene of the same part of the data.
    """
    if spec.startswith("emoji-contrasts"):
        return _contrasts(spec)
    split = _conversations(spec.replace("preferences", "chats"))
    return split if spec == split.name else replace(split.mapped(_paired), name=spec)


def _conversations(spec: str) -> Split:
    """Return the conversations of the data set `spec`; an item's domain is its drawing style, if all share one."""
    copies: dict[str, list[tuple[str, Scene]]] = {part: [] for part in PARTS}

    def items(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        yield _item((path,), about_one(scene, number), style)
        if scene.kind != "several":
            return
        earlier = copies[path.rpartition("!")[2].partition("/")[0]]
        earlier.append((path, scene))
        pair, odd = divmod(len(earlier), 2)
        if not odd and len(earlier) > MOST:  # every second scene is compared with one before it
            other, last = earlier[-1 - (1, 1, MOST)[pair % 3]], earlier[-1]  # MOST before it, there are as many copies
            first, second = (last, other) if pair % 3 else (other, last)
            yield _item((first[0], second[0]), about_two(first[1], second[1]), style)

    return questions.split_of(spec, spec, (), items)


def _paired(items: Sequence[Item]) -> Iterator[Item]:
    """Yield each item with the next answer to its question that differs from its own, if there is one."""
    by_question = grouped((item.text, item.answer) for item in items)
    asked = Counter[str]()
    for item in items:
        answers = by_question[item.text]
        later = answers[asked[item.text] :] + answers
        asked[item.text] += 1
        wrong = next((answer for answer in later if answer != item.answer), None)
        if wrong is not None:
            chat = item.task.chat(item, "")
            cells: dict[str, Cell] = {"chat": chat, "rejected": wrong}
            yield item.labelled(reading(frozenset(cells)).read(cells, item.path))


def _contrasts(spec: str) -> Split:
    """Return minimal pairs of scenes of the data set `spec`: what differs is asked, and each scene has its answer."""
    first: list[tuple[str, Scene]] = []

    def items(path: str, number: int, scene: Scene, style: str) -> Iterator[Item]:
        if number % 2 == 0:
            first[:] = [(path, scene)]
            return
        [(other_path, other)] = first
        answers = dict(questions.asked(scene))
        question, answer = next(each for each in questions.asked(other) if answers.get(each[0]) not in (None, each[1]))
        cells: dict[str, Cell] = {
            "chat": Chat.about(question, answer), "rejected": answers[question], "rejected_images": "1",
        }  # fmt: skip
        label = reading(frozenset(cells)).read(cells, path)
        yield Item((other_path, path), label, style, text=question)

    return questions.split_of(spec, spec, (), items)


def _item(paths: tuple[str, ...], chat: Chat, style: str) -> Item:
    label = reading(frozenset({"chat"})).read({"chat": chat}, paths[0])
    return Item(paths, label, style, text=chat.question.turns[-1].text)


def in_a_sentence(question: str, answer: str) -> str:
    """Return the answer to a question as the conversations give it: in a sentence."""
    if question in _SENTENCES:
        return _SENTENCES[question].format(answer=answer, thing=with_article(answer))
    return f"there {'is' if answer == questions.NUMBERS[0] else 'are'} {answer}."


def about_one(scene: Scene, number: int, words: Words = in_a_sentence) -> Chat:
    """Return a conversation about one scene, whose questions are rotated by the scene's `number`."""
    asked = list(questions.asked(scene))
    start = number % len(asked)
    return _chat([*asked[start:], *asked[:start]], 1, words)


def about_two(first: Scene, second: Scene, words: Words = in_a_sentence) -> Chat:
    """Return a conversation that compares the numbers of things in two scenes."""
    counts = len(first.pieces), len(second.pieces)
    more = FIRST if counts[0] > counts[1] else SECOND if counts[0] < counts[1] else NEITHER
    each = [
        (f"how many are in {name}?", questions.NUMBERS[count - 1])
        for name, count in zip((FIRST, SECOND), counts, strict=True)
    ]
    return _chat([*each, (MORE, more)] if sum(counts) % 2 else [(MORE, more), *each], 2, words)


def _chat(asked: list[tuple[str, str]], images: int, words: Words) -> Chat:
    """Return a conversation of questions with their answers, the first of which comes with the images."""
    (first, answer), *later = asked
    chat = Chat.about(first, words(first, answer), images)
    for question, answer in later:
        chat = chat.asked(question).answered(words(question, answer))
    return chat
