"""Torch devices: the meaning of the device name `auto`, the available accelerators, and differences between devices.

`auto` is the accelerator of this process (CUDA, ROCm, XPU or MPS, whichever torch finds), or the CPU if there is none.
A process uses one accelerator, by default the first. `take` chooses another by number. In a training by several
processes, `LOCAL_RANK`, which `accelerate launch` and torchrun set, is the number.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adapt.common.errors import AdaptError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUTO = "auto"
_most = sys.maxsize  # CPU threads that torch may use


def _end_threads() -> None:
    """Compute with one thread in the child of a fork, which has no thread of its parent, but would wait for them."""
    global _most
    if (torch := sys.modules.get("torch")) is not None:
        _most = 1
        torch.set_num_threads(_most)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_threads)


_libc = ctypes.CDLL(None) if sys.platform == "linux" else None
give_back: Callable[[int], int] = getattr(_libc, "malloc_trim", lambda pad: 0)
"""Return freed memory to the system, where the C library can: `give_back(0)`."""
# of glibc: options in bytes, which return whether they are taken, and what the user may have set in their place
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _OWN_WAYS = -3, -1, ("MALLOC_", "GLIBC_TUNABLES")
_mallopt: Callable[[int, int], int] = getattr(_libc, "mallopt", lambda option, value: 0)
_is_set = any(name.startswith(_OWN_WAYS) for name in os.environ)
# glibc keeps freed memory, as activations that it maps anew for each layer cost more than the layers. Before 2.35, the
# first takes 32 MiB at most; the second without the first would map more anew than setting none.
if not _is_set and any(_mallopt(_MMAP_THRESHOLD, most) for most in (2**30, 2**25)):
    _mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def chosen(device: str | torch.device = AUTO) -> torch.device:
    """Return the torch device for a name such as `auto` or `cuda:0`. Raises AdaptError if the device is not usable."""
    import torch

    if "LOCAL_RANK" in os.environ:
        take(int(os.environ["LOCAL_RANK"]))
    if str(device) == AUTO:
        return accelerator() or torch.device("cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise AdaptError(
            f"device {str(device)!r} cannot be used here: {reason}; use auto, which is {described(chosen())} here"
        ) from None
    return torch.device(device)


def is_launched() -> bool:
    """Return whether this process is one of several training processes, started by `accelerate launch` or torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Return whether this process is the main or only process of a run, which prints and writes the results."""
    return os.environ.get("RANK", "0") == "0"


def accelerator() -> torch.device | None:
    """Return the accelerator (such as a GPU) that this process uses, or None if the machine has no accelerator."""
    import torch

    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator()
    assert kind is not None  # because one is available
    return torch.device(kind.type, torch.accelerator.current_device_index())


def count() -> int:
    """Return the number of accelerators (such as GPUs) in this machine."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def take(number: int) -> None:
    """Make this process use the accelerator with index `number` modulo the number of accelerators in this machine."""
    import torch

    if there := count():
        torch.accelerator.set_device_index(number % there)


def described(device: torch.device) -> str:
    """Return a readable name of the device, such as `cpu` or `cuda:0 (NVIDIA H100 80GB HBM3)`."""
    import torch

    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if name is None else f"{device} ({name(device)})"


def prefers_bf16(device: torch.device) -> bool:
    """Return whether the device supports bf16 in hardware, which makes bf16 several times faster than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def free_bytes(device: torch.device) -> int:
    """Return the free memory of `device` in bytes, with CPU memory for MPS and no limit for the meta device."""
    import psutil
    import torch

    if device.type == "meta":
        return sys.maxsize
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    if ask is not None:
        return int(ask(device)[0])
    return int(psutil.virtual_memory().available)


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return `tensor` moved to `device`. Copies from pinned memory to a CUDA device are asynchronous."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def doubled(tensor: Tensor) -> Tensor:
    """Return `tensor` in double precision, moved to the CPU if its device (such as MPS) has no double precision."""
    return (tensor if tensor.device.type in ("cpu", "cuda", "xpu", "meta") else tensor.cpu()).double()


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """Return a dict from device type, such as `cuda`, to the state of torch's random generator (CPU and `device`)."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if device.type not in ("cpu", "meta"):  # on meta nothing is drawn
        states[device.type] = torch.get_device_module(device).get_rng_state(*_numbered(device))
    return states


def set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Restore torch's random generators for the CPU, and for `device` if `states` has a state for its device type."""
    import torch

    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], *_numbered(device))


def _numbered(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # MPS has a single device


@contextmanager
def keeping_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Seed torch's random generators with `seed`, if given, and restore their former states after the `with` block."""
    import torch

    states = rng_states(device)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_states(states, device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads, or one after a fork, in the `with` block, and as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(count, _most))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch and the solvers of scikit-learn to one CPU thread in the `with` block."""
    from threadpoolctl import threadpool_limits

    with threads(1), threadpool_limits(1):
        yield
