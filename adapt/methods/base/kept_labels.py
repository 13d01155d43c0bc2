"""A check of the training images' labels, which some methods store in their adapters."""

from __future__ import annotations

from torch import Tensor

from adapt.common.errors import AdaptError


def check_labels_of(labels: Tensor, classes: int, source: str) -> None:
    """Raise AdaptError if the labels `(n,)` that the file `source` stores do not fit the number of `classes`."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise AdaptError(
            f"the labels in {source} are {int(labels.min())} to {int(labels.max())}, but there are {classes} classes: "
            "download or train the adapter again"
        )
