"""Checks for users' own methods and backbones: `check_method(Mine)` raises if the method `Mine` fails a check."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from adapt import data, methods, tasks
from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.load import load_backbone
from adapt.backbones.tower import check_parts
from adapt.common.errors import AdaptError
from adapt.data.item import Item
from adapt.evaluation.evaluate import evaluate
from adapt.loading import load
from adapt.methods.base import Method, Step, Terms, total
from adapt.methods.base.traits import DrawsMaps, OverSet, PoolsBags, ReadsHeads, Stream, has_trait, trait
from adapt.models.base import Adapted
from adapt.models.dual_encoder import AdaptedModel
from adapt.models.wrap import wrap
from adapt.training.fit import fit
from adapt.training.result import Result

Subject = TypeVar("Subject")
Predicted = tuple[tuple[str, ...], Tensor]  # predictions, and their confidence (n,)

BACKBONES = {
    "dual encoder": "mini-clip",
    "fusion encoder": "mini-vilt",
    "vision LLM": "mini-clip+mini-lm",
    "native VLM": "mini-vlm",
    "vision encoder": "vision:mini-clip",
    "heads": "heads:mini-vlm",
}
STEPS = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0}
CLASSES, IMAGES = 3, 4  # number of classes in a check, and of images of each


def check_method(
    method: type[Method], backbone: Backbone | None = None, data_set: data.Split | None = None, **settings: object
) -> list[str]:
    """Run all checks on `method` with `settings`, by default `method.example`, and return the names of the checks.

    By default, `backbone` is a bundled backbone of the first kind in `method.serves`, and `data_set` has a few bundled
    items of the first task that the method can learn. The method does not have to be registered. Raises AssertionError,
    with the name of the check and the reason, if a check fails.
    """
    chosen = settings or method.example
    kind = "heads" if has_trait(method, ReadsHeads) else method.serves[0]
    case = Case(method, chosen, backbone or load_backbone(BACKBONES[kind], "cpu"), data_set)
    with methods.known(method):
        return _passed(CHECKS, case, method.name)


def _passed(checks: Sequence[Callable[[Subject], None]], subject: Subject, name: str) -> list[str]:
    """Run `checks` on `subject`, and return the check names. Raises AssertionError with the name of a failed check."""
    for check in checks:
        try:
            check(subject)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{name}, {check.__name__.replace('_', ' ')}: {what}") from error
    return [check.__name__ for check in checks]


@dataclass
class Case:
    """A method under test, with the settings, data and backbone for the checks."""

    method: type[Method]
    settings: dict[str, object]
    backbone: Backbone
    data_set: data.Split | None = None

    @cached_property
    def split(self) -> data.Split:
        """The data set for the checks, which is `data_set` if given, or else a few bundled items of a suitable task."""
        if self.data_set is not None:
            return self.data_set
        kind, every_task = self.backbone.kind, map(tasks.named, tasks.names())
        task = next(
            each for each in every_task if kind in each.backbones and each.example and each.learned_by(self.method)
        )
        items = has_trait(self.method, PoolsBags) and task.takes_bags
        bundled = data.load("emoji-items" if items else task.example)
        if not (task.divisible and bundled.class_names) or kind in ("fusion encoder", "vision LLM"):
            train, val, test = (part[:IMAGES] for part in (bundled.train, bundled.val, bundled.test))
            return data.Split("questions", bundled.class_names, train, val, test)
        few, names = bundled.few_shot(IMAGES, seed=1), bundled.class_names[:CLASSES]
        train, val, test = (
            tuple(item for item in part if set(item.class_names) <= set(names))
            for part in (few.train, few.val, few.test)
        )
        return data.Split("few", names, train, val, test[:6])

    def new(self, **options: Any) -> Adapted:
        """Return a new untrained model with the method, whose initial values are the same in every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Adapted = wrap(self.backbone, self.method(**self.settings), self.split.class_names, **options)
        return model

    @cached_property
    def trained(self) -> Adapted:
        model = self.new()
        self.train(model)
        return model.eval()

    def train(self, model: Adapted, **options: Any) -> Result:
        steps: dict[str, Any] = STEPS if model.method.takes_steps else {}
        return fit(model, self.split.train, val_set=self.split.val, progress=False, cache=False, **steps, **options)

    def answers(self, model: Adapted, items: Sequence[Item] | None = None, together: bool = False) -> Predicted:
        """Return a model's predictions for `items`, by default the test images, and the confidences `(n,)`.

        With `together`, the items are answered as one set.
        """
        scores = evaluate(model, items or self.split.test, workers=0, cache=False, together=together)
        return scores.predicted, torch.tensor(scores.confidence)


def bad_settings_are_refused(case: Case) -> None:
    try:
        case.method(**case.settings, no_such_setting=1)
    except AdaptError:
        return
    raise AssertionError("a setting that does not exist was accepted: derive the configuration from MethodConfig")


