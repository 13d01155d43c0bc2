"""Items of several images: how a list or a folder gives them, and that every subset keeps them whole."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from adapt import AdaptError
from adapt.data import load
from adapt.data.bags import singles, sizes
from adapt.data.checks import copies, look
from adapt.data.decoding.image_set import loader
from adapt.data.split import folds

ROWS = [f"{name}-{number}-{view}.png,{name},{name} {number}" for name in "ab" for number in range(6) for view in "xyz"]


def listed(folder: Path, rows: list[str], columns: str = "path,label,item") -> Path:
    path = folder / "things.csv"
    path.write_text("\n".join([columns, *rows]))
    return path


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_lines_of_one_item_are_one_item(tmp_path: Path) -> None:
    split = load(listed(tmp_path, ROWS[1:]))
    items = list(split.items())
    assert len(items) == 12
    assert sorted(sizes(items)) == [2, *[3] * 11]
    [first] = [item for item in items if item.group == "a 0"]
    assert [Path(path).name for path in first.paths] == ["a-0-y.png", "a-0-z.png"]
    assert first.class_names == ("a",)
    assert (len(split.train), len(split.val), len(split.test)) == (8, 0, 4)  # items are divided, not images


def test_lines_of_an_item_need_not_follow_each_other(tmp_path: Path) -> None:
    one, other = load(listed(tmp_path, ROWS)), load(listed(tmp_path, [*ROWS[::3], *ROWS[1::3], *ROWS[2::3]]))
    assert [item.paths for item in one.items()] == [item.paths for item in other.items()]


def test_a_column_names_the_views_of_an_item(tmp_path: Path) -> None:
    rows = [f"{row},{row.partition('.')[0][-1]}" for row in ROWS]
    split = load(listed(tmp_path, rows[::-1], "path,label,item,view"))
    assert {item.view_names for item in split.items()} == {("z", "y", "x")}
    assert {each.view_names for each in singles(split.train)} == {()}
    other = load(listed(tmp_path, [row.replace(",x", ",w") for row in rows[::-1]], "path,label,item,view"))
    first, second = split.train[0].identity(""), other.train[0].identity("")
    assert {name for name in first if first[name] != second[name]} == {"views"}


@pytest.mark.parametrize(
    ("columns", "rows", "words"),
    [
        ("path,label,view", ["1.png,a,x"], "the column view is of the images of an item: add a column item"),
        ("path,label,item", ["1.png,a,i", "2.png,b,i"], "the item 'i' has the label 'a' at '.*1.png', but 'b'"),
        ("path,label,item,split", ["1.png,a,i,train", "2.png,a,i,test"], "the item 'i' has the split 'train'"),
        ("path,label,item,domain", ["1.png,a,i,x", "2.png,a,i,y"], "has the domain 'x' at .* the same domain"),
        ("path,label,item,group", ["1.png,a,i,x", "2.png,a,i,y"], "has the group 'x'"),
        ("path,label,item", ["1.png,a,i", "1.png,a,j"], "'.*1.png' is in two items, 'i' and 'j'"),
        ("path,label,item,x0,y0,x1,y1", ["1.png,a,i,0,0,2,2", "1.png,a,j,2,2,4,4"], "'.*1.png' is in two items"),
        ("path,label,item", ["1.png,a,i", "2.png,a,"], "line 3: the item is empty"),
        ("path,text,item", ["1.png,a dog,i", "2.png,a cat,i"], "the column item joins images with one label"),
    ],
)
def test_items_that_contradict_themselves_are_refused(
    tmp_path: Path, columns: str, rows: list[str], words: str
) -> None:
    with pytest.raises(AdaptError) as error:
        load(listed(tmp_path, rows, columns))
    assert re.search(words, str(error.value))


def test_several_labels_and_numbers_may_have_items(tmp_path: Path) -> None:
    several = load(listed(tmp_path, ["1.png,a|b,i", "2.png,a|b,i"], "path,labels,item"))
    assert several.train[0].class_names == ("a", "b")
    numbers = load(listed(tmp_path, ["1.png,0.5,i", "2.png,0.5,i", "3.png,0.7,j"], "path,target,item"))
    assert sizes(list(numbers.items())) == [2, 1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, item, image in (("cat", "one", "1"), ("cat", "one", "2"), ("cat", "two", "1"), ("dog", "one", "1")):
        picture(tmp_path / f"things/{name}/{item}/{image}.png")
    picture(tmp_path / "things/dog/alone.png")
    return tmp_path / "things"


def test_folders_of_items(folder: Path) -> None:
    items = sorted(load(f"items:{folder}").items(), key=lambda item: item.path)
    assert [(item.class_names[0], len(item.paths)) for item in items] == [
        ("cat", 2),
        ("cat", 1),
        ("dog", 1),
        ("dog", 1),
    ]
    assert [item.group for item in items] == ["cat/one", "cat/two", "", "dog/one"]
    with pytest.raises(AdaptError, match=r"'cat' and 'dog' both have a folder 'one'.* give items:FOLDER"):
        load(folder)


def test_a_link_to_an_image_of_another_item_is_no_silent_loss(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "cat/two/2.png").symlink_to(folder / "cat/one/1.png")
    items = list(load(f"items:{folder}").items())
    assert sorted(sizes(items)) == [1, 1, 1, 2]
    assert "left out 1 links of pictures that count elsewhere" in caplog.text


def test_the_check_of_data_looks_at_every_image(tmp_path: Path) -> None:
    one, copy = picture(tmp_path / "1.png"), tmp_path / "copy.png"
    copy.write_bytes(one.read_bytes())
    other = tmp_path / "2.png"
    Image.new("RGB", (4, 4), (200, 10, 10)).save(other)
    rows = ["2.png,a,i,test", "copy.png,a,i,test", "1.png,a,j,train"]
    source = str(listed(tmp_path, rows, "path,label,item,split"))
    [found] = copies(look(source, load(source)))
    assert "test images that are training images too" in found.line


def test_shots_folds_and_validation_keep_items_whole(tmp_path: Path) -> None:
    split = load(listed(tmp_path, ROWS))
    few = split.few_shot(2, seed=1)
    assert [len(item.paths) for item in few.train] == [3] * 4
    held = replace(split, val=()).with_validation(1).val
    assert held
    assert all(len(item.paths) == 3 for item in held)
    one_by_one = singles(split.train)
    assert len(one_by_one) == 3 * len(split.train)
    fold_of = dict(zip([item.path for item in one_by_one], folds(one_by_one, 3, 0), strict=True))
    for item in split.train:  # also where each image is learned by itself
        assert len({fold_of[path] for path in item.paths}) == 1


def test_every_image_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    one, other = load(listed(tmp_path, ROWS)), load(listed(tmp_path, [ROWS[0], *ROWS[2:]]))
    assert one.fingerprint != other.fingerprint


def test_a_batch_has_images_one_after_another(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{number}.png") for number in range(5)]
    rows = [f"{path.name},a,{item}" for path, item in zip(paths, "iijjj", strict=True)]
    split = load(listed(tmp_path, rows))

    [(bags, items)] = loader(list(split.items()), lambda picture: torch.zeros(3, 2, 2), 8, train=False)
    assert tuple(bags.images.shape) == (5, 3, 2, 2)
    assert bags.counts.tolist() == [len(item.paths) for item in items]
    assert sorted(bags.counts.tolist()) == [2, 3]


def test_bundled_items() -> None:
    items, clutter, single = load("emoji-items"), load("emoji-clutter"), load("emoji")
    assert (len(items.test), len(clutter.test)) == (181, len(single.test))
    assert {len(item.paths) for item in clutter.items()} == {4}
    drawn = {path for item in items.test for path in item.paths}
    assert drawn == {item.path for item in single.test}
    for item, own in zip(clutter.test, single.test, strict=True):
        assert own.path in item.paths
        assert item.label == own.label
    others = [
        {path for item in part for path in item.paths} - {item.path for item in single.items()}
        for part in (clutter.train, clutter.val, clutter.test)
    ]
    assert not others[0] & others[2]
    assert not others[1] & others[2]
