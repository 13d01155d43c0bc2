"""The interface of a method: a plug-in that owns every trainable tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ValidationError
from torch import Tensor, nn

from adapt.backbones.base import Backbone
from adapt.backbones.tokenizer import TextTokenizer
from adapt.backbones.tower import Tower
from adapt.edits import Edit
from adapt.errors import AdaptError
from adapt.methods.base.config import MethodConfig
from adapt.methods.base.context import Context
from adapt.methods.base.grid import Choice, Trial, trials
from adapt.methods.base.mixture import Mixture
from adapt.methods.base.space import Space
from adapt.methods.base.step import BlockInputs, Encoded, ImageStep, PairStep, Step, Terms, contrast
from adapt.methods.base.terms import checked, total
from adapt.methods.base.training import Training
from adapt.prompts import Prompt
from adapt.validation import explain

__all__ = [
    "BlockInputs", "Choice", "Context", "Encoded", "ImageStep", "Method", "MethodConfig", "Mixture", "PairStep",
    "Space", "Step", "Terms", "Training", "Trial", "check_depth", "checked", "contrast", "depth_in",
    "learned", "mean_of", "total",
]  # fmt: skip

FAMILIES = ("dual encoder", "fusion encoder", "vision LLM")  # of backbones
LEARNER = "prompt_learner."  # where published checkpoints that hold all of CLIP keep a method's tensors


class Method(nn.Module):
    """Base of all methods. `Method(**config)` makes it, `wrap` builds it on a backbone.

    `named_parameters()` are exactly what trains and `state_dict()` exactly what an adapter holds, under the names of
    the paper's reference implementation.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    """One line about it, for lists; by default its name."""
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    needs_every_class: ClassVar[bool] = False
    """Whether there must be a training image of every class."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """What it needs beside features: `images`, so that the cache of features does not serve, and `tokens` of them."""
    begins_anew: ClassVar[bool] = False
    """Whether `prepare` gives what trains its first values: training cannot go on from an earlier adapter then."""
    stands_alone: ClassVar[bool] = False
    """Whether it cannot be a part of `compose`."""
    tasks: ClassVar[frozenset[str]] = frozenset({"classes"})
    """The tasks that it learns by name: those for which its loss, or its preparation, is made."""
    learns_any_step: ClassVar[bool] = True
    """Whether it learns every other task too that has steps of its kind: its labels act through `step.task_loss()`
    alone. True by itself where it has no `loss`, `prepare` or `infer` of its own; other methods say so."""
    learns_shares: ClassVar[bool] = False
    """Whether `prepare` learns from `training.shares`, so that every task learns whose items belong to classes by
    shares, plain classes among them."""
    weighs_classes: ClassVar[bool] = True
    """Whether its loss has `step.task_loss()`, in which classes may count differently (`train.class_weights`)."""
    together: int = 1
    """How many pairs of one entity follow each other in training, where it learns from what belongs together."""
    prompt_average: ClassVar[Literal["unit", "mean", "raw"]] = "unit"
    """What becomes of the features of a class's prompts: the mean of unit-length ones, which gets unit length again, or
    as it is (`mean`); or the mean of what the tower gives (`raw`)."""
    serves: ClassVar[tuple[str, ...]] = ("dual encoder",)
    """The families of backbones that it adapts."""
    example: ClassVar[dict[str, Any]] = {}
    """Small settings, with which the contract suite and `adapt.testing.check_method` run."""
    at_answer: ClassVar[frozenset[str]] = frozenset()
    """The settings in `grid` that act on answers alone, so that one fit serves all their values."""
    absent: frozenset[str] = frozenset()
    """The blocks that another method on the backbone skips for good, such as vision.3: nothing is kept inside them."""

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
    def chosen_on_validation(self) -> str | None:
        """The setting that its steps choose on validation images where it is left out, if there is such a one."""
        return None

    def grid(self, training: Training) -> dict[str, Choice]:
        """The settings that are left to the data, with the values to try: see `adapt.training.choice`."""
        return {}

    @property
    def balanced(self) -> bool:
        """Whether in what is chosen on data each class counts the same, however many images it has."""
        return False

    def trials(self, training: Training, choices: Mapping[str, Choice], learned: bool = False) -> Iterator[Trial]:
        """Logits of the validation images under each of `choices`, fitted unless it has `learned` already."""
        return trials(self, training, choices, learned)

    @property
    def normal_class(self) -> str | None:
        """The class of what is as it should be, of a method that says where images are not (`anomalies`); else None."""
        return None

    @property
    def of_overlaps(self) -> bool:
        """Whether it learns from how much regions overlap with their object's box."""
        return False

    @property
    def skipped(self) -> frozenset[str]:
        """The blocks that are never executed, such as vision.3."""
        return frozenset()

    @property
    def per_image(self) -> bool:
        """Whether the features of the classes depend on the image that is classified."""
        return False

    @property
    def owns_prompts(self) -> bool:
        """Whether learned tokens have places in its prompts, so that a template would not do."""
        return False

    @property
    def learned_tokens(self) -> dict[str, Tensor]:
        """Learned text tokens `(..., d)` by parameter name, whose nearest words a person may read."""
        return {}

    @property
    def logit_scale(self) -> float | None:
        """A fixed scale of the logits; None takes the backbone's own."""
        return None

    @classmethod
    def published(cls, state: dict[str, Tensor], given: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """This method's tensors in the state of a published checkpoint, and the settings that follow from them.

        `given` are settings that the caller knows, for what the tensors do not tell.
        Raises KeyError for a tensor that is missing, AdaptError for a method of which nothing was published.
        """
        raise AdaptError(f"there are no published {cls.name} checkpoints that adapt knows how to read")

    def check_whole(self) -> None:
        """AdaptError where the settings name a file whose content an adapter has to hold; before it is built."""

    @classmethod
    def mixed(cls, members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Settings and tensors of one method in place of several that have the same settings: by default a mean.

        Raises AdaptError for a mixture that their tensors do not allow.
        """
        return mean_of(members, mixture)

    def check_family(self, backbone: Backbone) -> None:
        """AdaptError unless it adapts backbones of this family."""
        if backbone.family not in self.serves:
            raise AdaptError(
                f"{self.name} adapts a {' or a '.join(self.serves)}, and {backbone.describe()} is a {backbone.family}"
            )

    def build(self, backbone: Backbone, class_names: Sequence[str]) -> None:
        """Allocates the parameters; sizes come from the backbone's towers. Called by `wrap`, and to start anew."""

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """AdaptError where tensors of `source` that fit in name, shape and type hold what this method cannot use."""

    def prompts(self, tokenizer: TextTokenizer, class_name: str) -> list[Prompt]:
        """The prompts of a class; the features of several are averaged. None where logits need no class features."""
        return []

    def descriptors(self, class_name: str) -> Sequence[str]:
        """What each prompt of a class says of it, in their order, where answers are explained by that."""
        return ()

    def edits(self, tower: Tower, context: Context) -> list[Edit]:
        """The changes asked of `tower` in this call."""
        return []

    def image_features(self, images: Tensor) -> Tensor | None:
        """Features `(b, e)` of images `(b, 3, h, w)` by a model of the method's own; None takes the vision tower's.

        Of any length: the model gives them unit length.
        """
        return None

    @property
    def space(self) -> Space | None:
        """That of another backbone, where its features are to be compared with that one's; None for its own."""
        return None

    def project(self, features: Tensor) -> Tensor:
        """Features `(..., e)` of either tower as they are compared `(..., d)`, which get unit length again."""
        return features

    def pool(self, features: Tensor, text_features: Tensor) -> Tensor:
        """One feature `(b, e)` of each pair, of those of its image and of its text `(b, e)`, both of unit length.

        It gets unit length again.
        """
        return (features + text_features) / 2

    def logits(self, step: Any) -> Tensor:
        """What a batch is taken for `(b, n)`: of images scaled cosines of image and class features, of questions about
        them what the trained head, or the language model `(b, l, v)`, makes of both."""
        logits: Tensor = step.model.own_logits(step)
        return logits

    def score(self, logits: Tensor) -> Tensor | None:
        """The numbers `(b,)`, such as grades, that logits `(b, n)` stand for; None where they stand for none."""
        return None

    def anomalies(self, step: Any) -> Tensor:
        """How unlike the normal state each pixel of a batch of images looks, from 0 to 1: `(b, h, w)`."""
        raise NotImplementedError

    def loss(self, step: Any) -> Terms:
        """What training makes smaller, by parts that add up, which the log keeps apart."""
        return step.task_loss()

    @property
    def takes_steps(self) -> bool:
        """Whether it is trained by steps; by default where there is something to train."""
        return any(True for _ in self.parameters())

    def trains(self) -> Iterable[nn.Parameter]:
        """What the optimiser is given: the parameters, and what else learns in training and is in no adapter."""
        return self.parameters()

    def prepare(self, training: Training) -> None:
        """What comes before the first step, or in place of all: closed forms, caches, statistics, a start, a search.

        A run that goes on calls it too: its steps' values then come from the checkpoint (`training.resumed`).
        """

    def backward(self, terms: Terms) -> None:
        """Leaves the gradients of a batch's loss in the parameters. `terms` are scaled for accumulation, and fp16."""
        total(terms).backward()

    def epoch_done(self, epoch: int, epochs: int) -> None:
        """What follows an epoch, the first being 0, of as many."""

    def finish(self, training: Training) -> None:
        """What comes after the last step, such as a choice on validation images."""

    @classmethod
    def lines(cls, metrics: Mapping[str, Any]) -> Iterable[str]:
        """What a person reads of the figures that a training of this method noted, among all `metrics`."""
        return ()

    @classmethod
    def draw(cls, run: Path) -> None:
        """Draws what a run's directory holds of this method's own, into it."""

    def training_state(self) -> dict[str, Tensor]:
        """What only training needs, by name: it is kept in checkpoints, which fill these tensors, never in adapters."""
        return {}

    @property
    def views(self) -> int:
        """How many random views of each image `infer` looks at, beside the image itself."""
        return 0

    def memory(self) -> Any:
        """A new memory of a stream of images, where the answer to an image depends on those before it; else None."""

    def infer(self, step: Any) -> Tensor:
        """The answer to a batch at test time, as logits `(b, n)`. Changes nothing: several threads may ask at once.

        What it is to remember of a stream of images it adds to `step.memory`.
        """
        logits: Tensor = step.logits
        return logits


def mean_of(members: Sequence[Method], mixture: Mixture) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The mean of what was trained. AdaptError where it is none, or where what was not trained differs."""
    first = members[0]
    if not mixture.is_linear:
        raise AdaptError(
            f"{mixture.combination} mixes changes from a common start, which a {first.name} adapter does not record: "
            "take linear, or adapters of lora"
        )
    if mixture.rank is not None:
        raise AdaptError(f"{first.name} has no rank: leave it out, which is of lora")
    if abs(sum(mixture.weights) - 1) > 1e-6:
        raise AdaptError(
            f"the weights sum to {sum(mixture.weights):g}; expected 1, for a mean of {first.name}'s tensors"
        )
    states = [member.state_dict() for member in members]
    trained = {name for name, _ in first.named_parameters()}
    tensors = {}
    for name, tensor in states[0].items():
        if name not in trained and not all(tensor.equal(state[name]) for state in states):
            raise AdaptError(
                f"{first.name} keeps {name}, which its images gave and no step trained: it differs, and has no mean"
            )
        tensors[name] = mixture.mean([state[name] for state in states]) if name in trained else tensor
    return first.config.model_dump(mode="json"), tensors


def learned(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """What a published checkpoint's prompt learner holds under `prefix`, its buffers of frozen tokens left out."""
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    return {key: tensor for key, tensor in own.items() if key not in ("token_prefix", "token_suffix")}


def depth_in(towers: Sequence[Tower], asked: int | None, share: float, method: str, field: str) -> int:
    """The blocks that are `asked` for, or that `share` of the smallest tower's; AdaptError as `check_depth`."""
    depth = max(1, int(share * min(len(tower.blocks) for tower in towers))) if asked is None else asked
    for tower in towers:
        check_depth(tower, depth, method, field)
    return depth


def check_depth(tower: Tower, depth: int, method: str, field: str) -> None:
    """AdaptError, naming the setting `field` of `method`, where `tower` has fewer than `depth` blocks."""
    blocks = len(tower.blocks)
    if depth > blocks:
        raise AdaptError(
            f"{method}: {field} is {depth}, but the {tower.name} tower has {blocks} blocks: set method.{field} to 1 to "
            f"{blocks}"
        )
