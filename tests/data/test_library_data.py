"""Data of torchvision and of the Hugging Face library, from files on disk as those libraries lay them out."""

from __future__ import annotations

import json
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import tiny_natives
import torch
from PIL import Image

import adapt
from adapt.common.errors import AdaptError
from adapt.data import load, open_image, read_hugging_face, read_torchvision
from adapt.data.check import broken_images
from adapt.data.decoding.files import read_bytes


def _image(path: Path, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)
    return path


# ---- torchvision


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """torchvision's layout of DTD: lists of the parts, and images by class."""
    labels = tmp_path / "dtd/dtd/labels"
    labels.mkdir(parents=True)
    for number, part in enumerate(("train", "val", "test")):
        names = [f"{name}/{name}_{number}.jpg" for name in ("zigzagged", "banded")]
        (labels / f"{part}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            _image(tmp_path / "dtd/dtd/images" / name)
    return tmp_path


def test_torchvisions_parts_are_kept(textures: Path) -> None:
    split = load("torchvision:DTD", textures)
    assert (split.name, split.class_names) == ("DTD", ("banded", "zigzagged"))
    assert [(Path(item.path).name, item.answer) for item in split.val] == [
        ("zigzagged_1.jpg", "zigzagged"),
        ("banded_1.jpg", "banded"),
    ]
    assert [len(split.train), len(split.val), len(split.test)] == [2, 2, 2]
    assert broken_images(list(split.items())) == {}


def test_torchvisions_undivided_data_is_divided(tmp_path: Path) -> None:
    for name in ("River", "Forest"):
        for i in range(10):
            _image(tmp_path / f"eurosat/2750/{name}/{name}_{i}.jpg", (25 * i, len(name) * 20, 2))
    split = read_torchvision("EuroSAT", tmp_path)
    assert split.class_names == ("Forest", "River")
    assert [Counter(item.answer for item in part) for part in (split.train, split.val, split.test)] == [
        {"Forest": count, "River": count} for count in (6, 1, 3)
    ]


def test_torchvisions_trainval_is_train_and_its_order_of_classes_stays(tmp_path: Path) -> None:
    home = tmp_path / "oxford-iiit-pet"
    for part, number in (("trainval", 1), ("test", 2)):
        names = [f"{name}_{number}" for name in ("pug", "Abyssinian")]
        (home / "annotations").mkdir(parents=True, exist_ok=True)
        lines = [f"{name} {label} 1 1" for label, name in enumerate(names, 1)]
        (home / f"annotations/{part}.txt").write_text("\n".join(lines) + "\n")
        for name in names:
            _image(home / f"images/{name}.jpg")
    split = load("torchvision:OxfordIIITPet", tmp_path)
    assert split.class_names == ("Pug", "Abyssinian")
    assert [Path(item.path).name for item in split.train] == ["pug_1.jpg", "Abyssinian_1.jpg"]
    assert [len(split.train), len(split.val), len(split.test)] == [2, 0, 2]


def test_torchvisions_two_lists_of_food(tmp_path: Path) -> None:
    meta = tmp_path / "food-101/meta"
    meta.mkdir(parents=True)
    for part, i in (("train", 1), ("test", 2)):
        (meta / f"{part}.json").write_text(json.dumps({"waffles": [f"waffles/{i}"], "apple_pie": [f"apple_pie/{i}"]}))
        for name in ("waffles", "apple_pie"):
            _image(tmp_path / f"food-101/images/{name}/{i}.jpg")
    split = load("torchvision:Food101", tmp_path)
    assert split.class_names == ("apple_pie", "waffles")
    assert [item.answer for item in split.test] == ["waffles", "apple_pie"]


def test_torchvision_data_that_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"no data set 'CIFAR10' of image files with labels; .*Valid: Country211, DTD"):
        load("torchvision:CIFAR10", tmp_path)
    with pytest.raises(AdaptError, match=r"torchvision finds no DTD in '.*': Dataset not found.*datasets.DTD\("):
        load("torchvision:DTD", tmp_path)
    with pytest.raises(AdaptError, match="'torchvision:DTD' needs a root: as for torchvision"):
        load("torchvision:DTD")


# ---- Hugging Face


def _dataset(count: int = 6, **columns: list[Any]) -> Any:
    datasets = pytest.importorskip("datasets")
    features = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["zebra", "ant"])}
    given = {name: datasets.Value("string") for name in columns}
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(count)]
    content = {"picture": pictures, "kind": [i % 2 for i in range(count)], **columns}
    return datasets.Dataset.from_dict(content, features=datasets.Features({**features, **given}))


