"""Native vision-language models as eyes: what is read, how images reach it, what a cache and a file hold, refusals."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import tiny_natives
import torch
from checks import scaled
from native_chats import KINDS
from PIL import Image
from torch import Tensor, nn

import adapt
from adapt import AdaptError, VisionModel, methods
from adapt.backbones import embedding, native_eyes
from adapt.backbones.native import NativeVLM
from adapt.backbones.native_eyes import NativeEyes
from adapt.backbones.preprocess import transform_key
from adapt.chats import Chat
from adapt.data import Item, Split
from adapt.data.decoding.cache import FeatureCache
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.flops import answer_flops
from adapt.formats import merge
from adapt.formats.export import export
from adapt.models.features import item_features
from adapt.models.many import predict_many
from adapt.tasks.classes import Class

NAMES = ("goldfish", "red_panda")
WITH_TEMPLATE = [kind for kind in KINDS if kind != "paligemma"]


def pictures(count: int = 3, seed: int = 0) -> list[Image.Image]:
    """Pictures of noise, of different sizes and shapes."""
    noise, sizes = torch.Generator().manual_seed(seed), [(40, 32), (32, 48), (64, 36), (32, 32)]
    drawn = [torch.randint(0, 256, (*sizes[n % 4], 3), dtype=torch.uint8, generator=noise) for n in range(count)]
    return [Image.fromarray(each.numpy()) for each in drawn]


def eyes(reads: Any, kind: str = "qwen2_5_vl") -> NativeEyes:
    return NativeEyes(tiny_natives.backbone(kind), reads, name=f"{reads}:{kind}")


def split(folder: Path, each: int = 4) -> Split:
    """Bright and dark pictures in files."""
    items = []
    for number, picture in enumerate(pictures(2 * each + 4)):
        name = NAMES[number % 2]
        path = folder / f"{number}.png"
        picture.point(lambda value: value // 3 + 160 * (name == NAMES[0])).save(path)  # noqa: B023
        items.append(Item((str(path),), Class(name)))
    return Split("noise", NAMES, tuple(items[: 2 * each]), (), tuple(items[2 * each :]))


@pytest.mark.parametrize("kind", WITH_TEMPLATE)
def test_features_are_what_the_library_computes_where_an_answer_begins(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pictures of other sizes, together, with and without padding; a head's vectors give the attention's output."""
    monkeypatch.setattr(native_eyes, "TOGETHER", 2)
    native, seen = tiny_natives.backbone(kind), pictures()
    last, heads = NativeEyes(native, "last"), NativeEyes(native, "heads")
    batch = [[picture] for picture in seen]
    with torch.no_grad():
        states, vectors = last.read_images(batch), heads.read_images(batch)
        for picture, state, own in zip(seen, states, vectors, strict=True):
            alone, given = outputs(native, picture)
            assert scaled(state, alone) < 1e-5
            for block, layer, output in zip(
                native.tower("decoder").blocks, own.view(len(given), -1), given, strict=True
            ):
                assert scaled(block.projections["out"](layer), output) < 1e-5
    assert heads.heads == (2, 4, 8)
    assert (last.embed_dim, heads.embed_dim) == (states.shape[1], vectors.shape[1]) == (32, 64)
    assert not any(module._forward_pre_hooks for module in native.model.modules())


def outputs(native: NativeVLM, picture: Image.Image) -> tuple[Tensor, list[Tensor]]:
    """The last state about one picture, and what each attention's projection gave, of the library's own forward."""
    rows = native.rows([Chat.about(native.question)], [[picture]], left=True, asks=True)
    given: list[Tensor] = []
    handles = [
        block.projections["out"].module.register_forward_hook(
            lambda module, inputs, output: given.append(output[0, -1])
        )
        for block in native.tower("decoder").blocks
    ]
    states = native.vlm(**rows.inputs, output_hidden_states=True).hidden_states[-1]
    for handle in handles:
        handle.remove()
    return states[0, -1], given


def test_texts_are_read_without_a_picture() -> None:
    backbone = eyes("last")
    with torch.no_grad():
        together = backbone.read_texts(["a dog", "a red panda on the left of a lemon"])
        rows = backbone.native.rows([Chat.about("a dog", images=0)], [[]], asks=True)
        states = backbone.native.vlm(**rows.inputs, output_hidden_states=True).hidden_states[-1]
    assert scaled(together[0], states[0, -1]) < 1e-5


def test_heads_of_several_sizes_are_refused() -> None:
    native = tiny_natives.backbone("llava")
    layer = native.vlm.model.language_model.layers[1].self_attn
    layer.o_proj = nn.Linear(24, 32, bias=False)
    again = NativeVLM.__new__(NativeVLM)
    vars(again).update(vars(native))
    block = native.towers["decoder"].blocks[1]
    projections = {**block.projections, "out": replace(block.projections["out"], module=layer.o_proj)}
    blocks = (native.towers["decoder"].blocks[0], replace(block, projections=projections))
    again.towers = {**native.towers, "decoder": replace(native.towers["decoder"], blocks=blocks)}
    with pytest.raises(AdaptError, match=r"not of one size in all layers of its decoder.*use last:"):
        NativeEyes(again, "heads")
    NativeEyes(again, "last")


