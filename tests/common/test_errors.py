"""Hints for names that there are not."""

from __future__ import annotations

from adapt.common.errors import nearest

FEW = [f"name{number:02}" for number in range(12)]
MANY = [*FEW, "other"]


def test_few_names_are_all_shown() -> None:
    assert nearest("zebra", FEW, "`adapt --help`") == f"Valid: {', '.join(FEW)}"
    assert nearest("nome03", FEW).startswith("did you mean 'name03'? Valid: name00, ")


def test_of_many_names_the_near_ones_or_the_command_that_lists_them() -> None:
    assert nearest("othr", MANY) == "did you mean 'other'? (one of 13)"
    assert nearest("name3", MANY).startswith("did you mean 'name")
    assert "Also near: name" in nearest("name3", MANY)
    assert (
        nearest("zebra", MANY, "`adapt --help`") == "none of the 13 valid names is similar: `adapt --help` lists them"
    )
    assert nearest("zebra", MANY) == "none of the 13 valid names is similar"
