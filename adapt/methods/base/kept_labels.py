"""A trait of methods that store the training images' labels in their adapters."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adapt.common.errors import AdaptError
from adapt.methods.base.traits import ChecksAdapter


class KeepsLabels(ChecksAdapter):
    """The trait of methods whose adapters have the `labels` `(n,)` of the training images as a tensor."""

    labels: Tensor
    _classes: int

    def check_tensors(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Raise AdaptError if the labels that the file `source` stores do not fit the number of classes."""
        labels, classes = tensors["labels"], self._classes
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise AdaptError(
                f"the labels in {source} are {int(labels.min())} to {int(labels.max())}, but there are {classes} "
                "classes: download or train the adapter again"
            )
