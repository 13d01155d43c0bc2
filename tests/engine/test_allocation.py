"""A small file cannot ask for a large model: what building allocates is bounded by what the file holds."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import one_of_each
import pytest
import tiny_llms
import torch
from faults import outcomes

import adapt
from adapt import AdaptError
from adapt.formats import tensor_file
from adapt.models.building import at_most

NAMES = ("goldfish", "red_panda")
LARGE = 3_000_000
# settings that would take gigabytes, by the adapter that they are put into
ASKING: dict[str, dict[str, Any]] = {
    "coop": {"n_ctx": LARGE},
    "cocoop": {"n_ctx": LARGE, "ctx_init": ""},
    "compose_das_coop": {"methods": [{"name": "das", "skip": 0}, {"name": "coop", "n_ctx": LARGE}]},
    "compose_das_lora": {"methods": [{"name": "das", "skip": 0}, {"name": "lora", "rank": LARGE}]},
    "dora_hf": {"rank": LARGE, "options": {"use_dora": True}},
    "dpl": {"n_ctx_text": LARGE, "depth_text": 1, "depth_vision": 1, "ctx_init": ""},
    "ivlp": {"n_ctx_vision": LARGE, "depth_text": 2, "depth_vision": 2},
    "lora": {"rank": LARGE},
    "maple": {"n_ctx": LARGE, "depth": 2, "ctx_init": ""},
    "vlora_llm": {"dim": 16, "depth": LARGE, "rank": 2, "heads": 4, "skip": 2},
}


@pytest.mark.parametrize("name", ASKING)
def test_a_few_kilobytes_do_not_become_gigabytes(name: str, tmp_path: Path) -> None:
    backbone, method, class_names = one_of_each.makers()[name]()
    path = adapt.wrap(backbone, method, class_names).save(tmp_path / "a.safetensors")
    metadata = tensor_file.describe(path).metadata | {"config": json.dumps(ASKING[name])}
    tensor_file.write(tensor_file.read(path), path, metadata)

    def look() -> tuple[str, str]:
        with pytest.raises(AdaptError, match=r"settings ask for far more than the [\d,]+ numbers") as caught:
            adapt.load(path, backbone)
        return "refused", str(caught.value)

    found = outcomes.of(look)
    assert found.kind == "refused", found.message
    assert str(path) in found.message
    assert found.mebibytes < 256


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(LARGE, 512),
        lambda: torch.zeros((LARGE, 512)),
        lambda: torch.randn(LARGE, 512),
        lambda: torch.full((LARGE, 512), 1.0),
        lambda: torch.zeros(1).new_ones(LARGE, 512),
        lambda: torch.nn.Linear(LARGE, 512),
        lambda: [torch.empty(0) for _ in range(LARGE)],
    ],
)
def test_new_tensors_are_counted_before_they_are_allocated(allocate: Callable[[], Any]) -> None:
    with (
        pytest.raises(AdaptError, match=r"^its settings ask for far more than the 100 numbers"),
        at_most(100),
    ):
        allocate()


def test_views_and_what_is_small_go_through() -> None:
    with at_most(100):
        assert torch.zeros(1).expand(LARGE, 512).shape == (LARGE, 512)
        assert torch.nn.Linear(LARGE, 512, device="meta").weight.shape == (512, LARGE)  # takes no memory
        assert torch.nn.Linear(64, 64)(torch.ones(3, 64)).shape == (3, 64)


def test_a_generator_of_its_own_size_is_built() -> None:
    """VLoRA draws far more than any other method; its file holds as much."""
    torch.manual_seed(random.Random(0).randrange(9))
    model = adapt.wrap(tiny_llms.vision_llm("llama"), adapt.methods.VLoRA(dim=64, depth=6, rank=8, heads=4, skip=2))
    held = sum(parameter.numel() for parameter in model.parameters())
    with at_most(held):
        adapt.wrap(tiny_llms.vision_llm("llama"), adapt.methods.VLoRA(dim=64, depth=6, rank=8, heads=4, skip=2))


def test_the_bound_is_four_times_the_files_numbers_and_a_few_millions() -> None:
    bound = 4 * 100 + 2**22
    with at_most(100):
        torch.empty(bound)
    with pytest.raises(AdaptError), at_most(100):
        torch.empty(bound + 1)


@pytest.mark.parametrize(
    "small", [lambda: torch.empty(0), lambda: torch.empty(9), lambda: torch.empty(9, device="meta")]
)
def test_each_tensor_counts_as_five_hundred_and_twelve_numbers_at_least(small: Callable[[], Any]) -> None:
    with at_most(0):
        torch.empty(2**22 - 512)
        small()
    with pytest.raises(AdaptError), at_most(0):
        _ = torch.empty(2**22 - 511), small()


def test_settings_beyond_all_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_llms.vision_llm("llama")
    with pytest.raises(AdaptError, match=r"^the settings of lora ask for more than the .* that are free: give smaller"):
        adapt.wrap(backbone, adapt.methods.LoRA(rank=10**9, towers=("decoder",)))
    monkeypatch.setattr("adapt.models.building.free_bytes", lambda device: 4 * 100_000)
    adapt.wrap(backbone, adapt.methods.LoRA(rank=2, towers=("decoder",)))
    with pytest.raises(AdaptError, match=r"more than the 390\.6 KiB of memory that are free"):
        adapt.wrap(backbone, adapt.methods.LoRA(rank=500, towers=("decoder",)))
