"""Several adapters as one: by hand, by peft, and as a greedy soup."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_backbones
import torch
from checks import perturb, scaled
from peft.utils import merge_utils
from torch import Tensor

import adapt
from adapt import AdaptedModel, AdaptError, Backbone, methods
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.evaluation.sets import calibrated
from adapt.formats import peft_layout
from adapt.tasks.labels import Several

NAMES = ("goldfish", "red_panda", "sea cucumber")


def members(backbone: Backbone, method: type[Any], count: int = 2, **config: Any) -> list[AdaptedModel]:
    """From one start, moved apart."""
    made = []
    for seed in range(count):
        torch.manual_seed(0)
        made.append(perturb(adapt.wrap(backbone, method(**config), NAMES), seed=seed, size=0.2).eval())
    return made


def changes(model: AdaptedModel) -> list[Tensor]:
    """What a LoRA adds to each weight."""
    method: Any = model.method
    scaling = method.config.alpha / method.config.rank**0.5
    return [(scaling * (b @ a)).detach() for a, b in (method.pair(*site) for site in method.sites)]


@pytest.mark.parametrize(
    ("method", "config"),
    [(methods.CoOp, {"n_ctx": 2}), (methods.LoRA, {"rank": 3}), (methods.MaPLe, {"depth": 2})],
    ids=["coop", "lora", "maple"],
)
def test_one_at_weight_1_is_itself_bit_for_bit(
    method: type[Any], config: dict[str, Any], open_clip: Backbone, images: Tensor
) -> None:
    (model,) = members(open_clip, method, 1, **config)
    with torch.no_grad():
        next(model.method.parameters()).flatten()[0] = -0.0
    soup = adapt.soup([model], [1.0])
    assert soup.method.config == model.method.config
    state, expected = soup.method.state_dict(), model.method.state_dict()
    assert state.keys() == expected.keys()
    assert all(state[name].numpy().tobytes() == expected[name].numpy().tobytes() for name in state)
    assert torch.equal(soup(images), model(images))


def test_a_mean_of_prompts_by_hand(open_clip: Backbone, images: Tensor, tmp_path: Path) -> None:
    first, second, third = members(open_clip, methods.CoOp, 3, n_ctx=2)
    contexts = [each.method.ctx.detach() for each in (first, second, third)]
    soup = adapt.soup([first, second, third], [0.5, 0.3, 0.2])
    assert torch.equal(soup.method.ctx, 0.5 * contexts[0] + 0.3 * contexts[1] + 0.2 * contexts[2])
    third_of = 1 / 3
    expected = third_of * contexts[0] + third_of * contexts[1] + third_of * contexts[2]
    assert torch.equal(adapt.soup([first, second, third]).method.ctx, expected)
    back = adapt.load(soup.save(tmp_path / "soup.safetensors"), open_clip)
    assert torch.equal(back(images), soup(images))
    assert back.metadata["recipe"]["soup"]["ingredients"][1] == {"adapter": "model 2", "weight": 0.3}


def test_a_linear_soup_of_lora_is_of_the_products(open_clip: Backbone, images: Tensor) -> None:
    """The mean of the factors is another change altogether."""
    both = members(open_clip, methods.LoRA, rank=2, projections=("q", "fc1"))
    soup = adapt.soup(both, [0.7, 0.3])
    assert soup.method.config.rank == 4
    for found, a, b in zip(changes(soup), *map(changes, both)):
        assert scaled(found, 0.7 * a + 0.3 * b) < 1e-6
    wrong = adapt.wrap(open_clip, methods.LoRA(rank=2, projections=("q", "fc1")), NAMES)
    first, second = (each.method.state_dict() for each in both)
    wrong.method.load_state_dict({name: 0.7 * first[name] + 0.3 * second[name] for name in first})
    assert scaled(changes(wrong)[0], changes(soup)[0]) > 0.01


def test_a_given_rank_is_the_nearest_of_that_rank(open_clip: Backbone) -> None:
    both = members(open_clip, methods.LoRA, rank=2)
    exact, small = adapt.soup(both), adapt.soup(both, rank=3)
    assert (exact.method.config.rank, small.method.config.rank) == (4, 3)
    for found, whole in zip(changes(small), changes(exact)):
        last = torch.linalg.svdvals(whole)[3]  # Eckart and Young
        assert torch.allclose((found - whole).norm(), last, rtol=1e-3)
    assert adapt.soup(both, rank=7).method.config.rank == 4  # there is no more


@pytest.mark.parametrize("combination", ["ties", "magnitude_prune"])
def test_it_is_what_peft_gives(combination: Any, tmp_path: Path) -> None:
    """peft's own `add_weighted_adapter`, on adapters that were given to it."""
    backbone = tiny_backbones.backbone("hf_clip")
    both = members(backbone, methods.LoRA, rank=4, projections=("q", "v"))
    folders = [peft_layout.export(each, tmp_path / str(number)) for number, each in enumerate(both)]
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folders[0]), adapter_name="0")
    theirs.load_adapter(str(folders[1]), adapter_name="1")
    theirs.add_weighted_adapter(["0", "1"], [1.0, 0.5], "both", f"{combination}_svd", svd_rank=4, density=0.3)
    soup = adapt.soup(both, [1.0, 0.5], combination=combination, density=0.3)
    assert soup.method.config.rank == 4
    names = {place: name for name, own in peft_layout.layers(backbone).items() for place in own}
    layers = dict(theirs.base_model.model.named_modules())
    for site, found in zip(soup.method.sites, changes(soup)):
        assert scaled(found, layers[names[site]].get_delta_weight("both").detach()) < 1e-5
    assert scaled(changes(soup)[0], changes(adapt.soup(both, [1.0, 0.5]))[0]) > 0.01  # and not what linear gives


