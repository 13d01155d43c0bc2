"""An adapter in a repository of the hub: adapter.safetensors, its model card and, where it has one, peft's layout."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from adapt import hub
from adapt.backbones.sources import is_portable
from adapt.disk import write_text
from adapt.errors import AdaptError
from adapt.formats import adapter, peft_layout
from adapt.formats.header import read_header
from adapt.formats.model_card import model_card

if TYPE_CHECKING:
    from adapt.models.base import Adapted

logger = logging.getLogger("adapt")

CARD = "README.md"
FETCHED = (adapter.NAME, *peft_layout.FILES, CARD)  # all that is ever fetched of a repository


def fetch(name: str | Path) -> Path:
    """What `hf://user/name` or `hf://user/name@revision` stands for, in the hub's cache.

    It is the file of an adapter, or else a folder in peft's layout. Raises AdaptError as `hub.snapshot` does, and for a
    repository that holds neither.
    """
    folder = hub.snapshot(name, FETCHED)
    if (folder / adapter.NAME).is_file():
        return folder / adapter.NAME
    if (folder / peft_layout.CONFIG).is_file():
        return folder
    raise AdaptError(
        f"{hub.spelled(name)} holds no adapter: expected {adapter.NAME}, or {' and '.join(peft_layout.FILES)} of peft"
    )


def push(
    model: Adapted,
    name: str,
    *,
    file: Path | None = None,
    private: bool | None = None,
    token: str | None = None,
    license: str | None = None,
    message: str | None = None,
) -> str:
    """Publishes `model` as `user/name` and returns the repository's address; see `Adapted.push_to_hub`.

    `file` is the adapter where it is on disk already: it is published bit for bit.
    """
    repository, revision = hub.parse(name)
    if revision is not None:
        raise AdaptError(f"{name} names a revision, and an adapter is pushed to the newest: give {repository}")
    if not is_portable(model.backbone.name):
        logger.warning(
            "the backbone of this adapter is %s, which others do not have: they have to give one to load it",
            model.backbone.name or "a model without a name",
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(model, folder, repository, file, license)
        return hub.commit(
            repository,
            folder,
            message or f"{model.method.name} adapter",
            replaced=FETCHED,
            private=private,
            token=token,
        )


def write_folder(model: Adapted, folder: Path, repository: str, file: Path | None, license: str | None) -> None:
    """Writes to `folder` what a repository of the hub holds."""
    if file is None:
        model.save(folder / adapter.NAME)
    else:
        shutil.copyfile(file, folder / adapter.NAME)
    carried = peft_layout.carried(model) if is_portable(model.backbone.name) else None
    if carried is not None:
        peft_layout.write(model, folder)
    header, family, address = read_header(folder / adapter.NAME), model.backbone.family, f"{hub.SCHEME}{repository}"
    card = model_card(header, family, address=address, place=repository, peft=carried, license=license)
    write_text(folder / CARD, card)
