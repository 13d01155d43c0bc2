"""Boxes in a CSV: each region an image by itself, checked by name, and those of one image never in two parts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import adapt
from adapt import Backbone, methods
from adapt.common.errors import AdaptError
from adapt.data import ImageSet, Item, load, open_image, read_csv
from adapt.data.check import broken_images, without_broken
from adapt.data.decoding.images import check_image
from adapt.data.readers.csv_file import read_paths
from adapt.models.features import item_features

Write = Callable[..., Path]
FIRST = "path,label,split,x0,y0,x1,y1"
RED, BLUE = (200, 0, 0), (0, 0, 200)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Red on the left, blue on the right: 40 x 20 pixels."""
    for name in "ab":
        picture = Image.new("RGB", (40, 20), RED)
        picture.paste(BLUE, (20, 0, 40, 20))
        picture.save(tmp_path / f"{name}.png")

    def lines(*rows: str, first: str = FIRST) -> Path:
        (tmp_path / "boxes.csv").write_text("\n".join([first, *rows]) + "\n")
        return tmp_path / "boxes.csv"

    return lines


HALVES = ("a.png,left,train,0,0,20,20", "a.png,right,train,20,0,40,20", "b.png,right,test,20.5,0,39.2,19.9")


def test_each_box_is_an_image_by_itself(write: Write, tmp_path: Path) -> None:
    split = read_csv(write(*HALVES, "b.png,left,test,,,,"))
    left, right, near, whole = map(open_image, split.items())
    assert (left.size, left.getcolors()) == ((20, 20), [(400, RED)])
    assert (right.size, right.getcolors()) == ((20, 20), [(400, BLUE)])
    assert (near.size, whole.size) == ((20, 20), (40, 20))  # the pixels that hold it
    assert split.train[0].path == f"{tmp_path}/a.png#xywh=0,0,20,20"
    assert [item.group for item in split.train] == [f"{tmp_path}/a.png"] * 2
    assert ImageSet(split.train, lambda picture: picture)[1][0].getpixel((0, 0)) == BLUE  # type: ignore[arg-type, return-value, union-attr]