@pytest.mark.parametrize("combination", ["dare_linear", "dare_ties"])
def test_dare_drops_what_the_seed_says(combination: Any, open_clip: Backbone) -> None:
    both = members(open_clip, methods.LoRA, rank=2, blocks=(0, 1), towers=("vision",), projections=("q",))
    mix = getattr(merge_utils, combination)
    whole = min(changes(both[0])[0].shape)  # of which nothing is cut off
    soup = adapt.soup(both, [0.5, 0.5], combination=combination, density=0.4, seed=3, rank=whole)
    before = torch.get_rng_state()
    torch.manual_seed(3)
    expected = mix([changes(each)[0] for each in both], torch.tensor([0.5, 0.5]), 0.4)
    torch.set_rng_state(before)
    assert scaled(changes(soup)[0], expected) < 1e-5
    adapt.soup(both, combination=combination, density=0.4, seed=4)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is not moved


def test_the_weights_of_ties_are_1_each(open_clip: Backbone) -> None:
    both = members(open_clip, methods.LoRA, rank=2)
    left, given = adapt.soup(both, combination="ties", density=0.5), [1.0, 1.0]
    right = adapt.soup(both, given, combination="ties", density=0.5)
    assert all(torch.equal(a, b) for a, b in zip(changes(left), changes(right)))


def test_parts_of_a_composition_are_mixed_by_their_own_ways(open_clip: Backbone) -> None:
    parts = [{"name": "coop", "n_ctx": 2}, {"name": "lora", "rank": 2, "towers": ["vision"]}]
    both = members(open_clip, methods.Compose, methods=parts)
    soup = adapt.soup(both)
    first, second = (each.method.parts["coop"].ctx.detach() for each in both)
    assert torch.equal(soup.method.parts["coop"].ctx, 0.5 * first + 0.5 * second)
    assert soup.method.parts["lora"].config.rank == 4


def by_hand(models: Sequence[AdaptedModel], items: Any) -> tuple[list[str], float]:
    """Wortsman et al.'s greedy soup of prompts: names and accuracy."""
    order = sorted(range(len(models)), key=lambda i: -evaluate(models[i], items).accuracy)
    taken, best = [], -1.0
    for i in order:
        contexts = torch.stack([models[j].method.ctx.detach() for j in [*taken, i]])
        trial = adapt.wrap(models[0].backbone, methods.CoOp(n_ctx=2), NAMES).eval()
        trial.method.ctx.data = contexts.mean(0)
        if (accuracy := evaluate(trial, items).accuracy) >= best:
            taken, best = [*taken, i], accuracy
    return [f"model {i + 1}" for i in taken], best


@pytest.mark.full
def test_a_greedy_soup_takes_what_helps(open_clip: Backbone, tiny_split: Split) -> None:
    items = tiny_split.train
    models = members(open_clip, methods.CoOp, 5, n_ctx=2)
    tried: list[tuple[str, float, bool]] = []
    soup = adapt.soup(models, validation=items, tried=lambda *each: tried.append(each))
    taken, best = by_hand(models, items)
    assert [each["adapter"] for each in soup.metadata["recipe"]["soup"]["ingredients"]] == taken
    assert [name for name, _, good in tried if good] == taken
    assert len(tried) == 5
    assert evaluate(soup, items).accuracy == soup.metadata["metrics"]["val"]["accuracy"] == pytest.approx(best)
    assert best >= max(evaluate(each, items).accuracy for each in models)


def test_a_greedy_soup_for_images_of_several_classes_goes_by_map(open_clip: Backbone, tiny_split: Split) -> None:
    items = [item.labelled(Several(tuple(sorted({NAMES[0], item.answer})))) for item in tiny_split.train]
    models = members(open_clip, methods.CoOp, 3, n_ctx=2)
    for model in models:
        model.answers = replace(model.answers, logit_bias=-3.0)
    tried: list[tuple[str, float, bool]] = []
    soup = adapt.soup(models, validation=items, tried=lambda *each: tried.append(each))
    best = max(evaluate(model, items).figures()["mean_average_precision"] for model in models)
    assert tried[0][1] == best
    found = evaluate(soup, items).figures()["mean_average_precision"]
    assert soup.metadata["metrics"]["val"] == {"mean_average_precision": pytest.approx(found), "images": len(items)}
    assert found >= best


