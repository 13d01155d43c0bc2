"""VLoRA against the published implementation: the factors that an image becomes, and what they add inside a decoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import tiny_llms
import torch
from safetensors.torch import save_file
from torch import Tensor

import adapt
from adapt import AdaptError
from adapt.backbones.tower import Tower
from adapt.backbones.vision_llm import VisionLLM
from adapt.engine.hooks import run
from adapt.formats.checkpoints import import_published
from adapt.formats.rebuild import load_tensors
from adapt.methods import VLoRA
from adapt.methods.base import Context
from adapt.models.vision_llm import SpeakingModel

# how a language model keeps its queries, keys and values
FAMILIES = {"apart": "LlamaConfig", "fused": "Phi3Config", "interleaved": "GPTNeoXConfig"}
LAYERS = (1, 3)
SITES = {"q": "q", "k": "k", "v": "v", "o": "out", "m": "mlp"}
Key = tuple[int, str]  # layer, letter


def backbone(config: str = "LlamaConfig") -> VisionLLM:
    """A decoder of the case's sizes, and eyes whose patch features are an image's own pixels."""
    settings, _ = published.case("vlora_sep")
    sizes = {"hidden_size": settings["llm_dim"], "num_hidden_layers": settings["llm_depth"]}
    llm = tiny_llms.causal(config, **sizes)().eval()
    return VisionLLM(tiny_llms.Unfold(image=16, patch=4).vision(), llm, tiny_llms.tokenizer(), patch_block=-1)


def pictures() -> Tensor:
    """The images whose patch features are the case's."""
    return tiny_llms.Unfold(image=16, patch=4).images(published.case("vlora_sep")[1]["features"])


def checkpoint() -> dict[str, Tensor]:
    """As the reference saves it."""
    _, tensors = published.case("vlora_sep")
    return {f"model.mm_projector.{key}": x for key, x in tensors.under("param.").items()}


def settings() -> dict[str, Any]:
    """What a checkpoint does not tell."""
    given, _ = published.case("vlora_sep")
    return {"rank": given["lora_rank"], "heads": given["num_heads"], "skip": given["skip_layers"]}


def wrapped(config: str = "LlamaConfig") -> SpeakingModel:
    tensors, told = VLoRA.published(checkpoint(), {})
    model: SpeakingModel = adapt.wrap(backbone(config), VLoRA(**told, **settings()))
    load_tensors(model.method, tensors, "the reference")
    return model


def outputs(tower: Tower, x: Tensor) -> dict[Key, Tensor]:
    """What each map that is updated makes of `x`."""
    found = {}
    for layer in LAYERS:
        block = tower.blocks[layer]
        for letter, site in SITES.items():
            if letter == "m":
                found[layer, letter] = block.mlp(x)  # type: ignore[misc]
            else:
                projection = block.projections[site]
                whole = projection.module(x)
                found[layer, letter] = whole if projection.rows is None else whole[..., projection.rows]
    return found


@torch.no_grad()
def added(model: SpeakingModel, images: Tensor, x: Tensor, merge: bool) -> dict[Key, Tensor]:
    """What joins the output of each map under the edits that these images ask for."""
    seeing, tower = model.backbone, model.backbone.tower("decoder")
    edits = model.method.edits(tower, Context(tokens={"vision": lambda: seeing.patches(images)}))
    frozen = outputs(tower, x)
    changed = run(seeing.model, [(tower, edits)], lambda: outputs(tower, x), merge=merge)
    return {key: output - frozen[key] for key, output in changed.items()}


def test_the_factors_of_each_image() -> None:
    _, expected = published.case("vlora_sep")
    model = wrapped()
    features = model.backbone.patches(pictures())
    expected.equal("features", features)
    for layer, factors in zip(LAYERS, model.method.weights(features), strict=True):
        assert "".join(factors) == "qkvom"
        for letter, (a, b) in factors.items():
            expected.scaled(f"layer{layer}.{letter}.A", a)
            expected.scaled(f"layer{layer}.{letter}.B", b)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("merge", [False, True], ids=["beside", "merged"])
def test_what_joins_the_output_of_each_map(family: str, merge: bool) -> None:
    """Together and one by one: updates are merged into the weights for a single image."""
    _, expected = published.case("vlora_sep")
    model = wrapped(FAMILIES[family])
    for chosen in (slice(0, 1), slice(1, 2)) if merge else (slice(0, 2),):
        found = added(model, pictures()[chosen], expected["x"][chosen], merge)
        assert len(found) == 10
        for (layer, letter), delta in found.items():
            expected.scaled(f"layer{layer}.{letter}.delta", delta, of=lambda stored, chosen=chosen: stored[chosen])


SAVED: dict[str, Callable[[dict[str, Tensor], Path], object]] = {
    "mm_projector.bin": torch.save,
    "model.safetensors": save_file,
}


@pytest.mark.parametrize("name", SAVED)
def test_a_checkpoint_becomes_an_adapter(name: str, tmp_path: Path) -> None:
    SAVED[name](checkpoint(), tmp_path / name)
    seeing, images, questions = backbone(), pictures(), ["what is it ?", "how many ?"]
    model = import_published(tmp_path / name, "vlora", seeing, settings=settings())
    told = {"dim": 32, "depth": 2, "letters": "qkvom", "separate": True}
    assert (told | settings()).items() <= model.method.config.model_dump().items()
    expected = wrapped()
    expected.backbone.llm.load_state_dict(seeing.llm.state_dict())
    assert torch.equal(model(images, questions), expected(images, questions))
    loaded = adapt.load(model.save(tmp_path / "adapter.safetensors"), seeing)
    assert torch.equal(loaded(images, questions), model(images, questions))


def test_settings_that_a_checkpoint_does_not_fit_are_named(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "mm_projector.bin")
    with pytest.raises(AdaptError, match=r"weights_head.* has shape \(5, 256, 32\); vlora on this .* \(5, 512, 32\)"):
        import_published(tmp_path / "mm_projector.bin", "vlora", backbone(), settings=settings() | {"rank": 8})
    with pytest.raises(AdaptError, match=r"checkpoint of projector: it has no tensor 'weight', but has model\.mm_p"):
        import_published(tmp_path / "mm_projector.bin", "projector", backbone())
