"""`fit` as a whole: what it measures, returns and refuses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from adapt import AdaptError, fit
from adapt.common import progress
from adapt.common.progress import training_bar
from adapt.data import Item
from adapt.recipe.settings import FitSettings, TrainSettings
from adapt.tasks.classes import Class
from adapt.training import fitting
from adapt.training.measures import note_harm
from adapt.training.plan import planned

_OF_SHOTS = {"iterations_per_shot"}  # a recipe's, which knows the number of shots
_ENTRY = {"step": 1, "epoch": 0, "loss": 0.5, "accuracy": 0.75, "images_per_second": 10.0}


def test_the_typed_settings_are_those_that_there_are() -> None:
    named = set(inspect.signature(planned).parameters) - {"model", "train_set", "test_set", "val_set", "settings"}
    assert set(FitSettings.__annotations__) == named | (set(TrainSettings.model_fields) - _OF_SHOTS)
    parameters = inspect.signature(fit).parameters
    assert len(parameters) <= 9  # eight, and the settings
    assert parameters["settings"].annotation == "Unpack[FitSettings]"


def test_encoding_of_views_is_counted(make_model, tiny_split, own_cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their number, on a bar that says what time is left; features that are known already have none."""
    counted: dict[str, list[tuple[int, int]]] = {}

    @contextmanager
    def bar(title: str, show: bool) -> Iterator[Any]:
        yield (lambda done, total: counted.setdefault(title, []).append((done, total))) if show else None

    monkeypatch.setattr(fitting, "counting_bar", bar)
    fit(make_model("gda", views=3, alpha=1.0), tiny_split.train, progress=True)
    assert counted["encoding 3 views"][-1] == (3 * len(tiny_split.train),) * 2


def test_accuracy_before_and_after(train, tiny_split) -> None:
    result = train(test_set=tiny_split.test, epochs=20, lr=0.05)
    assert result.accuracy > result.zero_shot_accuracy
    ends = {
        (part, name): "{:.1f} to {:.1f}".format(*(100 * end for end in result.metrics[part]["intervals"][name]))
        for part in ("zero_shot", "adapted")
        for name in ("accuracy", "mean_class_accuracy")
    }
    assert str(result).splitlines() == [
        f"512 trained parameters, {result.metrics['seconds']:.1f} s on cpu",
        f"zero-shot  {100 * result.zero_shot_accuracy:5.1f} %  ({ends['zero_shot', 'accuracy']})",
        f"adapted    {100 * result.accuracy:5.1f} %  ({ends['adapted', 'accuracy']})  "
        f"{100 * (result.accuracy - result.zero_shot_accuracy):+.1f} points",
        f"balanced   {100 * result.metrics['adapted']['mean_class_accuracy']:5.1f} % "
        f"({ends['adapted', 'mean_class_accuracy']})  (each class counted once)",
        "in brackets: 95 % confidence interval; only rough with fewer than 100 images",
        f"not calibrated: calibration error {100 * result.metrics['adapted']['calibration_error']:.1f} %",
    ]


def test_cache_on_and_off_measure_the_same(train, tiny_split) -> None:
    on, off = (train(test_set=tiny_split.test, cache=cache).metrics for cache in (True, False))
    ends = [metrics["adapted"].pop("intervals") for metrics in (on, off)]
    assert on["adapted"] == pytest.approx(off["adapted"], abs=1e-5)  # batches of other sizes round otherwise
    assert ends[0] == ends[1]
    assert on["zero_shot"] == off["zero_shot"]


def test_without_test_images_nothing_is_measured(train) -> None:
    result = train(epochs=1)
    assert not result.metrics.keys() & {"zero_shot", "adapted"}
    assert "zero-shot" not in str(result)


@pytest.mark.parametrize("with_test", [True, False])
def test_the_plot_is_drawn(train, tiny_split, tmp_path: Path, with_test: bool) -> None:
    result = train(test_set=tiny_split.test if with_test else ())
    figure = result.plot(tmp_path / "curves.png")
    loss, accuracy = figure.axes
    assert [list(line.get_xdata()) for line in loss.lines] == [[1, 2, 3]]
    assert len(accuracy.lines) == (3 if with_test else 1)
    assert (accuracy.get_ylim(), accuracy.get_ylabel()) == ((0, 102), "accuracy, %")
    if with_test:  # what it is about stands above it, and all lines are in per cent
        percent, points = 100 * result.accuracy, 100 * abs(result.accuracy - result.zero_shot_accuracy)
        low, high = (100 * end for end in result.metrics["adapted"]["intervals"]["accuracy"])
        between = f"{percent:.1f} % ({low:.1f} to {high:.1f}) of test images right"
        assert f"{between}, {points:.1f} points " in figure.get_suptitle()
        assert [line.get_ydata()[0] for line in accuracy.lines[1:]] == [percent, 100 * result.zero_shot_accuracy]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    shell = InteractiveShell.instance()
    try:
        assert "image/png" in shell.display_formatter.format(result.plot())[0]  # no figure of pyplot was shown before
    finally:
        InteractiveShell.clear_instance()  # other tests run outside of a notebook


