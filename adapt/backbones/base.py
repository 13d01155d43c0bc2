"""The base class of backbones (a frozen model with its tokenizer and preprocessing), and of dual encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from adapt.backbones import fingerprint
from adapt.backbones.locks import copied_alone
from adapt.backbones.preprocess import OfUpright, Preprocess, Transform
from adapt.backbones.tokenizer import pad_rows
from adapt.backbones.tower import Absent, Tower
from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    from adapt.backbones.vision_encoder import VisionEncoder


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Disable `torch.inference_mode()` in the `with` block, so that tensors created in the block can be trained."""
    if not torch.is_inference_mode_enabled():
        yield  # leaving a mode that is not on would switch gradients on
        return
    with torch.inference_mode(False):
        yield


@contextmanager
def in_single_precision() -> Iterator[None]:
    """Make new tensors float32 in the `with` block, whatever torch's default data type is."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(kw_only=True, eq=False, repr=False)
class Backbone:
    """A frozen model with its tokenizer, image preprocessing and towers (transformer stacks).

    Adaptation methods never change the model. Create a backbone with `adapt.load_backbone(spec)`, or from a loaded
    model with `Backbone.from_open_clip`, `Backbone.from_transformers` or `VisionLLM(...)`.
    """

    kind: ClassVar[str]  # such as dual encoder; methods name the kinds that they serve
    instead: ClassVar[str] = "use another method or another backbone"  # advice where a method does not serve the kind
    as_decoded: ClassVar[bool] = False  # whether its processor prepares images, which reach it as they were decoded
    runs_alone = False  # whether its own forward hooks the model, which no other thread may then run

    model: nn.Module
    towers: dict[str, Tower]
    tokenizer: Any
    preprocess: Preprocess
    name: str | None = None
    eval_transform: Transform | None = None  # if not that of `preprocess`
    write: Callable[[Path, nn.Module], None] | None = None  # what saves a model in its library's format
    quantization: str | None = field(default=None, init=False)  # nf4 or int8, if its linears are quantised
    # inside `unchanging`, a list for the hash; shared with shallow copies
    _unchanging: list[list[str]] = field(default_factory=list, init=False)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        copied = copied_alone(self, self.model, memo)
        copied._unchanging = []  # its weights are its own
        return copied

    @staticmethod
    def from_open_clip(
        model: nn.Module,
        tokenizer: SimpleTokenizer | HFTokenizer,
        preprocess: Transform | None = None,
        name: str | None = None,
    ) -> DualEncoder:
        """Wrap an open_clip model, its tokenizer and its evaluation transform `preprocess` as a backbone."""
        from adapt.backbones import openclip

        return openclip.build(model, tokenizer, preprocess, name)

    @staticmethod
    def from_timm(model: nn.Module, name: str | None = None) -> VisionEncoder:
        """Wrap a timm model without a classifier (`num_classes=0`) as a backbone of images alone."""
        from adapt.backbones import timm_images

        return timm_images.build(model, name)

    @staticmethod
    def from_transformers(model: nn.Module, processor: Any, name: str | None = None) -> Backbone:
        """Wrap a transformers model and its processor as a backbone.

        The result is a `DualEncoder` for CLIP and SigLIP, a `VisionEncoder` for DINOv2, DINOv3, ViT, ConvNeXt and
        RADIO, whose image processor is enough, a `FusionEncoder` for ViLT and BridgeTower, and a `NativeVLM` for
        SmolVLM, Idefics3, Qwen-VL, LLaVA, InternVL, PaliGemma and Gemma 3.
        """
        from adapt.backbones.transformers_models import build

        return build(model, processor, name)

    def tower(self, name: str) -> Tower:
        """Return the tower called `name`, such as text. Raises AdaptError if no editable tower has this name."""
        if name not in self.towers:
            others = f"; editable towers: {', '.join(self.towers)}. Set the method's towers to editable towers, or use"
            raise AdaptError(
                f"the {name} tower of {self.describe()} has no transformer blocks that can be edited"
                f"{others if self.towers else ', nor has any other tower: use'} a method that edits no tower"
            )
        return self.towers[name]

    @property
    def towers_share(self) -> bool:
        """Whether two towers are the same blocks, so that images and texts pass through the same weights."""
        blocks = [block.module for tower in self.towers.values() for block in tower.blocks]
        return len({*map(id, blocks)}) < len(blocks)

    def check_towers_apart(self, what: str) -> None:
        """Raise AdaptError if towers share their weights, so that `what`, such as merged weights, would mix them."""
        if self.towers_share:
            raise AdaptError(
                f"images and texts pass through the same weights of {self.describe()}, so that {what} would mix what "
                "an adapter adds to each: save an adapter file, and load it with adapt"
            )

    def describe(self) -> str:
        return self.name or type(self.model).__name__

    def transform(self, train: bool) -> Transform:
        """Return the image transform of the model, from a PIL image to a tensor `(3, h, w)`.

        If `train` is true, return the random augmentation of the papers; otherwise return the evaluation transform.
        """
        transform = self.preprocess.training() if train else self.eval_transform or self.preprocess.evaluation()
        return OfUpright(transform) if self.preprocess.turned else transform

    def turning(self, turned: bool) -> Self:
        """Return this backbone with the rotation of images to upright (by EXIF) switched on or off by `turned`.

        If the setting changes, the result is a copy that shares the model, because other methods may use this backbone.
        """
        if self.preprocess.turned == turned:
            return self
        other = copy(self)
        other.preprocess = replace(self.preprocess, turned=turned)
        return other

    @property
    def stacks(self) -> dict[str, Tower]:
        """The towers of its model, also those that cannot be edited."""
        return self.towers

    def blank(self) -> Any:
        """Return a blank image as a batch `(1, 3, h, w)`."""
        side = self.preprocess.size
        return torch.zeros(1, 3, side, side, device=self.device, dtype=self.dtype)

    @property
    def sees(self) -> tuple[object, ...]:
        """A key that identifies the model and its preprocessing; backbones with equal keys give the same features."""
        return id(self.model), id(self.eval_transform), self.preprocess

    def export(self, folder: Path, model: nn.Module) -> None:
        """Save `model`, an edited copy of this backbone's model, to `folder` in the model library's file format."""
        if self.write is None:
            raise AdaptError(
                f"{self.describe()} cannot be exported, because its file format is not known: save the model with its "
                "own library, or load the backbone by its name or from a folder"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.write(folder, model)

    @cached_property
    def fingerprint(self) -> fingerprint.Fingerprint:
        return fingerprint.of_model(self.model)

    def content(self) -> str:
        """Return a hexadecimal hash of the model's weights and configuration, for the keys of cached features."""
        [known] = self._unchanging[:1] or [[]]  # a thread that ends after the block writes into that block's own list
        if not known:
            known.append(fingerprint.content(self.model))
        return known[0]

    @contextmanager
    def unchanging(self) -> Iterator[None]:
        """Hash the model's weights at most once in the `with` block, where the caller must not change the weights."""
        outermost = not self._unchanging
        if outermost:
            self._unchanging.append([])
        try:
            yield
        finally:
            if outermost:
                self._unchanging.clear()

    def reading(self) -> dict[str, object]:
        """Return the input preprocessing settings as a dict, which adapter files store to check the backbone."""
        return self.preprocess.to_dict()

    def read_as(self, reading: dict[str, object]) -> None:
        """Apply the user-selectable input settings stored in an adapter file; the base class has no such settings."""

    def limited(self, most: int) -> Self:
        """Return a backbone that prepares images with at most `most` pixels.

        Raises AdaptError if the model reads all images at one size.
        """
        raise AdaptError(f"{self.describe()} has no bound on the pixels of an image: leave data.max_pixels out")

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype to which images are converted before they enter the model."""
        return self._parameter.dtype

    @property
    def _parameter(self) -> Tensor:
        return next(parameter for parameter in self.model.parameters() if parameter.is_floating_point())

    def to(self, device: torch.device | str) -> Self:
        """Move the model to `device`; on the CPU, float16 becomes float32: it is slow there, and has no loss scaler."""
        with outside_inference_mode():
            self.model.to(device)
            for each in (*self.model.parameters(), *self.model.buffers()):
                if each.dtype == torch.float16 and each.device.type == "cpu":
                    each.data = each.data.float()
        return self


@dataclass(kw_only=True, eq=False, repr=False)
class ImageEncoder(Backbone):
    """The base class of backbones that map an image to one feature vector, with which classes are compared by cosines.

    `encode_image` runs the unmodified forward pass of the model's library.
    """

    encode_image: Callable[[Tensor], Tensor]  # (b, 3, h, w) -> (b, e)
    # of features of attention heads: layers, heads, and the size of each
    heads: tuple[int, int, int] | None = field(default=None, init=False)
    kept_as: torch.dtype = field(default=torch.float32, init=False)  # the precision of features in the cache

    @cached_property
    def embed_dim(self) -> int:
        """The width `e` of the features, measured by encoding a blank image."""
        with torch.inference_mode():
            return int(self.encode_image(self.blank()).shape[-1])

    @property
    def logit_scale(self) -> float:
        """The logit scale that multiplies cosine similarities."""
        raise NotImplementedError

    @property
    def logit_bias(self) -> float:
        """The bias that is added to the scaled cosines."""
        return 0.0

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the towers' weights, to which images are converted; a logit scale may be more precise."""
        return self._parameter.dtype if self._entrance is None else self._entrance.weight.dtype

    @cached_property
    def _entrance(self) -> nn.Conv2d | None:
        """The model's first convolution, which embeds image patches; None if the model has no convolution."""
        return next((module for module in self.model.modules() if isinstance(module, nn.Conv2d)), None)


