"""Adapters in repositories of the hub: the file, a model card and, if possible, its certificate and peft's layout."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from adapt.backbones.sources import is_portable
from adapt.common import hub
from adapt.common.disk import write_json, write_text
from adapt.common.errors import AdaptError
from adapt.formats import PEFT_CONFIG, adapter, certificate, peft_layout
from adapt.formats.adapter import read_header
from adapt.formats.model_card import model_card
from adapt.models.base import Adapted

logger = logging.getLogger("adapt")

CARD = "README.md"
CERTIFICATE = certificate.place_of(Path(adapter.NAME)).name
FETCHED = (adapter.NAME, *peft_layout.FILES, CARD, CERTIFICATE)  # the only files that are ever fetched


def fetch(name: str | Path) -> Path:
    """Download `hf://user/name` or `hf://user/name@revision` into the hub's cache, and return the adapter's path.

    The adapter is an adapter file or, if the repository has no adapter file, a folder in peft's layout. Raises
    AdaptError as `hub.snapshot` does, and for a repository without an adapter.
    """
    folder = hub.snapshot(name, FETCHED)
    if (folder / adapter.NAME).is_file():
        return folder / adapter.NAME
    if (folder / PEFT_CONFIG).is_file():
        return folder
    raise AdaptError(
        f"{hub.spelled(name)} contains no adapter; expected the file {adapter.NAME}, or peft's files "
        f"{' and '.join(peft_layout.FILES)}"
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
    """Publish `model` on the hub as `user/name`, and return the repository's URL; see `Adapted.push_to_hub`.

    If the model is already saved, `file` is the path of its adapter file, which is published unchanged, with the
    certificate beside it. If there is none, a warning says how to make one.
    """
    repository, revision = hub.parse(name)
    if revision is not None:
        raise AdaptError(f"{name} names a revision, but adapters are pushed to the main branch: use {repository}")
    if not is_portable(model.backbone.name):
        logger.warning(
            "the backbone of this adapter is %s, which is not on the hub: other users need a copy of the backbone to "
            "load the adapter",
            model.backbone.name or "a model without a name",
        )
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_folder(model, folder, repository, file, license)
        if file is not None and not (folder / CERTIFICATE).is_file():
            logger.warning(
                "the adapter has no certificate of its latency, memory and operations: make one with `adapt certify "
                "%s`, and push again",
                file,
            )
        return hub.commit(
            repository,
            folder,
            message or f"{model.method.name} adapter",
            replaced=FETCHED,
            private=private,
            token=token,
        )


def write_folder(model: Adapted, folder: Path, repository: str, file: Path | None, license: str | None) -> None:
    """Write the files for publication to `folder`: adapter, model card and, if possible, files in peft's layout."""
    found = None if file is None else certificate.read(file)
    if file is None:
        model.save(folder / adapter.NAME)
    else:
        shutil.copyfile(file, folder / adapter.NAME)
    if found is not None:
        write_json(folder / CERTIFICATE, found.model_dump(mode="json"))
    carried = peft_layout.carried(model) if is_portable(model.backbone.name) else None
    if carried is not None:
        peft_layout.write(model, folder)
    header, kind, address = read_header(folder / adapter.NAME), model.backbone.kind, f"{hub.SCHEME}{repository}"
    card = model_card(header, kind, address=address, place=repository, peft=carried, license=license, certificate=found)
    write_text(folder / CARD, card)
