"""Transforms from PIL images to input tensors: the model's own for evaluation, the papers' augmentation in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import nn

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
        from torchvision.transforms import InterpolationMode, v2

        crop = v2.RandomResizedCrop(self.size, scale=(0.08, 1.0), interpolation=InterpolationMode.BICUBIC)
        return v2.Compose([crop, v2.RandomHorizontalFlip(0.5), *self._to_tensor()])

    def _to_tensor(self) -> list[nn.Module]:
        import torch
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
    """A transform that leaves images as PIL images, for models whose processor prepares them together with the text."""

    as_decoded = True

    def __init__(self, turned: bool) -> None:
        self.turned = turned  # by EXIF, before cutting out any region

    def __call__(self, picture: Image) -> Image:
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
