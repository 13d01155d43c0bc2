"""Boxes of COCO, YOLO, Pascal VOC and CSV files: as regions, as questions where things are, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapt.common.errors import AdaptError
from adapt.data import Split, load, open_image
from adapt.data.split import InconsistentError

RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 200, 0)
_COCO: dict[str, Any] = {
    "images": [
        {"id": 3, "file_name": "a.png", "width": 40, "height": 20},
        {"id": 70, "file_name": "b.png", "width": 40, "height": 20},
        {"id": 8, "file_name": "c.png", "width": 40, "height": 20},
    ],
    "categories": [{"id": 1, "name": "red"}, {"id": 90, "name": "blue"}],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, 20, 20]},
        {"id": 2, "image_id": 3, "category_id": 90, "bbox": [20, 0, 10.5, 20]},
        {"id": 3, "image_id": 3, "category_id": 90, "bbox": [32, 0, 8, 20.2]},
        {"id": 4, "image_id": 70, "category_id": 1, "segmentation": [[2, 3, 10, 3, 4, 9.5]]},
        {"id": 5, "image_id": 70, "category_id": 90, "bbox": [0, 0, 40, 20], "iscrowd": 1},
    ],
}
_XML = (
    "<annotation><filename>{name}</filename><size><width>40</width><height>20</height></size><object><name>red</name>"
    "<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"
    "</annotation>"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Red on the left, blue on the right: 40 x 20 pixels."""
    for part in ("train", "val"):
        (tmp_path / "images" / part).mkdir(parents=True)
    for name in ("a.png", "b.png", "c.png", "images/train/a.png", "images/train/b.png", "images/val/c.png"):
        picture = Image.new("RGB", (40, 20), RED)
        picture.paste(BLUE, (20, 0, 40, 20))
        picture.save(tmp_path / name)
        with open(tmp_path / name, "ab") as file:
            file.write(name.encode())  # no copies
    return tmp_path


def _coco(folder: Path, change: Callable[[Any], Any] = lambda content: None) -> str:
    content = json.loads(json.dumps(_COCO))
    change(content)
    (folder / "coco.json").write_text(json.dumps(content))
    return f"coco:{folder / 'coco.json'}"


def _asked(split: Split) -> dict[tuple[str, str], Any]:
    return {(Path(item.path).name, item.label.name): item.label.boxes for item in split.items()}


def test_coco_boxes_are_regions_or_questions(folder: Path) -> None:
    """Ids have gaps, a polygon counts by its bounds, a crowd does not count, and an image without boxes is kept."""
    spec = _coco(folder)
    regions = load(spec)
    assert regions.class_names == ("blue", "red")
    assert sorted(item.path.partition("#xywh=")[2] for item in regions.items()) == [
        "0,0,20,20", "2,3,8,7", "20,0,11,20", "32,0,8,20",
    ]  # fmt: skip
    assert {open_image(item).getpixel((0, 0)) for item in regions.items() if item.answer == "blue"} == {BLUE}
    assert _asked(load(f"boxes:{spec}")) == {
        ("a.png", "red"): ((0.0, 0.0, 20.0, 20.0),),
        ("a.png", "blue"): ((20.0, 0.0, 30.5, 20.0), (32.0, 0.0, 40.0, 20.0)),
        ("b.png", "red"): ((2.0, 3.0, 10.0, 9.5),),
        ("c.png", "blue"): (),
    }


def test_questions_about_one_image_stay_in_one_part(folder: Path) -> None:
    split = load(f"boxes:{_coco(folder)}")
    assert split.task.name == "boxes"
    assert {item.turned for item in split.items()} == {True}
    parts = [{item.path for item in part} for part in (split.train, split.val, split.test)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 3


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([30, 0, 11, 20], "annotation 1: the box has x from 30 to 41 and y from 0 to 20; expected 0 <= x0 < x1 <= 40"),
        ([-1, 0, 20, 20], "annotation 1: the box has x from -1 to 19"),
        ([5, 5, 0, 5], "annotation 1: the box has x from 5 to 5"),
        ([20, 10, -5, -5], "annotation 1: the box has x from 20 to 15"),
        ([5, 5, float("nan"), 5], "annotation 1: the box has x from 5 to nan"),
        ([5, 5, "wide", 5], "annotation 1 is"),
        ([5, 5, 5], "annotation 1 is"),
    ],
)
def test_bad_boxes_are_refused_by_file_and_row(folder: Path, box: list[Any], message: str) -> None:
    spec = _coco(folder, lambda content: content["annotations"][0].update(bbox=box))
    for each in (spec, f"boxes:{spec}"):
        with pytest.raises(AdaptError, match=re.escape(f"COCO {str(folder / 'coco.json')!r} {message}")):
            load(each)


