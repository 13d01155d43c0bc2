"""Which pairs of a method and a backbone run: one of two CLIPs for each method, by turns, or all with `--all-pairs`."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

import pytest

CLIPS = ("open_clip", "hf_clip")
LANGUAGE_MODELS = ("llama", "phi3")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all-pairs"):
        return
    config.hook.pytest_deselected(items=[item for item in items if not _is_chosen(item)])
    items[:] = [item for item in items if _is_chosen(item)]


def _is_chosen(item: pytest.Item) -> bool:
    if item.path.parent != Path(__file__).parent or not hasattr(item, "callspec"):
        return True
    params = item.callspec.params
    kind = params.get("backbone", params.get("kind"))
    if "method" not in params or kind is None or kind in LANGUAGE_MODELS:
        return True
    return bool(kind == CLIPS[crc32(params["method"].encode()) % 2])
