"""Model folders whose configuration makes no sense: an error of one line, whatever the library makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import adapt
from adapt import AdaptError, Backbone


def changed(path: Path, keys: str, value: Any) -> None:
    """Puts `value` under dotted `keys` of the JSON at `path`."""
    config = json.loads(path.read_text())
    *owners, leaf = keys.split(".")
    owner = config
    for key in owners:
        owner = owner[key]
    owner[leaf] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("text_config.hidden_size", "x", "Field 'hidden_size' expected int"),
        ("text_config.hidden_size", 7, r"The hidden size \(7\) is not a multiple"),
        ("text_config", 3, "'text_config' with value 3"),
        ("text_config.num_attention_heads", 0, "modulo by zero"),
        ("text_config.hidden_act", "nope", "KeyError 'nope'"),
        ("architectures", 3, "(?:'int' is not iterable|expected a list, got int)"),
        ("projection_dim", None, "(?:must be tuple of ints|invalid combination of arguments)"),  # by torch's release
    ],
)
def test_in_transformers_format(hf_clip: Backbone, tmp_path: Path, keys: str, value: Any, message: str) -> None:
    hf_clip.export(tmp_path / "m", hf_clip.model)
    changed(tmp_path / "m" / "config.json", keys, value)
    with pytest.raises(
        AdaptError, match=f"m' is damaged and transformers cannot load the model: .*{message}"
    ) as caught:
        adapt.load_backbone(str(tmp_path / "m"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "value"),
    [("embed_dim", "x"), ("vision_cfg.heads", 0), ("vision_cfg.head_width", 0), ("text_cfg.heads", 0)],
)
def test_in_open_clips_format(tmp_path: Path, keys: str, value: Any) -> None:
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 1}
    path = tmp_path / "open_clip_config.json"
    path.write_text(json.dumps({"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}))
    changed(path, f"model_cfg.{keys}", value)
    with pytest.raises(AdaptError, match="cannot be loaded with open_clip") as caught:
        adapt.load_backbone(str(tmp_path))
    assert "\n" not in str(caught.value)