def only_its_own_tensors_train(case: Case) -> None:
    model = case.new()
    frozen = {id(parameter) for parameter in case.backbone.model.parameters()}
    own = dict(model.method.named_parameters())
    shared = [name for name, parameter in own.items() if id(parameter) in frozen]
    assert not shared, f"{shared[0]} is a parameter of the backbone: keep no module of the backbone in the method"
    still = [name for name, parameter in own.items() if not parameter.requires_grad]
    assert not still, f"{still[0]} does not train: register it as a buffer if it is only saved"


def the_backbone_stays_as_it_is(case: Case) -> None:
    model = case.backbone.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    case.train(case.new(), test_set=case.split.test)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"training changed {changed[0]} of the backbone"
    assert flags == [(p.requires_grad, p.grad) for p in model.parameters()], (
        "training left flags or gradients on the backbone"
    )


def every_parameter_learns(case: Case) -> None:
    if not case.new().method.takes_steps:
        return
    model = case.new()
    start = {name: tensor.detach().clone() for name, tensor in model.method.named_parameters()}
    result = case.train(model)
    now = dict(model.method.named_parameters())
    for name, parameter in now.items():
        assert parameter.isfinite().all(), f"{name} is not finite after training"
    still = [name for name, before in start.items() if name in now and torch.equal(before, now[name])]
    assert not still, f"no step changed {still[0]}"
    assert all(torch.tensor(entry["loss"]).isfinite() for entry in result.history), "a loss is not finite"


def deciding_changes_nothing(case: Case) -> None:
    before = {name: tensor.clone() for name, tensor in case.trained.method.state_dict().items()}
    case.answers(case.trained)
    for name, tensor in case.trained.method.state_dict().items():
        assert torch.equal(tensor, before[name]), f"answering changed {name}: threads would see each other's changes"


def a_model_can_be_built_anew(case: Case) -> None:
    model = case.new()
    names = list(model.method.state_dict())
    model.start_anew()
    assert list(model.method.state_dict()) == names, "a second `build` gives other tensors than the first"


def both_paths_agree(case: Case) -> None:
    fast = case.new()
    if not isinstance(fast, AdaptedModel) or "fast" not in (fast.text_path, fast.vision_path):
        return
    losses, items, transform = [], case.split.test, case.backbone.transform(train=False)
    images = torch.stack([transform(data.open_image(item)) for item in items])
    for model in (fast, case.new(fast=False)):
        model.method.load_state_dict(case.new().method.state_dict())
        losses.append(total(model.eval().losses(tasks.of(items).step(model, items, images))[0]))
    assert torch.allclose(losses[0], losses[1], rtol=1e-4, atol=1e-4), (
        f"the losses of the fast and the plain path are {losses[0]:.6f} and {losses[1]:.6f}"
    )


