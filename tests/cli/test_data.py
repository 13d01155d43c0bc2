"""`adapt data`: what is listed, checked and drawn; and how training takes data that has something wrong with it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import miniatures
import pytest
import strange_folder
from PIL import Image

from adapt.data import load
from adapt.data.readers import published


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.build(tmp_path_factory.mktemp("published"))


@pytest.fixture
def damaged(photos: Path, tmp_path: Path) -> Path:
    """The photos with a broken image in every part."""
    folder = Path(shutil.copytree(photos, tmp_path / "damaged"))
    for part in ("train", "val", "test"):
        (folder / part / "sky/1.png").write_bytes(b"no image")
    return folder


# ---- list


def test_list_says_what_goes_where(run) -> None:
    output = run("data", "list").stdout
    lines = {line.split()[0]: line for line in output.splitlines() if line}
    assert lines.keys() > published.sets().keys()
    assert (
        " 196     6,509  1,635  8,041  stanford_cars/: cars_train/, cars_test/, split_zhou_" in lines["stanford_cars"]
    )
    assert "imagenet-adversarial/: imagenet-a/, classnames.txt" in lines["imagenet_a"]
    assert "emoji-clutter, emoji-questions" in lines["Bundled:"]
    assert "of one style by NAME@STYLE: emojione, fluent-3d," in output


# ---- check


def test_check_names_what_is_missing_and_where_it_is_described(run, refused, tmp_path: Path) -> None:
    (tmp_path / "sun397").mkdir()
    refused(
        run("data", "check", "SUN397", tmp_path),
        f"no folder {tmp_path}/sun397/SUN397 and no file {tmp_path}/sun397/split_zhou_SUN397.json. Fetch SUN397.tar.gz",
        "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md#sun397",
    )


def test_check_compares_with_the_published_counts_and_looks_at_the_files(run, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "eurosat", tmp_path / "eurosat")
    (tmp_path / "eurosat/2750/River/River_1.jpg").unlink()
    result = run("data", "check", "eurosat", tmp_path)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.startswith("Note: ")] == [
        "eurosat: 10 classes; images: train 10, val 10, test 10",
        "train: 10 images; 13,500 are published",
        "val: 10 images; 5,400 are published",
        "test: 10 images; 8,100 are published",
        f"image '{tmp_path}/eurosat/2750/River/River_1.jpg' does not exist",
    ]
    assert lines[5].startswith("Note: one training image each, too few to hold any back: Annual Crop Land, Forest")
    assert result.stderr.startswith("4 problems in eurosat. Fetch EuroSAT.zip and split_zhou_EuroSAT.json, as https://")


def test_check_names_a_wrong_root_once(run, refused, photos: Path, tmp_path: Path) -> None:
    listed = [str(path.relative_to(photos)) for path in sorted(photos.rglob("*.png"))]
    (tmp_path / "list.csv").write_text("path,label\n" + "".join(f"{path},{path.split('/')[1]}\n" for path in listed))
    assert run("data", "check", tmp_path / "list.csv", "--root", photos).exit_code == 0
    result = run("data", "check", tmp_path / "list.csv", "--root", photos / "test")
    refused(result, f"none of the {len(listed)} images of data 'list' exists, such as '{photos}/test/test/")
    refused(result, f"relative to the root '{photos}/test': give the right root folder (--root, or data.root")


def test_check_lists_the_broken_images_of_a_folder(run, damaged: Path) -> None:
    result = run("data", "check", damaged)
    assert result.exit_code == 2
    assert result.stdout.splitlines() == [
        "damaged: 3 classes; images: train 6, val 6, test 6",
        *(
            f"image '{damaged}/{part}/sky/1.png' cannot be decoded: unknown format. Replace or remove the image"
            for part in ("train", "val", "test")
        ),
    ]
    assert result.stderr == "3 problems in damaged.\n"


def test_check_of_a_folder_of_strangers(run, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two\nlines"
    shutil.copytree(photos / "train", folder)
    os.mkfifo(folder / "sky/pipe.png")
    Image.new("1", (1, 300_000)).save(folder / "sky/narrow.png")
    (folder / "sky/loop").symlink_to(".")
    result = run("data", "check", folder)
    assert result.exit_code == 2
    title, *problems, note = result.stdout.splitlines()
    assert note == "Note: one training image each, too few to hold any back: goldfish, lime tree"
    assert title == "two\\nlines: 3 classes; images: train 4, val 1, test 3"
    assert sorted(problem.partition("sky/")[2] for problem in problems) == [
        "narrow.png' cannot be decoded: the image is 1 x 300000 pixels; the longer side may be at most 100 times "
        "the shorter side. Replace or remove the image",
        "pipe.png' cannot be read: it is a named pipe, not a regular file. Replace or remove the image",
    ]
    assert result.stderr == "2 problems in two\\nlines.\n"


def test_check_of_good_data(run, photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,split\nsky/0.png,sky,train\nsky/1.png,sky,test\n")
    single = "Note: only one class, 'sky': there is nothing to distinguish\n"
    single += "Note: one training image each, too few to hold any back: sky\n"
    cases = (((photos,), "photos: 3 classes", ""), ((listed, photos / "train"), "list: 1 class;", single))
    for arguments, name, remark in cases:
        result = run("data", "check", *arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        assert result.stdout.startswith(name)
        assert result.stdout.endswith(f"\nAll images can be used.\n{remark}")


def test_check_tells_all_and_writes_it_to_lists(run, refused, tmp_path: Path) -> None:
    folder = strange_folder.build(tmp_path / "pets")
    result = run("data", "check", folder, "--out", tmp_path / "lists")
    assert result.exit_code == 2
    assert result.stderr == "2 problems in pets.\n"
    lines = result.stdout.splitlines()
    assert lines[0] == "pets: 2 classes; images: train 16, val 0, test 3"
    assert [line.partition(":")[0].partition(" '")[0] for line in lines[1:-1]] == ["image"] * 2 + ["Note"] * 10
    assert lines[-1] == (
        f"{tmp_path}/lists  unreadable.csv (2), skipped.csv (4), contradictions.csv (2), copies.csv (1), "
        "duplicates.csv (1), turned.csv (2), unusual.csv (4), misnamed.csv (1)"
    )
    assert (tmp_path / "lists/contradictions.csv").read_text().splitlines() == [
        "path,part,class,other_path,other_part,other_class",
        f"{folder}/train/dog/rewritten.bmp,train,dog,{folder}/train/cat/good.png,train,cat",
        f"{folder}/test/dog/cat_in_training.jpg,test,dog,{folder}/train/cat/same.jpg,train,cat",
    ]
    refused(run("data", "check", folder, "--out", tmp_path / "lists"), "lists exists already; name a new folder")


@pytest.mark.full
def test_check_never_says_all_of_some(run, tmp_path: Path) -> None:
    folder = strange_folder.build(tmp_path / "pets")
    for name in ("cut.jpg", "empty.jpg"):
        (folder / "train/cat" / name).unlink()
    result = run("data", "check", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1] == "All 17 images of the data can be used; 4 other files are left out."
    for name in ("loose.png", "train/cat/photo.txt", "train/cat/raw.CR2"):
        (folder / name).unlink()
    assert run("data", "check", folder).stdout.splitlines()[1] == (
        "All 17 images of the data can be used; 1 other file is left out."
    )
    (folder / "train/dog/nameless").unlink()
    assert run("data", "check", folder).stdout.splitlines()[1] == "All images can be used."


def test_training_says_in_one_line_what_is_passed_over(run, recipe: Path, photos: Path, tmp_path: Path, caplog) -> None:
    folder = Path(shutil.copytree(photos, tmp_path / "more"))
    for name in ("a.cr2", "b.cr2", "c.psd"):
        (folder / "train/sky" / name).write_bytes(b"not decoded")
    result = run("train", recipe, "--out", tmp_path / "run", "--set", f"data.source={folder}")
    assert result.exit_code == 0
    said = [line for line in caplog.messages if "passed over" in line]
    assert said == [
        "more: 3 files that look like pictures are passed over: 2 .cr2, 1 .psd. `adapt data check` names them"
    ]


def test_the_root_is_an_option_too(run, refused, root: Path, tmp_path: Path) -> None:
    drawn = [
        run("data", "show", "imagenet_a", *given, "--out", tmp_path / f"{number}.png", "--images", 1).stdout
        for number, given in enumerate(((root,), ("--root", root), (root, "--root", root)))
    ]
    assert len({line.partition("  ")[2] for line in drawn}) == 1
    assert drawn[0]
    refused(run("data", "check", "eurosat", "a", "--root", "b"), "the root is given twice, as a and as --root b")


def test_check_of_nothing(run, refused) -> None:
    refused(run("data", "check", "nowhere"), "data 'nowhere' is not there: no file or folder has this path")


# ---- show


def test_show_draws_a_png(run, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheets/photos.png"
    result = run("data", "show", photos, "--out", out, "--images", 2)
    with Image.open(out) as sheet:
        assert result.stdout == f"{out}  {sheet.width} x {sheet.height} pixels, 3 classes\n"
        assert sheet.getpixel((18 + 48, 18 + 17 + 48)) == (230, 60, 40)
    run("data", "show", photos, "--out", tmp_path / "test.png", "--images", 2, "--part", "test")
    with Image.open(tmp_path / "test.png") as sheet:
        assert sheet.getpixel((18 + 48, 18 + 17 + 48)) == (240, 70, 50)


def test_show_draws_the_test_images_of_data_without_others(run, root: Path, tmp_path: Path) -> None:
    result = run("data", "show", "imagenet_a", root, "--out", tmp_path / "a.png", "--images", 1)
    assert result.exit_code == 0
    assert result.stdout.endswith("200 classes\n")


# ---- training and measuring


def test_training_refuses_broken_images_before_it_starts(
    run, refused, recipe: Path, damaged: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = run("train", recipe, "--out", out, "--set", f"data.source={damaged}")
    refused(result, "3 of 18 images of data 'damaged' cannot be used", f"image '{damaged}/train/sky/1.png' cannot be")
    assert not out.exists()


def test_training_skips_broken_images_with_a_count(run, recipe: Path, damaged: Path, tmp_path: Path, caplog) -> None:
    out = tmp_path / "run"
    overrides = ("--set", f"data.source={damaged}", "--set", "data.broken=skip")
    result = run("train", recipe, "--out", out, *overrides)
    assert result.exit_code == 0
    assert "left out 3 of 18 images of data 'damaged'" in caplog.text
    metrics = json.loads((out / "metrics.json").read_text())
    assert (metrics["train_images"], metrics["adapted"]["images"]) == (5, 5)


def test_names_and_sampling_of_a_recipe(run, recipe: Path, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"sky": "clear sky", "goldfish": "orange fish", "lime tree": "a lime tree"}))
    out = tmp_path / "run"
    result = run("train", recipe, "--out", out, "--set", f"data.names={names}", "--set", "data.sampling=clip-lora")
    assert result.exit_code == 0
    adapter = out / "adapter.safetensors"
    assert "orange fish, a lime tree, clear sky" in run("inspect", adapter, "--words", 0).stdout
    accuracy = json.loads((out / "metrics.json").read_text())["adapted"]["accuracy"]
    found = json.loads(run("eval", adapter, "--data", photos, "--names", names, "--json").stdout)
    assert found["accuracy"] == accuracy


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.sampling=clip_lora", "data.sampling is 'clip_lora': Input should be 'coop' or 'clip-lora'"),
        ("data.broken=drop", "data.broken is 'drop': Input should be 'refuse' or 'skip'"),
        ("data.names=nowhere.csv", "class names 'nowhere.csv' cannot be read"),
        ("data.source=eurosat", "data 'eurosat': there is no folder "),
    ],
)
def test_refusals(run, refused, recipe: Path, override: str, words: str) -> None:
    refused(run("train", recipe, "--set", override), words)


def test_match_writes_pairs_that_can_be_learned_from(
    run, refused, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    texts = {"goldfish": ["orange scales", "a fish", "fins"], "lime tree": ["green leaves"], "sky": ["blue", "a cloud"]}
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    out = tmp_path / "pairs.csv"
    words = ("data", "match", photos, "--texts", tmp_path / "texts.json", "--backbone", model_folder, "--out", out)
    result = run(*words, "--top", 2)
    assert result.exit_code == 0, result.stderr
    assert "10 pairs of 6 images" in result.stdout
    split = load(out, root=photos)
    assert split.task.name == "pairs"
    for item in split.items():
        assert item.text in texts[Path(item.path).parent.name]
    other = (*words[:5], "--backbone", "mini-clip+mini-lm", "--out", tmp_path / "other.csv")
    refused(run(*other), "mini-clip+mini-lm is a vision LLM, which compares no images with texts: give a CLIP")
    del texts["sky"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    refused(run(*words[:-1], tmp_path / "other.csv"), "there is no text for the class 'sky'")
    refused(run(*words), "exists already; name a new file")
