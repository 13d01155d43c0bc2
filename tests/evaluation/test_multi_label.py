"""Average precision, F1 and the bias of several classes an image, beside scikit-learn."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy.special import expit, logit
from scipy.stats import t
from sklearn.metrics import average_precision_score, f1_score

from adapt.data import Item
from adapt.evaluation.multi_label import MultiLabelScores, prior_bias
from adapt.evaluation.scores import calibration_error, reliability

NAMES = ("a", "b", "c", "d")
# a | b, c, nothing, a; no image has d
ITEMS = tuple(
    Item.of(path=f"{number}.png", labels=names) for number, names in enumerate([("a", "b"), ("c",), (), ("a",)])
)
TRUTH = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], dtype=torch.bool)
PROBABILITIES = torch.tensor([[0.9, 0.6, 0.1, 0.2], [0.7, 0.1, 0.4, 0.2], [0.1, 0.2, 0.4, 0.3], [0.3, 0.8, 0.2, 0.1]])


def test_all_figures_of_a_few_images() -> None:
    found = MultiLabelScores.of(ITEMS, PROBABILITIES, TRUTH, NAMES)
    truth = TRUTH.int().numpy()
    said = (PROBABILITIES >= 0.5).int().numpy()
    by_class = [average_precision_score(truth[:, label], PROBABILITIES[:, label].numpy()) for label in range(3)]
    assert found.by_class == {name: pytest.approx(value) for name, value in zip(NAMES, by_class)}  # but of d
    figures = found.figures()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a class that is nowhere
        assert figures["f1"] == pytest.approx(f1_score(truth, said, average="micro"))
        assert figures["mean_class_f1"] == pytest.approx(f1_score(truth[:, :3], said[:, :3], average="macro"))
    assert figures["mean_average_precision"] == pytest.approx(sum(by_class) / 3)
    # the likeliest of the first is one of its own, that of the second and fourth is not, and the third has none
    assert found.right == (True, False, True, False)
    assert figures["accuracy"] == 0.5
    every = reliability(PROBABILITIES.flatten().tolist(), TRUTH.flatten().tolist())
    assert sum(each["images"] for each in every) == 16
    assert figures["calibration_error"] == pytest.approx(calibration_error(every))
    assert [(row["class"], row["predicted"]) for row in found.rows()] == [
        ("a|b", "a|b"),
        ("c", "a"),
        ("none", "none"),
        ("a", "b"),
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("having", "figures"), [((0, 3), (5 / 6, 0.5, 0.5)), ((), (0, 0, 0))])
def test_a_class_alone_and_one_that_no_image_has(having: tuple[int, ...], figures: tuple[float, ...]) -> None:
    truth = torch.tensor([[number in having] for number in range(len(ITEMS))])
    found = MultiLabelScores.of(ITEMS, PROBABILITIES[:, :1], truth, NAMES[:1])
    names = ("mean_average_precision", "f1", "mean_class_f1")
    assert [found.figures()[name] for name in names] == pytest.approx(figures)
    assert "mean_average_precision" not in found.intervals or having


def test_as_many_probabilities_as_labels() -> None:
    logits, labels = 10 * torch.randn(200, 7), torch.rand(200, 7) < 0.15
    bias = prior_bias(logits, labels)
    assert float((logits.double() + bias).sigmoid().mean()) == pytest.approx(float(labels.double().mean()), abs=1e-6)
    for every in (False, True):  # half a label is left, so that the bias is finite
        share = float((logits.double() + prior_bias(logits, torch.full_like(labels, every))).sigmoid().mean())
        assert share == pytest.approx(abs(every - 1 / (2 * labels.numel())), rel=1e-4)


def test_the_interval_of_the_mean_average_precision_is_that_of_its_merits_on_the_scale_of_shares() -> None:
    draw = torch.Generator().manual_seed(0)
    truth = torch.rand(60, 3, generator=draw) < 0.4
    probabilities = (truth * 0.4 + torch.rand(60, 3, generator=draw)).clamp(0.01, 0.99)
    items = [Item.of(path=f"{number}.png", labels=("a",)) for number in range(60)]
    found = MultiLabelScores.of(items, probabilities, truth, NAMES[:3])
    ranked = found.mean_average_precision
    low, high = found.intervals["mean_average_precision"]
    half = t.ppf(0.975, 59) * float(found.merits.std()) / 60**0.5
    assert (low, high) == pytest.approx(
        [float(expit(logit(ranked) + end / (ranked * (1 - ranked)))) for end in (-half, half)], rel=1e-6
    )
    assert 0.05 < high - low < 0.2


def test_the_merit_of_an_image_is_its_influence_on_the_mean_average_precision() -> None:
    """Against differences of scikit-learn's figure where one image has a little more weight; some images tie."""
    torch.manual_seed(0)
    truth = torch.rand(40, 3) < 0.3
    probabilities = (truth * 0.4 + torch.rand(40, 3)).mul(8).round().div(8)
    items = tuple(Item.of(path=f"{number}.png", labels=("a",)) for number in range(40))
    found = MultiLabelScores.of(items, probabilities, truth, NAMES[:3])

    def figure(weights: torch.Tensor) -> float:
        columns = [(truth[:, label].numpy(), probabilities[:, label].numpy()) for label in range(3)]
        return sum(average_precision_score(*each, sample_weight=weights.numpy()) for each in columns) / 3

    more = 1e-5 * torch.eye(40, dtype=torch.double)
    influences = [(figure(1 + own) - figure(1 - own)) / 2e-5 for own in more]
    assert found.merits.tolist() == pytest.approx([found.mean_average_precision + 40 * each for each in influences])
    assert float(found.merits.mean()) == pytest.approx(found.mean_average_precision)
    assert float(found.merits.std()) > 0.1
