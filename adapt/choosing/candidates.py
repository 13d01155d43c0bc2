"""What is compared: methods by their shipped recipes, and the variants that a recipe names."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from adapt import methods
from adapt.methods.base import Method
from adapt.methods.base.space import Projects
from adapt.methods.base.traits import DrawsMaps, Stream, has_trait
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair, read_file
from adapt.recipe.shipped import find_recipe, of_method, shipped, short

_OTHER = ("base_to_new", "cross_dataset", "domain_generalisation", "texts", "pairs")  # recipes of no few images
_DEFAULTS = (("device", "auto"), ("data.sampling", "coop"))  # which a command need not say
VIEWS = 10  # of each image, encoded once, where a recipe would encode a fresh one at each step


class Cost(IntEnum):
    """What a training takes, the cheapest first."""

    NO_STEP = 0
    STEPS_ON_FEATURES = 1
    STEPS_THROUGH_TOWERS = 2


@dataclass(frozen=True)
class Candidate:
    """A method with its settings under the name that tables give it, and the command that trains it.

    It is compared `always`, or only where all are; a `preferred` one is taken where others are alike within the noise.
    """

    name: str
    recipe: Recipe
    cost: Cost
    always: bool
    command: str
    preferred: bool = False
    calibrate: bool = False

    @property
    def final(self) -> Recipe:
        """The recipe that `command` trains: with a temperature too, where that costs no image and none was refused."""
        return self.recipe.model_copy(update={"calibrate": True}) if self.calibrate else self.recipe


def candidates(source: str, changes: dict[str, Any], every: bool) -> list[Candidate]:
    """What can be compared on the data `source`, the cheapest first; `changes` are of all their recipes.

    Those without steps, those with steps on cached features, and those whose recipes ask for it; with `every` also the
    others, whose steps pass through a tower. Methods that decide by several views of an image, or by the images before
    it, that learn from texts alone or from numbers, or that say where images are not as they should be, are left out.
    """
    known = {name.partition("/")[0] for name in shipped()} & set(methods.names())
    of_images = [name for method in sorted(known) for name in of_method(method) if name.partition("/")[2] not in _OTHER]
    found = [each for name in of_images for each in _of(short(name), source, changes, every)]
    return sorted(found, key=lambda each: (each.cost, not each.always, not each.preferred))


def _of(name: str, source: str, changes: dict[str, Any], every: bool) -> Iterator[Candidate]:
    located = find_recipe(name)
    file = read_file(located.path, located.name)
    own: dict[str, dict[str, Any]] = {name: {}}
    for title, settings in (own | file.variants).items():
        recipe = read_recipe(name, list((settings | changes).items()), source)
        method = recipe.new_method()
        in_own_space = not has_trait(method, Projects)
        of_classes = "classes" in method.tasks and in_own_space and not has_trait(method, DrawsMaps)
        if "dual encoder" not in method.serves or method.views or has_trait(method, Stream) or not of_classes:
            continue
        cost = _cost(recipe, method)
        always = file.compared or cost < Cost.STEPS_THROUGH_TOWERS
        if every or always:
            all_changes = settings | encoded_once(recipe, method) | changes
            recipe = read_recipe(name, list(all_changes.items()), source)
            calibrate = cost is Cost.NO_STEP and changes.get("calibrate") is not False
            asked = all_changes | ({"calibrate": True} if calibrate else {})
            sets = [f"--set={key}={_written(value)}" for key, value in asked.items() if (key, value) not in _DEFAULTS]
            command = shlex.join(["adapt", "train", name, f"--data={source}", *sets])
            yield Candidate(title, recipe, cost, always, command, title == file.preferred, calibrate)


def _cost(recipe: Recipe, method: Method) -> Cost:
    if recipe.train is None:  # what edits a tower is no closed form: it takes steps of its own
        return Cost.STEPS_ON_FEATURES if method.touches else Cost.NO_STEP
    through = method.touches or method.reads or method.per_image
    return Cost.STEPS_THROUGH_TOWERS if through else Cost.STEPS_ON_FEATURES


def encoded_once(recipe: Recipe, method: Method) -> dict[str, Any]:
    """Views in place of fresh crops, as keys of the recipe, where the method's steps are on cached features."""
    train = recipe.train
    if train is None or "vision" in method.touches or "images" in method.reads:
        return {}
    return {"train.views": VIEWS} if train.views is None and train.augment != "none" else {}


def _written(value: Any) -> str:
    """As --set reads it again: JSON, unless a word says the same."""
    word = str(value)
    return word if pair(f"key={word}")[1] == value else json.dumps(value, ensure_ascii=False)
