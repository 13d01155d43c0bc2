"""The feature cache on a disk that is full, only read, or fails: training goes on, and it is told of once."""

from __future__ import annotations

import errno
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sample_transforms import Encoder, to_tensor

from adapt.data import FeatureCache, Item
from adapt.data.decoding import cache


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What is logged, as in a process that was told of nothing yet."""
    monkeypatch.setattr(cache, "_told", set())
    caplog.set_level(logging.WARNING, "adapt")
    return caplog


def _fail(monkeypatch: pytest.MonkeyPatch, number: int, *names: str) -> None:
    """These functions of `os` fail as on a disk that takes nothing; permissions would not stop root."""

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for name in names:
        monkeypatch.setattr(os, name, failing)


def test_a_cache_that_cannot_be_written_is_told_once_and_training_goes_on(
    tmp_path: Path, items: list[Item], encode: Encoder, told: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for start in range(2):
        features = FeatureCache(tmp_path / "file").features(items[start:], to_tensor, encode, "k")
        assert features[0, 0] == start
    (message,) = told.messages
    assert re.search(r"file.* cannot be written: Not a directory. .* set ADAPT_CACHE .* computed each time", message)


def test_a_full_disk_leaves_nothing_behind(
    store: FeatureCache, items: list[Item], encode: Encoder, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_SHARD_ROWS", 4)
    _fail(monkeypatch, errno.ENOSPC, "replace")
    assert store.features(items, to_tensor, encode, "k", batch_size=2)[:, 0].tolist() == list(range(10))
    assert encode.images == 10
    (message,) = told.messages
    assert "cannot be written: No space left on device. Free disk space" in message
    assert [path for path in store.directory.rglob("*") if path.is_file()] == []


def test_a_warm_cache_on_a_disk_that_is_only_read_is_used(
    store: FeatureCache, items: list[Item], encode: Encoder, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.features(items, to_tensor, encode, "k")
    _fail(monkeypatch, errno.EROFS, "utime", "replace", "unlink", "mkdir")
    assert torch.equal(store.features(items, to_tensor, encode, "k"), expected)
    assert (encode.images, told.messages) == (10, [])
    store.features(items, to_tensor, encode, "cold")
    assert encode.images == 20
    assert ["Read-only file system" in message for message in told.messages] == [True]


def test_a_damaged_shard_on_a_disk_that_is_only_read_is_not_used(
    store: FeatureCache, items: list[Item], encode: Encoder, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.features(items, to_tensor, encode, "k")
    (shard,) = store.directory.rglob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    _fail(monkeypatch, errno.EROFS, "utime", "replace", "unlink", "mkdir")
    assert torch.equal(store.features(items, to_tensor, encode, "k"), expected)
    assert encode.images == 20


def test_a_disk_that_cannot_be_read_is_told_once(
    store: FeatureCache, items: list[Item], encode: Encoder, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.features(items, to_tensor, encode, "k")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(cache, "safe_open", failing)
    for _ in range(2):
        assert torch.equal(store.features(items, to_tensor, encode, "k"), expected)
    assert ["cannot be read: Input/output error" in message for message in told.messages] == [True]
