"""Families of backbones: all models that one loader reads, such as open_clip's. Each family is a file here.

The file has the family's name. Other packages add a family by `register`, or by an entry point in the group
`adapt.backbones` with the family's name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from adapt.backbones.families.base import Family
from adapt.backbones.sources import BUNDLED, READINGS
from adapt.common.errors import AdaptError, nearest
from adapt.common.listing import Listing

__all__ = ["Family", "forms", "names", "of", "of_folder", "of_model_types", "register"]

_listing: Listing[Family] = Listing(
    __name__, __path__, "adapt.backbones", lambda: Family, "family of backbones", frozenset({"base"})
)
names, register = _listing.names, _listing.register

# which files to import for a name or a folder; a family without an entry is found after these
_OF_PREFIX = {
    "efficientnet-lite": "efficientnet_lite", "hf:": "hub_models", "open_clip:": "open_clip_models",
    "timm:": "timm_models", **dict.fromkeys((f"{reading}:" for reading in READINGS), "other_readings"),
}  # fmt: skip
_OF_TWO = {"+": "two_models", "&": "joined_encoders"}
_OF_FOLDER = ("hub_models", "open_clip_models")


def forms() -> dict[str, str]:
    """Return a dict from each valid form of backbone names, such as `hf:NAME_OR_PATH`, to a description of the form."""
    return {form: text for family in _families() for form, text in family.forms.items()}


def of(spec: str) -> Family:
    """Return the family (loader) of the backbone named `spec`. Raises AdaptError unless exactly one family matches."""
    claims = list(_listing.claiming(lambda family: family().claims(spec), _files_of(spec)))
    if len(claims) == 1:
        return claims[0]()
    if claims:
        both = " and ".join(family.name for family in claims)
        raise AdaptError(f"several loaders accept the backbone name {spec!r} ({both}): uninstall one loader's package")
    if Path(spec).is_dir():
        return of_folder(Path(spec))
    if meant := [name for family in _families() if (name := family.meant(spec))]:
        raise AdaptError(f"unknown backbone {spec!r}, which is no folder either; did you mean {' or '.join(meant)}?")
    raise AdaptError(
        f"unknown backbone {spec!r}; expected an existing folder or a name of a known form: "
        f"{nearest(spec, forms(), '`adapt backbones`')}"
    )


def _files_of(spec: str) -> list[str]:
    files = [file for prefix, file in _OF_PREFIX.items() if spec.startswith(prefix)]
    files += [file for mark, file in _OF_TWO.items() if mark in spec]
    return files + ["bundled_models"] * (spec in BUNDLED)


def of_folder(path: Path) -> Family:
    """Return the family (loader) for the model folder `path`. Raises AdaptError if no family can load the folder."""
    family = next(_listing.claiming(lambda family: family().claims_folder(path), _OF_FOLDER), None)
    if family is None:
        raise AdaptError(f"{path} is not a model folder; expected open_clip_config.json or config.json in the folder")
    return family()


def of_model_types() -> dict[str, Family]:
    """Return the types of transformers models that can be built (`config.model_type`), each with its family."""
    return {model_type: family for family in _families() for model_type in family.model_types}


def _families() -> Iterator[Family]:
    return (family() for family in _listing.classes())
