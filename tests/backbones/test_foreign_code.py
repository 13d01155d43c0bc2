"""Code that lies in a model's folder never runs, whatever configuration, header or recipe asks for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import tiny_llms

import adapt
from adapt import AdaptError, Backbone
from adapt.backbones.sources import check_configuration
from adapt.formats import compact, tensor_file

MARKER = "ran"
Planted = Callable[[Path], Path]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Planted:
    """Puts a module into a folder that writes a marker when it is imported; nobody answers y at the terminal."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: "y")

    def planted(folder: Path) -> Path:
        marker = tmp_path / MARKER
        lines = [
            "from pathlib import Path",
            f"Path({str(marker)!r}).touch()",
            "from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast",
            "class Tokenizer(PreTrainedTokenizerFast): pass",
            "class Processor(CLIPImageProcessor): pass",
            "class Config(CLIPConfig): model_type = 'evil'",
            "class Model(CLIPModel): config_class = Config",
        ]
        (folder / "evil.py").write_text("\n".join(lines) + "\n")
        return marker

    return planted


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text()) if path.is_file() else {}
    change(config)
    path.write_text(json.dumps(config))


def refused(load: Callable[[], Any], marker: Path, *parts: str) -> None:
    with pytest.raises(AdaptError) as caught:
        load()
    assert not marker.exists(), "code of the folder ran"
    assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)
    assert "\n" not in str(caught.value)
    assert "trust_remote_code=True" not in str(caught.value)  # the library's advice is no way to go


def open_clip_folder(model_folder: Path, folder: Path, plant: Planted, options: dict[str, Any]) -> Path:
    """The open_clip folder with a tokenizer of its own code, which its configuration wants to be run."""
    shutil.copytree(model_folder, folder)
    return with_code(folder, plant, options)


def with_code(folder: Path, plant: Planted, options: dict[str, Any]) -> Path:
    tiny_backbones.hf_clip_tokenizer().save_pretrained(folder)
    edit(folder / "tokenizer_config.json", lambda it: it.update(auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}))
    text = {"hf_tokenizer_name": "anything", "tokenizer_kwargs": options}
    edit(folder / "open_clip_config.json", lambda it: it["model_cfg"]["text_cfg"].update(text))
    return plant(folder)


@pytest.mark.parametrize("value", [True, "yes", 1])
def test_an_open_clip_folder(model_folder: Path, tmp_path: Path, plant: Planted, value: Any) -> None:
    folder = tmp_path / "model"
    marker = open_clip_folder(model_folder, folder, plant, {"trust_remote_code": value})
    place = "model_cfg.text_cfg.tokenizer_kwargs.trust_remote_code"
    refused(lambda: adapt.load_backbone(str(folder)), marker, "open_clip_config.json", place, "remove the key")


def test_an_open_clip_folder_whose_tokenizer_is_its_own_code(
    model_folder: Path, tmp_path: Path, plant: Planted
) -> None:
    marker = open_clip_folder(model_folder, tmp_path / "model", plant, {})
    refused(lambda: adapt.load_backbone(str(tmp_path / "model")), marker, "tokenizer_config.json", "auto_map")


def test_an_open_clip_folder_hands_nothing_else_to_transformers(
    model_folder: Path, tmp_path: Path, plant: Planted
) -> None:
    marker = open_clip_folder(model_folder, tmp_path / "model", plant, {"subfolder": "../elsewhere"})
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    refused(lambda: adapt.load_backbone(str(tmp_path / "model")), marker, "tokenizer_kwargs.subfolder", "strip_sep")


