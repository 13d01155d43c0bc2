"""A frozen vision-language model with its tokenizer and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adapt.backbones import fingerprint
from adapt.backbones.preprocess import OfUpright, Preprocess, Transform
from adapt.backbones.tokenizer import pad_rows
from adapt.backbones.tower import Tower
from adapt.backbones.turns import copied_alone
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    from adapt.backbones.transformers_models import Processor


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Let tensors made inside take part in training, even if the caller is in `torch.inference_mode()`."""
    if not torch.is_inference_mode_enabled():
        yield  # leaving a mode that is not on would switch gradients on
        return
    with torch.inference_mode(False):
        yield


class Backbone:
    """A frozen model with its tokenizer and preprocessing, described by its towers. Nothing here changes the model.

    Build one with `adapt.load_backbone(spec)`, or from a model that you hold: `Backbone.from_open_clip`,
    `Backbone.from_transformers`, `VisionLLM(...)`.
    """

    family: ClassVar[str]  # the name by which methods say what they serve
    quantization: str | None = None  # nf4 or int8, of the linears in its blocks

    def __init__(
        self,
        *,
        model: nn.Module,
        towers: dict[str, Tower],
        tokenizer: Any,
        preprocess: Preprocess,
        name: str | None = None,
        eval_transform: Transform | None = None,
        export: Callable[[Path, nn.Module], None] | None = None,
    ) -> None:
        self.model = model
        self.towers = towers
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.name = name
        self._eval_transform = eval_transform
        self._export = export
        self._known_content: list[str] = []  # holds one hash while nothing changes the values

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return copied_alone(self, self.model, memo)

    @staticmethod
    def from_open_clip(
        model: nn.Module,
        tokenizer: SimpleTokenizer | HFTokenizer,
        preprocess: Transform | None = None,
        name: str | None = None,
    ) -> DualEncoder:
        """Return the backbone of an open_clip model, with its tokenizer and evaluation transform."""
        from adapt.backbones import openclip

        return openclip.build(model, tokenizer, preprocess, name)

    @staticmethod
    def from_transformers(model: nn.Module, processor: Processor, name: str | None = None) -> Backbone:
        """Return the backbone of a transformers model, with its processor.

        CLIP and SigLIP give a `DualEncoder`, ViLT and BridgeTower a `FusionEncoder`, LLaVA a `VisionLLM`.
        """
        from adapt.backbones.transformers_models import build

        return build(model, processor, name)

    def tower(self, name: str) -> Tower:
        """Return the tower called `name`. Raises AdaptError if this model has none whose blocks can be edited."""
        if name not in self.towers:
            raise AdaptError(
                f"the {name} tower of {self.describe()} has no transformer blocks that can be edited; "
                f"towers that can: {', '.join(self.towers) or 'none'}. Name one in towers, or use another method"
            )
        return self.towers[name]

    def describe(self) -> str:
        return self.name or type(self.model).__name__

    def transform(self, train: bool) -> Transform:
        """Return a transform from a PIL image to `(3, h, w)`.

        For training it is the papers' augmentation, otherwise the model's own transform.
        """
        transform = self.preprocess.training() if train else self._eval_transform or self.preprocess.evaluation()
        return OfUpright(transform) if self.preprocess.turned else transform

    def turning(self, turned: bool) -> Self:
        """Return a backbone over the same model that reads images turned upright by EXIF, or as they are stored.

        This one stays as it is: it may serve other models.
        """
        if self.preprocess.turned == turned:
            return self
        other = copy(self)
        other.preprocess = replace(self.preprocess, turned=turned)
        return other

    @property
    def sees(self) -> tuple[int, int, Preprocess]:
        """The identity of all that decides how the backbone sees a picture: its model, and how it reads pictures."""
        return id(self.model), id(self._eval_transform), self.preprocess

    def export(self, folder: Path, model: nn.Module) -> None:
        """Write `model`, a changed copy of this backbone's, to `folder` in the library's own format."""
        if self._export is None:
            raise AdaptError(
                f"{self.describe()} was not built from a name or folder, so its format is not known: save it yourself"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._export(folder, model)

    @cached_property
    def fingerprint(self) -> fingerprint.Fingerprint:
        return fingerprint.of_model(self.model)

    def content(self) -> str:
        """Return hex digits that stand for every value of the model, which cached features depend on."""
        return self._known_content[0] if self._known_content else fingerprint.content(self.model)

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Hash all values only once inside, where the caller promises to change none."""
        self._known_content.append(fingerprint.content(self.model))
        try:
            yield
        finally:
            self._known_content.clear()

    def reading(self) -> dict[str, Any]:
        """Return how inputs are prepared, which an adapter records and which must be the same where it is loaded."""
        return self.preprocess.to_dict()

    def read_as(self, reading: dict[str, Any]) -> None:
        """Take over from an adapter's record what is the user's choice about reading: here, nothing."""

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which images are read."""
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        return next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())

    def to(self, device: torch.device | str) -> Self:
        with outside_inference_mode():
            self.model.to(device)
        return self


class DualEncoder(Backbone):
    """A CLIP or SigLIP of one of the supported libraries, which maps images and texts to features of one space.

    `encode_image` and `encode_text` are the library's own forward, untouched.
    """

    family = "dual encoder"

    def __init__(
        self, *, encode_image: Callable[[Tensor], Tensor], encode_text: Callable[[Tensor], Tensor], **parts: Any
    ) -> None:
        super().__init__(**parts)
        self.encode_image = encode_image  # (b, 3, h, w) -> (b, e)
        self.encode_text = encode_text  # (n, context length) -> (n, e)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the ids `(n, context length)` of texts. Raises AdaptError if a text is too long."""
        return pad_rows([self.tokenizer.row(text) for text in texts], self.tokenizer)

    @cached_property
    def embed_dim(self) -> int:
        """The width `e` of the features, measured on one text."""
        with torch.inference_mode():
            return int(self.encode_text(self.tokenize([""]).to(self.device)).shape[-1])

    @property
    def logit_scale(self) -> float:
        """The exponential of the learned log scale."""
        return float(self._parameter.detach().float().exp())

    @property
    def logit_bias(self) -> float:
        """SigLIP's learned bias; zero for CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach().float())

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the towers' weights, in which images are read; the scale may have a higher one."""
        return self._parameter.dtype if self._entrance is None else self._entrance.weight.dtype

    @cached_property
    def _entrance(self) -> nn.Conv2d | None:
        """The convolution where images enter, None if they enter elsewhere."""
        return next((module for module in self.model.modules() if isinstance(module, nn.Conv2d)), None)

    @property
    def _parameter(self) -> Tensor:
        scale = self.model.logit_scale
        assert isinstance(scale, Tensor)  # every CLIP and SigLIP has one
        return scale