def test_features_are_of_the_region(write: Write, open_clip: Backbone, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    split = read_csv(write(*HALVES))
    model = adapt.wrap(open_clip, methods.ZeroShot(), split.class_names)
    for _ in range(2):  # computed, and from the cache
        left, right, near = item_features(model, list(split.items()), workers=0)
        assert float((left - right).abs().max()) > 1e-3
        torch.testing.assert_close(right, near)
    assert model.predict(split.train[0].path)[0].probability == pytest.approx(
        model.predict(open_image(split.train[0]))[0].probability
    )


@pytest.mark.parametrize(
    ("row", "first", "message"),
    [
        ("a.png,x,train,0,0,0,20", FIRST, "line 4: the box is x0 0, y0 0, x1 0, y1 20; expected 0 <= x0 < x1"),
        ("a.png,x,train,0,9,9,5", FIRST, "the box is x0 0, y0 9, x1 9, y1 5; expected"),
        ("a.png,x,train,-1,0,5,5", FIRST, "the box is x0 -1, y0 0, x1 5, y1 5; expected"),
        ("a.png,x,train,0,0,1000000000,5", FIRST, "the box is x0 0, y0 0, x1 1000000000, y1 5; expected"),
        ("a.png,x,train,0,0,,5", FIRST, "line 4: the x1 is ''; expected a number"),
        ("a.png,x,train,0,0,five,5", FIRST, "the x1 is 'five'; expected a number"),
        ("a.png,x,train,0,0,nan,5", FIRST, "the x1 is 'nan'; expected a number"),
        ("a.png,x,test,0,0,5,5", FIRST, "a.png' is of two parts, 'train' and 'test'"),
        ("a.png,right,train,0,0,20,20", FIRST, "a.png#xywh=0,0,20,20' is of two classes, 'left' and 'right'"),
    ],
)
def test_a_box_that_is_none(write: Write, row: str, first: str, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_csv(write(*HALVES[:2], row, first=first))


def test_all_four_edges_are_needed(write: Write) -> None:
    with pytest.raises(AdaptError, match=r"no column 'y1'\. Regions need all the columns x0, y0, x1, y1"):
        read_csv(write("a.png,left,0,0,5", first="path,label,x0,y0,x1"))


def test_a_box_that_reaches_out_of_its_image(write: Write, tmp_path: Path) -> None:
    split = read_csv(write(*HALVES, "b.png,right,train,20,0,41,20".replace("train", "test")))
    message = (
        f"region '{tmp_path}/b.png#xywh=20,0,21,20' is not inside its image, which is 40 x 20 pixels: the box has x "
        "from 20 to 41 and y from 0 to 20"
    )
    assert list(broken_images(list(split.items())).values()) == [
        f"{message}. Correct the box or remove the region from the data"
    ]
    with pytest.raises(AdaptError, match=re.escape(message)):
        open_image(split.test[1])
    with pytest.raises(AdaptError, match="1 of 4 images of data 'boxes' cannot be used"):
        without_broken(split, "refuse")
    assert [item.path for item in without_broken(split, "skip").items()] == [
        item.path for item in split.items() if "21,20" not in item.path
    ]


def test_an_image_is_never_in_two_parts(write: Write) -> None:
    rows = [
        f"{number}.png,{'often' if number % 10 else 'rare'},{x},0,{x + 5},5" for number in range(60) for x in (0, 9)
    ]
    split = load(write(*rows, first="path,label,x0,y0,x1,y1"))
    where = {part: {item.path.partition("#")[0] for item in getattr(split, part)} for part in ("train", "val", "test")}
    assert [len(each) for each in where.values()] == [36, 6, 18]
    assert sum(item.answer == "rare" for item in split.train) == 8  # of 6 images 4, each with two regions
    assert not where["train"] & where["test"]
    carved = read_csv(write(*rows, first="path,label,x0,y0,x1,y1"), ratios=(1, 0, 0)).with_validation(1)
    held, kept = ({item.path.partition("#")[0] for item in part} for part in (carved.val, carved.train))
    assert held
    assert not held & kept


def test_a_strip_is_refused(write: Write, tmp_path: Path) -> None:
    Image.new("RGB", (400, 9)).save(tmp_path / "wide.png")
    split = read_csv(write(*HALVES, "wide.png,right,test,0,3,400,5"))
    with pytest.raises(AdaptError, match="is 400 x 2 pixels; the longer side may be at most 100 times"):
        open_image(split.test[-1])
    assert len(broken_images(split.test)) == 1


def test_a_text_has_no_box(write: Write) -> None:
    with pytest.raises(AdaptError, match="line 2: there is a box but no path"):
        read_csv(write("a cat,cat,,0,0,1,1", first="text,label,path,x0,y0,x1,y1"))


def test_paths_alone(write: Write, tmp_path: Path) -> None:
    """As for predictions: whatever else there is."""
    listed = write("a.png,7,0,0,20,20", "b.png,8,,,,", first="path,score,x0,y0,x1,y1")
    called = ["a.png#xywh=0,0,20,20", "b.png"]
    assert read_paths(listed) == [(f"{tmp_path}/{name}", name, "", "") for name in called]
    with pytest.raises(AdaptError, match=r"line 2: the image '\.\./a.png' is not under"):
        read_paths(write("../a.png", first="path"))
    with pytest.raises(AdaptError, match=r"expected a column 'path'.* Rename 'file' to 'path'\."):
        read_paths(write("a.png", first="file"))
    with pytest.raises(AdaptError, match=r"and a line for each image\."):
        read_paths(write(first="path"))


@pytest.mark.parametrize("box", ["1,2,3", "0,0,5.5,5", "-1,0,5,5", "percent:0,0,50,50", ""])
def test_a_region_that_is_badly_written_says_so(write: Write, tmp_path: Path, box: str) -> None:
    write()
    path = f"{tmp_path}/a.png#xywh={box}"
    message = f"region {path!r} has the box {box!r}; expected X,Y,WIDTH,HEIGHT, four whole numbers of pixels"
    for open_or_check in (open_image, check_image):
        with pytest.raises(AdaptError, match=re.escape(message)):
            open_or_check(path)
    Image.new("RGB", (3, 3)).save(path, "PNG")  # a file may be called so all the same
    assert open_image(path).size == (3, 3)


def test_a_region_of_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"nothing\.png' does not exist"):
        open_image(Item.of(path=f"{tmp_path}/nothing.png#xywh=0,0,1,1", label="a"))


def test_regions_of_one_image_with_texts_stay_in_one_part(write: Write) -> None:
    rows = [f"{name}.png,text {edge},{edge},0,{edge + 4},8" for name in "ab" for edge in range(12)]
    split = read_csv(write(*rows, first="path,text,x0,y0,x1,y1"))
    assert split.name == "boxes"
    parts = [{item.path.partition("#")[0] for item in part} for part in (split.train, split.val, split.test)]
    assert sum(len(part) for part in parts) == 2


def test_a_labelled_folder_may_list_regions(write: Write, tmp_path: Path) -> None:
    table = write(
        "a.png,red|blue,0,0,40,20", "b.png,red,0,0,20,20", "b.png,blue,20,0,40,20", first="path,labels,x0,y0,x1,y1"
    )
    table.rename(tmp_path / "labels.csv")
    assert len(list(load(tmp_path).items())) == 3


OVERLAPS = "path,label,split,x0,y0,x1,y1,overlap"


def test_an_overlap_comes_beside_the_label(write: Write) -> None:
    split = read_csv(write(*(f"{row},{overlap}" for row, overlap in zip(HALVES, ("0.75", "1", "0"))), first=OVERLAPS))
    assert [item.label.overlap for item in split.items()] == [0.75, 1.0, 0.0]
    assert split.task.values(split.train).tolist() == [0.75, 1.0]
    assert split.fingerprint != read_csv(write(*HALVES)).fingerprint


@pytest.mark.parametrize(
    ("row", "first", "message"),
    [
        ("a.png,x,train,0,0,5,5,", OVERLAPS, "line 2: the overlap is ''; expected a number"),
        ("a.png,x,train,0,0,5,5,1.5", OVERLAPS, "line 2: the overlap is 1.5; expected a number from 0 to 1"),
        (
            "a.png,0,0,5,5,1,1",
            "path,x0,y0,x1,y1,overlap,target",
            "boxes.csv': no task reads the columns overlap, path, target, ",
        ),
        ("a.png,x,1,1", "path,label,overlap,target", "no task reads the columns label, overlap, path, target together"),
        (
            "a.png,x,1,why",
            "path,label,overlap,question",
            "no task reads the columns label, overlap, path, question together",
        ),
    ],
)
def test_an_overlap_that_is_none(write: Write, row: str, first: str, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_csv(write(row, first=first))
