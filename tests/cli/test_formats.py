"""`adapt inspect`, `adapt merge` and `adapt convert`."""

from __future__ import annotations

import json
from pathlib import Path

import dassl_files
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import adapt


def test_inspect(run, adapter: Path, model_folder: Path) -> None:
    result = run("inspect", adapter, "--words", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    output = result.stdout
    assert "coop (n_ctx=2" in output
    assert f"{model_folder} (32 px, photographs turned upright)" in output
    assert "3: goldfish, lime tree, sky" in output
    assert "2 shots, all classes, 6 items\n" in output
    assert "64 in 1 tensors" in output
    nearest = output.splitlines()[-2:]
    assert [line.split()[0] for line in nearest] == ["0", "1"]
    assert all(line.count("(") == 2 for line in nearest)


def _untrained(model_folder: Path, path: Path, name: str, **settings: object) -> Path:
    """The adapter of a method as it starts."""
    method = adapt.methods.find(name)(**settings)
    return adapt.wrap(adapt.load_backbone(str(model_folder)), method, ("goldfish", "sky")).save(path)


@pytest.mark.parametrize(
    ("method", "settings", "name", "words"),
    [
        ("coop", {"ctx_init": "a red car"}, "ctx", ["a", "red", "car"]),
        ("cocoop", {}, "ctx", ["a", "photo", "of", "a"]),
        ("maple", {"n_ctx": 2, "depth": 2}, "ctx", ["a", "photo"]),
        ("ivlp", {"n_ctx_text": 3, "depth_text": 2, "depth_vision": 1}, "text.0", ["a", "photo", "of"]),
        ("dpl", {"n_ctx_text": 2, "depth_text": 1, "depth_vision": 1}, "text.0", ["a", "photo"]),
    ],
)
def test_the_words_nearest_to_tokens_that_start_from_words_are_those(
    run, model_folder: Path, tmp_path: Path, method: str, settings: dict[str, object], name: str, words: list[str]
) -> None:
    adapter = _untrained(model_folder, tmp_path / "start.safetensors", method, **settings)
    result = run("inspect", adapter, "--words", 1)
    assert (result.exit_code, result.stderr) == (0, "")
    shown = result.stdout.splitlines()
    assert [line for line in shown if line.startswith("nearest")] == [f"nearest words of {name} (distance)"]
    assert [line.split() for line in shown[-len(words) :]] == [[str(i), w, "(0.00)"] for i, w in enumerate(words)]


def test_class_specific_tokens_are_read_class_by_class(run, model_folder: Path, tmp_path: Path) -> None:
    settings = {"n_ctx": 2, "class_specific": True}
    adapter = _untrained(model_folder, tmp_path / "start.safetensors", "coop", **settings)
    shown = run("inspect", adapter).stdout.partition("nearest words of ctx (distance)\n")[2]
    assert [line.split()[0] for line in shown.splitlines()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("method", "settings"), [("ivlp", {"n_ctx_text": 0, "depth_vision": 2}), ("lora", {}), ("zero_shot", {})]
)
def test_no_words_are_shown_where_no_text_tokens_are_learned(
    run, model_folder: Path, tmp_path: Path, method: str, settings: dict[str, object]
) -> None:
    result = run("inspect", _untrained(model_folder, tmp_path / "start.safetensors", method, **settings))
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"method     {method} (" in result.stdout
    assert "nearest" not in result.stdout


def test_vision_tokens_are_shown_without_a_backbone(run, open_clip, tmp_path: Path) -> None:
    model = adapt.wrap(open_clip, adapt.methods.IVLP(n_ctx_text=0, depth_vision=2), ("goldfish", "sky"))
    assert run("inspect", model.save(tmp_path / "nameless.safetensors")).exit_code == 0


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
    refused(run("merge", adapter, tmp_path / "merged"), "cannot be merged")
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


def _random(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.randn(shape).half() for name, shape in shapes.items()}


def test_a_published_coop_checkpoint(run, names: Path, photos: Path, tmp_path: Path, model_folder: Path) -> None:
    source, target = tmp_path / "model.pth.tar-50", tmp_path / "adapter.safetensors"
    tensors = _random(ctx=(4, 32))
    dassl_files.save(source, dassl_files.of_a_learner(tensors))
    given = ("--backbone", model_folder, "--classes", names, "--set", "class_position=middle")
    result = run("convert", source, target, *given)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"written to {target}\n", "")
    model = adapt.load(target)
    assert torch.equal(model.method.ctx, tensors["ctx"].float())
    assert model.method.config.class_position == "middle"
    assert model.class_names == ("goldfish", "lime tree", "sky")
    assert run("predict", target, photos / "test").exit_code == 0


def test_a_published_maple_checkpoint(run, names: Path, photos: Path, tmp_path: Path, model_folder: Path) -> None:
    source, target = tmp_path / "model.pth.tar-5", tmp_path / "adapter.safetensors"
    couplings = {"proj__weight": (64, 32), "proj__bias": (64,)}
    couplings |= {name.replace("proj", "compound_prompt_projections__0"): shape for name, shape in couplings.items()}
    tensors = _random(ctx=(2, 32), compound_prompts_text__0=(2, 32), **couplings)
    dassl_files.save(source, dassl_files.of_maple(tensors))
    result = run("convert", source, target, "--method", "maple", "--backbone", model_folder, "--classes", names)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"written to {target}\n", "")
    model = adapt.load(target)
    assert model.method.config.model_dump() == {"n_ctx": 2, "depth": 2, "ctx_init": "a photo of a"}
    found = model.method.state_dict()
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor.float()) for name, tensor in tensors.items())
    assert run("predict", target, photos / "test").exit_code == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "cocoop"], "lacks meta_net.linear1.bias"),
        (["--method", "maple"], "is not a checkpoint of maple"),
        (["--method", "copo"], "unknown method 'copo'; did you mean 'coop'?"),
        (["--method", "lora"], "adapt cannot read published lora checkpoints"),
        (["--set", "class_position=back"], "class_position is 'back'"),
        (["--set", "position=end"], "coop: unknown key 'position'; did you mean 'class_position'?"),
        (["--set", "class_position"], "override 'class_position' is not of the form key=value"),
        (["--set", "path=x"], "unknown key 'path'"),
        (["--set", "method=x"], "unknown key 'method'"),
    ],
)
def test_refusals_of_published_checkpoints(
    run, refused, names: Path, model_folder: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    source, target = tmp_path / "model.pth.tar-50", tmp_path / "adapter.safetensors"
    dassl_files.save(source, dassl_files.of_a_learner(_random(ctx=(4, 32))))
    refused(run("convert", source, target, "--backbone", model_folder, "--classes", names, *options), words)
    assert not target.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ADAPTER", "x"], "is taken for an adapter of adapt, which needs no import: give --to peft"),
        (["ADAPTER", "x", "--to", "peft"], "only LoRA and DoRA can be written in peft's layout"),
        (["model.pth.tar", "x"], "does not record its backbone and classes: give --backbone and --classes"),
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

    monkeypatch.setattr("adapt.formats.adapter.read_header", stop)
    assert run("inspect", adapter).exit_code == 130


def test_class_names_in_latin_1_are_refused(run, model_folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes("Käfer\n".encode("latin-1"))
    result = run("convert", tmp_path / "x.pth", tmp_path / "out", "--backbone", model_folder, "--classes", names)
    assert result.exit_code == 2
    assert f"list '{names}' cannot be read: it is not UTF-8" in result.stderr
