"""Every command line of README and docs/ is one that `adapt` takes, on a recipe that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pages
import pytest

from adapt.cli import main

RUNS = ("train", "few-shot", "base-to-new", "cross-dataset", "domain-generalisation")
RECIPES = pages.ROOT / "recipes"


def parsed(line: str) -> tuple[str, dict[str, object]]:
    """The command's name and parameters. Raises click's errors for what it does not take."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index(">")] if ">" in words else words
    command: click.Command = main
    while isinstance(command, click.Group):
        known = command.list_commands(click.Context(command))
        at = next((index for index, word in enumerate(words) if word in known), None)
        if at is None:
            if set(words) - {"--help", "--version"}:
                raise click.UsageError(f"no command in {line!r}")
            return "", {}
        found = command.get_command(click.Context(command), words[at])
        assert found is not None
        command, words = found, words[at + 1 :]
    return command.name or "", command.make_context(command.name, words).params


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_command_lines_are_taken(page: Path) -> None:
    wrong = []
    for line in pages.command_lines(page):
        try:
            name, given = parsed(line)
        except click.ClickException as error:
            wrong.append(f"{line}: {error.format_message()}")
            continue
        if name in RUNS and not is_recipe(str(given["recipe"])):
            wrong.append(f"{line}: no recipe {given['recipe']}")
    assert not wrong, "\n".join(wrong)


def is_recipe(name: str) -> bool:
    """Whether it is shipped, the name of a method with recipes, or a file of the reader's."""
    return name.endswith(".yaml") or (RECIPES / f"{name}.yaml").is_file() or (RECIPES / name).is_dir()


@pytest.mark.parametrize("page", [*pages.PAGES, *pages.NOTEBOOKS], ids=pages.name)
def test_commands_in_prose_exist(page: Path) -> None:
    wrong = []
    for line in pages.commands_in_prose(page):
        if re.fullmatch(r"adapt [A-Z ]+", line):
            continue
        try:
            parsed(line)
        except click.MissingParameter:
            continue
        except click.ClickException as error:
            wrong.append(f"{line}: {error.format_message()}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("line", ["adapt tarin x", "adapt train x --ot runs", "adapt train", "adapt predict"])
def test_a_wrong_line_is_seen(line: str) -> None:
    with pytest.raises(click.ClickException):
        parsed(line)
