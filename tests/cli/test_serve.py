"""`adapt serve`: what is refused before a model is loaded, and a server from start to end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import adapt
from adapt.cli import serve as command
from adapt.serving.web import Token


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    names = ["food fruit", "animal cat"]
    return adapt.wrap(adapt.load_backbone("mini-clip"), adapt.methods.ZeroShot(), names).save(
        tmp_path / "a.safetensors"
    )


def test_without_its_libraries_it_names_the_extra(
    run: Callable[..., Any], refused: Callable[..., None], adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_OF_A_SERVER", ("fastapi", "no_such_library"))
    refused(run("serve", str(adapter)), 'adapt serve needs no_such_library: pip install "adapt-vlm[serve]"')


def test_a_port_that_is_taken(run: Callable[..., Any], refused: Callable[..., None], adapter: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run("serve", str(adapter), "--port", str(port)), f"cannot listen at 127.0.0.1:{port} (")


def test_what_cannot_be_served(run: Callable[..., Any], refused: Callable[..., None], adapter: Path) -> None:
    other = adapter.with_name("b.safetensors")
    for arguments, words in (
        ([str(other)], "b.safetensors"),
        ([str(adapter), str(adapter)], "the name a is given twice: give one of the two another name, as NAME=PATH"),
        ([str(adapter), "--folder", str(other)], "is not a folder"),
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


@pytest.mark.full
def test_a_server_answers_until_it_is_told_to_end(adapter: Path) -> None:
    line = [sys.executable, "-m", "adapt", "serve", f"fruit={adapter}", "--port", "0"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"fruit at (http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", process.stdout.readline())
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}/adapters", timeout=60) as answer:
            assert [each["name"] for each in json.load(answer)] == ["fruit"]
        assert process.stderr is not None
        adapter.touch()
        process.send_signal(signal.SIGHUP)
        assert process.stderr.readline() == "reloaded: fruit\n"
        with urllib.request.urlopen(f"{found[1]}/adapters", timeout=60) as answer:
            assert [each["name"] for each in json.load(answer)] == ["fruit"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130, -signal.SIGINT)
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read ("),
        (b"\xff" * 32, "cannot be read ("),
        (b"short", "line 1 has a token of 5 characters; expected at least 16"),
        (b"", "is empty; expected a token"),
        (b"two words of a token", "line 1: expected NAME TOKEN, and perhaps a number of requests"),
        (b"two-lines-of-a-token\nanother", "line 1: expected NAME TOKEN, and perhaps a number"),
        (b"ann 0123456789abcdef 0", "line 1: expected NAME TOKEN, and perhaps a number of requests from 1 on"),
        (b"ann 0123456789abcdef\nbob 0123456789abcdef", "line 2: the name or the token is there twice"),
    ],
)
def test_tokens_that_are_refused(
    run: Callable[..., Any],
    refused: Callable[..., None],
    adapter: Path,
    tmp_path: Path,
    content: bytes | None,
    words: str,
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    refused(run("serve", str(adapter), "--port", "0", "--token-file", str(path)), words)


def test_several_tokens_with_limits_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("ann  0123456789abcdef  4\n\nbob\tfedcba9876543210\n")
    assert command._tokens(tmp_path / "tokens") == [
        Token("0123456789abcdef", "ann", 4),
        Token("fedcba9876543210", "bob"),
    ]
    (tmp_path / "tokens").write_text("0123456789abcdef\n")
    assert command._tokens(tmp_path / "tokens") == [Token("0123456789abcdef")]


@pytest.mark.full
def test_a_token_an_address_of_ipv6_and_an_end_while_requests_are_half_sent(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("sesame-0123456789\n")
    line = [sys.executable, "-m", "adapt", "serve", f"fruit={adapter}", "--port", "0", "--host", "::1"]
    line += ["--token-file", str(tmp_path / "token")]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        found = re.fullmatch(r"fruit at (http://\[::1\]:(\d+)) \(Ctrl-C ends it\)\n", process.stdout.readline())
        assert found is not None
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{found[1]}/adapters", timeout=60)
        known = urllib.request.Request(f"{found[1]}/adapters", headers={"Authorization": "Bearer sesame-0123456789"})
        with urllib.request.urlopen(known, timeout=60) as answer:
            assert [each["name"] for each in json.load(answer)] == ["fruit"]
        slow = [socket.create_connection(("::1", int(found[2]))) for _ in range(4)]
        head = b"POST /predict HTTP/1.1\r\nHost: [::1]\r\nAuthorization: Bearer sesame-0123456789\r\n"
        for each, more in zip(slow, (b"", b"", *[b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n1"] * 2)):
            each.sendall(head + more)
        with urllib.request.urlopen(f"{found[1]}/healthz", timeout=60):
            process.send_signal(signal.SIGTERM)  # the half-sent ones have arrived
        assert process.wait(60) == -signal.SIGTERM
        for each in slow:
            each.close()
        assert process.stderr is not None
        assert len(process.stderr.read().splitlines()) <= 1  # how many requests were not waited for


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "adapt.service"])
def test_what_the_docs_deploy_gives_options_that_there_are(run: Callable[..., Any], name: str) -> None:
    text = (Path(__file__).parents[2] / "docs/deploying" / name).read_text(encoding="utf-8")
    known = run("serve", "--help").output
    given = re.findall(r"(?:adapt serve|ENTRYPOINT|CMD \[\"/adapters).*", text)
    assert all(option in known for line in given for option in re.findall(r"--[a-z-]+", line))
    if name == "compose.yaml":
        (service,) = yaml.safe_load(text)["services"].values()
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert (Path(__file__).parents[2] / service["build"]["dockerfile"]).is_file()
