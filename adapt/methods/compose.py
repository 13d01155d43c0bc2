"""Several methods on one backbone in one adapter, such as skipped blocks with LoRA, or light adapters with prompts.

Paper: none; each part has its own (see its file).
Reference: none.
Deviations: none beyond those of the parts, except where two parts meet:

* If one part skips a block, the other parts' edits inside it are left out, and their tensors for it are dropped once
  the blocks are chosen. Everywhere else, two edits of one place are refused.
* At most one part has learned tokens in the prompts. Its prompts are used, and the templates of the other parts are not
  read. Without such a part, all parts must have the same prompts.
* After a search for blocks, all parts start afresh, not only the one that searched.
* A part that answers sets of images (StatA) reads the features and answers of the other parts.
* Losses add up, term by term, with one cross-entropy. At most one part has logits of its own. Methods with their own
  gradients or answers (ProGrad, TPT) cannot be parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, combinations
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.edits import Bypass, Edit, Tokens
from adapt.methods import find, names
from adapt.methods.base import KINDS, Context, Method, MethodConfig, Mixture, ParameterGroup, Step, Terms, Training
from adapt.methods.base.method import MethodSettings
from adapt.methods.base.mixture import Mixes, mixed
from adapt.methods.base.traits import (
    ChecksAdapter,
    ChoosesOnValidation,
    InsideBlocks,
    LearnedTokens,
    OverSet,
    PoolsBags,
    Reports,
    SkipsBlocks,
    StandsAlone,
    Trait,
    chosen_setting,
    owns_prompts,
    skipped_blocks,
)
from adapt.prompts import Prompt

T = TypeVar("T", bound=Trait)


class ComposeConfig(MethodConfig):
    methods: tuple[MethodSettings, ...] = Field(default=(), validate_default=True)
    """The parts, at least two: each a method's name and settings, as in [{name: das, skip: 2}, {name: lora}]."""

    @field_validator("methods")
    @classmethod
    def _fit(cls, value: tuple[dict[str, object], ...]) -> tuple[dict[str, object], ...]:
        if len(value) < 2:
            raise ValueError("a composition needs at least two methods: name more methods")
        try:
            _check(_named([_made(each) for each in value]))
        except AdaptError as error:
            raise ValueError(str(error)) from None
        return value


