"""Images without a label: a part of a folder or a list, never test images, and what is left of the shots."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from adapt.cli import main
from adapt.common.errors import AdaptError
from adapt.data import Item, Split, load
from adapt.data.check import without_broken, without_copies
from adapt.data.split import folds, parts
from adapt.recipe import read_recipe
from adapt.training.run_recipe import listed_data


@pytest.fixture
def folder(five_classes: Path, tmp_path: Path) -> Path:
    """`five_classes` with three images of no class, two of them in a folder of their own."""
    folder = Path(shutil.copytree(five_classes, tmp_path / "plain"))
    (folder / "unlabelled" / "camera").mkdir(parents=True)
    for number, place in enumerate(("a.png", "camera/b.png", "camera/c.png")):
        Image.new("RGB", (8, 8), (number, 9, 9)).save(folder / "unlabelled" / place)
    return folder


def names(split: Split) -> list[str]:
    return [Path(item.path).name for item in split.unlabelled]


def test_a_folder_of_unlabelled_images_is_no_class(folder: Path, five_classes: Path) -> None:
    split, before = load(folder), load(five_classes)
    assert names(split) == ["a.png", "b.png", "c.png"]
    assert split.class_names == before.class_names
    assert (len(split.train), len(split.test)) == (len(before.train), len(before.test))
    assert split.fingerprint != before.fingerprint
    assert not any(item.class_names for item in split.unlabelled)
    assert split.turned
    assert split.turning(False).unlabelled[0].turned is False


def test_it_stands_beside_classes_too(folder: Path) -> None:
    """Without parts, the classes' images are divided, and those without a class are not."""
    for name in ("goldfish", "sky"):
        shutil.move(folder / "train" / name, folder / name)
    for part in ("train", "test"):
        shutil.rmtree(folder / part)
    split = load(folder)
    assert split.class_names == ("goldfish", "sky")
    assert len(list(split.items())) == 8
    assert names(split) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("header", ["path,label", "path,label,split"])
