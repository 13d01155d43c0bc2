"""What the text is about: the emoji's names and groups, and what the table of questions knows of some of them."""

from functools import cache
from typing import NamedTuple

from adapt.data.emoji import bundled, questions

# The index's classes by the word for what is in them; concepts of no class get no group.
GROUPS = {
    "animal mammal": "animal", "animal bird": "animal", "animal marine": "animal", "animal bug": "animal",
    "plant flower": "flower", "plant": "plant", "food fruit": "fruit", "food vegetable": "vegetable",
    "food prepared": "food", "food asian": "food", "food sweet": "food", "drink": "drink",
    "place building": "building", "transport ground": "vehicle", "transport air": "vehicle", "sport": "sport",
    "clothing": "clothing", "musical instrument": "instrument", "tool": "tool", "face concerned": "face",
    "person role": "person", "sky and weather": "weather",
}  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "grey", "black", "white")
NO_ARTICLE = ("clothing", "weather")  # groups that are no countable nouns
AFTER_NOUN = ("with", "without", "in", "of", "on", "behind")
IRREGULAR = {"mouse": "mice", "woman": "women", "man": "men", "person": "people", "potato": "potatoes"}
IRREGULAR |= {"tomato": "tomatoes", "leaf": "leaves", "tooth": "teeth"}


class Thing(NamedTuple):
    """A concept: `group` and `colour` are "" where they are not known."""

    name: str
    group: str
    colour: str

    @property
    def plural(self) -> str:
        """The plural of the last word, or of the one before "with" and the like."""
        words = self.name.split()
        place = next((place for place, word in enumerate(words) if word in AFTER_NOUN), len(words)) - 1
        return " ".join([*words[:place], _plural(words[place]), *words[place + 1 :]])

    def some(self, adjective: str = "") -> str:
        """The name with an article, and perhaps an adjective: "a red apple", "grapes"."""
        phrase = f"{adjective} {self.name}".strip()
        return phrase if _plural_already(self.name) else with_article(phrase)


def with_article(phrase: str) -> str:
    """ "a" or "an" in front."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _plural_already(name: str) -> bool:
    """Grapes and jeans, but no glass, bus or tennis; and corn, which has no plural."""
    return name == "corn" or (name.endswith("s") and not name.endswith(("ss", "us", "is")))


def _plural(word: str) -> str:
    if _plural_already(word):
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


@cache
def asked() -> tuple[Thing, ...]:
    """What the bundled set asks about, under its names."""
    return tuple(Thing(*concept) for concept in questions.concepts().values())


@cache
def others() -> tuple[Thing, ...]:
    """The remaining concepts of the bundled images, but for a black cat, which is a cat that is black."""
    classes = {entry["concept"]: entry["class"] for entry in bundled.index()["items"]}
    known = {thing.name for thing in asked()} | set(questions.concepts())
    known |= {f"{colour} {name}" for colour in COLOURS for name in known | set(classes)}
    return tuple(Thing(name, GROUPS.get(kind, ""), "") for name, kind in classes.items() if name not in known)
