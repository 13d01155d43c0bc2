"""The interface of a method: a plug-in that owns every trainable tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic

from pydantic import ValidationError
from torch import Tensor, nn
from typing_extensions import TypeVar

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit
from adapt.errors import AdaptError
from adapt.methods.base.config import MethodConfig
from adapt.methods.base.context import Context
from adapt.methods.base.step import Step, Terms
from adapt.methods.base.terms import total
from adapt.methods.base.training import Training
from adapt.prompts import Prompt, from_templates
from adapt.validation import explain

KINDS: tuple[str, ...] = ("dual encoder", "fusion encoder", "vision LLM")  # of backbones

StepT = TypeVar("StepT", bound=Step, contravariant=True, default=Any)


class Method(nn.Module, Generic[StepT]):
    """Base of all methods: what each of them has, and what training calls.

    `Method(**config)` makes it, `wrap` builds it on a backbone. `Method[PairStep]` says which batches it reads. What
    only some methods have is a trait beside `Method` in the class's line: see `adapt.methods.base.traits`.

    `named_parameters()` are exactly what trains and `state_dict()` exactly what an adapter holds, under the names of
    the paper's reference implementation.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """One line about the method, for lists; by default its name."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    example: ClassVar[dict[str, Any]] = {}
    """Small settings, with which the contract suite and `adapt.testing.check_method` run."""
    serves: tuple[str, ...] = ("dual encoder",)
    """The kinds of backbones that the method adapts."""
    reads: frozenset[str] = frozenset()
    """Inputs beyond features: `images`, so that the cache of features does not serve, and `tokens` of images."""
    tasks: frozenset[str] = frozenset({"classes"})
    """The tasks for which the method has a loss or a preparation of its own."""
    learns_any_step: bool = True
    """Whether the method also learns every other task that has steps of its kind, because labels act through
    `step.task_loss()` alone. The default is True for a method without its own `loss`, `prepare` and `infer`."""
    weighs_classes: bool = True
    """Whether the loss contains `step.task_loss()`, in which classes may count differently (`train.class_weights`)."""
    needs_every_class: bool = False
    """Whether there must be a training image of every class."""
    begins_anew: bool = False
    """Whether `prepare` sets the first values of what trains, so that training cannot continue an earlier adapter."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.name
        if "learns_any_step" not in vars(cls):
            cls.learns_any_step = all(
                getattr(cls, each) is getattr(Method, each) for each in ("prepare", "loss", "infer")
            )
        if cls.edits is not Method.edits and cls.touches is Method.touches:
            which = 'say which towers it edits, such as touches = frozenset({"vision"})'
            raise AdaptError(f"{cls.__name__} has edits and no touches, so that no tower would ask for them: {which}")

    def __init__(self, **config: Any) -> None:
        super().__init__()
        try:
            self.config: Any = self.Config(**config)
        except ValidationError as error:
            raise AdaptError(explain(self.Config, error, self.name)) from None
        self.built = False

    @property
    def touches(self) -> frozenset[str]:
        """The towers that this method edits, known before anything runs."""
        return frozenset()

    @property
    def per_class(self) -> bool:
        """Whether some tensor belongs to one class, so that other class names cannot be served."""
        return False

    @property
    def per_image(self) -> bool:
        """Whether class features depend on the image that is classified."""
        return False

    @property
    def logit_scale(self) -> float | None:
        """A fixed scale of the logits; None takes the backbone's own."""
        return None

    @property
    def views(self) -> int:
        """How many random views of each image `infer` looks at, beside the image itself."""
        return 0

    @property
    def parts(self) -> Mapping[str, Method]:
        """The methods that this one consists of, by name: itself, unless it composes others."""
        return {self.name: self}

    # what changes inside the backbone

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Allocate the parameters; sizes come from the backbone's towers. Called by `wrap`, and to start anew."""

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        """Return the prompts of a class, whose features are averaged; none where logits need no class features.

        By default they are the templates in the setting `template`; a method without this setting has no prompts.
        """
        templates = getattr(self.config, "template", ())
        return from_templates(tokenizer, templates, class_name)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        """Return the changes of `tower` in this call."""
        return []

    # how it is learned

    def logits(self, step: StepT) -> Tensor:
        """Return the logits of a batch `(b, n)`; of a language model's answers `(b, l, v)`.

        By default images are compared with class features by scaled cosines.
        """
        logits: Tensor = step.model.own_logits(step)
        return logits

    def loss(self, step: StepT) -> Terms:
        """Return the terms of a batch's loss by name. They add up, and the log keeps them apart."""
        return step.task_loss()

    @property
    def takes_steps(self) -> bool:
        """Whether the method is trained by steps; by default where it has parameters."""
        return any(True for _ in self.parameters())

    def trains(self) -> Iterable[nn.Parameter]:
        """Return what the optimiser is given: the parameters, and modules that learn but are in no adapter."""
        return self.parameters()

    def prepare(self, training: Training) -> None:
        """Do what comes before the first step, or in place of all: closed forms, caches, statistics, a search.

        A resumed run calls it too: the values of what its steps train then come from the checkpoint
        (`training.resumed`).
        """

    def backward(self, terms: Terms) -> None:
        """Leave the gradients of a batch's loss in the parameters. `terms` are scaled for accumulation, and fp16."""
        total(terms).backward()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        """Do what follows `epoch`, counted from 0, of `epochs`."""

    def finish(self, training: Training) -> None:
        """Do what comes after the last step, such as a choice on validation images."""

    def training_state(self) -> dict[str, Tensor]:
        """Return tensors that only training needs, by name. They are kept in checkpoints, and not in adapters."""
        return {}

    def infer(self, step: StepT) -> Tensor:
        """Return the logits `(b, n)` of a batch at test time. Changes nothing: several threads may ask at once.

        What a stream's method remembers of the batch goes into `step.memory`.
        """
        logits: Tensor = step.logits
        return logits
