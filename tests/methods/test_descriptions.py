"""Classification by description: any number of phrases a class, the mean or the best of them, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import read_descriptors

TABLE = {"cat": ["whiskers", "a long tail", "has fur"], "dog": ["a snout"], "bird_of_prey": ["feathers", "a beak"]}
NAMES = tuple(TABLE)


def wrapped(backbone: Backbone, **settings: object) -> AdaptedModel:
    return adapt.wrap(backbone, methods.Descriptions(descriptors=TABLE, **settings), NAMES).eval()


def test_a_score_is_the_mean_cosine_and_not_that_with_a_mean_of_unit_length(backbone: Backbone, images: Tensor) -> None:
    model = wrapped(backbone)
    with torch.no_grad():
        features, each = model.image_features(images), model.prompt_features()
        expected = torch.stack([(features @ own.T).mean(-1) for own in each], dim=-1)
        found = (model(images) - backbone.logit_bias) / backbone.logit_scale
    assert [len(own) for own in each] == [3, 1, 2]
    assert torch.allclose(found, expected, atol=1e-5)
    assert model.class_features().norm(dim=-1)[0] < 0.999


def test_the_largest_cosine_counts_where_that_is_asked_for(backbone: Backbone, images: Tensor) -> None:
    model = wrapped(backbone, score="max")
    with torch.no_grad():
        features = model.image_features(images)
        expected = torch.stack([(features @ own.T).max(-1).values for own in model.prompt_features()], dim=-1)
        found = (model(images) - backbone.logit_bias) / backbone.logit_scale
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, wrapped(backbone)(images) / backbone.logit_scale, atol=1e-3)


def test_the_adapter_holds_the_phrases_and_needs_no_file(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    file = tmp_path / "phrases.json"
    file.write_text(json.dumps(TABLE))
    model = adapt.wrap(open_clip, methods.Descriptions(descriptors=str(file)), NAMES).eval()
    path = model.save(tmp_path / "adapter.safetensors")
    file.unlink()
    loaded = adapt.load(path, open_clip)
    assert torch.equal(loaded(images), model(images))
    assert loaded.method.descriptors("cat") == tuple(TABLE["cat"])
    assert torch.equal(model(images), wrapped(open_clip)(images))


def test_an_adapter_that_names_a_file_is_refused_and_the_file_is_not_read(
    open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrapped(open_clip)
    model.method.config = model.method.config.model_copy(update={"descriptors": str(tmp_path / "secret.json")})
    monkeypatch.setattr("adapt.formats.rebuild.check_loadable", lambda *_: None)  # `save` would refuse
    path = model.save(tmp_path / "adapter.safetensors")
    monkeypatch.setattr("adapt.methods.base.descriptors.read_descriptors", lambda path: pytest.fail("it was read"))
    with pytest.raises(AdaptError, match="descriptors names a file"):
        adapt.load(path, open_clip)


def test_other_classes_need_descriptors_of_their_own(open_clip: Backbone) -> None:
    model = wrapped(open_clip)
    assert model.with_classes(["dog", "cat"]).class_names == ("dog", "cat")
    with pytest.raises(AdaptError, match=r"class 'cats' has no descriptors; did you mean 'cat'"):
        model.with_classes(["dog", "cats"])


def test_random_words_are_as_many_and_the_same_for_all_classes(open_clip: Backbone) -> None:
    method = wrapped(open_clip, random_words=3).method
    assert [len(method.descriptors(name)) for name in NAMES] == [3, 1, 2]
    assert method.descriptors("cat")[:2] == method.descriptors("bird_of_prey")
    assert not set(method.descriptors("cat")) & set(TABLE["cat"])
    assert method.descriptors("cat") != wrapped(open_clip, random_words=4).method.descriptors("cat")


def test_random_words_have_three_to_eight_letters() -> None:
    method = methods.Descriptions(descriptors={"cat": ["whiskers"] * 100}, random_words=0)
    pairs = [phrase.split(" ") for phrase in method.descriptors("cat")]
    assert {len(pair) for pair in pairs} == {2}
    assert {len(word) for pair in pairs for word in pair} == {3, 4, 5, 6, 7, 8}


def test_a_class_without_descriptors_is_read_as_published_and_named(
    open_clip: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    method = methods.Descriptions(descriptors={"cat": [], "dog": ["a snout"]})
    adapt.wrap(open_clip, method, ["cat", "dog"])
    assert caplog.messages == ["class 'cat' has no descriptors: as published, its prompt ends in 'which has '"]
    assert [len(method.prompts(open_clip.tokenizer, name)) for name in ("cat", "dog")] == [1, 1]


def test_explanations_agree_with_the_answers(open_clip: Backbone) -> None:
    model, picture = wrapped(open_clip), Image.new("RGB", (40, 30), (200, 30, 90))
    [found], [prediction] = model.explain(picture, top_k=3), model.predict(picture, top_k=3)
    assert found.prediction == prediction
    assert [each.class_name for each in found.reasons] == [name for name, _ in prediction.top]
    for reasons in found.reasons:
        cosines = [cosine for _, cosine in reasons.descriptors]
        assert cosines == sorted(cosines, reverse=True)
        assert {text for text, _ in reasons.descriptors} == set(TABLE[reasons.class_name])
        assert reasons.mean == pytest.approx(sum(cosines) / len(cosines))
    means = [each.mean for each in found.reasons]
    assert means == sorted(means, reverse=True)


def test_a_method_without_descriptors_explains_nothing(open_clip: Backbone) -> None:
    model = adapt.wrap(open_clip, methods.ZeroShot(), NAMES)
    with pytest.raises(AdaptError, match="zero_shot does not decide by descriptors"):
        model.explain(Image.new("RGB", (40, 30)))


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [
        ({}, "there are no descriptors"),
        ({"cat": ["whiskers", " "]}, "a descriptor of 'cat' is empty"),
        ("phrases.txt", "neither a .csv nor a .json"),
        ("none.json", "cannot be read"),
    ],
)
def test_bad_descriptors_are_refused_by_name(open_clip: Backbone, descriptors: object, expected: str) -> None:
    with pytest.raises(AdaptError, match=expected):
        adapt.wrap(open_clip, methods.Descriptions(descriptors=descriptors), ["cat"])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "class,phrase\ncat,fur\n", "the first line is 'class,phrase'; expected 'class,descriptor'"),
        ("a.csv", "class,descriptor\ncat,\n", r"entry 1 is \['cat', ''\]; expected a class and its descriptor"),
        ("a.json", '{"cat": "fur"}', "expected a class and a list of its descriptors"),
        ("a.json", '{"cat": ["fur", ""]}', "none of them empty"),
        ("a.json", '{"cat": ["fur"], "cat": ["ears"]}', "the class 'cat' is listed twice"),
        ("a.json", '{"cat": [], "cat": ["ears"]}', "the class 'cat' is listed twice"),
        ("a.json", '{"cat": ["' + "x" * 2000 + '"]}', "a text has 2,000 characters"),
        ("a.json", "[1]", "expected a JSON object"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, content: str, expected: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(AdaptError, match=expected):
        read_descriptors(tmp_path / name)


def test_both_forms_of_files_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("class,descriptor\ncat,whiskers\ndog,a snout\ncat,'-like fur\n")
    (tmp_path / "a.json").write_text('{"cat": ["whiskers", "-like fur"], "dog": ["a snout"]}')
    assert read_descriptors(tmp_path / "a.csv") == read_descriptors(tmp_path / "a.json")


def test_the_bundled_ones_cover_the_bundled_groups() -> None:
    table = read_descriptors("emoji")
    assert set(table) == set(adapt.data.load("emoji").class_names)
    assert min(map(len, table.values())) >= 8


def test_phrases_as_they_are_written(open_clip: Backbone) -> None:
    plain, said = (wrapped(open_clip, sentences=sentences, template="{name}: {descriptor}") for sentences in (0, 1))
    for model, texts in ((plain, ["dog: a snout"]), (said, ["dog: which is a snout"])):
        with torch.no_grad():
            expected = open_clip.encode_text(open_clip.tokenize(texts))
        found = model.prompt_features()[1].detach()
        assert torch.allclose(found, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5)
