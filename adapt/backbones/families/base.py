"""What a family is: a file that says which names of backbones it takes, and builds them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

    from adapt.backbones.base import Backbone


class Family:
    """The base of all families. One of somebody else's has an entry point in the group `adapt.backbones`."""

    name: ClassVar[str]
    forms: ClassVar[dict[str, str]]
    """The forms of names that it takes, and what each stands for."""

    def claims(self, spec: str) -> bool:
        """Whether it builds the backbone that `spec` names."""
        raise NotImplementedError

    def load(self, spec: str, device: torch.device) -> Backbone:
        """The backbone; it is moved to `device` afterwards. AdaptError where it cannot be had, with what to do."""
        raise NotImplementedError

    def claims_folder(self, path: Path) -> bool:
        """Whether a folder holds a model in its format."""
        return False

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        """The backbone in such a folder; without `tensors` it is made from the configuration alone."""
        raise NotImplementedError
