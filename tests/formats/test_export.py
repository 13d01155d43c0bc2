"""Models by themselves: what they are refused for, what their record says, and what is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_backbones
import torch
from checks import contents, perturb, scaled
from PIL import Image
from selection import by_turns
from torch import Tensor, nn

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.data import Item, Split, load
from adapt.evaluation.intervals import of_share
from adapt.formats.export import export, forms, tracing
from adapt.methods import AnoVL, CoOp, PatchMemory, TipAdapter, UniQA, ZeroShot
from adapt.methods.base import ImageStep, Method
from adapt.models.prediction import Answers
from adapt.models.sets import Calibration, Sets

NAMES = ("goldfish", "red_panda", "sea cucumber")


@pytest.fixture
def open_clip() -> Backbone:
    """A small one: each of its operations takes its time to export."""
    return tiny_backbones.small()


def model_of(backbone: Backbone, method: Method | None = None) -> AdaptedModel:
    made: AdaptedModel = perturb(adapt.wrap(backbone, method or CoOp(n_ctx=2), NAMES)).eval()
    return made


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return record


def by_onnxruntime(folder: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@pytest.mark.full
def test_the_record_says_how_to_use_it(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = model_of(open_clip)
    assert export(model, tmp_path / "out") == tmp_path / "out"
    record = record_of(tmp_path / "out")
    assert sorted(contents(tmp_path / "out")) == ["export.json", record["file"]] == ["export.json", "model.onnx"]
    assert record["class_names"] == list(NAMES)
    assert record["input"] == {"name": "images", "type": "float32", "shape": ["batch", 3, 32, 32]}
    assert record["output"] == {"name": "logits", "type": "float32", "shape": ["batch", 3]}
    assert (record["to"], record["int8"], record["method"]) == ("onnx", False, "coop")
    said = open_clip.preprocess
    assert record["preprocess"]["mean"] == list(said.mean)
    assert (record["preprocess"]["size"], record["preprocess"]["interpolation"]) == (32, "bicubic")
    assert 0 <= record["difference"] < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("images", ["batch", 3, 32, 32])]
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("logits", ["batch", 3])]


@pytest.mark.full
@by_turns("answers", [Answers(0.25, ("a photo of a {}.",)), Answers(temperature=2.5)])
def test_blend_and_temperature_are_part_of_it(
    answers: Answers, open_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    model = model_of(open_clip)
    plain = model(images)
    model.answers = answers
    assert scaled(model(images), plain) > 1e-2
    export(model, tmp_path / "out")
    assert scaled(by_onnxruntime(tmp_path / "out", images), model(images)) < 1e-4


@pytest.mark.full
def test_other_class_names(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = model_of(open_clip).with_classes(["a cup", "a pen"])
    export(model, tmp_path / "out")
    assert record_of(tmp_path / "out")["class_names"] == ["a cup", "a pen"]
    assert scaled(by_onnxruntime(tmp_path / "out", images), model(images)) < 1e-4


def test_each_image_of_an_item_is_measured(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    model, (first, second, *others) = model_of(open_clip, ZeroShot()), tiny_split.test
    export(model, tmp_path / "one", "torch", data=[first, second, *others])
    export(model, tmp_path / "two", "torch", data=[replace(first, paths=(*first.paths, *second.paths)), *others])
    one, two = (record_of(tmp_path / name)["measured"] for name in ("one", "two"))
    assert two["images"] == one["images"] == len(tiny_split.test)
    assert two["same_labels"] == 1.0


@pytest.mark.full
def test_labelled_images_are_measured(open_clip: Backbone, tiny_split: Split, tmp_path: Path) -> None:
    model = model_of(open_clip)
    items = tiny_split.train + tiny_split.test
    found = [each.class_name for each in model.predict(items)]
    right = sum(name == item.answer for name, item in zip(found, items)) / len(items)
    export(model, tmp_path / "out", "torch", data=items)
    assert record_of(tmp_path / "out")["measured"] == {
        "images": 18,
        "accuracy": right,
        "accuracy_interval": [
            *of_share(torch.tensor([True] * round(18 * right) + [False] * round(18 - 18 * right)), range(18))
        ],
        "adapter_accuracy": right,
        "same_labels": 1.0,
    }


@pytest.mark.full
def test_sets_are_in_the_record(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    """Twelve images: enough for 90 %, and of the first class alone."""
    model = model_of(open_clip)
    scores = tuple(number / 20 for number in range(1, 13))
    sets = Sets("lac", True, (scores, (), ()), ((1,) * 12, (), ()), model.settings_id)
    model.answers = replace(model.answers, sets=sets)
    export(model, tmp_path / "out", "torch")
    found = record_of(tmp_path / "out")["sets"]
    assert found["score"] == "lac"
    assert [(each["level"], each["limits"]) for each in found["levels"]] == [
        (0.5, [0.35, None, None]), (0.8, [0.55, None, None]), (0.9, [0.6, None, None]),
    ]  # fmt: skip
    assert found["levels"][2]["promise"] == sets.promise(0.9, NAMES)
    run = torch.export.load(tmp_path / "out" / "model.pt2").module()
    limits = torch.tensor([torch.inf if limit is None else limit for limit in found["levels"][2]["limits"]])
    held = (1 - run(images).softmax(-1) <= limits + 1e-6).tolist()
    assert held == sets.hold(model(images).softmax(-1), 0.9).tolist()


def test_sets_that_an_export_cannot_keep_are_left_out(
    open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_of(open_clip)
    monkeypatch.setattr(tracing, "traced", None)  # what comes later takes its time
    sets = Sets("lac", False, ((0.5,) * 9,), ((1,) * 9,), model.settings_id)
    for own, int8, reason in (
        (replace(sets, settings="other"), False, "calibrated with other settings"),
        (replace(sets, of_items=True), False, "calibrated on items of several images"),
        (sets, True, "they were calibrated for other weights"),
        (replace(sets, calibration=Calibration(*[torch.zeros(9)] * 3)), False, "for images answered together"),
        (replace(sets, scores=((0.5,) * 9,) * 2, sizes=((1,) * 9,) * 2), False, "for each member of the average"),
    ):
        model.answers = replace(model.answers, sets=own)
        with pytest.raises(TypeError):
            export(model, tmp_path / "out", int8=int8)
        assert "the export gives no sets: " in caplog.text
        assert reason in caplog.text
        caplog.clear()


@pytest.mark.parametrize("to", ["torch", pytest.param("onnx", marks=[pytest.mark.full, pytest.mark.at_length])])
def test_a_regression_model_gives_its_number(to: str, open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    model = perturb(adapt.wrap(open_clip, UniQA(between=(-3.0, 40.0)), NAMES)).eval()
    items = graded_items(tmp_path)
    folder = export(model, tmp_path / "out", to, data=items)
    record = record_of(folder)
    assert record["number"] == {"name": "number", "type": "float32", "shape": ["batch"]}
    predicted = [each.number for each in model.predict(items)]
    error = sum(abs(number - value) for number, value in zip(predicted, (1.0, 9.5))) / 2
    assert record["measured"]["mean_absolute_error"] == pytest.approx(error, abs=1e-3)
    assert record["measured"]["adapter_mean_absolute_error"] == pytest.approx(error, abs=1e-4)
    expected = model.grades(model(images))
    if to == "torch":
        logits, number = torch.export.load(folder / "model.pt2").module()(images)
    else:
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        logits, number = map(torch.from_numpy, session.run(["logits", "number"], {"images": images.numpy()}))
    assert logits.shape == (len(images), 3)
    assert torch.allclose(number, expected, atol=1e-3)
    assert number.std() > 1e-3


def graded_items(folder: Path) -> list[Item]:
    """Two images with the targets 1 and 9.5."""
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    cells = [("a", NAMES[0], 1.0), ("b", NAMES[1], 9.5)]
    return [Item.of(path=str(folder / f"{name}.png"), label=label, target=value) for name, label, value in cells]


@pytest.mark.full
@pytest.mark.at_length
def test_in_eight_bits_it_is_smaller_and_nearly_the_same(images: Tensor, tiny_split: Split, tmp_path: Path) -> None:
    model = model_of(tiny_backbones.backbone("open_clip"))  # whose weights outweigh the graph
    export(model, tmp_path / "whole")
    export(model, tmp_path / "small", int8=True, data=tiny_split.test)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.5 * sizes[1]  # of so small a model the embeddings, which stay, are a large part
    assert sorted(contents(tmp_path / "small")) == ["export.json", "model.onnx"]
    record = record_of(tmp_path / "small")
    assert record["int8"]
    assert record["measured"]["images"] == 6
    assert 1e-5 < record["difference"] < 0.2
    cosine = torch.cosine_similarity(by_onnxruntime(tmp_path / "small", images), model(images).detach())
    assert cosine.min() > 0.99


@pytest.mark.full
def test_openvino_gives_the_same_logits(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    model = model_of(open_clip)
    export(model, tmp_path / "out", "openvino")
    assert sorted(contents(tmp_path / "out")) == ["export.json", "model.bin", "model.xml"]
    options = json.loads((tmp_path / "out" / "export.json").read_text())["compile"]  # other ones are less precise
    written = openvino.Core().compile_model(tmp_path / "out" / "model.xml", "CPU", options)
    for count in (1, 2, 5):
        found = torch.from_numpy(written(images[:count].numpy())["logits"])
        assert scaled(found, model(images[:count])) < 1e-4


@pytest.fixture
def data_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every graph counts as one of more than 1.5 GiB, whose weights torch writes beside it."""
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 0)


