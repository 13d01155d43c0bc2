"""The interface of a family of backbones, which decides which backbone names it accepts, and loads them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class Family:
    """The base class of families. A family in another package needs an entry point in the group `adapt.backbones`."""

    name: ClassVar[str]
    forms: ClassVar[dict[str, str]]
    """The forms of names that it takes, and what each stands for."""

    def claims(self, spec: str) -> bool:
        """Return whether this family loads the backbone named `spec`."""
        raise NotImplementedError

    def load(self, spec: str, device: torch.device) -> Backbone:
        """Return the backbone named `spec`; the caller then moves it to `device`.

        Raises AdaptError, with a remedy, if the backbone cannot be loaded.
        """
        raise NotImplementedError

    def claims_folder(self, path: Path) -> bool:
        """Return whether `path` is a folder with a model in this family's format."""
        return False

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        """Return the backbone in the folder `path`; without `tensors`, no weights are read, only its configuration."""
        raise NotImplementedError
