"""Labels of training images that an adapter keeps."""

from __future__ import annotations

from torch import Tensor

from adapt.errors import AdaptError


def check_labels_of(labels: Tensor, classes: int, source: str) -> None:
    """AdaptError where labels `(n,)` that `source` holds are not of as many `classes`."""
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise AdaptError(
            f"labels of {source} are {int(labels.min())} to {int(labels.max())}, and there are {classes} classes: "
            "fetch or train the adapter again"
        )
