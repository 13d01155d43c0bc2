"""The interface of a family of backbones: it decides which backbone names it accepts, and loads the backbones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from adapt.backbones.base import Backbone


class Family:
    """The base class of backbone loaders (families); a package adds a loader by an entry point in `adapt.backbones`."""

    name: ClassVar[str]
    prefix: ClassVar[str] = ""
    """The beginning of all names that it takes, such as "hf:", if they have one in common."""
    forms: ClassVar[dict[str, str]] = {}
    """The forms of names that it takes, and what each stands for."""
    model_types: ClassVar[dict[str, tuple[str, ...]]] = {}
    """The types of transformers models that it builds (`config.model_type`), each with the classes of its weights; the
    first class that a checkpoint names is taken, else the last."""

    exact: ClassVar[bool] = False
    """Whether a tensor that the model has no place for is refused, not only one that a checkpoint lacks."""

    whole_processor: ClassVar[bool] = False
    """Whether these models need transformers' own processor, which joins text and images, not only its two parts."""

    reads_texts: ClassVar[bool] = True
    """Whether these models have a tokenizer; otherwise, an image processor is all that comes with them."""

    options: ClassVar[dict[str, dict[str, object]]] = {}
    """The options with which the models of a type are made, such as without a part that is not read."""

    def model_class(self, name: str) -> type[PreTrainedModel]:
        """Return the class that reads weights of the class `name`, by default transformers' class of that name."""
        import transformers

        found: type[PreTrainedModel] = getattr(transformers, name)
        return found

    def check_libraries(self, model_type: str) -> None:
        """Raise AdaptError if a library is missing that models of this type need."""

    def claims(self, spec: str) -> bool:
        """Return whether this family loads `spec`, by default a name of one model (without + and &) with its prefix."""
        rest = spec.removeprefix(self.prefix)
        named = bool(self.prefix) and spec.startswith(self.prefix) and bool(rest)
        return named and (not {"+", "&"} & set(rest) or Path(rest).is_dir())

    def meant(self, spec: str) -> str | None:
        """Return the full name of the model that `spec` may mean, which is of no known form, or None."""

    def reads_texts_of(self, spec: str) -> bool:
        """Return whether the backbone named `spec` reads texts, and so knows classes by their names."""
        return self.reads_texts

    def load(self, spec: str, device: torch.device) -> Backbone:
        """Load and return the backbone named `spec`, which the caller then moves to `device`.

        If `device` is the meta device, weights need not be read: the configuration is enough.

        Raises AdaptError, with a remedy, if the backbone cannot be loaded.
        """
        raise NotImplementedError

    def claims_folder(self, path: Path) -> bool:
        """Return whether `path` is a folder with a model in this family's format."""
        return False

    def load_folder(self, path: Path, name: str | None, tensors: bool = True) -> Backbone:
        """Return the backbone in the folder `path`. If `tensors` is false, no weights are read."""
        raise NotImplementedError

    def build(self, model: Any, processor: Any, name: str | None) -> Backbone:
        """Return the backbone of a transformers model of one of the `model_types`, with its processor.

        The processor is the image processor if the models do not read texts.
        """
        raise NotImplementedError
