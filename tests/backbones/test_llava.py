"""transformers' LLaVA as a vision LLM: the same logits with the checkpoint's own projector, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_backbones
import tiny_llms
import torch
from checks import assert_untouched, perturb, scaled, snapshot
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones.vision_llm import VisionLLM
from adapt.formats.checkpoints import import_published
from adapt.formats.loadable import load_tensors
from adapt.methods import Projector
from adapt.models.speaking import SpeakingModel

QUESTIONS = ["what is it ?", "which animal is there : red green blue ?"]
ANSWERS = ["a cat", "dog"]
PATCHES = 16
IMAGE_TOKEN = len(tiny_llms.VOCABULARY)
EYES: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
# as LLaVA 1.5's: it takes the parts of a turn
_PARTS = "{%% for part in turn['content'] | selectattr('type', 'equalto', '%s') %%}"
TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} "
    + (_PARTS % "image" + "<image> {% endfor %}")
    + (_PARTS % "text" + "{{ part['text'] }} {% endfor %}")
    + "{% endfor %}{% if add_generation_prompt %}answer :{% endif %}"
)


def llava(eyes: str = "CLIPVisionConfig", **settings: Any) -> Any:
    """A LLaVA of seeded random weights."""
    import transformers

    torch.manual_seed(0)
    text = transformers.LlamaConfig(**tiny_llms.SIZES | {"vocab_size": IMAGE_TOKEN + 1})
    vision = getattr(transformers, eyes)(**EYES)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE_TOKEN, **settings)
    return transformers.LlavaForConditionalGeneration(config).eval()


def processor() -> Any:
    return SimpleNamespace(
        tokenizer=tiny_llms.tokenizer(), image_processor=tiny_backbones.hf_clip_processor().image_processor
    )


def with_its_projector(backbone: VisionLLM, state: dict[str, Tensor]) -> SpeakingModel:
    tensors, told = Projector.published(state, {})
    model: SpeakingModel = adapt.wrap(backbone, Projector(**told))
    load_tensors(model.method, tensors, "the checkpoint")
    return model.eval()


def ids_of(prompt: str, question: str) -> Tensor:
    """The token ids `(1, l)` of one row, with an image token for each patch."""
    tokenizer = tiny_llms.tokenizer()
    before, after = prompt.replace("{}", question).split("<image>")
    ids = tokenizer(before)["input_ids"] + [IMAGE_TOKEN] * PATCHES
    return torch.tensor([ids + tokenizer(after, add_special_tokens=False)["input_ids"]])


@pytest.mark.parametrize(("layer", "block"), [(-2, -2), (-1, -1), (1, 0), (3, 2)])
@pytest.mark.parametrize("eyes", ["CLIPVisionConfig", "SiglipVisionConfig"])
def test_the_logits_are_llavas(eyes: str, layer: int, block: int, images: Tensor) -> None:
    strategy = "default" if eyes == "CLIPVisionConfig" else "full"  # SigLIP has no class token to leave out
    model = llava(eyes, vision_feature_layer=layer, vision_feature_select_strategy=strategy)
    backbone = Backbone.from_transformers(model, processor())
    assert (type(backbone), backbone.patch_block, backbone.patch_shape()) == (VisionLLM, block, (PATCHES, 48))
    pictures = images[: len(QUESTIONS)]
    found = with_its_projector(backbone, model.state_dict())(pictures, QUESTIONS)
    for picture, question, logits in zip(pictures.split(1), QUESTIONS, found):
        ids = ids_of(backbone.prompt, question)
        expected = model(input_ids=ids, pixel_values=picture).logits[0]
        assert scaled(logits[: len(expected)], expected) < 1e-5


def test_it_answers_as_llava_does(images: Tensor) -> None:
    model = llava()
    speaking = with_its_projector(Backbone.from_transformers(model, processor()), model.state_dict())
    answer = speaking.generate(images[:1], QUESTIONS[:1], max_new_tokens=6)[0]
    ids = ids_of(speaking.backbone.prompt, QUESTIONS[0])
    said = model.generate(input_ids=ids, pixel_values=images[:1], max_new_tokens=6, do_sample=False)[0, ids.shape[1] :]
    assert answer.text == tiny_llms.tokenizer().decode(said, skip_special_tokens=True)
    assert answer.tokens == len(said)


def test_its_own_projector_is_left_alone(images: Tensor) -> None:
    """All of LLaVA is as before, also the projector that the method's stands for."""
    model = llava()
    before = snapshot(model)
    backbone = Backbone.from_transformers(model, processor())
    speaking = perturb(with_its_projector(backbone, model.state_dict()))
    speaking.loss(images[:2], QUESTIONS, ANSWERS).backward()
    speaking.unwrap()
    assert_untouched(model, before)
    shared = {id(parameter) for parameter in backbone.model.parameters()}
    assert {name for name, p in model.named_parameters() if id(p) not in shared} == {
        f"model.multi_modal_projector.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")
    }


