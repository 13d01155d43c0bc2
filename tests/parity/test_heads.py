"""Classifiers on frozen features against their published implementations: starts, closed forms, choices, steps."""

from __future__ import annotations

import math
from typing import Any

import published
import pytest
import torch
import torch.nn.functional as F
from checks import scaled
from published import GRADIENT_TOLERANCE, LIBRARIES, TOLERANCE
from selection import by_turns
from torch import Tensor
from trainings import Given, stepped, watched

import adapt
from adapt import AdaptedModel, methods
from adapt.methods import lp_plus_plus, ss_text
from adapt.methods.base import Choice, Encoded, total
from adapt.training.choice import choose

EVERY_LIBRARY = by_turns("library", LIBRARIES)


def wrapped(name: str, library: str, method: methods.Method) -> AdaptedModel:
    settings, _ = published.case(name)
    return adapt.wrap(published.backbone(library), method, settings["names"])


def compare(name: str, model: AdaptedModel) -> None:
    """Logits, loss and gradients of a case, at its own point."""
    _, expected = published.case(name)
    model.method.load_state_dict(model.method.state_dict() | expected.under("param."))
    step = model.step(expected["images"], expected["labels"])
    loss = total(model.losses(step)[0])
    gradients = torch.autograd.grad(loss, list(model.method.parameters()))
    expected.scaled("logits", step.logits)
    expected.scaled("loss", loss)
    for (key, _), gradient in zip(model.method.named_parameters(), gradients, strict=True):
        expected.relative(f"grad.{key}", gradient)


