"""The setting `train.objective`: losses of classes that wrong labels harm less, and answers held to the backbone's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_natives
import torch
from checks import perturb
from native_chats import lora
from torch import Tensor

import adapt
from adapt import AdaptError, Backbone, methods, tasks
from adapt.data import Split, load
from adapt.data.decoding.images import open_image
from adapt.methods.base.class_loss import ClassLoss, group_weights
from adapt.recipe.settings import TrainSettings
from adapt.training.processes import Processes, dividing

STEPS = {"iterations": 3, "batch_size": 6, "lr": 0.1, "schedule": "constant", "augment": "none", "progress": False}
OBJECTIVES = ("cross-entropy", "arcsin", "accuracy", "gce(0.7)", "group(4)")


def losses(objective: str, p: Tensor) -> tuple[Tensor, Tensor]:
    """The losses of images whose labels have the probabilities `p` among three classes, and their slopes by p."""
    losses, slopes = [], []
    for own in p:
        rest = (1 - own) / 2
        logits = torch.stack([own, rest, rest])[None].double().log().requires_grad_()
        loss = ClassLoss(objective)(logits, torch.tensor([0]))
        [gradient] = torch.autograd.grad(loss, logits)
        losses.append(loss.detach())
        slopes.append(gradient[0, 0] / (own * (1 - own)))  # as the own logit moves p
    return torch.stack(losses), torch.stack(slopes)


def test_losses_are_those_of_the_probability_of_the_label() -> None:
    p = torch.tensor([0.02, 0.3, 0.5, 0.9])
    formulas = {
        "cross-entropy": (-p.log(), -1 / p),
        "arcsin": (math.pi - 2 * p.sqrt().asin(), -1 / (p * (1 - p)).sqrt()),
        "accuracy": (1 - p, -torch.ones(4)),
        "gce(0.5)": (2 * (1 - p.sqrt()), -(p**-0.5)),
        "group(2)": ((1 - p) / 2**0.5, -torch.ones(4) / 2**0.5),
    }
    for objective, (values, weights) in formulas.items():
        mine, slopes = losses(objective, p)
        torch.testing.assert_close(mine.float(), values, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(slopes.float(), weights, atol=1e-4, rtol=1e-4)


def test_a_group_tends_to_the_arcsine_and_four_answers_to_the_accuracy() -> None:
    p = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.95])
    four, many = group_weights(p, 4), group_weights(p, 64)
    assert float(four.min()) > 1.39
    assert float(four.max()) < 1.50
    torch.testing.assert_close(many, 1 / (p * (1 - p)).sqrt(), atol=0, rtol=0.15)
    assert group_weights(torch.tensor([0.0, 1.0]), 4).tolist() == pytest.approx([1.5, 1.5])  # sqrt(3), sqrt(3/4)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("classes", [1, 3])
def test_gradients_are_finite_where_probabilities_are_0_and_1(objective: str, classes: int) -> None:
    logits = torch.tensor([[900.0, -900.0, 0.0], [-900.0, 900.0, 0.0]])[:, :classes].clone().requires_grad_()
    loss = ClassLoss(objective)(logits, torch.tensor([0, 0]))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_classes_are_weighed_as_by_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 0, 1]), torch.tensor([0.2, 1.0, 3.0])
    for objective in OBJECTIVES:
        each = torch.stack([ClassLoss(objective)(logits[i : i + 1], labels[i : i + 1]) for i in range(6)])
        own = weights[labels]
        expected = float((own * each).sum() / own.sum())
        assert float(ClassLoss(objective, weights)(logits, labels)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("given", "read"), [("gce", "gce(0.7)"), ("gce(.50)", "gce(0.5)"), ("group(08)", "group(8)"), ("arcsin", "arcsin")]
)
def test_objectives_are_read(given: str, read: str) -> None:
    assert TrainSettings(epochs=1, objective=given).objective == read


@pytest.mark.parametrize(
    "given",
    [
        "mae",
        "gce(0)",
        "gce(1.5)",
        "group",
        "group(1)",
        "group(65)",
        "group(2.5)",
        "arcsin(2)",
        "gce()",
        "",
        "gce(0.000001)",
        "gce(٠.7)",
        "gce(0.7))",
        "group()",
    ],
)
def test_others_are_refused(given: str) -> None:
    with pytest.raises(ValueError, match="expected cross-entropy, arcsin, accuracy, gce"):
        TrainSettings(epochs=1, objective=given)


def spoiled(split: Split) -> list[Any]:
    """The training images, a third of which have the label of the next class."""
    from dataclasses import replace

    names = split.class_names
    following = dict(zip(names, (*names[1:], names[0]), strict=True))
    return [
        replace(item, label=replace(item.label, name=following[item.answer])) if number % 3 == 0 else item
        for number, item in enumerate(split.train)
    ]


def test_a_training_by_another_objective_logs_it_and_learns_right_labels_first(
    open_clip: Backbone, tiny_split: Split
) -> None:
    """Of images with wrong labels fewer are learned by heart than by cross-entropy."""
    learned, right = dict[str, float](), dict[str, float]()
    items = spoiled(tiny_split)
    wrong = [number for number, item in enumerate(items) if item != tiny_split.train[number]]
    labels = torch.tensor([tiny_split.class_names.index(items[number].answer) for number in wrong])
    for objective in ("cross-entropy", "accuracy"):
        model = adapt.wrap(open_clip, methods.TaskRes(alpha=1.0), tiny_split.class_names)
        result = adapt.fit(model, items, **STEPS | {"iterations": 40, "lr": 0.05}, objective=objective)
        assert (max(entry["loss"] for entry in result.history) <= 1) == (objective == "accuracy")
        probabilities = model.probabilities([items[number].path for number in wrong])
        learned[objective] = float(probabilities[torch.arange(len(wrong)), labels].mean())
        others = [item for number, item in enumerate(items) if number not in wrong]
        own = torch.tensor([tiny_split.class_names.index(item.answer) for item in others])
        right[objective] = float(
            model.probabilities([item.path for item in others])[torch.arange(len(own)), own].mean()
        )
    assert learned["accuracy"] < learned["cross-entropy"] - 0.05
    apart = {objective: right[objective] - learned[objective] for objective in learned}
    assert apart["accuracy"] > apart["cross-entropy"] + 0.05


def test_answers_are_held_to_those_of_the_backbone(open_clip: Backbone, tiny_split: Split) -> None:
    apart = []
    for terms in ({}, {"kl": 10.0}):
        model = adapt.wrap(open_clip, methods.TaskRes(alpha=1.0), tiny_split.class_names)
        frozen = adapt.wrap(open_clip, methods.ZeroShot(), tiny_split.class_names)
        paths = [item.path for item in tiny_split.train]
        adapt.fit(model, tiny_split.train, **STEPS | {"iterations": 20}, objective="accuracy", terms=terms)
        apart.append(float((model.probabilities(paths) - frozen.probabilities(paths)).abs().mean()))
    assert apart[1] < apart[0] / 3


def test_the_term_is_the_cross_entropy_with_the_frozen_probabilities(open_clip: Backbone, tiny_split: Split) -> None:
    model = adapt.wrap(open_clip, methods.TaskRes(alpha=1.0), tiny_split.class_names)
    seen, own = [], model.losses

    def watched(step: Any, weights: Any = None) -> Any:
        terms, right = own(step, weights)
        seen.append((step.features.detach(), step.logits.detach(), float(terms["kl"].detach())))
        return terms, right

    model.losses = watched  # type: ignore[method-assign]
    adapt.fit(model, tiny_split.train, **STEPS, terms={"kl": 0.5})
    frozen = adapt.wrap(open_clip, methods.ZeroShot(), tiny_split.class_names)
    for features, logits, value in seen:
        expected = -(frozen.logits(features).softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
        assert value == pytest.approx(0.5 * float(expected), rel=1e-5)


def test_what_has_no_loss_of_classes_is_refused_by_name(open_clip: Backbone, tiny_split: Split) -> None:
    pairs = load("emoji-captions").train[:8]
    with pytest.raises(AdaptError, match=r"train\.objective needs one class per image, but the data has"):
        adapt.fit(adapt.wrap(open_clip, methods.LoRA(), ()), pairs, **STEPS, objective="arcsin")
    model = adapt.wrap(open_clip, methods.find("vl2v_sd")(), tiny_split.class_names)
    with pytest.raises(AdaptError, match=r"train\.objective needs a loss over classes, but the loss of vl2v_sd"):
        adapt.fit(model, tiny_split.train, **STEPS, objective="arcsin")
    with pytest.raises(AdaptError, match=r"train\.terms\.kl needs a loss over classes"):
        adapt.fit(model, tiny_split.train, **STEPS, terms={"kl": 1.0})
    images = adapt.load_backbone("vision:mini-clip")
    own = adapt.wrap(images, methods.LoRA(towers=("vision",)), tiny_split.class_names)
    with pytest.raises(AdaptError, match="knows no classes before training"):
        adapt.fit(own, tiny_split.train, **STEPS, terms={"kl": 1.0})


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl", "paligemma"])
def test_a_native_model_learns_by_the_probabilities_of_class_names(kind: str, tiny_split: Split) -> None:
    """The loss is of the logits by which it answers, as is the share that is right; and its gradient is theirs."""
    model = adapt.wrap(tiny_natives.backbone(kind), lora("decoder"), tiny_split.class_names)
    perturb(model)
    items = tiny_split.train[:4]
    step = tasks.of(items).step(model, items, [[open_image(item)] for item in items])
    logits = model.choose(step.inputs, [model.backbone.question] * 4, model.class_names)
    assert step.labels is not None
    probabilities = logits.softmax(-1)[torch.arange(4), step.labels]
    model.class_loss = ClassLoss("arcsin")
    terms, right = model.losses(step, {"kl": 1.0})
    assert float(terms["arcsin"]) == pytest.approx(float((math.pi - 2 * probabilities.sqrt().asin()).mean()), rel=1e-4)
    assert torch.equal(right, logits.argmax(-1) == step.labels)
    assert step.weight == 4
    frozen = adapt.wrap(model.backbone, methods.ZeroShot(), model.class_names)
    untouched = frozen.choose(step.inputs, [model.backbone.question] * 4, model.class_names)
    expected = -(untouched.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()
    assert float(terms["kl"]) == pytest.approx(float(expected), rel=1e-4)
    parameters = [parameter for parameter in model.method.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(terms["arcsin"], parameters)
    with torch.no_grad():  # the slope along the gradient
        length = float(sum(gradient.square().sum() for gradient in gradients)) ** 0.5
        losses = []
        for sign in (1, -1):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += sign * 1e-2 * gradient / length
            losses.append(float(ClassLoss("arcsin")(step.again().logits, step.labels)))
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= sign * 1e-2 * gradient / length
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(length, rel=0.05)


OF_METHODS = (
    "coop", "kgcoop", "prograd", "clap", "tcp", "lora", "maple", "prompt_src", "clip_adapter", "hicropl",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_METHODS)
def test_methods_learn_by_the_objective(open_clip: Backbone, tiny_split: Split, name: str) -> None:
    """Beside their own terms, the loss of their logits has its name and its value."""
    model = adapt.wrap(open_clip, methods.find(name)(**methods.find(name).example), tiny_split.class_names)
    seen, own = list[tuple[float, float]](), model.losses

    def watched(step: Any, weights: Any = None) -> Any:
        terms, right = own(step, weights)
        assert "cross_entropy" not in terms
        seen.append(
            (float(terms["accuracy"].detach()), float(ClassLoss("accuracy")(step.logits, step.labels).detach()))
        )
        return terms, right

    model.losses = watched  # type: ignore[method-assign]
    adapt.fit(model, tiny_split.train, **STEPS | {"iterations": 1, "lr": 0.001}, objective="accuracy")
    assert [mine for mine, _ in seen] == pytest.approx([value for _, value in seen], rel=1e-4)


def test_a_native_model_on_classes_may_use_several_processes(tiny_split: Split) -> None:
    """The loss adds up over items, by the tokens of answers and by class names."""
    model = adapt.wrap(tiny_natives.backbone("smolvlm"), lora("decoder"), tiny_split.class_names)
    two = Processes(2, 0, torch.device("cpu"))
    assert dividing(two, model, tiny_split.train, TrainSettings(epochs=1, augment="none"), True).by_items


def test_names_count_in_the_memory_of_a_native_step(tiny_split: Split) -> None:
    from adapt.training.step_memory import chat_bytes

    for kind in ("smolvlm", "paligemma"):  # names in a row, and a row for each name
        model = adapt.wrap(tiny_natives.backbone(kind), lora("decoder"), tiny_split.class_names)
        plain = chat_bytes(model, tiny_split.train[:4], "fp32").each
        model.class_loss = ClassLoss("arcsin")
        assert chat_bytes(model, tiny_split.train[:4], "fp32").each > 1.2 * plain


def test_class_weights_of_a_native_model_need_an_objective_over_names(tiny_split: Split) -> None:
    model = adapt.wrap(tiny_natives.backbone("smolvlm"), lora("decoder"), tiny_split.class_names)
    with pytest.raises(AdaptError, match=r"set train\.objective to another one, such as arcsin"):
        adapt.fit(model, tiny_split.train[:4], epochs=1, batch_size=2, class_weights="balanced", progress=False)
    adapt.fit(
        model,
        tiny_split.train[:4],
        epochs=1,
        batch_size=2,
        class_weights="balanced",
        objective="arcsin",
        progress=False,
    )
    assert model.class_loss.weights is not None
