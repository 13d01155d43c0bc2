"""Questions about images: the bundled set's scenes against their questions, and what loaders make of questions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sample_transforms import to_tensor

from adapt.cli import main
from adapt.common.errors import AdaptError
from adapt.data import FeatureCache, Item, Split, load, loader, open_image
from adapt.data.check import broken_images
from adapt.data.decoding.files import read_bytes
from adapt.data.emoji import bundled, questions
from adapt.data.emoji.scenes import Scene
from adapt.data.item import items_id

SET = "emoji-questions"
STYLES = ("noto", "twemoji", "fluent-flat", "emojione", "fluent-3d")


@pytest.fixture(scope="module")
def split() -> Split:
    return load(SET)


def _scene(item: Item) -> Scene:
    spec, _, member = item.path.partition(".scenes!")
    return questions.scenes_of(spec)[member]


def _drawings(items: tuple[Item, ...]) -> set[str]:
    return {piece.drawing.path for item in items for piece in _scene(item).pieces}


def _drawn_on(scene: Scene) -> np.ndarray:
    """Which pixels differ from the background: (64, 64)."""
    return np.any(np.asarray(scene.draw()) != scene.background, axis=2)


# ---- the bundled set


def test_every_variant_has_its_size_and_the_same_answers(split: Split) -> None:
    assert [len(part) for part in (split.train, split.val, split.test)] == [2936, 296, 584]
    assert len(split.class_names) == 74
    assert split.class_names[0] == "dog"
    assert split.class_names[-4:] == ("one", "two", "three", "four")
    for style in STYLES:
        variant = load(f"{SET}@{style}")
        assert variant.class_names == split.class_names
        assert {item.domain for item in variant.items()} == {style}
        sizes = [len(part) for part in (variant.train, variant.val, variant.test)]
        assert np.all(np.abs(np.subtract(sizes, (600, 100, 600))) <= 25), sizes


def test_all_seven_questions_are_asked_in_every_part(split: Split) -> None:
    for part in (split.train, split.val, split.test):
        asked = Counter(item.label.question for item in part)
        assert len(asked) == 7
        assert min(asked.values()) > len(part) / 12


def test_a_test_drawing_is_in_no_other_part(split: Split) -> None:
    unseen = _drawings(split.test)
    assert not unseen & _drawings(split.train)
    assert not unseen & _drawings(split.val)
    assert len(unseen) == len(questions.concepts()) == 51
    assert not any(bundled.UNSEEN_STYLE in path for path in unseen | _drawings(split.train))


def test_parts_of_one_style_have_other_scenes_of_the_same_drawings() -> None:
    variant = load(f"{SET}@fluent-3d")
    assert _drawings(variant.train) == _drawings(variant.test)
    assert not {_scene(item) for item in variant.train} & {_scene(item) for item in variant.test}
    assert all("fluent-3d/" in path for path in _drawings(variant.train))


def test_it_is_drawn_the_same_every_time(split: Split) -> None:
    again = questions.scenes_of.__wrapped__(SET)
    assert again == questions.scenes_of(SET)
    assert split.fingerprint == "db6814918baaa8aa"
    item = split.train[0]
    assert item.path == "emoji-questions.scenes!train/00000.png"
    assert read_bytes(item.path) == _scene(item).png()
    picture = open_image(item)
    assert (picture.size, picture.mode) == ((64, 64), "RGB")


def test_a_scene_of_several_has_as_many_drawings_as_the_answer_says(split: Split) -> None:
    counted = [item for item in split.test if item.label.question == questions.COUNT]
    assert {item.answer for item in counted} == set(questions.NUMBERS)
    for item in counted:
        drawn = _drawn_on(_scene(item))
        cells = [drawn[top : top + 32, left : left + 32].any() for top in (0, 32) for left in (0, 32)]
        assert questions.NUMBERS[sum(cells) - 1] == item.answer


def test_sides_are_those_of_the_picture(split: Split) -> None:
    for item in split.test:
        if item.label.question in (questions.LEFT, questions.RIGHT):
            half = slice(0, 32) if item.label.question == questions.LEFT else slice(32, 64)
            scene = _scene(item)
            (piece,) = (each for each in scene.pieces if each.drawing.concept.name == item.answer)
            alone = Scene("one", (piece,), scene.background)
            assert np.array_equal(np.asarray(alone.draw())[:, half], np.asarray(scene.draw())[:, half])
            assert _drawn_on(alone)[:, half].any()


def test_answers_are_those_of_the_table(split: Split) -> None:
    answers = {
        (item.label.question, item.answer) for item in split.train if _scene(item).concepts[0].name == "ladybug"
        and _scene(item).kind == "one"
    }  # fmt: skip
    assert answers == {
        ("what is it?", "ladybug"),
        ("what kind of thing is it?", "animal"),
        ("what colour is it?", "red"),
        ("which animal?", "ladybug"),
    }


def test_which_animal_is_asked_where_there_is_one_kind_of_animal(split: Split) -> None:
    asked = {item.path for item in split.val if item.label.question == questions.ANIMAL}
    for path, scene in {item.path: _scene(item) for item in split.val}.items():
        animals = {concept.name for concept in scene.concepts if concept.group == "animal"}
        assert (path in asked) is (len(animals) == 1)


def test_the_concepts_are_known_to_the_backbone_and_drawn_in_every_style() -> None:
    known, _ = bundled.concept_names()
    assert set(questions.concepts()) <= set(known)
    for style in STYLES:
        assert all(len(drawn) == 1 for drawn in questions.drawings(f"{SET}@{style}", "train"))


def test_scenes_are_read_by_path_as_files_are(split: Split, tmp_path: Path) -> None:
    assert broken_images(split.test) == {}
    assert open_image(split.test[0].path) == open_image(split.test[0])
    with pytest.raises(AdaptError, match=r"'emoji-questions.scenes!test/99999.png' does not exist"):
        open_image("emoji-questions.scenes!test/99999.png")


def test_the_set_is_listed_and_shown(tmp_path: Path) -> None:
    listed = CliRunner().invoke(main, ["data", "list"])
    assert "emoji-questions, " in listed.output
    shown = CliRunner().invoke(main, ["data", "show", f"{SET}@noto", "--images", "2", "--out", f"{tmp_path}/a.png"])
    assert shown.exit_code == 0, shown.output
    with pytest.raises(AdaptError, match="did you mean 'emoji-questions@noto'"):
        load(f"{SET}@nato")


# ---- items with questions


def _asking(items: list[Item], *texts: str) -> list[Item]:
    """The items, each with the next of the questions."""
    return [
        Item.of(path=item.path, label=item.answer, question=texts[number % len(texts)])
        for number, item in enumerate(items)
    ]


@pytest.mark.usefixtures("in_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_images_and_what_is_asked_of_them(items: list[Item], workers: int) -> None:
    asking = _asking(items, "what?", "which?", "how?")
    (images, batch), *_ = loader(asking, to_tensor, 4, train=False, workers=workers)
    assert images.shape == (4, 3, 8, 8)
    assert [item.label.question for item in batch] == ["what?", "which?", "how?", "what?"]
    assert [item.answer for item in batch] == ["a", "b", "a", "b"]
    assert asking[0].task.labels(batch, ("a", "b")).tolist() == [0, 1, 0, 1]


def test_features_are_of_images_and_shared_by_their_questions(split: Split, tmp_path: Path) -> None:
    asked = split.val[:12]
    encoded: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return images.flatten(1)[:, :5].float()

    features = FeatureCache(tmp_path).features(asked, to_tensor, encode, "key")
    assert features.shape == (12, 5)
    assert sum(encoded) == len({item.path for item in asked}) < 12


def test_digests_depend_on_the_question(items: list[Item]) -> None:
    what, which = _asking(items, "what?"), _asking(items, "which?")
    assert len({items_id(items), items_id(what), items_id(which)}) == 3
    splits = [Split("s", ("a", "b"), tuple(part), (), ()) for part in (items, what, which)]
    assert len({each.fingerprint for each in splits}) == 3


def test_questions_for_some_items_only_are_refused(items: list[Item]) -> None:
    mixed = (*_asking(items, "what?")[:5], *items[5:])
    message = r"5.png' is labelled for the task classes .*0.png' for the task questions .* Label all items"
    with pytest.raises(AdaptError, match=message):
        Split("s", ("a", "b"), mixed, (), ())
