"""What a header may say: checked as a recipe is, whoever wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from faults import corrupt
from pydantic import ValidationError

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.cli import main
from adapt.formats import tensor_file
from adapt.formats.adapter import read_header

NAMES = ("goldfish", "red_panda")


@pytest.fixture
def model(open_clip: Backbone) -> AdaptedModel:
    return adapt.wrap(open_clip, adapt.methods.CoOp(n_ctx=4), NAMES)


@pytest.fixture
def saved(model: AdaptedModel, tmp_path: Path) -> Path:
    return model.save(tmp_path / "a.safetensors")


def say(path: Path, signed: bool = True, **values: Any) -> Path:
    """Puts raw text or plain data into the metadata, with a checksum that fits unless `signed` is false."""
    tensors, metadata = tensor_file.read(path), tensor_file.describe(path).metadata
    metadata |= {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    if signed:
        tensor_file.write(tensors, path, metadata)
    else:
        header, data = corrupt.taken_apart(path.read_bytes())
        header["__metadata__"] |= metadata
        path.write_bytes(corrupt.put_together(header, data))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"class_names": '"x"'}, r"class_names is 'x': .*valid (array|tuple)"),
        ({"class_names": [1, 2]}, "class_names is 1: .*valid string"),
        ({"class_names": [""]}, "class_names is '': .*at least 1 character"),
        ({"class_names": ["x" * 1001]}, "at most 1000 characters"),
        ({"class_names": [f"thing {i}" for i in range(25_001)]}, "has 25,001 values; expected at most 25,000"),
        ({"answers": {"blend": 0.0, "template": [], "temperature": 1.0}}, "answers: .*give at least one template"),
        ({"answers": {"blend": 0.5, "template": ["cat"], "temperature": 1.0}}, r"answers: .*must contain \{\}"),
        (
            {"config": {str(i): i for i in range(25_001)}},
            r"\(a list or an object has 25,001 values; expected at most 25,000\)",
        ),
        ({"config": '{"n_ctx": ' + "9" * 5000 + "}"}, "Exceeds the limit"),
        ({"config": {"n_ctx": 2**80}}, "an integer has 81 bits; expected at most 64"),
        ({"config": '{"n_ctx": NaN}'}, "NaN is not allowed in JSON"),
        ({"logit_scale": "1e999"}, "the number 1e999 is too large"),
        ({"config": "[" * 100_000}, "nested too deep"),
        ({"config": "[" * 500 + "]" * 500}, "nested too deep"),
        ({"metrics": '{"a": 1, "a": 2}'}, "a key appears twice"),
        ({"format": '"1"'}, r"format is '1'; expected two numbers such as \[2, 1\]"),
        ({"format": "[1, 1, 1]"}, "expected two numbers"),
        ({"seed": '"1"'}, "seed is '1': .*valid integer"),
        ({"quantization": '"int3"'}, "quantization is 'int3'"),
        ({"preprocess": {}}, "preprocess.*turned' is missing"),
        ({"fingerprint": {"structure": "x", "values": ["a"]}}, "fingerprint.*values.* is 'a'"),
        ({"fingerprint": {"structure": "x", "values": [], "configuration": 3}}, "fingerprint.*configuration is 3"),
        ({"fingerprint": {"structure": "x", "values": []}}, "fingerprint.*configuration' is missing"),
        ({"shoe_size": 43}, "the header has the unknown key 'shoe_size'"),
        ({"format": "[1]"}, "expected two numbers"),
        ({"format": "[1, -1]"}, "expected two numbers"),
        ({"format": "[1, true]"}, "expected two numbers"),
        ({"format": "[3, 0]"}, r"has adapter format 3\.0, but this adapt reads 2\.1: upgrade adapt"),
        ({"format": "[1, 1]"}, r"has adapter format 1\.1, but this adapt reads 2\.1: train the adapter again"),
        ({"preprocess": {"size": 0}}, "size.* is 0"),
        ({"preprocess": {"size": "8"}}, "size.* is '8'"),
        ({"preprocess": {"size": 8}}, "turned' is missing"),
        ({"preprocess": {"size": 8, "turned": False, "patch_block": "x"}}, "patch_block.* is 'x'"),
        ({"fingerprint": {"structure": 1, "values": []}}, "structure.* is 1"),
        ({"logit_scale": '"1"'}, "logit_scale is '1'"),
        ({"versions": {"adapt": 1}}, "versions.* is 1"),
    ],
)
def test_values_that_make_no_sense_are_named(saved: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message) as caught:
        read_header(say(saved, **values))
    assert str(caught.value).startswith(str(saved))
    assert "\n" not in str(caught.value)


def test_a_header_of_too_many_values_is_refused(saved: Path) -> None:
    with pytest.raises(AdaptError, match=r"has a header of 250,\d+ values; expected at most 250,000$"):
        read_header(say(saved, signed=False, metrics={"a": [[0] * 25_001] * 10}))


def test_what_would_be_refused_is_not_saved(model: AdaptedModel, tmp_path: Path) -> None:
    for metrics, message in (
        ({str(i): i for i in range(25_001)}, "cannot be saved: .*object has 25,001 values; expected at most 25,000"),
        (
            {"a": [[0] * 25_000] * 11},
            r"a header of 275,\d+ values; expected at most 250,000: leave out classes, descriptors",
        ),
    ):
        model.metadata = {"metrics": metrics}
        with pytest.raises(AdaptError, match=message):
            model.save(tmp_path / "b.safetensors")
        assert list(tmp_path.iterdir()) == []


def test_a_header_keeps_what_has_a_value_and_cannot_be_changed(saved: Path) -> None:
    metadata = tensor_file.describe(saved).metadata
    assert metadata["format"] == "[2,0]"
    assert metadata.keys() & {"backbone", "quantization", "recipe", "seed", "metrics"} == set()
    header = read_header(saved)
    assert (header.backbone, header.quantization, header.recipe, header.seed, header.metrics) == (None,) * 5
    with pytest.raises(ValidationError, match="frozen"):
        header.seed = 1


def test_long_texts_are_kept_where_no_tokenizer_reads_them(model: AdaptedModel, tmp_path: Path) -> None:
    model.metadata = {"recipe": {"note": "x" * 5000}}
    assert read_header(model.save(tmp_path / "a.safetensors")).recipe == model.metadata["recipe"]


def test_keys_of_the_preprocessing_that_others_add_are_kept(saved: Path) -> None:
    reading = {"size": 1, "turned": False, "prompt": "a", "patch_block": -1, "shoe_size": 43}
    say(saved, format="[2, 2]", preprocess=reading, hat=1)
    assert read_header(saved).preprocess == reading


def test_a_header_has_a_checksum(saved: Path) -> None:
    header, data = corrupt.taken_apart(saved.read_bytes())
    del header["__metadata__"]["checksum"]
    saved.write_bytes(corrupt.put_together(header, data))
    with pytest.raises(AdaptError, match="the header has no checksum"):
        read_header(saved)


def test_more_in_a_fingerprint_than_is_known_here_is_passed_over(saved: Path, open_clip: Backbone) -> None:
    fingerprint = read_header(saved).fingerprint
    assert adapt.load(say(saved, fingerprint=fingerprint | {"heads": 4}), open_clip).class_names == NAMES


@pytest.mark.parametrize("key", ["class_names", "config", "seed", "backbone"])
def test_a_changed_header_is_found_before_anything_is_built(saved: Path, open_clip: Backbone, key: str) -> None:
    values = {"class_names": ["red_panda", "goldfish"], "config": {"n_ctx": 5}, "seed": 4, "backbone": '"mini-clip"'}
    with pytest.raises(AdaptError, match="do not match its checksum"):
        adapt.load(say(saved, signed=False, **{key: values[key]}), open_clip)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"self": 1}, "the recorded settings do not fit the method"),
        ({"n_ctx": 4, "template": "x"}, "unknown key 'template'"),
        ({"ctx_init": "x" * 2000}, "a text has 2,000 characters; expected at most 1,000"),
    ],
)
def test_settings_that_the_method_does_not_take(
    saved: Path, open_clip: Backbone, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdaptError, match=message) as caught:
        adapt.load(say(saved, config=config), open_clip)
    assert str(saved) in str(caught.value)


def test_parts_inside_parts_are_refused_before_they_are_made(saved: Path, open_clip: Backbone) -> None:
    config: dict[str, Any] = {"name": "lora"}
    for _ in range(12):  # each level would be made several times by the one around it
        config = {"name": "compose", "methods": [config, {"name": "das"}]}
    del config["name"]
    with pytest.raises(AdaptError, match="compose cannot be part of a composition"):
        adapt.load(say(saved, method='"compose"', config=config), open_clip)


def test_a_number_beyond_the_methods_own_type_is_refused(saved: Path, open_clip: Backbone) -> None:
    tensors, metadata = tensor_file.read(saved), tensor_file.describe(saved).metadata
    tensor_file.write({"ctx": tensors["ctx"].double().fill_(1e300)}, saved, metadata)
    with pytest.raises(AdaptError, match=r"'ctx' .* not finite"):
        adapt.load(saved, open_clip)


def test_inspect_prints_names_on_lines_of_their_own_only(open_clip: Backbone, tmp_path: Path) -> None:
    names = ("goldfish\nmethod     forged", "red\x1b[31m")
    path = adapt.wrap(open_clip, adapt.methods.LinearProbe(), names).save(tmp_path / "a.safetensors")
    result = CliRunner().invoke(main, ["inspect", str(path)])
    assert result.exit_code == 0
    assert r"goldfish\nmethod     forged, red\x1b[31m" in result.output
    assert sum(line.startswith("method") for line in result.output.splitlines()) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"recipe": {"data": [1]}},
        {"recipe": {"data": {"source": {}}}},
        {"metrics": {"adapted": 3, "zero_shot": {"accuracy": "x"}}},
        {"metrics": {"adapted": {"accuracy": [1]}}},
    ],
)
def test_inspect_shows_what_it_can_of_odd_records(saved: Path, values: dict[str, Any]) -> None:
    result = CliRunner().invoke(main, ["inspect", str(say(saved, **values)), "--words", "0"])
    assert (result.exit_code, result.exception) == (0, None)
    assert "method     coop" in result.output


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"seed": 2**70}, "an integer has 71 bits; expected at most 64"),
        ({"seed": 1.5}, "seed is 1.5: .*valid integer"),
        ({"metrics": {"loss": float("nan")}}, "a result is NaN or infinite"),
        ({"recipe": [1]}, "recipe is .*valid dict"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(
    model: AdaptedModel, tmp_path: Path, metadata: dict[str, Any], message: str
) -> None:
    model.metadata = metadata
    with pytest.raises(AdaptError, match=message):
        model.save(tmp_path / "a.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_inspect_looks_for_words_of_methods_that_can_be_made_only(saved: Path) -> None:
    result = CliRunner().invoke(main, ["inspect", str(say(saved, config={"self": 1}))])
    assert result.exit_code == 2
    assert "the recorded settings do not fit the method" in result.stderr
