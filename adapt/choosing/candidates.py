"""The candidates that `adapt recommend` compares: methods with their recipes, and the variants that recipes define."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from enum import IntEnum

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.backbones.joined import JoinedDualEncoder
from adapt.backbones.vision_encoder import VisionEncoder
from adapt.methods.base import Method, traits
from adapt.recipe import Recipe, read_recipe
from adapt.recipe.file import pair
from adapt.recipe.shipped import find_recipe, known_recipes, of_method, short
from adapt.tasks import Task
from adapt.training.result import Result

_OF_KINDS = {VisionEncoder: "vision", JoinedDualEncoder: "two_models"}  # recipes for backbones of one kind
_OTHER = ("base_to_new", "cross_dataset", "domain_generalisation", "texts", "pairs")  # recipes that are not few-shot
_DEFAULTS = (("device", "auto"), ("data.sampling", "coop"))  # settings that a command can leave out
VIEWS = 10  # of each image, encoded once, where a recipe would encode a fresh one at each step


class Cost(IntEnum):
    """Kinds of training, the cheapest first: no training steps, steps on cached features, steps through a tower."""

    NO_STEP = 0
    STEPS_ON_FEATURES = 1
    STEPS_THROUGH_TOWERS = 2


@dataclass(frozen=True)
class Candidate:
    """A method to compare, with its recipe, its name in tables, and the command that trains it.

    If `always` is true, the candidate is always compared, otherwise only on request or if time is left. A `preferred`
    candidate is chosen if no other candidate is better by more than the noise. A variant that only leaves settings to
    the data is `otherwise` called: by the name of its recipe, if the data choose the recipe's values of the settings.
    """

    name: str
    recipe: Recipe
    cost: Cost
    always: bool = True
    command: str = ""
    preferred: bool = False
    otherwise: tuple[str, Mapping[str, object]] = ("", {})

    @property
    def order(self) -> tuple[Cost, bool, bool]:
        """The key by which candidates are sorted: the cheapest first."""
        return self.cost, not self.always, not self.preferred

    def on(self, backbone: str) -> Candidate:
        """Return the candidate with a name that tells its backbone among several, such as `lda on mini-clip`."""
        recipe, values = self.otherwise
        return replace(self, name=f"{self.name} on {backbone}", otherwise=(f"{recipe} on {backbone}", values))

    def called(self, result: Result) -> str:
        """Return the candidate's name after a training with this result, in which the data chose settings."""
        recipe, values = self.otherwise
        return recipe if values and values.items() <= result.chosen.items() else self.name


def candidates(
    source: str, changes: dict[str, object], every: bool, backbone: Backbone, task: Task, has: Set[str] = frozenset()
) -> list[Candidate]:
    """Return the candidates to compare on `source` and `backbone`, the cheapest first; `changes` apply to all recipes.

    The candidates are the methods without training steps, the methods that train on cached features, and the methods
    whose recipes ask to be compared. If `every` is true, the methods that train through a tower are added. Methods are
    excluded if their answers are not what the `task` of the data scores, if they predict from several views of an
    image or from earlier images, if they learn from texts alone, or if they localise anomalies. Methods that learn from
    unlabelled images need "unlabelled" in `has`, and methods that pool items of several images "bags".
    """
    known = {name.partition("/")[0] for name in known_recipes()} & set(methods.names())
    other = {*_OTHER, *(name for kind, name in _OF_KINDS.items() if not isinstance(backbone, kind))}
    names = [name for method in sorted(known) for name in of_method(method) if name.partition("/")[2] not in other]
    listed = [each for name in names for each in _of_recipe(short(name), source, changes, every, backbone, task, has)]
    return sorted(listed, key=lambda each: each.order)


def _of_recipe(
    name: str, source: str, changes: dict[str, object], every: bool, backbone: Backbone, task: Task, has: Set[str]
) -> list[Candidate]:
    file, listed = find_recipe(name), list[Candidate]()
    variants: dict[str, dict[str, object]] = {name: {}} | file.variants
    plain = read_recipe(name, list(changes.items()), source).new_method().config
    for title, settings in variants.items():
        recipe = read_recipe(name, list((settings | changes).items()), source)
        method = recipe.new_method()
        own_space = not traits.has_trait(method, traits.Projects)
        one_image = not (
            method.views or traits.has_trait(method, traits.Stream) or traits.has_trait(method, traits.OverSet)
        )
        learned = task.compares(method) and not traits.has_trait(method, traits.DrawsMaps)
        of_classes = recipe.train is None or recipe.train.objective == "cross-entropy" or task.has_class_loss
        fits = of_classes and backbone.kind in method.serves and method.touches <= backbone.towers.keys()
        fits &= not traits.has_trait(method, traits.ReadsHeads) or bool(getattr(backbone, "heads", None))
        fits &= "unlabelled" in has or not traits.reads_unlabelled(method)
        fits &= "bags" in has or not traits.has_trait(method, traits.PoolsBags)
        if not (own_space and one_image and learned and fits):
            continue
        if recipe.train is None:  # a method that edits a tower still takes steps of its own
            cost = Cost.STEPS_ON_FEATURES if method.touches else Cost.NO_STEP
        else:
            through = method.touches or method.reads or method.per_image
            cost = Cost.STEPS_THROUGH_TOWERS if through else Cost.STEPS_ON_FEATURES
        always = file.compared or cost < Cost.STEPS_THROUGH_TOWERS
        if every or always:
            merged = settings | encoded_once(recipe, method) | changes
            recipe = read_recipe(name, list(merged.items()), source)
            sets = [f"--set={key}={_as_yaml(value)}" for key, value in merged.items() if (key, value) not in _DEFAULTS]
            command = shlex.join(["adapt", "train", name, f"--data={source}", *sets])
            values = {key: getattr(plain, key.removeprefix("method."), None) for key in settings}
            left = {key.removeprefix("method."): value for key, value in values.items() if settings[key] is None}
            otherwise = name, left if len(left) == len(settings) else {}
            listed.append(Candidate(title, recipe, cost, always, command, title == file.preferred, otherwise))
    if file.preferred and listed and not any(each.preferred for each in listed):
        listed[0] = replace(listed[0], preferred=True)  # the recipe itself, where the variant does not fit the backbone
    return listed


def encoded_once(recipe: Recipe, method: Method) -> dict[str, object]:
    """Return recipe settings for training on a few cached crops of each image, instead of random crops in each step.

    The settings are empty for a method that edits the vision tower or reads images, and cannot use cached features.
    """
    train = recipe.train
    if train is None or "vision" in method.touches or "images" in method.reads:
        return {}
    return {"train.views": VIEWS} if train.views is None and train.augment != "none" else {}


def _as_yaml(value: object) -> str:
    """Return `value` as text that --set parses as the same value, in JSON format if plain text is ambiguous."""
    word = str(value)
    return word if pair(f"key={word}")[1] == value else json.dumps(value, ensure_ascii=False)
