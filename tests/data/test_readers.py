"""Folders, CSV files, split JSON, files of class names, and `load`, with the message of each mistake."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from listed import relative, touch

from adapt.common.errors import AdaptError
from adapt.data import load, read_csv, read_folder, read_names, read_split

# ---- folders


def test_a_divided_folder_keeps_its_parts(tmp_path: Path) -> None:
    root = touch(tmp_path / "pets", "train/dog/2.jpg", "train/dog/1.PNG", "train/cat/a.webp", "valid/cat/b.jpg")
    touch(root, "test/dog/c.jpg", "train/dog/notes.txt", "train/dog/.hidden.jpg", "train/.git/d.jpg", "readme.png")
    split = read_folder(root)
    assert (split.name, split.class_names) == ("pets", ("cat", "dog"))
    assert relative(split.train, root) == ["train/cat/a.webp", "train/dog/1.PNG", "train/dog/2.jpg"]
    assert [item.answer for item in split.train] == ["cat", "dog", "dog"]
    assert relative(split.val, root) == ["valid/cat/b.jpg"]
    assert relative(split.test, root) == ["test/dog/c.jpg"]


def test_val_and_test_folders_are_optional(tmp_path: Path) -> None:
    split = read_folder(touch(tmp_path, "train/dog/1.jpg"))
    assert (len(split.train), split.val, split.test) == (1, (), ())


def test_an_undivided_folder_is_divided_by_seeded_ratios(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"{name}/{name}s/{i:02}.jpg" for name in ("ant", "bee") for i in range(20)))
    split = read_folder(root)
    for items, size in ((split.train, 12), (split.val, 2), (split.test, 6)):
        assert Counter(item.answer for item in items) == {"ant": size, "bee": size}
    assert len({item.path for item in split.items()}) == 40
    assert read_folder(root).fingerprint == split.fingerprint
    assert read_folder(root, seed=1).fingerprint != split.fingerprint
    assert [len(part) for part in _parts(read_folder(root, ratios=(0.5, 0.5, 0)))] == [20, 20, 0]


def _parts(split: Any) -> tuple[Any, Any, Any]:
    return split.train, split.val, split.test


def test_another_class_leaves_the_parts_of_the_others(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"bee/{i}.jpg" for i in range(10)))
    before = [relative(part, root) for part in _parts(read_folder(root))]
    touch(root, *(f"ant/{i}.jpg" for i in range(7)))
    after = [[path for path in relative(part, root) if "bee" in path] for part in _parts(read_folder(root))]
    assert before == after


def test_a_class_of_one_image_trains_on_it(tmp_path: Path) -> None:
    assert [len(part) for part in _parts(read_folder(touch(tmp_path, "a/1.jpg"), ratios=(0.1, 0.2, 0.7)))] == [1, 0, 0]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert read_folder(touch(tmp_path, "train/1.jpg", "bus/1.jpg")).class_names == ("bus", "train")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            (),
            "in folders of their classes. Expected CLASS/IMAGE, with images of the formats .avif .bmp .gif .",
        ),
        (("1.jpg",), "has no images in folders of their classes"),
        (("train/a/1.jpg", "test/a/x.txt"), "test' has no images in folders of their classes"),
        (("train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"), "the same part (train, val or test): train, val, valid"),
        (("train/a/1.jpg", "test/b/1.jpg"), "no training image of 'b'"),
        (("a/1.jpg", "b/notes.txt"), "no training image of 'b'"),
    ],
)
def test_folders_that_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_folder(touch(tmp_path, *names))


@pytest.mark.parametrize("folder", [".", "train"])
def test_a_class_whose_name_is_no_utf_8_is_named(folder: str, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    touch(tmp_path, *(f"{folder}/{each}/{number}.jpg" for each in ("tea", name) for number in range(3)))
    with pytest.raises(AdaptError, match=r"the name 'caf\\udce9' of label 0 is not valid UTF-8. Rename the class"):
        read_folder(tmp_path)


def test_what_macos_adds_to_archives_is_no_class(tmp_path: Path) -> None:
    split = read_folder(touch(tmp_path, "dog/1.jpg", "dog/__MACOSX/._1.jpg", "__MACOSX/dog/._1.jpg", "__MACOSX/a.jpg"))
    assert (split.class_names, len([*split.items()])) == (("dog",), 1)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"image folder '.*nowhere' does not exist"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0, 0.5, 0.5), (0.6, 0.6, 0.6), (1.2, -0.1, -0.1)])
def test_ratios_that_are_refused(tmp_path: Path, ratios: tuple[float, ...]) -> None:
    with pytest.raises(AdaptError, match="expected three fractions, for train"):
        read_folder(touch(tmp_path, "a/1.jpg"), ratios=ratios)


# ---- CSV


def _csv(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_a_csv_with_all_columns(tmp_path: Path) -> None:
    text = 'path,label,split,domain\nb.png,"cat, wild",train,sketch\nsub/a.png,ant,train,\nc.png,ant,validation,photo\n'
    split = read_csv(_csv(tmp_path, text, "utf-8-sig"))
    assert (split.name, split.class_names) == ("list", ("ant", "cat, wild"))
    assert [(item.answer, item.domain) for item in split.train] == [("cat, wild", "sketch"), ("ant", "")]
    assert relative(split.train, tmp_path) == ["b.png", "sub/a.png"]
    assert relative(split.val, tmp_path) == ["c.png"]
    assert split.test == ()


def test_a_csv_without_split_is_divided_by_seeded_ratios(tmp_path: Path) -> None:
    path = _csv(tmp_path, "label,path\n" + "".join(f"{'ab'[i % 2]},{i}.png\n" for i in range(20)))
    split = read_csv(path)
    assert [len(part) for part in _parts(split)] == [12, 2, 6]
    assert read_csv(path).fingerprint == split.fingerprint != read_csv(path, seed=1).fingerprint


def test_an_image_that_a_csv_lists_again_stays_in_one_part(tmp_path: Path) -> None:
    rows = [f"{number}.png,{'ab'[number % 2]}\n" for number in range(20)]
    split = read_csv(_csv(tmp_path, "path,label\n" + "".join(rows * 2)))
    train, val, test = ({item.path for item in part} for part in _parts(split))
    assert (len(train), len(val), len(test)) == (12, 2, 6)
    assert train | val | test == {str(tmp_path / f"{number}.png") for number in range(20)}


def test_a_csv_of_paths_alone_has_images_without_labels(tmp_path: Path) -> None:
    split = read_csv(_csv(tmp_path, "path\na.png\n"), ratios=(1, 0, 0))
    assert (split.task.name, split.class_names) == ("images", ())
    assert relative(split.train, tmp_path) == ["a.png"]


def test_a_csv_of_questions_has_answers_for_labels(tmp_path: Path) -> None:
    text = 'path,question,label,split\na.png,what is it?,dog,train\na.png,"how many, say?",two,train\n'
    split = read_csv(_csv(tmp_path, text))
    assert split.class_names == ("dog", "two")
    assert [(item.label.question, item.answer) for item in split.train] == [
        ("what is it?", "dog"),
        ("how many, say?", "two"),
    ]
    assert len({item.path for item in split.train}) == 1


def test_paths_of_a_csv_start_from_root(tmp_path: Path) -> None:
    split = read_csv(_csv(tmp_path, "path,label\na.png,a\n/images/b.png,a\n"), root="/images")
    assert sorted(item.path for item in split.items()) == ["/images/a.png", "/images/b.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "list.csv' lists no images"),
        ("path,label\n", "lists no images"),
        ("path,label,label\na.png,a,b\n", "has two columns 'label'; expected one: rename or remove the other"),
        (
            "path,target\na.png,1e308\nb.png,-1e308\n",
            "the targets reach from -1e+308 to 1e+308; expected at most 1e",
        ),
        ("path,label\nC:\\me\\a.png,a\n", "'C:\\\\me\\\\a.png' is on the drive 'C:'; expected a path below '"),
        ("path,lable\n", "unknown column 'lable'; did you mean 'label'?"),
        ("file,label\na.png,a\n", "unknown column 'file'; did you mean 'path'? Rename the column"),
        ("Image_Path,label\na.png,a\n", "unknown column 'Image_Path'; did you mean 'path'?"),
        ("path,class\na.png,a\n", "unknown column 'class'; did you mean 'label'?"),
        ("Bild,Klasse\na.png,a\n", "'Bild' has the images: give --columns path=Bild,label=Klasse"),
        ("Datei;Art;Datum\na.PNG;a;1\n", "give --columns path=Datei,label=Art,ignored=Datum"),
        ("path,label\nhttps://a.b/7.png,a\n", "line 2: the image 'https://a.b/7.png' is an address, and nothing is fe"),
        ("path,label,weight\na.png,a,3\n", "unknown column 'weight'; none of the 26 valid names is similar: docs/own"),
        ("path,label\na.png,a\nb.png\n", "line 3: more or fewer cells"),
        ("path,label\na.png,cat, wild\n", "line 2: more or fewer cells"),
        ("path,label\na.png, \n", "none of the 1 images has a label. Label some of each class"),
        ("path,label,split\na.png,a,train\nb.png,,test\n", "line 3: the label is empty"),
        ("path,label,split\na.png,a,train\nb.png,a,unlabelled\n", "line 3: expected a path, and no label"),
        ("path,label,question\na.png,cat,what is it?\nb.png,dog,\n", "line 3: the question is empty"),
        ("path,label,split\na.png,a,trian\n", "line 2: unknown split 'trian'; did you mean 'train'?"),
        ("path,label\n../../etc/passwd,a\n", "line 2: the image '../../etc/passwd' is not under"),
        ("path,label,split\na.png,a,train\nb.png,b,test\n", "no training image of 'b'"),
        ('path,label\n"a.png,a\n', "cannot be read: unexpected end of data"),
    ],
)
def test_csv_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_csv(_csv(tmp_path, text))


def test_a_csv_that_is_missing_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"nothing.csv' cannot be read: .*No such file"):
        read_csv(tmp_path / "nothing.csv")
    with pytest.raises(AdaptError, match=r"list.csv' cannot be read: it is not UTF-8 .*Save it as UTF-8"):
        read_csv(_csv(tmp_path, "path,label\nä.png,ä\n", "latin-1"))


# ---- split JSON

ENTRIES = {
    "train": [["b/1.jpg", 1, "hot_dog"], ["a/1.jpg", 0, "apple"]],
    "val": [["b/2.jpg", 1, "hot_dog"]],
    "test": [["a/2.jpg", 0, "apple"]],
}


def _json(tmp_path: Path, content: Any, name: str = "split_zhou_Food.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def test_a_split_file_keeps_order_and_names(tmp_path: Path) -> None:
    split = read_split(_json(tmp_path, ENTRIES))
    assert (split.name, split.class_names) == ("Food", ("apple", "hot_dog"))
    assert [(item.path, item.answer) for item in split.train] == [("b/1.jpg", "hot_dog"), ("a/1.jpg", "apple")]
    assert (split.val[0].path, split.test[0].path) == ("b/2.jpg", "a/2.jpg")


def test_a_split_file_with_root_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "split.json.gz"
    path.write_bytes(gzip.compress(json.dumps(ENTRIES).encode()))
    split = read_split(path, root="/data/food")
    assert split.train[0].path == "/data/food/b/1.jpg"
    assert split.fingerprint == read_split(path).fingerprint


def _with(**parts: Any) -> dict[str, Any]:
    return {**ENTRIES, **parts}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "expected a JSON object with the lists train, val, test"),
        ({"train": []}, "expected a JSON object with the lists train, val, test"),
        (_with(val=[["x.jpg", "1", "a"]]), "val has ['x.jpg', '1', 'a']; expected [path, label from 0, class name]"),
        (_with(val=[["x.jpg", -1, "a"]]), "expected [path, label from 0, class name]"),
        (_with(test=[["x.jpg", 0, "pear"]]), "test names label 0 'pear', but an earlier entry names it 'apple'"),
        (_with(test=[["x.jpg", 3, "pear"]]), "no image has label 2. Number the labels from 0 without a gap"),
        (_with(test=[["x.jpg", 2, "apple"]]), "labels 0 and 2 are both named 'apple'"),
        (_with(test=[["x.jpg", 2, "pear"]]), "no training image of 'pear'"),
        (_with(test=[["../x.jpg", 0, "apple"]]), "test: the image '../x.jpg' is not under the root '/data'"),
        ({"train": [], "val": [], "test": []}, "has no classes"),
    ],
)
def test_split_files_that_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_split(_json(tmp_path, content), root="/data")


@pytest.mark.parametrize(("name", "content"), [("a.json", b"{"), ("a.json", b"\xff"), ("a.json.gz", b"\x1f\x8b\x08")])
def test_split_files_that_are_broken(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AdaptError, match=f"{name}' cannot be read: "):
        read_split(tmp_path / name)


# ---- load


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda tmp: touch(tmp / "folder", "a/1.jpg"), "folder"),
        (lambda tmp: _csv(tmp, "path,label\na.png,a\n"), "list"),
        (lambda tmp: _json(tmp, ENTRIES), "Food"),
        (lambda tmp: "emoji", "emoji"),
    ],
)
def test_load_picks_the_reader(tmp_path: Path, emoji_zip: Path, make: Callable[[Path], Path], name: str) -> None:
    assert load(make(tmp_path)).name == name


def test_load_hands_root_to_the_files_that_need_it(tmp_path: Path, emoji_zip: Path) -> None:
    assert load(_json(tmp_path, ENTRIES), root="/data").test[0].path == "/data/a/2.jpg"
    for spec in ("emoji", touch(tmp_path / "folder", "a/1.jpg")):
        with pytest.raises(AdaptError, match=r"takes no root: leave out '/data'"):
            load(spec, root="/data")


@pytest.mark.parametrize(
    ("spec", "near"),
    [
        ("emojis", "did you mean 'emoji'? Also near: "),
        ("eurosad", "did you mean 'eurosat'"),
        ("missing.json", "none of the "),
        ("missing.csv", "none of the "),
    ],
)
def test_data_that_is_not_there_is_refused_with_what_is_near(emoji_zip: Path, spec: str, near: str) -> None:
    absent = f"data '{spec}' is not there: no file or folder has this path, and no data set this name; {near}"
    with pytest.raises(AdaptError, match=re.escape(absent)) as caught:
        load(spec)
    assert len(str(caught.value)) < 500
    listed = " valid names is similar: `adapt data list` lists them" in str(caught.value)
    assert listed is spec.startswith("missing")


def test_a_misspelt_path_is_told_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(AdaptError, match=re.escape(f"did you mean {str(tmp_path / 'photos')!r}?")):
        load(f"{tmp_path / 'photoz'}/")


def test_the_name_of_a_set_is_nearer_than_a_file_that_is_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "emojis.png").touch()
    (tmp_path / "photos.png").touch()
    with pytest.raises(AdaptError, match=r"no data set this name; did you mean 'emoji'\?"):
        load("emojis")
    with pytest.raises(AdaptError, match="no data set this name; none of the"):
        load("photos.pn")


def test_a_file_that_no_reader_takes_is_refused_with_what_they_take(tmp_path: Path) -> None:
    (tmp_path / "notes.docx").touch()
    with pytest.raises(AdaptError, match=r"is not known to any reader\. Expected .*a \.csv"):
        load(tmp_path / "notes.docx")


# ---- files of class names


def _names(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.csv", '\ufeffclass,name\nn02,"cat, wild"\n n01 ,Käfer\nn03,of no image\n'),
        ("names.json", '{"n02": "cat, wild", "n01": "Käfer", "n03": "of no image"}'),
    ],
)
def test_classes_get_readable_names_and_keep_their_labels(tmp_path: Path, name: str, text: str) -> None:
    folder = touch(tmp_path / "folder", "train/n01/1.jpg", "train/n02/1.jpg", "test/n02/2.jpg")
    split = load(folder, names=_names(tmp_path, name, text))
    assert split.class_names == ("Käfer", "cat, wild")
    assert [item.answer for item in split.items()] == ["Käfer", "cat, wild", "cat, wild"]
    assert split.fingerprint == load(folder).fingerprint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class,name\na,ant\n", "no name is given for 'b', 'c'. Give a name for every class"),
        ("class,name\na,ant\nb,ant\nc,bee\n", "labels 0 and 1 are both named 'ant'"),
    ],
)
def test_names_that_do_not_fit_the_classes(tmp_path: Path, text: str, message: str) -> None:
    folder = touch(tmp_path / "folder", *(f"{name}/1.jpg" for name in "abc"))
    with pytest.raises(AdaptError, match=re.escape(message)):
        load(folder, names=_names(tmp_path, "names.csv", text))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "", "a.txt' are neither a .csv nor a .json file"),
        ("a.csv", "", "the first line is ''; expected 'class,name'"),
        ("a.csv", "name,class\n", "the first line is 'name,class'; expected 'class,name'"),
        ("a.csv", "class,name\na,b,c\n", "entry 1 is ['a', 'b', 'c']; expected a class and a new name"),
        (
            "a.csv",
            "class,name\na,b\na,c\n",
            "entry 2 is ['a', 'c']; expected a class and a new name, with each class once",
        ),
        ("a.csv", "class,name\na,\n", "entry 1 is ['a', '']"),
        ("a.json", '{"a": 1}', "entry 1 is ('a', 1)"),
        ("a.json", '{"a": "b", "a": "c"}', "entry 2 is ('a', 'c')"),
        ("a.json", '["a"]', "expected a JSON object {class: name}"),
        ("a.json", "{", "cannot be read: Expecting property name"),
    ],
)
def test_files_of_names_that_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(AdaptError, match=re.escape(message)):
        read_names(_names(tmp_path, name, text))


def test_a_missing_file_of_names(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"nowhere.csv' cannot be read: .*No such file"):
        read_names(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("a.png,cat,test", "is of two parts, 'train' and 'test'"),
        ("a.png,dog,train", "is of two classes, 'cat' and 'dog'"),
    ],
)
def test_a_picture_that_a_csv_lists_for_two_parts_or_classes(second: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text(f"path,label,split\na.png,cat,train\n{second}\n")
    with pytest.raises(AdaptError, match=message):
        read_csv(tmp_path / "data.csv")
    questions = tmp_path / "questions.csv"
    questions.write_text("path,label,split,question\na.png,cat,train,what?\na.png,two,test,how many?\n")
    assert len(read_csv(questions).test) == 1