def test_labels_must_be_the_models(train, make_model, tiny_split) -> None:
    wrong = [item.labelled(Class("shark")) for item in tiny_split.test]
    with pytest.raises(AdaptError, match="has the class 'shark', which is not a class of the model"):
        train(test_set=wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train_set": "photos"}, "train_set is a str; expected items, such as those of adapt.data.load"),
        ({"train_set": None}, "train_set is a NoneType; expected items"),
        ({"train_set": ["a.png"]}, "an element of train_set is a str; expected items"),
        ({"train_set": [None]}, "an element of train_set is a NoneType; expected items"),
        ({"test_set": "photos"}, "test_set is a str; expected items"),
        ({"val_set": 3}, "val_set is a int; expected items"),
        ({"unlabelled_set": "photos"}, "unlabelled_set is a str; expected items"),
        ({"model": "coop"}, r"model is a str; expected what adapt\.wrap\(backbone, method\) returns"),
    ],
)
def test_what_is_no_model_or_no_items_is_refused_by_name(
    make_model, tiny_split, wrong: dict[str, Any], message: str
) -> None:
    given = {"model": None, "train_set": tiny_split.train} | wrong
    with pytest.raises(AdaptError, match=f"^{message}"):
        fit(given.pop("model") or make_model(), given.pop("train_set"), epochs=1, **given)


def test_no_training_images(make_model) -> None:
    with pytest.raises(AdaptError, match="there are no images"):
        fit(make_model(), [], epochs=1)


@pytest.mark.usefixtures("in_workers")
def test_an_unreadable_training_image_is_named(train, make_model, tiny_split) -> None:
    broken = tiny_split.train[5].path
    Path(broken).write_bytes(b"no image")
    with pytest.raises(AdaptError, match=f"image '{broken}' cannot be decoded"):
        train(make_model(n_ctx=4), augment="published", workers=1)


def test_linear_probe_chooses_its_strength_on_validation_images(make_model, tiny_split) -> None:
    model = make_model("linear_probe")
    result = fit(model, tiny_split.train, tiny_split.test, val_set=tiny_split.val, progress=False)
    assert result.accuracy == 1
    assert result.metrics["chosen"]["accuracy"] == 1
    assert result.metrics["chosen"]["how"] == f"on {len(tiny_split.val)} validation images"
    assert result.history == []
    assert len(result.plot().axes) == 2


def test_a_strength_that_is_given_is_not_chosen(make_model, tiny_split) -> None:
    result = fit(make_model("linear_probe", strength=3.0), tiny_split.train, progress=False)
    assert "chosen" not in result.metrics


@pytest.mark.parametrize("method", ["linear_probe", "zero_shot"])
def test_methods_without_steps_take_no_settings(make_model, tiny_split, method: str) -> None:
    with pytest.raises(AdaptError, match=f"{method} is not trained by gradient steps: leave out epochs, lr"):
        fit(make_model(method), tiny_split.train, epochs=1, lr=0.1)


def test_zero_shot_is_measured_and_saved(make_model, tiny_split, tmp_path: Path) -> None:
    result = fit(make_model("zero_shot"), tiny_split.train, tiny_split.test, out=tmp_path / "run", progress=False)
    assert result.metrics["trainable_parameters"] == 0
    assert result.metrics["adapted"]["accuracy"] == result.metrics["zero_shot"]["accuracy"]
    assert (tmp_path / "run/adapter.safetensors").is_file()


def test_progress_off_the_terminal_is_a_line_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "adapt")
    with training_bar(2, 0, True, "imitating blocks") as report:
        report(_ENTRY)
        report(_ENTRY | {"step": 2})
    assert caplog.messages == ["imitating blocks  2 of 2  loss 0.500  accuracy 75.0 %  10 images/s"]


