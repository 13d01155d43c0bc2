"""Visual tokens by their formula in fp64, from each patch or from their mean, and losses that draw them to words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import tiny_natives
import torch
import torch.nn.functional as F
from checks import perturb, scaled
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.backbones.vision_llm import VisionLLM, on_grid
from adapt.methods import projector
from adapt.methods.base import Context
from adapt.models import generation
from adapt.models.vision_llm import AnswerStep, SpeakingModel

QUESTIONS, ANSWERS = ["what is it ?"] * 4, ["a cat", "two", "the red dog .", "two"]


def model_of(**settings: Any) -> SpeakingModel:
    torch.manual_seed(0)
    made: SpeakingModel = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), methods.Projector(**settings)))
    return made.eval()


def step_of(model: SpeakingModel, images: Tensor) -> AnswerStep:
    return model.step((images[:4], QUESTIONS, ANSWERS))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_patch_becomes_a_token(kind: Any) -> None:
    llm = tiny_llms.causal("LlamaConfig", hidden_size=32, num_hidden_layers=1)().eval()
    seen = VisionLLM(tiny_llms.Unfold(image=16, patch=4).vision(), llm, tiny_llms.tokenizer(), patch_block=-1)
    method: Any = methods.Projector(kind=kind)
    adapt.wrap(seen, method)
    patches = torch.randn(2, 16, 48)
    [edit] = method.edits(seen.tower("decoder"), Context(tokens={"vision": lambda: patches}))
    first, second = method.linear_1, method.linear_2
    expected = patches.double() @ first.weight.double().T + first.bias
    if kind == "mlp":
        bent = expected / 2 * (1 + torch.erf(expected / 2**0.5))
        expected = bent @ second.weight.double().T + second.bias
    else:
        assert second is None
    assert edit.block is None
    assert scaled(edit.values[:, 0], expected) < 1e-6


def test_tokens_of_the_mean_patch(images: Tensor) -> None:
    model = model_of(kind="linear", tokens=3)
    method: Any = model.method
    patches = model.backbone.patches(images[:4])
    expected = (patches.mean(1) @ method.linear_1.weight.T + method.linear_1.bias).view(4, 3, -1)
    assert scaled(step_of(model, images).visual_tokens, expected) < 1e-6


def test_dropout_in_training_alone(images: Tensor) -> None:
    whole = step_of(model_of(), images).visual_tokens
    model = model_of(dropout=0.5)
    torch.testing.assert_close(step_of(model, images).visual_tokens, whole)
    dropped = step_of(model.train(), images).visual_tokens
    kept = dropped != 0
    assert 0.4 < kept.double().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * whole[kept])


def test_contrast_with_words_is_the_mean_of_cosines_with_each_token(images: Tensor) -> None:
    """And the two equal answers are not each other's wrong texts."""
    model = model_of(align="words", align_weight=0.5)
    step = step_of(model, images)
    embeddings, tokenizer = model.backbone.llm.get_input_embeddings(), model.backbone.tokenizer
    scores = torch.zeros(4, 4, dtype=torch.float64)
    for row, visual in enumerate(step.visual_tokens.double().mean(1)):
        for column, answer in enumerate(ANSWERS):
            ids = torch.tensor(tokenizer(answer, add_special_tokens=False)["input_ids"])
            scores[row, column] = F.cosine_similarity(visual[None], embeddings(ids).double()).mean()
    scores /= 0.07
    rows = [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2, 3], [0, 2, 3]]  # of each answer, without its equal
    direct: Any = sum(
        F.cross_entropy(way[i, columns][None], torch.tensor([columns.index(i)]))
        for way in (scores, scores.T)
        for i, columns in enumerate(rows)
    )
    terms = model.method.loss(step)
    assert terms["alignment"].item() == pytest.approx(direct.item() / 8 * 0.5, rel=1e-5)
    assert terms["cross_entropy"].item() == pytest.approx(step.cross_entropy.item())