@pytest.mark.parametrize("names", [{}, {"0": "linear_1", "2": "linear_2"}], ids=["linear", "mlp"])
def test_a_projector_as_llava_itself_saves_it(names: dict[str, str], tmp_path: Path) -> None:
    source, backbone = llava().model.multi_modal_projector, Backbone.from_transformers(llava(), processor())
    parts = {f"{number}.": getattr(source, name) for number, name in names.items()} or {"": source.linear_1}
    saved = {f"model.mm_projector.{at}{key}": x for at, part in parts.items() for key, x in part.state_dict().items()}
    torch.save(saved, tmp_path / "mm_projector.bin")
    method = import_published(tmp_path / "mm_projector.bin", "projector", backbone).method
    assert method.config.kind == ("mlp" if names else "linear")
    expected = source.state_dict().items()
    assert {key for key, x in method.state_dict().items() if torch.equal(x, dict(expected)[key])} == {
        f"linear_{i}.{part}" for i in range(1, 1 + len(parts)) for part in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("eyes", "settings", "message"),
    [
        ("CLIPVisionConfig", {"vision_feature_layer": [-2, -1]}, r"layer \[-2, -1\] .*expected one layer"),
        ("CLIPVisionConfig", {"vision_feature_layer": 0}, "layer 0 and .*expected one layer other than 0"),
        ("CLIPVisionConfig", {"vision_feature_layer": -4}, "patch_block is -4, but the vision tower has only 3 blocks"),
        ("CLIPVisionConfig", {"vision_feature_select_strategy": "full"}, "'full'; expected .* strategy 'default'"),
        (
            "SiglipVisionConfig",
            {"vision_feature_select_strategy": "default"},
            "'default'; expected .* strategy 'full'",
        ),
    ],
)
def test_patch_features_that_are_no_blocks_patches(eyes: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        Backbone.from_transformers(llava(eyes, **settings), processor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA as its authors publish it, with the processor's chat template."""
    import transformers

    path = tmp_path_factory.mktemp("llava")
    llava().save_pretrained(path)
    parts = processor()
    tokenizer = copy.deepcopy(parts.tokenizer)
    transformers.LlavaProcessor(parts.image_processor, tokenizer, chat_template=TEMPLATE).save_pretrained(path)
    return path


def test_a_folder_of_transformers(folder: Path, images: Tensor) -> None:
    backbone = adapt.load_backbone(str(folder))
    assert backbone.prompt == "user <image> {} answer :"
    assert backbone.preprocess == Backbone.from_transformers(llava(), processor()).preprocess
    model = import_published(folder / "model.safetensors", "projector", backbone)
    expected = llava()(input_ids=ids_of(backbone.prompt, QUESTIONS[0]), pixel_values=images[:1]).logits
    assert scaled(model(images[:1], QUESTIONS[:1]), expected) < 1e-5


def test_an_adapter_of_a_folder_loads_by_name(folder: Path, images: Tensor, tmp_path: Path) -> None:
    model = perturb(adapt.wrap(adapt.load_backbone(str(folder)), Projector(kind="linear"))).eval()
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded(images[:2], QUESTIONS), model(images[:2], QUESTIONS))