def test_hugging_face_parts_and_labels_are_kept_and_images_come_from_its_tables(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = _dataset(6, domain=["sketch", "photo"] * 3)
    parts = datasets.DatasetDict({"train": whole, "validation": _dataset(2, domain=["photo"] * 2), "test": whole})
    parts.save_to_disk(tmp_path / "animals", num_shards={"train": 2, "validation": 1, "test": 1})
    split = load(f"hf:{tmp_path}/animals")
    assert (split.name, split.class_names) == ("animals", ("zebra", "ant"))
    assert [len(split.train), len(split.val), len(split.test)] == [6, 2, 6]
    assert [(item.answer, item.domain) for item in split.train[:2]] == [("zebra", "sketch"), ("ant", "photo")]
    assert [open_image(item).getpixel((0, 0)) for item in split.train] == [(i, 0, 0) for i in range(6)]
    assert split.few_shot(2, seed=1).train[0] in split.train
    assert broken_images(list(split.items())) == {}


def test_one_hugging_face_table_is_divided(tmp_path: Path) -> None:
    _dataset(20).save_to_disk(tmp_path / "one")
    split = read_hugging_face(tmp_path / "one")
    assert [len(split.train), len(split.val), len(split.test)] == [12, 2, 6]


def test_hugging_face_images_that_are_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    for i in range(20):
        _image(tmp_path / f"kinds/{'ab'[i % 2]}/{i}.png", (0, i, 0))
    of_folder = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "kinds"), cache_dir=str(tmp_path / "cache")
    )
    monkeypatch.setattr(datasets, "load_dataset", {"user/kinds": of_folder}.get)  # as the hub's image folders come
    split = load("hf:user/kinds")
    assert {item.path for item in split.items()} == {str(path) for path in (tmp_path / "kinds").rglob("*.png")}
    assert all(Path(item.path).parent.name == item.answer for item in split.items())
    assert [len(split.train), len(split.val), len(split.test)] == [12, 2, 6]


def test_hugging_face_data_that_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    _dataset(2, colour=["red", "blue"]).remove_columns("kind").save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(AdaptError, match="has the columns picture, colour: say what they are"):
        read_hugging_face(tmp_path / "unlabelled")
    partly = _dataset(2).map(lambda row: {"kind": -1})
    partly.save_to_disk(tmp_path / "partly")
    with pytest.raises(AdaptError, match="none of the 2 images has a label"):
        read_hugging_face(tmp_path / "partly")
    datasets.DatasetDict({"extra": _dataset(2)}).save_to_disk(tmp_path / "extra")
    with pytest.raises(AdaptError, match=r"unknown split 'extra'; .*Valid: test, train, val"):
        read_hugging_face(tmp_path / "extra")
    with pytest.raises(AdaptError, match=r"datasets cannot load '.*': Directory .* is neither"):
        read_hugging_face(_image(tmp_path / "pictures/1.png").parent)


def _tables(folder: Path, rows: list[dict[str, Any]], **kinds: Any) -> list[str]:
    """The names of the same rows as JSONL, as Parquet and as a folder of the library; `image` of a row is a colour."""
    datasets = pytest.importorskip("datasets")
    stored, written = [], []
    for row in rows:
        file = BytesIO()
        Image.new("RGB", (32, 32), row["image"]).save(file, "PNG")
        stored.append(row | {"image": {"bytes": file.getvalue(), "path": None}})
        (folder / f"{row['image']}.png").write_bytes(file.getvalue())
        written.append(row | {"image": f"{row['image']}.png"})
    table = datasets.Dataset.from_list(stored, datasets.Features({"image": datasets.Image(), **kinds}))
    table.save_to_disk(folder / "rows")
    table.to_parquet(folder / "rows.parquet")
    (folder / "hub/data").mkdir(parents=True)  # as the hub stores it
    table.to_parquet(folder / "hub/data/train-00000-of-00001.parquet")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, written)), encoding="utf-8")
    return [str(folder / "rows.jsonl"), str(folder / "rows.parquet"), f"hf:{folder / 'rows'}", f"hf:{folder / 'hub'}"]


COLOURS = ("red", "green", "blue", "white", "black", "grey", "pink", "navy")


def test_the_same_conversations_give_the_same_adapter(tmp_path: Path) -> None:
    """From JSONL, Parquet and the library's folder, bit for bit."""
    text = pytest.importorskip("datasets").Value("string")
    turn = {"role": text, "content": text}
    rows = [
        {"image": colour, "split": "train", "messages": [
            {"role": "user", "content": "what colour is it?"}, {"role": "assistant", "content": f"it is {colour}."},
        ]} for colour in COLOURS
    ]  # fmt: skip
    learned = []
    for source in _tables(tmp_path, rows, split=text, messages=[turn]):
        split = load(source)
        backbone = tiny_natives.backbone("llava")
        torch.manual_seed(0)
        model = adapt.wrap(backbone, adapt.methods.LoRA(towers=("decoder",)))
        adapt.fit(model, split.train, epochs=2, batch_size=4, seed=1)
        learned.append(model.method.state_dict())
    for other in learned[1:]:
        assert [*other] == [*learned[0]]
        assert all(torch.equal(other[key], value) for key, value in learned[0].items())


