"""The base class of adapted models: a frozen backbone and a method, joined in one module."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Self, cast

import torch
from torch import Tensor, nn
from typing_extensions import TypeIs, TypeVar

from adapt.backbones.base import Backbone, DualEncoder, cut_out, in_single_precision, outside_inference_mode
from adapt.backbones.locks import alone, changing_modes, copied_alone, frozen, keeping_modes
from adapt.backbones.preprocess import Transform
from adapt.common import plain
from adapt.common.errors import AdaptError
from adapt.common.plain import JsonObject
from adapt.common.untraced import untraced
from adapt.data.bags import is_bag
from adapt.data.decoding.images import each_of, open_image, picture_batches
from adapt.data.decoding.pictures import turns
from adapt.engine.hooks import run
from adapt.methods.base import Context, Method, checked
from adapt.methods.base.class_loss import ClassLoss
from adapt.methods.base.step import TERMS, Step, Terms
from adapt.methods.base.traits import (
    Grades,
    OwnClassifier,
    SetAtUse,
    Stream,
    has_trait,
    skipped_blocks,
    trait,
)
from adapt.models.prediction import PLAIN, Answers, Prediction, Query, decided
from adapt.models.sets import Sets
from adapt.prompts import several

if TYPE_CHECKING:
    from adapt.data.item import Item
    from adapt.edits import Edit
    from adapt.methods.base import Training
    from adapt.models.native_vlm import ChatModel
    from adapt.models.watch import Watch

logger = logging.getLogger("adapt")

B = TypeVar("B", bound=Backbone, covariant=True, default=Backbone)
M = TypeVar("M", bound="Adapted[Backbone]")
P = ParamSpec("P")
Computed = TypeVar("Computed")


def in_one_mode(call: Callable[Concatenate[M, P], Computed]) -> Callable[Concatenate[M, P], Computed]:
    """Decorate a model's method so that no other thread switches training and evaluation modes during a call."""

    @wraps(call)
    def locked(model: M, *args: P.args, **kwargs: P.kwargs) -> Computed:
        with keeping_modes(model.backbone.model):
            return call(model, *args, **kwargs)

    return locked


