"""Compiled models: each computes its own edits, whatever was compiled on the backbone before."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import tiny_llms
import torch
from cases import build
from checks import assert_untouched, flag, perturb, scaled, snapshot
from selection import by_turns
from torch import Tensor

import adapt
from adapt import Backbone
from adapt.common.untraced import untraced


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.full
def test_functions_that_are_not_traced_run_as_they_are() -> None:
    """More of them than torch's compiler takes as versions of one function."""
    traced: list[bool] = []

    def named(number: int) -> Callable[[Tensor], Tensor]:
        @untraced
        def add(x: Tensor) -> Tensor:
            traced.append(torch.compiler.is_compiling())
            return x + number

        return add

    added = [named(number) for number in range(4)]

    def total(x: Tensor) -> Tensor:
        for each in added:
            x = each(x)
        return x

    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        assert float(torch.compile(total, backend="eager")(torch.zeros(()))) == sum(range(4))
    assert traced == [False] * 4


@pytest.mark.full
@by_turns(("method", "fast"), [("maple", None), ("coop", None), ("lora", None), ("lora", False), ("das", False)])
@pytest.mark.parametrize("backbone", ["open_clip", "hf_clip"], indirect=True)
def test_a_second_compiled_model_computes_its_own_edits(
    method: str, fast: bool | None, backbone: Backbone, images: Tensor
) -> None:
    models = [build(method, backbone, fast=fast).eval() for _ in range(2)]
    models.append(build("zero_shot", backbone, fast=fast))
    with torch.no_grad():
        for parameter in models[1].method.parameters():
            parameter.mul_(1.5)
        expected = [model(images) for model in models]
        compiled = [torch.compile(model, backend="eager") for model in models]
        for one, logits in [*zip(compiled, expected, strict=True)][::-1]:
            assert scaled(one(images), logits) < 1e-5


@pytest.mark.full
def test_an_unedited_tower_is_compiled(open_clip: Backbone, images: Tensor) -> None:
    from torch._dynamo.testing import CompileCounter  # torch's compiler takes a second to import

    counter = CompileCounter()
    model = adapt.wrap(open_clip, adapt.methods.CoOp(n_ctx=4), ("goldfish", "toy")).eval()
    with torch.no_grad():
        expected = model(images)
        assert scaled(torch.compile(model, backend=counter)(images), expected) < 1e-5
    assert counter.op_count > 20


@pytest.mark.full
def test_low_rank_updates_are_compiled_with_their_tower(open_clip: Backbone, images: Tensor) -> None:
    """And an error inside leaves the backbone as it was."""
    flag(open_clip.model)
    before = snapshot(open_clip.model)
    from torch._dynamo.testing import CompileCounter  # torch's compiler takes a second to import

    counter = CompileCounter()
    model = perturb(adapt.wrap(open_clip, adapt.methods.LoRA(towers=("vision",)), ("goldfish", "toy"))).eval()
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, backend=counter)
        assert scaled(compiled(images), expected) < 1e-5
        assert counter.op_count > 20
        with pytest.raises(RuntimeError, match="channels"):
            compiled(images[:, :2])
        assert_untouched(open_clip.model, before)
        assert torch.equal(model(images), expected)


@pytest.mark.full
def test_a_decoder_with_updates_by_images_is_compiled() -> None:
    images, questions = torch.randn(2, 3, 32, 32), ["what is it ?", "how many ?"]
    vlora = adapt.methods.VLoRA(dim=16, depth=1, rank=2, heads=2)
    model = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), vlora)).eval()
    with torch.no_grad():
        expected = model(images, questions)
        assert scaled(torch.compile(model, backend="eager")(images, questions), expected) < 1e-5
