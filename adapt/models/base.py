"""What all adapted models are: a frozen backbone under a method, as one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar

import torch
from torch import Tensor, nn

from adapt.backbones.absent import cut_out
from adapt.backbones.base import Backbone, DualEncoder, outside_inference_mode
from adapt.backbones.preprocess import Transform
from adapt.backbones.turns import alone, changing_modes, copied_alone, keeping_modes
from adapt.data.decoding.images import picture_batches
from adapt.data.decoding.orientation import turns
from adapt.data.decoding.views import Views
from adapt.engine.frozen import frozen
from adapt.engine.hooks import run
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method, checked
from adapt.methods.base.step import Step, Terms
from adapt.methods.base.terms import TERMS
from adapt.models.answers import PLAIN, Answers
from adapt.models.prediction import Prediction, Wanted, decided
from adapt.prompts import several

if TYPE_CHECKING:
    from adapt.edits import Edit

B = TypeVar("B", bound=Backbone, covariant=True)
M = TypeVar("M", bound="Adapted[Any]")
P = ParamSpec("P")
Computed = TypeVar("Computed")


def in_one_mode(call: Callable[Concatenate[M, P], Computed]) -> Callable[Concatenate[M, P], Computed]:
    """A method of an adapted model during which no other thread changes what is in training mode and what is not."""

    @wraps(call)
    def whole(model: M, *args: P.args, **kwargs: P.kwargs) -> Computed:
        with keeping_modes(model.backbone.model):
            return call(model, *args, **kwargs)

    return whole


class Adapted(nn.Module, Generic[B]):
    """A frozen backbone under a method. Its parameters and its `state_dict()` are the method's.

    Edits act inside the calls of this object only: several adapted models may share one backbone.
    """

    baseline = "zero-shot"  # what the backbone does by itself is called so
    method: Method
    class_names: tuple[str, ...]  # what it tells apart; empty where answers are free text
    started = False  # whether its method's tensors are an earlier adapter's, which training goes on from
    memory: Any = None  # what the method remembers of the images of a stream
    class_weights: Tensor | None = None  # how much an image of each class counts in the cross-entropy
    answers: Answers = PLAIN  # what becomes of the method's logits
    vision_path: Literal["fast", "plain"] = "plain"  # which one images take through the vision tower

    def __init__(self, backbone: B, method: Method, class_names: Sequence[str], *, checkpointing: bool = False) -> None:
        super().__init__()
        self._backbone: B | None = backbone
        self.method = method
        self.class_names = tuple(class_names)
        self.checkpointing = checkpointing
        self.metadata: dict[str, Any] = {}  # what an adapter file records beside the method: recipe, metrics, ...

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # one that was unwrapped has no turns to wait for
        return copied_alone(self, self.method if self._backbone is None else self._backbone.model, memo)

    if TYPE_CHECKING:  # torch says of every call that it gives anything

        def __call__(self, *inputs: Any, **named: Any) -> Tensor: ...

    @property
    def backbone(self) -> B:
        if self._backbone is None:
            raise AdaptError("this model was unwrapped: wrap the backbone again")
        return self._backbone

    @property
    def text_path(self) -> str:
        """Which text path serves it: `fast`, `plain`, or `none` for a model without class prompts."""
        return "none"

    @property
    def has_baseline(self) -> bool:
        """Whether the backbone can do the task by itself."""
        return True

    def unwrap(self) -> B:
        """The backbone as it was before `wrap`; this model computes no more."""
        backbone, self._backbone = self.backbone, None
        return backbone

    def turn(self, turned: bool) -> None:
        """Pictures are `turned` upright by their EXIF orientation from now on, or taken as stored: as it is to learn.

        The backbone that was wrapped stays as it is.
        """
        self._backbone = self.backbone.turning(turned)

    def transform(self) -> Transform:
        """How images are read for an answer: with views `(1 + v, 3, h, w)` where the method looks at some."""
        plain, views = self.backbone.transform(train=False), self.method.views
        return Views(plain, self.backbone.transform(train=True), views) if views else plain

    def stream(self) -> Self:
        """The same model for one stream of images, which its method may remember; by itself it keeps nothing.

        `evaluate` and each call of `predict` make one of their own. One stream is of one thread at a time.
        """
        memory = self.method.memory()
        if memory is None:
            return self
        other = copy(self)
        other.memory = memory
        return other

    def step(self, inputs: Any, labels: Tensor | None = None) -> Step:
        """A batch of images, or of what was computed of them, as the method sees it."""
        return Step(self, inputs, labels)

    @in_one_mode
    def answered(self, step: Any) -> Tensor:
        """The logits `(b, n)` with which the model answers a batch."""
        return self.answers.of(step)

    def losses(self, step: Step, weights: Mapping[str, float] | None = None) -> tuple[Terms, Tensor]:
        """The parts of a batch's mean loss, with `weights` of terms that any method may have; which answers are right.

        The latter is `(b,)`.
        """
        with keeping_modes(self.backbone.model):
            terms = dict(checked(self.method.loss(step), self.method.name))
            for name, weight in (weights or {}).items():
                terms[name] = weight * TERMS[name](step)
            return terms, step.right if step.task is None else step.task.right(step)

    def own_logits(self, step: Any) -> Tensor:
        """What a batch is taken for where the method does not say otherwise."""
        raise NotImplementedError

    def decide(self, step: Any) -> tuple[list[str], list[float]]:
        """What the model says of each of a batch, and how sure it is, in [0, 1]."""
        return decided(self.answered(step), self.class_names)

    def blended(self, share: float, template: str | Sequence[str] = "a photo of a {}.") -> Self:
        """The same model, its tensors shared, whose answers are `share` its own and for the rest zero-shot ones.

        0 is zero-shot classification by `template`, 1 the adapted model alone (WiSE-FT; see `adapt.models.answers`).
        Raises AdaptError for a share outside [0, 1], and where there is no zero-shot classifier to blend with.
        """
        if not isinstance(self.backbone, DualEncoder):
            raise AdaptError(f"{self.backbone.describe()} has no zero-shot classifier by names to blend with")
        other = copy(self)
        other.answers = replace(self.answers, blend=share, template=tuple(several(template)))
        return other

    def _predictions(self, pixels: Any, wanted: Wanted) -> Iterator[Prediction]:
        """What the model says of images `(b, 3, h, w)`, a question about each of them if it answers questions."""
        raise NotImplementedError

    def predict(
        self,
        images: Any,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        question: str | None = None,
        threshold: float | None = None,
        features: bool = False,
        urls: bool = False,
    ) -> list[Prediction]:
        """Classes of images, or answers to `question` about each.

        `images` is a path, the bytes of a file, a PIL image, an array `(h, w, c)` or a tensor `(c, h, w)` of uint8 or
        of floats from 0 to 1, a list or iterator of such, or an array of them along its first axis; with `urls` also
        http and https addresses, which are fetched. An answer of less than the probability `threshold` is `none`. With
        `features` each prediction has those of its image. May be called from several threads at once.

        Raises AdaptError naming an unreadable file, for what is no image (see `adapt.data.open_image`), a threshold
        outside [0, 1], and features of a model that does not classify by them.
        """
        return list(
            self.predict_stream(
                images, top_k, batch_size, question=question, threshold=threshold, features=features, urls=urls
            )
        )

    def predict_stream(
        self,
        images: Any,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        question: str | None = None,
        threshold: float | None = None,
        features: bool = False,
        urls: bool = False,
    ) -> Iterator[Prediction]:
        """As `predict`, one prediction at a time, holding one batch of images."""
        wanted = Wanted(top_k, threshold, features, question)
        for found in self._of_batches(images, batch_size, urls, lambda model, x: list(model._predictions(x, wanted))):
            yield from found

    def _of_batches(
        self, images: Any, batch_size: int, urls: bool, compute: Callable[[Self, Tensor], Computed]
    ) -> Iterator[Computed]:
        """What is computed of each batch of pixels by this model in evaluation mode, all of them as one stream."""
        model = self if self.memory is not None else self.stream()
        for pixels in self.pixels_of(images, max(1, batch_size // (1 + self.method.views)), urls=urls):
            with evaluating(model), torch.no_grad():  # not around the yield: what the caller does meanwhile is its own
                found = compute(model, pixels)
            yield found

    def pixels_of(self, images: Any, batch_size: int, *, urls: bool = False) -> Iterator[Tensor]:
        """Images, as `predict` takes them, as the model reads them, `(b, 3, h, w)` or with views `(b, v, 3, h, w)`."""
        yield from pixel_batches(images, self.transform(), batch_size, self.backbone.device, urls=urls)

    def start_anew(self) -> None:
        """All that trains is built once more, as the method's settings are now."""
        with outside_inference_mode(), alone(self.backbone.model), frozen(self.backbone.model):
            self.method.build(self.backbone, self.class_names)

    def cut_skipped(self) -> None:
        """Frees the blocks that the method skips: the backbone itself changes, and serves this model only from then on.

        Raises AdaptError for a method that skips none.
        """
        if not self.method.skipped:
            raise AdaptError(f"this {self.method.name} skips no block that could be freed")
        backbone: Any = self.backbone
        _ = backbone.fingerprint, getattr(backbone, "embed_dim", None)  # both are of the whole model: kept from now on
        cut_out(backbone, self.method.skipped)

    def save(self, path: str | Path) -> Path:
        """Writes the adapter file; see `adapt.formats.adapter`."""
        from adapt.formats import adapter

        return adapter.save(self, path)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        license: str | None = None,
        message: str | None = None,
    ) -> str:
        """Publishes the adapter on the Hugging Face hub as `user/name`, with a model card; returns its address.

        It loads as `adapt.load("hf://user/name")`. Plain LoRA on a transformers model goes there in peft's layout too.
        `private` is of a new repository, `license` an identifier such as apache-2.0 for the card, `message` the
        commit's, and `token` the one of `hf auth login`, or of HF_TOKEN, where left out.

        Raises AdaptError where the hub refuses it, or cannot be reached.
        """
        from adapt.formats import publishing

        return publishing.push(self, repository, private=private, token=token, license=license, message=message)

    @torch.compiler.disable  # objects made anew for every call: nothing that tracing could keep
    def _edits(self, tower: str, context: Context) -> list[Edit]:
        """What the method asks of `tower` in this call."""
        touched = tower in self.method.touches
        return self.method.edits(self.backbone.tower(tower), context) if touched else []

    def _through(
        self, edits: Mapping[str, Sequence[Edit]], compute: Callable[[], Computed], merge: bool = False
    ) -> Computed:
        """What `compute()` gives through the frozen backbone with these edits of its towers."""
        backbone = self.backbone
        changes = [(backbone.tower(name), asked) for name, asked in edits.items() if asked]
        if not changes:
            with frozen(backbone.model):
                return compute()
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        return run(backbone.model, changes, compute, checkpointing=checkpointing, merge=merge)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to()` and its kin move the backbone too, though it is no child of this module."""
        with outside_inference_mode():
            super()._apply(fn, recurse)
            if self._backbone is not None:
                self._backbone.model._apply(fn)
        return self


def pixel_batches(
    images: Any, transform: Transform, size: int, device: torch.device, *, urls: bool = False
) -> Iterator[Tensor]:
    """Images, as `predict` takes them, read by `transform`: up to `size` of them at a time, on `device`."""
    for pictures in picture_batches(images, size, turned=turns(transform), urls=urls):
        yield torch.stack([transform(picture) for picture in pictures]).to(device)


@contextmanager
def evaluating(model: Adapted[Any]) -> Iterator[None]:
    """Inside, `model` is in evaluation mode; afterwards each of its modules is in the mode that it was in.

    Other threads' calls on the backbone run in the modes that their callers left: before this, or after it.
    """
    frozen_model = model.backbone.model
    with keeping_modes(frozen_model):
        if not any(module.training for module in model.modules()):
            yield
            return
    with changing_modes(frozen_model), alone(frozen_model):  # nor are blocks computed again in another mode
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
