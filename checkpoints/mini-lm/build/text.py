"""Sentences by templates: a described picture with a question and its answer, a question alone, plain facts.

One description in twenty is held out, by its hash: no text for training describes a picture so.
"""

import random
import zlib
from typing import NamedTuple

from world import COLOURS, NO_ARTICLE, Thing, asked, others, with_article

from adapt.data.emoji.questions import ANIMAL, COLOUR, COUNT, GROUP, LEFT, NUMBERS, RIGHT, WHAT

HELD_OUT = 20  # one of so many descriptions
OTHER_WORDS = {
    WHAT: ["what is this?", "what do you see?"],
    GROUP: ["what kind of thing is this?"],
    COLOUR: ["what color is it?", "which colour is it?"],
    COUNT: ["how many are there?"],
    ANIMAL: ["which animal is it?"],
    LEFT: ["what is left?"],
    RIGHT: ["what is right?"],
}
ONE = [
    "{a}", "{n}", "{a}", "one {n}", "the {n}", "a picture of {a}", "a photo of {a}", "a drawing of {a}",
    "there is {a}", "here is {a}", "we see {a}", "only {a}", "{a} on a white background", "{a} on a blue background",
    "this is {a}", "it is {a}", "{a} , and nothing else", "a picture of one {n}",
]  # fmt: skip
SEVERAL = [
    "{c} {p}", "{c} {p}", "there are {c} {p}", "here are {c} {p}", "we see {c} {p}", "a picture of {c} {p}",
    "a drawing of {c} {p}", "{c} {p} on a white background", "{c} copies of {a}", "{c} times {a}", "{again}",
    "{listed}", "{p} , {c} of them", "only {c} {p}",
]  # fmt: skip
PAIR = [
    "{l} on the left and {r} on the right", "{l} on the left , {r} on the right",
    "{r} on the right and {l} on the left", "on the left {l} , on the right {r}",
    "on the right {r} , on the left {l}", "left {l} , right {r}", "on the left is {l} and on the right is {r}",
    "{l} and {r}", "{l} {r}", "{l} next to {r}", "{l} left of {r}", "{r} right of {l}",
    "there is {l} on the left and {r} on the right", "a picture of {l} and {r}",
]  # fmt: skip
SIZES = ("big", "small", "little", "nice")


class Example(NamedTuple):
    """A prompt and what follows it; `certain` where it follows from the prompt."""

    prompt: str
    answer: str
    certain: bool


class Picture(NamedTuple):
    """A description, and the questions that it answers."""

    description: str
    answers: dict[str, str]

    @property
    def held_out(self) -> bool:
        """Whether no training text has this description."""
        return zlib.crc32(self.description.encode()) % HELD_OUT == 0


def picture(rng: random.Random, things: tuple[Thing, ...]) -> Picture:
    """Of one thing, of several copies, or of two things, which is hardest to learn."""
    kind = rng.choice(("one", "several", "pair", "pair"))
    if kind == "pair":
        left, right = rng.sample(things, 2)
        adjectives = [rng.choice((*COLOURS, *SIZES)) if rng.random() < 0.2 else "" for _ in range(2)]
        names = [each.some(adjective) for each, adjective in zip((left, right), adjectives)]
        if rng.random() < 0.2:
            names = [left.name, right.name]
        animals = [each.name for each in (left, right) if each.group == "animal"]
        found = {LEFT: left.name, RIGHT: right.name} | ({ANIMAL: animals[0]} if len(animals) == 1 else {})
        return Picture(rng.choice(PAIR).format(l=names[0], r=names[1]), found)
    thing, count = rng.choice(things), 1 if kind == "one" else rng.randint(2, len(NUMBERS))
    colour = _colour(rng, thing)
    size = rng.choice(SIZES) if rng.random() < 0.1 else ""
    seen = f"{size} {colour}".strip()
    words = {
        "a": thing.some(seen),
        "n": f"{seen} {thing.name}".strip(),
        "p": f"{seen} {thing.plural}".strip(),
        "c": NUMBERS[count - 1],
        "again": " ".join([thing.name] * count),
        "listed": " and ".join([thing.some()] * count),
    }
    template = rng.choice(ONE if count == 1 else SEVERAL)
    description = template.format(**words)
    if colour and colour not in description.split():
        colour = thing.colour
    if thing.group and rng.random() < 0.05:
        description += f" , {_group(thing)}"
    found = {WHAT: thing.name, COUNT: NUMBERS[count - 1]}
    found |= {GROUP: thing.group, f"which {thing.group}?": thing.name} if thing.group else {}
    found |= {COLOUR: colour or thing.colour} if colour or thing.colour else {}
    return Picture(description, found)


def _colour(rng: random.Random, thing: Thing) -> str:
    """Often none; the thing's own, or any."""
    draw = rng.random()
    return thing.colour if draw < 0.2 else rng.choice(COLOURS) if draw < 0.45 else ""


def _group(thing: Thing) -> str:
    return thing.group if thing.group in NO_ARTICLE else with_article(thing.group)


def example(rng: random.Random, easy: bool = False) -> Example:
    """One text for training; an easy one is of what is asked about only."""
    things = asked() if easy or rng.random() < 0.6 else asked() + others()
    draw = rng.random()
    if draw < 0.1:
        return Example("", fact(rng, things), False)
    shown = picture(rng, things)
    if draw < 0.2:
        question = rng.choice(list(shown.answers))
        return Example(f"question: {question} answer:", shown.answers[question], False)
    while shown.held_out:
        shown = picture(rng, things)
    question = rng.choice(list(shown.answers))
    return prompt(_worded(rng, question), shown.answers[question], shown.description)


def _worded(rng: random.Random, question: str) -> str:
    """The question, now and then in other words."""
    return rng.choice(OTHER_WORDS[question]) if question in OTHER_WORDS and rng.random() < 0.1 else question


def prompt(question: str, answer: str, description: str) -> Example:
    """The form that everything is asked in."""
    return Example(f"picture: {description} question: {question} answer:", answer, True)


def fact(rng: random.Random, things: tuple[Thing, ...]) -> str:
    """A sentence about one thing, or about what is in a picture."""
    thing, other = rng.sample(things, 2)
    some, count = thing.some(), rng.randint(2, len(NUMBERS))
    forms = [f"there are {NUMBERS[count - 1]} {thing.plural}.", f"there is {some} on the left.", f"this is {some}."]
    forms += [f"{some} is on the left and {other.some()} is on the right.", f"there is {some} and {other.some()}."]
    if thing.group:
        forms += [f"{some} is {_group(thing)}."] * 2
    if thing.group and other.group:
        forms += [f"{some} is {_group(thing)} and {other.some()} is {_group(other)}."]
    if thing.colour:
        forms += [f"{some} is {thing.colour}.", f"the colour of {some} is {thing.colour}."] * 2
        kind = thing.group if thing.group in NO_ARTICLE else f"a {thing.colour} {thing.group}"
        forms += [f"{some} is {kind}."] * 2
    return rng.choice(forms)


def held_out(rng: random.Random, things: tuple[Thing, ...], count: int) -> list[Example]:
    """`count` questions about descriptions that training does not have, in the words of the bundled set."""
    found: list[Example] = []
    while len(found) < count:
        shown = picture(rng, things)
        if shown.held_out:
            question = rng.choice([each for each in shown.answers if each in OTHER_WORDS])
            found.append(prompt(question, shown.answers[question], shown.description))
    return found
