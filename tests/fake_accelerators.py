"""A machine with accelerators, as `torch.accelerator` tells of it; nothing can be computed on them."""

from __future__ import annotations

import pytest
import torch


def pretend(patch: pytest.MonkeyPatch, count: int, kind: str = "cuda") -> list[int]:
    """Lets torch count `count` accelerators; the list that is returned has the number of the present one at its end."""
    present = [0]
    patch.setattr(torch.accelerator, "is_available", lambda: count > 0)
    patch.setattr(torch.accelerator, "device_count", lambda: count)
    patch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(kind))
    patch.setattr(torch.accelerator, "current_device_index", lambda: present[-1])
    patch.setattr(torch.accelerator, "set_device_index", present.append)
    patch.delenv("LOCAL_RANK", raising=False)
    return present
