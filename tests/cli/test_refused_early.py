"""What a command cannot write to, or start from, is found before it loads a backbone: here one that there is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

NO_BACKBONE = ("--backbone", "no-such-backbone")


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A file, below which nothing can be made."""
    path = tmp_path / "taken"
    path.write_text("mine")
    return path


@pytest.mark.parametrize("command", ["merge", "convert", "export", "soup", "index", "match", "show", "report"])
def test_a_place_that_cannot_be_used(
    run, refused, trained, adapter: Path, photos: Path, taken: Path, tmp_path: Path, command: str
) -> None:
    texts, out = tmp_path / "texts.json", taken / "new"
    texts.write_text('{"sky": ["blue"], "goldfish": ["fins"], "lime tree": ["leaves"]}')
    arguments: dict[str, tuple[Any, ...]] = {
        "merge": ("merge", adapter, out, *NO_BACKBONE),
        "convert": ("convert", adapter, out, "--to", "peft", *NO_BACKBONE),
        "export": ("export", adapter, "--to", "torch", "--out", out, *NO_BACKBONE),
        "soup": ("soup", adapter, trained("coop"), "--out", out, *NO_BACKBONE),
        "index": ("index", photos, "--out", out, *NO_BACKBONE),
        "match": ("data", "match", photos, "--texts", texts, "--out", out, *NO_BACKBONE),
        "show": ("data", "show", photos, "--out", out),
        "report": ("report", trained("coop"), "--out", out),
    }
    refused(run(*arguments[command]), f"cannot write {out}: {taken} is not a folder; choose another place")
    assert taken.read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("train", "coop", "--data", "a", "--data", "b"), "--data"),
        (("train", "coop", "--seed=1", "--set", "train.lr=1", "--set", "train.lr=2", "--seed", "1"), "--seed"),
        (("eval", "runs/a", "--data", "a", "--cache", "--no-cache"), "--cache"),
        (("data", "check", "a", "--out", "b", "--out", "c"), "--out"),
        (
            ("zeroshot", "--data", "a", "--part", "val", "--template", "{}", "--template", "a {}", "--part=all"),
            "--part",
        ),
    ],
)
def test_no_option_of_one_value_wins_over_another_in_silence(run, words: tuple[str, ...], option: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert result.stderr.endswith(f"Error: {option} is given 2 times: give it once\n")
    assert result.stderr.startswith(f"Usage: main {'data check' if 'check' in words else words[0]} ")


def test_what_is_there_already(run, refused, adapter: Path, photos: Path, tmp_path: Path) -> None:
    refused(run("merge", adapter, tmp_path, *NO_BACKBONE), f"{tmp_path} exists already; name a new folder")
    refused(run("convert", adapter, tmp_path, "--to", "peft", *NO_BACKBONE), "exists already; name a new target")
    refused(run("index", photos, "--out", tmp_path, *NO_BACKBONE), "exists already; name a new file")


def test_a_report_is_a_page(run, refused, trained, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("mine")
    refused(run("report", trained("coop"), "--out", tmp_path / "list.csv"), "expected a file name that ends in .html")
    assert (tmp_path / "list.csv").read_text() == "mine"


def test_a_run_directory_that_cannot_be_made(run, refused, recipe: Path, taken: Path) -> None:
    refused(run("train", recipe, "--out", taken / "run", *NO_BACKBONE), "cannot write to", "Not a dir")


@pytest.mark.parametrize(
    ("start", "method", "words"),
    [
        ("nowhere", "coop", "nowhere"),
        ("adapter", "lora", "is an adapter of coop, but the method to train is lora"),
        ("adapter", "coop", "was trained with n_ctx set to 2, but this training has 3"),
    ],
)
def test_an_adapter_that_training_cannot_start_from(
    run, refused, recipe: Path, adapter: Path, start: str, method: str, words: str
) -> None:
    config = "{name: coop, n_ctx: 3}" if method == "coop" else "{name: lora}"
    place = adapter if start == "adapter" else start
    refused(run("train", recipe, "--set", f"start={place}", "--set", f"method={config}", *NO_BACKBONE), words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("train.views=3",), "views needs augmented images"),
        (("train.terms={distill: 1}",), "does not change image features, so that distill has no effect"),
        (
            ("blend=0.5", "calibrate=true", "method={name: linear_probe}"),
            "linear_probe is not trained by gradient steps",
        ),
    ],
)
def test_no_image_is_decoded_before_a_refusal(run, refused, recipe: Path, monkeypatch, changes, words: str) -> None:
    monkeypatch.setattr("adapt.training.run_recipe.decodable", lambda *given: pytest.fail("images were decoded"))
    refused(run("train", recipe, *(word for change in changes for word in ("--set", change))), words)


def test_a_run_that_is_there_is_found_before_the_data_is_read(run, refused, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.json").write_text("{}")
    (tmp_path / "run/recipe.yaml").write_text("")
    where = ("--data", tmp_path / "nowhere", "--out", tmp_path / "run")
    refused(run("train", recipe, *where), "already contains a run")
