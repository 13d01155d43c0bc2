"""`Classifier` keeps scikit-learn's contract, trains as a recipe does, and needs scikit-learn only when it is made."""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import Parallel, delayed
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted, validate_data

import adapt
from adapt import AdaptError, Classifier, estimator
from adapt.data import Split, open_image
from adapt.recipe import read_recipe
from adapt.training.run_recipe import run_recipe

GDA = {"method.views": 0, "method.alpha": 1.0}
# the checks of scikit-learn that do not pass, each with its reason
EXCLUDED = {
    "check_array_api_input": "it checks estimators that compute on arrays of other libraries: skipped, not failed"
}
# the checks that the plain class cannot pass, each with its reason
FAIL_ON_ROWS = dict.fromkeys(
    (
        "check_fit_score_takes_y",
        "check_estimators_overwrite_params",
        "check_dont_overwrite_parameters",
        "check_estimators_fit_returns_self",
        "check_readonly_memmap_input",
        "check_positive_only_tag_during_fit",
        "check_estimators_dtypes",
        "check_pipeline_consistency",
        "check_estimators_pickle",
        "check_f_contiguous_array_estimator",
        "check_classifiers_classes",
        "check_classifiers_train",
        "check_methods_sample_order_invariance",
        "check_methods_subset_invariance",
        "check_fit2d_1feature",
        "check_dict_unchanged",
        "check_fit_idempotent",
        "check_fit_check_is_fitted",
    ),
    "it fits rows of numbers, of which none is an image",
) | {
    "check_estimator_sparse_tag": "it fits a sparse matrix, which holds no images",
    "check_estimator_sparse_array": "it fits a sparse matrix, which holds no images",
    "check_estimator_sparse_matrix": "it fits a sparse matrix, which holds no images",
    "check_classifier_data_not_an_array": "it fits an object that is neither a list nor an array of images",
}