def test_off_a_terminal_the_time_left_is_said(monkeypatch, caplog) -> None:
    """100 steps, of which the last 30 go on with a run, each of half a minute; the first one has its start too."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[-1])
    monkeypatch.setattr("sys.stderr.isatty", lambda: False)
    entry = {"loss": 0.5, "images_per_second": 10.0}
    with caplog.at_level("INFO", "adapt"), training_bar(100, 70, True) as report:
        for step in (71, 72, 73, 100):
            now.append(300 + 30.0 * step)
            report(entry | {"step": step})
    assert [line.split("images/s")[1] for line in caplog.messages] == [
        "",
        "  (about 14 min left)",
        "  (about 14 min left)",
        "",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with training_bar(2, 1, show=True) as report:
        report(_ENTRY | {"step": 2})
    assert "2/2" in capsys.readouterr().err


def test_what_the_images_make_impossible_is_refused_before_any_is_encoded(make_model, tiny_split, monkeypatch) -> None:
    model = make_model("linear_probe")
    monkeypatch.setattr(model.backbone, "encode_image", lambda images: pytest.fail("an image was encoded"))
    with pytest.raises(AdaptError, match="linear_probe is not trained by gradient steps: leave out epochs"):
        fit(model, tiny_split.train, tiny_split.test, progress=False, epochs=1)
    with pytest.raises(AdaptError, match="needs an image of every class, but 'goldfish' has none"):
        fit(model, tiny_split.train[4:], tiny_split.test, val_set=tiny_split.val, progress=False)
    with pytest.raises(AdaptError, match="resume continues a run in a directory, but no directory is given"):
        fit(make_model(), tiny_split.train, resume=True, epochs=1)


@pytest.mark.parametrize(
    ("method", "config", "key"), [("maple", {"depth": 4}, "depth"), ("ivlp", {"depth_text": 9}, "depth_text")]
)
def test_a_depth_beyond_the_tower_names_the_recipes_key(make_model, method: str, config: dict, key: str) -> None:
    with pytest.raises(AdaptError, match=rf"{method}: {key} is \d, but the text tower has 3 blocks: set method\.{key}"):
        make_model(method, **config)


def test_training_that_does_harm_is_said(make_model, tiny_split, caplog) -> None:
    """Pictures that go by another class's name teach what is wrong of the others."""
    paths = [item.path for item in tiny_split.train]
    wrong = [replace(item, paths=(path,)) for item, path in zip(tiny_split.train, paths[4:] + paths[:4], strict=True)]
    said = []
    for items in (tiny_split.train, wrong):
        caplog.clear()
        settings = {"epochs": 20, "lr": 0.05, "batch_size": 4, "augment": "none", "workers": 0, "progress": False}
        result = fit(make_model(n_ctx=4), items, tiny_split.test, **settings)
        said.append([message for message in caplog.messages if "the accuracy of the adapted model is" in message])
    assert result.accuracy < result.zero_shot_accuracy
    assert said[0] == []
    assert len(said[1]) == 1
    for part in (
        f"{100 * result.accuracy:.1f} %, below the",
        "zero-shot, which may be chance: it fits its training images (",
        "train.lr",
    ):
        assert part in said[1][0]


@pytest.mark.parametrize(
    ("zero_shot", "advice"),
    [(0.7, ", which may be chance: judge by more test images, "), (0.9, ": try other settings of the method or more ")],
)
def test_a_closed_form_below_its_baseline_by_chance_is_not_said_to_be_ill_set(
    caplog: pytest.LogCaptureFixture, zero_shot: float, advice: str
) -> None:
    adapted = {"accuracy": 0.6, "intervals": {"accuracy": [0.4, 0.8]}}
    note_harm({"adapted": adapted, "zero_shot": {"accuracy": zero_shot}, "baseline": "nearest mean"}, [])
    assert f"is 60.0 %, below the {100 * zero_shot:.1f} % of nearest mean{advice}" in caplog.text


@pytest.mark.parametrize("seed", [-1, 2**63, 2**70])
def test_a_seed_beyond_what_generators_take_is_refused(train, seed: int) -> None:
    with pytest.raises(AdaptError, match=rf"seed is {seed}; expected a whole number from 0 to"):
        train(seed=seed)


@pytest.mark.parametrize("texts_first", [True, False])
def test_data_of_two_kinds_are_refused(make_model, tiny_split, texts_first: bool) -> None:
    """Texts and images would be learned as texts, the images by empty ones."""
    images = list(tiny_split.train[:2])
    texts = [Item.of(text="a dog", label=images[0].answer), Item.of(text="a cat", label=images[1].answer)]
    both = [*texts, *images] if texts_first else [*images, *texts]
    with pytest.raises(AdaptError, match="the data has both images"):
        fit(make_model("coop"), both, progress=False, epochs=1)
    several = [images[0], Item.of(path=images[1].path, labels=(images[1].answer,))]
    with pytest.raises(AdaptError, match=r"for the task labels .* for the task classes"):
        fit(make_model("coop"), several, progress=False, epochs=1)
