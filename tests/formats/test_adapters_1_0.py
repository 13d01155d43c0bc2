"""Adapters of format 1.0, one of each method and more, go on loading and say what they said when they were saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_1_0.make import FOLDER, makers
from adapters_1_0.make import logits as logits_of
from checks import scaled
from safetensors.torch import load_file

import adapt
from adapt import methods
from adapt.formats.header import read_header

FILES = sorted(path for path in FOLDER.glob("*.safetensors") if path.stem != "logits")


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(FOLDER / "logits.safetensors")


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_an_adapter_of_format_1_0_gives_the_logits_that_it_gave(file: Path, expected: dict[str, torch.Tensor]) -> None:
    made: Callable[[], Any] = makers()[file.stem]
    assert read_header(file).format == (1, 0)
    loaded = adapt.load(file, made()[0])
    assert scaled(logits_of(loaded), expected[file.stem]) < 1e-5


def test_every_method_has_one() -> None:
    assert {read_header(file).method for file in FILES} | {
        "anovl",
        "bitfit",
        "clippings",
        "close",
        "ctp_tft",
        "descriptions",
        "detpro",
        "ogen",
        "svlc",
        "modx",
        "uniqa",
        "vl2v",
        "vl2v_sd",
        "xbt",
        "ln_tuning",
        "tda",
        "two_stage",
        "clap",
        "clip_adapter",
        "gda",
        "kgcoop",
        "knn",
        "lda",
        "lp_plus_plus",
        "mma",
        "nearest_mean",
        "prograd",
        "prolip",
        "prompt_src",
        "task_res",
        "tcp",
        "tip_adapter",
        "tpt",
    } == set(methods.names())  # newer ones
    assert {file.stem for file in FILES} <= set(makers())  # the others are of newer methods


def test_what_they_record_is_read() -> None:
    header = read_header(FOLDER / "coop.safetensors")
    assert header.seed == 3
    assert header.metrics == {"adapted": {"accuracy": 0.5}}
