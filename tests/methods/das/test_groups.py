"""What trains beside the adapters, at which rate, and a subset of blocks for each batch that a step accumulates."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_fusion
import torch
from torch import Tensor

import adapt
from adapt import AdaptError, methods
from adapt.models.fusion_encoder import AnsweringModel
from adapt.recipe.settings import TrainSettings
from adapt.training.loop import make_optimizer

METER = {"towers": ("text_fusion", "vision_fusion"), "skipped": ("text_fusion.1",)}
PARTS = ("cross_modal_text_pooler", "token_type_embeddings")


def model(**config: object) -> AnsweringModel:
    torch.manual_seed(0)
    return adapt.wrap(tiny_fusion.bridgetower(), methods.DAS(**METER | config), tiny_fusion.ANSWERS)


def test_named_parts_train_as_copies_and_are_in_the_file(tmp_path: Path) -> None:
    adapted = model(trained_parts=PARTS).train()
    backbone = adapted.backbone
    before = {name: x.clone() for name, x in backbone.model.state_dict().items()}
    copies = dict(adapted.method.backbone_parts.named_parameters())
    assert set(copies) == {name for name in before if any(part in name for part in PARTS)}
    images, questions = torch.randn(2, 3, 32, 32), ["red", "green"]
    adapted(images, questions).square().sum().backward()
    assert all(copy.grad is not None and bool(copy.grad.any()) for name, copy in copies.items() if "pooler" in name)
    with torch.no_grad():
        for copy in copies.values():
            copy += 0.1
    expected = adapted.eval()(images, questions)
    plain = model().eval()
    plain.method.load_state_dict({k: v for k, v in adapted.method.state_dict().items() if "backbone_parts" not in k})
    assert float((plain(images, questions) - expected).abs().max()) > 1e-3
    loaded = adapt.load(adapted.save(tmp_path / "a.safetensors"), tiny_fusion.bridgetower())
    assert torch.equal(loaded(images, questions), expected)
    assert all(torch.equal(x, before[name]) for name, x in backbone.model.state_dict().items())


def test_rates_and_decay_are_those_of_the_groups() -> None:
    adapted = model(trained_parts=PARTS, head_rate=50.0, kept_rate=5.0)
    names = {id(parameter): name for name, parameter in adapted.method.named_parameters()}
    settings = TrainSettings(epochs=1, optimizer="adamw", weight_decay=0.01)
    for row in make_optimizer(adapted, settings).param_groups:
        for name in (names[id(parameter)] for parameter in row["params"]):
            assert row["weight_decay"] == (0 if name.endswith("bias") else 0.01), name
            head, bypass = name.startswith("classifier"), ".bypass." in name
            other = "token_type" in name
            assert row["rate"] == (50 if head else 1 if bypass or other else 5), name


@pytest.mark.parametrize("parts", [("cross_modal_texts",), ("pooler",)])
def test_a_part_that_is_not_there_is_refused(parts: tuple[str, ...], make_model) -> None:
    with pytest.raises(AdaptError, match=f"trained_parts has '{parts[0]}', which is in no name of a parameter"):
        model(trained_parts=parts) if parts != ("pooler",) else make_model("das", skip=1, trained_parts=parts)


def test_each_accumulated_batch_has_a_subset(train, make_model, tiny_split, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = make_model("das", skip=1, search_epochs=2, warmup_epochs=0, turn=100, draws=2)
    drawn: list[frozenset[str]] = []
    of_batches: list[frozenset[str]] = []
    select, loss = methods.DAS.select, methods.DAS.loss

    def selecting(self: methods.DAS, names: tuple[str, ...]) -> None:
        drawn.append(frozenset(names))
        select(self, names)

    def losing(self: methods.DAS, step: object) -> dict[str, Tensor]:
        of_batches.append(self.selected)
        return loss(self, step)

    monkeypatch.setattr(methods.DAS, "select", selecting)
    monkeypatch.setattr(methods.DAS, "loss", losing)
    result = train(adapted, val_set=tiny_split.val, batch_size=2, accumulate=3, epochs=1)
    searched = of_batches[: len(of_batches) * 2 // 3]  # two epochs of three are the search's
    assert len(searched) == 2 * (len(of_batches) - len(searched))
    assert len(set(searched)) == 3
    assert any(len(set(searched[i : i + 3])) > 1 for i in range(0, len(searched), 3))
    assert result.metrics["search"]["updates"] == 0