def a_loaded_adapter_answers_alike(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = case.trained.save(Path(folder) / "adapter.safetensors")
        loaded = load(path, case.backbone)
    _assert_equal(case.answers(case.trained), case.answers(loaded), "a loaded adapter")


def a_stopped_training_goes_on_exactly(case: Case) -> None:
    uninterrupted, stopped = case.new(), case.new()
    if not uninterrupted.method.takes_steps:
        return
    losses = _counted(uninterrupted, None)
    case.train(uninterrupted)
    with tempfile.TemporaryDirectory() as folder:
        _counted(stopped, len(losses))  # at the last step of the last stage: one epoch is in the checkpoint
        with suppress(InterruptedError):
            case.train(stopped, out=Path(folder) / "run")
        resumed = case.new()
        case.train(resumed, out=Path(folder) / "run", resume=True)
    expected = uninterrupted.method.state_dict()
    for name, tensor in resumed.method.state_dict().items():
        assert torch.equal(tensor, expected[name]), f"{name} differs after a training that was resumed"


def _counted(model: Adapted, stop: int | None) -> list[int]:
    """Return a list that grows by one at each loss computed by `model`; loss number `stop` raises InterruptedError."""
    losses, taken = model.losses, list[int]()

    def counting(step: Step, weights: Mapping[str, float] | None = None) -> tuple[Terms, Tensor | None]:
        taken.append(1)
        if len(taken) == stop:
            raise InterruptedError
        return losses(step, weights)

    model.losses = counting  # type: ignore[method-assign]
    return taken


def other_class_names_are_served_or_refused(case: Case) -> None:
    if not (isinstance(case.trained, AdaptedModel) and case.trained.class_names):
        return
    maps = trait(case.trained.method, DrawsMaps)
    kept = () if maps is None else (maps.normal_class,)  # without which there is no anomaly
    names = (*kept, *data.load("emoji").class_names[CLASSES : CLASSES + 4 - len(kept)])
    try:
        other = case.trained.with_classes(names)
    except AdaptError:
        assert case.trained.method.per_class, "other class names were refused, but per_class is not set"
        return
    assert not case.trained.method.per_class, "per_class is set, but other class names were served"
    pixels = case.trained.transform()(data.open_image(case.split.test[0]))
    shape = tuple(other(pixels[None]).shape)
    assert shape == (1, len(names)), f"logits of one image and four classes are {shape}"


def answers_do_not_depend_on_the_batch(case: Case) -> None:
    if has_trait(case.trained.method, Stream) or not case.split.class_names:  # earlier images, or pairs, take part
        return
    one_by_one = [case.answers(case.trained, [item]) for item in case.split.test]
    joined = tuple(names[0] for names, _ in one_by_one), torch.cat([confidence for _, confidence in one_by_one])
    _assert_equal(case.answers(case.trained), joined, "an image by itself", 1e-3)


def sets_are_answered_alike_in_any_order(case: Case) -> None:
    method = trait(case.trained.method, OverSet)
    if method is None:
        return
    items = case.split.test
    assert len(items) >= method.smallest, f"the smallest set has {method.smallest} images: set fewer in example"
    (forth, sure), (back, sure_back) = (
        case.answers(case.trained, order, together=True) for order in (items, items[::-1])
    )
    _assert_equal((forth, sure), (back[::-1], sure_back.flip(0)), "a set in the reverse order", 1e-3)


def copies_are_whole(case: Case) -> None:
    copied = copy.deepcopy(case.trained)
    with torch.no_grad():
        for parameter in copied.method.parameters():
            parameter.fill_(float("nan"))
    second = copy.deepcopy(case.trained)
    _assert_equal(case.answers(case.trained), case.answers(second), "a copy")


def threads_are_answered_alike(case: Case) -> None:
    expected = case.answers(case.trained)
    answers: list[Predicted] = []
    threads = [threading.Thread(target=lambda: answers.append(case.answers(case.trained))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == len(threads), "a thread got no answer"
    for each in answers:
        _assert_equal(expected, each, "a thread", 1e-4)


def _assert_equal(expected: Predicted, actual: Predicted, what: str, tolerance: float = 1e-5) -> None:
    difference = float((expected[1] - actual[1]).abs().max())
    assert difference <= tolerance, f"the confidence of {what} differs by {difference:.2g}"
    assert expected[0] == actual[0], f"{what} gives other answers"


CHECKS: tuple[Callable[[Case], None], ...] = (
    bad_settings_are_refused,
    only_its_own_tensors_train,
    the_backbone_stays_as_it_is,
    every_parameter_learns,
    deciding_changes_nothing,
    a_model_can_be_built_anew,
    both_paths_agree,
    a_loaded_adapter_answers_alike,
    a_stopped_training_goes_on_exactly,
    other_class_names_are_served_or_refused,
    answers_do_not_depend_on_the_batch,
    sets_are_answered_alike_in_any_order,
    copies_are_whole,
    threads_are_answered_alike,
)


def check_backbone(backbone: Backbone) -> list[str]:
    """Run all checks on a user's own dual encoder, and return the names of the checks.

    Raises AssertionError, with the name of the check and the reason, if a check fails.
    """
    return _passed(BACKBONE_CHECKS, backbone, backbone.describe())


def towers_are_parts_of_the_model(backbone: Backbone) -> None:
    for tower in backbone.towers.values():
        check_parts(tower, backbone.model)
        shapes = {tuple(block.projections["q"].shape) for block in tower.blocks}
        assert shapes == {(tower.width, tower.width)}, (
            f"q of the {tower.name} tower has the shapes {shapes}, but the tower has the width {tower.width}"
        )


def paths_agree_and_nothing_stays_changed(backbone: Backbone) -> None:
    before = _features(backbone, methods.find("zero_shot")())
    for tower in backbone.towers.values():
        for letter in tower.projections:
            edited = methods.find("lora")(projections=[letter], towers=[tower.name], dropout=0.0)
            own = _features(backbone, edited)[tower.name == "vision"]
            change = float((own - before[tower.name == "vision"]).abs().max())
            assert change > 1e-4, f"an edit of {letter} in the {tower.name} tower changes no feature"
    after = _features(backbone, methods.find("zero_shot")())
    assert all(map(torch.equal, before, after)), "edits left the backbone changed"


BACKBONE_CHECKS: tuple[Callable[[Backbone], None], ...] = (
    towers_are_parts_of_the_model,
    paths_agree_and_nothing_stays_changed,
)


@torch.no_grad()
def _features(backbone: Backbone, method: Method) -> tuple[Tensor, Tensor]:
    """Return class and image features for random parameters; assert that fast and plain forward passes agree."""
    assert isinstance(backbone, DualEncoder), (
        f"{backbone.describe()} is a {backbone.kind}; only dual encoders can be checked"
    )
    size = backbone.preprocess.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    model = wrap(backbone, method, ("a cat", "a long-haired dog")).eval()
    for parameter in method.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 4)
    plain = AdaptedModel(backbone, method, model.class_names, fast=False).eval()
    for one, other in (
        (model.class_features(), plain.class_features()),
        (model.image_features(images), plain.image_features(images)),
    ):
        difference = float((one - other).abs().max())
        assert difference < 1e-4, f"features of the fast path differ from those of the plain path by {difference:.2g}"
    return plain.class_features(), plain.image_features(images)
