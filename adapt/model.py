"""`wrap(backbone, method, class_names)`: a frozen backbone and a method, as one module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.adapted import Adapted, in_one_mode
from adapt.backbones.base import Backbone, DualEncoder, outside_inference_mode
from adapt.backbones.turns import alone
from adapt.backbones.vision_llm import VisionLLM
from adapt.edits import Edit
from adapt.engine import text
from adapt.engine.frozen import frozen
from adapt.engine.memory import free_bytes
from adapt.engine.plan import plan
from adapt.engine.stale import Inputs, Weights
from adapt.errors import AdaptError
from adapt.methods.base import Context, Method
from adapt.prediction import Prediction, predictions
from adapt.prompts import of_classes
from adapt.tasks import classes

TextPath = text.FastText | text.PlainText


def wrap(
    backbone: Backbone,
    method: Method,
    class_names: Sequence[str] = (),
    fast: bool | None = None,
    *,
    checkpointing: bool = False,
    text_memory: int | None = None,
) -> Any:
    """Builds `method` on `backbone`: an `AdaptedModel`, `AnsweringModel` or `SpeakingModel` by the backbone's family.

    `class_names` are the classes, a fusion encoder's answers, and nothing for a vision LLM, which answers in words of
    its own. `fast`: None takes the fast exact text path where it applies, True refuses where it does not, False takes
    the library's own forward. `checkpointing` recomputes the blocks of edited towers in the backward pass.
    `text_memory` bounds the text side's activations in bytes (default: half of what is free).

    Raises AdaptError for what is no backbone, a method that is already built, bad class names, or a backbone that the
    method does not fit.
    """
    names = build(backbone, method, class_names)
    return assemble(backbone, method, names, fast, checkpointing=checkpointing, text_memory=text_memory)


def build(backbone: Backbone, method: Method, class_names: Sequence[str]) -> tuple[str, ...]:
    """Allocates the parameters of `method`, and returns the names of its classes. Raises AdaptError as `wrap` does."""
    _check_parts(backbone, method)
    if method.built:
        raise AdaptError(
            f"this {method.name} already belongs to a model: make a new one, or use model.with_classes(...)"
        )
    method.check_family(backbone)
    names = () if backbone.family == "vision LLM" else check_class_names(class_names)
    with outside_inference_mode(), alone(backbone.model), frozen(backbone.model):  # frozen: no batch statistics move
        method.build(backbone, names)
        _check_edits(backbone, method)
    method.built = True
    return names


def assemble(
    backbone: Backbone,
    method: Method,
    names: tuple[str, ...],
    fast: bool | None,
    *,
    checkpointing: bool = False,
    text_memory: int | None = None,
) -> Any:
    """The model of a method that was built on `backbone`, by the backbone's family."""
    from adapt.answering import AnsweringModel
    from adapt.speaking import SpeakingModel

    with outside_inference_mode():
        if isinstance(backbone, DualEncoder):
            return AdaptedModel(backbone, method, names, fast, checkpointing=checkpointing, text_memory=text_memory)
        kind: Any = SpeakingModel if backbone.family == "vision LLM" else AnsweringModel
        return kind(backbone, method, names, checkpointing=checkpointing)


def _check_parts(backbone: Any, method: Any) -> None:
    """Raises AdaptError, with what to call, for a model of a library, a name, or a class in place of its object."""
    if not isinstance(backbone, Backbone):
        given = f"the name {backbone!r}" if isinstance(backbone, str) else f"a {type(backbone).__name__}"
        raise AdaptError(
            f"wrap got {given}; expected a backbone: call adapt.load_backbone(NAME), "
            "Backbone.from_open_clip(model, tokenizer) or Backbone.from_transformers(model, processor)"
        )
    if not isinstance(method, Method):
        given = f"the class {method.__name__}" if isinstance(method, type) else repr(method)
        raise AdaptError(f"wrap got {given} as method; expected an object such as adapt.methods.CoOp()")


@torch.no_grad()
def _check_edits(backbone: Backbone, method: Method) -> None:
    """AdaptError where a tower cannot carry what `method` asks of it, or two edits want one place."""
    features: dict[str, Any] = {}
    tokens: dict[str, Any] = {}
    if isinstance(backbone, DualEncoder):
        features["vision"] = lambda: torch.zeros(1, backbone.embed_dim, device=backbone.device)
    if isinstance(backbone, VisionLLM):
        tokens["vision"] = lambda: torch.zeros(1, *backbone.patch_shape(), device=backbone.device)
    for name in sorted(method.touches):
        tower = backbone.tower(name)
        plan(tower, method.edits(tower, Context(features, tokens)))


def check_class_names(class_names: Sequence[str]) -> tuple[str, ...]:
    """At least one name, none empty, none twice."""
    names = tuple(class_names)
    if isinstance(class_names, str) or not names:
        raise AdaptError(f"class_names is {class_names!r}; expected a list of at least one name")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise AdaptError(f"class name {name!r} is empty; every class needs a name to read")
    most_common, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise AdaptError(f"class name {most_common!r} appears {count} times; names tell classes apart")
    return names


@dataclass(frozen=True)
class _Known:
    """Features of the classes, and what they were computed from."""

    precision: tuple[Any, ...]
    weights: Weights
    edits: Inputs
    features: Tensor