class Compose(Method[Step], LearnedTokens, SkipsBlocks, ChoosesOnValidation, Mixes, ChecksAdapter, Reports):
    """A composition of several methods. `Compose([DAS(skip=2), LoRA(rank=2)])` trains `das.…` and `lora.…`."""

    name = "compose"
    title = "Several methods on one backbone"
    serves = KINDS
    Config = ComposeConfig
    example = {"methods": [{"name": "das", "skipped": ["vision.1"]}, {"name": "lora", "dropout": 0.0}]}

    def __init__(self, methods: Sequence[Method | dict[str, object]] = (), **config: object) -> None:
        described = [_described(each) if isinstance(each, Method) else each for each in methods]
        super().__init__(methods=described, **config)
        self._parts = _named([each if isinstance(each, Method) else _made(each) for each in methods])
        parts = self.parts.values()
        self.serves = tuple(kind for kind in self.serves if all(kind in part.serves for part in parts))
        self.reads = frozenset().union(*(part.reads for part in parts))
        self.tasks = frozenset.intersection(*(part.tasks for part in parts))
        self.learns_any_step = all(part.learns_any_step for part in parts)
        self.weighs_classes = all(part.weighs_classes for part in parts)
        self.per_image = any(part.per_image for part in parts)
        self.needs_every_class = any(part.needs_every_class for part in parts)
        self.begins_anew = any(part.begins_anew for part in parts)
        for name, part in self.parts.items():
            if part.built:
                raise AdaptError(f"compose: this {part.name} already belongs to a model: create a new {part.name}")
            self.add_module(name, part)

    @property
    def parts(self) -> Mapping[str, Method]:
        return self._parts

    def _having(self, kind: type[T]) -> list[tuple[str, T]]:
        """Return the name and the method of each component that has the trait `kind`."""
        parts: Mapping[str, object] = self.parts
        return [(name, part) for name, part in parts.items() if isinstance(part, kind)]

    def check_settings(self) -> None:
        for _, part in self._having(ChecksAdapter):
            part.check_settings()

    @classmethod
    def lines(cls, metrics: JsonObject) -> Iterable[str]:
        """Return the report lines about `metrics` from all reporting methods, which are empty for unused methods."""
        return chain.from_iterable(method.lines(metrics) for method in cls._reporting())

    @classmethod
    def draw(cls, run: Path) -> None:
        for method in cls._reporting():
            method.draw(run)

    @classmethod
    def _reporting(cls) -> list[type[Reports]]:
        others = (find(name) for name in names() if name != cls.name)
        return [method for method in others if issubclass(method, Reports)]

    @classmethod
    def mixed(cls, members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, object], dict[str, Tensor]]:
        """Return settings and tensors of a merged composition, in which each component is merged by its own method."""
        described: list[dict[str, object]] = []
        tensors: dict[str, Tensor] = {}
        for name, part in members[0].parts.items():
            settings, own = mixed([member.parts[name] for member in members], mixture)
            described.append({"name": part.name, **settings})
            tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
        return {"methods": described}, tensors

    @property
    def touches(self) -> frozenset[str]:
        return frozenset().union(*(part.touches for part in self.parts.values()))

    @property
    def per_class(self) -> bool:
        return any(part.per_class for part in self.parts.values())

    @property
    def owns_prompts(self) -> bool:
        return any(map(owns_prompts, self.parts.values()))

    @property
    def learned_tokens(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tokens
            for name, part in self._having(LearnedTokens)
            for key, tokens in part.learned_tokens.items()
        }

    @property
    def logit_scale(self) -> float | None:
        return next((part.logit_scale for part in self.parts.values() if part.logit_scale is not None), None)

    @property
    def chosen_on_validation(self) -> str | None:
        keys = enumerate(map(chosen_setting, self.parts.values()))
        return next((f"methods.{index}.{key}" for index, key in keys if key), None)

    @property
    def skipped(self) -> frozenset[str]:
        return frozenset().union(*(part.skipped for _, part in self._having(SkipsBlocks)))

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        for part in self.parts.values():
            if isinstance(part, InsideBlocks):
                part.absent = self.skipped - skipped_blocks(part)
            part.build(backbone, class_names)
            part.built = True
        self._describe()

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        for name, part in self._having(ChecksAdapter):
            own = {key.removeprefix(f"{name}."): x for key, x in tensors.items() if key.startswith(f"{name}.")}
            part.check_tensors(own, source)

    def _describe(self) -> None:
        """Copy the component methods' settings, which training may have completed, into the composition's settings."""
        self.config = ComposeConfig(methods=tuple(map(_described, self.parts.values())))

    def prepare(self, training: Training) -> None:
        """Prepare the component methods. A search for blocks comes first, because the search resets all components."""
        for part in sorted(self.parts.values(), key=lambda part: chosen_setting(part) is None):
            part.prepare(training)
        self._describe()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        for part in self.parts.values():
            part.epoch_done(epoch, epochs)

    def finish(self, training: Training) -> None:
        for part in self.parts.values():
            part.finish(training)
        self._describe()

    def trains(self) -> Iterable[nn.Parameter]:
        return [parameter for group in self.groups() for parameter in group.parameters]

    def groups(self) -> Iterable[ParameterGroup]:
        head = getattr(self, "classifier", None)  # the composition's own, on backbones without class features
        groups = [group for part in self.parts.values() for group in part.groups()]
        return groups if head is None else [*groups, ParameterGroup(tuple(head.parameters()))]

    def training_state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": value for name, part in self.parts.items() for key, value in part.training_state().items()
        }

    def logits(self, step: Step) -> Tensor:
        owner = next((part for part in self.parts.values() if _overrides(part, "logits")), None)
        return super().logits(step) if owner is None else owner.logits(step)

    def loss(self, step: Step) -> Terms:
        """Return the task's terms, which all components share, and their other loss terms, prefixed by their names."""
        terms = dict(super().loss(step))
        for name, part in self.parts.items():
            own = part.loss(step)
            for shared in terms.keys() & own.keys():
                if not torch.equal(own.pop(shared), terms[shared]):
                    raise AdaptError(
                        f"compose: {name} changes the {shared.replace('_', '-')}, which all methods in a composition "
                        "share: leave this method out"
                    )
            terms |= {f"{name}.{key}": term for key, term in own.items()}
        return terms

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        owners = {name: part for name, part in self.parts.items() if owns_prompts(part)} or self.parts
        prompts = {name: part.prompts(tokenizer, class_name) for name, part in owners.items()}
        for one, other in combinations(prompts, 2):
            if [prompt.ids for prompt in prompts[one]] != [prompt.ids for prompt in prompts[other]]:
                raise AdaptError(
                    f"compose: {one} and {other} have different prompts for {class_name!r}: set the same template"
                )
        return next(iter(prompts.values()))

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        edits: list[Edit] = []
        for part in self.parts.values():
            edits += part.edits(tower, context) if tower.name in part.touches else []
        bypassed = {edit.block for edit in edits if isinstance(edit, Bypass)}
        return [edit for edit in edits if edit.block not in bypassed or isinstance(edit, Bypass | Tokens)]


