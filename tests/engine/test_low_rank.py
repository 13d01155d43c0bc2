"""Low-rank updates of each image: rows shared out among images, and which maps they may be folded into."""

from __future__ import annotations

import pytest
import tiny_llms
import torch
from checks import scaled
from torch import Tensor

from adapt import AdaptError
from adapt.edits import LowRank
from adapt.engine.hooks import updated


def update(site: str, images: int, rank: int = 2) -> LowRank:
    noise = torch.Generator().manual_seed(6)
    down, up = (torch.randn(images, 32, rank, generator=noise) for _ in range(2))
    return LowRank(0, site, down, up, 0.25)


def added(x: Tensor, edit: LowRank) -> Tensor:
    """By each image's own weight; images have as many rows each."""
    weights = edit.scale * edit.down @ edit.up.transpose(1, 2)
    return torch.cat([part @ weight for part, weight in zip(x.chunk(len(weights)), weights)])


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_rows_belong_to_images_in_turn(images: int, merge: bool) -> None:
    """Several images are never folded into weights, of which there are one."""
    block = tiny_llms.vision_llm("llama").tower("decoder").blocks[0]
    module, edit, x = block.projections["q"].module, update("q", images), torch.randn(4, 3, 32)
    frozen = module(x)
    with updated(block, {"q": edit}, merge):
        assert ("forward" in vars(module)) is (merge and images == 1)
        found = module(x)
    assert scaled(found - frozen, added(x, edit)) < 1e-5
    assert torch.equal(module(x), frozen)


def test_rows_that_no_image_can_own_are_refused() -> None:
    block = tiny_llms.vision_llm("llama").tower("decoder").blocks[0]
    with (
        updated(block, {"q": update("q", 2)}, False),
        pytest.raises(AdaptError, match="3 rows cannot be divided"),
    ):
        block.projections["q"].module(torch.randn(3, 2, 32))


def test_a_map_that_something_else_replaces_is_not_folded_into() -> None:
    block = tiny_llms.vision_llm("llama").tower("decoder").blocks[0]
    module, edit, x = block.projections["q"].module, update("q", 1), torch.randn(1, 3, 32)
    module.forward = lambda x: 2 * x
    with updated(block, {"q": edit}, True):
        assert scaled(module(x), 2 * x + added(x, edit)) < 1e-5
    assert scaled(module(x), 2 * x) == 0


def test_a_weight_in_low_precision_takes_an_update_in_full() -> None:
    block = tiny_llms.vision_llm("llama").tower("decoder").blocks[0]
    module, edit = block.projections["q"].module.bfloat16(), update("q", 1)
    exact = module.weight.float() + 0.25 * edit.up[0] @ edit.down[0].T
    with updated(block, {"q": edit}, True):
        assert torch.equal(module(torch.eye(32).bfloat16()).T, exact.bfloat16())


@pytest.mark.parametrize(("kind", "sites"), [("phi3", "q"), ("gpt_neox", "qv")])
def test_a_fused_weight_is_folded_into_in_a_copy(kind: str, sites: str) -> None:
    """The named maps take their updates, the others of the weight none; afterwards the weight is the frozen one."""
    block = tiny_llms.vision_llm(kind).tower("decoder").blocks[0]
    fused, x = block.projections["q"].module, torch.randn(1, 3, 32)
    stored, frozen, edits = fused.weight.detach().clone(), fused(x), {site: update(site, 1) for site in sites}
    with updated(block, edits, True):
        change = fused(x) - frozen
    for site, edit in edits.items():
        assert scaled(change[..., block.projections[site].rows], added(x, edit)) < 1e-5
    assert not change[..., block.projections["k"].rows].any()
    assert torch.equal(fused.weight, stored)