def test_what_stays_out_is_told(open_clip: Backbone, tiny_split: Split, caplog: pytest.LogCaptureFixture) -> None:
    made = members(open_clip, methods.CoOp, n_ctx=2)
    made[1].answers = replace(made[1].answers, sets=calibrated(made[1], 4 * tiny_split.test))
    assert adapt.soup(made).answers.sets is adapt.average(made).answers.sets is None
    told = "the watch and the calibrated sets of model 2 stay out of the"
    assert caplog.messages == [f"{told} soup, another model", f"{told} average, another model"]


def test_what_cannot_go_into_one_pot(open_clip: Backbone, hf_clip: Backbone) -> None:
    (coop,) = members(open_clip, methods.CoOp, 1, n_ctx=2)
    (longer,) = members(open_clip, methods.CoOp, 1, n_ctx=3)
    (lora,) = members(open_clip, methods.LoRA, 1)
    (elsewhere,) = members(hf_clip, methods.LoRA, 1)
    renamed = coop.with_classes(["sky"])
    for other, words in (
        (longer, "model 1 and model 2 differ in n_ctx, 2 and 3, but a soup may combine only adapters"),
        (lora, "differ in method, 'coop' and 'lora'"),
        (renamed, r"differ in class_names, \('goldfish', 'red_panda', 'sea cucumber'\) and \('sky',\)"),
        (coop.blended(0.5), "differ in answers, None and"),
    ):
        with pytest.raises(AdaptError, match=words):
            adapt.soup([coop, other])
    with pytest.raises(AdaptError, match="differ in backbone"):
        adapt.soup([lora, elsewhere])


@pytest.mark.parametrize(
    ("method", "settings", "bias"),
    [
        (methods.CoOp, {}, -3.5),
        (methods.CoOp, {"weights": [0.25, 0.75]}, -3.25),
        (methods.LoRA, {"combination": "ties", "density": 0.5}, -3.5),
        (methods.LoRA, {"weights": [3.0, -1.0]}, -3.75),
    ],
)
def test_the_bias_of_several_classes_is_a_mean(
    open_clip: Backbone, method: type[Any], settings: dict[str, Any], bias: float
) -> None:
    """It is set by the training images, a little otherwise for every seed."""
    both = members(open_clip, method)
    for each, own in zip(both, (-4.0, -3.0), strict=True):
        each.answers = replace(each.answers, logit_bias=own)
    assert adapt.soup(both, **settings).answers.logit_bias == pytest.approx(bias)
    both[0].answers = replace(both[0].answers, logit_bias=None)
    for temperature in (1.0, 2.0):
        for each in both:
            each.answers = replace(each.answers, temperature=temperature)
        with pytest.raises(AdaptError, match="differ in answers"):
            adapt.soup(both, **settings)


def test_the_temperature_of_a_soup_is_the_geometric_mean(open_clip: Backbone) -> None:
    both = members(open_clip, methods.CoOp)
    for each, own in zip(both, (2.0, 8.0), strict=True):
        each.answers = replace(each.answers, temperature=own)
    assert adapt.soup(both).answers.temperature == pytest.approx(4.0)
    assert adapt.soup(both, weights=[0.75, 0.25]).answers.temperature == pytest.approx(2**1.5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": [1.0]}, "there are 1 weights for 2 adapters"),
        ({"weights": [0.0, 0.0]}, "all weights are 0, which would leave nothing"),
        ({"weights": [1.0, 1.0]}, "the weights sum to 2; expected 1, because the tensors of coop are averaged"),
        ({"weights": [float("nan"), 1.0]}, "expected a finite number for each adapter"),
        (
            {"combination": "ties", "density": 0.2},
            "ties mixes changes from a common start, which coop adapters do",
        ),
        ({"combination": "ties"}, "ties needs a density, such as 0.2"),
        ({"density": 0.2}, "linear has no density: leave density out"),
        ({"combination": "ties", "density": 1.5}, "density is 1.5; expected the fraction of entries"),
        ({"combination": "tise"}, "unknown combination 'tise'; did you mean 'ties'"),
        ({"rank": 0}, "rank is 0; expected 1 or more"),
        ({"rank": 2}, "coop adapters have no rank"),
        (
            {"validation": [], "weights": [0.5, 0.5]},
            "a greedy soup is the unweighted mean of the adapters",
        ),
        ({"validation": []}, "there are no images, because this split of the data is empty"),
    ],
)
def test_settings_that_make_no_soup(settings: dict[str, Any], words: str, open_clip: Backbone) -> None:
    with pytest.raises(AdaptError, match=words):
        adapt.soup(members(open_clip, methods.CoOp, n_ctx=2), **settings)


def test_what_no_step_trained_has_no_mean(open_clip: Backbone) -> None:
    both = members(open_clip, methods.GDA)
    both[1].method.weight.add_(1.0)
    with pytest.raises(
        AdaptError, match="gda: the adapters differ in the tensor weight, which comes from training images"
    ):
        adapt.soup(both)
    with pytest.raises(AdaptError, match="expected lora without options, whose weight changes can be mixed"):
        adapt.soup(members(open_clip, methods.LoRA, options={"use_dora": True}))
    for nothing in ([], "runs/first"):
        with pytest.raises(AdaptError, match="expected a list with 1 or more adapters"):
            adapt.soup(nothing)
