"""PromptKD: a student learns its teacher's answers without labels, and then needs no teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_trainings import SETTINGS

import adapt
from adapt import AdaptedModel, AdaptError, load_backbone
from adapt.backbones.preprocess import Repixelled
from adapt.data import Split
from adapt.methods import CoOp, LinearProbe, PromptKD
from adapt.methods.promptkd import Teacher
from adapt.training.fitting import Fitting
from adapt.training.plan import TrainingPlan


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def teacher(tiny_split: Split, tmp_path: Path) -> Path:
    """The run of a prompted teacher."""
    torch.manual_seed(0)
    model = adapt.wrap(load_backbone("mini-clip", "cpu"), CoOp(n_ctx=2), tiny_split.class_names)
    adapt.fit(model, tiny_split.train, out=tmp_path / "teacher", progress=False, **SETTINGS)
    return tmp_path / "teacher"


def student(split: Split, **settings: Any) -> AdaptedModel:
    torch.manual_seed(0)
    config = {"n_ctx_vision": 2, "depth_vision": 2} | settings
    return adapt.wrap(load_backbone("mini-clip-half", "cpu"), PromptKD(**config), split.class_names)


def trained(split: Split, teacher: str, items: Any = None, **settings: Any) -> AdaptedModel:
    model = student(split, teacher=teacher)
    adapt.fit(model, items or split.train, progress=False, **SETTINGS | {"batch_size": 4, "lr": 0.01} | settings)
    return model.eval()


def test_labels_are_never_read(tiny_split: Split) -> None:
    one = trained(tiny_split, "mini-clip")
    names = tiny_split.class_names
    wrong = [replace(item, label=tiny_split.train[-1 - place].label) for place, item in enumerate(tiny_split.train)]
    assert [item.label for item in wrong] != [item.label for item in tiny_split.train]
    other = trained(tiny_split, "mini-clip", wrong)
    assert names == other.class_names
    for name, tensor in one.method.state_dict().items():
        assert torch.equal(tensor, other.method.state_dict()[name]), name


def test_the_loss_counts_the_square_of_the_temperature(tiny_split: Split) -> None:
    """The stored case has a temperature of 1, whose square it is too."""
    model: Any = student(tiny_split, temperature=2.0, weight=10.0).eval()
    taught, own = torch.randn(2, 4, 3)
    model.method._teacher = SimpleNamespace(logits=lambda pixels: taught)
    shares, said = (logits.div(2).softmax(-1) for logits in (taught, own))
    expected = 10 * 4 * (shares * (shares / said).log()).mean()
    loss = model.method.loss(SimpleNamespace(images=None, logits=own))["distillation"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.full
def test_answers_come_nearer_to_the_teachers() -> None:
    drawings = adapt.data.load("emoji").few_shot(1, 1)
    model = student(drawings, teacher="mini-clip", template=drawings.template)
    slow = SETTINGS | {"epochs": 20, "lr": 0.002, "batch_size": 8}
    result = adapt.fit(model, drawings.train, progress=False, **slow)
    losses = [entry["loss"] for entry in result.history]
    assert sum(losses[-4:]) < 0.3 * sum(losses[:4])


def test_an_adapter_holds_the_teachers_classes_and_needs_no_teacher(
    tiny_split: Split, teacher: Path, tmp_path: Path
) -> None:
    model = student(tiny_split, teacher=str(teacher))
    adapt.fit(model, tiny_split.train, out=tmp_path / "student", progress=False, **SETTINGS)
    teacher.rename(tmp_path / "gone")
    loaded = adapt.load(tmp_path / "student", backbone=model.backbone)
    assert torch.equal(loaded.method.teacher_text, model.method.teacher_text)
    assert loaded.method.teacher_text.norm(dim=-1).allclose(torch.ones(3))
    paths = [item.path for item in tiny_split.test]
    assert [each.top for each in loaded.predict(paths)] == [each.top for each in model.predict(paths)]


def test_the_teacher_reads_its_own_pixels(open_clip, tiny_split: Split, teacher: Path) -> None:
    """The student reads images of half the size, with another normalisation."""
    torch.manual_seed(0)
    model = adapt.wrap(open_clip, PromptKD(depth_vision=2), tiny_split.class_names)
    training = Fitting(TrainingPlan(model, tiny_split.train))
    found = Teacher(str(teacher), ["a photo of a {}."], training)
    model: Any = found.model
    picture = adapt.data.open_image(tiny_split.test[0])
    pixels = training.model.transform()(picture)[None]
    assert pixels.shape[-1] != model.transform()(picture).shape[-1]
    converted = Repixelled(open_clip.preprocess, model.backbone.preprocess)(pixels)
    assert torch.equal(found.logits(pixels), model(converted).detach())
    assert torch.equal(found.class_features, F.normalize(model.class_features(), dim=-1).detach())


def test_teachers_that_cannot_teach_are_refused(tiny_split: Split, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match=r"set method\.teacher to an adapter, or a backbone such as mini-clip"):
        trained(tiny_split, "")
    probe = adapt.wrap(load_backbone("mini-clip", "cpu"), LinearProbe(), tiny_split.class_names)
    adapt.fit(probe, tiny_split.train, out=tmp_path / "probe", progress=False)
    with pytest.raises(AdaptError, match="an adapter of linear_probe, which has no features of the classes by them"):
        trained(tiny_split, str(tmp_path / "probe"))
    with pytest.raises(AdaptError, match="vision:mini-clip is a vision encoder, which reads no prompts: name a CLIP"):
        trained(tiny_split, "vision:mini-clip")
    with pytest.raises(AdaptError, match="promptkd: n_ctx_text is 2"):
        PromptKD(n_ctx_text=2)