@pytest.mark.parametrize(("epsilon", "iterations", "temperature"), [(0.01, 3, 0.01), (0.02, 2, 0.05)])
@pytest.mark.parametrize("transport", ["sinkhorn", "softmax"])
def test_assignments_are_predicted_from_each_other(
    transport: Any, epsilon: float, iterations: int, temperature: float, images: Tensor
) -> None:
    ways = {"epsilon": epsilon, "iterations": iterations, "temperature": temperature}
    model = model_of(align="assignment", transport=transport, **ways)
    step, llm, tokenizer = step_of(model, images), model.backbone.llm, model.backbone.tokenizer
    texts = []
    for answer in ANSWERS:
        ids = torch.tensor([tokenizer(answer, add_special_tokens=False)["input_ids"]])
        texts.append(llm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0))
    words = F.normalize(llm.get_input_embeddings().weight.double(), dim=-1)
    means = step.visual_tokens.double().mean(1), torch.stack(texts).double()
    scores = [F.normalize(each, dim=-1) @ words.T for each in means]
    uniform = torch.full((len(words),), -torch.tensor(float(len(words))).log())
    plans = []
    for each in scores:
        plan = (each / epsilon).exp()
        for _ in range(iterations):
            plan = plan / plan.sum(0) / len(words) if transport == "sinkhorn" else plan
            plan = plan / plan.sum(-1, keepdim=True)
        plans.append(plan)
        assign = projector.sinkhorn if transport == "sinkhorn" else projector.sharpened
        assert scaled(assign(each, uniform, epsilon, iterations), plan) < 1e-6
    logs = [(each / temperature).log_softmax(-1) for each in scores]
    direct = -((plans[1] * logs[0]).sum(-1).mean() + (plans[0] * logs[1]).sum(-1).mean()) / 2
    assert model.method.loss(step)["alignment"].item() == pytest.approx(0.1 * direct.item(), rel=1e-4)


def test_the_prior_counts_the_answers_tokens() -> None:
    model = model_of(align="assignment")
    method: Any = model.method
    items = adapt.data.load("emoji-questions").train[:8]
    adapt.fit(model, items, epochs=1, batch_size=4, augment="none", workers=0, progress=False)
    counts = torch.zeros(len(method.log_prior))
    for item in items:
        for token in model.backbone.tokenizer(item.answer, add_special_tokens=False)["input_ids"]:
            counts[token] += 1
    torch.testing.assert_close(method.log_prior, (counts / counts.max() / 0.25).log_softmax(0))
    assert "log_prior" not in method.state_dict()


def test_refusals() -> None:
    with pytest.raises(AdaptError, match="kind is mlp; expected linear where tokens is set"):
        methods.Projector(tokens=3)
    with pytest.raises(AdaptError, match="align_weight needs a loss: set align to words or assignment"):
        methods.Projector(align_weight=0.3)


def test_answers_have_the_tokens_that_training_reads() -> None:
    """Behind the prompt, whose end may join the first of them, as with byte pairs."""
    tokenizer: Any = tiny_natives.tokenizer("llava")
    llm = tiny_llms.causal("LlamaConfig", hidden_size=32, num_hidden_layers=1, vocab_size=427)().eval()
    backbone = VisionLLM(tiny_llms.Unfold(image=16, patch=4).vision(), llm, tokenizer, patch_block=-1)
    ids, mask = backbone.text_tokens(["banana", "two bananas"])
    for text, row, own in zip(["banana", "two bananas"], ids, mask, strict=True):
        targets = generation.rows(backbone, ["what is it?"], [text], 0, left=False).targets[0]
        assert row[own].tolist() == targets[targets >= 0][:-1].tolist()  # without the end


def two_eyes(first: tiny_llms.Unfold, second: tiny_llms.Unfold) -> VisionLLM:
    llm = tiny_llms.causal("LlamaConfig", hidden_size=32, num_hidden_layers=1)().eval()
    return VisionLLM(first.vision(), llm, tiny_llms.tokenizer(), second=second.vision(), patch_block=-1)


