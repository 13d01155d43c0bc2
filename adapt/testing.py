"""The contract of a method, for methods of other people too: `check_method(Mine)` raises where it does not hold."""

from __future__ import annotations

import copy
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt import data, methods, tasks
from adapt.backbones.base import Backbone, DualEncoder
from adapt.backbones.load import load_backbone
from adapt.backbones.tower import check_parts
from adapt.data.item import Item
from adapt.errors import AdaptError
from adapt.evaluation.evaluate import evaluate
from adapt.loading import load
from adapt.methods.base import Method, Step, total
from adapt.methods.base.traits import Stream, has_trait
from adapt.models.base import Adapted
from adapt.models.classifier import AdaptedModel
from adapt.models.wrap import wrap
from adapt.training.fit import fit

BACKBONES = {"dual encoder": "mini-clip", "fusion encoder": "mini-vilt", "vision LLM": "mini-clip+mini-lm"}
STEPS = {"epochs": 2, "batch_size": 4, "warmup_epochs": 0, "augment": "none", "workers": 0}
CLASSES, IMAGES = 3, 4  # of a check


def check_method(
    method: type[Method], backbone: Backbone | None = None, data_set: data.Split | None = None, **settings: Any
) -> list[str]:
    """Run all checks on `method` with `settings`, by default its `example`, and return their names.

    `backbone` is by default the bundled one of the first kind that the method serves, and `data_set` a few bundled
    items of the first task that it learns. The method need not be known by its name. Raises AssertionError with the
    name of the check and what did not hold, whatever was raised.
    """
    chosen = settings or method.example
    case = Case(method, chosen, backbone or load_backbone(BACKBONES[method.serves[0]], "cpu"), data_set)
    with methods.known(method):
        return _passed(CHECKS, case, method.name)


def _passed(checks: Sequence[Callable[[Any], None]], tried: Any, name: str) -> list[str]:
    """Runs checks on what is called `name`; their names. AssertionError, with the check's, where one does not hold."""
    for check in checks:
        try:
            check(tried)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            raise AssertionError(f"{name}, {check.__name__.replace('_', ' ')}: {what}") from error
    return [check.__name__ for check in checks]


