"""Learning from pairs of images and texts: what a step is, what it leaves, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from selection import by_turns
from stopping import assert_goes_on_exactly
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Item, Split, load, read_csv
from adapt.methods.base import PairStep, contrast
from adapt.recipe import read_recipe
from adapt.tasks.pairs import Pair
from adapt.training.run_recipe import read_data

STEPS = {"iterations": 4, "batch_size": 4, "lr": 0.01, "schedule": "constant", "augment": "none", "progress": False}
TEXTS = {"goldfish": "a goldfish", "red_panda": "a red panda", "sea cucumber": "a sea cucumber"}


@pytest.fixture
def pairs(tiny_split: Split) -> Split:
    def part(items: tuple[Item, ...]) -> tuple[Item, ...]:
        return tuple(
            replace(item, label=Pair(), text=f"{TEXTS[item.answer]} {number}") for number, item in enumerate(items)
        )

    return Split("pairs", (), part(tiny_split.train), part(tiny_split.val), part(tiny_split.test))


def wrapped(backbone: Backbone, name: str = "lora") -> AdaptedModel:
    torch.manual_seed(0)
    return adapt.wrap(backbone, methods.find(name)(**methods.find(name).example), ())


@pytest.mark.parametrize("fast", [True, False])
def test_the_loss_is_symmetric_and_alike_texts_are_not_wrong(open_clip: Backbone, images: Tensor, fast: bool) -> None:
    model = adapt.wrap(open_clip, methods.LoRA(dropout=0), (), fast=fast)
    images, texts = images[:4], ["a cat", "a dog", "a cat", "a bird"]
    step = model.step([images, texts], torch.tensor([0, 1, 2, 1]))
    assert isinstance(step, PairStep)
    i, t = step.features, step.text_features
    assert torch.allclose(t, F.normalize(open_clip.encode_text(open_clip.tokenize(texts)), dim=-1), atol=1e-5)
    logits = 100 * i @ t.T
    same = torch.zeros_like(logits, dtype=torch.bool)
    same[0, 2] = same[2, 0] = True  # one text
    same[1, 3] = same[3, 1] = True  # one image
    logits = logits.masked_fill(same, -torch.inf)
    right = torch.arange(len(images))
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    terms, hits = model.losses(step)
    assert torch.allclose(terms["cross_entropy"], expected, atol=1e-4)
    assert torch.equal(hits, logits.argmax(-1) == right)


def test_more_wrong_texts_are_columns_of_the_images_alone() -> None:
    logits, wrong = torch.randn(3, 3), torch.randn(3, 2)
    right = torch.arange(3)
    expected = (F.cross_entropy(torch.cat([logits, wrong], 1), right) + F.cross_entropy(logits.T, right)) / 2
    assert torch.allclose(contrast(logits, wrong), expected)


@by_turns("name", ["lora", "ln_tuning", "bitfit", "clip_svd", "svlc", "clippings"], take=2)
def test_it_trains_is_saved_and_serves_classes_afterwards(
    name: str, open_clip: Backbone, pairs: Split, images: Tensor, tmp_path: Path
) -> None:
    model = wrapped(open_clip, name)
    start = {key: value.clone() for key, value in model.method.state_dict().items()}
    result = adapt.fit(model, pairs.train, pairs.test, val_set=pairs.val, out=tmp_path / "run", **STEPS)
    assert any(not torch.equal(start[key], value) for key, value in model.method.state_dict().items())
    for part in ("adapted", "zero_shot"):
        assert set(result.metrics[part]["recall"]) == {"image_to_text", "text_to_image"}
    assert result.metrics["val"]["images"] == len(pairs.val)
    assert "image to text" in str(result)
    loaded = adapt.load(tmp_path / "run", open_clip)
    assert loaded.class_names == ()
    classes = adapt.load(tmp_path / "run", open_clip, class_names=["cat", "dog"])
    assert classes(images).shape == (len(images), 2)
    assert torch.allclose(loaded.image_features(images), classes.image_features(images))


@pytest.mark.parametrize(("words", "told"), [({"fish": ["goldfish", "shark"]}, 0), ({"side": ["left", "right"]}, 1)])
def test_captions_without_a_single_wrong_twin_are_told(
    words: dict[str, list[str]], told: int, open_clip: Backbone, pairs: Split, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapt.wrap(open_clip, methods.SVLC(words=words, projections="q", dropout=0), ())
    adapt.fit(model, pairs.train, **STEPS | {"iterations": 1})
    found = [record.getMessage() for record in caplog.records if "method.words" in record.getMessage()]
    assert len(found) == told
    if told:
        assert found[0].startswith(
            "svlc: none of the 12 training captions, such as 'a goldfish 0', contains a word listed"
        )


def test_a_stopped_training_goes_on_exactly(open_clip: Backbone, pairs: Split, tmp_path: Path) -> None:
    steps = {key: value for key, value in STEPS.items() if key != "iterations"} | {"epochs": 3}
    train = partial(adapt.fit, train_set=pairs.train, **steps)
    assert_goes_on_exactly(lambda: wrapped(open_clip, "svlc"), train, tmp_path / "run", step=3)


@pytest.mark.parametrize("name", ["coop", "maple", "linear_probe", "task_res", "gda", "descriptions"])
def test_methods_of_classes_say_so(name: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="expected a list of at least one name"):
        adapt.wrap(open_clip, methods.find(name)(**methods.find(name).example), ())


def test_pairs_and_classes_are_not_taken_for_one_another(open_clip: Backbone, pairs: Split, tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="use a method that learns from pairs, such as lora, without class names"):
        adapt.fit(adapt.wrap(open_clip, methods.LoRA(), ["cat"]), pairs.train, **STEPS)
    with pytest.raises(AdaptError, match="the model has no classes, but the data has classes"):
        adapt.fit(wrapped(open_clip), tiny_split.train, **STEPS)
    long = replace(pairs.train[0], text="very " * 200 + "long")
    with pytest.raises(AdaptError, match=r"the text 'very .* has 203 tokens"):
        adapt.fit(wrapped(open_clip), (long, *pairs.train[1:4]), **STEPS | {"batch_size": 4, "iterations": 1})
    with pytest.raises(AdaptError, match=r"for the task pairs .* for the task classes .*Label all items"):
        replace(pairs, test=tiny_split.test)


def test_a_csv_of_pairs(tmp_path: Path, tiny_split: Split) -> None:
    paths = [item.path for item in tiny_split.train[:3]]
    rows = [f"{paths[0]},a cat", f"{paths[1]},a dog", f"{paths[0]},a tabby", f"{paths[2]},a bird"]
    file = tmp_path / "pairs.csv"
    file.write_text("path,text\n" + "\n".join(rows))
    split = read_csv(file, root="/")
    assert (split.task.name, split.class_names) == ("pairs", ())
    assert sorted(item.text for item in split.items()) == ["a bird", "a cat", "a dog", "a tabby"]
    parts = [{item.path for item in part} for part in (split.train, split.val, split.test)]
    assert sum(map(len, parts)) == 3  # both texts of an image are in one part
    items = list(split.items())
    numbers = dict(zip((item.text for item in items), split.task.numbers(items, ()).tolist(), strict=True))
    assert numbers["a cat"] == numbers["a tabby"] != numbers["a dog"]
    file.write_text("path,text\na.png,\n")
    with pytest.raises(AdaptError, match="the text is empty"):
        read_csv(file, root="/")


def test_texts_alone_learn_beside_pairs_that_are_held_out(tmp_path: Path, tiny_split: Split) -> None:
    image = tiny_split.train[0].path
    (tmp_path / "mixed.csv").write_text(f"path,text\n,a cat\n,a dog\n{image},a bird\n{image},a tit\n")
    mixed = load(tmp_path / "mixed.csv", root="/")
    assert [(item.text, item.paths, item.class_names) for item in mixed.train] == [("a cat", (), ()), ("a dog", (), ())]
    assert [(item.text, item.task.name) for item in mixed.test] == [("a bird", "pairs"), ("a tit", "pairs")]
    (tmp_path / "texts.csv").write_text("text\na cat\na dog\n")
    (tmp_path / "texts.txt").write_text("a cat\n\na dog\na cat\n")
    for name in ("texts.csv", "texts.txt"):
        texts = load(tmp_path / name)
        assert [item.text for item in texts.train] == ["a cat", "a dog"]
        assert (texts.class_names, texts.task.name) == ((), "images")
        assert "texts alone" in texts.kind
        with pytest.raises(AdaptError, match="texts alone, without labels, which have no classes"):
            texts.check_classes()
    (tmp_path / "texts.txt").write_text("\n")
    with pytest.raises(AdaptError, match=r"texts.txt' is empty"):
        load(tmp_path / "texts.txt")


@pytest.mark.parametrize(
    ("method", "learns"), [("lora", "classes, pairs, records, translations"), ("close", "classes")]
)
def test_methods_that_need_more_than_texts_refuse_them(method: str, learns: str, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    with pytest.raises(
        AdaptError,
        match=rf"texts contains .*texts alone, .* but {method} learns {learns}: .* "
        r"or use one of the methods locality, pseudo_word, xbt$",
    ):
        read_data(read_recipe(method, [], str(tmp_path / "texts.txt")))


def test_a_column_of_pairs_says_their_texts_in_other_words(tmp_path: Path, tiny_split: Split) -> None:
    paths = [item.path for item in tiny_split.train[:2]]
    file = tmp_path / "pairs.csv"
    file.write_text(f"path,text,rephrased,split\n{paths[0]},a cat,a small feline,train\n{paths[1]},a dog,,train\n")
    split = read_csv(file, root="/")
    assert [item.label.rephrased for item in split.train] == ["a small feline", ""]
    file.write_text(file.read_text().replace("a small feline", "a kitten"))
    assert read_csv(file, root="/").fingerprint != split.fingerprint
    file.write_text("path,label,rephrased\na.png,cat,a feline\n")
    with pytest.raises(AdaptError, match=r"pairs\.csv': no task reads the columns label, path, rephrased together"):
        read_csv(file, root="/")


def test_texts_in_other_words_draw_images_and_texts(open_clip: Backbone, images: Tensor) -> None:
    model = adapt.wrap(open_clip, methods.SVLC(logit_scale=20), ())
    texts, rephrased = ["a cat", "a dog", "a bird"], ["a small feline", "", "a parrot"]
    step = model.step([images[:3], texts, rephrased], torch.arange(3))
    terms, _ = model.losses(step)
    i, t = step.features, model.encode_texts(texts)
    p = model.encode_texts(["a small feline", "a dog", "a parrot"])  # a text without other words stands for itself
    right = torch.arange(3)
    expected = (F.cross_entropy(20 * i @ p.T, right) + F.cross_entropy(20 * t @ p.T, right)) / 2
    assert torch.allclose(terms["rephrased"], expected, atol=1e-4)
    assert set(terms) == {"cross_entropy", "rephrased"}  # none of these has a wrong twin
    assert set(model.losses(model.step([images[:3], texts], torch.arange(3)))[0]) == {"cross_entropy"}
    assert step.again().rephrased == step.under(model.method).rephrased == rephrased


def test_the_bundled_captions_say_what_is_drawn() -> None:
    split = load("emoji-captions")
    assert (len(split.train), len(split.val), len(split.test)) == (1350, 135, 270)
    sides = [item.text for item in split.test if " of " in item.text]
    assert sides
    assert sum(" left of " in text for text in sides) == pytest.approx(len(sides) / 2, abs=1)
    questions = {
        item.path: item for item in load("emoji-questions").test if item.label.question == "what is on the left?"
    }
    for item in split.test:
        if " left of " in item.text or " right of " in item.text:
            first, _, second = item.text.replace(" left of ", "|").replace(" right of ", "|").partition("|")
            left = first if " left of " in item.text else second
            assert left.partition(" ")[2] == questions[item.path].answer


def test_a_folder_with_texts_beside_its_images(tmp_path: Path) -> None:
    for part, number, text in (("train", 0, "a cat\na tabby\n"), ("train", 1, "a dog\n"), ("test", 2, "a bird")):
        (tmp_path / part).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / part / f"{number}.png")
        (tmp_path / part / f"{number}.txt").write_text(text)
    split = load(tmp_path)
    assert [item.text for item in split.train] == ["a cat", "a tabby", "a dog"]
    assert [item.text for item in split.test] == ["a bird"]
    assert split.task.numbers(split.train, ()).tolist() == [0, 0, 1]
    (tmp_path / "train/1.txt").write_text("\n")
    with pytest.raises(AdaptError, match=r"1\.png' has no text: write one to 1\.txt"):
        load(tmp_path)
    (tmp_path / "train/1.txt").write_text("a dog")
    Image.new("RGB", (8, 8)).save(tmp_path / "loose.png")
    (tmp_path / "loose.txt").write_text("a fish")
    with pytest.raises(AdaptError, match=r"loose\.png' has no split, but others have one"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"towers": ("text",)}, None),  # each view has its features in the cache
        ({"blocks": (2, 3)}, "needs the feature cache and an unedited vision tower"),
    ],
)
def test_pairs_keep_their_texts_where_images_could_come_from_the_cache(
    open_clip: Backbone, pairs: Split, settings: dict[str, object], refusal: str | None
) -> None:
    model = adapt.wrap(open_clip, methods.LoRA(dropout=0, **settings), ())
    result = adapt.fit(model, pairs.train, **STEPS)
    assert len(result.history) == 4
    of_views = STEPS | {"augment": "published", "views": 2}
    if refusal is None:
        assert len(adapt.fit(model, pairs.train, **of_views).history) == 4
        return
    with pytest.raises(AdaptError, match=rf"train\.views {refusal}"):
        adapt.fit(model, pairs.train, **of_views)


def test_what_is_of_classes_is_refused_for_pairs(pairs: Split, open_clip: Backbone, tmp_path: Path) -> None:
    for refused in (lambda: pairs.few_shot(1, 1), lambda: pairs.only("base")):
        with pytest.raises(AdaptError, match="which have no classes"):
            refused()
    held = replace(pairs, val=()).with_validation(1)
    assert 0 < len(held.val) < len(held.train)
    assert {item.path for item in held.val}.isdisjoint(item.path for item in held.train)
    with pytest.raises(AdaptError, match="this lora has no class names: give class names"):
        wrapped(open_clip).eval().predict(Image.new("RGB", (8, 8)))
    (tmp_path / "a.csv").write_text("path,text,question\na.png,a cat,what?\n")
    with pytest.raises(AdaptError, match=r"a\.csv': no task reads the columns path, question, text together"):
        read_csv(tmp_path / "a.csv")


def test_class_folders_with_notes_beside_their_images_stay_class_folders(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
        (tmp_path / name / "0.txt").write_text("0 0.5 0.5 1 1")
    assert load(tmp_path).class_names == ("cat", "dog")


def test_recipes_of_classes_are_refused_and_shots_are_said_to_mean_nothing(
    tmp_path: Path, pairs: Split, model_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = "\n".join(f"{item.path},{item.text},train" for item in pairs.train)
    (tmp_path / "pairs.csv").write_text(f"path,text,split\n{rows}\n")
    changes = [f"backbone={model_folder}", "data.root=/", "data.shots=1", "train.iterations=1"]
    recipe = read_recipe("lora", changes, str(tmp_path / "pairs.csv"))
    with caplog.at_level("WARNING", "adapt"):
        assert len(read_data(recipe).train) == len(pairs.train)
    assert "data.shots is 1, but pairs of images and texts have no classes" in caplog.text
    with pytest.raises(
        AdaptError,
        match="or use one of the methods bitfit, clip_svd, clippings, finetune, ln_tuning, locality, lora, modx, "
        "mrl, pseudo_word, svlc, vladva, xbt, zero_shot",
    ):
        read_data(read_recipe("coop", changes[:3], str(tmp_path / "pairs.csv")))
