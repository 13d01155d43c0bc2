"""Languages learned from translations of texts: rows, refusals, what training moves, and accuracy by language."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import adapt
from adapt import AdaptError
from adapt.cli import main
from adapt.data import Item, load
from adapt.evaluation.evaluate import by_language
from adapt.methods import LoRA, ZeroShot
from adapt.models.prediction import Answers

WORDS = {"dog": "perro", "house": "casa", "flower": "flor", "fish": "pez"}
TOWER = {"towers": ("text",), "rank": 8, "alpha": 8.0, "dropout": 0.0, "projections": "all"}
STEPS = {"epochs": 25, "batch_size": 4, "optimizer": "adamw", "lr": 0.01, "augment": "none"}


def pairs(language: str = "es") -> list[Item]:
    return [Item.of(text=text, translation=own, language=language) for text, own in WORDS.items()]


def listed(folder: Path, content: str) -> Path:
    (folder / "names.csv").write_text(content)
    return folder / "names.csv"


def test_rows_are_texts_with_translations(tmp_path: Path) -> None:
    split = load(listed(tmp_path, "text,translation,language\ndog,perro,es\ndog,Hund,de\n"))
    assert (split.task.name, split.class_names) == ("translations", ())
    assert [(item.text, item.answer, item.label.columns) for item in split.train] == [
        ("dog", "perro", {"language": "es"}),
        ("dog", "Hund", {"language": "de"}),
    ]


def test_an_empty_translation_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="line 2: the translation is empty: fill in a value"):
        load(listed(tmp_path, "text,translation\ndog,\n"))


def test_translations_come_to_what_the_texts_were() -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip"), LoRA(**TOWER))
    texts, translations = ([f"a photo of a {name}." for name in names] for names in (WORDS, WORDS.values()))
    taught = model.text_features(texts)

    def near(names: list[str]) -> float:
        return float((model.text_features(names, edited=True) * taught).sum(-1).mean())

    before = near(translations)
    adapt.fit(model, pairs(), progress=False, **STEPS)
    assert near(translations) > 0.9 > 0.75 > before
    assert near(texts) > 0.95


def test_the_vision_tower_cannot_learn_from_texts() -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip"), LoRA())
    with pytest.raises(AdaptError, match=r"teach the text tower, but lora adapts text and vision: set towers=\[text\]"):
        adapt.fit(model, pairs(), progress=False, **STEPS)


def test_a_language_is_scored_on_the_classes_that_it_names() -> None:
    images = load("emoji-concepts").test
    names = ["goat", "cactus", "banana", "fox"]
    model = adapt.wrap(adapt.load_backbone("mini-clip"), ZeroShot())
    turned = dict(zip(names, names[1:] + names[:1], strict=True))
    listed = [Item.of(text=name, translation=name, language="same") for name in [*names, "no such thing"]]
    listed += [Item.of(text=name, translation=own, language="turned") for name, own in turned.items()]
    found = {language: scores for language, *scores in by_language(model, images, listed)}
    assert [*found] == ["same", "turned"]
    assert {scores.images for own in found.values() for scores in own} == {4}
    assert [own.accuracy for own in found["same"]] == [1, 1]
    assert [own.accuracy for own in found["turned"]] == [0, 1]
    with pytest.raises(AdaptError, match="languages need a dual encoder, and a list with the columns"):
        list(by_language(model, images, [Item.of(text=name) for name in names]))
    with pytest.raises(AdaptError, match="classes of the data, which has none"):
        list(by_language(model, load("emoji-captions").test, listed))
    with pytest.raises(AdaptError, match="'turned' has 5 translations of 4 classes: keep one of each"):
        list(by_language(model, images, [*listed[-4:], Item.of(text="fox", translation="zorro", language="turned")]))


def test_images_of_several_labels_count_where_a_language_names_all() -> None:
    images, names = load("emoji-labels").test[:40], load("emoji-labels").class_names
    model = adapt.wrap(adapt.load_backbone("mini-clip"), ZeroShot(), names)
    model.answers = Answers(logit_bias=-20.0)
    every = [Item.of(text=name, translation=f"el {name}", language="es") for name in names]
    [(_, own, _)] = by_language(model, images, every)
    assert own.images == 40
    first = {*images[0].class_names}
    [(_, own, _)] = by_language(model, images, [each for each in every if each.text in first])
    assert own.images == sum({*item.class_names} <= first for item in images)
    one = [Item.of(text=name, translation="banco", language="es") for name in names[:2]]
    with pytest.raises(AdaptError, match="'es' calls 2 classes 'banco': give each a name of its own"):
        list(by_language(model, images, one))


def test_eval_prints_a_table_of_languages(tmp_path: Path) -> None:
    model = adapt.wrap(adapt.load_backbone("mini-clip"), LoRA(**TOWER))
    model.save(tmp_path / "a.safetensors")
    names = listed(tmp_path, "text,translation,language\ngoat,Ziege,de\nfox,Fuchs,de\n")
    asked = ["eval", str(tmp_path / "a.safetensors"), "--data", "emoji-concepts", "--languages", str(names)]
    table = CliRunner().invoke(main, asked)
    assert table.exit_code == 0, table.output
    assert table.stdout.splitlines()[0].split("  ")[0] == "language"
    told = json.loads(CliRunner().invoke(main, [*asked, "--json"]).stdout)
    assert (told["de"]["data"]["images"], told["de"]["data"]["accuracy"]) == (2, 1)
    refused = CliRunner().invoke(main, [*asked, "--sets", "0.9"])
    assert "measure one after the other" in refused.stderr
