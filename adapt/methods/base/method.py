"""The interface of a method: a plug-in that owns every trainable tensor, with its settings and its view of a call.

A base for methods with modules that are no part of the adapter stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, NamedTuple, Self

import torch
from pydantic import ValidationError, WithJsonSchema, model_validator
from torch import Tensor, nn
from typing_extensions import TypeVar

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.validation import StrictModel, explain
from adapt.edits import Edit
from adapt.methods.base.step import Step, Terms, total
from adapt.prompts import Prompt, from_templates

if TYPE_CHECKING:
    from adapt.methods.base.training import Training

# kinds of backbones
KINDS: tuple[str, ...] = ("dual encoder", "fusion encoder", "vision LLM", "native VLM", "vision encoder")
METHOD_SETTINGS = {"type": "object", "title": "a method's name and settings"}  # in a schema of recipes
MethodSettings = Annotated[dict[str, object], WithJsonSchema(METHOD_SETTINGS)]

StepT = TypeVar("StepT", bound=Step, contravariant=True, default=Any)


class Context:
    """Tower outputs that a method may read during one forward call of the adapted model, each computed at most once."""

    def __init__(
        self,
        features: dict[str, Callable[[], Tensor]] | None = None,
        tokens: dict[str, Callable[[], Tensor]] | None = None,
        class_features: Callable[[Sequence[str]], Tensor] | None = None,
        class_tokens: dict[str, Callable[[], Tensor]] | None = None,
    ) -> None:
        kinds = {"features": features or {}, "tokens": tokens or {}, "class tokens": class_tokens or {}}
        self._outputs = {(kind, name): cache(own[name]) for kind, own in kinds.items() for name in own}
        self._class_features = class_features

    def features(self, tower: str) -> Tensor:
        """Return the unit-length features `(b, e)` that `tower` computes for the inputs of the current forward call."""
        return self._read("features", tower)

    def tokens(self, tower: str) -> Tensor:
        """Return the token features `(b, l, d)` that `tower` computes for the images of the current forward call.

        On a dual encoder, the features are the outputs of the last block for all tokens, including a class token. On a
        vision LLM, they are the features of patches alone.
        """
        return self._read("tokens", tower)

    def class_token(self, tower: str) -> Tensor:
        """Return the feature `(b, d)` of the class token that `tower` computes beside the patches, on a vision LLM."""
        return self._read("class tokens", tower)

    def class_features(self, templates: Sequence[str]) -> Tensor:
        """Return the frozen backbone's unit-length features `(n, e)` of the classes in hand-written `templates`."""
        if self._class_features is None:
            raise AdaptError("the method reads class features, which only a dual encoder has: use a dual encoder")
        return self._class_features(templates)

    def _read(self, kind: str, tower: str) -> Tensor:
        if (kind, tower) not in self._outputs:
            raise AdaptError(
                f"the method reads {kind} of the {tower} tower, which this call does not compute: "
                "call model(images), or model.class_features(model.image_features(images))"
            )
        return self._outputs[kind, tower]()


class MethodConfig(StrictModel):
    """The settings of a method, which are written into its adapter files. Unknown keys are errors."""

    set_by_training: ClassVar[frozenset[str]] = frozenset()
    """Settings that training sets for its own data, in which it may differ from an adapter that it starts from."""

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, value: object) -> object:
        plain.check(value)
        return value


class ParameterGroup(NamedTuple):
    """Trained parameters that share a learning rate."""

    parameters: tuple[nn.Parameter, ...]
    rate: float = 1.0
    """The factor of the recipe's learning rate."""
    decays: bool = True
    """Whether the recipe's weight decay applies."""

    @classmethod
    def alike(cls, parameters: Iterable[tuple[nn.Parameter, float, bool]]) -> list[ParameterGroup]:
        """Return groups of parameters that are given with their rate and whether they decay."""
        groups = grouped(((rate, decays), parameter) for parameter, rate, decays in parameters)
        return [cls(tuple(own), *settings) for settings, own in groups.items()]


