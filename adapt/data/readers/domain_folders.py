"""Folders for domain generalisation, as in PACS: `DOMAIN/CLASS/IMAGE`."""

from __future__ import annotations

import os

from adapt.common.errors import AdaptError
from adapt.data.readers.base import FolderReader
from adapt.data.readers.folder import check_all_labelled, check_classes, images_in, subfolders
from adapt.data.readers.rows import assigned, listed, one_each, to_split
from adapt.data.split import Split

# as in DomainBed: a fifth of each domain for validation; a domain that is left out is tested in full
RATIOS = (0.8, 0.2, 0.0)


def read_domain_folders(root: str | os.PathLike[str], seed: int = 0) -> Split:
    """Return the data set in a folder with the layout `DOMAIN/CLASS/IMAGE`; hidden files and folders are ignored.

    A fifth of the images of each class and domain, drawn by `seed`, is for validation. There are no test images, since
    a domain that is left out of training is tested on all images of the domain. Raises AdaptError if there are no such
    images, or if symbolic links list an image for two classes.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise AdaptError(f"folder {root!r} does not exist. Expected a folder of domains, each with a folder per class")
    for folder in (root, *(os.path.join(root, domain) for domain in subfolders(root))):
        check_all_labelled(folder, "images in domains need labels")
    rows = [
        listed(path, {"label": class_name}, domain=domain)
        for domain in subfolders(root)
        for class_name in subfolders(os.path.join(root, domain))
        for path in images_in(os.path.join(root, domain, class_name))
    ]
    if not rows:
        raise AdaptError(
            f"folder {root!r} has no images in folders of domains and classes. Expected DOMAIN/CLASS/IMAGE"
        )
    rows = one_each(rows, root, f"folder {root!r}")
    check_classes(rows, root)
    strata = [f"{row.item.domain}/{row.item.answer}" for row in rows]
    drawn = assigned([row.item for row in rows], strata, RATIOS, seed)
    rows = [row._replace(part=part) for row, part in zip(rows, drawn, strict=True)]
    return to_split(os.path.basename(root), root, rows, None, RATIOS, seed)


class DomainFolders(FolderReader):
    name = "domain_folders"
    takes = "domains:FOLDER"
    reads = staticmethod(read_domain_folders)
    prefix = "domains:"
