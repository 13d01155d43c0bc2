"""VLoRA's generators: all letters together compute what each would by itself, by torch's own layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_llms
import torch
from checks import perturb
from safetensors.torch import save_file
from torch import Tensor, nn

import adapt
from adapt.common.errors import AdaptError
from adapt.formats.checkpoints import import_published
from adapt.methods import VLoRA
from adapt.methods.vlora import Generators
from adapt.models.vision_llm import SpeakingModel

GENERATORS, WIDTH, HEADS, QUERIES, OUT = 3, 16, 4, 2, 6


def _apart(generators: Generators, index: int, depth: int) -> tuple[nn.ModuleList, nn.LayerNorm, nn.Linear]:
    """One of the generators in torch's layers."""
    shape = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    decoders = nn.ModuleList(nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, **shape) for _ in range(depth))  # type: ignore[arg-type]
    parts = decoders, nn.LayerNorm(WIDTH), nn.Linear(WIDTH, OUT)
    for part, own in zip(parts, (generators.decoders, generators.norm, generators.weights_head)):
        part.load_state_dict({name: tensor[index] for name, tensor in own.state_dict().items()})
    return parts


@pytest.mark.parametrize("depth", [1, 2])
def test_all_generators_together_and_one_by_one(depth: int) -> None:
    generators = Generators(GENERATORS, WIDTH, depth, HEADS, QUERIES, OUT)
    for parameter in generators.parameters():  # biases and norms off their start
        nn.init.normal_(parameter, std=0.3)
    tokens = torch.randn(2, 5, WIDTH)
    made = generators(tokens)
    assert made.shape == (GENERATORS, 2, QUERIES, OUT)
    weights = torch.randn_like(made)
    (made * weights).sum().backward()
    for index in range(GENERATORS):
        decoders, norm, head = _apart(generators, index, depth)
        queries = generators.queries.detach()[index].clone().requires_grad_()
        x = queries.expand(2, -1, -1)
        for decoder in decoders:
            x = decoder(x, tokens)
        expected = head(norm(x))
        torch.testing.assert_close(made[index], expected, rtol=1e-4, atol=1e-5)
        (expected * weights[index]).sum().backward()
        torch.testing.assert_close(generators.queries.grad[index], queries.grad, rtol=1e-4, atol=1e-5)  # type: ignore[index]
        whole = generators.decoders[0].multihead_attn.in_proj_weight.grad[index]  # type: ignore[union-attr,index]
        torch.testing.assert_close(whole, decoders[0].multihead_attn.in_proj_weight.grad, rtol=1e-4, atol=1e-5)


def test_where_a_generator_starts() -> None:
    torch.manual_seed(0)
    generators = Generators(GENERATORS, 64, 1, HEADS, QUERIES, OUT)
    decoder = generators.decoders[0]
    for name, tensor in generators.state_dict().items():
        if name.endswith("bias"):
            assert not tensor.any()
        elif "norm" in name:
            assert (tensor == 1).all()
    assert decoder.linear1.weight.std().item() == pytest.approx(0.02, rel=0.05)
    bound = (6 / (4 * 64)) ** 0.5
    assert 0.95 * bound < decoder.self_attn.in_proj_weight.abs().max().item() <= bound


def _shared() -> SpeakingModel:
    torch.manual_seed(0)
    method = VLoRA(dim=16, depth=1, rank=2, heads=4, skip=2, separate=False, letters="qvm")
    model: SpeakingModel = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), method))
    return model.eval()


def test_a_shared_generator_has_a_query_for_each_letter_of_each_block(images: Tensor) -> None:
    model = _shared()
    features = model.backbone.patches(images[:3])
    method = model.method
    made = method.gen(method.visual_proj(features) + method.pos_embed)[0].unflatten(-1, (-1, 2))
    found = method.weights(features)
    assert len(found) == 2
    assert made.shape[:2] == (3, 3 * 2)
    for block, factors in enumerate(found):
        for letter, (a, _) in factors.items():
            query = "qvm".index(letter) * 2 + block
            assert torch.equal(a, made[:, query, : a.shape[1]])


