"""The adapted model in the form in which its method sees it: the features that a batch may request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

from torch import Tensor

from adapt.backbones.base import Backbone, ImageEncoder
from adapt.prompts import Prompt, Texts

if TYPE_CHECKING:
    from adapt.methods.base.method import Method
    from adapt.methods.base.step import BlockInputs


class ModelView(Protocol):
    """The interface through which a method accesses its adapted model."""

    method: Method
    class_names: tuple[str, ...]
    class_weights: Tensor | None
    """The weight of each class in the cross-entropy `(n,)`."""
    memory: object
    """The method's memory of a stream of images, or None outside a stream."""

    @property
    def backbone(self) -> Backbone: ...

    def own_logits(self, step: Any) -> Tensor:
        """Return the default logits `(b, n)` of a batch, for a method that does not override `logits`."""

    def stream(self) -> Self:
        """Return this model with a new, empty memory for one stream of images."""


class ImageModelView(ModelView, Protocol):
    """The interface through which a method accesses an adapted model of images, such as a CLIP."""

    @property
    def backbone(self) -> ImageEncoder: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return the logits `(b, n)` of images `(b, 3, h, w)`."""

    def image_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return features `(b, e)` of images `(b, 3, h, w)`, computed by the adapted vision tower."""

    def learned_outputs(self, images: Tensor | BlockInputs) -> tuple[Tensor, Tensor]:
        """Return the final-norm outputs `(b, k, d)` of learned vision tokens, and unit-length features `(b, e)`."""

    def backbone_features(self, images: Tensor | BlockInputs, unit: bool = True) -> Tensor:
        """Return the unadapted backbone's features `(b, e)` of images, normalised to unit length if `unit` is True."""

    def projected(self, features: Tensor, unit: bool = True) -> Tensor:
        """Return features `(b, e)` after the method's projection, if it has one, normalised again if `unit` is True."""

    def pooled(self, features: Tensor, counts: Tensor) -> Tensor:
        """Return unit-length features `(b, e)` of bags, pooled from the features `(m, e)` of their images."""

    def frozen_blocks(self, images: Tensor, names: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the input and output `(b, l, d)` of the unadapted backbone's blocks `names`, such as vision.3."""

    def local_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unadapted backbone's features of patches `(b, rows, columns, e)` and of images `(b, e)`."""

    def image_tokens(self, images: Tensor) -> Tensor:
        """Return the output `(b, l, d)` of the unadapted backbone's last vision block for images."""

    def vision_tokens(self, images: Tensor) -> Tensor:
        """Return the output `(b, l, d)` of the adapted backbone's last vision block for images."""

    def class_features(self, image_features: Tensor | None = None, image_tokens: Tensor | None = None) -> Tensor:
        """Return text features of the classes `(n, e)`, or `(b, n, e)` if the features depend on the image."""

    def prompt_features(self) -> tuple[Tensor, ...]:
        """Return, for each class, the unit-length features `(m, e)` of its m prompts."""

    def frozen_class_features(self, templates: Texts, average: Literal["unit", "raw"] = "unit") -> Tensor:
        """Return the unadapted backbone's features `(n, e)` of the classes in hand-written templates.

        `templates` can be a function from a class name to the class's own texts.
        """

    def encode(self, prompts: Sequence[Prompt]) -> Tensor:
        """Return unit-length features `(m, e)` of prompts, computed by the adapted text tower."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return unit-length features `(m, e)` of texts, computed by the adapted text tower."""

    def text_features(self, texts: Sequence[str], unit: bool = True, edited: bool = False) -> Tensor:
        """Return features `(m, e)` of texts without gradient, from the adapted tower only if `edited` is true."""

    def pair_features(self, features: Tensor, text_features: Tensor) -> Tensor:
        """Return unit-length features `(b, e)` of image-text pairs, from the features of images and of texts."""

    def under_edits(self, tower: str, compute: Callable[[], Tensor]) -> Tensor:
        """Return the result of `compute()`, which runs the backbone, with the method's edits of a tower in place."""

    def under(self, method: Method) -> ImageModelView:
        """Return a model with the same backbone and class names, but with another `method` of the same class."""