def test_unknown_ids_and_images_of_another_size_are_refused(folder: Path) -> None:
    for key, own, other in (("image_id", 7, 3), ("image_id", "3", 3), ("category_id", "1", 1)):
        message = f"annotation 2: {key} is {own!r}; expected an id that is listed, such as {other}, as it is there"
        with pytest.raises(AdaptError, match=message):
            load(_coco(folder, lambda content, own={key: own}: content["annotations"][1].update(own)))
    with pytest.raises(InconsistentError, match=r"image 1: .*no-such") as refused:  # and not each of its boxes
        load(_coco(folder, lambda content: content["images"][0].update(file_name="no-such.png")))
    assert len(refused.value.problems) == 1
    with pytest.raises(AdaptError, match="image 2: the id 3 is there twice"):
        load(_coco(folder, lambda content: content["images"][1].update(id=3)))
    with pytest.raises(AdaptError, match=r"image 2: the size is \(20, 21\), but .*b\.png' has \(40, 20\)"):
        load(_coco(folder, lambda content: content["images"][1].update(width=20, height=21)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "is None; expected text"),
        (True, "is True; expected text"),
        (["a"], "is ['a']; expected"),
        (" ", "is empty"),
    ],
)
def test_names_are_words_whose_spaces_do_not_count(folder: Path, name: object, message: str) -> None:
    def rename(content: Any) -> None:
        content["categories"][0]["name"] = name

    with pytest.raises(AdaptError, match=re.escape(f"annotation 1: the name of what is in the box {message}")):
        load(_coco(folder, rename))
    split = load(_coco(folder, lambda content: content["categories"].append({"id": 2, "name": "\nbig  red "})))
    assert split.class_names == ("blue", "red")
    split = load(_coco(folder, lambda content: content["categories"][0].update(name="\nbig  red ")))
    assert split.class_names == ("big red", "blue")


def test_what_is_listed_twice_is_refused(folder: Path) -> None:
    """The second category of an id, another list of an image's boxes, and one image of a CSV in two parts."""
    with pytest.raises(AdaptError, match="category 2: the id 1 is there twice"):
        load(_coco(folder, lambda content: content["categories"][1].update(id=1)))
    with pytest.raises(AdaptError, match=r"a\.png' is there twice: list an image once, with all its boxes"):
        load(f"boxes:{_coco(folder, lambda content: content['images'][2].update(file_name='./a.png'))}")
    (folder / "list.csv").write_text("path,label,split,x0,y0,x1,y1\na.png,red,train,0,0,9,9\na.png,red,test,9,0,20,9\n")
    with pytest.raises(AdaptError, match="the image is in two parts, 'train' and 'test': keep it in one"):
        load(f"boxes:{folder / 'list.csv'}")


def test_crowds_are_numbers_however_they_are_written(folder: Path) -> None:
    split = load(
        f"boxes:{_coco(folder, lambda content: [each.update(iscrowd='0') for each in content['annotations']])}"
    )
    assert len(_asked(split)) == 5  # with the box around the crowd


def test_a_box_around_a_crowd_is_no_answer_and_known_beside_it(folder: Path) -> None:
    split = load(f"boxes:{_coco(folder, lambda content: content['annotations'][2].update(iscrowd=1))}")
    [label] = [item.label for item in split.items() if Path(item.path).name == "a.png" and item.label.name == "blue"]
    assert (label.boxes, label.crowds) == (((20.0, 0.0, 30.5, 20.0),), ((32.0, 0.0, 40.0, 20.0),))


def test_an_image_of_a_crowd_is_not_asked_for_what_the_crowd_is_of(folder: Path) -> None:
    def crowd_alone(content: Any) -> None:
        content["annotations"] = content["annotations"][:3]
        for image in (70, 8):
            content["annotations"].append({"id": image, "image_id": image, "category_id": 1, "iscrowd": 1})
        content["annotations"].append({"id": 9, "image_id": 8, "category_id": 90, "iscrowd": 1})
        content["categories"][0]["name"] = " red "  # whose spaces do not count in crowds either

    asked = _asked(load(f"boxes:{_coco(folder, crowd_alone)}"))
    assert set(asked) == {("a.png", "red"), ("a.png", "blue"), ("b.png", "blue")}  # of c, nothing is known
    assert asked["b.png", "blue"] == ()


