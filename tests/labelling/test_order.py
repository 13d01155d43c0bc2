"""The order in which images are worth a label: those that represent many others, above all uncertain ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.labelling import proposals
from adapt.labelling.proposals import most_useful, uncertainty


def groups(*sizes: int, spread: float = 0.05) -> Tensor:
    """Unit-length features in groups, each around a direction of its own; images of a group follow one another."""
    torch.manual_seed(0)
    centres = torch.eye(8)[: len(sizes)]
    parts = [centre + spread * torch.randn(size, 8) for centre, size in zip(centres, sizes, strict=True)]
    return F.normalize(torch.cat(parts), dim=-1)


def even(count: int, classes: int = 3) -> Tensor:
    return torch.full((count, classes), 1 / classes)


NONE = torch.zeros(0, 8)


def test_groups_are_represented_by_size_before_any_is_represented_twice() -> None:
    features = groups(10, 40, 20)
    of_group = [0 if place < 10 else 1 if place < 50 else 2 for place in most_useful(features, NONE, even(70), 3)]
    assert of_group == [1, 2, 0]


def test_labelled_groups_come_last() -> None:
    features = groups(10, 40, 20)
    labelled = features[[15, 25]]
    first, second = most_useful(features, labelled, even(70), 2)
    assert first >= 50
    assert second < 10


def test_of_equal_groups_the_uncertain_one_comes_first() -> None:
    features = groups(20, 20).repeat(1, 1)
    for uncertain in (0, 1):
        probabilities = torch.tensor([[0.98, 0.01, 0.01]]).repeat(40, 1)
        probabilities[20 * uncertain : 20 * (uncertain + 1)] = 1 / 3
        [first] = most_useful(features, NONE, probabilities, 1)
        assert first // 20 == uncertain


def test_weights_go_from_certain_to_undecided() -> None:
    weights = uncertainty(torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.6, 0.4, 0.0]]))
    assert weights.allclose(torch.tensor([proposals.CERTAIN, 1.0, 1 - (1 - proposals.CERTAIN) * 0.2]))
    assert uncertainty(torch.ones(4, 1)).tolist() == [1.0] * 4


def test_no_image_is_named_twice_and_a_few_images_are_all_named() -> None:
    features = groups(3, 2)
    assert sorted(most_useful(features, NONE, even(5), 9)) == [0, 1, 2, 3, 4]
    assert sorted(most_useful(features[[0, 0, 0]], NONE, even(3), 3)) == [0, 1, 2]
    assert most_useful(features[:1], features[1:], even(1), 3) == [0]
