"""Wrong twins of captions: one whole word of a kind, replaced by another that is not there."""

from __future__ import annotations

import pytest
import torch

from adapt import AdaptError, methods

WORDS = {"side": ["left", "right"], "colour": ["red", "blue", "green"]}


def twins(text: str, count: int = 60) -> set[str | None]:
    method = methods.SVLC(words=WORDS)
    torch.manual_seed(0)
    return {method.twin(text) for _ in range(count)}


def test_one_word_becomes_another_of_its_kind() -> None:
    assert twins("a cat left of a dog") == {"a cat right of a dog"}
    assert twins("a red cat") == {"a blue cat", "a green cat"}
    assert twins("a red cat left of a dog") == {
        "a blue cat left of a dog", "a green cat left of a dog", "a red cat right of a dog",
    }  # fmt: skip


def test_a_word_that_is_there_already_does_not_come_in_its_place() -> None:
    assert twins("a red cat and a blue dog") == {"a green cat and a blue dog", "a red cat and a green dog"}


def test_parts_of_words_stay_and_a_caption_without_such_words_has_no_twin() -> None:
    assert twins("a covered hundred") == {None}
    assert twins("a Red cat, covered") == {"a blue cat, covered", "a green cat, covered"}


def test_all_of_a_kind_in_one_caption_leaves_a_wrong_one_still() -> None:
    assert twins("left and right") == {"right and right", "left and left"}


@pytest.mark.parametrize("words", [{"side": ["left"]}, {"side": ["left", "left"]}, {"side": ["left", "to the right"]}])
def test_kinds_need_several_single_words(words: dict[str, list[str]]) -> None:
    with pytest.raises(AdaptError, match="words of the kind 'side'"):
        methods.SVLC(words=words)


def test_capitals_are_no_other_words() -> None:
    method = methods.SVLC(words={"side": ["Left", "RIGHT"]})
    assert {method.twin("a cat Left of a dog") for _ in range(20)} == {"a cat right of a dog"}
    with pytest.raises(AdaptError, match="words of the kind 'side'"):
        methods.SVLC(words={"side": ["left", "Left"]})
