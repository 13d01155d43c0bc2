"""Conversion of arrays and tensors of pixels to PIL images."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from PIL import Image

from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Pixels = NDArray[np.generic] | Tensor

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by channels
_NO_PIXELS = ("O", "U", "S", "T")  # numpy's kinds of objects and texts


def is_array(source: object) -> TypeGuard[Pixels]:
    """Return whether `source` is a numpy array, a tensor, or an object that converts to an array, but not a string."""
    return not isinstance(source, str) and all(hasattr(source, name) for name in ("__array__", "ndim", "shape"))


def is_sequence(array: Pixels) -> bool:
    """Return whether an array contains several images: stacked along the first axis, or as objects such as paths."""
    return array.ndim > 3 or (array.ndim > 0 and getattr(array.dtype, "kind", None) in _NO_PIXELS)


def picture_of(source: Pixels) -> Image.Image:
    """Return a PIL image made from an array `(h, w)` or `(h, w, c)`, or from a tensor `(h, w)` or `(c, h, w)`.

    Pixels are uint8, or floats from 0 to 1, with 1, 3 or 4 channels. Raises AdaptError for any other shape, data type
    or value range.
    """
    import numpy as np

    values = np.asarray(source) if isinstance(source, np.ndarray) or not hasattr(source, "detach") else _of(source)
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] not in _MODES or 0 in values.shape:
        expected = "(c, h, w)" if hasattr(source, "detach") else "(h, w, c)"
        raise AdaptError(
            f"an image is an array of shape {tuple(source.shape)}; expected (h, w), or {expected} with 1, 3 or 4 "
            "channels as c"
        )
    if values.dtype.kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # also for NaN
            raise AdaptError(
                f"an image is an array of floats from {values.min():g} to {values.max():g}; expected 0 to 1: scale the "
                "array. If the pixels were already normalised by a backbone's transform, call model(pixels) instead"
            )
        values = np.rint(255 * values.astype(np.float32)).astype(np.uint8)
    if values.dtype != np.uint8:
        raise AdaptError(f"an image is an array of {values.dtype}; expected uint8, or floats from 0 to 1")
    channels = values.shape[-1]
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if channels == 1 else values), _MODES[channels])


def _of(tensor: Tensor) -> NDArray[np.generic]:
    """Return a tensor `(h, w)` or `(c, h, w)` on any device as a numpy array `(h, w)` or `(h, w, c)`."""
    if tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        kind = "sparse" if tensor.is_sparse else "quantised" if tensor.is_quantized else "meta"
        raise AdaptError(f"an image is a {kind} tensor; expected a dense tensor of uint8, or of floats from 0 to 1")
    on_cpu = tensor.detach().cpu()
    values: NDArray[np.generic] = (on_cpu.float() if on_cpu.is_floating_point() else on_cpu).numpy()
    return values.transpose(1, 2, 0) if values.ndim == 3 else values