class OnRows(Classifier):
    """The estimator on rows of numbers, which `check_estimator` needs: each row is painted as a picture of shades.

    All else, from labels to pickles, is the estimator's own.
    """

    def fit(self, X: Any, y: Any) -> OnRows:
        if y is not None:
            X, y = validate_data(self, X, y)
        return super().fit(painted(X), y)

    def predict_proba(self, X: Any) -> Any:
        check_is_fitted(self)
        return super().predict_proba(painted(validate_data(self, X, reset=False)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = True, False
        return tags


def painted(rows: Any) -> Any:
    """Rows `(n, d)` as grey pictures `(n, h, w, 1)`: each number is a field, the brighter the larger."""
    number, width = np.shape(rows)
    side = int(np.ceil(np.sqrt(width)))
    shades = np.full((number, side * side), 0.5)
    shades[:, :width] += np.arctan(rows) / np.pi
    field = max(1, 32 // side)
    return shades.reshape(number, side, side).repeat(field, 1).repeat(field, 2)[..., None]


@pytest.fixture
def few(tiny_split: Split) -> tuple[list[str], list[str]]:
    """Paths and labels of twelve images of three classes."""
    return [item.path for item in tiny_split.train], [item.answer for item in tiny_split.train]


@pytest.mark.full
@pytest.mark.at_length
@pytest.mark.filterwarnings("ignore")
def test_the_checks_of_scikit_learn_pass_on_rows_that_are_painted(model_folder: Path) -> None:
    estimator = OnRows("linear_probe", str(model_folder), overrides={"method.strength": 1e4})
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    assert {each["check_name"] for each in results if each["status"] != "passed"} == set(EXCLUDED)
    assert len(results) > 50


class SaysItTakesRows(Classifier):
    """The plain estimator with another tag, without which `check_estimator` runs no check at all."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def test_the_checks_of_scikit_learn_run_on_the_plain_class_as_far_as_images_allow() -> None:
    estimator = SaysItTakesRows("linear_probe", "mini-clip", overrides={"method.strength": 1e4})
    results = check_estimator(estimator, expected_failed_checks=FAIL_ON_ROWS, on_skip=None)  # raises for any other
    assert {each["check_name"] for each in results if each["status"] == "xfail"} == set(FAIL_ON_ROWS)
    assert sum(each["status"] == "passed" for each in results) > 15


def test_the_estimator_itself_takes_images_and_no_rows() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = check_estimator(Classifier(), on_fail="raise")
    assert [each["status"] for each in results] == ["passed"]
    assert any("requires input" in str(each.message) for each in caught)
    with pytest.raises(AdaptError, match=r"array of shape \(2,\); expected \(h, w\)"):
        Classifier("zero_shot", "mini-clip").fit(np.zeros((3, 2)), [0, 1, 2])


def test_paths_arrays_and_pictures_are_the_same(few: tuple[list[str], list[str]], tiny_split: Split) -> None:
    paths, labels = few
    pictures = [open_image(path) for path in paths]
    arrays = np.stack([np.asarray(picture) for picture in pictures])
    test = [item.path for item in tiny_split.test]
    found = []
    for images in (
        paths,
        [Path(path) for path in paths],
        pictures,
        arrays,
        [Path(path).read_bytes() for path in paths],
        np.array(paths),
    ):
        fitted = Classifier("gda", "mini-clip", overrides=GDA).fit(images, labels)
        found.append(fitted.predict_proba(test))
        assert fitted.score(images, labels) == 1
        assert fitted.score(test, [item.answer for item in tiny_split.test]) == 1
    assert all(np.array_equal(each, found[0]) for each in found)
    assert found[0].sum(1) == pytest.approx(1)


def test_it_trains_as_its_recipe_does(few: tuple[list[str], list[str]], tiny_split: Split, tmp_path: Path) -> None:
    settings = [*GDA.items(), ("backbone", "mini-clip"), ("data.shots", None)]
    alone = Split("own", tiny_split.class_names, tiny_split.train, (), ())
    run_recipe(read_recipe("gda", settings, "own"), tmp_path / "run", progress=False, split=alone)
    fitted = Classifier("gda", "mini-clip", overrides=GDA).fit(*few)
    expected = adapt.load(tmp_path / "run").probabilities(few[0]).numpy()
    order = [tiny_split.class_names.index(label) for label in fitted.classes_]
    assert fitted.predict_proba(few[0]) == pytest.approx(expected[:, order], abs=1e-5)


@pytest.mark.full
def test_steps_have_a_length_for_the_images_that_there_are(few: tuple[list[str], list[str]]) -> None:
    """The recipe has one for 1, 2, 4, 8 and 16 shots; here are four images of each class."""
    fitted = Classifier("coop", "mini-clip", overrides={"train.workers": 0, "method.n_ctx": 2}, random_state=5).fit(
        *few
    )
    assert (fitted.metrics_["steps"], fitted.metrics_["seed"]) == (200, 5)
    two = clone(fitted).set_params(overrides={"train.epochs": 2, "data.shots": 1}).fit(*few)
    assert (two.metrics_["steps"], two.metrics_["train_images"]) == (2, 3)


@pytest.mark.full
@pytest.mark.at_length
def test_cross_validation_grid_search_and_joblib(few: tuple[list[str], list[str]]) -> None:
    estimator = Classifier("gda", "mini-clip", overrides=GDA)
    assert cross_val_score(estimator, *few, cv=2) == pytest.approx([1, 1])
    grid = {"overrides": [GDA, GDA | {"method.alpha": 0.0}]}
    search = GridSearchCV(estimator, grid, cv=2, error_score="raise").fit(*few)
    assert (search.best_params_, search.best_score_) == ({"overrides": GDA}, 1)
    fits = Parallel(n_jobs=2)(delayed(clone(estimator).fit)(*few) for _ in range(2))
    expected = estimator.fit(*few).predict_proba(few[0])
    assert all(np.allclose(each.predict_proba(few[0]), expected, atol=1e-6) for each in fits)


@pytest.mark.parametrize("column", [np.array, pd.Series])
def test_columns_of_paths_are_divided_and_predicted(few: tuple[list[str], list[str]], column: Any) -> None:
    X, y = map(column, few)
    estimator = Classifier("gda", "mini-clip", overrides=GDA)
    train, test, known, expected = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    assert estimator.fit(train, known).predict(test).tolist() == list(expected)
    assert cross_val_score(estimator, X, y, cv=2, error_score="raise") == pytest.approx([1, 1])


def test_a_model_that_is_moved_leaves_the_others_where_they_are(few: tuple[list[str], list[str]]) -> None:
    a, b = (Classifier("gda", "mini-clip", overrides=GDA).fit(*few) for _ in range(2))
    expected = a.predict_proba(few[0])
    b.model_.to(torch.float64)
    assert (b.model_.backbone.dtype, a.model_.backbone.dtype) == (torch.float64, torch.float32)
    assert np.array_equal(a.predict_proba(few[0]), expected)
    again = clone(a).fit(*few)
    assert again.model_.backbone.dtype == torch.float32
    assert np.array_equal(again.predict_proba(few[0]), expected)


def test_a_search_loads_its_backbone_once(few: tuple[list[str], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(estimator, "load_backbone", lambda *how: asked.append(how[0]) or adapt.load_backbone(*how))
    estimator._loaded.cache_clear()
    cross_val_score(Classifier("gda", "mini-clip", overrides=GDA), *few, cv=2, error_score="raise")
    assert asked == ["mini-clip"]


def test_the_first_axis_of_an_array_counts_images() -> None:
    """Three grey pictures are three, as many as `fit` takes them for, and not one in colour."""
    shades = np.stack([np.full((8, 3), value, np.uint8) for value in (0, 120, 250, 5, 110, 240)])
    trained = Classifier("gda", "mini-clip", class_names=["dark", "grey", "light"], overrides=GDA)
    found = trained.fit(shades, [0, 1, 2, 0, 1, 2])
    assert found.predict(shades[:3]).tolist() == [0, 1, 2]
    assert found.predict_proba(shades[:1]).shape == (1, 3)
    assert found.model_.class_names == ("dark", "grey", "light")


def test_labels_of_any_type_and_their_words(few: tuple[list[str], list[str]], tmp_path: Path) -> None:
    paths, names = few
    words = dict(enumerate(sorted(set(names))))
    numbers = [sorted(words.values()).index(name) for name in names]
    fitted = Classifier("zero_shot", "mini-clip", class_names=words).fit(paths, numbers)
    by_name = Classifier("zero_shot", "mini-clip").fit(paths, names)
    assert fitted.classes_.tolist() == [0, 1, 2]
    assert fitted.model_.class_names == tuple(by_name.classes_) == by_name.model_.class_names
    assert np.array_equal(fitted.predict_proba(paths), by_name.predict_proba(paths))
    saved = adapt.load(fitted.model_.save(tmp_path / "adapter.safetensors"))
    assert saved.predict(paths[0])[0].label == fitted.predict(paths[:1])[0]
    with pytest.raises(AdaptError, match="no name for the label 2"):
        fitted.set_params(class_names={0: "a", 1: "b"}).fit(paths, numbers)


def test_a_pickle_is_whole(few: tuple[list[str], list[str]]) -> None:
    fitted = Classifier("gda", "mini-clip", overrides=GDA).fit(*few)
    copied = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(copied.predict_proba(few[0]), fitted.predict_proba(few[0]))


def test_what_is_wrong_is_said_before_training(few: tuple[list[str], list[str]], tmp_path: Path) -> None:
    estimator = Classifier("zero_shot", "mini-clip")
    with pytest.raises(NotFittedError):
        estimator.predict(few[0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        estimator.fit(few[0], few[1][:-1])
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        estimator.fit(few[0][:2], [0.5, 1.5])
    with pytest.raises(AdaptError, match=r"missing\.png"):
        estimator.fit([*few[0], tmp_path / "missing.png"], [*few[1], few[1][0]])
    with pytest.raises(ValueError, match=f"y has only one class, {few[1][0]!r}; expected labels of at least two"):
        estimator.fit(few[0][:2], few[1][:2])
    with pytest.raises(ValueError, match="y has no labels"):
        estimator.fit([], [])
    with pytest.raises(AdaptError, match="did you mean 'gda'"):
        Classifier("gdaa", "mini-clip").fit(*few)
    assert not hasattr(estimator, "model_")


def test_no_picture_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.WARNING, "adapt"):
        Classifier("zero_shot", "mini-clip").fit(
            [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")], ["a", "b"]
        )
    assert not any(path.name.startswith("adapt-") for path in tmp_path.iterdir())
    assert [message for message in caplog.messages if "not calibrated" not in message] == []
