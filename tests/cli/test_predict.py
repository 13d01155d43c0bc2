"""`adapt predict`: layouts, other classes, and images that cannot be read."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import adapt
from adapt.common.shown import unguarded, unseen
from adapt.formats import tensor_file


def test_a_file_of_classes_that_is_not_there(run, refused, adapter: Path, photos: Path) -> None:
    refused(
        run("predict", adapter, photos / "test/sky/0.png", "--classes", "nmaes.txt"), "there is no file 'nmaes.txt'"
    )


def test_lines(run, adapter: Path, photos: Path) -> None:
    image = photos / "test/sky/0.png"
    result = run("predict", adapter, image, "--top-k", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    title, *lines = result.stdout.splitlines()
    assert title == str(image)
    assert len(lines) == 2
    top = adapt.load(adapter).predict(image)[0].top
    assert lines == [f"  {100 * probability:5.1f} %  {name}" for name, probability in top[:2]]


def test_json_lines_of_a_folder(run, adapter: Path, photos: Path) -> None:
    lines = run("predict", adapter, photos / "test", "--json").stdout.splitlines()
    found = [json.loads(line) for line in lines]
    assert [entry["image"] for entry in found] == sorted(map(str, (photos / "test").rglob("*.png")))
    for entry in found:
        assert sum(each["probability"] for each in entry["top"]) == pytest.approx(1)
        assert {each["class"] for each in entry["top"]} == {"goldfish", "lime tree", "sky"}


def test_boxes_of_windows(run, refused, adapter: Path, photos: Path) -> None:
    """In pixels of the region; what stands beside them is of the surest window."""
    image = f"{photos / 'test/sky/0.png'}#xywh=1,2,20,16"
    found = json.loads(run("predict", adapter, image, "--boxes", "--threshold", 0.34, "--json").stdout)
    [own] = adapt.load(adapter).find(image, 0.34)
    assert found["boxes"] == [box.plain() for box in own.boxes or ()]
    assert found["class"] == own.class_name
    for box in found["boxes"]:
        left, upper, right, lower = box["bbox"]
        assert 0 <= left < right <= 20
        assert 0 <= upper < lower <= 16
        assert 0.34 <= box["probability"] <= found["probability"]
    assert run("predict", adapter, image, "--boxes", "--threshold", 1).stdout.splitlines()[0] == f"{image}  []"
    refused(run("predict", adapter, image, "--boxes", "--csv"), "--boxes cannot go with --csv")
    refused(
        run("predict", adapter, photos / "test", "--boxes", "--items"),
        "--boxes cannot go with items of several images",
    )
    refused(run("predict", adapter, image, "--boxes", "--question", "what?"), "boxes are of the classes in windows")


def test_csv(run, adapter: Path, photos: Path) -> None:
    images = sorted((photos / "test").rglob("*.png"))
    predictions = adapt.load(adapter).predict(images)
    rows = list(csv.DictReader(run("predict", adapter, photos / "test", "--csv").stdout.splitlines()))
    assert [list(row) for row in rows] == [["image", "class", "probability"]] * 6
    assert [(row["image"], row["class"]) for row in rows] == [
        (str(image), each.class_name) for image, each in zip(images, predictions, strict=True)
    ]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [each.probability for each in predictions], abs=1e-5
    )


def test_csv_with_more_classes_has_them_on_the_same_row(run, adapter: Path, photos: Path) -> None:
    image = photos / "test/sky/0.png"
    top = adapt.load(adapter).predict(image)[0].top
    [row] = csv.DictReader(run("predict", adapter, image, "--csv", "--top-k", 4).stdout.splitlines())
    names = ["class", "probability", *(f"{name}_{rank}" for rank in (2, 3, 4) for name in ("class", "probability"))]
    assert list(row) == ["image", *names]
    assert [row["class"], row["class_2"], row["class_3"]] == [name for name, _ in top]
    ranked = [float(row[name]) for name in ("probability", "probability_2", "probability_3")]
    assert ranked == pytest.approx([probability for _, probability in top], abs=1e-5)
    assert (row["class_4"], row["probability_4"]) == ("", "")  # there are three classes
    asked = ("predict", adapter, image, "--csv", "--top-k", 2, "--threshold", 1)
    [row] = csv.DictReader(run(*asked).stdout.splitlines())
    assert list(row) == ["image", "class", "probability", "answer", "class_2", "probability_2"]
    assert (row["class"], row["answer"]) == (top[0][0], "none")


def test_two_layouts_of_one_output(run, refused, adapter: Path, photos: Path) -> None:
    refused(run("predict", adapter, photos, "--json", "--csv"), "--json cannot go with --csv")


@pytest.mark.parametrize("as_file", [True, False])
def test_other_classes(run, adapter: Path, photos: Path, tmp_path: Path, as_file: bool) -> None:
    given = "cat, polar bear"
    if as_file:
        given = tmp_path / "names.txt"
        given.write_text("cat\npolar bear\n\n")
    result = run("predict", adapter, photos / "test/sky/0.png", "--classes", given, "--json")
    assert {each["class"] for each in json.loads(result.stdout)["top"]} == {"cat", "polar bear"}


def test_unreadable_images_are_reported_and_the_others_classified(
    run, adapter: Path, photos: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    missing = tmp_path / "missing.png"
    good = [photos / "test/sky/0.png", photos / "test/goldfish/1.png"]
    result = run("predict", adapter, good[0], broken, missing, good[1], "--json")
    assert result.exit_code == 2
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(path) for path in good]
    first, second, summary = result.stderr.splitlines()
    assert first.startswith(f"Error: image '{broken}' cannot be decoded")
    assert second.startswith(f"Error: image '{missing}' does not exist")
    assert summary == "2 of 4 images could not be read"


def test_csv_cells_are_no_formulas(run, adapter: Path, photos: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "=cmd|'c calc'!A1.png"
    shutil.copy(photos / "test/sky/0.png", name)
    result = run("predict", adapter, name, "--csv", "--classes", "@SUM(A1),+1+cmd,cat", "--top-k", 3)
    rows = list(csv.DictReader(result.stdout.splitlines()))
    assert {row["image"] for row in rows} == {f"'{name}"}
    assert {rows[0][name] for name in ("class", "class_2", "class_3")} == {"'@SUM(A1)", "'+1+cmd", "cat"}
    assert {unguarded(row["image"]) for row in rows} == {name}


def test_names_of_files_forge_no_lines(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    names = ["a\n  99.0 %  cat.png", "\x1b[2Jb.png", os.fsdecode(b"c\xff.png")]
    for name in names:
        shutil.copy(photos / "test/sky/0.png", tmp_path / name)
    result = run("predict", adapter, tmp_path, "--top-k", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[::2] == [
        f"{tmp_path}/\\x1b[2Jb.png",
        f"{tmp_path}/a\\n  99.0 %  cat.png",
        f"{tmp_path}/c\\udcff.png",
    ]
    assert os.fsencode(tmp_path / names[2]) in run("predict", adapter, tmp_path, "--csv").stdout_bytes
    assert [json.loads(line)["image"] for line in run("predict", adapter, tmp_path, "--json").stdout.splitlines()] == [
        str(tmp_path / name) for name in sorted(names)
    ]
    refused_one = run("predict", adapter, tmp_path / "no\nError: none\x1b.png")
    assert refused_one.stderr.splitlines()[1:] == ["1 of 1 images could not be read"]


def test_a_folder_with_a_pipe_and_a_loop(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "test/sky/0.png", tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    result = run("predict", adapter, tmp_path, "--json")
    assert result.exit_code == 2
    assert [json.loads(line)["image"] for line in result.stdout.splitlines()] == [str(tmp_path / "a.png")]
    assert "pipe.png' cannot be read: it is a named pipe, not a regular file" in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"caf\xe9\n", "cannot be read: it is not UTF-8"),
        (b"cat\ndog\x1b[2J\n", "'dog\\x1b[2J' contains a control character"),
    ],
)
def test_files_of_classes_that_are_refused(
    run, refused, adapter: Path, photos: Path, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "names.txt").write_bytes(content)
    refused(run("predict", adapter, photos, "--classes", tmp_path / "names.txt"), words)


def test_a_list_with_semicolons_and_backslashes_is_read(run, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos/a.png")
    (tmp_path / "list.csv").write_text("path;label\nphotos\\a.png;a\n")
    result = run("predict", adapter, tmp_path / "list.csv")
    assert (result.exit_code, result.output.startswith("photos\\a.png")) == (0, True)


def test_a_folder_without_images(run, refused, adapter: Path, tmp_path: Path) -> None:
    refused(run("predict", adapter, tmp_path), f"the folder {tmp_path} contains no image files")


def _edit(adapter: Path, tmp_path: Path, how: str) -> Path:
    content = adapter.read_bytes()
    path = tmp_path / "adapter.safetensors"
    if how == "truncated":
        path.write_bytes(content[:-100])
    elif how == "no adapter":
        path.write_bytes(b"hello, I am no adapter")
    elif how == "empty":
        path.touch()
    return path


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "is truncated or damaged"),
        ("no adapter", "is truncated or not a safetensors file"),
        ("empty", "is truncated or not a safetensors file"),
        ("missing", "there is no adapter at"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "inspect", "eval", "merge"])
def test_adapters_that_cannot_be_used(
    run, refused, adapter: Path, photos: Path, tmp_path: Path, command: str, how: str, words: str
) -> None:
    more = {"predict": [photos], "inspect": [], "eval": ["--data", photos], "merge": [tmp_path / "merged"]}
    refused(run(command, _edit(adapter, tmp_path, how), *more[command]), words)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("layout", [[], ["--json"], ["--csv"]])
@pytest.mark.parametrize("command", ["predict", "eval"])
def test_outputs_that_are_not_finite_are_refused(
    run, refused, adapter: Path, photos: Path, tmp_path: Path, command: str, layout: list[str]
) -> None:
    """Each value is a number, and what the model computes of them is none."""
    tensors, metadata = tensor_file.read(adapter), tensor_file.describe(adapter).metadata
    path = tmp_path / "a.safetensors"
    tensor_file.write({name: torch.full_like(x, 3e38) for name, x in tensors.items()}, path, metadata)
    options = (
        ["--data", photos, *[each for each in layout if each == "--json"]] if command == "eval" else [photos, *layout]
    )
    result = run(command, path, *options)
    refused(result, "the model's output is not finite")
    assert "nan" not in result.stdout.lower()


def test_adapters_side_by_side(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    shutil.copy(adapter, other)
    image = photos / "test/sky/0.png"
    names = [str(adapter), str(other)]
    one = json.loads(run("predict", adapter, image, "--json").stdout)["top"]
    found = json.loads(run("predict", adapter, other, image, "--json").stdout)
    assert list(found["adapters"]) == names
    assert all(
        each["class"] == own["class"] and each["probability"] == pytest.approx(own["probability"], abs=1e-5)
        for answer in found["adapters"].values()
        for each, own in zip(answer["top"], one, strict=True)
    )
    [row] = csv.DictReader(run("predict", adapter, other, image, "--csv").stdout.splitlines())
    assert list(row) == ["image", "coop", "coop probability", "other", "other probability"]
    assert row["coop"] == row["other"] == one[0]["class"]
    title, header, *lines = run("predict", adapter, other, image, "--top-k", 2).stdout.splitlines()
    assert (title, header.split()) == (str(image), names)
    assert len(lines) == 2
    assert all(line.count("%") == 2 for line in lines)


def test_below_the_threshold_the_answer_is_none(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    image = photos / "test/sky/0.png"
    top = adapt.load(adapter).predict(image)[0].top
    for threshold, answer in ((top[0][1] + 1e-4, "none"), (top[0][1] - 1e-4, top[0][0])):
        asked = ("predict", adapter, image, "--threshold", threshold)
        title, *lines = run(*asked).stdout.splitlines()
        assert title == f"{image}  none" if answer == "none" else str(image)
        assert lines == [f"  {100 * probability:5.1f} %  {name}" for name, probability in top]
        said = json.loads(run(*asked, "--json").stdout)
        assert (said["class"], said["probability"]) == (answer, pytest.approx(top[0][1]))
        assert [each["class"] for each in said["top"]] == [name for name, _ in top]
        rows = list(csv.DictReader(run(*asked, "--csv").stdout.splitlines()))
        assert [(row["class"], row["answer"]) for row in rows] == [(top[0][0], answer)]
    other = tmp_path / "other.safetensors"
    shutil.copy(adapter, other)
    asked = ("predict", adapter, other, image, "--threshold", 1)
    assert run(*asked).stdout.splitlines()[1].split() == [str(adapter), "none", str(other), "none"]
    [row] = csv.DictReader(run(*asked, "--csv").stdout.splitlines())
    assert (row["coop answer"], row["other"]) == ("none", top[0][0])


def test_a_threshold_outside_its_range(run, adapter: Path, photos: Path) -> None:
    result = run("predict", adapter, photos, "--threshold", 1.5)
    assert result.exit_code == 2
    assert "1.5 is not in the range 0<=x<=1" in result.stderr


def test_the_number_of_a_method_of_numbers_stands_in_each_layout(
    run, adapter: Path, model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.UniQA(), ["bad", "fair", "good"])
    graded, image = model.save(tmp_path / "graded.safetensors"), photos / "test/sky/0.png"
    number = adapt.load(graded).predict(image)[0].number
    rows = list(csv.DictReader(run("predict", graded, image, "--csv").stdout.splitlines()))
    assert list(rows[0]) == ["image", "class", "probability", "number"]
    assert [float(row["number"]) for row in rows] == pytest.approx([number], rel=1e-5)
    assert json.loads(run("predict", graded, image, "--json").stdout)["number"] == pytest.approx(number)
    assert run("predict", graded, image).stdout.splitlines()[0] == f"{image}  {number:.3g}"
    [row] = csv.DictReader(run("predict", adapter, graded, image, "--csv").stdout.splitlines())
    assert float(row["graded number"]) == pytest.approx(number, rel=1e-5)
    assert "coop number" not in row


def test_adapters_without_images(run, refused, adapter: Path) -> None:
    refused(run("predict", adapter, adapter), "is an adapter; expected an image: give all adapters before")


def test_a_folder_of_images_in_which_an_adapter_lies(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(photos / "test", folder)
    shutil.copy(adapter, folder / "adapter.safetensors")
    result = run("predict", adapter, folder, "--json")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 6


def test_an_adapter_given_twice(run, refused, adapter: Path, photos: Path) -> None:
    refused(run("predict", adapter, adapter, photos), "an adapter is given twice")


def test_what_is_neither_adapter_nor_image(run, refused, adapter: Path, photos: Path) -> None:
    refused(run("predict", adapter, "nope", photos), "nope does not exist; expected an adapter or an image")
    refused(run("predict", adapter, "http://a/b.png"), "http://a/b.png is an address, and nothing is fetched: download")
    refused(run("predict", adapter, photos, adapter), "give all adapters before the images")


@pytest.fixture(scope="session")
def described(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    phrases = {"goldfish": ["fins", "orange scales"], "lime tree": ["leaves"], "sky": ["blue", "a cloud"]}
    model = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.Descriptions(descriptors=phrases), phrases)
    return model.save(tmp_path_factory.mktemp("described") / "adapter.safetensors")


def test_explain_says_which_descriptors_decided(run, described: Path, photos: Path) -> None:
    image = photos / "test/sky/0.png"
    result = run("predict", described, image, "--explain", "--top-k", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    [found] = adapt.load(described).explain(image)
    expected = [str(image)]
    for (name, probability), reasons in zip(found.prediction.top, found.reasons, strict=True):
        expected.append(
            f"  {100 * probability:5.1f} %  {name}, cosines: mean {reasons.mean:.3f}, largest "
            f"{reasons.descriptors[0][1]:.3f}"
        )
        expected += [f"           {cosine:6.3f}  {text}" for text, cosine in reasons.descriptors]
    assert result.stdout.splitlines() == expected
    as_json = json.loads(run("predict", described, image, "--explain", "--top-k", 2, "--json").stdout)
    assert [each["class"] for each in as_json["top"]] == [name for name, _ in found.prediction.top]
    texts = [[each["text"] for each in top["descriptors"]] for top in as_json["top"]]
    assert texts == [[text for text, _ in reasons.descriptors] for reasons in found.reasons]


def test_explain_is_refused_where_nothing_could_be_said(run, refused, adapter, described: Path, photos: Path) -> None:
    refused(run("predict", adapter, photos, "--explain"), "coop does not decide by descriptors of classes")
    refused(run("predict", described, photos, "--explain", "--csv"), "--explain cannot go with --csv")
    refused(run("predict", described, adapter, photos, "--explain"), "--explain cannot go with several adapters")


def test_nothing_in_a_csv_steers_a_terminal(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    image = tmp_path / "a\x1b[2J\u202egnp.png"
    image.write_bytes(next(photos.rglob("*.png")).read_bytes())
    written = run("predict", adapter, image, "--csv").stdout
    assert "a\\x1b[2J\\u202egnp.png" in written
    assert not any(map(unseen, written.splitlines()))
    missing = run("predict", adapter, tmp_path / "b\x1b.png")
    assert "b\\x1b.png" in missing.stderr
    assert not any(map(unseen, missing.stderr.splitlines()))


def test_images_of_a_csv_are_called_as_there(run, adapter: Path, photos: Path) -> None:
    """A table of predictions goes with the one that listed the images, wherever both lie."""
    (photos / "found.csv").write_text("path,x0,y0,x1,y1\ntest/sky/0.png,1,2,9,10\ntest/sky/1.png,,,,\n")
    try:
        lines = run("predict", adapter, photos / "found.csv", "--csv").stdout.splitlines()
        rows = list(csv.DictReader(lines))
    finally:
        (photos / "found.csv").unlink()
    assert [row["image"] for row in rows] == ["test/sky/0.png#xywh=1,2,8,8", "test/sky/1.png"]


@pytest.mark.parametrize(
    ("adapters", "columns"), [(1, "class,probability"), (2, "coop,coop probability,other,other probability")]
)
def test_a_table_of_no_readable_image_has_its_first_line(
    run, adapter: Path, tmp_path: Path, adapters: int, columns: str
) -> None:
    given = [adapter, Path(shutil.copy(adapter, tmp_path / "other.safetensors"))][:adapters]
    result = run("predict", *given, tmp_path / "gone.png", "--csv")
    assert (result.exit_code, result.stdout) == (2, f"image,{columns}\n")


def test_what_looks_like_a_picture_and_is_not_read_is_said(
    run, adapter: Path, photos: Path, tmp_path: Path, caplog
) -> None:
    shutil.copytree(photos / "test/sky", tmp_path / "sky")
    shutil.copy(photos / "test/sky/0.png", tmp_path / "sky/hidden.txt")
    (tmp_path / "sky/raw.cr2").write_bytes(b"raw")
    (tmp_path / "sky/notes.txt").write_text("blue")
    result = run("predict", adapter, tmp_path / "sky", "--csv")
    assert result.exit_code == 0
    said = [line for line in caplog.messages if "passed over" in line]
    assert said == [f"{tmp_path / 'sky'}: 2 files that look like pictures are passed over: 1 .txt, 1 .cr2"]
