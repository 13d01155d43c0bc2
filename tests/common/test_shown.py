"""Text of others on one line."""

from __future__ import annotations

import pytest

from adapt.common.shown import brief, shown, unseen


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2J\x9b", "\\x1b[2J\\x9b"),
        ("a\u2028b\u2029", "a\\u2028b\\u2029"),
        ("\udcff.png", "\\udcff.png"),
        ("cat\u202egnp.exe", "cat\\u202egnp.exe"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("Käfer 犬 👩\u200d🔬 \u00a0'\"\\", "Käfer 犬 👩\u200d🔬 \u00a0'\"\\"),
    ],
)
def test_what_breaks_a_line_is_written_out(text: str, line: str) -> None:
    assert shown(text) == line
    assert unseen(text) == (text != line)
    assert not unseen(shown(text))


def test_a_long_or_deep_value_is_cut() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(brief(deep)) < 100
    assert len(brief("x" * 10**6)) < 300
    assert brief(["a.png", 0, "cat"]) == "['a.png', 0, 'cat']"