def test_points_of_a_pose_are_no_polygon(folder: Path) -> None:
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/a.txt").write_text("1 0.7 0.7 0.2 0.2 0.65 0.65 2 0.9 0.1 1\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [red, blue]\nkpt_shape: [2, 3]\n")
    [box] = _asked(load(f"boxes:yolo:{folder / 'data.yaml'}"))["a.png", "blue"]
    assert box == pytest.approx((24, 12, 32, 16))


def test_numbers_that_are_too_large_and_other_tasks_are_refused(folder: Path) -> None:
    with pytest.raises(AdaptError, match=r"annotation 1 is .*OverflowError"):
        load(_coco(folder, lambda content: content["annotations"][0].update(bbox=[10**400, 0, 1, 1])))
    (folder / "data.yaml").write_text("train: 5\nnames: [red]\n")
    with pytest.raises(AdaptError, match=r"folder '.*/5' cannot be read"):
        load(f"yolo:{folder / 'data.yaml'}")
    (folder / "list.csv").write_text("path,labels,x0,y0,x1,y1\na.png,red|blue,0,0,9,9\n")
    with pytest.raises(AdaptError, match="several classes per image, or none; expected one class in the column label"):
        load(f"boxes:{folder / 'list.csv'}")


@pytest.mark.parametrize("held", range(1, 9))
def test_boxes_turn_with_the_photograph(folder: Path, held: int) -> None:
    """A green patch stays in its box, whether that is of the stored picture or of the upright one."""
    stored = Image.new("RGB", (40, 20), RED)
    stored.paste(GREEN, (4, 2, 14, 7))
    exif = Image.Exif()
    exif[0x0112] = held
    stored.save(folder / "a.png", exif=exif)
    spec = _coco(folder, lambda content: content["annotations"][0].update(bbox=[4, 2, 10, 5]))
    [item] = [item for item in load(spec).items() if "a.png" in item.path and item.answer == "red"]
    assert open_image(item, turned=True).getcolors() == [(50, GREEN)]
    if held > 4:  # the sides say in which picture the boxes are
        x, y, width, height = map(int, item.path.partition("#xywh=")[2].split(","))

        def upright(content: Any) -> None:
            content["images"][0].update(width=20, height=40)
            content["annotations"] = [{"image_id": 3, "category_id": 1, "bbox": [x, y, width, height]}]

        [same] = load(_coco(folder, upright)).items()
        assert same.path == item.path


def test_yolo_labels_are_fractions_and_polygons_count_by_their_bounds(folder: Path) -> None:
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames:\n  0: red\n  1: blue\n")
    labels = folder / "labels" / "train" / "a.txt"
    labels.write_text("0 0.25 0.5 0.5 1.0\n\n1 0.5 0.1 0.75 0.1 0.75 0.9\n")
    split = load(f"boxes:yolo:{folder / 'data.yaml'}")
    assert _asked(split) == {
        ("a.png", "red"): ((0.0, 0.0, 20.0, 20.0),),
        ("a.png", "blue"): ((20.0, 2.0, 30.0, 18.0),),
        ("b.png", "red"): (),
        ("c.png", "blue"): (),
    }
    assert (len(split.train), len(split.val)) == (3, 1)
    labels.write_text(
        "0 0.25 0.5 0.5 1.0\n2 0.5 0.5 0.1 0.1\n1 0.9 0.5 0.3 0.1\n1 0.5 0.5 -0.1 0.1\n0.5 0 0 1 1\n0 1 2 3\n"
    )
    with pytest.raises(InconsistentError) as refused:
        load(f"yolo:{folder / 'data.yaml'}")
    first, outside, swapped, no_class, few = [each for each in refused.value.problems if each.startswith(str(labels))][
        :5
    ]
    assert f"{labels} line 2 is '2 0.5 0.5 0.1 0.1', which cannot be read (KeyError: 2)" == first
    assert f"{labels} line 3: the box has x from 30 to 42" in outside
    assert f"{labels} line 4: the box has x from 22 to 18" in swapped
    assert "line 5 is '0.5 0 0 1 1'" in no_class
    assert "line 6: there are 3 numbers" in few


