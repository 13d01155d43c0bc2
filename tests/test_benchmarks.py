"""Operations by formula and by torch's counter, at the papers' sizes; nothing is allocated for them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import adapt
from adapt import Backbone, methods
from benchmarks import meter, needed, none_of_these, products, vlm, vlora
from benchmarks.text import class_names


def test_das_saves_what_its_paper_says_at_meters_shape() -> None:
    assert 100 * meter.saved(2, 2) == pytest.approx(12.0, abs=0.1)
    assert meter.meter() / 2e9 == pytest.approx(93.1, abs=0.05)
    assert meter.adapters() / 2e9 == pytest.approx(1.64, abs=0.005)


@pytest.mark.parametrize("tokens", [(meter.IMAGE, meter.TEXT), (meter.TEXT, meter.IMAGE)])
def test_a_fusion_block_counts_as_the_formula_says(tokens: tuple[int, int]) -> None:
    assert meter.fusion_block(*tokens) == pytest.approx(meter.counted(*tokens), rel=1e-6)


@pytest.mark.full
@pytest.mark.at_length
def test_vlora_takes_at_most_seven_hundredths_of_the_projectors_operations() -> None:
    counted = {method: vlora.large(method) for method in ("projector", "vlora")}
    assert counted["vlora"] / counted["projector"] < 0.07
    for method, operations in counted.items():
        assert vlora.by_formula(method) == pytest.approx(operations, rel=0.02)


def test_the_products_of_a_step_are_those_of_its_maps_and_of_gradients_through_frozen_ones() -> None:
    import torch

    frozen = [torch.nn.Linear(8, 32).requires_grad_(False), torch.nn.Linear(32, 8).requires_grad_(False)]
    trained = torch.nn.Linear(8, 8)
    x, rows = torch.randn(5, 8), 5

    def step() -> None:
        frozen[1](frozen[0](trained(x)).relu()).sum().backward()

    forward, inner = 2 * rows * 8 * 8, 2 * 2 * rows * 8 * 32
    counted = products.products_of(step)
    assert counted.flops == forward + inner + inner + forward  # gradients: through the frozen ones, of the trained one
    counted()  # and they can be computed by themselves


# with the same prompts, on a backbone of few blocks
ALIKE = {"das": "zero_shot", "ivlp": "cocoop", "maple": "cocoop"}


@pytest.mark.parametrize(
    ("method", "images", "traced"),
    [  # multiply-adds that were traced at ViT-B/16's shapes
        ("ivlp", 4, 161_975_122_944),
        ("coop", 8, 159_397_415_936),
        ("maple", 4, 161_996_356_608),
        ("lora", 8, 325_629_155_328),
        ("cocoop", 1, 43_951_205_376),
        ("das", 4, 114_543_050_752),
    ],
)
def test_a_step_takes_the_products_that_the_formula_asks_for(
    method: str, images: int, traced: int, open_clip: Backbone
) -> None:
    names = class_names(100)
    asking = adapt.wrap(open_clip, methods.find(ALIKE.get(method, method))(), names).method
    prompts = [asking.prompts(open_clip.tokenizer, name)[0] for name in names]
    assert needed.step(method, prompts, images) == pytest.approx(2 * traced, rel=1e-3)
    assert needed.step(method, prompts, images) >= 2 * traced
    needed.check(method, 2 * traced, needed.step(method, prompts, images))
    once_more = 2 * images * 197 * 768**2  # one d² map of one block, computed twice
    with pytest.raises(RuntimeError, match=rf"{method}: .* were traced, and .* are needed by formula"):
        needed.check(method, 2 * traced + once_more, needed.step(method, prompts, images))


@pytest.mark.parametrize("method", ["coop", "ivlp"])
def test_a_tower_takes_the_products_that_the_formula_asks_for(method: str, open_clip: Backbone) -> None:
    """Traced, on a small backbone, with gradients through both towers or the text's alone."""
    import torch

    from adapt.methods.base import total

    names, images = ("dog", "cat", "car", "sun", "tree"), torch.randn(3, 3, 32, 32)
    config = {"coop": {"n_ctx": 4}, "ivlp": {"depth_text": 1, "depth_vision": 1}}[method]
    model = adapt.wrap(open_clip, methods.find(method)(**config), names)
    prompts = [model.method.prompts(open_clip.tokenizer, name)[0] for name in names]
    step = lambda: total(model.losses(model.step(images, torch.arange(3)))[0]).backward()  # noqa: E731
    traced = products.products_of(step).flops
    through, size = method == "ivlp", open_clip.embed_dim
    text, vision = open_clip.tower("text"), open_clip.tower("vision")
    patches = (32 // open_clip.model.visual.conv1.kernel_size[0]) ** 2
    rows = needed.vision_rows(3, 1 + patches + 2 * through)
    asked = needed.text_rows(prompts, shared=True)  # of which so few attend to each other, under one mask
    asked = replace(asked, pairs=asked.all**2, last_pairs=asked.last * asked.all)
    expected = needed.frozen(asked, text.width, len(text.blocks), True)
    expected += needed.frozen(rows, vision.width, len(vision.blocks), through)
    expected += 4 * 5 * text.width * size + 2 * 3 * vision.width * size * (1 + through)  # the last projections
    expected += 2 * 3 * patches * vision.width * open_clip.model.visual.conv1.weight[0].numel()
    expected += 2 * 3 * 5 * size * (2 + through)
    assert traced == expected


def test_classes_are_divided_into_known_ones_others_and_some_that_are_never_seen() -> None:
    names = tuple("abcdefghij")
    divisions = none_of_these.divided(names, 6)
    assert divisions[0] == none_of_these.Classes(tuple("abcdef"), ("g", "i"), ("h", "j"))
    assert len({each.known for each in divisions}) == 3
    for each in divisions:
        assert sorted(each.known + each.others + each.never_seen) == list(names)


def test_never_seen_images_are_refused_below_what_nine_tenths_of_the_known_ones_reach() -> None:
    import torch

    known = torch.arange(10.0)  # of which one may be refused
    assert none_of_these.told_apart(known, torch.tensor([0.0, 0.5, 1.0, 2.0]))[1] == 0.5
    assert none_of_these.told_apart(known, known - 20) == (1.0, 1.0)
    assert none_of_these.told_apart(torch.ones(10), torch.ones(3)) == (0.5, 0.0)


def test_scores_are_larger_the_surer_an_image_is_of_a_known_class() -> None:
    import torch

    unsure, sure = torch.tensor([[1.0, 1.0, 3.0], [5.0, 1.0, 1.0]]).double()  # the last column is of none
    for score in (none_of_these.of_some_class, none_of_these.of_known_ones, none_of_these.largest_cosine):
        low, high = score(torch.stack([unsure, sure]))
        assert low < high
    huge = torch.tensor([[80.0, 0.0, -20.0], [90.0, 0.0, -20.0]]).double()  # whose probabilities are 1
    low, high = none_of_these.of_some_class(huge)
    assert low < high


@pytest.mark.full
@pytest.mark.at_length
def test_a_step_on_conversations_takes_the_products_that_the_formula_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its images encoded: the head for answers alone, the last block for their tokens."""
    monkeypatch.setattr("torch.set_num_threads", lambda number: None)  # or later tests would have one thread
    assert products.products_of(vlm.ours(kept=True)).flops == vlm.operations()