def test_a_line_without_a_label(tmp_path: Path, header: str) -> None:
    part = [",train", ",test", ",unlabelled", ",train"] if "split" in header else [""] * 4
    cells = ["a.png,cat", "b.png,cat", "c.png,", "d.png,"]
    lines = [header, *(cell + own for cell, own in zip(cells, part, strict=True))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    split = load(tmp_path / "list.csv")
    assert split.class_names == ("cat",)
    assert names(split) == ["c.png", "d.png"]
    assert len(list(split.items())) == 2


def test_a_label_that_several_classes_may_leave_empty_stays_one(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,labels\na.png,cat\nb.png,\n")
    assert load(tmp_path / "list.csv").unlabelled == ()


def test_domains_and_items_need_labels(folder: Path) -> None:
    for below in (folder, folder.parent):
        with pytest.raises(AdaptError, match="has a folder unlabelled, but images in domains need labels"):
            load(f"domains:{below}")
    with pytest.raises(AdaptError, match="has a folder unlabelled, but items need labels"):
        load(f"items:{folder}")


def test_labels_and_texts_are_refused() -> None:
    train = (Item.of(path="a", label="cat"),)
    with pytest.raises(AdaptError, match="the unlabelled item 'a' has the class 'cat'"):
        Split("s", ("cat",), train, (), (), train)
    with pytest.raises(AdaptError, match="the unlabelled item 'some words' has no image"):
        Split("s", ("cat",), train, (), (), (Item.of(text="some words"),))


def test_what_is_not_drawn_may_be_unlabelled(folder: Path) -> None:
    split = load(folder)
    drawn = split.few_shot(1, seed=1).keeping_rest(split)
    assert drawn.train == split.few_shot(1, seed=1).train
    others = {item.path for item in split.train} - {item.path for item in drawn.train}
    assert {item.path for item in drawn.unlabelled} == others | {item.path for item in split.unlabelled}
    assert len(drawn.unlabelled) == 15 + 3
    assert split.few_shot(1, seed=1).unlabelled == split.unlabelled


@pytest.mark.parametrize(("shots", "short"), [(4, False), (5, True)])
def test_a_class_with_just_as_many_images_as_shots_is_not_said_to_have_fewer(
    five_classes: Path, shots: int, short: bool, caplog: pytest.LogCaptureFixture
) -> None:
    split = listed_data(read_recipe("zero_shot", [f"data.shots={shots}"], data=str(five_classes)))
    assert len(split.train) == 20
    assert ("5 classes have fewer than" in caplog.text) is short


def test_what_is_drawn_for_validation_is_not_unlabelled(folder: Path) -> None:
    """By the rule of CLIP-LoRA, which takes it from the training images where there is no validation part."""
    split = load(folder)
    drawn = split.few_shot(1, 1, "clip-lora").keeping_rest(split)
    parts_of = [{item.path for item in part} for part in (drawn.train, drawn.val, drawn.unlabelled)]
    assert [len(part) for part in parts_of] == [5, 5, 10 + 3]
    assert len(set.union(*parts_of)) == 23
    assert {item.answer for item in drawn.val} == {*split.class_names}


def test_the_rest_of_other_classes_is_left_out() -> None:
    """Else a run on the base classes would learn from images of the new ones."""
    sets = ["data.shots=1", "data.rest=unlabelled", "data.classes=base"]
    split = listed_data(read_recipe("ss_text/unlabelled", sets, data="emoji"))
    whole = load("emoji").only("base")
    assert len(split.class_names) == 12
    assert {item.path for item in split.unlabelled} < {item.path for item in whole.train}
    assert len(split.unlabelled) == len(whole.train) - 12


def test_a_group_stays_with_its_image(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label,group\na.png,cat,one\nb.png,,one\n")
    assert [item.group for item in load(tmp_path / "list.csv").unlabelled] == ["one"]


def test_folds_and_classes_keep_them(folder: Path) -> None:
    split = load(folder)
    assert split.only("base").unlabelled == split.unlabelled
    [first, *_] = parts(split, folds(split.train, 2, 1), 2)
    assert first[0].unlabelled == split.unlabelled


def test_a_domain_left_out_leaves_them_too() -> None:
    items = tuple(Item.of(path=f"{domain}.png", label="cat", domain=domain) for domain in ("photo", "sketch"))
    split = Split("s", ("cat",), items, (), (), tuple(item.without_label() for item in items))
    assert [item.domain for item in split.leaving_out("sketch").unlabelled] == ["photo"]


def test_test_images_are_recognised_by_content(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = load(folder)
    image = Image.open(split.test[3].path)
    image.save(folder / "unlabelled" / "of the test.bmp")
    split = load(folder)
    assert len(split.unlabelled) == 4
    kept = without_copies(split.unlabelled, [*split.items()])
    assert [Path(item.path).name for item in kept] == ["a.png", "b.png", "c.png"]
    assert "left out 1 of 4 unlabelled images" in caplog.text
    assert "of the test.bmp" in caplog.text


def test_broken_ones_are_refused_or_left_out(folder: Path) -> None:
    (folder / "unlabelled" / "a.png").write_bytes(b"nothing")
    with pytest.raises(AdaptError, match="1 of 43 images of data 'plain' cannot be used"):
        without_broken(load(folder), "refuse")
    assert names(without_broken(load(folder), "skip")) == ["b.png", "c.png"]


def test_the_check_counts_and_names_them(folder: Path) -> None:
    Image.open(load(folder).test[3].path).save(folder / "unlabelled" / "of the test.png")
    result = CliRunner().invoke(main, ["data", "check", str(folder)])
    assert result.exit_code == 0, result.output
    assert "train 20, val 0, test 20, unlabelled 4" in result.output
    assert "All 44 images of the data can be used" in result.output or "All images can be used" in result.output
    assert "unlabelled images that are test images too, and are left out: unlabelled/of the test.png" in result.output
    assert "with another label" not in result.output