class Method(nn.Module, Generic[StepT]):
    """The base class of all adaptation methods, with the members that every method has and that training calls.

    `Method(**config)` creates a method, and `wrap` builds the method on a backbone. A subclass of `Method[PairStep]`
    reads batches of the type `PairStep`. Abilities that only some methods have are traits, which are added as further
    base classes (see `adapt.methods.base.traits`).

    `named_parameters()` returns exactly the trained tensors, and `state_dict()` exactly the tensors that an adapter
    file stores, under the names of the paper's reference implementation.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """A line about the method, for lists; by default its name."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    example: ClassVar[dict[str, Any]] = {}
    """Small settings for the contract suite and `adapt.testing.check_method`."""
    serves: tuple[str, ...] = ("dual encoder",)
    """The kinds of backbones that the method adapts."""
    reads: frozenset[str] = frozenset()
    """Inputs beyond features: `images`, which rules out the feature cache, and `tokens` of images."""
    tasks: frozenset[str] = frozenset({"classes"})
    """The tasks for which the method has a loss or a preparation of its own."""
    learns_any_step: bool = True
    """Whether the method also learns every other task with the same kind of steps, because it uses labels only through
    `step.task_loss()`. By default, true for a method without a `loss`, `prepare` or `infer` of its own."""
    weighs_classes: bool = True
    """Whether the loss contains `step.task_loss()`, of which `train.class_weights` and `train.objective` are."""
    needs_every_class: bool = False
    """Whether every class needs a training image."""
    per_image: bool = False
    """Whether class features depend on the image that is being classified."""
    begins_anew: bool = False
    """Whether `prepare` sets the initial values of what trains, so that training cannot continue an earlier adapter."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.name
        if {"prepare", "loss", "infer"} & vars(cls).keys() and "learns_any_step" not in vars(cls):
            cls.learns_any_step = False
        settings = getattr(cls.Config, "model_fields", ())
        if cls.edits is not Method.edits and cls.touches is Method.touches and "towers" not in settings:
            advice = 'name the edited towers, such as touches = frozenset({"vision"})'
            raise AdaptError(f"{cls.__name__} defines edits but no touches, so that no tower would be edited: {advice}")

    def __init__(self, **config: object) -> None:
        super().__init__()
        try:
            self.config: Any = self.Config(**config)
        except ValidationError as error:
            raise AdaptError(explain(self.Config, error, self.name)) from None
        self.built = False

    @property
    def touches(self) -> frozenset[str]:
        """The names of the towers that this method edits, by default those in the setting `towers`."""
        return frozenset(getattr(self.config, "towers", ()))

    @property
    def per_class(self) -> bool:
        """Whether a tensor of the method is specific to the training classes, so that new classes need new training."""
        return False

    @property
    def logit_scale(self) -> float | None:
        """The fixed logit scale, by default the setting `logit_scale`, or None to use the backbone's logit scale."""
        return getattr(self.config, "logit_scale", None)

    @property
    def views(self) -> int:
        """The number of random augmented views of each image that `infer` reads in addition to the image itself."""
        return 0

    @property
    def parts(self) -> Mapping[str, Method]:
        """The component methods of a composition by name. A single method is its own only component."""
        return {self.name: self}

    # changes inside the backbone

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Allocate the parameters for the backbone's tower sizes. Called by `wrap`, and when training restarts."""

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        """Return the prompts of a class, whose features are averaged, or [] if the logits need no class features.

        By default, the prompts are made from the templates in the setting `template`. A method without this setting has
        no prompts.
        """
        templates = getattr(self.config, "template", ())
        return from_templates(tokenizer, templates, class_name)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        """Return the changes that the method makes inside `tower` (a transformer) during the current forward call."""
        return []

    # learning

    def logits(self, step: StepT) -> Tensor:
        """Return the logits `(b, n)` of a batch, or `(b, l, v)` for the answers of a language model.

        By default, the logits are the cosine similarities of image and class features, times the logit scale.
        """
        return step.model.own_logits(step)

    def loss(self, step: StepT) -> Terms:
        """Return the terms of a batch's loss by name. The loss is the sum of the terms, and each term is logged."""
        return step.task_loss()

    @property
    def takes_steps(self) -> bool:
        """Whether gradient steps train the method: by default the setting `train`, or whether it has parameters."""
        return getattr(self.config, "train", None) or any(True for _ in self.parameters())

    def trains(self) -> Iterable[nn.Parameter]:
        """Return the parameters for the optimiser, including trained parameters that adapter files leave out."""
        return self.parameters()

    def groups(self) -> Iterable[ParameterGroup]:
        """Return the parameters of `trains`, each in one group; by default all have the recipe's rate and decay."""
        return [ParameterGroup(tuple(self.trains()))]

    def prepare(self, training: Training) -> None:
        """Do the method's work before or instead of gradient steps, such as a closed-form fit, a cache or a search.

        A resumed run (`training.resumed`) also calls `prepare`, and then restores trained values from the checkpoint.
        """

    def backward(self, terms: Terms) -> None:
        """Compute the gradients of a batch's loss `terms`, already scaled for gradient accumulation and fp16."""
        total(terms).backward()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        """Do the method's own work at the end of epoch `epoch`, counted from 0, of `epochs` epochs in total."""

    def finish(self, training: Training) -> None:
        """Do the method's own work after the last training step, such as choosing a threshold on validation images."""

    def training_state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that only training needs, which are saved in checkpoints but not in adapters."""
        return {}

    def infer(self, step: StepT) -> Tensor:
        """Return the logits `(b, n)` of a batch at test time without changing the method, so that threads can share it.

        A method for streams of images stores its memory of the batch in `step.memory`.
        """
        return step.logits


def no_prompts(method: Method, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
    """Return no prompts: to be the `prompts` of a method whose template is read by the frozen model alone."""
    return []


class HoldsAside(nn.Module):
    """A base of methods with modules that move with the method, but are neither its parameters nor its state.

    They are no part of the adapter, because only training needs them or because they are frozen.
    """

    _aside: tuple[nn.ModuleDict, ...] = ()  # in a tuple, so that torch does not register them

    def set_aside(self, modules: Mapping[str, nn.Module], device: torch.device) -> None:
        """Hold `modules` by name, in place of earlier ones, and move them to `device`."""
        self._aside = (nn.ModuleDict(modules).to(device),)

    @property
    def aside(self) -> nn.ModuleDict:
        """The modules by name; none before they are set aside."""
        return self._aside[0] if self._aside else nn.ModuleDict()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.aside._apply(fn, recurse)
        return super()._apply(fn, recurse)


def tree(parameters: Mapping[str, nn.Parameter]) -> nn.Module:
    """Return a module that holds `parameters` under their names, in which a dot leads into a module inside."""
    root = nn.Module()
    for name, parameter in parameters.items():
        *path, own = name.split(".")
        owner = root
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(own, parameter)
    return root


class LearnsAside(HoldsAside):
    """A base of methods whose modules set aside are trained too; checkpoints keep them, and adapters do not."""

    def trains(self) -> Iterable[nn.Parameter]:
        return [*self.parameters(), *self.aside.parameters()]

    def training_state(self) -> dict[str, Tensor]:
        return self.aside.state_dict()


def gradient_times(x: Tensor, factor: float | Tensor) -> Tensor:
    """Return `x`, whose gradient is multiplied by `factor` in the backward pass."""
    if x.requires_grad:
        x = x.view_as(x)
        x.register_hook(lambda gradient: factor * gradient)
    return x
