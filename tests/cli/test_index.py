"""`adapt index`, `adapt search`, and names out of captions."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import adapt
from adapt.models.unadapted import unadapted
from adapt.prompts import around_word
from adapt.retrieval.index import index_images, index_texts, load_index, slerp
from adapt.retrieval.vocabulary_free import VocabularyFree

CAPTIONS = "a goldfish in a bowl\ntwo goldfish\na lime tree\nlime trees in the sun\nthe sky\n"


@pytest.fixture
def captions(run, tmp_path: Path, model_folder: Path) -> Path:
    (tmp_path / "captions.txt").write_text(CAPTIONS)
    out = tmp_path / "captions.safetensors"
    result = run("index", tmp_path / "captions.txt", "--backbone", model_folder, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "5 texts" in result.stdout
    return out


def test_search_finds_the_nearest(run, refused, captions: Path, photos: Path) -> None:
    image = photos / "test/sky/0.png"
    lines = run("search", captions, "a lime tree", image, "--top-k", 2, "--json").stdout.splitlines()
    by_text, by_image = map(json.loads, lines)
    assert by_text["found"][0] == {"entry": "a lime tree", "cosine": pytest.approx(1, abs=1e-5)}
    index = load_index(captions)
    model = adapt.wrap(adapt.load_backbone(index.header.backbone), adapt.methods.ZeroShot(), ("object",))
    transform = model.transform()
    features = model.image_features(transform(adapt.data.open_image(image))[None])
    cosines, places = index.nearest(features.detach(), 2)
    assert [each["entry"] for each in by_image["found"]] == [index.entries[place] for place in places[0]]
    assert [each["cosine"] for each in by_image["found"]] == pytest.approx(cosines[0].tolist(), abs=1e-5)
    [region] = run("search", captions, f"{image}#xywh=1,2,5,4", "--top-k", 1, "--json").stdout.splitlines()
    part = adapt.data.open_image(image).crop((1, 2, 6, 6))
    cosines, _ = index.nearest(model.image_features(transform(part)[None]).detach(), 1)
    assert json.loads(region)["found"][0]["cosine"] == pytest.approx(cosines.item(), abs=1e-5)
    refused(run("search", captions, f"{image}#xywh=1,2"), "has the box '1,2'; expected X,Y,WIDTH,HEIGHT")
    refused(run("search", captions, f"{photos}/test"), "is a folder: give a text, or image files")
    plain = run("search", captions, "a lime tree", "--top-k", 1).stdout
    assert plain == "a lime tree\n   1.000  a lime tree\n"


def test_a_folder_and_a_csv(
    run, refused, photos: Path, tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "photos.safetensors"
    run("index", photos, "--backbone", model_folder, "--out", out)
    assert load_index(out).header.kind == "images"
    assert len(load_index(out)) == len(list(photos.rglob("*.png")))
    (tmp_path / "captions.txt").write_text(CAPTIONS)
    (tmp_path / "a.csv").write_text("id,text\n1,a sky\n2,a tree\n")
    refused(run("index", tmp_path / "a.csv", "--backbone", model_folder, "--out", out), "exists already; name a new")
    assert load_index(out).header.kind == "images"
    run("index", tmp_path / "a.csv", "--backbone", model_folder, "--out", tmp_path / "texts")
    assert load_index(tmp_path / "texts").entries == ("a sky", "a tree")
    (tmp_path / "a.csv").write_text("id,caption\n1,a sky\n")
    out = tmp_path / "more"
    refused(run("index", tmp_path / "a.csv", "--backbone", model_folder, "--out", out), "has no column 'text'")
    monkeypatch.setattr("adapt.recipe.read_recipe", lambda *given, **more: SimpleNamespace(backbone="no-such"))
    refused(run("index", tmp_path / "captions.txt", "--out", out), "unknown backbone 'no-such'")  # the recipes' own
    assert not out.exists()


def test_a_text_changes_an_image(run, refused, photos: Path, model_folder: Path, tmp_path: Path) -> None:
    out, image = tmp_path / "photos.safetensors", photos / "test/sky/0.png"
    run("index", photos, "--backbone", model_folder, "--out", out)
    index = load_index(out)
    model = unadapted(adapt.load_backbone(str(model_folder)).turning(True), ("object",))
    [of_image], [of_text] = index_images(model, [str(image)]).features, index_texts(model, ["a tree at night"]).features
    asked = ("search", out, image, "--text", "a tree at night", "--json", "--top-k", len(index))
    places = [place for place, entry in enumerate(index.entries) if entry != str(image)]
    for share in (None, 0.0, 0.8, 1.0):
        query = slerp(of_image, of_text, 0.5 if share is None else share)
        found = json.loads(run(*asked, *(() if share is None else ("--slerp", share))).stdout)["found"]
        expected = sorted((float(query @ index.features[place]), index.entries[place]) for place in places)[::-1]
        assert [each["cosine"] for each in found] == pytest.approx([cosine for cosine, _ in expected], abs=1e-5)
        assert {each["entry"] for each in found} == {entry for _, entry in expected}  # not the image itself
    assert torch.allclose(slerp(of_image, of_text, 0.5), F.normalize(of_image + of_text, dim=-1), atol=1e-6)
    refused(run("search", out, "a dog", "--text", "at night"), "--text changes images, but the query 'a dog' is none")
    refused(run("search", out, image, "--text", " "), "text 1 is empty")


def test_an_adapter_makes_an_image_a_word_of_a_text(
    run, refused, photos: Path, model_folder: Path, tmp_path: Path
) -> None:
    out, image, adapter = tmp_path / "photos.safetensors", photos / "test/sky/0.png", tmp_path / "phi.safetensors"
    run("index", photos, "--backbone", model_folder, "--out", out)
    backbone, index = adapt.load_backbone(str(model_folder)).turning(True), load_index(out)
    model: Any = adapt.wrap(backbone, adapt.methods.PseudoWord(hidden=8), ()).eval()
    model.save(adapter)
    features = index_images(model, [str(image)]).features
    prompt = around_word(backbone.tokenizer, ["a photo of", "that is * red"])  # the * of a user is no image
    with torch.no_grad():
        query = F.normalize(model.encode_words([prompt], model.method.words(features)), dim=-1)[0]
    asked = ("search", out, image, "--text", "is * red", "--adapter", adapter)
    found = json.loads(run(*asked, "--json", "--top-k", len(index)).stdout)["found"]
    places = [place for place, entry in enumerate(index.entries) if entry != str(image)]
    expected = sorted((float(query @ index.features[place]) for place in places), reverse=True)
    assert [each["cosine"] for each in found] == pytest.approx(expected, abs=1e-5)
    assert run("search", out, image, "--adapter", adapter).stdout == run("search", out, image).stdout
    refused(run(*asked, "--slerp", 0.5), "--slerp is 0.5, but pseudo_word goes no way to a text: leave --slerp out")
    refused(run(*asked[:3], "--text", " ", "--adapter", adapter), "text 1 is empty")
    refused(run(*asked, "--backbone", "mini-clip"), "mini-clip")


def test_a_text_that_is_too_long_is_named_with_its_line(
    run, refused, photos: Path, tmp_path: Path, model_folder: Path
) -> None:
    long, out = "word " * 100, tmp_path / "index.safetensors"
    pairs = f"path,text\ntest/sky/0.png,the sky\ntest/sky/1.png,{long}\n"
    sources = {
        "texts.txt": (f"a tree\n\n{long}\nthe sky\n", "line 3", ()),
        "texts.csv": (f'id,text\n1,a tree\n2,"the\nsky"\n3,{long}\n', "line 5", ()),
        "pairs.csv": (pairs, "test/sky/1.png", ("--pairs", "--root", photos)),
    }
    for name, (content, place, options) in sources.items():
        (tmp_path / name).write_text(content)
        result = run("index", tmp_path / name, "--backbone", model_folder, "--out", out, *options)
        refused(
            result, f"{tmp_path / name} {place}: the text 'word word ", "has 102 tokens but the text tower reads 77"
        )
    (tmp_path / "texts.csv").write_text('text\n"the\nsky"\n""\n')
    refused(run("index", tmp_path / "texts.csv", "--backbone", model_folder, "--out", out), "line 4: the text is empty")
    (tmp_path / "pairs.csv").write_text(pairs.replace(long, "a tree"))
    assert run("index", tmp_path / "pairs.csv", "--backbone", model_folder, "--out", out, *options).exit_code == 0
    (tmp_path / "query.csv").write_text(pairs)
    refused(run("search", out, tmp_path / "query.csv", "--root", photos), "query.csv test/sky/1.png: the text 'word")


def test_under_an_adapter(run, refused, captions: Path, model_folder: Path, tmp_path: Path) -> None:
    out, adapter = tmp_path / "under.safetensors", tmp_path / "lora.safetensors"
    adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.LoRA(), ()).save(adapter)
    run("index", tmp_path / "captions.txt", "--adapter", adapter, "--out", out)
    assert run("search", out, "the sky", "--adapter", adapter).exit_code == 0
    refused(run("search", out, "the sky"), "the index was made with an adapter")
    refused(run("search", captions, "the sky", "--adapter", adapter), "the index was made without an adapter")


@pytest.mark.full
def test_an_old_index_is_searched_by_a_new_backbone(
    run, refused, captions: Path, model_folder: Path, tmp_path: Path
) -> None:
    words, adapter, other = tmp_path / "words.txt", tmp_path / "xbt", tmp_path / "other.safetensors"
    words.write_text(
        "\n".join(f"{name} number {count}" for name in ("dog", "cat", "car", "tree") for count in range(10))
    )
    asked = ("search", captions, "a lime tree", "--json")
    old = json.loads(run(*asked).stdout)["found"]
    options = ("--backbone", "mini-clip", "--set", f"method.old={model_folder}", "--out", adapter)
    trained = run("train", "xbt", "--data", words, *options)
    assert "compatible unknown: the validation set has no images" in trained.stdout
    new = json.loads(run(*asked, "--adapter", adapter).stdout)["found"]
    model, index = adapt.load(adapter), load_index(captions)
    cosines, places = index.nearest(model.encode_texts(["a lime tree"]).detach(), 5)
    assert [each["entry"] for each in new] == [index.entries[place] for place in places[0]] != []
    assert [each["cosine"] for each in new] == pytest.approx(cosines[0].tolist(), abs=1e-5)
    for share, expected in ((0, old), (1, new)):
        found = json.loads(run(*asked, "--adapter", adapter, "--slerp", share).stdout)["found"]
        assert [each["entry"] for each in found] == [each["entry"] for each in expected]
        assert [each["cosine"] for each in found] == pytest.approx([each["cosine"] for each in expected], abs=1e-5)
    refused(run(*asked, "--slerp", 0.5), "but only one backbone is given: give an --adapter of the method xbt")
    run("index", words, "--backbone", "mini-clip", "--out", other)
    refused(run("search", other, "a dog", "--adapter", adapter), "the index was made without an adapter")


@pytest.mark.full
def test_images_are_named_by_words_of_captions(run, refused, captions: Path, photos: Path) -> None:
    lines = run("predict", "--vocabulary-free", captions, photos / "test", "--json").stdout.splitlines()
    index = load_index(captions)
    backbone = adapt.load_backbone(index.header.backbone)
    paths = sorted((photos / "test").rglob("*.png"))
    expected = VocabularyFree(backbone, index).predict(paths)
    assert [json.loads(line)["image"] for line in lines] == list(map(str, paths))
    for line, prediction in zip(lines, expected, strict=True):
        assert [each["class"] for each in json.loads(line)["top"]] == [name for name, _ in prediction.top]
    one = run("predict", "--vocabulary-free", captions, paths[0], "--top-k", 1)
    assert one.stdout.splitlines()[1].endswith(f"%  {expected[0].class_name}")
    refused(
        run("predict", "--vocabulary-free", captions, paths[0], "--classes", "a,b"),
        "--vocabulary-free cannot go with --classes",
    )
    refused(run("predict", captions), "there is no image after")