class AdaptedModel(Adapted[DualEncoder]):
    """Classifies images by names, or by a trained head."""

    def __init__(
        self,
        backbone: DualEncoder,
        method: Method,
        class_names: Sequence[str],
        fast: bool | None,
        *,
        checkpointing: bool = False,
        text_memory: int | None = None,
    ) -> None:
        super().__init__(backbone, method, class_names, checkpointing=checkpointing)
        self.fast = fast
        # read once: parts that changed from step to step would draw other dropout, and a resumed run would differ
        self.text_memory = text_memory or free_bytes(backbone.device) // 2
        prompts = (
            of_classes(backbone.tokenizer, self.class_names, partial(method.prompts, backbone.tokenizer))
            if method.task == "classes"
            else []
        )
        self._prompts_per_class = len(prompts[0]) if prompts else 0
        self._text = self._text_path([prompt for own in prompts for prompt in own]) if prompts else None
        self._cached: _Known | None = None

    @in_one_mode
    def forward(self, images: Tensor) -> Tensor:
        """Images `(b, 3, h, w)` to logits `(b, n_classes)`."""
        return self.logits(self.image_features(images))

    @in_one_mode
    def logits(self, image_features: Tensor) -> Tensor:
        """Unit-length image features `(b, e)` to logits: scaled cosines with the classes, or the head's output."""
        if self.method.task == "head":
            return self.method.head(image_features)
        scale = self.method.logit_scale or self.backbone.logit_scale
        return classes.logits(image_features, self.class_features(image_features), scale, self.backbone.logit_bias)

    @in_one_mode
    def image_features(self, images: Tensor) -> Tensor:
        """Images `(b, 3, h, w)` to unit-length features `(b, e)`."""
        return self._image_features(images, self._edits("vision", Context()))

    def backbone_features(self, images: Tensor) -> Tensor:
        """As `image_features`, by the backbone without the method."""
        return self._image_features(images, [])

    def _image_features(self, images: Tensor, edits: Sequence[Edit]) -> Tensor:
        backbone = self.backbone
        features = self._through({"vision": edits}, lambda: backbone.encode_image(images.to(backbone.dtype)))
        return F.normalize(features, dim=-1)

    def objective(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return classes.objective(self(inputs.to(self.backbone.device)), labels)

    def decide(self, inputs: Tensor) -> tuple[list[str], list[float]]:
        return classes.decided(self(inputs.to(self.backbone.device)), self.class_names)

    @in_one_mode
    def class_features(self, image_features: Tensor | None = None) -> Tensor:
        """Unit-length features of the classes `(n_classes, e)`, differentiable in the method's parameters.

        A method whose prompts depend on the image needs unit-length `image_features` `(b, e)` and gives
        `(b, n_classes, e)`. For others, while gradients are off, they are computed once, until something changes that
        they depend on: what the method asks of the text tower, the backbone's weights, or the precision.
        """
        edits = self._edits("text", Context({} if image_features is None else {"vision": lambda: image_features}))
        if edits and (torch.is_grad_enabled() or self.method.training or self.method.per_image):
            return self._encode_classes(edits)
        return self._remembered(edits)

    @torch.compiler.disable  # it looks at what tracing takes for constant
    def _remembered(self, edits: Sequence[Edit]) -> Tensor:
        """The features of the classes without gradients, computed anew only where something changed."""
        known, precision = self._cached, self._precision()
        if known is None or known.precision != precision or not (known.weights.same() and known.edits.same(edits)):
            with torch.inference_mode(False), torch.no_grad():  # a tensor that may enter a graph later
                features = self._encode_classes(edits)
            known = self._cached = _Known(precision, Weights(self.backbone.model), Inputs(edits), features)
        return known.features.clone()

    def _precision(self) -> tuple[Any, ...]:
        """What decides on the bits beside weights and edits: where the model is, its precision and autocast's."""
        device = self.backbone.device
        lower = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        return device, self.backbone.dtype, lower

    def _encode_classes(self, edits: Sequence[Edit]) -> Tensor:
        features = F.normalize(self._text(edits, self.text_memory), dim=-1)  # type: ignore[misc]
        if self._prompts_per_class > 1:
            features = F.normalize(features.unflatten(-2, (-1, self._prompts_per_class)).mean(-2), dim=-1)
        return features

    def _text_path(self, prompts: list[Any]) -> TextPath:
        tower = self.backbone.towers.get("text")
        reason = "the fast path is switched off" if self.fast is False else text.reason_against(tower)
        if reason is None and not text.agrees(self.backbone, prompts):
            reason = "its features differ from the library's own forward on two prompts"
        if self.fast is True and reason is not None:
            raise AdaptError(f"fast=True, but the text tower of {self.backbone.describe()} cannot take it: {reason}")
        path = text.PlainText if reason else text.FastText
        return path(self.backbone, prompts, self.checkpointing)

    @property
    def text_path(self) -> str:
        names: dict[type, str] = {text.FastText: "fast", text.PlainText: "plain"}
        return names.get(type(self._text), "none")

    def with_classes(self, class_names: Sequence[str]) -> AdaptedModel:
        """The same method, its tensors shared, for other class names. Refused where a tensor belongs to one class."""
        names = check_class_names(class_names)
        if self.method.per_class and names != self.class_names:
            raise AdaptError(
                f"this {self.method.name} learned tensors for each of its {len(self.class_names)} classes "
                "and cannot serve other class names; train on the new classes, or use a method that shares its tensors"
            )
        other = AdaptedModel(
            self.backbone, self.method, names, self.fast, checkpointing=self.checkpointing, text_memory=self.text_memory
        )
        other.training, other.metadata = self.training, dict(self.metadata)
        return other

    def unwrap(self) -> DualEncoder:
        self._text = self._cached = None
        return super().unwrap()

    def cut_skipped(self) -> None:
        super().cut_skipped()
        self._cached = None  # it holds on to the weights that it depends on

    def _predictions(self, pixels: Tensor, top_k: int, question: str | None) -> Iterator[Prediction]:
        if question is not None:
            raise AdaptError(f"{self.backbone.describe()} classifies images and answers no question: leave it out")
        return predictions(self(pixels), self.class_names, top_k)
