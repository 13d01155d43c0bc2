"""GPT4Image: the term of the descriptions, what is learned and saved, lists with descriptions, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from PIL import Image
from stopping import stopped_at

import adapt
from adapt import AdaptError, methods
from adapt.cli import main
from adapt.data import Item, Split
from adapt.data.item import items_id
from adapt.tasks.classes import Class
from adapt.testing import CHECKS, check_method

COLOURS = {"red": (200, 20, 20), "blue": (20, 20, 200)}
CLASSES = ("blue_thing", "red_thing")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for part, count in (("train", 3), ("test", 2)):
        for name, colour in COLOURS.items():
            folder = tmp_path / "photos" / part / f"{name}_thing"
            folder.mkdir(parents=True)
            for number in range(count):
                shade = tuple(value + 10 * number for value in colour)
                Image.new("RGB", (40, 40), shade).save(folder / f"{number}.png")
    return tmp_path / "photos"


def described(split: Split) -> Split:
    """The split with a description of each image, of which no two are equal."""
    names = {item.path: f"{item.answer} number {number}" for number, item in enumerate(split.items())}
    return split.mapped(
        lambda items: (replace(item, label=Class(item.answer, caption=names[item.path])) for item in items)
    )


def test_the_term_is_the_cosine_distance_to_the_descriptions(photos: Path) -> None:
    split = described(adapt.data.load(photos))
    torch.manual_seed(0)
    model = adapt.wrap(
        adapt.load_backbone("vision:mini-clip", "cpu"), methods.GPT4Image(rank=2, describes=3.0), CLASSES
    )
    seen: list[tuple[float, float]] = []
    loss = methods.GPT4Image.loss

    def noting(method: methods.GPT4Image, step: object) -> dict[str, torch.Tensor]:
        terms = loss(method, step)  # type: ignore[arg-type]
        clip = adapt.wrap(adapt.load_backbone("mini-clip", "cpu"), methods.ZeroShot(), ["-"]).eval()
        texts = clip.text_features([item.label.caption for item in step.items])  # type: ignore[attr-defined]
        told = F.normalize(step.features @ method.aside["projection"].weight.T, dim=-1)  # type: ignore[attr-defined]
        seen.append((float(terms["describes"]), float(3 * (1 - (told * texts).sum(-1)).mean())))
        return terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.GPT4Image, "loss", noting)
        adapt.fit(model, split.train, epochs=8, batch_size=3, lr=0.003, augment="none")
    assert len(seen) == 16
    assert all(own == pytest.approx(wanted, rel=1e-4) for own, wanted in seen)
    assert seen[-1][0] < 0.8 * seen[0][0]  # learned
    assert not any("projection" in name for name in model.method.state_dict())
    assert model.method.loss(model.step(torch.zeros(1, 3, 64, 64), torch.zeros(1).long())).keys() == {"cross_entropy"}


def test_it_holds_the_contract(photos: Path) -> None:
    split = described(adapt.data.load(photos))
    assert check_method(methods.GPT4Image, None, replace(split, val=split.test)) == [check.__name__ for check in CHECKS]


def test_a_repeated_run_sees_other_descriptions(photos: Path, tmp_path: Path) -> None:
    row = "path,label,caption,split\ntrain/red_thing/0.png,red,{},train\ntrain/blue_thing/0.png,blue,a sea,train\n"
    listed, out = tmp_path / "list.csv", str(tmp_path / "run")
    listed.write_text(row.format("a wall"))
    train = ["--data", str(listed), "--root", str(photos), "--backbone", "vision:mini-clip", "--shots", "1"]
    settings = ["--set", "train.iterations_per_shot=2", "--set", "method.reader=mini-clip", "--out", out]
    result = CliRunner().invoke(main, ["train", "gpt4image", *train, *settings], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    listed.write_text(row.format("a brick"))
    result = CliRunner().invoke(main, ["repeat", out])
    assert result.exit_code == 1, result.output
    assert "perhaps because of metrics.train_set" in result.output, result.output


def test_images_without_a_description_teach_their_class(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, *others = described(adapt.data.load(photos)).train
    items = [replace(first, label=Class(first.answer)), *others]
    model = adapt.wrap(adapt.load_backbone("vision:mini-clip", "cpu"), methods.GPT4Image(rank=2), CLASSES)
    adapt.fit(model, items, epochs=1, augment="none")
    assert "1 of 6 images have no description" in caplog.text


def test_what_is_refused(photos: Path) -> None:
    split = adapt.data.load(photos)
    model = adapt.wrap(adapt.load_backbone("vision:mini-clip", "cpu"), methods.GPT4Image(rank=2), CLASSES)
    with pytest.raises(AdaptError, match="no training image has one: give a list with a column caption"):
        adapt.fit(model, split.train, epochs=1)
    model = adapt.wrap(model.backbone, methods.GPT4Image(rank=2, reader="vision:mini-clip"), CLASSES)
    with pytest.raises(AdaptError, match=r"towers is .*: expected \[vision\]"):
        methods.GPT4Image(towers=["text"])
    with pytest.raises(AdaptError, match=r"method.reader is 'vision:mini-clip': .* text"):
        adapt.fit(model, described(split).train, epochs=1)


def test_a_folder_is_described_with_its_classes_and_read_again(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "described.jsonl"
    options = ["--labels", "--backbone", "mini-vlm", "--tokens", "12", "--out", str(out)]
    result = CliRunner().invoke(main, ["data", "describe", str(photos), *options], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    plain, split = adapt.data.load(photos), adapt.data.load(out, root=photos)
    for part in ("train", "test"):
        own: list[Item] = sorted(getattr(split, part), key=lambda item: item.path)
        assert [(item.path, item.answer) for item in own] == sorted(
            (item.path, item.answer) for item in getattr(plain, part)
        )
        assert all(item.label.caption for item in own)  # type: ignore[attr-defined]
    assert split.class_names == plain.class_names
    result = CliRunner().invoke(main, ["data", "describe", str(tmp_path / "list.csv"), *options])
    assert "is no folder: --labels describes a folder" in result.output
    assert "ignored: source (10 rows)" in caplog.text


def test_descriptions_are_a_column_and_labels_alone_are_identified_as_before(photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("path,label,caption,split\ntrain/red_thing/0.png,red,a red wall,train\n")
    [item] = adapt.data.load(listed, root=photos).train
    assert item.label == Class("red", caption="a red wall")
    assert item.label.identity("") == Class("red").identity("") == {"name": None, "overlap": None}
    plain = adapt.data.load(photos)
    told = plain.mapped(lambda items: (replace(item, label=replace(item.label, caption="a wall")) for item in items))  # type: ignore[call-arg]
    assert items_id(told.test) == items_id(plain.test)  # the same test images
    assert items_id(told.train, captions=True) != items_id(plain.train, captions=True)  # another training
    assert told.fingerprint != plain.fingerprint == replace(plain, test=told.test).fingerprint
    model = adapt.wrap(adapt.load_backbone("vision:mini-clip", "cpu"), methods.GPT4Image(rank=2), CLASSES)
    settings = {"epochs": 3, "augment": "none", "out": tmp_path / "run"}
    with stopped_at(2):
        adapt.fit(model, described(plain).train, **settings)  # type: ignore[arg-type]
    with pytest.raises(AdaptError, match="belongs to another recipe, to other images or names"):
        adapt.fit(model, told.train, resume=True, **settings)  # type: ignore[arg-type]


def test_a_caption_is_renamed_to_what_the_list_has(photos: Path, tmp_path: Path) -> None:
    listed, row = tmp_path / "list.csv", "train/red_thing/0.png,a red wall"
    listed.write_text(f"path,caption\n{row}\n")
    with pytest.raises(AdaptError, match=r"By caption, did you mean text\? .* give --columns text=caption"):
        adapt.data.load(listed, root=photos)
    listed.write_text(f"path,title\n{row}\n")
    [pair] = adapt.data.load(listed, root=photos, columns="caption=title").train
    assert (pair.text, pair.label.caption) == ("a red wall", "")
    for labels, columns in (("label", ""), ("species", "label=species,"), ("species", "class=species,")):
        listed.write_text(f"path,title,{labels}\n{row},red\n")
        [item] = adapt.data.load(listed, root=photos, columns=f"{columns}caption=title").train
        assert (item.text, item.label) == ("", Class("red", caption="a red wall"))
    [pair] = adapt.data.load(listed, root=photos, columns="caption=title,ignored=species").train
    assert (pair.text, pair.label.caption) == ("a red wall", "")
    listed.write_text("path,target,caption\ntrain/red_thing/0.png,1,a red wall\n")
    with pytest.raises(AdaptError, match=r"no task reads the columns caption, path, target .*translations$"):
        adapt.data.load(listed, root=photos)


@pytest.mark.parametrize("label", ["label", "species"])
def test_tables_keep_captions_beside_labels(label: str, photos: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), label: datasets.ClassLabel(names=["red"]), "caption": datasets.Value("string")}
    row = {"image": {"bytes": (photos / "train/red_thing/0.png").read_bytes()}, label: 0, "caption": "a red wall"}
    table = datasets.Dataset.from_list([row], features=datasets.Features(kinds))
    table.to_parquet(tmp_path / "rows.parquet")
    columns = None if label == "label" else f"label={label}"
    [item] = adapt.data.load(tmp_path / "rows.parquet", columns=columns).items()
    assert item.label == Class("red", caption="a red wall")


@pytest.mark.parametrize(("label", "caption"), [("", "a wall"), ("red", ""), ("red", "a wall")])
def test_a_row_may_lack_the_label_or_the_caption(label: str, caption: str, photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    row = {"image": "train/red_thing/0.png", "split": "train", "label": label, "caption": caption}
    listed.write_text(json.dumps(row) + "\n")
    [item] = adapt.data.load(listed, root=photos).train
    assert (item.answer, item.label.caption or item.text) == (label or caption, caption)


@pytest.mark.parametrize("row", [{"label": 3, "caption": "a"}, {"label": "red", "caption": ["a", "b"]}])
def test_a_label_is_a_name_beside_one_caption(row: dict[str, object], photos: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text(json.dumps({"image": "train/red_thing/0.png", **row}) + "\n")
    with pytest.raises(AdaptError, match="expected the name of a class, and one caption beside it"):
        adapt.data.load(listed, root=photos)