def _made(described: dict[str, object]) -> Method:
    settings = dict(described)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        raise AdaptError(
            f"an entry of methods is {described!r}; expected name and settings, as in {{name: lora, rank: 2}}"
        )
    if name == Compose.name:  # checked first: each nested level would multiply the time to create parts
        raise AdaptError(
            f"{name} cannot be part of a composition: expected methods that change a tower, each listed separately"
        )
    return find(name)(**settings)


def _described(part: Method) -> dict[str, object]:
    return {"name": part.name, **part.config.model_dump(mode="json")}


def _named(parts: Sequence[Method]) -> dict[str, Method]:
    """Return the component methods by name. A second component of the same method is numbered, as in `lora2`."""
    named: dict[str, Method] = {}
    for part in parts:
        before = sum(other.name == part.name for other in named.values())
        named[f"{part.name}{before + 1}" if before else part.name] = part
    return named


def _traits(part: Method) -> set[type]:
    """Return the traits of `part` that only one component of a composition may have."""
    kinds = {kind for kind in type(part).__mro__ if issubclass(kind, Trait) and not issubclass(kind, Method)}
    return {kind for kind in kinds if not (kind.of_each_part or issubclass(Compose, kind))}


def _overrides(part: Method, member: str) -> bool:
    return getattr(type(part), member) is not getattr(Method, member)


def _check(parts: dict[str, Method]) -> None:
    """Raise AdaptError, naming the methods, if a method cannot be composed, or two methods cannot be combined."""
    for name, part in parts.items():
        works = part.touches or isinstance(part, OverSet | PoolsBags)
        overrides = any(_overrides(part, member) for member in ("infer", "backward"))
        if isinstance(part, Compose | StandsAlone) or not works or part.views or overrides:
            raise AdaptError(
                f"{name} cannot be part of a composition: expected methods that change a tower, each listed separately"
            )
        if isinstance(part, OverSet) and any(other.per_image for other in parts.values()):
            raise AdaptError(f"{name} needs classes that are the same for all images, unlike those of another part")
    for one, other in combinations(parts, 2):
        a, b = parts[one], parts[other]
        if owns_prompts(a) and owns_prompts(b):
            raise AdaptError(f"{one} and {other} both learn prompt tokens and cannot be combined: use one method")
        if _overrides(a, "logits") and _overrides(b, "logits"):
            raise AdaptError(f"{one} and {other} both compute their own logits and cannot be combined: use one method")
        if (key := chosen_setting(a)) and key == chosen_setting(b):
            raise AdaptError(f"{one} and {other} both choose {key} on validation images: set {key} in one method")
        if a.logit_scale and b.logit_scale and a.logit_scale != b.logit_scale:
            raise AdaptError(f"logit_scale is {a.logit_scale} in {one}, {b.logit_scale} in {other}: set equal values")
        if twice := _traits(a) & _traits(b):
            raise AdaptError(
                f"{one} and {other} both have the trait {min(kind.__name__ for kind in twice)} and cannot be combined: "
                "use one method"
            )