def test_the_patches_of_two_towers_stand_side_by_side() -> None:
    image = torch.randn(2, 3, 16, 16)
    own = tiny_llms.Unfold(16, 4)
    seen = two_eyes(own, tiny_llms.Unfold(16, 4))
    alone = F.unfold(image, 4, stride=4).transpose(1, 2)
    assert torch.equal(seen.patches(image), torch.cat([alone, alone], dim=-1))
    assert (seen.widths, seen.patch_shape()) == ([48, 48], (16, 96))
    assert seen.reading()["second"] == tiny_llms.Unfold(16, 4).vision().reading()
    # 64 pixels in patches of 8 are 64 patches, four of which meet one of the first tower's
    rows = torch.linspace(-1, 1, 16)[:, None].expand(3, 16, 16)[None]
    both = two_eyes(own, tiny_llms.Unfold(64, 8)).patches(rows)
    assert both.shape == (1, 16, 48 + 192)
    shades = both[..., 48:].mean(-1).view(4, 4)
    assert torch.allclose(shades, rows.view(3, 4, 4, 4, 4).mean((0, 2, 4)), atol=0.06)  # less at the edges
    with pytest.raises(AdaptError, match="two vision towers give 12 and 9 patches; expected those of squares"):
        on_grid(torch.zeros(1, 9, 4), 12)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_tokens_of_two_towers(kind: Any) -> None:
    patches = torch.randn(2, 16, 48 + 192)
    for mix in ("beside", "interleave", "add"):
        method: Any = methods.Projector(kind=kind, mix=mix, share=0.25)
        adapt.wrap(two_eyes(tiny_llms.Unfold(16, 4), tiny_llms.Unfold(64, 8)), method)
        [edit] = method.edits(None, Context(tokens={"vision": lambda: patches}))

        def mapped(name: str, features: Tensor, method: Any = method) -> Tensor:
            tokens: Tensor = method.get_submodule(f"{name}_1")(features)
            return tokens if kind == "linear" else method.get_submodule(f"{name}_2")(F.gelu(tokens))

        if mix == "beside":
            expected = mapped("linear", patches)
        else:
            first, second = mapped("linear", patches[..., :48]), mapped("second", patches[..., 48:])
            expected = 0.75 * first + 0.25 * second
            if mix == "interleave":
                expected = torch.empty(2, 32, 32)
                expected[:, ::2], expected[:, 1::2] = first, second
        assert scaled(edit.values[:, 0], expected) < 1e-6


def test_two_towers_are_named_and_their_adapter_loads(tmp_path: Path) -> None:
    name = "mini-clip&mini-clip-half+mini-lm"
    model = adapt.wrap(adapt.load_backbone(name, "cpu"), methods.Projector(mix="interleave"))
    patches = model.backbone.patches(torch.randn(1, 3, 64, 64))
    half = adapt.load_backbone("mini-clip&mini-clip+mini-lm", "cpu")
    assert patches.shape == (1, 64, 192 + 96)
    assert half.patch_shape() == (64, 384)
    model.save(tmp_path / "adapter.safetensors")
    again = adapt.load(tmp_path / "adapter.safetensors", device="cpu")
    assert again.backbone.name == name
    asked = torch.randn(2, 3, 64, 64), ["what is it?"] * 2
    assert torch.equal(model.eval()(*asked), again.eval()(*asked))
    with pytest.raises(AdaptError, match="but mini-clip\\+mini-lm has one vision tower: name two, as FIRST&SECOND"):
        adapt.wrap(adapt.load_backbone("mini-clip+mini-lm", "cpu"), methods.Projector(mix="add"))
    with pytest.raises(AdaptError, match="mix is add; expected beside where tokens is set"):
        methods.Projector(kind="linear", tokens=4, mix="add")
    with pytest.raises(AdaptError, match="expected two encoders of the same pixels around the &"):
        adapt.load_backbone("mini-clip&mini-vilt+mini-lm", "cpu")
