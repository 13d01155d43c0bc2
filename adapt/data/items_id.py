"""A hash of items, by which two runs tell whether they read the same images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

from adapt.data.decoding.files import sample_of
from adapt.data.decoding.regions import parted
from adapt.data.item import Item


def items_id(items: Sequence[Item]) -> str:
    """Return a hash (16 hex digits) of the files and class numbers of `items`, in order; folders are ignored.

    Of a file, such as an image or a mask, its name, its size, and its first and last 4 KiB count (see `sample_of`).
    Classes are numbered in the order in which they first occur, so the hash does not depend on class names.
    """
    digest, numbers, samples = hashlib.sha256(), dict[str, int](), dict[str, bytes]()
    for item in items:
        own = [numbers.setdefault(name, len(numbers)) for name in item.class_names]
        known = item.identity(item.path.rsplit("/", 1)[-1], os.path.dirname(item.path)), own
        digest.update(f"{json.dumps(known)}\n".encode(errors="surrogateescape"))
        for path in item.files:
            file = parted(path)[0]
            if file not in samples:
                samples[file] = sample_of(file)
            digest.update(samples[file])
    return digest.hexdigest()[:16]
