"""The interface of a family, a file that says which names of backbones it takes, and builds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class Family:
    """The base of all families. Another package's family has an entry point in the group `adapt.backbones`."""

    name: ClassVar[str]
    forms: ClassVar[dict[str, str]]
    """The forms of names that it takes, and what each stands for."""

    def claims(self, spec: str) -> bool:
        """Return whether it builds the backbone that `spec` names."""
        raise NotImplementedError

    def load(self, spec: str, device: torch.device) -> Backbone:
        """Return the backbone, which is moved to `device` afterwards.

        Raises AdaptError, saying what to do, if it cannot be loaded.
        """
        raise NotImplementedError

    def claims_folder(self, path: Path) -> bool:
        """Return whether a folder holds a model in its format."""
        return False

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        """Return the backbone in such a folder; without `tensors` it is made from the configuration alone."""
        raise NotImplementedError