@EVERY_LIBRARY
def test_task_res(library: str) -> None:
    settings, expected = published.case("taskres")
    templates = tuple(settings["templates"])
    model = wrapped("taskres", library, methods.TaskRes(alpha=settings["scale"], template=templates))
    expected.scaled("base_text_features", model.frozen_class_features(templates, "raw"))
    compare("taskres", model)


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["clap_l2", "zslp"])
def test_clap_and_zs_lp(name: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case(name)
    images, labels = expected["images"], expected["labels"]
    method = methods.CLAP(constraint=settings["constraint"], template=settings["template"])
    model = wrapped(name, library, method)
    with watched(monkeypatch, adapt.methods.base.ImageStep, "cosine_logits") as compared:
        method.prepare(Given(model, images[None], labels))
    start: Any = method.prototypes
    expected.scaled("base_text_features", start)
    if name == "clap_l2":
        [(_, zero_shot)] = compared
        expected.scaled("multipliers", method._multipliers)
    else:
        assert compared == []
        assert not method._multipliers.any()
        zero_shot = model.step(images, labels).logits  # of the start
    expected.scaled("zero_shot_logits", zero_shot)
    momentum = {key: settings[key] for key in ("lr", "momentum")}
    optimizer = torch.optim.SGD(method.parameters(), **momentum)
    losses = [*stepped(model, [(images, labels)], optimizer, settings["epochs"])]
    expected.scaled("steps.loss", torch.stack(losses))
    expected.relative("after.prototypes", method.prototypes)
    compare(name, model)


def test_clap_reads_each_view_of_an_image_under_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Multipliers of several views are means over all of them."""
    _, expected = published.case("clap_l2")
    images, labels = expected["images"][:24].flip(0), expected["labels"][:24].flip(0)
    found = []
    for views, shape in ((2, (2, 12)), (1, (1, 24)), (0, (1, 24))):
        model = wrapped("clap_l2", "open_clip", methods.CLAP())
        rows = images.unflatten(0, shape)
        own = labels.unflatten(0, shape)[0]
        if views == 2:
            own = torch.arange(12)  # each image a class, and its two views
        model.method.prepare(Given(model, rows, own, views=views))
        found.append(model.method._multipliers.clone())
    assert torch.equal(found[1], found[2])
    features = F.normalize(published.backbone("open_clip").encode_image(images), dim=-1)
    base = F.normalize(model.frozen_class_features(["a photo of a {}."], "raw"), dim=-1)
    sure = (model.backbone.logit_scale * features @ base.T).softmax(-1)
    by_hand = (sure[:12].diagonal() + sure[12:].diagonal()) / 2
    assert scaled(found[0], by_hand) < TOLERANCE


@EVERY_LIBRARY
def test_clip_adapter(library: str) -> None:
    settings, _ = published.case("clip_adapter")
    method = methods.CLIPAdapter(**{key: settings[key] for key in ("ratio", "reduction", "template")})
    compare("clip_adapter", wrapped("clip_adapter", library, method))


@EVERY_LIBRARY
@pytest.mark.parametrize("name", ["gda", "gda_one_shot", "gda_base_to_new"])
def test_gda(name: str, library: str) -> None:
    settings, expected = published.case(name)
    new = name == "gda_base_to_new"
    more = {"neighbours": settings["k"]} if new else {}
    method = methods.GDA(views=settings["views"], template=tuple(settings["templates"]), shrink=not new,
                         new_classes=new, **more)  # fmt: skip
    model = wrapped(name, library, method)
    val = expected["val_features"], expected["val_labels"]
    training: Any = Given(model, expected["images"], expected["labels"], val)
    choose(training)
    method.prepare(training)
    settings.equal("best_alpha", pytest.approx(method.config.alpha))
    settings.equal("alphas", pytest.approx(list(methods.gda.ALPHAS[:-1])))
    expected.scaled("clip_weights", model.class_features().T)
    quadratic = -2 * (method.bias + torch.tensor(float(len(settings["names"]))).log())
    for exact in ("", ".f64"):
        expected.relative(f"W{exact}", method.weight.T, within=GRADIENT_TOLERANCE)
        expected.relative(f"quadratic{exact}", quadratic)
        expected.scaled(f"test_logits{exact}", model.logits(expected["test_features"]))
    expected.relative("b", method.bias)
    accuracy = (model.logits(val[0]).argmax(-1) == val[1]).float().mean()
    assert training.noted["chosen"]["accuracy"] == pytest.approx(float(accuracy))
    for place, alpha in enumerate(settings["alphas"]):
        method.config = method.config.model_copy(update={"alpha": alpha})
        expected.scaled(f"val_logits.{place}", model.logits(val[0]))


@EVERY_LIBRARY
def test_gda_on_new_classes(library: str) -> None:
    settings, expected = published.case("gda_base_to_new")
    config = {"alpha": settings["best_alpha"], "views": settings["views"], "neighbours": settings["k"]}
    method = methods.GDA(**config, template=tuple(settings["templates"]), shrink=False, new_classes=True)
    model = wrapped("gda_base_to_new", library, method)
    training: Any = Given(model, expected["images"], expected["labels"])
    method.prepare(training)
    settings.equal("text_copies", methods.gda.TEXT_COPIES)
    other = model.with_classes(settings["new_names"])
    expected.scaled("clip_weights_new", other.class_features().T)
    weight, bias = method.of_texts(other.class_features())
    for exact in ("", ".f64"):
        expected.relative(f"W_new{exact}", weight.T)
        expected.scaled(f"new_logits{exact}", other.logits(expected["new_features"]))
    expected.scaled("b_new", bias, within=GRADIENT_TOLERANCE)


class OnFeatures(Given):
    """A training on unit-length features in the place of the images, `(n, e)`, or `(n, v, e)` of v views of each."""

    unlabelled: Tensor | None = None

    def features(self, part: str, *, views: int = 0, unit: bool = True, projected: bool = True) -> Tensor:
        assert (unit, projected) == (True, True)
        if part == "train":
            assert views == (self._images.shape[1] if self._images.ndim == 3 else 0)
            return self._images
        assert views == 0
        if part == "unlabelled":
            assert self.unlabelled is not None
            return self.unlabelled
        return super().features(part)


@EVERY_LIBRARY
def test_proker(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cosines are not scaled as published, and ours are."""
    settings, expected = published.case("proker")
    config = {key: settings[key] for key in ("views", "beta", "template")}
    method = methods.ProKeR(**config, strength=settings["lmbda"])
    model = wrapped("proker", library, method)
    features, labels = (expected[key].unflatten(0, (config["views"], -1)) for key in ("features", "labels"))
    val = expected["val_features"], expected["val_labels"]
    training: Any = OnFeatures(model, features.transpose(0, 1), labels[0], val)
    scale, test, test_labels = model.backbone.logit_scale, expected["test_features"], expected["test_labels"]

    def right(logits: Tensor) -> Any:
        return pytest.approx(float((logits.argmax(-1) == test_labels).float().mean()))

    with watched(monkeypatch, method, "_kernel") as kernels:
        method.prepare(training)
    given = model.logits(test) / scale
    expected.scaled("class_features", model.class_features())
    expected.scaled("kernel", by_image(kernels[0][1], config["views"]))
    expected.scaled("logits", given)
    expected.scaled("val_logits", model.logits(val[0]) / scale)
    method.config = method.config.model_copy(update={"beta": None, "strength": None})
    grids = {name: torch.linspace(*settings["search"][key]).tolist() for name, key in SEARCHED_BY_PROKER.items()}
    choices = {name: Choice(values, usual=values[0]) for name, values in grids.items()}
    monkeypatch.setattr(methods.ProKeR, "choices", choices)
    choose(training)
    method.prepare(training)
    settings.equal("best", {"beta": pytest.approx(method.config.beta), "lmbda": pytest.approx(method.config.strength)})
    searched = model.logits(test) / scale
    expected.scaled("searched_logits", searched)
    zero_shot = test @ model.class_features().T
    found = {"zero_shot": right(zero_shot), "given": right(given), "searched": right(searched)}
    settings.equal("accuracy", found)


SEARCHED_BY_PROKER = {"beta": "beta", "strength": "lmbda"}  # the reference's names
REHARK = {  # the paper's names of our settings
    "power": "power", "description_weight": "alpha_txt", "image_weight": "refine_w", "bridge_weight": "blend_img",
    "sharp_beta": "beta1", "wide_beta": "beta2", "sharp_share": "mix_k", "ridge": "lmbda", "prior_weight": "scale_zs",
    "match_mean": "soft", "match_deviation": "var_adj",
}  # fmt: skip


@EVERY_LIBRARY
def test_rehark(library: str) -> None:
    """Sets are moved by their own statistics; published answers are ours times the prior's weight over the scale."""
    settings, expected = published.case("rehark")
    best, template, views = settings["best"], settings["template"], settings["views"]
    method = methods.ReHARK(**{ours: best[theirs] for ours, theirs in REHARK.items()}, views=views, template=template,
                            descriptions=settings["description"])  # fmt: skip
    model = wrapped("rehark", library, method)
    for key, text in (("class_features", template), ("description_features", settings["description"])):
        expected.scaled(key, model.frozen_class_features([text]))
    features, labels = (expected[key].unflatten(0, (views, -1)) for key in ("features", "labels"))
    method.prepare(OnFeatures(model, features.transpose(0, 1), labels[0]))  # type: ignore[arg-type]
    test = expected["test_features"]
    answers = {
        key: best["scale_zs"] / model.backbone.logit_scale * method.infer_set(model.step(Encoded(each)))
        for key, each in (("logits", test), ("logits_half", test[:10]), ("val_logits", expected["val_features"]))
    }
    for key, own in answers.items():
        expected.scaled(key, own)
    changed = (answers["logits"][:10] - answers["logits_half"]).abs().max()
    settings.equal("changed_by_company", pytest.approx(float(changed), rel=1e-4))

    def right(logits: Tensor, key: str) -> Any:
        return pytest.approx(float((logits.argmax(-1) == expected[key]).float().mean()))

    zero_shot = test @ expected["class_features"].T
    found = {"zero_shot": zero_shot, "logits": answers["logits"]}
    settings.equal("accuracy", {key: right(logits, "test_labels") for key, logits in found.items()})
    settings.equal("val_accuracy", right(answers["val_logits"], "val_labels"))


@EVERY_LIBRARY
def test_ss_text(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the stored scale, which is not the tiny CLIP's; one class has no image."""
    settings, expected = published.case("ss_text")
    settings.equal("num_iters_mm", ss_text.ROUNDS)
    settings.equal("num_iters_ot", ss_text.BALANCINGS)
    settings.equal("ratio_label_marginal_correction", methods.SSText().config.absent)
    monkeypatch.setattr(methods.SSText, "logit_scale", math.exp(settings["logit_scale"]))
    labels, test, test_labels = (expected[key] for key in ("labels", "test_features", "test_labels"))
    settings.equal("counts", labels.bincount(minlength=len(settings["names"])).tolist())
    accuracy = {}
    variants = {"ss_text": "SS-Text", "ss_text_plus": "SS-Text+", "ss_text_u": "SS-Text-U"}
    for key, variant in variants.items():
        method = methods.SSText(variant=variant, template=settings["template"])
        model = wrapped("ss_text", library, method)
        expected.scaled("class_features", model.frozen_class_features([settings["template"]]))
        training: Any = OnFeatures(model, expected["features"], labels)
        training.unlabelled = expected["unlabelled"]
        with watched(monkeypatch, ss_text, "transport") as transported:
            method.prepare(training)
        if key == "ss_text_u":
            shared = [each for _, each in transported]
            expected.scaled("assignments.0", shared[0])
            expected.scaled("assignments", shared[-1])
            expected.scaled("marginal", transported[0][0][1])
        logits = model.logits(test)
        expected.scaled(f"{key}.weights", method.weight)
        expected.scaled(f"{key}.logits", logits)
        accuracy[key] = float((logits.argmax(-1) == test_labels).float().mean())
    settings.equal("accuracy", accuracy, of=lambda stored: {key: stored[key] for key in accuracy})
    fewer(library, expected, settings)
    weights = expected["features"], labels, expected["unlabelled"]
    finite = ss_text.with_unlabelled(expected["class_features"], *weights, 100.0).isfinite().all()
    settings.equal("ss_text_u_not_finite_at_scale_100", bool(finite))  # of the reference


def fewer(library: str, expected: published.Stored, settings: published.Stored) -> None:
    """Other numbers of rounds and of passes in each transport, against the formula in fp64."""
    labels, scale = expected["labels"], math.exp(settings["logit_scale"])
    features, unlabelled, texts = (expected[key].double() for key in ("features", "unlabelled", "class_features"))
    shares = labels.bincount(minlength=len(texts)) / len(labels)
    added = torch.stack([features[labels == label].sum(0) for label in range(len(texts))])
    labelled = texts + scale * shares[:, None] / 2 * added
    for rounds, passes in ((0, 10), (1, 0), (2, 3)):
        method = methods.SSText(variant="SS-Text-U", template=settings["template"], rounds=rounds, balancings=passes)
        model = wrapped("ss_text", library, method)
        training: Any = OnFeatures(model, expected["features"], labels)
        training.unlabelled = expected["unlabelled"]
        method.prepare(training)
        weights = texts if rounds else labelled
        for _ in range(rounds):
            plan = (scale * unlabelled @ published.unit(weights).T).exp()
            plan = plan if passes else plan / plan.sum(1, keepdim=True)
            for _ in range(passes):
                plan = plan / plan.sum(0) * expected["marginal"]
                plan = plan / plan.sum(1, keepdim=True)
            weights = labelled + scale / len(unlabelled) * plan.T @ unlabelled
        assert scaled(method.weight, weights) < published.TOLERANCE, (rounds, passes)


def by_image(kernel: Tensor, views: int) -> Tensor:
    """A kernel whose rows are the views of each image in turn, as one whose rows are each view's images in turn."""
    order = torch.arange(len(kernel)).unflatten(0, (-1, views)).T.flatten()
    return kernel[order][:, order]


@EVERY_LIBRARY
def test_lp_plus_plus(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("lp_plus_plus")
    settings.equal("momentum", lp_plus_plus.MOMENTUM)
    settings.equal("alpha_every", lp_plus_plus.EVERY)
    method = methods.LPPlusPlus(epochs=settings["epochs"], template=tuple(settings["templates"]))
    model = wrapped("lp_plus_plus", library, method)
    training: Any = Given(model, expected["images"][None], expected["labels"])
    method.bias = expected["param.bias"]
    with watched(monkeypatch, method, "_blended") as said, watched(monkeypatch, lp_plus_plus, "rates") as rates:
        method.prepare(training)
    expected.scaled("features", rates[0][0][0])
    expected.scaled("clip_weights", model.class_features().T)
    (lr_w, lr_alpha), labels = rates[0][1], expected["labels"]
    settings.equal("lr_w", pytest.approx(lr_w, rel=1e-4))
    settings.equal("lr_alpha", pytest.approx(lr_alpha, rel=1e-4))
    expected.scaled("logits", said[0][1])
    expected.scaled("loss", F.cross_entropy(said[0][1], labels))
    expected.scaled("steps.loss", torch.stack([F.cross_entropy(logits, labels) for _, logits in said]))
    for key in ("weight", "bias", "alpha"):
        expected.relative(f"after.{key}", getattr(method, key))
    expected.scaled("last_logits", said[-1][1])  # before the last step
    assert training.noted == {"solver": {"epoch": settings["epochs"]}}


def test_the_first_step_of_lp_plus_plus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates times the published gradients, the multipliers' too where they move at every epoch."""
    settings, expected = published.case("lp_plus_plus")
    model = wrapped("lp_plus_plus", "open_clip", methods.LPPlusPlus(epochs=1))
    method: Any = model.method
    monkeypatch.setattr(lp_plus_plus, "EVERY", 1)
    start, begin = {}, method.start

    def started(*given: Tensor) -> None:
        begin(*given)
        start.update({key: getattr(method, key).clone() for key in ("weight", "bias", "alpha")})

    monkeypatch.setattr(method, "start", started)
    method.bias = expected["param.bias"]
    method.prepare(Given(model, expected["images"][None], expected["labels"]))
    settings.equal("alpha_init", pytest.approx(float(start["alpha"][0, 0]), rel=1e-5))
    for key, rate in (("weight", "lr_w"), ("bias", "lr_w"), ("alpha", "lr_alpha")):
        expected.relative(f"param.{key}", start[key])
        moved = (start[key] - getattr(method, key)) / settings[rate]
        expected.relative(f"grad.{key}", moved, within=10 * GRADIENT_TOLERANCE)  # a difference of large numbers


@EVERY_LIBRARY
def test_prolip(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("prolip")
    config = {key: settings[key] for key in ("views", "epochs", "lr")}
    method = methods.ProLIP(**config, weight=settings["lambda_"], template=tuple(settings["templates"]))
    model = wrapped("prolip", library, method)
    settings.equal("logit_scale", method.logit_scale)
    images, labels = expected["images"], expected["labels"]
    expected.scaled("clip_weights", model.class_features().T)
    with torch.no_grad():
        assert scaled(model.image_features(images[0]), model.backbone_features(images[0])) < TOLERANCE  # at its start
    training: Any = Given(model, images, labels)
    with (
        watched(monkeypatch, torch.autograd, "grad") as gradients,
        watched(monkeypatch, F, "cross_entropy") as losses,
        watched(monkeypatch, torch.optim, "Adam") as optimizers,
    ):
        method.prepare(training)
    (second, _), [gradient] = gradients[1]
    expected.scaled("loss", second)
    expected.relative("grad.proj", gradient)
    expected.scaled("logits", losses[1][0][0])
    expected.scaled("ce", losses[1][1])
    expected.scaled("steps.ce", torch.stack([loss for _, loss in losses]))
    expected.relative("after.proj", method.proj)
    settings.equal("eps", optimizers[0][1].defaults["eps"])
    expected.scaled("test_logits", model.eval()(expected["test_images"]))
    ends = {key: float(losses[place][1].detach()) for key, place in (("first_loss", 0), ("last_loss", -1))}
    assert training.noted == {"solver": ends}


def test_prolip_after_one_of_its_steps() -> None:
    settings, expected = published.case("prolip")
    config = {key: settings[key] for key in ("views", "epochs", "lr")}
    model = wrapped("prolip", "open_clip", methods.ProLIP(**config, weight=settings["lambda_"]))
    method: Any = model.method
    rows = Given(model, expected["images"], expected["labels"]).features("train", views=3, unit=False, projected=False)
    steps = method.steps(rows.transpose(0, 1), expected["labels"], model.class_features().detach())
    next(steps)
    expected.relative("param.proj", method.proj)


def table(name: str, library: str, **config: Any) -> tuple[AdaptedModel, Any]:
    """A Tip-Adapter model of a case, and the training that it was prepared by."""
    settings, expected = published.case(name)
    chosen = {key: settings[key] for key in ("views", "alpha", "beta")} | {"template": tuple(settings["templates"])}
    chosen |= {"search_beta": settings["search_scale"][0], "search_alpha": settings["search_scale"][1]}
    model = wrapped(name, library, methods.TipAdapter(**chosen | config))
    val = expected["val_features"], expected["val_labels"]
    training = Given(model, expected["images"], expected["labels"], val)
    model.method.prepare(training)  # type: ignore[arg-type]
    expected.scaled("clip_weights", model.class_features().T)
    expected.equal("values", F.one_hot(model.method.labels).float())
    return model, training


def fewer_steps(monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
    """The search of a case has fewer steps than the published one."""
    steps = dict(zip(settings["search_scale"], settings["search_step"], strict=True))
    whole = methods.tip_adapter.steps_to
    monkeypatch.setattr(methods.tip_adapter, "steps_to", lambda most, count: whole(most, steps[most]))


@EVERY_LIBRARY
def test_tip_adapter(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, expected = published.case("tip_adapter")
    model, training = table("tip_adapter", library)
    fewer_steps(monkeypatch, settings)
    expected.scaled("keys", model.method.keys.T)
    zero_shot = model.step(Encoded(expected["val_features"]), expected["val_labels"])
    expected.scaled("zero_shot_val_logits", zero_shot.cosine_logits(model.class_features()))
    expected.scaled("logits", model.logits(expected["val_features"]))
    choose(training, learned=True)
    settings.equal("best_alpha", pytest.approx(model.method.config.alpha))
    settings.equal("best_beta", pytest.approx(model.method.config.beta))
    expected.scaled("test_logits", model.logits(expected["test_features"]))
    assert training.noted["chosen"]["settings"] == {
        key: pytest.approx(settings[f"best_{key}"]) for key in ("alpha", "beta")
    }


@EVERY_LIBRARY
def test_tip_adapter_f(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step's logits, loss and gradient, and the keys after all steps, with the trainer's own optimiser."""
    from adapt.recipe.settings import TrainSettings
    from adapt.training.loop import learning_rate, make_optimizer

    settings, expected = published.case("tip_adapter_f")
    model, training = table("tip_adapter_f", library, train=True)
    keys: Any = model.method.keys
    expected.scaled("param.weight", keys)
    how = {key: settings[key] for key in ("lr", "eps", "weight_decay", "epochs", "batch_size")}
    chosen = TrainSettings(optimizer="adamw", schedule="cosine_iteration", **how)
    optimizer, size, labels = make_optimizer(model, chosen), chosen.batch_size, expected["labels"]
    starts = range(0, len(labels), size)
    batches = [
        (expected["images"][epoch % settings["views"]][i : i + size], labels[i : i + size])
        for epoch in range(chosen.epochs)
        for i in starts
    ]

    kept: list[tuple[float, Tensor]] = []  # after each epoch: how many test images are right, and the keys

    def epoch_over() -> None:
        right = model.logits(expected["test_features"]).argmax(-1) == expected["test_labels"]
        kept.append((float(right.float().mean()), keys.detach().clone()))

    def first(number: int, step: Any, loss: Tensor) -> None:
        if number and number % len(starts) == 0:
            epoch_over()
        optimizer.param_groups[0]["lr"] = learning_rate(
            chosen, number // len(starts), chosen.epochs, number, len(batches)
        )
        if number == 0:
            expected.scaled("logits", step.logits)
            expected.scaled("loss", loss)
            expected.relative("grad.weight", keys.grad)

    expected.scaled("steps.loss", torch.stack([*stepped(model, batches, optimizer, len(batches), first)]))
    expected.relative("after.weight", keys)
    epoch_over()
    with torch.no_grad():
        keys.copy_(max(kept, key=lambda each: each[0])[1])  # which the published search is over
    fewer_steps(monkeypatch, settings)
    choose(training, learned=True)
    settings.equal("best_alpha", pytest.approx(model.method.config.alpha))
    settings.equal("best_beta", pytest.approx(model.method.config.beta))
