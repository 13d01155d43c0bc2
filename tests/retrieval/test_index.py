"""An index: exact, whole, of one backbone and one adapter, and refused by name where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import perturb
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split
from adapt.formats import tensor_file
from adapt.retrieval.index import Index, IndexHeader, index_images, index_texts, load_index
from adapt.retrieval.vocabulary_free import VocabularyFree

TEXTS = ("a red panda", "two goldfish in a bowl", "the sea, and cucumbers", "a dew_drop")


def wrapped(backbone: Backbone, method: methods.Method | None = None) -> AdaptedModel:
    return adapt.wrap(backbone, method or methods.ZeroShot(), ("object",)).eval()


def test_it_finds_what_a_full_sort_finds() -> None:
    features = F.normalize(torch.randn(500, 16), dim=-1)
    header = IndexHeader(kind="texts", backbone="", fingerprint="", reading="")
    index = Index(header, tuple(map(str, range(500))), features)
    queries = F.normalize(torch.randn(7, 16), dim=-1)
    cosines, places = index.nearest(queries, 9)
    expected = (queries @ features.T).sort(descending=True, dim=-1)
    assert torch.equal(places, expected.indices[:, :9])
    assert torch.allclose(cosines, expected.values[:, :9])
    assert index.nearest(queries, 9999)[1].shape == (7, 500)


def test_texts_are_encoded_as_they_stand(backbone: Backbone) -> None:
    model = wrapped(backbone)
    index = index_texts(model, TEXTS)
    expected = F.normalize(backbone.encode_text(backbone.tokenize(list(TEXTS))), dim=-1)
    assert torch.allclose(index.features, expected.float(), atol=1e-5)
    assert index.entries == TEXTS


def test_images_are_encoded_as_for_an_answer(open_clip: Backbone, tiny_split: Split) -> None:
    model = wrapped(open_clip)
    paths = [item.path for item in tiny_split.test]
    transform = open_clip.transform(train=False)
    pixels = torch.stack([transform(adapt.data.open_image(path)) for path in paths])
    with torch.no_grad():
        expected = model.image_features(pixels)
    assert torch.allclose(index_images(model, paths).features, expected, atol=1e-5)


def test_a_file_comes_back_to_the_bit(open_clip: Backbone, tmp_path: Path) -> None:
    index = index_texts(wrapped(open_clip), ["caf\u00e9 \u732b\nin two lines", *TEXTS])
    loaded = load_index(index.save(tmp_path / "texts.safetensors"))
    assert loaded.header == index.header
    assert loaded.entries == index.entries
    assert torch.equal(loaded.features, index.features)
    loaded.check(wrapped(open_clip))


def test_another_backbone_or_adapter_is_refused(open_clip: Backbone, hf_siglip: Backbone) -> None:
    plain = wrapped(open_clip)
    lora = perturb(wrapped(open_clip, methods.LoRA(dropout=0)))
    under, by_itself = index_texts(lora, TEXTS), index_texts(plain, TEXTS)
    assert not torch.allclose(under.features, by_itself.features, atol=1e-4)
    under.check(lora)
    with pytest.raises(AdaptError, match=r"made with an adapter, .* encoded without an adapter: encode the query"):
        under.check(plain)
    with pytest.raises(AdaptError, match="made without an adapter, but the query is encoded with lora: encode"):
        by_itself.check(lora)
    with pytest.raises(AdaptError, match="is a different backbone, or preprocesses inputs differently"):
        by_itself.check(wrapped(hf_siglip))
    with torch.no_grad():
        next(lora.method.parameters()).add_(1)
    with pytest.raises(AdaptError, match=r"made with another adapter, .* encoded with lora: encode"):
        under.check(lora)


def test_features_of_another_width_are_refused(open_clip: Backbone, tmp_path: Path) -> None:
    model = wrapped(open_clip)
    features = F.normalize(torch.ones(4, 63), dim=-1)
    path = _damaged(index_texts(model, TEXTS), tmp_path / "a.safetensors", features=features)
    with pytest.raises(AdaptError, match=r"has features of dimension 63, but .* have dimension 64: make the index"):
        load_index(path).check(model)


def test_shortened_features_are_searched_by_shortened_queries(open_clip: Backbone, tmp_path: Path) -> None:
    model = wrapped(open_clip)
    whole = index_texts(model, TEXTS)
    path = whole.shortened(8).save(tmp_path / "short.safetensors")
    short = load_index(path)
    short.check(model)
    assert short.features.shape == (len(TEXTS), 8)
    queries = index_texts(model, ["the sea", "a panda"]).features
    expected = F.normalize(queries[:, :8], dim=-1) @ F.normalize(whole.features[:, :8], dim=-1).T
    cosines, places = short.nearest(queries, len(TEXTS))
    assert torch.allclose(cosines, expected.gather(1, places), atol=1e-6)
    with pytest.raises(AdaptError, match="--dim is 65; expected at most 64, the values of a feature"):
        whole.shortened(65)
    with pytest.raises(AdaptError, match="the index has only the first 8 values of each feature: make"):
        VocabularyFree(open_clip, short)


def test_an_index_under_a_projection_is_of_its_adapter(open_clip: Backbone) -> None:
    """The first values of learned features are what the adapter gives when it answers with as many."""
    model = perturb(wrapped(open_clip, methods.MRL()))
    index = index_texts(model, TEXTS)
    index.check(model)
    with pytest.raises(AdaptError, match="made with an adapter"):
        index.check(wrapped(open_clip))
    model.set_at_use(dim=8)
    assert torch.allclose(index.shortened(8).features, model.encode_texts(TEXTS).detach(), atol=1e-5)
    short = index_texts(model, TEXTS)
    short.check(model)
    assert short.header == index.shortened(8).header
    with pytest.raises(
        AdaptError, match="a query has 8 values, and the features of the index have 64: encode the quer"
    ):
        index.nearest(short.features, 1)


def test_words_learned_for_prompts_are_of_no_other_texts(open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match="coop learned prompt tokens for its class names, and cannot encode"):
        index_texts(wrapped(open_clip, methods.CoOp()), TEXTS)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [([], "there is no text"), (["a", "  "], "text 2 is empty"), (["very " * 99], "99 .*|the text 'very")],
)
def test_bad_texts_are_named(open_clip: Backbone, texts: list[str], expected: str) -> None:
    with pytest.raises(AdaptError, match=expected):
        index_texts(wrapped(open_clip), texts)


def _damaged(index: Index, path: Path, **changes: Any) -> Path:
    tensors: dict[str, Tensor] = {
        "features": index.features,
        "entries": torch.frombuffer(bytearray(b'["a","b","c","d"]'), dtype=torch.uint8),
    }
    header = index.header.model_dump(exclude_none=True) | changes.pop("header", {})
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    tensor_file.write(kept, path, header)
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"features": None}, "exactly the tensors features and entries"),
        ({"more": torch.zeros(1)}, "exactly the tensors features and entries"),
        ({"features": torch.ones(4, 64)}, "are not normalised to unit length"),
        ({"features": torch.full((4, 64), float("nan"))}, "are not normalised to unit length"),
        ({"features": torch.zeros(4, 64, dtype=torch.float16)}, "expected float32 features"),
        ({"features": F.normalize(torch.ones(3, 64), dim=-1)}, "3 features, but 4 entries"),
        ({"entries": torch.zeros(5, dtype=torch.uint8)}, "the entries .* cannot be read"),
        ({"header": {"index_format": "2"}}, "is not an index: index_format is '2'"),
        ({"header": {"kind": "sounds"}}, "is not an index: kind is 'sounds'"),
    ],
)
def test_damaged_files_are_refused(open_clip: Backbone, tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    path = _damaged(index_texts(wrapped(open_clip), TEXTS), tmp_path / "a.safetensors", **dict(changes))
    with pytest.raises(AdaptError, match=expected):
        load_index(path)


def test_files_that_are_no_index_at_all(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="there is no index at"):
        load_index(tmp_path / "none.safetensors")
    path = index_texts(wrapped(open_clip), TEXTS).save(tmp_path / "a.safetensors")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    with pytest.raises(AdaptError, match="make the index again with `adapt index`"):
        load_index(path)
    adapter = wrapped(open_clip).save(tmp_path / "adapter.safetensors")
    with pytest.raises(AdaptError, match="is not an index"):
        load_index(adapter)
