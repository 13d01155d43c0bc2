"""Images as a native vision-language model's decoder reads them: the connector's output, and their marks in the text.

The output of a vision tower and a connector that no method edits is the same in every step and for every question, so
it is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    from transformers.utils import ModelOutput

# of what a processor returns
PER_TOKEN = ("input_ids", "attention_mask", "offset_mapping", "mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class ImageMarks:
    """The marks that stand in a text for an image of some size, and what else describes the image to the model."""

    text: str
    """The marks of the image's tokens, with any marks around and between them."""
    tokens: int
    """The number of tokens whose word embeddings the connector's output replaces."""
    sizes: Mapping[str, Tensor]
    """Other inputs of the model that describe the image, by name, such as `image_grid_thw` `(1, 3)`."""

    @property
    def key(self) -> str:
        """A text that is equal only for equal marks."""
        return repr((self.text, {name: value.tolist() for name, value in self.sizes.items()}))


@dataclass(frozen=True)
class PreparedImage:
    """An image as the vision tower reads it."""

    marks: ImageMarks
    size: tuple[int, int]
    """Its width and height before it was prepared, in pixels."""
    inputs: Mapping[str, Tensor]
    """The arguments of the model's `get_image_features`."""

    @property
    def bytes(self) -> int:
        return sum(value.nbytes for value in self.inputs.values())


@dataclass(frozen=True)
class EncodedImage:
    """An image after the vision tower and the connector."""

    marks: ImageMarks
    features: Tensor
    """`(1 + k, t, d)`: the connector's output for t tokens, and that of k early blocks (Qwen3-VL's deepstack)."""


def marks_of(batch: Mapping[str, Any], placeholder: str) -> list[ImageMarks]:
    """Return the marks of all images from a processor's output.

    `placeholder` is the token that the connector's output replaces.
    """
    sizes = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and name not in PER_TOKEN and not name.startswith("pixel")
    }
    texts = [each["replacement"] for replaced in batch["text_replacement_offsets"] for each in replaced]
    return [
        ImageMarks(text, text.count(placeholder), {name: value[number : number + 1] for name, value in sizes.items()})
        for number, text in enumerate(texts)
    ]


def written(text: str, mark: str, images: Sequence[ImageMarks]) -> tuple[str, list[dict[str, object]]]:
    """Return `text` with the marks of its images in place of each `mark`, and the spans of each before and after."""
    between = text.split(mark)
    expanded, replaced = between[0], list[dict[str, object]]()
    place = len(expanded)
    for marks, behind in zip(images, between[1:], strict=True):
        start, stop = len(expanded), len(expanded) + len(marks.text)
        replaced.append({"span": (place, place + len(mark)), "new_span": (start, stop)})
        expanded += marks.text + behind
        place += len(mark) + len(behind)
    return expanded, replaced


def parted(output: Any, each: Sequence[ImageMarks]) -> list[EncodedImage]:
    """Return images with the marks of `each`, whose features follow each other in the output of `get_image_features`.

    Raises AdaptError if their number differs from that of the image tokens, as for a black image in SmolVLM, which
    takes an image without any value but zero for padding.
    """
    layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    joined = [layer if isinstance(layer, Tensor) else torch.cat(list(layer)) for layer in layers]  # of tiles, or images
    features = torch.stack([layer.reshape(-1, layer.shape[-1]) for layer in joined])
    counts = [marks.tokens for marks in each]
    if features.shape[1] != sum(counts):
        raise AdaptError(
            f"the model computed {features.shape[1]:,} features for images of {sum(counts):,} tokens: replace images "
            "that have only zeros after preprocessing, such as black images without normalisation"
        )
    return [EncodedImage(marks, own) for marks, own in zip(each, features.split(counts, dim=1), strict=True)]


def image_inputs(images: Sequence[EncodedImage], device: torch.device, stacked: bool) -> dict[str, object]:
    """Return the arguments of a model's forward that replace the pixels of `images`, which stand in a batch's texts.

    `stacked` says that the model takes the features of all images as one tensor, and not as a list.
    """
    if not images:
        return {}
    features = [image.features.to(device) for image in images]
    sizes = {
        name: torch.cat([image.marks.sizes[name] for image in images]).to(device) for name in images[0].marks.sizes
    }
    layers: list[Any] = [[own[layer] for own in features] for layer in range(len(features[0]))]
    if stacked:  # as so many images of one token, which `generate` can tell apart where it repeats them
        layers = [torch.cat(layer)[:, None] for layer in layers]
    output: ModelOutput  # in the form of `get_image_features`, new for each call, as `generate` repeats it in place
    if len(layers) == 1:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        output = BaseModelOutputWithPooling(pooler_output=layers[0])
    else:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        output = BaseModelOutputWithDeepstackFeatures(pooler_output=layers[0], deepstack_features=layers[1:])
    return {**sizes, "mm_encoder_outputs": {"image": output}}