def test_other_kinds_of_rows_are_the_same_in_each_form(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    text = datasets.Value("string")
    forms: dict[str, tuple[Any, ...]] = {
        "caption": ([f"something {colour}" for colour in COLOURS],),
        "question": (["which colour?"] * 8,),
    }
    for key, (values,) in forms.items():
        more = {"answer": [*COLOURS]} if key == "question" else {}
        rows = [
            {"image": colour, "split": "train", key: values[at], **{name: own[at] for name, own in more.items()}}
            for at, colour in enumerate(COLOURS)
        ]
        (tmp_path / key).mkdir()
        splits = [load(each) for each in _tables(tmp_path / key, rows, split=text, **dict.fromkeys((key, *more), text))]
        told = [[(item.label, item.text, open_image(item).getpixel((0, 0))) for item in each.train] for each in splits]
        assert told[0] == told[1] == told[2]
        assert len(told[0]) == 8


def test_an_image_is_never_a_text_and_names_stay(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    image, several = datasets.Image(), datasets.List(datasets.ClassLabel(names=["cat", "dog"]))
    stored = [{"bytes": b"x", "path": None}] * 4

    def load_table(name: str, kinds: dict[str, Any], **columns: Any) -> Any:
        datasets.Dataset.from_dict(columns, datasets.Features(kinds)).save_to_disk(tmp_path / name)
        return load(f"hf:{tmp_path / name}")

    for name, message in (
        ("label", "row 1: label is an image; expected"),
        ("text", "the caption is an image, '.*text/0'"),
    ):
        with pytest.raises(AdaptError, match=message):
            load_table(name, {"image": image, name: image}, image=stored, **{name: stored})
    with pytest.raises(AdaptError, match="row 1: prompt is an image; expected a text"):
        load_table("edits", {"prompt": image, "completion": image}, prompt=stored, completion=stored)
    split = load_table("several", {"image": image, "labels": several}, image=stored, labels=[[0], [0, 1], [1], [0]])
    assert split.class_names == ("cat", "dog")
    text = datasets.Value("string")
    bags = {"image": image, "label": text, "item": text}
    split = load_table("bags", bags, image=stored, label=["a", "a", "b", "b"], item=["1", "1", "2", "2"])
    assert sorted(len(item.paths) for item in split.items()) == [2, 2]
    with pytest.raises(AdaptError, match=r"row 1: label is .*'a', 'b'.*; expected one value"):
        load_table("lists", {"image": image, "label": [text]}, image=stored, label=[["a", "b"]] * 4)
    beside = {"image": image, "caption": text, "kind": datasets.ClassLabel(names=["x"])}
    with pytest.raises(AdaptError, match=r"kind is 'x', which no form of a row has: .*--columns ignored=kind"):
        load_table("beside", beside, image=stored, caption=["a"] * 4, kind=[0] * 4)
    named = {"image": image, "file_name": text, "label": text}
    split = load_table("named", named, image=stored, file_name=["x.png"] * 4, label=["a", "b"] * 2)
    assert {item.path.rpartition("!")[2].partition("/")[0] for item in split.items()} == {"image"}


def test_columns_of_tables_are_found_by_type_or_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = _dataset(8, cat=["a", "b"] * 4, weight=["1"] * 8)
    table.save_to_disk(tmp_path / "table")
    split = load(f"hf:{tmp_path}/table")  # the only image and the only class label
    assert split.class_names == ("zebra", "ant")
    split = load(f"hf:{tmp_path}/table", columns="label=cat,ignored=kind,ignored=weight")
    assert (split.class_names, split.train[0].task.name) == (("a", "b"), "classes")
    numbers = table.remove_columns(["kind", "cat"]).map(lambda row: {"score": 0.5})
    numbers.save_to_disk(tmp_path / "numbers")
    split = load(f"hf:{tmp_path}/numbers", columns="target=score")
    assert [item.label.value for item in split.train] == [0.5] * len(split.train)
    both = datasets.Dataset.from_dict(
        {"images": [[{"bytes": b"x", "path": None}] * 2] * 3, "prompt": ["what?"] * 3, "completion": ["a dog"] * 3},
        datasets.Features(
            {
                "images": datasets.List(datasets.Image()),
                **dict.fromkeys(("prompt", "completion"), datasets.Value("string")),
            }
        ),
    )
    both.save_to_disk(tmp_path / "both")
    items = {item.path.rpartition("!")[2]: item for item in load(f"hf:{tmp_path}/both").items()}
    assert sorted(items) == ["images/0/0", "images/1/0", "images/2/0"]
    assert read_bytes(items["images/2/0"].paths[1]) == b"x"
    two = _dataset(3).add_column("other", [{"bytes": b"x", "path": None}] * 3)
    two.cast_column("other", datasets.Image()).save_to_disk(tmp_path / "two")
    with pytest.raises(AdaptError, match="has the columns picture, kind, other: say what they are"):
        load(f"hf:{tmp_path}/two")


def test_without_the_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(AdaptError, match=r'needs the library datasets: pip install "adapt-vlm\[hf-data\]"'):
        load("hf:mnist")
