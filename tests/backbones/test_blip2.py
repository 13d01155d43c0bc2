"""BLIP-2's eyes for another language model: the library's own numbers, training, and what is refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
import transformers
from checks import scaled
from safetensors.torch import load_file, save_file
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods
from adapt.backbones.vision_llm import VisionLLM
from adapt.models import generation
from adapt.models.vision_llm import SpeakingModel

IMAGE, QUERIES, WIDTH = 32, 6, 24
QUESTIONS, ANSWERS = ["what is it ?", "how many dog ?"], ["a cat", "two"]
PLACEHOLDER = tiny_llms.VOCABULARY.index("three")  # stands for a visual token in BLIP-2's rows, and in no text here
LINEAR: dict[str, Any] = {"name": "projector", "kind": "linear"}
LORA: dict[str, Any] = {"name": "lora", "towers": ["decoder"], "projections": "all", "rank": 2, "dropout": 0.0}


@cache
def blip2() -> Any:
    """A BLIP-2 over the tiny llama, with weights large enough that attention is not even."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": IMAGE, "patch_size": 8}
    qformer = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 8}
    drawn = {"intermediate_size": 48, "initializer_range": 0.2}
    config = transformers.Blip2Config(
        vision_config=vision | drawn,
        qformer_config=qformer | drawn,
        text_config=tiny_llms.llm("llama").config.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=PLACEHOLDER,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.Blip2ForConditionalGeneration(config).eval()
        torch.nn.init.normal_(model.query_tokens)
    return model


def save_blip2(folder: Path) -> Path:
    blip2().save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": IMAGE, "width": IMAGE}).save_pretrained(folder)
    tiny_llms.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_blip2(tmp_path_factory.mktemp("eyes"))


@pytest.fixture(scope="module")
def spec(eyes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("llm")
    blip2().language_model.save_pretrained(folder)
    tiny_llms.tokenizer().save_pretrained(folder)
    return f"{eyes}+{folder}"


@pytest.fixture
def backbone(spec: str) -> VisionLLM:
    loaded = adapt.load_backbone(spec, "cpu")
    assert isinstance(loaded, VisionLLM)
    return loaded


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(2, 3, IMAGE, IMAGE)


def composed(backbone: VisionLLM) -> SpeakingModel:
    torch.manual_seed(0)
    model: SpeakingModel = adapt.wrap(backbone, methods.Compose([LINEAR, LORA]))
    return model


@torch.no_grad()
def test_visual_tokens_are_the_query_outputs(eyes: Path, backbone: VisionLLM, pictures: Tensor) -> None:
    expected = blip2().get_image_features(pictures, return_dict=True).qformer_outputs.last_hidden_state
    assert expected.shape == (2, QUERIES, WIDTH)
    alone: Any = adapt.load_backbone(str(eyes), "cpu")
    assert scaled(alone.encode_image(pictures), expected) < 1e-5
    assert scaled(backbone.patches(pictures), expected) < 1e-5
    assert backbone.patch_shape() == (QUERIES, WIDTH)


def test_only_the_eyes_are_loaded(eyes: Path) -> None:
    parts = ("vision_model.", "query_tokens", "qformer.")
    named = {name for name in blip2().state_dict() if name.startswith(parts)}
    assert set(adapt.load_backbone(str(eyes), "cpu").model.state_dict()) == named


def test_images_are_prepared_as_by_the_processor(eyes: Path) -> None:
    from PIL import Image

    picture = Image.effect_mandelbrot((50, 40), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    processor = transformers.AutoImageProcessor.from_pretrained(eyes)
    expected = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert scaled(adapt.load_backbone(str(eyes), "cpu").transform(train=False)(picture), expected) < 1e-6


@torch.no_grad()
def test_with_blip2s_own_map_the_logits_are_blip2s(backbone: VisionLLM, pictures: Tensor) -> None:
    backbone.prompt = "<image> {}"
    model: SpeakingModel = adapt.wrap(backbone, methods.Projector(kind="linear"))
    model.method.load_state_dict(blip2().language_projection.state_dict(prefix="linear_1."))
    rows = generation.rows(backbone, QUESTIONS, ANSWERS, QUERIES, left=False)
    assert rows.visual.sum(-1).tolist() == [QUERIES] * 2
    expected = blip2()(
        pixel_values=pictures,
        input_ids=rows.ids.masked_fill(rows.visual, PLACEHOLDER),
        attention_mask=rows.mask.long(),
    ).logits
    texts = rows.mask & ~rows.visual
    assert scaled(model.eval()(pictures, QUESTIONS, ANSWERS)[texts], expected[texts]) < 1e-4


def test_a_few_steps_lower_the_loss_and_are_saved(backbone: VisionLLM, spec: str, tmp_path: Path) -> None:
    pictures = torch.randn(2, 3, IMAGE, IMAGE)
    model = composed(backbone)
    assert {name.split(".")[0] for name, _ in model.method.named_parameters()} == {"projector", "lora"}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    before = model.loss(pictures, QUESTIONS, ANSWERS).item()
    for _ in range(6):
        optimizer.zero_grad()
        model.loss(pictures, QUESTIONS, ANSWERS).backward()
        optimizer.step()
    assert model.loss(pictures, QUESTIONS, ANSWERS).item() < before - 0.05
    assert all(parameter.grad is None for parameter in backbone.model.parameters())
    loaded = adapt.load(model.eval().save(tmp_path / "a.safetensors"))
    assert loaded.backbone.name == spec
    assert torch.equal(loaded(pictures, QUESTIONS), model(pictures, QUESTIONS))


def test_the_block_that_an_adapter_read_wins(eyes: Path, spec: str, backbone: VisionLLM, tmp_path: Path) -> None:
    assert backbone.reading()["patch_block"] == -1
    llm = adapt.load_backbone(spec, "cpu").llm
    other = VisionLLM(adapt.load_backbone(str(eyes), "cpu"), llm, tiny_llms.tokenizer(), name=spec, patch_block=0)
    path = composed(other).save(tmp_path / "a.safetensors")
    assert adapt.load(path).backbone.patch_block == 0
    assert tiny_llms.vision_llm("llama").patch_block == -2


def test_lora_on_the_qformer_changes_answers_and_learns(backbone: VisionLLM, pictures: Tensor) -> None:
    torch.manual_seed(0)
    lora = {**LORA, "towers": ["vision"]}
    model: SpeakingModel = adapt.wrap(backbone, methods.Compose([LINEAR, lora])).eval()
    before = model(pictures, QUESTIONS).detach()
    own = dict(model.method.parts["lora"].named_parameters())
    assert len(own) == 2 * 3 * len(("q", "k", "v", "out", "fc1", "fc2"))
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    assert scaled(model(pictures, QUESTIONS), before) > 1e-3
    model.loss(pictures, QUESTIONS, ANSWERS).backward()
    assert all(parameter.grad is not None and parameter.grad.norm() > 0 for parameter in own.values())


@pytest.mark.parametrize("method", [methods.ZeroShot(), methods.LoRA(), methods.Projector(kind="linear")])
def test_the_eyes_alone_are_served_by_no_method(method: methods.Method, eyes: Path) -> None:
    with pytest.raises(AdaptError, match=r"is a vision model: name a language model behind it, VISION\+LLM"):
        adapt.wrap(adapt.load_backbone(str(eyes), "cpu"), method)


@pytest.mark.parametrize("name", ["mqt", "adem_vl"])
def test_methods_that_need_a_square_of_patches_refuse(name: str, backbone: VisionLLM) -> None:
    with pytest.raises(AdaptError, match=rf"{name}: .* has {QUERIES} patches.*expected a square of patches"):
        adapt.wrap(backbone, methods.find(name)())


def test_no_block_of_the_qformer_is_bypassed(backbone: VisionLLM) -> None:
    with pytest.raises(
        AdaptError, match=r"das: only the linear maps in vision.0 of .* can be changed, so that no block"
    ):
        adapt.wrap(backbone, methods.DAS(towers=("vision",), skipped=("vision.1",)))


def test_a_whole_blip2_in_python_is_refused() -> None:
    image_processor = transformers.BlipImageProcessor(size={"height": IMAGE, "width": IMAGE})
    processor: Any = transformers.Blip2Processor(image_processor, tiny_llms.tokenizer())
    with pytest.raises(AdaptError, match=r"got a Blip2ForConditionalGeneration, .* as in hf:BLIP2\+hf:LLM"):
        Backbone.from_transformers(blip2(), processor)


@pytest.mark.parametrize("name", ["qformer.encoder.layer.0.crossattention.attention.key.weight", "query_tokens"])
def test_a_checkpoint_without_a_tensor_is_refused(name: str, tmp_path: Path) -> None:
    path = save_blip2(tmp_path) / "model.safetensors"
    save_file({key: value for key, value in load_file(path).items() if key != name}, path, {"format": "pt"})
    with pytest.raises(AdaptError, match=f"lacks 1 of its tensors, such as {name}"):
        adapt.load_backbone(str(tmp_path), "cpu")


def test_a_checkpoint_with_a_layer_too_many_is_refused(tmp_path: Path) -> None:
    config = save_blip2(tmp_path) / "config.json"
    described = json.loads(config.read_text())
    described["qformer_config"]["num_hidden_layers"] = 2
    config.write_text(json.dumps(described))
    with pytest.raises(AdaptError, match=r"do not belong to its configuration, such as qformer\.encoder\.layer\.2"):
        adapt.load_backbone(str(tmp_path), "cpu")
