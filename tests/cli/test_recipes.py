"""`adapt recipes`: the list, and what it shows of one."""

from __future__ import annotations

import json

import yaml

from adapt.recipe import read_recipe
from adapt.recipe.file import read_file
from adapt.recipe.shipped import shipped


def test_the_list(run) -> None:
    lines = run("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == list(shipped())
    assert all(len(line.split()) > 3 for line in lines[:-2])
    assert lines[-1] == "To show one: adapt recipes NAME --data DATA"
    entries = json.loads(run("recipes", "--json").stdout)
    assert {each["name"]: each["title"] for each in entries} == {
        name: read_file(path, name).title for name, path in shipped().items()
    }


def test_one_with_what_differs_by_data(run) -> None:
    text = run("recipes", "coop").stdout
    file = read_file(shipped()["coop/few_shot"], "coop/few_shot")
    assert text.startswith(f"coop/few_shot\n\n{file.comment.splitlines()[0]}\n")
    assert "On imagenet, in place of these:\n  train:\n    epochs: 50\n" in text
    assert "On data of your own, in place of these:\n" in text
    assert "Command: adapt train coop --data DATA --out runs/coop\n" in text
    assert text.endswith("Other recipes of this method: coop/base_to_new\n")


def test_one_on_a_data_set(run) -> None:
    text = run("recipes", "cocoop", "--data", "eurosat").stdout
    settings = text.partition("Settings on eurosat:\n")[2].partition("\n\n")[0]
    assert yaml.safe_load(settings) == read_recipe("cocoop", data="eurosat").model_dump(mode="json")
    assert "Expected on eurosat: 87.49 / 60.04 / 71.21 % base, new, harmonic mean" in text
    assert "Command: adapt train cocoop --data eurosat --out runs/cocoop\n" in text


def test_as_json(run) -> None:
    found = json.loads(run("recipes", "maple/cross_dataset", "--json").stdout)
    assert found["command"] == "adapt cross-dataset maple --out runs/maple"
    assert (found["settings"]["data"]["source"], found["on"]["emoji"]["backbone"]) == ("imagenet", "mini-clip")
    assert found["expected"]["imagenet"].startswith("ImageNet 70.72 %; ")
    on_emoji = json.loads(run("recipes", "maple/cross_dataset", "--data", "emoji", "--json").stdout)
    assert (on_emoji["settings"]["backbone"], on_emoji["on"], on_emoji["expected"]) == ("mini-clip", {}, None)


def test_a_method_with_several_and_none_first(run) -> None:
    lines = run("recipes", "compose").stdout.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["compose/das_lora", "compose/mblip", "compose/vlora_lora"]


def test_a_file_of_ones_own(run, recipe) -> None:
    text = run("recipes", recipe).stdout
    assert f"Command: adapt train {recipe} --out runs/tiny\n" in text


def test_an_unknown_one(run, refused) -> None:
    refused(run("recipes", "cop"), "nor a recipe called 'cop'", "did you mean 'coop'?")
