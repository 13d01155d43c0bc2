"""Training that reads unlabelled images: who gets them, who refuses them, and what they change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from small_trainings import SETTINGS

import adapt
from adapt import AdaptError
from adapt.choosing.candidates import candidates
from adapt.data import Split, load
from adapt.methods import PromptKD, SSText, ss_text
from adapt.recipe import read_recipe
from adapt.training.fitting import Fitting
from adapt.training.plan import planned
from adapt.training.run_recipe import listed_data, read_data, run_recipe


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))


def wrapped(method: Any, split: Split, backbone: str = "mini-clip") -> adapt.AdaptedModel:
    return adapt.wrap(adapt.load_backbone(backbone, "cpu"), method, split.class_names)


def test_weights_follow_the_unlabelled_images() -> None:
    """They move a class's weight towards the images that it gets a share of, and each image is shared out whole."""
    torch.manual_seed(0)
    texts = F.normalize(torch.randn(4, 16), dim=-1)
    labels, features = torch.tensor([0, 0, 1, 3]), F.normalize(torch.randn(4, 16), dim=-1)
    shares = ss_text.expected(labels.bincount(minlength=4) / 4)
    assert shares.tolist() == pytest.approx([8 / 17, 4 / 17, 1 / 17, 4 / 17])
    rarer = ss_text.expected(labels.bincount(minlength=4) / 4, absent=8)
    assert rarer.tolist() == pytest.approx([16 / 33, 8 / 33, 1 / 33, 8 / 33])
    unlabelled = F.normalize(texts[2] + 0.05 * torch.randn(400, 16), dim=-1)
    shared = ss_text.transport(50 * unlabelled @ texts.T, shares)
    assert shared.sum(-1).allclose(torch.ones(400))
    assert scaled(shared.mean(0), shares) < 0.05
    near = ss_text.with_unlabelled(texts, features, labels, unlabelled, 50.0)
    assert scaled(ss_text.with_unlabelled(texts, features, labels, unlabelled, 50.0, absent=400), near) > 1e-3
    order = torch.randperm(400)
    assert scaled(ss_text.with_unlabelled(texts, features, labels, unlabelled[order], 50.0), near) < 1e-5


@pytest.mark.full
def test_ss_text_u_learns_from_unlabelled_drawings() -> None:
    whole = load("emoji").only("1/4")
    split = whole.few_shot(1, seed=1).keeping_rest(whole)
    texts = {"template": split.template}
    alone, with_others = (wrapped(SSText(variant=variant, **texts), split) for variant in ("SS-Text+", "SS-Text-U"))
    before = adapt.fit(alone, split.train, split.test, progress=False)
    after = adapt.fit(with_others, split.train, split.test, unlabelled_set=split.unlabelled, progress=False)
    assert after.metrics["unlabelled_images"] == len(whole.train) - 6
    assert after.accuracy > before.accuracy + 0.03


def test_it_needs_unlabelled_images(tiny_split: Split) -> None:
    with pytest.raises(AdaptError, match="learns from unlabelled images too, but the data has none"):
        adapt.fit(wrapped(SSText(variant="SS-Text-U"), tiny_split), tiny_split.train, progress=False)


def test_other_methods_refuse_them(tiny_split: Split) -> None:
    others = [item.without_label() for item in tiny_split.val]
    with pytest.raises(AdaptError, match="ss_text does not learn from unlabelled images"):
        adapt.fit(wrapped(SSText(), tiny_split), tiny_split.train, unlabelled_set=others, progress=False)


def test_a_recipe_leaves_them_out_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "adapt"):
        split = listed_data(read_recipe("coop", ["data.shots=1", "data.rest=unlabelled"], data="emoji"))
    assert split.unlabelled == ()
    assert "978 unlabelled images are left out: coop does not learn from any" in caplog.text
    assert listed_data(read_recipe("coop", ["data.shots=1", "data.rest=unlabelled"], data="emoji"), True).unlabelled


def test_folds_learn_from_all_of_them(tiny_split: Split) -> None:
    model = wrapped(SSText(variant="SS-Text-U"), tiny_split)
    others = [item.without_label() for item in tiny_split.val]
    training = Fitting(planned(model, tiny_split.train, (), val_set=(), unlabelled_set=others))
    [fold, *_] = training.folds()
    assert fold.items("unlabelled") == others
    assert torch.equal(fold.features("unlabelled"), training.features("unlabelled"))
    assert len(fold.features("train")) < len(training.features("train"))


def student(split: Split, unlabelled: Any, train: Any = ()) -> adapt.AdaptedModel:
    torch.manual_seed(0)
    model = wrapped(PromptKD(teacher="mini-clip", n_ctx_vision=2, depth_vision=2), split, "mini-clip-half")
    settings = SETTINGS | {"batch_size": 4, "lr": 0.01}
    result = adapt.fit(model, train, split.test, unlabelled_set=unlabelled, progress=False, **settings)
    assert result.metrics["adapted"]["images"] == len(split.test)
    return model.eval()


def test_a_student_needs_no_labelled_image(tiny_split: Split) -> None:
    """It learns the same from labelled images and from the same images without labels."""
    one = student(tiny_split, [item.without_label() for item in tiny_split.train])
    other = student(tiny_split, (), tiny_split.train)
    for name, tensor in one.method.state_dict().items():
        assert torch.equal(tensor, other.method.state_dict()[name]), name
    with pytest.raises(AdaptError, match="there are no images"):
        student(tiny_split, ())


def test_a_folder_without_training_images(five_classes: Path, tmp_path: Path) -> None:
    """Its classes are those of the test images, and copies of these are left out."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "test").symlink_to(five_classes / "test")
    (folder / "unlabelled").mkdir()
    for number, item in enumerate([*load(five_classes).train, load(five_classes).test[0]]):
        (folder / "unlabelled" / f"{number}.png").write_bytes(Path(item.path).read_bytes())
    sets = ["method.teacher=mini-clip", "backbone=mini-clip-half", "train.batch_size=8", "train.epochs=1"]
    split = read_data(read_recipe("promptkd", sets, data=str(folder)))
    assert (len(split.unlabelled), split.train, len(split.class_names)) == (20, (), 5)
    result = run_recipe(read_recipe("promptkd", sets, data=str(folder)), tmp_path / "run", progress=False)
    assert result.metrics["train_images"] == 20
    with pytest.raises(AdaptError, match="has no training images"):
        listed_data(read_recipe("coop", ["backbone=mini-clip"], data=str(folder)))


def test_recommend_compares_methods_of_unlabelled_images_if_there_are_some() -> None:
    backbone, task = adapt.load_backbone("mini-clip", "cpu"), adapt.data.load("emoji").task
    listed = [
        {each.name for each in candidates("emoji", {"backbone": "mini-clip"}, False, backbone, task, some)}
        for some in (False, True)
    ]
    assert listed[1] - listed[0] == {"ss_text/unlabelled"}
