"""The papers' published figures, in papers.toml, by protocol, data set and backbone."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.common.plain import JsonObject
from adapt.data.readers import published as data_sets

if TYPE_CHECKING:
    from adapt.protocols.protocol import Results

TABLE = Path(__file__).with_name("papers.toml")
FEW_SHOT, ZERO_SHOT, FEW_NORMAL = "few_shot", "zero_shot", "few_normal"
_BACKBONE, _SEEDS = "ViT-B/16", [1, 2, 3]  # the defaults of rows
_EIGHTY = "eighty"
PaperRow = JsonObject


@cache
def rows() -> tuple[PaperRow, ...]:
    """Return all rows of papers.toml as dictionaries, each with the published values of a method by column."""
    return tuple({"backbone": _BACKBONE, "seeds": _SEEDS} | row for row in _table()["row"])


def backbones() -> dict[str, list[str]]:
    """Return a dictionary from each backbone name in the papers to our names for the same weights."""
    names: dict[str, list[str]] = _table()["backbones"]
    return names


def published_backbone(spec: str) -> str | None:
    """Return the papers' name for our backbone `spec`, or None if no paper reports figures for the backbone."""
    return next((name for name, specs in backbones().items() if spec in specs), None)


def figures_for(results: Results, columns: Sequence[str]) -> list[list[str]]:
    """Return table rows (title and cells) of published figures to display beside a protocol's results.

    The rows are for the backbone of the results, or for ViT-B/16 if the backbone has no published figures. The list is
    empty without matching figures. Zero-shot accuracy is the same for all numbers of shots.
    """
    recipe, protocol = results["recipe"], results["protocol"]
    name, backbone = data_set(recipe["data"]["source"]), published_backbone(recipe["backbone"]) or _BACKBONE
    table = []
    for row in rows():
        if (row["data"], row["backbone"]) != (name, backbone):
            continue
        values = row["values"]
        if protocol == FEW_SHOT and row["protocol"] == ZERO_SHOT:
            values = dict.fromkeys(columns, values["test"])
        elif row["protocol"] != protocol:
            continue
        title = f"{row['method']}, published [{row['from']}] ({backbone})"
        table.append([title, *(values.get(column, "") for column in columns)])
    return table


def averages_for(objects: Sequence[str]) -> list[PaperRow]:
    """Return the published rows of averages over these objects of a benchmark of anomaly detection, and no others."""
    sets: dict[str, list[str]] = _table()["objects"]
    names = [name for name, own in sets.items() if sorted(own) == sorted(objects)]
    return [row for row in rows() if row["protocol"] == FEW_NORMAL and row["data"] in names]


def zero_shot_of(data: str, backbone: str | None) -> list[PaperRow]:
    """Return the published zero-shot rows for a data set and backbone, each with its prompt `templates`."""
    own = [data_sets.sets()[data].template]
    found = []
    for row in _confirmed(ZERO_SHOT, data, backbone):
        named = row.get("templates", own)
        if named == _EIGHTY:
            from open_clip import OPENAI_IMAGENET_TEMPLATES

            named = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
        elif isinstance(named, str):
            named = _table()["templates"][named]
        found.append(row | {"templates": tuple(named)})
    return found


def few_shot_of(recipe: str, shots: int, data: str, backbone: str | None) -> list[PaperRow]:
    """Return the published rows for `recipe` at `shots` images per class, except values that were read off a plot."""
    return [
        row
        for row in _confirmed(FEW_SHOT, data, backbone)
        if recipe_of(row["method"]) == recipe and "~" not in row["values"].get(str(shots), "~")
    ]


def recipe_of(method: str) -> str | None:
    """Return the shipped recipe for a method of few-shot rows, or None if there is none."""
    recipes: dict[str, str] = _table()["recipes"]
    return recipes.get(method)


def data_set(source: str) -> str | None:
    """Return our name of the data set for `source`, which is a name or a split file such as split_zhou_EuroSAT.json.

    The result is None for a data set without published figures.
    """
    stem = Path(source).name.removesuffix(".gz").removesuffix(".json")
    is_split_file = source.endswith((".json", ".json.gz")) and stem.startswith("split_zhou_")
    entry = data_sets.find(stem.removeprefix("split_zhou_") if is_split_file else source)
    return None if entry is None else entry.name


@cache
def _table() -> JsonObject:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))


def _confirmed(protocol: str, data: str, backbone: str | None) -> list[PaperRow]:
    """Return the published rows for a protocol, data set and backbone, except figures that have no verified source."""
    wanted = (protocol, data, backbone)
    return [row for row in rows() if (row["protocol"], row["data"], row["backbone"]) == wanted and row["from"] != "R"]
