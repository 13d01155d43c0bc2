"""Measurement of the free memory of a device, and sizes as readable text."""

from __future__ import annotations

import sys

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    """Return the free memory of `device` in bytes, with CPU memory for MPS and no limit for the meta device."""
    if device.type == "meta":
        return sys.maxsize
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    if ask is not None:
        return int(ask(device)[0])
    return int(psutil.virtual_memory().available)


def readable_bytes(size: float) -> str:
    """Return a number of bytes as readable text, such as '1.5 KiB' for 1536."""
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