@dataclass
class Case:
    """A method, and what it is tried on."""

    method: type[Method]
    settings: dict[str, Any]
    backbone: Backbone
    data_set: data.Split | None = None

    @cached_property
    def split(self) -> data.Split:
        """The given data set, or a few bundled items of three classes, or questions, of a task that it learns."""
        if self.data_set is not None:
            return self.data_set
        family, every = self.backbone.family, map(tasks.named, tasks.names())
        task = next(
            each for each in every if family in each.backbones and each.example and each.learned_by(self.method)
        )
        whole = data.load(task.example)
        if family != "dual encoder":
            train, val, test = (part[:IMAGES] for part in (whole.train, whole.val, whole.test))
            return data.Split("questions", whole.class_names, train, val, test)
        few, names = whole.few_shot(IMAGES, seed=1), whole.class_names[:CLASSES]
        train, val, test = (
            tuple(item for item in part if set(item.class_names) <= set(names))
            for part in (few.train, few.val, few.test)
        )
        return data.Split("few", names, train, val, test[:6])

    def new(self, **options: Any) -> Adapted:
        """A model, always with the same initial values."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Adapted = wrap(self.backbone, self.method(**self.settings), self.split.class_names, **options)
        return model

    @cached_property
    def trained(self) -> Adapted:
        model = self.new()
        self.train(model)
        return model.eval()

    def train(self, model: Adapted, **options: Any) -> Any:
        steps: dict[str, Any] = STEPS if model.method.takes_steps else {}
        return fit(model, self.split.train, val_set=self.split.val, progress=False, cache=False, **steps, **options)

    def answers(self, model: Adapted, items: Sequence[Item] | None = None) -> tuple[tuple[str, ...], Tensor]:
        """What a model says of the test images, and how sure it is of each `(n,)`."""
        scores = evaluate(model, items or self.split.test, workers=0, cache=False)
        return scores.predicted, torch.tensor(scores.confidence)


def bad_settings_are_refused(case: Case) -> None:
    try:
        case.method(**case.settings, no_such_setting=1)
    except AdaptError:
        return
    raise AssertionError("a setting that does not exist was taken without a word: build on MethodConfig")


def only_its_own_tensors_train(case: Case) -> None:
    model = case.new()
    frozen = {id(parameter) for parameter in case.backbone.model.parameters()}
    own = dict(model.method.named_parameters())
    shared = [name for name, parameter in own.items() if id(parameter) in frozen]
    assert not shared, f"{shared[0]} is a parameter of the backbone: keep no module of it in the method"
    still = [name for name, parameter in own.items() if not parameter.requires_grad]
    assert not still, f"{still[0]} does not train: register what is only saved as a buffer"


def the_backbone_stays_as_it_is(case: Case) -> None:
    model = case.backbone.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    case.train(case.new(), test_set=case.split.test)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert not changed, f"training changed {changed[0]} of the backbone"
    assert flags == [(p.requires_grad, p.grad) for p in model.parameters()], "training left flags or gradients on it"


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
        assert torch.equal(tensor, before[name]), f"answering changed {name}: threads would see one another's changes"


def a_model_can_be_built_anew(case: Case) -> None:
    model = case.new()
    names = list(model.method.state_dict())
    model.start_anew()
    assert list(model.method.state_dict()) == names, "a second `build` leaves other tensors than the first"


def both_paths_agree(case: Case) -> None:
    fast = case.new()
    if not isinstance(fast, AdaptedModel) or "fast" not in (fast.text_path, fast.vision_path):
        return
    losses = []
    for model in (fast, case.new(fast=False)):
        model.method.load_state_dict(case.new().method.state_dict())
        losses.append(total(model.eval().losses(_step(case, model))[0]))
    assert torch.allclose(losses[0], losses[1], rtol=1e-4, atol=1e-4), f"losses {losses[0]:.6f} and {losses[1]:.6f}"


def _step(case: Case, model: Adapted) -> Step:
    transform, items = model.backbone.transform(train=False), case.split.test
    images = torch.stack([transform(data.open_image(item)) for item in items])
    return tasks.of(items).step(model, items, images)


def a_loaded_adapter_answers_alike(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = case.trained.save(Path(folder) / "adapter.safetensors")
        loaded = load(path, case.backbone)
    _assert_equal(case.answers(case.trained), case.answers(loaded), "a loaded adapter")


def a_stopped_training_goes_on_exactly(case: Case) -> None:
    whole, stopped = case.new(), case.new()
    if not whole.method.takes_steps:
        return
    steps = _counted(whole, None)
    case.train(whole)
    with tempfile.TemporaryDirectory() as folder:
        _counted(stopped, len(steps))  # the last of all stages: one epoch is in the checkpoint
        with suppress(InterruptedError):
            case.train(stopped, out=Path(folder) / "run")
        resumed = case.new()
        case.train(resumed, out=Path(folder) / "run", resume=True)
    expected = whole.method.state_dict()
    for name, tensor in resumed.method.state_dict().items():
        assert torch.equal(tensor, expected[name]), f"{name} is another after a training that was resumed"


def _counted(model: Adapted, stop: int | None) -> list[int]:
    """A list that grows with every loss of `model`; InterruptedError in place of that number `stop`."""
    losses, taken = model.losses, list[int]()

    def counting(*given: Any) -> Any:
        taken.append(1)
        if len(taken) == stop:
            raise InterruptedError
        return losses(*given)

    model.losses = counting  # type: ignore[method-assign, assignment]
    return taken


def other_class_names_are_served_or_refused(case: Case) -> None:
    if not isinstance(case.trained, AdaptedModel):
        return
    names = data.load("emoji").class_names[CLASSES : CLASSES + 4]
    try:
        other = case.trained.with_classes(names)
    except AdaptError:
        assert case.trained.method.per_class, "other class names were refused, though per_class is not set"
        return
    assert not case.trained.method.per_class, "per_class is set, and other class names were served"
    pixels = case.trained.transform()(data.open_image(case.split.test[0]))
    shape = tuple(other(pixels[None]).shape)
    assert shape == (1, len(names)), f"logits of one image and four classes are {shape}"


def answers_do_not_depend_on_the_batch(case: Case) -> None:
    if has_trait(case.trained.method, Stream):  # but on the images before
        return
    predicted, sure = case.answers(case.trained)
    alone = [case.answers(case.trained, [item]) for item in case.split.test]
    found = tuple(names[0] for names, _ in alone), torch.cat([each for _, each in alone])
    _assert_equal((predicted, sure), found, "an image by itself", 1e-3)


def copies_are_whole(case: Case) -> None:
    copied = copy.deepcopy(case.trained)
    with torch.no_grad():
        for parameter in copied.method.parameters():
            parameter.fill_(float("nan"))
    again = copy.deepcopy(case.trained)
    _assert_equal(case.answers(case.trained), case.answers(again), "a copy")


def threads_are_answered_alike(case: Case) -> None:
    expected = case.answers(case.trained)
    found: list[Any] = [None] * 3

    def ask(place: int) -> None:
        found[place] = case.answers(case.trained)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        assert each is not None, "a thread got no answer"
        _assert_equal(expected, each, "a thread", 1e-4)


def _assert_equal(
    expected: tuple[Sequence[str], Tensor], found: tuple[Sequence[str], Tensor], what: str, tolerance: float = 1e-5
) -> None:
    apart = float((expected[1] - found[1]).abs().max())
    assert apart <= tolerance, f"{what} is sure by another {apart:.2g}"
    assert tuple(expected[0]) == tuple(found[0]), f"{what} gives other answers"


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
    copies_are_whole,
    threads_are_answered_alike,
)


def check_backbone(backbone: Backbone) -> list[str]:
    """Runs all checks on a dual encoder of one's own; their names.

    Raises AssertionError with the name of the check and what did not hold, whatever was raised.
    """
    return _passed(BACKBONE_CHECKS, backbone, backbone.describe())


def towers_are_parts_of_the_model(backbone: Backbone) -> None:
    for tower in backbone.towers.values():
        check_parts(tower, backbone.model)
        widths = {tuple(each.shape) for block in tower.blocks for each in (block.projections["q"],)}
        assert widths == {(tower.width, tower.width)}, (
            f"q of the {tower.name} tower is {widths}, its width {tower.width}"
        )


def paths_agree_and_nothing_stays_changed(backbone: Backbone) -> None:
    before = _features(backbone, methods.find("zero_shot")())
    for tower in backbone.towers.values():
        for letter in tower.projections:
            edited = methods.find("lora")(projections=[letter], towers=[tower.name], dropout=0.0)
            own = _features(backbone, edited)[tower.name == "vision"]
            apart = float((own - before[tower.name == "vision"]).abs().max())
            assert apart > 1e-4, f"a change of {letter} in the {tower.name} tower changes no feature"
    after = _features(backbone, methods.find("zero_shot")())
    assert all(map(torch.equal, before, after)), "edits left something changed behind"


BACKBONE_CHECKS: tuple[Callable[[Backbone], None], ...] = (
    towers_are_parts_of_the_model,
    paths_agree_and_nothing_stays_changed,
)


@torch.no_grad()
def _features(backbone: Backbone, method: Method) -> tuple[Tensor, Tensor]:
    """Features of two classes and of two images under a method with random values, by both paths."""
    assert isinstance(backbone, DualEncoder), (
        f"{backbone.describe()} is a {backbone.family}: checks are of dual encoders"
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
        apart = float((one - other).abs().max())
        assert apart < 1e-4, f"features by the fast path differ from the model's own by {apart:.2g}"
    return plain.class_features(), plain.image_features(images)