@pytest.mark.parametrize("reads", ["last", "heads"])
def test_a_data_set_is_encoded_once_and_answered_alike_by_every_door(
    reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, backbone, passes = split(tmp_path), eyes(reads), list[int]()
    read = backbone.native.rows

    def counting(chats: Any, images: Any, **options: Any) -> Any:
        passes.append(len(images))
        return read(chats, images, **options)

    monkeypatch.setattr(backbone.native, "rows", counting)
    model = adapt.wrap(backbone, methods.GDA(views=0), NAMES)
    result = adapt.fit(model, data.train, data.test, progress=False)
    assert sum(passes) == len(data.train) + len(data.test)  # for the baseline and the adapter
    assert result.metrics["adapted"]["accuracy"] == 1
    cached = evaluate(model, data.test, workers=0)
    assert sum(passes) == len(data.train) + len(data.test)
    anew = evaluate(model, data.test, workers=0, cache=False)
    assert cached.predicted == anew.predicted
    assert torch.tensor(cached.confidence) == pytest.approx(anew.confidence, abs=2e-3)  # heads are kept in half
    paths = [item.path for item in data.test]
    assert tuple(each.class_name for each in model.predict(paths)) == cached.predicted
    bags = model.predict_items([paths[::2], paths[1::2]])
    assert [len(each.images) for each in bags] == [2, 2]
    assert [each.class_name for each in bags] == [cached.predicted[0], cached.predicted[1]]
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), eyes(reads))
    assert type(loaded) is VisionModel
    assert torch.equal(loaded.probabilities(paths), model.probabilities(paths))
    both = predict_many([model, adapt.wrap(eyes("last", "llava"), methods.GDA(views=0), NAMES)], paths)
    assert tuple(each.class_name for each, _ in both) == cached.predicted
    assert answer_flops(model) > 1e5


def test_the_cache_holds_heads_in_half_precision_and_keeps_questions_apart(tmp_path: Path) -> None:
    data, kept = split(tmp_path), {}
    for reads in ("last", "heads"):
        backbone = eyes(reads)
        model = adapt.wrap(backbone, methods.NearestMean(), NAMES)
        features = item_features(model, data.train, workers=0, unit=False)
        kept[reads] = sum(size for _, size in FeatureCache().sizes().values()) - sum(kept.values())
        assert scaled(features, item_features(model, data.train, workers=0, unit=False, cache=False)) < 1e-3
        key = backbone.content()
        backbone.question = "which animal is it?"
        assert backbone.content() != key
        assert scaled(item_features(model, data.train, workers=0, unit=False), features) > 1e-3
    assert kept["heads"] < kept["last"] + 200  # twice as many numbers


def test_random_views_are_crops_that_the_processor_prepares(tmp_path: Path) -> None:
    data, backbone = split(tmp_path), eyes("last")
    assert transform_key(backbone.transform(train=True)) is not None
    assert transform_key(backbone.transform(train=True)) != transform_key(backbone.transform(train=False))
    model = adapt.wrap(backbone, methods.GDA(views=3), NAMES)
    views = item_features(model, data.train, workers=0, views=3)
    assert views.shape == (len(data.train), 3, 32)
    assert (views[:, 0] - views[:, 1]).abs().max() > 1e-3
    assert adapt.fit(model, data.train, data.test, progress=False).metrics["adapted"]["accuracy"] == 1


@pytest.mark.parametrize("method", ["linear_probe", "knn", "lda", "tip_adapter", "proker", "rehark"])
def test_methods_of_images_alone_learn_from_the_last_state(method: str, tmp_path: Path) -> None:
    data = split(tmp_path)
    model = adapt.wrap(eyes("last"), methods.find(method)(), NAMES)
    assert adapt.fit(model, data.train, data.test, progress=False).metrics["adapted"]["accuracy"] >= 0.75


def test_another_question_or_feature_is_refused_at_use(tmp_path: Path) -> None:
    backbone = eyes("last")
    backbone.question = "which animal is it?"
    path = adapt.wrap(backbone, methods.GDA(views=0), NAMES).save(tmp_path / "a.safetensors")
    with pytest.raises(AdaptError, match="which animal is it"):
        adapt.load(path, eyes("last"))
    with pytest.raises(AdaptError):
        adapt.load(path, eyes("heads"))
    other = eyes("last")
    other.read_as(backbone.reading())
    assert other.question == backbone.question
    adapt.load(path, other)