def test_yolo_images_are_of_one_part(folder: Path) -> None:
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [red]\n")
    (folder / "labels" / "train").mkdir(parents=True)
    (folder / "labels" / "train" / "a.txt").write_text("0 0.25 0.5 0.5 1.0\n")
    with pytest.raises(InconsistentError, match=r"train/a\.png' is there twice, in train and in val: list") as refused:
        load(f"yolo:{folder / 'data.yaml'}")
    assert len(refused.value.problems) == 2


def test_voc_images_without_an_xml_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "JPEGImages").mkdir()
    for name in "abc":
        (folder / f"{name}.png").rename(folder / "JPEGImages" / f"{name}.png")
    (folder / "a.xml").write_text(_XML.format(name="a.png", box=(1, 1, 20, 20)))
    assert [Path(item.path.partition("#")[0]).name for item in load(f"voc:{folder}").items()] == ["a.png"]
    assert re.search(r"left out 2 images without an XML: \S+b\.png, \S+c\.png", caplog.text)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    caplog.clear()
    load(f"voc:{folder}")
    assert "left out 1 images without an XML" in caplog.text
    caplog.clear()
    (folder / "b.xml").write_text("<annotation>")  # which is refused for what it is
    with pytest.raises(InconsistentError, match=r"b\.xml is .*which cannot be read"):
        load(f"voc:{folder}")
    assert "without an XML" not in caplog.text


def test_voc_counts_from_one_and_includes_the_last_pixel(folder: Path) -> None:
    for name in "ab":
        (folder / f"{name}.xml").write_text(_XML.format(name=f"{name}.png", box=(1, 1, 20, 20)))
    split = load(f"voc:{folder}")
    assert [item.path.partition("#xywh=")[2] for item in split.items()] == ["0,0,20,20"] * 2
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for part, name in {"train": "a", "test": "b"}.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text(f"{name}\n")
    assert [len(part) for part in (load(f"voc:{folder}").train, load(f"voc:{folder}").test)] == [1, 1]
    (folder / "b.xml").write_text(_XML.format(name="b.png", box=(0, 1, 41, 20)))
    with pytest.raises(AdaptError, match=r"b\.xml object 1: the box has x from -1 to 41"):
        load(f"voc:{folder}")


def test_a_csv_of_regions_is_asked_about(folder: Path) -> None:
    rows = ["path,label,split,x0,y0,x1,y1", "a.png,red,train,0,0,20,20", "a.png,red,train,5,5,9,9", "b.png,,train,,,,"]
    (folder / "list.csv").write_text("\n".join([*rows, "c.png,blue,test,20,0,40,20", "c.png,red,test,,,,"]))
    split = load(f"boxes:{folder / 'list.csv'}")
    assert _asked(split) == {
        ("a.png", "red"): ((0, 0, 20, 20), (5, 5, 9, 9)),
        ("b.png", "red"): (),
        ("c.png", "blue"): ((20, 0, 40, 20),),
        ("c.png", "red"): ((0, 0, 40, 20),),
    }
    assert [len(split.train), len(split.test)] == [2, 2]
    rows = [",".join(row.split(",")[:2] + row.split(",")[3:]) for row in rows]
    (folder / "list.csv").write_text("\n".join([*rows, *(f"{name}.png,red,0,0,9,9" for name in "cc")]))
    assert [len(part) for part in (load(f"boxes:{folder / 'list.csv'}").train,)] == [2]  # of three, by the ratios


def test_lists_without_a_box_and_files_of_another_form_are_refused(folder: Path) -> None:
    with pytest.raises(AdaptError, match="has no box that can be used"):
        load(_coco(folder, lambda content: content.update(annotations=[])))
    with pytest.raises(AdaptError, match="expected the lists images, annotations and categories"):
        load(_coco(folder, lambda content: content.pop("categories")))
    (folder / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>')
    with pytest.raises(AdaptError, match="it defines entities"):
        load(f"voc:{folder}")


def test_a_csv_with_a_column_of_boxes_is_told_what_to_write(folder: Path) -> None:
    (folder / "list.csv").write_text('path,boxes\na.png,"[[0, 0, 1, 1]]"\n')
    with pytest.raises(AdaptError, match="a column 'boxes' cannot hold boxes: write x0,y0,x1,y1, and read boxes:FILE"):
        load(folder / "list.csv")
