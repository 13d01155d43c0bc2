"""`adapt export`."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime
import pytest
import torch
from selection import by_turns

import adapt
from adapt.cli import formats as command
from adapt.common.shown import readable_bytes
from adapt.data import open_image
from adapt.formats.export import FORMS


def test_a_compact_folder_stands_for_its_adapter(run, model_folder: Path, photos: Path, tmp_path: Path) -> None:
    backbone = adapt.load_backbone(str(model_folder))
    model = adapt.wrap(backbone, adapt.methods.DAS(skipped=["vision.1"]), ("goldfish", "lime tree", "sky"))
    adapter, folder = model.save(tmp_path / "das.safetensors"), tmp_path / "light"
    result = run("export", adapter, "--compact", "--out", folder)
    assert (result.exit_code, result.stderr) == (0, "")
    count = sum(parameter.numel() for parameter in backbone.model.parameters())
    block = sum(parameter.numel() for parameter in backbone.tower("vision").blocks[1].module.parameters())
    size = readable_bytes(sum(path.stat().st_size for path in folder.iterdir()))
    parameters = f"{count - block:,} of the backbone's {count:,} parameters"
    assert result.stdout == f"written to {folder}: {size}, {parameters}\n"
    for arguments in (["predict", photos / "test", "--json"], ["eval", "--data", photos, "--json"]):
        command, *rest = arguments
        before, after = (run(command, source, *rest) for source in (adapter, folder))
        assert (after.exit_code, after.stdout) == (0, before.stdout)
    assert run("inspect", folder).stdout.startswith(f"{folder / 'adapter.safetensors'}  ")


def test_export_refusals(run, refused, adapter: Path, tmp_path: Path) -> None:
    refused(run("export", adapter, "--out", tmp_path / "light"), "give either --compact or --to")
    refused(run("export", adapter, "--compact", "--out", tmp_path / "light"), "this coop adapter skips no block")
    refused(run("predict", tmp_path, "photo.png"), "there is no adapter in the folder", "expected adapter.safetensors")
    assert not (tmp_path / "light").exists()


@pytest.mark.full
def test_a_model_by_itself(run, adapter: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "onnx"
    result = run("export", adapter, "--to", "onnx", "--out", out, "--data", photos)
    assert (result.exit_code, result.stderr) == (0, "")
    record = json.loads((out / "export.json").read_text())
    size = readable_bytes(sum(path.stat().st_size for path in out.iterdir()))
    right = f"{100 * record['measured']['accuracy']:.1f} %"
    between = "{:.1f} to {:.1f}".format(*(100 * end for end in record["measured"]["accuracy_interval"]))
    assert result.stdout == (
        f"written to {out}: {size}, logits within {record['difference']:.1e} of the adapter's\n"
        f"{right} of 6 images ({between} at 95 %), the adapter itself {right}; the same label for 100.0 %\n"
    )
    assert run("eval", adapter, "--data", photos).stdout.startswith(f"{right} ({between}) of 6 test images")
    picture, model = photos / "test" / "sky" / "0.png", adapt.load(adapter)
    pixels = model.backbone.transform(train=False)(open_image(picture))[None]
    [logits] = onnxruntime.InferenceSession(str(out / "model.onnx")).run(None, {"images": pixels.numpy()})
    expected = model.predict(picture, top_k=3)[0].top
    probabilities = torch.from_numpy(logits)[0].softmax(-1).tolist()
    assert {name: round(p, 4) for name, p in zip(record["class_names"], probabilities)} == {
        name: round(p, 4) for name, p in expected
    }


@by_turns("names", ["cup, pen", "names.txt"])
def test_other_class_names(run, adapter: Path, tmp_path: Path, names: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("cup\npen\n")
    result = run("export", adapter, "--to", "torch", "--out", "out", "--classes", names)
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(Path("out/export.json").read_text())["class_names"] == ["cup", "pen"]


def test_refusals_of_models_by_themselves(run, refused, adapter: Path, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(run("export", adapter, "--to", "onnx", "--compact", "--out", out), "give either --compact or --to")
    refused(
        run("export", adapter, "--compact", "--int8", "--out", out),
        "--int8, --runtime, --classes and --data need --to",
    )
    refused(run("export", adapter, "--to", "torch", "--int8", "--out", out), "int8 applies to onnx")
    cocoop = adapt.wrap(adapt.load_backbone(str(model_folder)), adapt.methods.CoCoOp(), ("goldfish", "sky"))
    cocoop.save(tmp_path / "cocoop.safetensors")
    refused(run("export", tmp_path / "cocoop.safetensors", "--to", "onnx", "--out", out), "this cocoop cannot be")
    assert not out.exists()


def test_the_forms_are_those_of_the_library() -> None:
    """The command lists them itself, as its help imports no torch."""
    [to] = [each for each in command.export.params if each.name == "to"]
    assert set(to.type.choices) == set(FORMS)
