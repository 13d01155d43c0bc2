"""The bundled set: its variants, on a tiny archive and on the real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.common.errors import AdaptError
from adapt.data import Split, load, open_image
from adapt.data.decoding.files import read_bytes
from adapt.data.emoji import bundled


def _members(split: Split) -> list[list[str]]:
    return [[item.path.split("!")[1] for item in part] for part in (split.train, split.val, split.test)]


def test_emoji_is_groups_in_the_seen_styles(emoji_zip: Path) -> None:
    split = load("emoji")
    assert split.class_names == ("animal mammal", "food fruit")
    assert _members(split) == [
        ["noto/0.png", "twemoji/0.png", "noto/3.png", "twemoji/3.png"],
        ["noto/1.png", "twemoji/1.png"],
        ["noto/2.png", "twemoji/2.png", "noto/4.png", "twemoji/4.png"],
    ]
    assert [item.answer for item in split.train[1:3]] == ["animal mammal", "food fruit"]
    assert [item.domain for item in split.train[1:3]] == ["twemoji", "noto"]


def test_one_style_holds_all_three_parts(emoji_zip: Path) -> None:
    expected = [["fluent-3d/0.png", "fluent-3d/3.png"], ["fluent-3d/1.png"], ["fluent-3d/2.png", "fluent-3d/4.png"]]
    assert _members(load("emoji@fluent-3d")) == expected


def test_concepts_put_the_held_out_ones_last(emoji_zip: Path) -> None:
    split = load("emoji-concepts")
    assert split.class_names == ("anger symbol", "cow", "dog face", "pear", "apple", "cat")
    assert bundled.concept_names() == (split.class_names[:4], split.class_names[4:])
    assert (len(split.train), len(split.val), len(split.test)) == (12, 0, 6)
    assert {item.domain for item in split.train} == {"noto", "twemoji"}
    assert {item.domain for item in split.test} == {"fluent-3d"}
    assert split.test[0].answer == "dog face"


def test_members_are_read_and_decoded(emoji_zip: Path) -> None:
    item = load("emoji@noto").train[1]
    assert item.path == f"{emoji_zip}!noto/3.png"
    assert read_bytes(item.path).startswith(b"\x89PNG")
    assert open_image(item).getpixel((0, 0)) == (3, 0, 0)


def test_an_unknown_style_is_refused(emoji_zip: Path) -> None:
    with pytest.raises(AdaptError, match=r"'emoji@nato'; did you mean 'emoji@noto'\? Also near: "):
        load("emoji@nato")


def test_a_missing_archive_is_named(emoji_zip: Path) -> None:
    emoji_zip.unlink()
    with pytest.raises(AdaptError, match=r"emoji.zip' is missing: install adapt again"):
        load("emoji")


@pytest.mark.skipif(not bundled.ARCHIVE.is_file(), reason="the bundled set is not built yet")
def test_the_real_set_gives_sixteen_shots_of_every_group_and_has_new_concepts() -> None:
    few = load("emoji").few_shot(16, seed=1)
    assert len(few.train) == 16 * len(few.class_names)
    assert {item.answer for item in few.test} == set(few.class_names)
    assert load("emoji@fluent-3d").class_names == few.class_names
    concepts = load("emoji-concepts")
    base, new = bundled.concept_names()
    assert concepts.class_names == base + new
    assert new
    assert all(item.domain == bundled.UNSEEN_STYLE for item in concepts.test)
    for item in (concepts.train[0], concepts.test[-1]):
        assert open_image(item).size == (64, 64)


def test_no_test_drawing_is_a_training_drawing() -> None:
    split = load("emoji")
    trained = {read_bytes(item.path) for item in split.train}
    assert not [item.path for item in split.test if read_bytes(item.path) in trained]
    assert len(split.test) == 694
