"""Images that may have several classes, or none: how they are listed, divided, drawn and shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from listed import touch
from PIL import Image

from adapt.backbones.preprocess import Preprocess
from adapt.common.errors import AdaptError
from adapt.data import Item, Split, checks, load, loader, read_csv

Write = Callable[..., Path]
LINES = ("a.jpg,cat|dog,train", "b.jpg,dog,train", "c.jpg,,train", "d.jpg,cat | bird,val", "e.jpg,bird|dog,test")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def lines(*rows: str, first: str = "path,labels,split", name: str = "mine.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join([first, *rows]) + "\n")
        return path

    return lines


def test_a_cell_has_the_names_of_all(write: Write) -> None:
    split = read_csv(write("f.jpg,bird,train", *LINES))
    assert split.class_names == ("bird", "cat", "dog")
    assert split.task.name == "labels"
    assert [item.class_names for item in split.train] == [("bird",), ("cat", "dog"), ("dog",), ()]
    assert [item.class_names for item in (*split.val, *split.test)] == [("bird", "cat"), ("bird", "dog")]
    # drawn by the rarest: cat twice, bird and dog three times each
    assert [item.stratum for item in split.train] == ["bird", "cat", "dog", ""]


def test_a_name_may_have_a_separator_of_its_own(write: Write) -> None:
    split = read_csv(
        write("a.jpg,salt; pepper|salt", 'b.jpg,"Paris, Texas|Texas"', first="path,labels"), ratios=(1, 0, 0)
    )
    assert split.class_names == ("Paris, Texas", "Texas", "salt", "salt; pepper")


def test_the_list_counts_in_the_fingerprint(write: Write) -> None:
    one, other = (read_csv(write("f.jpg,bird,train", *LINES[:4], last)) for last in (LINES[4], "e.jpg,bird,test"))
    assert [item.stratum for item in one.test] == [item.stratum for item in other.test]
    assert one.fingerprint != other.fingerprint


def test_rare_classes_are_in_every_part(write: Write) -> None:
    """300 images, all with one class, 20 with a second and 10 with a third one."""
    rows = [f"{i}.jpg,often{'|rare' * (i % 15 == 0)}{'|rarest' * (i % 30 == 0)}" for i in range(300)]
    split = read_csv(write(*rows, first="path,labels"))
    for items, rare, rarest in ((split.train, 12, 6), (split.val, 2, 1), (split.test, 6, 3)):
        found = Counter(name for item in items for name in item.class_names)
        assert (found["rare"], found["rarest"]) == (rare, rarest)


@pytest.mark.parametrize(
    ("rows", "first", "message"),
    [
        (
            ("a.jpg,cat|cat",),
            "path,labels",
            "line 2: the labels are 'cat|cat'; expected different names, as in cat|dog",
        ),
        (("a.jpg,cat|",), "path,labels", "line 2: the labels are 'cat|'; expected different names"),
        (("a.jpg,cat; dog", "b.jpg,dog;bird", "c.jpg,cat;bird"), "path,labels", "separate names by '|', as in cat|dog"),
        (
            ("a.jpg,cat;dog", "b.jpg,dog|bird", "c.jpg,cat"),
            "path,labels",
            "'labels' has the name 'cat;dog', whose parts",
        ),
        (('a.jpg,"cat,dog"', "b.jpg,dog", "c.jpg,cat"), "path,labels", "as in cat|dog"),
        (("a.jpg,",), "path,labels", "all cells of the column 'labels' are empty"),
        (("a.jpg,cat,dog",), "path,labels,label", "mine.csv': no task reads the columns label, labels, path together"),
        (("a.jpg,cat,1",), "path,labels,target", "no task reads the columns labels, path, target together"),
        (("a.jpg,cat,hm",), "path,labels,text", "line 2: expected either a path or a text, not both"),
        (("a.jpg,cat", "a.jpg,dog"), "path,labels", "is of two classes, 'cat' and 'dog'"),
        (("a.jpg,cat", "a.jpg,dog"), "path,label", "a column 'labels' in place of 'label' may have several"),
        (("cat",), "labels", "line 2: the path is empty"),
    ],
)
def test_what_is_wrong_is_named(write: Write, rows: tuple[str, ...], first: str, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_csv(write(*rows, first=first))


def test_a_folder_with_its_list(tmp_path: Path, write: Write) -> None:
    touch(tmp_path, "a.jpg", "deep/b.jpg")
    write("a.jpg,cat|dog,train", "deep/b.jpg,,test", name="labels.csv")
    split = load(tmp_path)
    assert split.name == tmp_path.name
    assert split.class_names == split.train[0].class_names == ("cat", "dog")
    touch(tmp_path, "deep/c.jpg")
    with pytest.raises(AdaptError, match=r"does not list .*deep/c.jpg': add a line for the image, with an empty cell"):
        load(tmp_path)


def test_another_list_in_a_folder_of_classes_is_passed_over(tmp_path: Path, write: Write) -> None:
    touch(tmp_path, "cat/a.jpg", "dog/b.jpg")
    write("cat,1", first="class,number", name="labels.csv")
    assert load(tmp_path).class_names == ("cat", "dog")


ITEM = Item.of(path="a.jpg", labels=("a", "b"))


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            (Item.of(path="b.jpg", label="b"), ITEM),
            "labelled for the task labels (several classes per image, or none), but 'b.jpg' for the task classes",
        ),
        ((Item.of(path="a.jpg", labels="a|c"),), "the class 'a|c'; expected one of the data set's 2 class names"),
        ((replace(ITEM, text="hm"),), "a.jpg' has both a text and a label"),
    ],
)
def test_a_split_that_is_none(items: tuple[Item, ...], message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        Split("bad", ("a", "b"), (), (), items)


def test_a_class_that_no_training_image_has() -> None:
    with pytest.raises(AdaptError, match="no training image of 'b'"):
        Split("bad", ("a", "b"), (Item.of(path="a.jpg", labels="a"),), (), (ITEM,))
    assert Split("good", ("a", "b"), (ITEM,), (), ()).task.name == "labels"


def test_names_may_be_others(write: Write) -> None:
    split = read_csv(write("f.jpg,bird,train", *LINES))
    named = split.renamed({"bird": "jay", "cat": "lynx", "dog": "wolf"})
    assert [item.stratum for item in named.train] == ["jay", "lynx", "wolf", ""]
    assert [item.class_names for item in named.train] == [("jay",), ("lynx", "wolf"), ("wolf",), ()]


def test_classes_cannot_be_cut_into_parts(write: Write) -> None:
    with pytest.raises(AdaptError, match=r"has several classes per image, .* cannot be divided by classes \(base\)"):
        read_csv(write("f.jpg,bird,train", *LINES)).only("base")


def test_a_class_with_one_image_is_remarked(tmp_path: Path, write: Write) -> None:
    touch(tmp_path, *(f"{name}.jpg" for name in "abcdef"))
    listed = write("f.jpg,bird,train", *LINES)
    found = checks.found_in(checks.look(str(listed), read_csv(listed)))
    assert [each.line for each in found if each.list == "classes" and not each.stops] == [
        "one training image each, too few to hold any back: bird, cat"
    ]


def test_copies_with_other_labels_are_told_by_names(tmp_path: Path, write: Write) -> None:
    for name in "ab":
        Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / f"{name}.png")
    listed = write("a.png,cat|dog,train", "b.png,dog,train")
    found = checks.found_in(checks.look(str(listed), read_csv(listed)))
    assert [each.line for each in found if each.list == "contradictions"] == [
        "the same picture with another label: b.png, train 'dog' (a.png, train 'cat|dog')"
    ]


def test_the_bundled_scenes() -> None:
    split = load("emoji-labels")
    assert [len(part) for part in (split.train, split.val, split.test)] == [600, 80, 240]
    assert Counter(len(item.class_names) for item in split.test) == {1: 60, 2: 60, 3: 60, 4: 60}
    seen = Counter(name for item in split.train for name in item.class_names)
    assert len(seen) == len(split.class_names) == 51
    assert max(seen.values()) - min(seen.values()) <= 2
    unseen = load("emoji-labels@fluent-3d")
    assert unseen.class_names == split.class_names
    assert {item.domain for item in unseen.items()} == {"fluent-3d"}


def test_batches_say_of_each_class_whether_it_is_there() -> None:
    split = load("emoji-labels")
    transform = Preprocess(32, (0.5,) * 3, (0.5,) * 3).evaluation()
    [(images, items)] = loader(split.train[:4], transform, 4, train=False)
    labels = split.task.labels(items, split.class_names)
    assert (images.shape, labels.shape, labels.dtype) == ((4, 3, 32, 32), (4, 51), torch.bool)
    seen = [{split.class_names[number] for number in row.nonzero()[:, 0]} for row in labels]
    assert seen == [set(item.class_names) for item in split.train[:4]]