@pytest.mark.full
@pytest.mark.usefixtures("data_beside")
@by_turns(
    ("to", "int8", "files"),
    [
        ("onnx", False, ["model.onnx", "model.onnx.data"]),
        ("onnx", True, ["model.onnx"]),
        ("openvino", False, ["model.bin", "model.xml"]),
    ],
)
def test_a_large_model_is_written_whole_and_nothing_besides(
    to: str, int8: bool, files: list[str], open_clip: Backbone, images: Tensor, tmp_path: Path
) -> None:
    if to == "openvino":
        pytest.importorskip("openvino", reason="openvino is not installed")
    model = model_of(open_clip)
    export(model, tmp_path / "out", to, int8=int8)
    assert sorted(contents(tmp_path / "out")) == ["export.json", *files]
    assert record_of(tmp_path / "out")["difference"] < (0.2 if int8 else 1e-5)


@pytest.mark.full
@pytest.mark.usefixtures("data_beside")
def test_in_eight_bits_a_larger_one_than_protobuf_takes_has_its_data_beside_too(
    open_clip: Backbone, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(open_clip)
    monkeypatch.setattr(forms, "_LONGEST_MESSAGE", 0)
    export(model, tmp_path / "out", int8=True)
    assert sorted(contents(tmp_path / "out")) == ["export.json", "model.onnx", "model.onnx.data"]
    cosine = torch.cosine_similarity(by_onnxruntime(tmp_path / "out", images), model(images).detach())
    assert cosine.min() > 0.99


@pytest.mark.full
@pytest.mark.usefixtures("data_beside")
def test_no_page_is_made_of_a_model_with_its_data_beside(
    open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "read_runtime", lambda folder: forms.Runtime(b"", b"", "1"))
    with pytest.raises(AdaptError, match=r"the model takes \d+\.\d KiB in a page; browsers read at most 511\.9 MiB: "):
        export(model_of(open_clip), tmp_path / "out", "html", runtime=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
@pytest.mark.at_length
def test_the_bundled_backbone_on_the_bundled_images(tmp_path: Path) -> None:
    split = adapt.data.load("emoji")
    torch.manual_seed(0)
    words = "a photo of a thing that is one of many kinds, which is called a"
    model = perturb(adapt.wrap(adapt.load_backbone("mini-clip"), CoOp(ctx_init=words), split.class_names), size=0.01)
    export(model, tmp_path / "out", data=split.test)
    measured = record_of(tmp_path / "out")["measured"]
    assert (measured["images"], measured["same_labels"]) == (694, 1.0)
    assert measured["accuracy"] == measured["adapter_accuracy"] > 0.3


class Refused(Method):
    name = "refused"

    def prompts(self, tokenizer: Any, class_name: str) -> Any:
        return ZeroShot().prompts(tokenizer, class_name)


class Views(Refused):
    views = 3


class AtTestTime(Refused):
    def infer(self, step: ImageStep) -> Tensor:
        return step.logits.softmax(-1)


class ByValue(Refused):
    def logits(self, step: ImageStep) -> Tensor:
        logits = step.cosine_logits(step.class_features)
        return logits if float(logits.max()) > 0 else -logits


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (Views, "it predicts from 4 random views of an image"),
        (AtTestTime, "it takes steps at test time"),
        (ByValue, "torch cannot trace it"),
    ],
)
def test_a_method_is_refused_for_what_it_says_of_itself(
    method: type[Method], reason: str, open_clip: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(AdaptError, match=f"this refused cannot be exported: {reason}"):
        export(adapt.wrap(open_clip, method(), NAMES), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_that_are_refused(open_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"its backbone is torch\.float64 on cpu: load it in float32"):
        export(model_of(open_clip).double(), tmp_path / "out")
    open_clip.quantization = "int8"
    with pytest.raises(AdaptError, match="is quantised to int8: load it without quantize"):
        export(model_of(open_clip.to("cpu")), tmp_path / "out")


def test_pairs_without_class_names(hf_clip: Backbone, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="it has no class names: give some"):
        export(adapt.wrap(hf_clip, adapt.methods.SVLC()), tmp_path / "out")


def test_settings_are_checked_before_anything_is_written(
    open_clip: Backbone, tiny_split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(open_clip, TipAdapter(keys=3))
    monkeypatch.setattr(tracing, "traced", None)  # so that an attempt would fail otherwise
    with pytest.raises(AdaptError, match="there is no export format 'onxn'; did you mean 'onnx'"):
        export(model, tmp_path / "out", "onxn")
    with pytest.raises(AdaptError, match="int8 applies to onnx and html, not to torch"):
        export(model, tmp_path / "out", "torch", int8=True)
    with pytest.raises(AdaptError, match="the data has the class 'goldfish', but this coop adapter does not"):
        export(model_of(open_clip).with_classes(["cup"]), tmp_path / "out", data=tiny_split.test)
    with pytest.raises(AdaptError, match="exists already"):
        export(model, tmp_path, "torch")


def test_a_missing_library_is_named_with_its_extra(
    open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.common.errors.find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(AdaptError, match=r'--to onnx needs onnxscript: pip install "adapt-vlm\[export\]"'):
        export(model_of(open_clip), tmp_path / "out")


def test_a_graph_that_differs_is_not_written(
    open_clip: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "write_torch", lambda *_: lambda images: {"logits": torch.ones(len(images), 3)})
    with pytest.raises(AdaptError, match=r"differ from the adapter's by .* at most 0\.0001\. Nothing was written"):
        export(model_of(open_clip), tmp_path / "out", "torch")
    assert list(tmp_path.iterdir()) == []


def test_a_transform_of_ones_own_is_refused(open_clip: Backbone, tmp_path: Path) -> None:
    usual = open_clip.transform(train=False)
    open_clip.eval_transform = lambda picture: usual(picture.rotate(90))
    with pytest.raises(AdaptError, match="prepares images by a custom transform, which"):
        export(model_of(open_clip), tmp_path / "out")


def test_a_graph_holds_only_what_images_pass_through(open_clip: Backbone) -> None:
    held = sum(tensor.numel() for tensor in tracing.traced(model_of(open_clip)).state_dict.values())
    visual: nn.Module = open_clip.model.visual  # type: ignore[assignment]
    assert held < 1.01 * sum(parameter.numel() for parameter in visual.parameters())


@by_turns("to", ["torch", "onnx"])
@pytest.mark.parametrize(
    ("kind", "settings"), [(AnoVL, {}), (PatchMemory, {"metric": "euclidean"}), (PatchMemory, {"quantile": 0.1})]
)
def test_maps_are_an_output(
    to: str, kind: type[Method], settings, open_clip: Backbone, images: Tensor, tmp_path
) -> None:
    model = adapt.wrap(open_clip, kind(**settings), ["normal", "abnormal"])
    if kind is PatchMemory:
        adapt.fit(model, load("emoji-product").train[:3], progress=False)
    logits, maps = model.logits_and_maps(images)
    folder = export(model, tmp_path / "out", to)
    record, threshold = record_of(folder), model.method.threshold(pixels=True)
    assert record["map"]["shape"] == ["batch", *maps.shape[1:]]
    assert record["map"]["threshold"] == (None if threshold is None else pytest.approx(float(threshold)))
    if to == "torch":
        found = torch.export.load(folder / record["file"]).module()(images)
    else:
        session = onnxruntime.InferenceSession(str(folder / record["file"]))
        found = map(torch.from_numpy, session.run(["logits", "map"], {"images": images.numpy()}))
    for output, own in zip(found, (logits, maps), strict=True):
        assert (output - own).abs().max() < 1e-4
