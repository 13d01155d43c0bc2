"""`adapt inspect`, `adapt merge` and `adapt convert`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import adapt


def test_inspect(run, adapter: Path, model_folder: Path) -> None:
    result = run("inspect", adapter, "--words", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    output = result.stdout
    assert "coop (n_ctx=2" in output
    assert f"{model_folder} (32 px)" in output
    assert "3: goldfish, lime tree, sky" in output
    assert "64 in 1 tensors" in output
    nearest = output.splitlines()[-2:]
    assert [line.split()[0] for line in nearest] == ["0", "1"]
    assert all(line.count("(") == 2 for line in nearest)


def test_inspect_as_json(run, adapter: Path) -> None:
    header = json.loads(run("inspect", adapter, "--json").stdout)
    assert header["method"] == "coop"
    assert header["class_names"] == ["goldfish", "lime tree", "sky"]
    assert header["recipe"]["data"]["shots"] == 2


def test_a_merged_lora_is_a_backbone_of_its_own(run, trained, photos: Path, tmp_path: Path) -> None:
    adapter = trained("lora") / "adapter.safetensors"
    assert run("merge", adapter, tmp_path / "merged").stdout == f"merged into {tmp_path}/merged\n"
    image = torch.randn(1, 3, 32, 32)
    adapted = adapt.load(adapter)
    with torch.inference_mode():
        before, expected = adapted.backbone.encode_image(image), adapted.image_features(image)
        merged = adapt.load_backbone(str(tmp_path / "merged")).encode_image(image)
    torch.testing.assert_close(F.normalize(merged, dim=-1), expected)
    assert not torch.allclose(F.normalize(before, dim=-1), expected, atol=1e-3)
    assert run("zeroshot", "--backbone", tmp_path / "merged", "--data", photos).exit_code == 0


def test_merge_refusals(run, refused, trained, adapter: Path, tmp_path: Path) -> None:
    refused(run("merge", adapter, tmp_path / "merged"), "only LoRA can be merged")
    assert not (tmp_path / "merged").exists()
    (tmp_path / "mine").mkdir()
    refused(run("merge", trained("lora") / "adapter.safetensors", tmp_path / "mine"), "exists already")


@pytest.fixture
def names(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("goldfish\nlime tree\nsky\n")
    return path


def test_lora_to_pefts_layout_and_back(run, trained, names: Path, photos: Path, tmp_path: Path, model_folder) -> None:
    adapter, folder = trained("lora") / "adapter.safetensors", tmp_path / "peft"
    assert run("convert", adapter, folder, "--to", "peft").exit_code == 0
    back = tmp_path / "back.safetensors"
    result = run("convert", folder, back, "--backbone", model_folder, "--classes", names)
    assert result.stdout == f"written to {back}\n"
    predictions = [run("predict", path, photos / "test", "--json").stdout for path in (adapter, back)]
    assert predictions[0] == predictions[1]


def test_a_published_coop_checkpoint(run, names: Path, photos: Path, tmp_path: Path, model_folder: Path) -> None:
    source, target = tmp_path / "model.pth.tar-50", tmp_path / "adapter.safetensors"
    ctx = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)).half()
    torch.save({"state_dict": {"ctx": ctx, "token_prefix": torch.zeros(3, 1, 32)}, "epoch": 50}, source)
    result = run("convert", source, target, "--backbone", model_folder, "--classes", names)
    assert (result.exit_code, result.stderr) == (0, "")
    assert run("predict", target, photos / "test").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ADAPTER", "x"], "is an adapter already; give --to peft"),
        (["ADAPTER", "x", "--to", "peft"], "only plain LoRA has peft's layout"),
        (["model.pth.tar", "x"], "names neither backbone nor classes: give --backbone and --classes"),
        (["model.pth.tar", "x", "--backbone", "MODEL", "--classes", "NAMES"], "there is no checkpoint at model.pth"),
        (["MODEL", "x", "--backbone", "MODEL", "--classes", "NAMES"], "it has no adapter_config.json"),
    ],
)
def test_convert_refusals(
    run, refused, adapter: Path, names: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = {"ADAPTER": adapter, "MODEL": model_folder, "NAMES": names}
    refused(run("convert", *(given.get(argument, argument) for argument in arguments)), words)
    assert not Path("x").exists()


def test_ctrl_c_in_any_command_exits_with_130(run, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adapt.adapter.read_header", stop)
    assert run("inspect", adapter).exit_code == 130
