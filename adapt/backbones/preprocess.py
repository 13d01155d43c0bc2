"""Transforms from PIL images to input tensors: the model's own for evaluation, the papers' augmentation in training.

The key of a transform, made from its classes and settings, is what cached features are stored under.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache, partial
from importlib.metadata import version
from types import FunctionType
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.common.version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image


Transform = Callable[["Image"], Tensor]  # PIL image -> (3, h, w)
Picture = TypeVar("Picture", bound="Image | Tensor")


@dataclass(frozen=True)
class Preprocess:
    """Settings of a model's image preprocessing, which adapter files store so that images are always treated alike."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"
    edge: int | None = None  # length of the shorter edge before the crop, if not `size`
    floor_crop: bool = False  # an odd margin is cut as transformers does, not rounded as torchvision does
    turned: bool = False  # pictures are first turned upright by their EXIF orientation
    on_tensors: bool = False  # resizes in torch, as transformers' processors do, which rounds differently from Pillow

    def to_dict(self) -> dict[str, object]:
        """Return the settings that adapter files store, without settings that only reproduce a library's rounding.

        The model's fingerprint already distinguishes models of different libraries.
        """
        recorded = asdict(self)
        del recorded["floor_crop"], recorded["on_tensors"]
        if self.edge is None:
            del recorded["edge"]
        return recorded

    def evaluation(self) -> Transform:
        """Return the evaluation transform, which makes an image square, converts it to a tensor, and normalises it."""
        from torchvision.transforms import v2

        exact = "-exact" if self.on_tensors and self.interpolation == "nearest" else ""  # as Pillow's always is
        resize = self._resized(self.interpolation + exact)
        to_tensor, *rest = self._to_tensor()
        return v2.Compose([to_tensor, *resize, *rest] if self.on_tensors else [*resize, to_tensor, *rest])

    def placing(self, interpolation: str | None = None) -> Callable[[Image], Image]:
        """Return a function that resizes and crops a PIL image to the square input size of the model.

        For a mask, whose pixels are labels rather than colours, set `interpolation` to nearest.
        """
        from torchvision.transforms import v2

        return v2.Compose(self._resized(interpolation or self.interpolation))

    def picture(self, pixels: Tensor) -> Image:
        """Return the picture that an image was after resizing and cropping, from its normalised pixels `(3, h, w)`."""
        from PIL.Image import fromarray

        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        levels = (255 * (pixels * std + mean)).round().clamp(0, 255).byte()
        return fromarray(levels.permute(1, 2, 0).numpy())

    def _resized(self, interpolation: str) -> list[nn.Module]:
        """Return transforms that make an image square, by resizing and cropping or by changing the aspect ratio."""
        from torchvision.transforms import InterpolationMode, v2

        mode = InterpolationMode(interpolation)
        if self.resize == "squash":
            return [v2.Resize((self.size, self.size), interpolation=mode)]
        crop = v2.Lambda(partial(_floor_crop, size=self.size)) if self.floor_crop else v2.CenterCrop(self.size)
        return [v2.Resize(self.edge or self.size, interpolation=mode), crop]

    def training(self) -> Transform:
        """Return the training augmentation of CoOp and CLIP-LoRA: random resized crop, horizontal flip, normalisation.

        The crop covers 8 to 100 % of the image's area, and is resized with bicubic interpolation.
        """
        from torchvision.transforms import v2

        return v2.Compose([*self.augmenting(), *self._to_tensor()])

    def augmenting(self) -> list[nn.Module]:
        """Return the random transforms of `training`, from a PIL image to a PIL image."""
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(self.size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
        return [crop, v2.RandomHorizontalFlip(0.5)]

    def _to_tensor(self) -> list[nn.Module]:
        from torchvision.transforms import v2

        scale = v2.ToDtype(torch.float32, scale=True)
        return [v2.PILToTensor(), scale, v2.Normalize(list(self.mean), list(self.std))]


class OfUpright:
    """A transform for images that the caller has already rotated upright by EXIF, before cropping any region."""

    turned = True

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __call__(self, picture: Image) -> Tensor:
        return self.transform(picture)


class AsDecoded:
    """A transform that leaves images as PIL images, for models whose processor prepares them together with the text.

    By default it changes nothing; in training, `augment` may crop and flip.
    """

    as_decoded = True

    def __init__(self, turned: bool, augment: Sequence[Callable[[Image], Image]] = ()) -> None:
        self.turned, self.augment = turned, list(augment)  # turned by EXIF, before cutting out any region

    def __call__(self, picture: Image) -> Image:
        for change in self.augment:
            picture = change(picture)
        return picture


def _floor_crop(picture: Picture, size: int) -> Picture:
    """Crop the central square of `size` pixels from an image or tensor; a smaller image is padded with black."""
    from torchvision.transforms.v2 import functional as F

    height, width = (max(size, edge) for edge in F.get_size(picture))
    picture = F.center_crop(picture, [height, width])  # pads, and cuts nothing
    cropped: Picture = F.crop(picture, (height - size) // 2, (width - size) // 2, size, size)
    return cropped


def from_torchvision(transform: Transform, image_size: int | tuple[int, int]) -> Preprocess:
    """Return the settings (size, mean, std, resizing) of a torchvision `Compose`, such as the transform of open_clip.

    If the transform has no `Normalize`, for example because it is a user's function, CLIP's mean and std are assumed.
    These values are then used only for training, because evaluation uses the transform itself.
    """
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    steps = {type(step).__name__: step for step in getattr(transform, "transforms", [])}
    normalize, resize = steps.get("Normalize"), steps.get("Resize")
    squash = resize is not None and "CenterCrop" not in steps
    return Preprocess(
        size=image_size if isinstance(image_size, int) else image_size[0],
        mean=tuple(map(float, normalize.mean)) if normalize else OPENAI_DATASET_MEAN,
        std=tuple(map(float, normalize.std)) if normalize else OPENAI_DATASET_STD,
        interpolation=resize.interpolation.value if resize else "bicubic",
        resize="squash" if squash else "shortest",
    )


_KNOWN = ("adapt", "torchvision", "open_clip")  # packages whose steps are identified by their version
_LIBRARIES = ("torch", "torchvision", "pillow", "open_clip_torch")


class _Unknown(Exception):
    """The error raised for a transform whose code cannot be identified, such as a user's own function."""


def transform_key(transform: object) -> str | None:
    """Return a cache key that is equal only for equivalent image transforms; None for an unknown transform.

    Transforms of torchvision, open_clip and adapt are identified by their settings and by the versions of these
    libraries. The key of a transform is the same in all processes.
    """
    try:
        described = repr((_versions(), _plain_of(transform)))
    except _Unknown:
        return None
    return hashlib.blake2b(described.encode(), digest_size=20).hexdigest()


@cache
def _versions() -> tuple[str, ...]:
    return __version__, *map(version, _LIBRARIES)


def _plain_of(value: object) -> object:
    """Describe `value`, a component of a transform, as numbers, texts and lists. Raises _Unknown for a user's code."""
    if value is object or isinstance(value, Enum | torch.dtype):
        return str(value)
    if isinstance(value, None | bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist()
    if isinstance(value, list | tuple):
        return [_plain_of(each) for each in value]
    if isinstance(value, partial):
        return [
            _plain_of(value.func),
            _plain_of(value.args),
            [(name, _plain_of(x)) for name, x in value.keywords.items()],
        ]
    if isinstance(value, FunctionType | type):
        return _named(value)
    return [_named(type(value)), [(name, _plain_of(x)) for name, x in sorted(_settings(value).items())]]


def _named(value: FunctionType | type) -> str:
    """Return the qualified name of a function or class from a known library. Raises _Unknown for a user's own code."""
    if value.__module__.partition(".")[0] not in _KNOWN or "<locals>" in value.__qualname__:
        raise _Unknown
    return f"{value.__module__}.{value.__qualname__}"


def _settings(step: object) -> dict[str, object]:
    """Return a transform's attributes as a dict. Raises _Unknown for a module with submodules, parameters or hooks."""
    if not isinstance(step, nn.Module):
        return vars(step)
    bare = vars(nn.Module()) | {"training": step.training}
    if any(vars(step)[name] != value for name, value in bare.items()):
        raise _Unknown
    return {name: value for name, value in vars(step).items() if name not in bare}


class Repixelled:
    """A conversion of pixels `(b, 3, h, w)` from one model's image size and normalisation to another's."""

    def __init__(self, given: Preprocess, wanted: Preprocess) -> None:
        self._size = wanted.size
        scale = [old / new for old, new in zip(given.std, wanted.std, strict=True)]
        shift = [(old - new) / by for old, new, by in zip(given.mean, wanted.mean, wanted.std, strict=True)]
        self._scale, self._shift = (torch.tensor(values)[:, None, None] for values in (scale, shift))

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.shape[-1] != self._size:
            pixels = F.interpolate(pixels, (self._size, self._size), mode="bicubic", antialias=True)
        return pixels * self._scale.to(pixels) + self._shift.to(pixels)
