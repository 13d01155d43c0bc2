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

KINDS: tuple[str, ...] = ("dual encoder", "fusion encoder", "vision LLM", "native VLM")  # kinds of backbones

StepT = TypeVar("StepT", bound=Step, contravariant=True, default=Any)


class Method(nn.Module, Generic[StepT]):
    """The base of all methods, with the members that every method has and that training calls.

    `Method(**config)` creates a method and `wrap` builds it on a backbone. `Method[PairStep]` names the kind of batches
    that it reads. Members of only some methods are traits, listed beside `Method` in the class statement: see
    `adapt.methods.base.traits`.

    `named_parameters()` are exactly the tensors that train, and `state_dict()` exactly those that an adapter holds,
    under the names of the paper's reference implementation.
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
    """Whether the loss contains `step.task_loss()`, in which classes may have weights (`train.class_weights`)."""
    needs_every_class: bool = False
    """Whether every class needs a training image."""
    begins_anew: bool = False
    """Whether `prepare` sets the initial values of what trains, so that training cannot continue an earlier adapter."""

    def __init_subclass__(cls, **options: object) -> None:
        super().__init_subclass__(**options)
        if "name" in vars(cls) and "title" not in vars(cls):
            cls.title = cls.name
        if "learns_any_step" not in vars(cls):
            cls.learns_any_step = all(
                getattr(cls, each) is getattr(Method, each) for each in ("prepare", "loss", "infer")
            )
        if cls.edits is not Method.edits and cls.touches is Method.touches:
            advice = 'name the towers it edits, such as touches = frozenset({"vision"})'
            raise AdaptError(f"{cls.__name__} defines edits without touches, so no tower would ask for them: {advice}")

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
        """Whether a tensor of the method belongs to certain classes, so that it cannot serve other class names."""
        return False

    @property
    def per_image(self) -> bool:
        """Whether class features depend on the image that is being classified."""
        return False

    @property
    def logit_scale(self) -> float | None:
        """A fixed logit scale, or None for the backbone's own."""
        return None

    @property
    def views(self) -> int:
        """The number of random views of each image that `infer` reads in addition to the image itself."""
        return 0

    @property
    def parts(self) -> Mapping[str, Method]:
        """The methods that make up a composition, by name; for any other method, only the method itself."""
        return {self.name: self}

    # changes inside the backbone

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Allocate the parameters, sized by the backbone's towers. Called by `wrap`, and when training starts anew."""

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        """Return the prompts of a class, whose features are averaged; none if the logits need no class features.

        By default they come from the templates in the setting `template`. A method without this setting has no prompts.
        """
        templates = getattr(self.config, "template", ())
        return from_templates(tokenizer, templates, class_name)

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        """Return the changes that the method makes inside `tower` (a transformer stack) in this call of the model."""
        return []

    # learning

    def logits(self, step: StepT) -> Tensor:
        """Return the logits `(b, n)` of a batch, or `(b, l, v)` for the answers of a language model.

        By default they are the cosine similarities of images and class features, times the logit scale.
        """
        logits: Tensor = step.model.own_logits(step)
        return logits

    def loss(self, step: StepT) -> Terms:
        """Return the terms of a batch's loss, by name. The loss is their sum; the log shows each of them."""
        return step.task_loss()

    @property
    def takes_steps(self) -> bool:
        """Whether the method is trained by gradient steps; by default, whether it has parameters."""
        return any(True for _ in self.parameters())

    def trains(self) -> Iterable[nn.Parameter]:
        """Return the parameters for the optimiser, including trained parameters that adapter files leave out."""
        return self.parameters()

    def prepare(self, training: Training) -> None:
        """Do the method's work before, or instead of, training steps: closed forms, caches, statistics, a search.

        A resumed run (`training.resumed`) also calls it, and then restores the trained values from the checkpoint.
        """

    def backward(self, terms: Terms) -> None:
        """Compute the gradients of a batch's loss. `terms` are already scaled for gradient accumulation and fp16."""
        total(terms).backward()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        """Do the method's own work at the end of epoch number `epoch`, counted from 0, of `epochs`."""

    def finish(self, training: Training) -> None:
        """Do the method's own work after the last training step, such as a choice on validation images."""

    def training_state(self) -> dict[str, Tensor]:
        """Return, by name, the tensors that only training needs. Checkpoints hold them; adapters do not."""
        return {}

    def infer(self, step: StepT) -> Tensor:
        """Return the logits `(b, n)` of a batch at test time. Changes nothing, so several threads may call it at once.

        A method for streams of images stores what it remembers of the batch in `step.memory`.
        """
        logits: Tensor = step.logits
        return logits
