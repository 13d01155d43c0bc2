"""ReHARK's regression: its formula for images by themselves and together, its limits, and its search at random."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone
from adapt.methods import ReHARK, ZeroShot
from adapt.methods.base import Choice, Encoded
from adapt.methods.rehark import CHOICES, drawn
from adapt.models.answer import logits_together

NAMES = ("goldfish", "red_panda", "sea cucumber")
IMAGES = 9
FIXED: dict[str, Any] = {
    "power": 0.7, "description_weight": 0.3, "image_weight": 0.35, "bridge_weight": 0.8, "sharp_beta": 4.0,
    "wide_beta": 0.6, "sharp_share": 0.7, "ridge": 0.2, "prior_weight": 6.0, "match_mean": 0.4, "match_deviation": 0.5,
    "descriptions": "a drawing of a {}.",
}  # fmt: skip


def fitted(backbone: Backbone, views: int = 0, held_back: int = 7, **settings: Any) -> Any:
    """The training of a fitted ReHARK on random features, of which other ones are held back."""
    model = adapt.wrap(backbone, ReHARK(views=views, **settings), NAMES).eval()
    draw = torch.Generator().manual_seed(0)
    seen = F.normalize(torch.randn(IMAGES, max(1, views), backbone.embed_dim, generator=draw), dim=-1)

    def features(part: str, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        assert (unit, projected) == (True, True)
        assert views <= (seen.shape[1] if part == "train" else 0)
        if part == "val":
            return others(backbone)[:held_back]
        return seen[:, :views] if views else seen[:, 0]

    training: Any = SimpleNamespace(
        model=model,
        classifier=model,
        features=features,
        labels=lambda part: torch.arange(IMAGES) % len(NAMES),
        prepare=lambda: model.method.prepare(training),
    )
    training.prepare()
    return training


def others(backbone: Backbone) -> Tensor:
    features = torch.randn(7, backbone.embed_dim, generator=torch.Generator().manual_seed(1))
    return F.normalize(features, dim=-1)


def together(model: AdaptedModel, features: Tensor) -> Tensor:
    return model.method.infer_set(model.step(Encoded(features)))  # type: ignore[operator,no-any-return]


def by_hand(training: Any, features: Tensor, moved: bool) -> Tensor:
    """Logits of features by the paper's equations in fp64, with the numbers of FIXED."""

    def flat(rows: Tensor) -> Tensor:
        rows = rows.double()
        return F.normalize(rows.sign() * rows.abs().pow(0.7), dim=-1)

    def kernel(one: Tensor, other: Tensor) -> Tensor:
        squares = torch.cdist(one, other).square()
        return 0.7 * (-4 * squares).exp() + 0.3 * (-0.6 * squares).exp()

    seen = training.features("train", views=2)
    labels = training.labels("train").repeat_interleave(2)
    x, unseen = flat(seen.flatten(0, 1)), flat(features)
    texts, descriptions = (
        flat(training.model.frozen_class_features([text])) for text in ("a photo of a {}.", "a drawing of a {}.")
    )
    means = torch.stack([x[labels == label].mean(0) for label in range(len(NAMES))])
    words = F.normalize(0.7 * texts + 0.3 * descriptions, dim=-1)
    prior = F.normalize(0.65 * words + 0.35 * F.normalize(means, dim=-1), dim=-1)
    rows = torch.cat([x, F.normalize(x + 0.8 * prior[labels], dim=-1)])
    if moved:
        mean, spread = unseen.mean(0), (rows.std(0) + 1e-6) / (unseen.std(0) + 1e-6)
        unseen = F.normalize((unseen - mean) * spread.sqrt() + mean - 0.4 * (mean - rows.mean(0)), dim=-1)
    left = F.one_hot(labels, len(NAMES)).double().repeat(2, 1) - 6 * rows @ prior.T
    weights = torch.linalg.solve(kernel(rows, rows) + 0.2 * torch.eye(len(rows)), left)
    return 6 * unseen @ prior.T + kernel(unseen, rows) @ weights


def test_images_by_themselves_and_a_set_have_the_papers_logits(open_clip: Backbone) -> None:
    training, features = fitted(open_clip, views=2, **FIXED), others(open_clip)
    scale = open_clip.logit_scale / 6
    assert scaled(training.model.logits(features), scale * by_hand(training, features, moved=False)) < 1e-5
    assert scaled(together(training.model, features), scale * by_hand(training, features, moved=True)) < 1e-5


def test_a_set_answers_alone_if_nothing_is_matched(open_clip: Backbone) -> None:
    training, features = fitted(open_clip, **FIXED | {"match_mean": 0.0, "match_deviation": 0.0}), others(open_clip)
    alone = training.model.logits(features)
    assert scaled(together(training.model, features), alone) < 1e-5
    one_by_one = torch.cat([training.model.logits(each) for each in features.split(1)])
    assert scaled(one_by_one, alone) < 1e-5


def test_a_set_with_the_mean_of_the_support_stays(open_clip: Backbone) -> None:
    changed = {"match_mean": 1.0, "match_deviation": 0.0, "bridge_weight": 0.0}
    training = fitted(open_clip, **FIXED | changed)
    seen, features = training.features("train"), others(open_clip)
    assert scaled(together(training.model, seen), training.model.logits(seen)) < 1e-5
    assert scaled(together(training.model, features), training.model.logits(features)) > 1e-2