@dataclass(kw_only=True, eq=False, repr=False)
class DualEncoder(ImageEncoder):
    """A CLIP or SigLIP backbone, which maps images and texts to features in one shared space.

    `encode_image` and `encode_text` run the unmodified forward pass of the model's library.
    """

    kind = "dual encoder"

    encode_text: Callable[[Tensor], Tensor]  # (n, context length) -> (n, e)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids `(n, context length)` of `texts`. Raises AdaptError if a text is too long."""
        return pad_rows([self.tokenizer.row(text) for text in texts], self.tokenizer)

    @cached_property
    def embed_dim(self) -> int:
        """The width `e` of the features, measured by encoding an empty text."""
        with torch.inference_mode():
            return int(self.encode_text(self.tokenize([""]).to(self.device)).shape[-1])

    @property
    def logit_scale(self) -> float:
        """The logit scale that multiplies cosine similarities, computed as the exponential of the learned log scale.

        An outline, on the meta device, has none: the result is NaN.
        """
        scale = self._parameter.detach()
        return math.nan if scale.is_meta else float(scale.float().exp())

    @property
    def logit_bias(self) -> float:
        """The bias that is added to the logits, which is learned in SigLIP and zero in CLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return 0.0 if bias is None else float(bias.detach().float())

    @property
    def _parameter(self) -> Tensor:
        scale = getattr(self.model, "logit_scale", None)
        if not isinstance(scale, Tensor):
            raise AdaptError(
                f"{self.describe()} has the logit_scale {scale!r}; expected a parameter of its model, the logarithm of "
                "what multiplies cosines, such as logit_scale = nn.Parameter(torch.tensor(math.log(100.0)))"
            )
        return scale


def block_paths(backbone: Backbone, names: Collection[str]) -> dict[str, str]:
    """Return a dict from each block name in `names`, such as vision.3, to the block's module path in the model."""
    paths = {id(module): path for path, module in backbone.model.named_modules()}
    return {
        f"{tower.name}.{i}": paths[id(block.module)]
        for tower in backbone.towers.values()
        for i, block in enumerate(tower.blocks)
        if f"{tower.name}.{i}" in names
    }


def cut_out(backbone: Backbone, names: Collection[str]) -> None:
    """Replace the blocks in `names`, such as vision.3, by `Absent` placeholders, which removes the blocks' weights."""
    for name, path in block_paths(backbone, names).items():
        tower, _, index = name.partition(".")
        absent, blocks = Absent(name, backbone.dtype), list(backbone.towers[tower].blocks)
        backbone.model.set_submodule(path, absent)
        blocks[int(index)] = replace(blocks[int(index)], module=absent)
        backbone.towers[tower] = replace(backbone.towers[tower], blocks=tuple(blocks))
