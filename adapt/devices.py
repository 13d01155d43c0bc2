"""Which device: what `auto` means, what there is, and what differs from one kind to the next.

`auto` is the accelerator of this process (CUDA, ROCm, XPU or MPS, whichever torch finds), and the CPU where there is
none. Of several accelerators a process has one: the first, that of its number among jobs (`take`), or that of its
number among the processes of one training, as `accelerate launch` and torchrun leave it in `LOCAL_RANK`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from adapt.errors import AdaptError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUTO = "auto"


def chosen(device: str | torch.device = AUTO) -> torch.device:
    """The device that is meant. AdaptError for one that cannot be used here."""
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
            f"device {str(device)!r} cannot be used here: {reason}. Take auto, which is {described(chosen())} here"
        ) from None
    return torch.device(device)


def is_launched() -> bool:
    """Whether this process is one of several that train together, as `accelerate launch` and torchrun start them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def accelerator() -> torch.device | None:
    """The one of this process."""
    import torch

    if not torch.accelerator.is_available():
        return None
    kind = torch.accelerator.current_accelerator()
    assert kind is not None  # as there is one
    return torch.device(kind.type, torch.accelerator.current_device_index())


def count() -> int:
    """How many accelerators there are."""
    import torch

    return torch.accelerator.device_count() if torch.accelerator.is_available() else 0


def take(number: int) -> None:
    """Makes the accelerator of that number this process's own; where there are fewer they are taken in turn."""
    import torch

    if there := count():
        torch.accelerator.set_device_index(number % there)


def described(device: torch.device) -> str:
    """`cpu`, or `cuda:0 (NVIDIA H100 80GB HBM3)`."""
    import torch

    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(device) if name is None else f"{device} ({name(device)})"


def prefers_bf16(device: torch.device) -> bool:
    """Whether it computes in bf16 by hardware of its own, several times as fast as in fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "xpu"


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; to CUDA from pinned memory while the CPU goes on."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def doubled(tensor: Tensor) -> Tensor:
    """`tensor` in double precision: where it is, or on the CPU for devices that have none, such as MPS."""
    return (tensor if tensor.device.type in ("cpu", "cuda", "xpu") else tensor.cpu()).double()


def rng_states(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that a computation on `device` draws from, by the kinds of devices."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(*_numbered(device))
    return states


def set_rng_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Puts them back, as far as they are of this kind of device."""
    import torch

    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type], *_numbered(device))


def _numbered(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is one


@contextmanager
def keeping_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """What is drawn inside for a computation on `device`, from `seed` on where one is given, moves no generator."""
    import torch

    states = rng_states(device)
    if seed is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_states(states, device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch and the solvers of scikit-learn compute on one processor."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(threads)
