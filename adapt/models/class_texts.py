"""Features of the prompts of classes, encoded by the fast or the plain text path, and only after a change.

Edits are compared bit by bit, which notices changes by an optimiser, by `vector_to_parameters`, to a buffer or to a
selection. The backbone is too large for that: its tensors count as changed if their version, memory address or a
sampled entry differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import is_
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.backbones.base import DualEncoder
from adapt.backbones.split_attention import StandIn
from adapt.common.errors import AdaptError
from adapt.common.grouping import grouped
from adapt.common.untraced import untraced
from adapt.edits import Edit
from adapt.engine import text
from adapt.engine.blocks import HOOKED, hooked
from adapt.prompts import Prompt


class Values:
    """A detached copy of a value, such as a list of edits, that is later compared with new values."""

    def __init__(self, values: object) -> None:
        self._leaves = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in _leaves(values)]

    def same(self, values: object) -> bool:
        """Return whether `values` equals the stored copy. Objects that cannot be inspected are compared by identity."""
        leaves = list(_leaves(values))
        return len(leaves) == len(self._leaves) and all(map(_same, self._leaves, leaves))


def _same(stored: object, leaf: object) -> bool:
    if isinstance(stored, Tensor) and isinstance(leaf, Tensor):
        return stored.dtype == leaf.dtype and stored.device == leaf.device and torch.equal(stored, leaf)
    return stored is leaf or (type(stored) is type(leaf) and isinstance(stored, _PLAIN) and stored == leaf)


_PLAIN = (bool, int, float, str, bytes, frozenset, type(None), torch.Size, torch.dtype, torch.device)


def _leaves(value: object) -> Iterator[object]:
    """Yield the leaves of a nested value: tensors, simple values such as numbers, and uninspectable objects."""
    if isinstance(value, StandIn):  # stands for the backbone's own tensors, which `Weights` compares
        yield type(value)
    elif isinstance(value, Edit | nn.Module):
        yield type(value)
        yield from _leaves(vars(value))
    elif isinstance(value, partial):
        yield from _leaves((value.func, value.args, value.keywords))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield key
            yield from _leaves(each)
    elif isinstance(value, list | tuple):
        yield len(value)
        for each in value:
            yield from _leaves(each)
    else:
        yield value


class Weights:
    """A snapshot of a model's tensors and modules that detects later changes much faster than a forward pass."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._holders = [holder for each in modules for holder in (each._parameters, each._buffers, each._modules)]
        self._held = self._found()
        tensors = [x for x in self._held if isinstance(x, Tensor) and x.numel() and not x.is_meta]
        self._tensors, self._memory = tensors, [*map(_memory, tensors)]
        self._views = grouped((tensor.device, _middle(tensor)) for tensor in tensors)
        self._values = self._sampled()

    def same(self) -> bool:
        """Return whether the model's modules, tensors and sampled values have not changed since the snapshot."""
        held = self._found()
        return (
            len(held) == len(self._held)
            and all(map(is_, held, self._held))
            and [*map(_memory, self._tensors)] == self._memory
            and all(map(torch.equal, self._sampled(), self._values))
        )

    def _found(self) -> list[object]:
        return [each for holder in self._holders for each in holder.values()]

    def _sampled(self) -> list[Tensor]:
        return [torch.cat(views) for views in self._views.values()]


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def _middle(tensor: Tensor) -> Tensor:
    """Return the middle entry of `tensor` along all axes, as a view `(1,)`."""
    view = tensor.data
    for axis, size in enumerate(tensor.shape):
        view = view.narrow(axis, size // 2, 1)
    return view.reshape(1)


PromptAverage = Literal["unit", "mean", "raw", "each"]


@dataclass(frozen=True)
class _Known:
    """Stored class features, with the precision, weights and edits from which the features were computed."""

    precision: tuple[object, ...]
    weights: Weights
    edits: Values
    features: Tensor


class ClassTexts:
    """The prompts of all classes, one or more for each class, with functions that encode and store class features.

    With `fast` None, the fast exact path encodes prompts if applicable. True raises AdaptError if the fast path is not
    applicable, and False uses the library's own forward. `average` combines the features of a class's prompts:
    `unit` normalises the mean of unit-length features, `mean` does not normalise the mean, `raw` averages the tower's
    outputs, and `each` returns the unit-length features of all prompts without an average. With `like`, the choice of
    path is copied from another object. A `budget` is the number of bytes that encoding may use.
    """

    def __init__(
        self,
        backbone: DualEncoder,
        prompts: Sequence[Sequence[Prompt]],
        fast: bool | None,
        checkpointing: bool = False,
        average: PromptAverage = "unit",
        like: ClassTexts | None = None,
    ) -> None:
        self._average = average
        self._backbone, self.counts = backbone, [len(own) for own in prompts]
        every = [prompt for own in prompts for prompt in own]
        self._plain = text.PlainText(backbone, every, checkpointing)
        self._make_fast = partial(text.FastText, backbone, every, checkpointing)
        self._reason = partial(_reason_against, backbone, every, fast)
        self._fast: text.FastText | None = None
        self._decided = False
        if like is not None and like._decided:
            self._decide(like.fast)
        elif fast is True or not self._hooked():
            self._decide(self._reason() is None)
        self._known: _Known | None = None

    def _decide(self, fast: bool) -> None:
        with torch.inference_mode(False):
            self._fast, self._decided = self._make_fast() if fast else None, True

    @property
    def fast(self) -> bool:
        """Whether the fast path encodes these prompts while the text tower has no hooks."""
        return self._fast is not None

    @property
    def path(self) -> str:
        """The path that encodes these prompts now, `fast` or `plain`; a text tower with hooks always uses `plain`."""
        return "plain" if self._serving(self._hooked()) is self._plain else "fast"

    def encode(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Return features `([b,] n, e)` of the n classes, or `([b,] m, e)` of all m prompts if `average` is `each`."""
        return self._encoded(edits, budget, self._hooked())

    def _encoded(self, edits: Sequence[Edit], budget: int, hooked: bool) -> Tensor:
        features = self._serving(hooked)(edits, budget)
        if self._average == "raw":
            return self._means(features)
        features = F.normalize(features, dim=-1)
        if self._average == "each" or max(self.counts) == 1:
            return features
        means = self._means(features)
        return means if self._average == "mean" else F.normalize(means, dim=-1)

    def _means(self, features: Tensor) -> Tensor:
        """Average the features `([b,] m, e)` of m prompts over each class's prompts, and return `([b,] n, e)`."""
        if len(set(self.counts)) == 1:
            return features.unflatten(-2, (-1, self.counts[0])).mean(-2)
        return torch.stack([own.mean(-2) for own in features.split(self.counts, dim=-2)], dim=-2)

    @untraced  # it reads values that tracing would treat as constant
    def remembered(self, edits: Sequence[Edit], budget: int) -> Tensor:
        """Return the features of `encode` without gradient, recomputed only if weights, edits or precision changed.

        Features are always recomputed in transforms of `torch.func`, and with hooks, which may change the computation.
        """
        hooked = self._hooked()  # a walk through the tower
        if hooked or torch._C._are_functorch_transforms_active():
            self.forget()
            with torch.inference_mode(False), torch.no_grad():
                return self._encoded(edits, budget, hooked)
        # features depend on the model's device and precision, and on autocast's precision
        device = self._backbone.device
        lower = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        known, precision = self._known, (device, self._backbone.dtype, lower)
        if known is None or known.precision != precision or not (known.weights.same() and known.edits.same(edits)):
            with torch.inference_mode(False), torch.no_grad():  # a tensor that may enter a graph later
                features = self._encoded(edits, budget, hooked)
            known = self._known = _Known(precision, Weights(self._backbone.model), Values(edits), features)
        return known.features.clone()

    def forget(self) -> None:
        """Delete the stored features, which contain references to the model's weights."""
        self._known = None

    def _serving(self, hooked: bool) -> text.FastText | text.PlainText:
        """Return the encoder to use now, fast or plain; a text tower with hooks always uses the plain encoder."""
        if hooked:
            return self._plain  # hooks would observe the comparison of paths
        if not self._decided:
            self._decide(self._reason() is None)
        return self._fast or self._plain

    @untraced  # as above
    def _hooked(self) -> bool:
        return hooked(self._backbone, "text")


def _reason_against(backbone: DualEncoder, prompts: Sequence[Prompt], fast: bool | None) -> str | None:
    """Return the reason why the fast path cannot encode the prompts, or None if there is no reason."""
    reason = "the fast path is switched off" if fast is False else text.reason_against(backbone.towers.get("text"))
    if reason is None and hooked(backbone, "text"):
        reason = HOOKED
    if reason is None and not text.agrees(backbone, prompts):
        reason = "its features differ from the library's own forward on two prompts"
    if fast is True and reason is not None:
        raise AdaptError(
            f"fast=True, but the text tower of {backbone.describe()} cannot use the fast path ({reason}): leave fast "
            "out"
        )
    return reason