def _as_published(method: VLoRA) -> dict[str, Tensor]:
    """The tensors of `method` as the reference saves them: no letters, and numbers where each has a generator."""
    own, letters = dict(method.state_dict()), method.config.letters
    kept = {key: tensor for key, tensor in own.items() if not key.startswith(("gen.", "Bs."))}
    for key, tensor in own.items():
        if key.startswith("gen."):
            numbered = [key.replace("gen.", f"gen.{i}.", 1) for i in range(len(tensor))]
            kept |= dict(zip(numbered if method.config.separate else [key], tensor))
    kept["Bs"] = torch.cat([own[f"Bs.{letter}"] for letter in letters], dim=1)
    return {f"model.mm_projector.{key}": tensor.clone() for key, tensor in kept.items()}


SIZES = {"dim": 16, "depth": 1, "rank": 2, "heads": 4, "skip": 2}


@pytest.mark.parametrize("letters", ["qkvom", "qkv", "qvm", "q", "vq"])
@pytest.mark.parametrize("separate", [True, False])
def test_a_checkpoint_of_some_letters(letters: str, separate: bool, tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    seeing = tiny_llms.vision_llm("llama")
    made: SpeakingModel = perturb(adapt.wrap(seeing, VLoRA(**SIZES, letters=letters, separate=separate))).eval()
    torch.save(_as_published(made.method), tmp_path / "mm_projector.bin")
    given = {"rank": 2, "heads": 4, "skip": 2} | ({} if letters == "qkvom" else {"letters": letters})
    model = import_published(tmp_path / "mm_projector.bin", "vlora", seeing, settings=given)
    assert model.method.config == made.method.config
    assert torch.equal(model(images[:1], ["what is it ?"]), made(images[:1], ["what is it ?"]))


def test_letters_that_a_checkpoint_does_not_name(tmp_path: Path) -> None:
    seeing, given = tiny_llms.vision_llm("llama"), {"rank": 2, "heads": 4, "skip": 2}

    def imported(separate: bool, **more: str) -> object:
        method = VLoRA(**SIZES, letters="qvm", separate=separate)
        adapt.wrap(seeing, method)
        torch.save(_as_published(method), tmp_path / "mm_projector.bin")
        return import_published(tmp_path / "mm_projector.bin", "vlora", seeing, settings=given | more)

    with pytest.raises(
        AdaptError,
        match=r"letters are 'qkvom', but the checkpoint has 3 generators, one for each letter: give",
    ):
        imported(True)
    with pytest.raises(
        AdaptError, match=r"letters are 'qk', .* 3 generators, one for each letter: give the letters with"
    ):
        imported(True, letters="qk")
    with pytest.raises(
        AdaptError,
        match=r"letters are 'qkvom', but the checkpoint has 6 factors; expected a multiple of 5: give the letters",
    ):
        imported(False)
    with pytest.raises(AdaptError, match=r"'gen\.queries' .* has shape \(1, 1, 6, 16\); vlora on .* \(1, 1, 4, 16\)"):
        imported(False, letters="qk")


def test_generators_of_unlike_shapes_are_refused() -> None:
    head = "mm_projector.gen.{}.weights_head.weight"
    state = {head.format(0): torch.zeros(6, 16), head.format(1): torch.zeros(8, 16)}
    state["mm_projector.Bs"] = torch.zeros(1, 4, 16)
    with pytest.raises(
        AdaptError, match=r"weights_head\.weight of the generators have shapes \[\(6, 16\), \(8, 16\)\]"
    ):
        VLoRA.published(state, {})


def test_an_adapter_of_ours_is_no_published_checkpoint(tmp_path: Path) -> None:
    model = _shared()
    file = tmp_path / "vlora.safetensors"
    save_file(model.method.state_dict(), file)
    with pytest.raises(AdaptError, match=r"is not a checkpoint of vlora: it has no tensor 'Bs', but has Bs\.m"):
        import_published(file, "vlora", model.backbone)