def test_a_budget_of_pixels_reaches_the_processor() -> None:
    backbone, large = eyes("last"), [[Image.new("RGB", (64, 64))]]
    small = backbone.limited(16 * 16)
    assert small.native.marks((64, 64))[0].tokens < backbone.native.marks((64, 64))[0].tokens
    assert small.reading() != backbone.reading()
    with torch.no_grad():
        assert scaled(small.read_images(large), backbone.read_images(large)) > 1e-4
    with pytest.raises(AdaptError, match="has no bound on the pixels"):
        eyes("last", "llava").limited(100)


def test_threads_and_copies_read_what_one_reads() -> None:
    backbone, seen, found = eyes("heads"), [[picture] for picture in pictures()], list[Tensor]()
    model = adapt.wrap(backbone, methods.NearestMean(), NAMES).eval()
    expected = model.backbone_features(seen)
    threads = [Thread(target=lambda: found.append(model.backbone_features(seen))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for each in (*found, copy.deepcopy(model).backbone_features(seen)):
        assert torch.equal(each, expected)


def test_what_eyes_cannot_do_is_refused_by_name(tmp_path: Path) -> None:
    data, backbone = split(tmp_path, each=8), eyes("last")
    model = adapt.wrap(backbone, methods.GDA(views=0), NAMES)
    with pytest.raises(AdaptError, match=r"no transformer blocks that can be edited.*use a method that edits no tower"):
        adapt.wrap(backbone, methods.LoRA(towers=["vision"]), NAMES)
    with pytest.raises(AdaptError, match=r"gda cannot be exported: last:qwen2_5_vl prepares images by a processor"):
        export(model, tmp_path / "graph", "torch")
    with pytest.raises(AdaptError, match=r"a watch looks at pixels, .* leave the watch out"):
        adapt.fit(model, data.train, watch=True)
    with pytest.raises(AdaptError, match="gda cannot be merged"):
        merge.merged_model(model)
    for name, reason in {
        "last:mini-clip": "expected a native vision-language model after last:",
        "mini-clip&last:mini-vlm": "last:mini-vlm prepares images by itself; expected two encoders of the same pixels",
        "last:mini-vlm+mini-lm": "mini-vlm is a native VLM; expected a CLIP, SigLIP or vision encoder",
    }.items():
        with pytest.raises(AdaptError, match=reason):
            adapt.load_backbone(name, "cpu")


def test_a_tensor_of_images_is_as_many_rows() -> None:
    eyes = NativeEyes(tiny_natives.backbone("smolvlm"))
    images = torch.rand(2, 3, 48, 48)
    features = eyes.encode_image(images)
    assert features.shape == (2, eyes.embed_dim)
    torch.testing.assert_close(features, eyes.encode_image([[picture] for picture in embedding.pictures(images)]))


def test_a_copy_asks_its_own_question() -> None:
    eyes = NativeEyes(tiny_natives.backbone("smolvlm"))
    other = eyes.turning(not eyes.preprocess.turned)
    other.question = "which colour has it?"
    images = torch.rand(1, 3, 48, 48)
    assert not torch.allclose(eyes.encode_image(images), other.encode_image(images))
    fresh = NativeEyes(tiny_natives.backbone("smolvlm"))
    fresh.question = other.question
    assert torch.equal(other.encode_image(images), fresh.encode_image(images))


def test_a_budget_of_pixels_keeps_all_else() -> None:
    eyes = NativeEyes(tiny_natives.backbone("qwen2_5_vl"))
    eyes = eyes.turning(not eyes.preprocess.turned)
    eyes.question, eyes.quantization = "which colour has it?", "int8"
    fewer = eyes.limited(60 * 60)
    assert (fewer.quantization, fewer.question, fewer.preprocess) == ("int8", eyes.question, eyes.preprocess)
    assert fewer.native.image_settings != eyes.native.image_settings


def test_an_image_of_too_many_tokens_is_named_before_any_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eyes = NativeEyes(tiny_natives.backbone("qwen2_5_vl"))
    monkeypatch.setattr(type(eyes.native), "longest", 20)
    Image.new("RGB", (600, 600)).save(tmp_path / "large.png")
    items = [Item.of(path=str(tmp_path / "large.png"), label=name) for name in ("cat", "dog")]
    model = adapt.wrap(eyes, methods.LDA(), ("cat", "dog"))
    with pytest.raises(AdaptError, match=r"large\.png.* tokens with the question, .* reads at most 20: set data"):
        adapt.fit(model, items, progress=False)


def test_models_in_words_name_their_last_state() -> None:
    native = tiny_natives.backbone("smolvlm")
    with pytest.raises(AdaptError, match="use heads:BACKBONE"):
        adapt.wrap(native, methods.SAVs(), ("cat", "dog"))
    with pytest.raises(AdaptError, match="use its last state, last:BACKBONE"):
        adapt.wrap(native, methods.GDA(), ("cat", "dog"))