class _Unwrapped:
    """The stand-in for the backbone of a model that was unwrapped, which refuses all use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by copy and pickle
            raise AttributeError(name)
        raise AdaptError("this model was unwrapped and has no backbone: call adapt.wrap on the backbone again")


class Adapted(nn.Module, Generic[B]):
    """A frozen backbone joined with a method; parameters and `state_dict()` contain only the method's tensors.

    The method edits the backbone only during calls of this object, so several adapted models can share one backbone.
    """

    baseline = "zero-shot"  # the name of the backbone's result without the method
    method: Method
    class_names: tuple[str, ...]  # empty if answers are free text
    evaluated_together = 100  # items in a batch of an evaluation
    started = False  # whether training continues from the tensors of an earlier adapter
    memory: object = None  # the method's memory of a stream of images
    class_loss = ClassLoss()  # of training; the class weights also of several labels
    answers: Answers = PLAIN  # the settings that turn logits into answers
    watch: Watch | None = None  # what the training images looked like, with which later images are compared
    vision_path: Literal["fast", "plain"] = "plain"  # the path of images through the vision tower

    def __init__(self, backbone: B, method: Method, class_names: Sequence[str], *, checkpointing: bool = False) -> None:
        super().__init__()
        self.backbone: B = backbone
        self.method = method
        self.class_names = tuple(class_names)
        self.checkpointing = checkpointing
        self.metadata: JsonObject = {}  # other entries of the adapter file: recipe, metrics, ...

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        # an unwrapped model has no turns to wait for
        return copied_alone(self, self.method if isinstance(self.backbone, _Unwrapped) else self.backbone.model, memo)

    if TYPE_CHECKING:  # torch declares that a call returns Any

        def __call__(self, *inputs: Any, **named: Any) -> Tensor: ...

    @property
    def text_path(self) -> str:
        """The text encoder in use: `fast`, `plain` (the library's forward), or `none` if there are no prompts."""
        return "none"

    @property
    def classifies(self) -> bool:
        """Whether `predict` gives the classes of images without a question about them."""
        return False

    @property
    def draws_maps(self) -> bool:
        """Whether `predict` can say where an image looks abnormal."""
        return False

    @property
    def needs_every_class(self) -> bool:
        """Whether every class needs a training image."""
        return self.method.needs_every_class

    @property
    def has_baseline(self) -> bool:
        """Whether the backbone can perform the task without the method and thus provides a baseline."""
        return True

    def unwrap(self) -> B:
        """Return the backbone as it was before `wrap`; this model cannot be used afterwards."""
        backbone: B = self.backbone
        self.backbone = cast("B", _Unwrapped())
        return backbone

    def turn(self, turned: bool) -> None:
        """Set whether images are rotated upright by their EXIF orientation (`turned`) before preprocessing.

        Training sets `turned` as for the training images. The backbone that was passed to `wrap` does not change.
        """
        self.backbone = self.backbone.turning(turned)

    def transform(self) -> Transform:
        """Return the test-time image transform; with v random views, the transform returns `(1 + v, 3, h, w)`."""
        plain, views = self.backbone.transform(train=False), self.method.views
        if not views:
            return plain
        from adapt.data.decoding.draws import Views

        return Views(plain, self.backbone.transform(train=True), views)

    def stream(self) -> Self:
        """Return this model for one stream of images, with a new memory if the method remembers earlier images.

        Each call of `evaluate` or `predict` creates its own stream. Only one thread at a time may use a stream.
        """
        streams = trait(self.method, Stream)
        if streams is None:
            return self
        other = copy(self)
        other.memory = streams.memory()
        return other

    def step(self, inputs: object, labels: Tensor | None = None) -> Step:
        """Return the `Step` that is passed to methods for a batch of images or of results computed from images."""
        return Step(self, inputs, labels)

    def check_items(self, items: Sequence[Item]) -> None:
        """Raise AdaptError if the model cannot read some of the items, before any image of theirs is decoded."""
        for item in filter(is_bag, items):
            raise AdaptError(
                f"{item.name!r} is an item of several images, but {self.backbone.describe()} reads one image of "
                "each item: leave out the column item"
            )

    def question_step(self, inputs: object, questions: Sequence[str], answers: Sequence[str]) -> Step:
        """Return a batch of images, each with a question and its answer, in the form in which methods see it."""
        return self.step([inputs, questions, answers])

    @in_one_mode
    def answered(self, step: Step) -> Tensor:
        """Return the final logits `(b, n)` of a batch, after zero-shot blend, logit bias and temperature."""
        return self.answers.of(step)

    def losses(self, step: Step, weights: Mapping[str, float] | None = None) -> tuple[Terms, Tensor | None]:
        """Return the terms of a batch's mean loss by name, and a mask `(b,)` of correct answers (None without labels).

        `weights` selects additional loss terms by name, each with a weight; such terms are available for all methods.
        """
        with keeping_modes(self.backbone.model):
            terms = dict(checked(self.method.loss(step), self.method.name))
            for name, weight in (weights or {}).items():
                terms[name] = weight * TERMS[name](step)
            return terms, step.right if step.task is None else step.task.right(step)

    def own_logits(self, step: Any) -> Tensor:
        """Return the default logits of a batch, for methods that do not override `logits`."""
        raise NotImplementedError

    def decide(self, step: Step) -> tuple[list[str], list[float]]:
        """Return the model's answer for each item of a batch, and the confidence of each answer in [0, 1]."""
        return decided(self.answered(step), self.class_names)

    def under(self, method: Method) -> Self:
        """Return a model that shares the backbone and the classes, but uses `method`."""
        other = copy(self)
        other._modules = self._modules | {"method": method}
        return other

    def blended(self, share: float, template: str | Sequence[str] = "a photo of a {}.") -> Self:
        """Return a model with the same tensors whose logits are blended with zero-shot logits (WiSE-FT).

        A `share` of 1 is the adapted model alone, and a `share` of 0 is zero-shot classification by `template`.
        Raises AdaptError for a share outside [0, 1], and for a backbone without zero-shot classification.
        """
        if not isinstance(self.backbone, DualEncoder):
            raise AdaptError(
                f"{self.backbone.describe()} has no zero-shot classifier to blend with: use a dual encoder"
            )
        if share < 1 and has_trait(self.method, Grades) and has_trait(self.method, OwnClassifier):
            raise AdaptError(
                f"{self.method.name} predicts a number, into which no zero-shot logits can be blended: leave blend out"
            )
        other = copy(self)
        other.answers = replace(self.answers, blend=share, template=tuple(several(template)))
        return other

    @property
    def settings_id(self) -> str:
        """A hash of the settings on which the model's probabilities depend, beside its learned tensors."""
        config, answers = self.method.config.model_dump(mode="json"), asdict(replace(self.answers, sets=None))
        told = plain.dump([self.method.name, config, list(self.class_names), answers])
        return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()

    def sets_at(self, level: float, of_items: bool = False, together: bool = False) -> Sets:
        """Return the calibrated sets, which can be given at `level`. Raises AdaptError if there are none, or says why.

        They are of single images, or with `of_items` of items of several images; of each by itself, or `together`.
        """
        sets = self.answers.sets
        if sets is None:
            raise AdaptError(
                "the adapter has no calibrated sets: calibrate them with `adapt sets ADAPTER --data DATA` on labelled "
                "images that it has not learned from"
            )
        sets.check(level, self.settings_id, of_items, together)
        return sets

    def _predictions(self, pixels: Tensor, query: Query) -> Iterator[Prediction]:
        """Yield a prediction for each of the images `(b, 3, h, w)`, or the answer to the requested question."""
        raise NotImplementedError

    def predict(
        self,
        images: object,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        question: str | None = None,
        options: Sequence[str] | None = None,
        threshold: float | None = None,
        sets: float | None = None,
        features: bool = False,
        maps: bool = False,
        urls: bool = False,
    ) -> list[Prediction]:
        """Return a prediction for each image: the most probable classes, or the answer to `question`.

        With `options`, the question is answered by the most probable of these, as a native vision-language model's
        `choose` scores them, and by words otherwise.
        `images` is one image, a list or iterator of images, or an array of images along the first axis. An image is a
        path, the bytes of a file, a PIL image, an array `(h, w, c)` or a tensor `(c, h, w)` of uint8 or of floats from
        0 to 1; with `urls`, also an http or https address. A prediction with a probability below `threshold` has the
        class `none`. With `sets`, such as 0.9, `prediction.set` is the set of classes at that level, or
        `prediction.interval` that of the number, if the model was calibrated. With `features`, predictions include
        image features, and with `maps` where an image looks abnormal. Several threads may call `predict` at once.

        Raises AdaptError, naming the image, for an unreadable file and for anything that is not an image (see
        `adapt.data.open_image`), for a threshold outside [0, 1], for `sets` of a model that was not calibrated, or on
        too few images, for `features` of a model without image features, and for `maps` of a method that draws none.
        """
        query = Query(top_k, threshold, features, question, sets=sets, maps=maps, options=options)
        return list(self.ask(images, query, batch_size, urls=urls))

    def predict_stream(
        self,
        images: object,
        top_k: int = 5,
        batch_size: int = 64,
        *,
        question: str | None = None,
        options: Sequence[str] | None = None,
        threshold: float | None = None,
        sets: float | None = None,
        features: bool = False,
        maps: bool = False,
        urls: bool = False,
    ) -> Iterator[Prediction]:
        """Yield the predictions of `predict` one by one, with only one batch of images in memory."""
        query = Query(top_k, threshold, features, question, sets=sets, maps=maps, options=options)
        yield from self.ask(images, query, batch_size, urls=urls)

    def find(
        self, images: object, threshold: float | None = None, batch_size: int = 64, *, urls: bool = False
    ) -> list[Prediction]:
        """Return a prediction for each image whose `boxes` are windows of at least this probability, by default 0.9.

        The windows are classified each by itself (see `adapt.models.windows`), 285 of them in a square image and more
        in a long one; the rest of a prediction is that of the surest window. Boxes are in pixels of the image as the
        model reads it: as displayed, or as stored if it was trained so, and of a region from the region's corner.
        `images` is as in `predict`, and so are the errors; a method of maps or grades, or with a memory, is refused.
        """
        return list(self.ask(images, Query(threshold=threshold, boxes=True), batch_size, urls=urls))

    def check_query(self, query: Query) -> None:
        """Raise AdaptError if this model cannot answer the query."""
        if query.question is None and not self.classifies:
            raise AdaptError("this model answers questions about images, but there is no question: give a question")
        if query.options is not None:
            self.with_classes(query.options)  # refuses where nothing chooses among names
        if query.features:
            raise AdaptError(f"{self.backbone.describe()} has no image features to return: do not request features")
        if query.maps:
            raise AdaptError(f"{self.backbone.describe()} draws no maps: use an adapter of the method patch_memory")
        if query.items or query.together or query.explain:
            what = "explains no answers" if query.explain else f"classifies no {'items' if query.items else 'sets'}"
            raise AdaptError(f"{self.backbone.describe()} {what} of images: use a CLIP, or a model of images alone")

    def ask(self, images: object, query: Query, batch_size: int = 64, *, urls: bool = False) -> Iterator[Any]:
        """Yield the answer to the query about each image, or item of several images, one by one.

        All of `predict`, `predict_items`, `predict_together` and `explain` ask here. Raises the errors that they list.
        """
        self.check_query(query)
        if query.sets is not None:
            self.sets_at(query.sets, query.items, query.together)
        return (self._found if query.boxes else self._asked)(images, query, batch_size, urls)

    def _found(self, images: object, query: Query, batch_size: int, urls: bool) -> Iterator[Prediction]:
        """Yield the answers of `ask` to a query for boxes, which was checked."""
        from adapt.models import windows

        turned, own = turns(self.transform()), windows.of_each(query)
        for each in each_of(images):
            image = open_image(each, turned=turned, urls=urls)
            places = [*windows.windows(*image.size)]
            answers = self._asked((image.crop(place) for place in places), own, batch_size, False)
            yield windows.found(places, [*answers], own)

    def _asked(self, images: object, query: Query, batch_size: int, urls: bool) -> Iterator[Any]:
        """Yield the answers of `ask` to a query that was checked."""
        for batch in self._of_batches(images, batch_size, urls, lambda model, x: list(model._predictions(x, query))):
            yield from batch

    def _of_batches(
        self, images: object, batch_size: int, urls: bool, compute: Callable[[Self, Tensor], Computed]
    ) -> Iterator[Computed]:
        """Yield `compute(model, pixels)` in evaluation mode for each batch of images from one stream."""
        model = self if self.memory is not None else self.stream()
        for pixels in self.pixels_of(images, max(1, batch_size // (1 + self.method.views)), urls=urls):
            with evaluating(model), torch.no_grad():  # not around the yield, so that the caller's code is unaffected
                result = compute(model, pixels)
            yield result

    def pixels_of(self, images: object, batch_size: int, *, urls: bool = False) -> Iterator[Tensor]:
        """Yield preprocessed batches of the images passed to `predict`: `(b, 3, h, w)` or views `(b, v, 3, h, w)`."""
        transform = self.transform()
        for pictures in picture_batches(images, batch_size, turned=turns(transform), urls=urls):
            yield self.batched([transform(picture) for picture in pictures])

    def batched(self, images: list[Any]) -> Any:
        """Return images that `transform` has preprocessed as one batch on the backbone's device.

        Of images that are left as they were decoded, a batch is a list of lists, with the images of each item.
        """
        if isinstance(images[0], Tensor):
            return torch.stack(images).to(self.backbone.device)
        return [[image] for image in images]

    def set_at_use(self, **changes: object) -> None:
        """Change settings of the method that count when it answers, such as `tokens=4` for `mqt`.

        Raises AdaptError if the method has no such setting.
        """
        method = trait(self.method, SetAtUse)
        if method is None:
            raise AdaptError(f"{self.method.name} has no settings at use: leave {', '.join(changes)} out")
        method.set_at_use(changes)

    def begin(self, training: Training) -> None:
        """Compute what the model needs from the training images before its method is prepared; by default nothing."""

    def start_anew(self) -> None:
        """Create all trainable tensors of the method again, with the method's current settings."""
        model = self.backbone.model
        with outside_inference_mode(), in_single_precision(), alone(model), frozen(model):
            self.method.build(self.backbone, self.class_names)

    def cut_skipped(self) -> None:
        """Remove the blocks that the method skips from the backbone, to free memory.

        The backbone object itself changes, and only this model can use the backbone afterwards. Raises AdaptError if
        the method skips no block.
        """
        if not (skipped := skipped_blocks(self.method)):
            raise AdaptError(f"this {self.method.name} skips no block that could be removed: use a method such as das")
        if self.backbone.towers_share:
            raise AdaptError(
                f"images and texts pass through the same blocks of {self.backbone.describe()}: a block that one side "
                "skips cannot be removed"
            )
        backbone: Any = self.backbone
        _ = backbone.fingerprint, getattr(backbone, "embed_dim", None)  # cached now: both describe the full model
        cut_out(backbone, skipped)

    def with_classes(self, class_names: Sequence[str]) -> Self:
        """Return a model for other class names, which shares the method and the method's tensors with this model.

        Raises AdaptError if the model has learned tensors for individual classes, or has no classes.
        """
        raise AdaptError("this model answers questions about images and has no classes: leave class_names out")

    def watch_for(self, class_names: Sequence[str]) -> Watch | None:
        """Return the watch for answers by these classes. Without features it is by the model's own, and left out."""
        if self.watch is None or self.watch.features is not None or tuple(class_names) == self.class_names:
            return self.watch
        logger.warning("the watch of this adapter is for its own classes, and is not used with others")
        return None

    def save(self, path: str | Path) -> Path:
        """Save the adapter to a file and return the path of the file; see `adapt.formats.adapter`."""
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
        """Publish the adapter with a model card on the Hugging Face hub as `user/name`, and return the URL.

        `adapt.load("hf://user/name")` loads the adapter. Plain LoRA on a transformers model is also uploaded in peft's
        layout. `private` applies only to a new repository, `license` is an identifier for the model card such as
        apache-2.0, `message` is the commit message, and the default `token` is from `hf auth login` or HF_TOKEN.

        Raises AdaptError if the hub refuses the upload or cannot be reached.
        """
        from adapt.formats import publishing

        return publishing.push(self, repository, private=private, token=token, license=license, message=message)

    @untraced  # creates new objects in every call, which tracing cannot reuse
    def _edits(self, tower: str, context: Context) -> list[Edit]:
        """Return the method's edits of `tower` for this call, or an empty list if the method does not edit `tower`."""
        touched = tower in self.method.touches
        return self.method.edits(self.backbone.tower(tower), context) if touched else []

    def _through(
        self, edits: Mapping[str, Sequence[Edit]], compute: Callable[[], Computed], merge: bool = False
    ) -> Computed:
        """Return the result of `compute()`, called with the backbone frozen and `edits` applied to the towers."""
        backbone = self.backbone
        changes = [(backbone.tower(name), own) for name, own in edits.items() if own]
        if not changes:
            with alone(backbone.model) if backbone.runs_alone else nullcontext(), frozen(backbone.model):
                return compute()
        checkpointing = self.checkpointing and torch.is_grad_enabled()
        return run(backbone.model, changes, compute, checkpointing=checkpointing, merge=merge)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` also to the backbone, which is not a submodule, so that `.to()` moves the backbone too."""
        with outside_inference_mode():
            super()._apply(fn, recurse)
            if not isinstance(self.backbone, _Unwrapped):
                self.backbone.model._apply(fn)
        return self


@contextmanager
def evaluating(model: Adapted) -> Iterator[None]:
    """Put `model` into evaluation mode for the `with` block, and restore the mode of each module afterwards.

    If modes change, calls of other threads on the same backbone run before or after the block, in the original modes.
    """
    frozen_model = model.backbone.model
    with keeping_modes(frozen_model):
        if not any(module.training for module in model.modules()):
            yield
            return
    with changing_modes(frozen_model), alone(frozen_model):  # and no block is recomputed in another mode
        training = [module for module in model.modules() if module.training]
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def is_native(model: object) -> TypeIs[ChatModel]:
    """Return whether `model` is a native vision-language model with a method, without importing its class."""
    return isinstance(model, Adapted) and model.backbone.kind == "native VLM"
