"""Learning from views, for classes never seen, and from regions, against the published implementations."""

from __future__ import annotations

from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import relative
from published import LIBRARIES, TOLERANCE
from selection import by_turns
from torch import Tensor
from trainings import watched

import adapt
from adapt.methods import OGEN, TPT, DetPro, tpt
from adapt.methods.base import Encoded, total

FAST = by_turns("fast", [None, False])
EVERY_LIBRARY = by_turns("library", LIBRARIES)


@FAST
@EVERY_LIBRARY
def test_tpt(library: str, fast: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("tpt")
    images = expected["images"]
    config = {key: settings[key] for key in ("n_ctx", "ctx_init", "lr", "steps")}
    method = TPT(**config, views=settings["views"] - 1, kept=settings["selection"])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast).eval()
    method.load_state_dict({"ctx": expected["param.ctx"]})
    with (
        watched(monkeypatch, tpt, "surest") as chosen,
        watched(monkeypatch, tpt, "mean_entropy") as losses,
        watched(monkeypatch, torch.autograd, "grad") as gradients,
        watched(monkeypatch, tpt.AdamW, "step") as taken,
    ):
        answer = model(images[None])  # the views of one image
    [((logits, _), kept)] = chosen
    expected.scaled("logits", logits)
    expected.equal("selected", kept)
    expected.scaled("loss", losses[0][1])
    expected.scaled("steps.loss", torch.stack([loss for _, loss in losses]))
    expected.relative("grad.ctx", gradients[0][1][0])
    [(_, [ctx])] = [(each, each[0][0].param_groups[0]["params"]) for each in taken]
    expected.relative("after.ctx", ctx)
    expected.scaled("after_logits", answer)
    assert torch.equal(method.ctx, expected["param.ctx"])


@FAST
@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["ogen_joint", "ogen_first_epochs"])
def test_ogen(name: str, library: str, fast: bool | None, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    config = {key: settings[key] for key in ("n_ctx", "ctx_init", "class_position", "heads", "dropout")}
    method = OGEN(**config, unknown_names=settings["new_names"], neighbours=settings["k"])
    model = adapt.wrap(published.backbone(library), method, settings["names"], fast).train()
    own = expected.under("param.")
    method.load_state_dict({"ctx": own.pop("ctx")})
    renamed = {key.replace("ffn.layers.0", "ffn.0").replace("ffn.layers.1", "ffn.2"): key for key in own}
    method.generator.load_state_dict({mine: own[theirs] for mine, theirs in renamed.items()})
    method.set_statistics(expected["class_mean"], expected["class_std"])
    method._epochs = settings["max_epoch"]
    method._done.fill_(settings["epoch"])
    noise = iter([expected["noise"], expected["noise_targets"]])
    monkeypatch.setattr(torch, "rand", lambda *size: next(noise))
    step = model.step(expected["images"], expected["labels"])
    with watched(monkeypatch, method.generator, "forward") as made, watched(monkeypatch, F, "cross_entropy") as told:
        terms = method.loss(step)
    (_, _, known), (_, _, images) = (given for given, _ in made[:2])
    expected.scaled("feature_known", known.flatten(0, 1))
    expected.scaled("feature_unknown", images[:, 0])
    for key, (_, features) in zip(("unknown", "known"), made):
        expected.scaled(f"feature_{key}_generated", features)
    if settings["phase"] == "joint":
        parts = [given for given, _ in told if not given[0].equal(step.logits)]
        for key, (logits, labels) in zip(("base_unknown", "base_known", "new"), parts, strict=True):
            expected.scaled(f"logits_{key}", logits)
            expected.equal(f"label_{key}", labels)
    size = model.backbone.embed_dim  # of which the weight of the squared errors is written out there
    sized = dict.fromkeys(("unknown", "known"), settings["mse_weight"] / size)
    loss = total({key: sized.get(key, 1) * term for key, term in terms.items()})
    loss.backward()
    expected.scaled("logits", step.logits)
    expected.scaled("loss", loss)
    if settings["grads_absent"]:
        assert method.ctx.grad is None or not method.ctx.grad.any()
    expected.relative("grad.ctx", torch.zeros_like(method.ctx) if method.ctx.grad is None else method.ctx.grad)
    gradients = dict(method.generator.named_parameters())
    for mine, theirs in renamed.items():
        expected.relative(f"grad.{theirs}", gradients[mine].grad)


def test_ogens_statistics_are_of_each_classs_own_features() -> None:
    from trainings import Given

    _, expected = published.case("clap_l2")
    names = ("goldfish", "red panda", "school bus", "dragonfly")
    images, labels = expected["images"][:12], torch.arange(12) % 4
    method = OGEN(neighbours=2)
    model = adapt.wrap(published.backbone("open_clip"), method, names)
    training: Any = Given(model, images[None], labels, epochs=10)
    method.prepare(training)
    features = training.features("train").double().unflatten(0, (3, 4))  # of three images of each class
    assert relative(method._mean.double(), features.mean(0)) < TOLERANCE
    assert relative(method._spread.double(), features.var(0, correction=0).sqrt()) < TOLERANCE
    likeness = features.mean(0) @ features.mean(0).T
    nearest = [[other for other in row.argsort(descending=True).tolist() if other != label][:2]
               for label, row in enumerate(likeness)]  # fmt: skip
    assert method._near.tolist() == nearest
    assert method._epochs == 10


@FAST
@EVERY_LIBRARY
def test_detpro(library: str, fast: bool | None) -> None:
    settings, expected = published.case("detpro_soft")
    names = [*settings["names"], "none"]
    config = {key: settings[key] for key in ("n_ctx", "class_position", "mode")}
    method: Any = DetPro(**config, background="none")
    model = adapt.wrap(published.backbone(library), method, names, fast)
    settings.equal("temperature", 1 / method.logit_scale)
    settings.equal("background_label", names.index("none"))
    method.load_state_dict(method.state_dict() | {"ctx": expected["param.ctx"]})
    method.set_counts(_counts(expected["freq"]), names)
    step = model.step(Encoded(F.normalize(expected["region_features"], dim=-1)), expected["labels"])
    expected.scaled("text_features", step.class_features[:-1], of=lambda raw: F.normalize(raw, dim=-1))
    loss = total(method.loss(step))
    loss.backward()
    expected.scaled("loss", loss)
    expected.relative("grad.ctx", method.ctx.grad)


def _counts(frequencies: Tensor) -> Tensor:
    """Numbers of images whose weights are one over these: of the known classes and, last, of the background."""
    known = len(frequencies) - 1  # which share one half, and the background has the other
    return torch.cat([frequencies[:-1] / known, frequencies[-1:] / 2])
