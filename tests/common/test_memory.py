"""The free memory of a device, and sizes as text."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from adapt.common.devices import free_bytes
from adapt.common.shown import readable_bytes

SIZES = [(5, "5 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (3 * 2**20, "3.0 MiB")]
SIZES += [(2**31, "2.0 GiB"), (200 * 2**30, "200.0 GiB")]


@pytest.mark.parametrize(("size", "text"), SIZES)
def test_bytes_read_well(size: int, text: str) -> None:
    assert readable_bytes(size) == text


def test_free_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the device that is asked about: of a GPU what is free of it, else what the system can hand out."""
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=123))
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (7 + device.index, 100))
    assert free_bytes(torch.device("cpu")) == 123
    assert free_bytes(torch.device("cuda:1")) == 8