def test_company_changes_answers_and_one_image_is_no_set(open_clip: Backbone) -> None:
    training, features = fitted(open_clip, **FIXED), others(open_clip)
    whole, part = logits_together(training.model, features), logits_together(training.model, features[:4])
    assert scaled(part, whole[:4]) > 1e-3
    assert logits_together(training.model, features[:1].expand(2, -1)).isfinite().all()
    with pytest.raises(AdaptError, match="there are 1 images, but rehark answers 2 or more images together"):
        logits_together(training.model, features[:1])


def test_absent_classes_are_doubted(open_clip: Backbone) -> None:
    training = fitted(open_clip, **FIXED | {"ridge": 1e-3, "prior_weight": 0.1})  # sure of what it has seen
    model, seen = training.model, training.features("train")
    assert model.method.doubt(model.step(Encoded(seen))) == ""
    of_one_class = model.method.doubt(model.step(Encoded(seen[::3])))
    assert of_one_class == "about 1 of 3 classes appear in the images, but each is expected to"


def test_a_strong_ridge_leaves_the_prior(open_clip: Backbone) -> None:
    """Which are the texts, if images and powers are left out: zero-shot."""
    prior_alone = {"power": 1.0, "image_weight": 0.0, "ridge": 1e9, "match_mean": 0.0, "match_deviation": 0.0}
    training, features = fitted(open_clip, **prior_alone), others(open_clip)
    zero_shot = adapt.wrap(open_clip, ZeroShot(), NAMES).logits(features)
    assert scaled(training.model.logits(features), zero_shot) < 1e-5
    assert scaled(fitted(open_clip, **prior_alone | {"ridge": 0.1}).model.logits(features), zero_shot) > 1e-2


def test_without_descriptions_their_weight_means_nothing(open_clip: Backbone) -> None:
    plain, weighed = (
        fitted(open_clip, description_weight=weight).model.logits(others(open_clip)) for weight in (0.0, 0.7)
    )
    assert scaled(weighed, plain) < 1e-5
    assert "description_weight" not in ReHARK().grid(None)  # type: ignore[arg-type]  # which looks at no image
    assert "description_weight" in ReHARK(descriptions="a {}").grid(None)  # type: ignore[arg-type]
    assert ReHARK(**FIXED).grid(None) == {}  # type: ignore[arg-type]


def test_usual_values_come_first_and_are_among_those_tried() -> None:
    assert all(choice.usual in choice.values for choice in CHOICES.values())
    choices = {"ridge": Choice((1.0, 2.0, 4.0), usual=2.0), "power": Choice((0.5, 1.0), usual=1.0)}
    found = drawn(choices, 50, Random(0))
    assert found[0] == {"ridge": 2.0, "power": 1.0}
    assert sorted((each["ridge"], each["power"]) for each in found) == [(a, b) for a in (1, 2, 4) for b in (0.5, 1)]
    assert len(drawn(choices, 3, Random(0))) <= 3
    assert drawn({}, 50, Random(0)) == [{}]


@pytest.mark.parametrize(("fixed", "count"), [((), 200), (("match_mean", "match_deviation"), 50), (("ridge",), 200)])
def test_the_search_has_the_answers_of_each_fit(open_clip: Backbone, fixed: tuple[str, ...], count: int) -> None:
    training = fitted(open_clip, **{name: FIXED[name] for name in fixed})
    method = training.model.method
    choices = method.grid(training)
    found, again = list(method.trials(training, choices)), list(method.trials(training, choices))
    assert found[0][0] == {name: choice.usual for name, choice in choices.items()}
    assert [settings for settings, _ in again] == [settings for settings, _ in found]
    assert len({tuple(settings.values()) for settings, _ in found}) == len(found)
    assert 0.9 * count < len(found) <= count
    for settings, logits in found[::29]:
        exact = fitted(open_clip, **settings | {name: FIXED[name] for name in fixed}).model
        assert scaled(logits, together(exact, training.features("val"))) < 1e-5


def test_one_image_that_is_held_back_answers_alone(open_clip: Backbone) -> None:
    training = fitted(open_clip, held_back=1)
    choices = training.model.method.grid(training)
    [settings, logits], *_ = training.model.method.trials(training, choices)
    assert scaled(logits, fitted(open_clip, **settings).model.logits(training.features("val"))) < 1e-5


def test_an_adapter_holds_all_that_answers_need(open_clip: Backbone, tmp_path: Path) -> None:
    training, features = fitted(open_clip, views=2, **FIXED), others(open_clip)
    assert training.model.method.support.shape == (4 * IMAGES, open_clip.embed_dim)
    loaded = adapt.load(training.model.save(tmp_path / "adapter.safetensors"), open_clip)
    assert torch.equal(loaded.logits(features), training.model.logits(features))
    assert torch.equal(logits_together(loaded, features), logits_together(training.model, features))


def test_it_stands_alone() -> None:
    with pytest.raises(AdaptError, match="rehark cannot be part of a composition"):
        adapt.methods.find("compose")(methods=[{"name": "lora"}, {"name": "rehark"}])
