"""`adapt serve`: what is refused before a model is loaded, and a server from start to end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import adapt
from adapt.cli import serve as command


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    names = ["food fruit", "animal cat"]
    return adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), names).save(
        tmp_path / "a.safetensors"
    )


def test_without_its_libraries_it_names_the_extra(
    run: Callable[..., Any], refused: Callable[..., None], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_LIBRARIES", ("fastapi", "no_such_library"))
    refused(run("serve", str(adapter)), 'adapt serve needs no_such_library: pip install "adapt-vlm[serve]"')


def test_a_port_that_is_taken(run: Callable[..., Any], refused: Callable[..., None], adapter: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", str(adapter), "--port", str(port)), f"cannot listen at 127.0.0.1:{port}: ")


def test_what_cannot_be_served(run: Callable[..., Any], refused: Callable[..., None], adapter: Path) -> None:
    other = adapter.with_name("b.safetensors")
    for arguments, words in (
        ([str(other)], "b.safetensors"),
        ([str(adapter), str(adapter)], "two adapters are called a: give one of them another name, as NAME=PATH"),
        ([str(adapter), "--folder", str(other)], "is no folder"),
    ):
        refused(run("serve", *arguments, "--port", "0"), words)


def test_a_server_spins_for_longer_than_a_training(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, spins in (("serve", "3000"), ("eval", "1000")):
        monkeypatch.setenv("GOMP_SPINCOUNT", "")
        monkeypatch.delenv("GOMP_SPINCOUNT")
        assert run(name, str(tmp_path / "none.safetensors"), "--port", "0").exit_code == 2
        assert os.environ["GOMP_SPINCOUNT"] == spins


def test_a_server_answers_until_it_is_told_to_end(adapter: Path) -> None:
    line = [sys.executable, "-m", "adapt", "serve", f"fruit={adapter}", "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"fruit at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/adapters", timeout=60) as answer:
            assert [each["name"] for each in json.load(answer)] == ["fruit"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130, -signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == ""
