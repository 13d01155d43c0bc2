"""MQT: any number of visual tokens, its formula in fp64, what is drawn in training and what is set at use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_llms
import torch
from checks import scaled
from click.testing import CliRunner
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.backbones.vision_llm import VisionLLM
from adapt.cli import main
from adapt.data import Split
from adapt.evaluation.evaluate import evaluate
from adapt.models.vision_llm import SpeakingModel


def model_of(**settings: Any) -> SpeakingModel:
    llm = tiny_llms.causal("LlamaConfig", hidden_size=32, num_hidden_layers=1)().eval()
    eyes = tiny_llms.Unfold(image=16, patch=4).vision()
    torch.manual_seed(0)
    made: SpeakingModel = adapt.wrap(
        VisionLLM(eyes, llm, tiny_llms.tokenizer(), patch_block=-1), methods.MQT(tokens=9, heads=4, **settings)
    )
    return made.eval()


PATCHES = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0))


def norm(x: Tensor, layer: Any) -> Tensor:
    x = x.double()
    spread = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    return spread * layer.weight.double() + layer.bias.double()


@pytest.mark.parametrize("keys", ["positions", "patches"])
def test_tokens_by_their_formula(keys: Any) -> None:
    method: Any = model_of(keys=keys).method
    w_q, w_k, w_v = method.attn.in_proj_weight.double().chunk(3)
    q = norm(method.query + method.pos_embed, method.ln_q) @ w_q.T
    k = norm(method.patch_pos if keys == "positions" else PATCHES + method.patch_pos, method.ln_k) @ w_k.T
    v = norm(PATCHES, method.ln_v) @ w_v.T
    heads = [
        (a @ b.transpose(-1, -2) / 12**0.5).softmax(-1) @ c
        for a, b, c in zip(q.chunk(4, -1), k.chunk(4, -1), v.chunk(4, -1), strict=True)
    ]
    expected = torch.cat(heads, -1) @ method.attn.out_proj.weight.double().T @ method.proj.double()
    assert scaled(method.tokens(PATCHES, 9), expected) < 1e-6
    torch.testing.assert_close(method.tokens(PATCHES, 3), method.tokens(PATCHES, 9)[:, :3])


def test_positions_are_those_of_the_grid() -> None:
    """The row and the column of each query, resized to patches: neighbours are alike."""
    table = methods.mqt.positions(3, 8)
    assert table[5].tolist() == pytest.approx([0.9093, 0.02, -0.4161, 0.9998, 0.8415, 0.01, 0.5403, 1.0], abs=1e-3)
    assert methods.mqt.resized(table, 6).shape == (36, 8)
    torch.testing.assert_close(methods.mqt.resized(table, 3), table)


def test_training_draws_the_number_and_answers_use_all() -> None:
    model = model_of()
    method: Any = model.method
    assert method.drawn == (2, 4, 6, 8)
    model.train()
    drawn = {method._number() for _ in range(60)}
    assert drawn == {2, 4, 6, 8}
    assert {model_of(drawn=(3, 5)).train().method._number() for _ in range(30)} <= {3, 5}  # type: ignore[operator]
    model.eval()
    assert method._number() == 9
    model.set_at_use(tokens=4)
    assert method._number() == 4
    model.set_at_use(tokens=None)
    assert method._number() == 9


def test_what_is_refused() -> None:
    for settings, shown in (
        ({"tokens": 5}, "tokens is 5; expected a square, such as 16"),
        ({"tokens": 4, "drawn": (2, 6)}, "drawn has 6; expected 1 to 4"),
        ({"keys": "both"}, "keys"),
    ):
        with pytest.raises(AdaptError, match=shown):
            methods.MQT(**settings)
    with pytest.raises(AdaptError, match="16 patches of 48 numbers, and heads is 5; expected a square"):
        model_of_heads(5)
    model = model_of()
    for changes, shown in (
        ({"tokens": 10}, "tokens is 10; expected at most 9"),
        ({"words": 1}, "the settings at use: unknown key 'words'; Valid: tokens"),
        ({"tokens": 0}, "tokens is 0"),
    ):
        with pytest.raises(AdaptError, match=shown):
            model.set_at_use(**changes)
    plain: Any = adapt.wrap(model.backbone, methods.Projector())
    with pytest.raises(AdaptError, match="projector has no settings at use: leave tokens out"):
        plain.set_at_use(tokens=4)


def model_of_heads(heads: int) -> None:
    adapt.wrap(model_of().backbone, methods.MQT(tokens=9, heads=heads))


def test_a_published_checkpoint_is_read(tmp_path: Path) -> None:
    method: Any = model_of().method
    state = {f"model.query_abstractor.{key}": value for key, value in method.state_dict().items()}
    tensors, settings = methods.MQT.published(state | {"model.query_abstractor.pos_embed": method.pos_embed}, {})
    assert tensors.keys() == method.state_dict().keys()
    assert settings["tokens"] == 9


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training on the bundled questions."""
    folder = tmp_path_factory.mktemp("mqt") / "run"
    changes = ["method.tokens=16", "train.iterations=6", "train.batch_size=8", "train.epochs=null", "data.shots=null"]
    asked = ["train", "mqt", "--out", str(folder), "--plot", *(part for each in changes for part in ("--set", each))]
    result = CliRunner().invoke(main, asked)
    assert result.exit_code == 0, result.output
    assert "by tokens  1: " in result.output
    return folder


@pytest.mark.full
def test_a_run_tells_accuracy_by_tokens(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["tokens"]) == ["1", "2", "4", "8", "16"]
    questions = adapt.data.load("emoji-questions").val
    assert metrics["tokens_items"] == len(questions)
    model = adapt.load(run)
    for number in ("1", "16"):
        model.set_at_use(tokens=int(number))
        assert evaluate(model, questions).accuracy == pytest.approx(metrics["tokens"][number])
    assert (run / "tokens.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.full
def test_the_command_line_sets_the_number_of_tokens(
    run: Path, tiny_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    usual = methods.MQT.tokens

    def tokens(self: Any, patches: Tensor, number: int) -> Tensor:
        seen.append(number)
        return usual(self, patches, number)

    monkeypatch.setattr(methods.MQT, "tokens", tokens)
    image = tiny_split.train[0].path
    for command in (
        ["chat", str(run), image, "--question", "what is it?", "--max-tokens", "1"],
        ["predict", str(run), image, "--question", "what is it?"],
    ):
        seen.clear()
        result = CliRunner().invoke(main, [*command, "--set", "use.tokens=2"])
        assert result.exit_code == 0, result.output
        assert seen[-1] == 2  # the first ones are of the check when a model is made
    for change, shown in (("tokens=2", "--set tokens: expected use.KEY=VALUE"), ("use.words=2", "unknown key 'words'")):
        refused = CliRunner().invoke(main, [*command, "--set", change])
        assert refused.exit_code != 0
        assert shown in refused.output
