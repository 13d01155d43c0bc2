"""The fifteen published data sets of CLIP adaptation papers, as described in published.toml."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

TABLE = Path(__file__).with_name("published.toml")
_GUIDE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class Published:
    """The description of a published data set (folder, lists, classes, ...), read from published.toml."""

    name: str
    coop_name: str
    folder: str
    layout: Literal["split", "variants", "synsets", "numbers"]
    images: tuple[str, ...]
    lists: tuple[str, ...]
    classes: int
    sizes: tuple[int, int, int]
    template: str
    names: tuple[str, ...]
    fetch: str
    source: str

    def missing(self, root: str) -> list[str]:
        """Return a text such as `file PATH` for each image folder and list file that is missing under `root`."""
        home = Path(root, self.folder)
        folders = [f"folder {path}" for path in (home, *(home / name for name in self.images)) if not path.is_dir()]
        return folders + [f"file {home / name}" for name in self.lists if not (home / name).is_file()]

    @property
    def advice(self) -> str:
        """Advice that names the files to download for this data set and links to CoOp's download guide."""
        return f"Fetch {self.fetch}, as {self.source} says"


@cache
def sets() -> dict[str, Published]:
    """Return a dict of the fifteen published data sets by adapt's names (`oxford_pets`), in the order of the papers.

    If a row of the table has no `lists`, CoOp's split file is used.
    """
    known = {}
    for name, row in tomllib.loads(TABLE.read_text(encoding="utf-8")).items():
        split_file, source = f"split_zhou_{row['coop_name']}.json", f"{_GUIDE}#{row.pop('section')}"
        fetch = row["fetch"] if "lists" in row else f"{row['fetch']} and {split_file}"
        fields: dict[str, Any] = {"layout": "split", "lists": [split_file], "template": "a photo of a {}.", "names": []}
        fields |= {**row, "name": name, "fetch": fetch, "source": source}
        fields |= {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        known[name] = Published(**fields)
    return known


def trained() -> list[str]:
    """Return the names of the eleven published data sets that have training images."""
    return [name for name, each in sets().items() if each.sizes[0]]


def find(name: str) -> Published | None:
    """Return the data set named `name` in adapt (`oxford_pets`) or in CoOp (`OxfordPets`), or None if unknown."""
    return next((each for each in sets().values() if name in (each.name, each.coop_name)), None)
