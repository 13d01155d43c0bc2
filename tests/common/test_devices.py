"""Which device is meant by auto, and what is told of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import stand_in_device
import tiny_backbones
import torch
from fake_accelerators import pretend

import adapt
from adapt import AdaptError
from adapt.common import devices
from adapt.recipe import build_recipe
from adapt.recipe.settings import TrainSettings
from adapt.training.loop import precision_on
from adapt.training.run import environment


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_auto_is_the_accelerator_and_else_the_cpu(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    assert (devices.chosen(), devices.count(), devices.accelerator()) == (torch.device("cpu"), 0, None)
    pretend(monkeypatch, 1, kind)
    assert devices.chosen("auto") == devices.accelerator() == torch.device(kind, 0)
    assert devices.chosen("cpu") == torch.device("cpu")


def test_a_process_has_one_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    present = pretend(monkeypatch, 2)
    found = []
    for number in range(5):  # more jobs than accelerators
        devices.take(number)
        found.append(devices.chosen().index)
    assert found == present[1:] == [0, 1, 0, 1, 0]
    monkeypatch.setenv("LOCAL_RANK", "3")  # of the processes that train one model
    assert devices.chosen() == torch.device("cuda", 1)
    present = pretend(monkeypatch, 0)
    devices.take(3)
    assert present == [0]


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, 0)
    with pytest.raises(AdaptError, match=r"device 'gpu' cannot be used here: .*; use auto, which is cpu here"):
        adapt.load_backbone("mini-clip", "gpu")
    with pytest.raises(AdaptError, match=r"device 'cuda:99' cannot be used here: .+; use auto, which is cpu here"):
        adapt.load_backbone("mini-clip", device="cuda:99")


def test_a_backbone_goes_where_it_is_to(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = tiny_backbones.backbone("open_clip")
    with stand_in_device.attached() as device:
        pretend(monkeypatch, 1, "lazy")
        assert adapt.load_backbone(str(model_folder)).device == device
        assert adapt.load_backbone(str(model_folder), "cpu").device == torch.device("cpu")
        model = adapt.wrap(held, adapt.methods.ZeroShot(), ["cat", "dog"])
        assert model.backbone.device == torch.device("cpu")  # a model that the caller holds stays where it is


def test_a_device_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.described(torch.device("cpu")) == "cpu"
    assert environment()["accelerator"] is None
    pretend(monkeypatch, 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Fast {device.index}")
    assert devices.described(torch.device("cuda:1")) == "cuda:1 (Fast 1)"
    devices.take(1)
    assert environment()["accelerator"] == "cuda:1 (Fast 1)"
    assert devices.described(torch.device("mps:0")) == "mps:0"


def test_random_states_are_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS, of which there is one, takes no number."""
    told: list[tuple[object, ...]] = []
    state = torch.tensor([7], dtype=torch.uint8)
    module = SimpleNamespace(
        get_rng_state=lambda *device: told.append(device) or state,
        set_rng_state=lambda given, *device: told.append((int(given), *device)),
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    for device in (torch.device("cuda:1"), torch.device("mps:0")):
        states = devices.rng_states(device)
        assert states.keys() == {"cpu", device.type}
        devices.set_rng_states(states, device)
        devices.set_rng_states({"cpu": states["cpu"], "xpu": state}, device)  # of another kind of device
    assert told == [(torch.device("cuda:1"),), (7, torch.device("cuda:1")), (), (7,)]


def test_drawing_inside_leaves_the_generators() -> None:
    before = torch.get_rng_state()
    with devices.keeping_rng(torch.device("cpu"), 3):
        first = torch.rand(2)
    with devices.keeping_rng(torch.device("cpu"), 3):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("asked", "device", "through_towers", "expected"),
    [
        ("auto", "cpu", True, "fp32"),
        ("auto", "cuda:0", True, "bf16"),
        ("auto", "cuda:0", False, "fp32"),  # a small head on known features: nothing to gain
        ("auto", "mps:0", True, "fp32"),
        ("fp32", "cuda:0", True, "fp32"),
        ("bf16", "cpu", True, "bf16"),
    ],
)
def test_bf16_where_it_pays(
    asked: str, device: str, through_towers: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    assert precision_on(torch.device(device), asked, through_towers) == expected


def test_settings_are_automatic_by_default() -> None:
    recipe = build_recipe({"method": {"name": "zero_shot"}, "data": {"source": "emoji"}}, "here")
    assert recipe.device == adapt.Classifier().device == "auto"
    assert TrainSettings(epochs=1).precision == "auto"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_child_of_a_fork_computes() -> None:
    """Without a word to torch, it waits for ever for the threads of its parent."""
    numbers = torch.arange(1 << 20, dtype=torch.float64)
    with devices.threads(2):
        assert torch.get_num_threads() == 2
        expected = (numbers * 2).sum()  # starts the threads
        child = os.fork()
        if child == 0:
            with devices.threads(2):
                os._exit(int((numbers * 2).sum() != expected) or torch.get_num_threads() - 1)
    ends, ended = time.monotonic() + 20, 0
    while not ended and time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.02)
    if not ended:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (ended, status) == (child, 0)


_OLD_LIBRARY = """
import ctypes, sys
from types import SimpleNamespace
taken = {}
most = int(sys.argv[1])  # bytes that the threshold of mmap may be
def mallopt(option, value):
    return int(option != -3 or value <= most) and not taken.update({option: value})
ctypes.CDLL = lambda name: SimpleNamespace(mallopt=mallopt)
from adapt.common import devices
print(taken, devices._most == sys.maxsize)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="is about glibc")
@pytest.mark.parametrize(
    ("most", "taken"),
    [(2**31, {-3: 2**30, -1: 2**31 - 1}), (2**25, {-3: 2**25, -1: 2**31 - 1}), (2**19, {})],
)
def test_freed_memory_is_kept_as_far_as_the_library_takes_it(most: int, taken: dict[int, int]) -> None:
    """Before 2.35, glibc takes a threshold of 32 MiB at most. How many threads torch may use stays as it is."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", _OLD_LIBRARY, str(most)]
    told = subprocess.run(command, env=free, capture_output=True, text=True, check=True)
    assert told.stdout == f"{taken} True\n"
