"""Rows about one image, by its content, and rows of a group are on one side of every split, fold and holdout."""

from __future__ import annotations

import csv
import json
import logging
import os
import tarfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from adapt.data import Item, Split, checks, load
from adapt.data.decoding.files import copies, file_id
from adapt.data.readers.csv_file import read_csv
from adapt.data.split import folds, held_back, kept_together
from adapt.recipe import read_recipe
from adapt.training.run_recipe import decodable

IMAGES, TIMES = 12, 4  # each has as many names, and rows


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    """Names of images, of which those with one number are copies; all have one size."""
    named = []
    for number in range(IMAGES):
        pixels = BytesIO()
        Image.frombytes("RGB", (8, 8), bytes((number * 7 + place) % 256 for place in range(192))).save(pixels, "BMP")
        for time in range(TIMES):
            named.append(f"{time}-{number}.bmp")
            (tmp_path / named[-1]).write_bytes(pixels.getvalue())
    return named


def _csv(tmp_path: Path, columns: str, row: Callable[[int, str], Sequence[object]], names: list[str]) -> str:
    with (tmp_path / "list.csv").open("w") as file:
        writer = csv.writer(file)
        writer.writerows([columns.split(","), *(row(place, name) for place, name in enumerate(names))])
    return str(tmp_path / "list.csv")


def _json(tmp_path: Path, row: Callable[[int, str], dict[str, object]], names: list[str], lines: bool = True) -> str:
    rows = [row(place, name) for place, name in enumerate(names)]
    file = tmp_path / ("list.jsonl" if lines else "list.json")
    file.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows))
    return str(file)


def _folders(tmp_path: Path, form: str, names: list[str]) -> str:
    for place, name in enumerate(names):
        number = int(name.partition("-")[2].partition(".")[0])
        home = tmp_path / "data" / form.format(label="ab"[number % 2], domain="xy"[place % 2], item=place)
        home.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / name, home / name)
    return str(tmp_path / "data")


def _tar(tmp_path: Path, names: list[str]) -> str:
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "all.tar", "w") as archive:
        for place, name in enumerate(names):
            archive.add(tmp_path / name, name)
            label = tarfile.TarInfo(name.replace("bmp", "cls"))
            label.size = 1
            archive.addfile(label, BytesIO(b"ab"[place % 2 : place % 2 + 1]))
    return str(tmp_path / "tars")


def _table(tmp_path: Path, names: list[str], **columns: list[object]) -> str:
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": (tmp_path / name).read_bytes(), "path": None} for name in names]
    table = datasets.Dataset.from_dict({"image": images} | columns).cast_column("image", datasets.Image())
    table.save_to_disk(str(tmp_path / "table"))
    return f"hf:{tmp_path / 'table'}"