def test_an_open_clip_folder_whose_text_tower_is_its_own_code(
    model_folder: Path, tmp_path: Path, plant: Planted
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": auto_map}))
    edit(folder / "open_clip_config.json", lambda it: it["model_cfg"]["text_cfg"].update(hf_model_name=str(folder)))
    refused(lambda: adapt.load_backbone(str(folder)), plant(folder), "auto_map in config.json", "runs no code")


def transformers_folder(folder: Path, hf_clip: Backbone, plant: Planted) -> Path:
    hf_clip.export(folder, hf_clip.model)
    return plant(folder)


@pytest.mark.parametrize(
    ("file", "auto_map"),
    [
        ("tokenizer_config.json", {"AutoTokenizer": [None, "evil.Tokenizer"]}),
        ("tokenizer_config.json", [None, "evil.Tokenizer"]),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Processor"}),
    ],
)
def test_a_transformers_folder_with_readers_of_its_own(
    hf_clip: Backbone, tmp_path: Path, plant: Planted, file: str, auto_map: Any
) -> None:
    marker = transformers_folder(tmp_path / "model", hf_clip, plant)
    edit(tmp_path / "model" / file, lambda it: it.update(auto_map=auto_map))
    refused(lambda: adapt.load_backbone(str(tmp_path / "model")), marker, file, "auto_map")


def test_a_transformers_folder_with_a_model_of_its_own(hf_clip: Backbone, tmp_path: Path, plant: Planted) -> None:
    folder = tmp_path / "model"
    marker = transformers_folder(folder, hf_clip, plant)
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    edit(folder / "config.json", lambda it: it.update(auto_map=auto_map))
    known = adapt.load_backbone(str(folder))  # transformers' own CLIPModel stands in
    assert known.fingerprint == hf_clip.fingerprint
    assert not marker.exists()
    edit(folder / "config.json", lambda it: it.update(model_type="evil"))
    refused(lambda: adapt.load_backbone(str(folder)), marker, "auto_map in config.json", "runs no code")


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_from_a_repository(hf_clip: Backbone, tmp_path: Path, plant: Planted, key: str) -> None:
    marker = transformers_folder(tmp_path / "model", hf_clip, plant)
    edit(tmp_path / "model" / "config.json", lambda it: it["vision_config"].update({key: "evil/kernel"}))
    refused(lambda: adapt.load_backbone(str(tmp_path / "model")), marker, f"vision_config.{key}", "config.json")


def test_an_adapter_of_peft_beside_the_model(hf_clip: Backbone, tmp_path: Path, plant: Planted) -> None:
    marker = transformers_folder(tmp_path / "model", hf_clip, plant)
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps({"megatron_core": "evil"}))
    refused(lambda: adapt.load_backbone(str(tmp_path / "model")), marker, "adapter_config.json", "peft")


def test_a_language_model(tmp_path: Path, plant: Planted) -> None:
    folder = tmp_path / "llm"
    tiny_llms.llm("llama").save_pretrained(folder)
    tiny_llms.tokenizer().save_pretrained(folder)
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", lambda it: it.update(auto_map=auto_map, model_type="evil"))
    marker = plant(folder)
    refused(lambda: adapt.load_backbone(f"mini-clip+{folder}"), marker, "auto_map in config.json", "runs no code")
    edit(folder / "config.json", lambda it: it.update(trust_remote_code=True))
    refused(lambda: adapt.load_backbone(f"mini-clip+{folder}"), marker, "config.json", "trust_remote_code is True")


def test_a_compact_folder(model_folder: Path, tmp_path: Path, plant: Planted) -> None:
    das = adapt.methods.DAS(skipped=("vision.1",), towers=("text", "vision"))
    folder = compact.export(adapt.wrap(adapt.load_backbone(str(model_folder)), das, ["cat", "dog"]), tmp_path / "small")
    adapt.load(folder)
    marker = with_code(folder, plant, {"trust_remote_code": True})
    refused(lambda: adapt.load(folder), marker, "open_clip_config.json", "tokenizer_kwargs.trust_remote_code")


def test_an_adapter_that_names_such_a_folder(model_folder: Path, tmp_path: Path, plant: Planted) -> None:
    made = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.CoOp(n_ctx=2), ["cat", "dog"])
    path = made.save(tmp_path / "adapter.safetensors")
    marker = open_clip_folder(model_folder, tmp_path / "model", plant, {"trust_remote_code": True})
    header = tensor_file.describe(path).metadata
    tensor_file.write(tensor_file.read(path), path, header | {"backbone": json.dumps(str(tmp_path / "model"))})
    refused(lambda: adapt.load(path), marker, "tokenizer_kwargs.trust_remote_code")


def test_what_turns_nothing_on_is_taken() -> None:
    check_configuration({"trust_remote_code": False, "text_config": {"attn_implementation": "sdpa"}}, "config.json")
    check_configuration({"text_cfg": {"tokenizer_kwargs": {"clean": "lower", "strip_sep_token": True}}}, "config.json")
    with pytest.raises(AdaptError, match=r"c.json is refused because its key a\.b\.trust_remote_code is True"):
        check_configuration({"a": [{"b": {"trust_remote_code": True}}]}, "c.json")


@pytest.mark.parametrize("name", [3, ["anything"], {"a": 1}])
def test_a_language_model_that_is_no_name_is_refused(tmp_path: Path, name: Any) -> None:
    config = {"model_cfg": {"embed_dim": 4, "text_cfg": {"hf_model_name": name}, "vision_cfg": {}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(AdaptError, match=r"is damaged.*hf_model_name is .*; expected a name"):
        adapt.load_backbone(str(tmp_path))
