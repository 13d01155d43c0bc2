"""OLA-VLM: tokens behind the image, features predicted from a block's states, and what an adapter holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_llms
import torch
from checks import perturb
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.methods.ola_vlm import Predictor, embedding_losses
from adapt.methods.projector import Projector
from adapt.models.vision_llm import SpeakingModel

QUESTIONS, ANSWERS = ["what is it ?"] * 3, ["a cat", "two", "the red dog ."]


def model_of(**settings: Any) -> SpeakingModel:
    torch.manual_seed(0)
    method = methods.OLAVLM(task_tokens=2, heads=2, **settings)
    made: SpeakingModel = perturb(adapt.wrap(tiny_llms.vision_llm("llama"), method))
    return made.eval()


def test_task_tokens_stand_behind_the_patches(images: Tensor) -> None:
    model = model_of()
    method: Any = model.method
    tokens = model.step((images[:3], QUESTIONS, ANSWERS)).visual_tokens
    assert torch.equal(tokens[:, -2:], method.task_tokens.expand(3, -1, -1))
    plain: Any = adapt.wrap(tiny_llms.vision_llm("llama"), Projector())
    plain.method.load_state_dict({key: value for key, value in method.state_dict().items() if key != "task_tokens"})
    expected = plain.eval().step((images[:3], QUESTIONS, ANSWERS)).visual_tokens
    torch.testing.assert_close(tokens[:, :-2], expected)


def test_states_are_those_of_the_visual_tokens(images: Tensor) -> None:
    """Of the library's own forward, whatever the length of the questions."""
    model = model_of()
    questions = ["what ?", "which animal is there : red green blue ?", "how many dog ?"]
    step = model.step((images[:3], questions, ANSWERS))
    states = step.states(["decoder.0"])["decoder.0"]
    for row, question in enumerate(questions):
        alone = model.step((images[row : row + 1], [question], ANSWERS[row : row + 1]))
        torch.testing.assert_close(alone.states(["decoder.0"])["decoder.0"][0], states[row], rtol=1e-4, atol=1e-5)
    assert states.shape[:2] == step.visual_tokens.shape[:2]


@pytest.mark.parametrize("contrast", [0.3, 1.0])
def test_the_loss_of_a_block_is_the_regression_and_a_share_of_the_contrast(contrast: float) -> None:
    predicted, target = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    predictor = Predictor(4, 1, 2, 4)
    predictor.forward = lambda states: predicted  # type: ignore[method-assign]
    method: Any = SimpleNamespace(
        config=methods.OLAVLM.Config(contrast=contrast, embedding_weight=0.5),
        aside={"decoder_0": predictor},
        _blocks={"decoder.0"},
        _teacher=lambda pixels: target,
    )
    step = SimpleNamespace(states=lambda blocks: {"decoder.0": target}, task_loss=dict, inputs=[None])
    terms: Any = methods.OLAVLM.loss(method, step)
    first, second = embedding_losses(predicted, target, torch.tensor(2.0))
    assert terms["embedding_decoder.0"].item() == pytest.approx(0.5 * (first + contrast * second).mean().item())


def test_the_contrast_is_with_the_targets_of_the_batch() -> None:
    torch.manual_seed(0)
    predicted, target = torch.randn(3, 2, 4).double(), torch.randn(3, 2, 4).double()
    _, contrast = embedding_losses(predicted, target, torch.tensor(9.0).double())  # its exponential is cut at 100
    for row in range(3):
        cosines = [torch.cosine_similarity(predicted[row].flatten(), each.flatten(), dim=0) for each in target]
        scores = 100 * torch.stack(cosines)
        assert contrast[row].item() == pytest.approx((scores.logsumexp(0) - scores[row]).item())


@pytest.mark.full
def test_a_run_learns_to_predict_and_leaves_the_predictors_out(tmp_path: Path) -> None:
    model = model_of(teacher="mini-clip-half", blocks=(0, -1))
    items = adapt.data.load("emoji-questions").train[:16]
    settings: dict[str, Any] = {"optimizer": "adamw", "lr": 1e-2, "batch_size": 8, "augment": "none", "workers": 0}
    result = adapt.fit(model, items, epochs=12, progress=False, **settings)
    terms = [entry["terms"] for entry in result.history]
    last = len(model.backbone.tower("decoder").blocks) - 1
    assert set(terms[0]) == {"cross_entropy", "embedding_decoder.0", f"embedding_decoder.{last}"}
    for name in set(terms[0]) - {"cross_entropy"}:
        assert terms[-1][name] < 0.9 * terms[0][name]
    method: Any = model.method
    assert set(method.state_dict()) == {
        *(f"linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")),
        "task_tokens",
    }
    assert len([*method.training_state()]) > 10
    loaded = adapt.load(model.save(tmp_path / "a.safetensors"), tiny_llms.vision_llm("llama"))
    assert torch.equal(loaded.method.task_tokens, method.task_tokens)


def test_a_predictor_has_a_feature_for_each_token_of_the_teacher() -> None:
    assert Predictor(8, 2, tokens=5, width=7)(torch.randn(3, 4, 8)).shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blocks": (9,)}, "blocks has 9, but the language model has"),
        ({"heads": 5}, "heads is 5; expected a divisor of"),
        ({"align": "words"}, "align is words; expected none, since ola_vlm has a loss of its own"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt.wrap(tiny_llms.vision_llm("llama"), methods.OLAVLM(**settings))