def _letter(place: int) -> str:
    return "ab"[place // TIMES % 2]


def _beside(place: int) -> str:
    """One of two images, beside which another is shown."""
    return f"0-{place // TIMES % 2}.bmp"


CSVS: dict[str, tuple[str, Callable[[int, str], Sequence[object]]]] = {
    "classes": ("path,label", lambda place, name: (name, _letter(place))),
    "labels": ("path,labels", lambda place, name: (name, ("a", "b", "a|b")[place % 3])),
    "targets": ("path,target", lambda place, name: (name, place)),
    "maps": ("path,label,mask", lambda place, name: (name, _letter(place), "")),
    "questions": ("path,question,label", lambda place, name: (name, f"{place}?", ("yes", "no", place)[place % 3])),
    "pairs": ("path,text", lambda place, name: (name, f"a text {place}")),
    "records": ("path,text,entity", lambda place, name: (name, f"a text {place}", place)),
    "regions": ("path,label,x0,y0,x1,y1", lambda place, name: (name, "ab"[place % 2], 0, 0, 4, 4)),
    "bags": ("path,label,item", lambda place, name: (name, _letter(place), place // 2)),
}
ROWS: dict[str, Callable[[int, str], dict[str, object]]] = {
    "captions": lambda place, name: {"image": name, "caption": f"a {place}"},
    "conversations": lambda place, name: {
        "messages": [{"role": "user", "content": f"<image>{place}?"}, {"role": "assistant", "content": "no"}],
        "images": [name],
    },
    "answers": lambda place, name: {"image": name, "query": f"{place}?", "response": "no"},
    "several images": lambda place, name: {"images": [_beside(place), name], "query": "Same?", "response": "no"},
    "preferences": lambda place, name: {"images": [name], "query": f"{place}?", "chosen": "a", "rejected": "b"},
    "contrasts": lambda place, name: {
        "images": [_beside(place)], "rejected_images": [name], "query": "?", "response": "a", "rejected_response": "b",
    },
}  # fmt: skip
FOLDERS = {"./": "{label}", "items:": "{label}/{item}", "domains:": "{domain}/{label}"}
TABLES: dict[str, Callable[[int], dict[str, object]]] = {
    "table": lambda place: {"label": _letter(place)},
    "table of chats": lambda place: {"query": "Is it?", "response": _letter(place)},
    "table of captions": lambda place: {"caption": f"a {place}"},
}


def _split_of(made: str, tmp_path: Path, names: list[str]) -> Split:
    if made in FOLDERS:
        return load(made.removeprefix("./") + _folders(tmp_path, FOLDERS[made], names))
    if made in TABLES:
        rows = [TABLES[made](place) for place in range(len(names))]
        return load(_table(tmp_path, names, **{key: [row[key] for row in rows] for key in rows[0]}))
    if made in ROWS:
        return load(_json(tmp_path, ROWS[made], names, lines=made != "captions"))
    columns, row = CSVS["regions" if made == "boxes:" else made]
    return load((made if made == "boxes:" else "") + _csv(tmp_path, columns, row, names))


def _shared(*sides: Sequence[Item]) -> set[str]:
    """The contents that are on two sides."""
    seen: dict[str, int] = {}
    ids = [(side, file_id(path)) for side, items in enumerate(sides) for item in items for path in item.paths]
    return {known for side, known in ids if seen.setdefault(known, side) != side}


@pytest.mark.parametrize("made", [*CSVS, "boxes:", *ROWS, *FOLDERS, "tar", *TABLES])
def test_no_image_is_on_two_sides(made: str, tmp_path: Path, names: list[str]) -> None:
    split = load(_tar(tmp_path, names)) if made == "tar" else _split_of(made, tmp_path, names)
    items = [*split.items()]
    sides = [side for side in (split.train, split.val, split.test) if side]
    assert len(sides) > 1
    assert not _shared(*sides)
    assert not [*split.leaks()]
    for seed in range(3):
        kept, out = held_back(items, 0.2, seed)
        assert kept
        assert not _shared(kept, out)
        number = folds(items, 4, seed, every_class=not split.task.learns_unseen)
        assert len({fold for fold in number if fold is not None}) > 1
        assert not _shared(
            *([item for item, own in zip(items, number, strict=True) if own == fold] for fold in range(4))
        )


def test_rows_of_a_group_are_on_one_side(tmp_path: Path, names: list[str]) -> None:
    for place, name in enumerate(names):  # all different
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"0" * place)
    number = {str(tmp_path / name): place // TIMES for place, name in enumerate(names)}
    asked = {"query": "What is it?", "response": "a cat"}
    for key in ("group", "image_id"):
        for made in (
            _json(tmp_path, lambda place, name: {"image": name, key: place // TIMES} | asked, names),  # noqa: B023
            _json(tmp_path, lambda place, name: {"image": name, key: place // TIMES, "caption": "a"}, names, False),  # noqa: B023
            _csv(tmp_path, "path,label,group", lambda place, name: (name, "ab"[place % 2], place // TIMES), names),
        ):
            split = load(made)
            sides = [{number[item.path] for item in part} for part in (split.train, split.val, split.test)]
            assert sum(map(len, sides)) == IMAGES, made
            assert min(map(len, sides)) > 0, made
    table = _table(tmp_path, names, image_id=[place // TIMES for place in range(len(names))], label=list("ab" * 24))
    groups = [{item.group for item in part} for part in (load(table).train, load(table).test)]
    assert groups[0].isdisjoint(groups[1])
    assert groups[0] | groups[1] < {str(number) for number in range(IMAGES)}


def test_the_shares_are_of_images(tmp_path: Path, names: list[str]) -> None:
    row = lambda place, name: {"image": name, "query": f"Is it {place}?", "response": "no"}  # noqa: E731
    split = load(_json(tmp_path, row, names))
    assert [len(part) // TIMES for part in (split.train, split.val, split.test)] == [7, 1, 4]
    assert all(len(part) % TIMES == 0 for part in (split.train, split.val, split.test))


def test_what_two_rows_share_joins_them_through_a_third(make_image: Callable[..., str]) -> None:
    colours = {"a": 1, "b": 2, "c": 2, "d": 3}
    one, other, copy, third = (make_image(f"{name}.png", (colour, 0, 0)) for name, colour in colours.items())
    items = [
        Item.of(path=one, label="x", group="g"),
        Item.of(path=other, label="x", group="g"),
        Item.of(path=copy, label="y", group="h"),
        Item.of(path=third, label="y", group="h"),
        Item.of(path=make_image("e.png", (4, 0, 0)), label="y"),
        Item.of(text="a text", label="y"),
    ]
    for given in (items, items[::-1]):
        units = dict(zip(given, kept_together(given), strict=True))
        assert {units[item] for item in items[:4]} in ({"g"}, {"h"})
        assert [units[item] for item in items[4:]] == [items[4].path, "a text"]
    assert kept_together([]) == []


def test_copies_are_told_by_content(tmp_path: Path) -> None:
    """Pictures with the same size and ends, as those with a border have, differ."""
    middle = [bytes(10_000) + bytes([value]) + bytes(10_000) for value in (1, 2, 1)]
    for number, content in enumerate((*middle, b"", b"")):
        (tmp_path / f"{number}.ppm").write_bytes(content)
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        archive.add(tmp_path / "0.ppm", "in.ppm")
        archive.add(tmp_path / "1.ppm", "other.ppm")
    paths = [f"{tmp_path}/{name}" for name in ("0.ppm", "1.ppm", "2.ppm", "3.ppm", "4.ppm", "no.ppm", "all.tar!in.ppm")]
    assert copies(paths) == {paths[2]: paths[0], paths[6]: paths[0]}
    assert copies(["emoji-chats.scenes!train/00000.png", "emoji-chats.scenes!train/00001.png"]) == {}


def test_a_class_keeps_a_training_image(tmp_path: Path, names: list[str]) -> None:
    """Of copies in folders of several classes, a class may be the rarest of no group that is for training."""
    rows = [(0, "r"), (0, "y"), (0, "y"), (1, "r"), (2, "s"), (2, "y"), (3, "s")]
    for seed in range(20):
        source = _csv(
            tmp_path,
            "path,label",
            lambda place, name: (name, rows[place][1]),
            [f"{place % 4}-{n}.bmp" for place, (n, _) in enumerate(rows)],
        )
        split = read_csv(source, seed=seed)
        assert {item.answer for item in split.train} == {"r", "s", "y"}
        assert not [*split.leaks()]


def test_leaks_in_given_parts_are_said(tmp_path: Path, names: list[str], caplog: pytest.LogCaptureFixture) -> None:
    parts = ("train", "train", "val", "test")
    row = lambda place, name: {"image": name, "query": f"{place}?", "response": "no", "split": parts[place % 4]}  # noqa: E731
    source = _json(tmp_path, row, names)
    split, problems = checks.read_leniently(source, None)
    lines = [each.line for each in checks.found_in(checks.look(source, split, problems))]
    pairs = "2-0.bmp (0-0.bmp), 2-1.bmp (0-1.bmp), 2-2.bmp (0-2.bmp) and 21 more"
    assert lines == [f"24 val or test conversations with an image, or of a group, of an earlier part: {pairs}"]
    recipe = read_recipe("lora/chats", data=source)
    with caplog.at_level(logging.WARNING):
        decodable(split, recipe, progress=False)
    pair = f"'{tmp_path}/2-0.bmp' in val ('{tmp_path}/0-0.bmp' in train)"
    told = "24 conversations of val or test have an image, or a group, of an earlier part"
    assert caplog.messages == [f"list: {told}, as {pair}: scores on them say little about new images"]
    caplog.clear()
    own = load(_json(tmp_path, lambda place, name: {"image": name, "query": f"{place}?", "response": "no"}, names))
    with caplog.at_level(logging.WARNING):
        decodable(own, recipe, progress=False)
    assert not caplog.messages


def test_copies_with_one_label_are_listed_once(tmp_path: Path, names: list[str]) -> None:
    source = _csv(
        tmp_path,
        "path,label,split",
        lambda place, name: (name, "ab"[place // 4 % 2], ("train", "test")[place % 2]),
        names,
    )
    split, problems = checks.read_leniently(source, None)
    found = checks.found_in(checks.look(source, split, problems))
    assert [each.line.partition(":")[0] for each in found if each.list == "copies"] == [
        "test images that are training images too"
    ]
