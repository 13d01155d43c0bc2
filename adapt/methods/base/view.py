"""The adapted model in the form in which its method sees it: the features that a batch may request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from torch import Tensor

from adapt.backbones.base import Backbone, DualEncoder
from adapt.prompts import Prompt

if TYPE_CHECKING:
    from adapt.methods.base.method import Method
    from adapt.methods.base.step import BlockInputs


class ModelView(Protocol):
    """An adapted model of any kind, as its method sees it."""

    method: Method
    class_names: tuple[str, ...]
    class_weights: Tensor | None
    """The weight of each class in the cross-entropy `(n,)`."""
    memory: Any
    """The method's memory of a stream of images, or None outside a stream."""

    @property
    def backbone(self) -> Backbone: ...

    def own_logits(self, step: Any) -> Tensor:
        """Return the default logits `(b, n)` of a batch, for a method that does not define its own."""

    def stream(self) -> Self:
        """Return the same model with a memory of its own, for one stream of images."""


class DualEncoderView(ModelView, Protocol):
    """An adapted dual encoder, as its method sees it."""

    @property
    def backbone(self) -> DualEncoder: ...

    def image_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)` under the method's edits."""

    def backbone_features(self, images: Tensor | BlockInputs) -> Tensor:
        """Return unit-length features `(b, e)` of images by the unedited backbone."""

    def frozen_blocks(self, images: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the input and output `(b, l, d)` of each named block, such as vision.3, by the unedited backbone."""

    def local_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return features of patches `(b, rows, columns, e)` and of images `(b, e)` by the unedited backbone."""

    def image_tokens(self, images: Tensor) -> Tensor:
        """Return the output `(b, l, d)` of the last vision block for images, by the unedited backbone."""

    def class_features(self, image_features: Tensor | None = None, image_tokens: Tensor | None = None) -> Tensor:
        """Return features of the classes `(n, e)`, or `(b, n, e)` if they depend on the image."""

    def prompt_features(self) -> tuple[Tensor, ...]:
        """Return, for each class, the unit-length features `(m, e)` of its m prompts."""

    def frozen_class_features(self, templates: Sequence[str], average: Literal["unit", "raw"] = "unit") -> Tensor:
        """Return features `(n, e)` of the classes in hand-written templates, by the unedited backbone."""

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return unit-length features `(m, e)` of prompts under the method's edits."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length features `(m, e)` of texts under the method's edits."""

    def text_features(self, texts: Sequence[str], unit: bool = True, edited: bool = False) -> Tensor:
        """Return features `(m, e)` of texts, without gradient: by the backbone alone, or with the method's edits."""

    def pair_features(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return unit-length features `(b, e)` of image-text pairs, from the features of images and of texts."""

    def under(self, method: Method) -> DualEncoderView:
        """Return a model with the same backbone and texts, but another method of the same class."""
