"""`adapt cache`: what it shows, and that clearing leaves nothing."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_cache_is_shown_and_cleared(
    run, photos: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    assert run("zeroshot", "--backbone", model_folder, "--data", photos).exit_code == 0
    first, *folders = run("cache").stdout.splitlines()
    assert first.startswith(f"{tmp_path / 'cache'}: ")
    assert first.endswith(" of 4.0 GiB")
    assert [line.split()[1:3] for line in folders] == [["1", "files"]]
    assert run("cache", "--clear").stdout.splitlines()[-1] == "cleared"
    assert run("cache").stdout.splitlines() == [f"{tmp_path / 'cache'}: 0 B of 4.0 GiB"]
