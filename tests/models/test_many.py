"""Several adapters over the same images: as each by itself, with what they share computed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import build
from checks import counted_blocks, perturb
from native_chats import lora, model_of

import adapt
from adapt import AdaptError, Backbone
from adapt.data import open_image
from adapt.methods import CoOp, LinearProbe, LoRA, MaPLe, ZeroShot

NAMES = ("goldfish", "red panda", "sea cucumber")


def models(backbone: Backbone) -> list[Any]:
    """Three that leave the vision tower alone, two that edit its last block, one that edits it all."""
    torch.manual_seed(0)
    late = {"towers": ["vision"], "blocks": (2, 3)}
    methods = [CoOp(n_ctx=4), LoRA(**late), ZeroShot(), MaPLe(depth=2), LinearProbe(), LoRA(**late, rank=4)]
    made = [adapt.wrap(backbone, method, NAMES) for method in methods]
    with torch.no_grad():
        for parameter in (p for model in made for p in model.method.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


@pytest.fixture
def photos(tiny_split: Any) -> list[Path]:
    return [item.path for item in tiny_split.train[:5]]


def close(found: Any, expected: Any) -> bool:
    return [name for name, _ in found.top] == [name for name, _ in expected.top] and all(
        abs(a - b) < 1e-5 for (_, a), (_, b) in zip(found.top, expected.top, strict=True)
    )


def test_each_says_what_it_says_by_itself(open_clip: Backbone, photos: list[Path]) -> None:
    made = models(open_clip)
    together = adapt.predict_many(made, photos, batch_size=2)
    assert len(together) == len(photos)
    for index, model in enumerate(made):
        assert all(close(found[index], own) for found, own in zip(together, model.predict(photos), strict=True))


def test_a_native_model_with_classes_stands_beside_a_clip(open_clip: Backbone, photos: list[Path]) -> None:
    native = model_of("qwen2_5_vl", lora("decoder")).with_classes(NAMES)
    perturb(native)
    clip = models(open_clip)[1]
    together = adapt.predict_many([clip, native], photos, batch_size=2)
    for (of_clip, of_native), one, other in zip(together, clip.predict(photos), native.predict(photos), strict=True):
        assert close(of_clip, one)
        assert close(of_native, other)
    assert len({of_native.probability for _, of_native in together}) == len(photos)


def test_a_model_that_answers_in_words_alone_is_refused(open_clip: Backbone, photos: list[Path]) -> None:
    with pytest.raises(AdaptError, match="predict_many got one model; expected a list"):
        adapt.predict_many(model_of("qwen2_5_vl"), photos)
    with pytest.raises(AdaptError, match="answers questions; expected models that classify"):
        adapt.predict_many([models(open_clip)[0], model_of("qwen2_5_vl")], photos)


def test_what_they_share_is_computed_once(
    open_clip: Backbone, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = models(open_clip)
    blocks = counted_blocks(monkeypatch)
    adapt.predict_many(made, photos)
    # the frozen tower once, the last block of two LoRAs, and MaPLe's three blocks
    assert sorted(blocks) == sorted([0, 1, 2] + [2, 2] + [0, 1, 2])


def test_models_keep_their_modes(open_clip: Backbone, photos: list[Path]) -> None:
    made = models(open_clip)
    made[1].train()
    made[0].eval()
    expected = [model.training for model in made]
    adapt.predict_many(made, photos)
    assert [model.training for model in made] == expected


def test_backbones_of_different_sizes_stand_side_by_side(
    open_clip: Backbone, open_clip_resnet: Backbone, photos: list[Path]
) -> None:
    made = [build("coop", open_clip), build("zero_shot", open_clip_resnet)]
    for found, *own in zip(adapt.predict_many(made, photos), *(model.predict(photos) for model in made), strict=True):
        assert all(map(close, found, own))


def test_views_and_streams_are_each_ones_own(open_clip: Backbone, photos: list[Path]) -> None:
    made = [build("tda", open_clip).eval(), build("coop", open_clip).eval()]
    pictures = [open_image(photo) for photo in photos]
    for found, *own in zip(adapt.predict_many(made, pictures), *(model.predict(photos) for model in made), strict=True):
        assert all(map(close, found, own))


def test_an_image_that_cannot_be_read_is_named(open_clip: Backbone, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(AdaptError, match=r"no\.png"):
        adapt.predict_many(models(open_clip), tmp_path / "no.png")


def test_adapters_of_one_name_share_a_backbone(tmp_path: Path) -> None:
    backbone = adapt.load_backbone("mini-clip")
    paths = [
        adapt.wrap(backbone, method, NAMES).save(tmp_path / f"{i}.safetensors")
        for i, method in enumerate((CoOp(), ZeroShot()))
    ]
    loaded = adapt.load_many(paths)
    assert loaded[0].backbone is loaded[1].backbone
    given = adapt.load_many(paths, backbone)
    assert all(model.backbone is backbone for model in given)


def test_a_model_half_in_training_mode_is_asked_too(open_clip: Backbone, photos: list[Path]) -> None:
    one, other = (build("coop", open_clip).eval() for _ in range(2))
    other.method.train()
    assert len(adapt.predict_many([one, other], photos)) == len(photos)
    assert other.method.training
    assert not other.training


def test_no_model_is_refused(photos: list[Path]) -> None:
    with pytest.raises(AdaptError, match="predict_many got no model"):
        adapt.predict_many([], photos)


def test_what_is_no_list_of_models_is_refused(open_clip: Backbone, photos: list[Path], tmp_path: Path) -> None:
    model = build("coop", open_clip).eval()
    for given, words in ((model, "expected a list"), ([str(tmp_path)], "expected models, as adapt.load_many")):
        with pytest.raises(AdaptError, match=words):
            adapt.predict_many(given, photos)
    with pytest.raises(AdaptError, match="top_k is 0; expected"):
        adapt.predict_many([model], photos, top_k=0)
    with pytest.raises(AdaptError, match="top_k is 0; expected"):
        model.predict(photos, top_k=0)
    path = model.save(tmp_path / "adapter.safetensors")
    with pytest.raises(AdaptError, match="expected a list of paths"):
        adapt.load_many(path)
    with pytest.raises(AdaptError, match=r"backbone is 'mini-clip'; expected a backbone, such as adapt\.load_backbone"):
        adapt.load(path, "mini-clip")
