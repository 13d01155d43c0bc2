"""DAS against the published implementation: its adapters, its policy, and adapted ViLT and METER as a whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import published
import pytest
import tiny_fusion
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BridgeTowerConfig, BridgeTowerModel, ViltConfig, ViltModel

import adapt
from adapt.backbones.fusion import FusionEncoder
from adapt.edits import Parallel
from adapt.engine.hooks import run
from adapt.methods.das import DAS, Adapter
from adapt.methods.das.search import Search
from adapt.models.fusion_encoder import AnsweringModel
from adapt.recipe.settings import TrainSettings
from adapt.training.loop import learning_rate, make_optimizer

GATES = 1e-6  # absolute: fp32 there, fp64 here
KINDS = ("weight", "bias")
PARTS = {"adapter_layer_norm_before": "norm", "down_proj": "down", "up_proj": "up"}
PLACES = {  # where the reference keeps adapters and what else it trains, and where DAS does
    r"transformer\.blocks\.(\d)\.adapter0": r"fusion.\1.attn",
    r"transformer\.blocks\.(\d)\.adapter1": r"fusion.\1.mlp",
    r"adapter_list\.(\d)\.0": r"fusion.\1.bypass",
    r"cross_modal_text_layers\.(\d)\.attention\.output\.adapter": r"text_fusion.\1.attn",
    r"cross_modal_text_layers\.(\d)\.crossattention\.output\.adapter": r"text_fusion.\1.cross",
    r"cross_modal_text_layers\.(\d)\.adapter": r"text_fusion.\1.mlp",
    r"cross_modal_image_layers\.(\d)\.attention\.output\.adapter": r"vision_fusion.\1.attn",
    r"cross_modal_image_layers\.(\d)\.crossattention\.output\.adapter": r"vision_fusion.\1.cross",
    r"cross_modal_image_layers\.(\d)\.adapter": r"vision_fusion.\1.mlp",
    r"adapter_list_l\.(\d)\.0": r"text_fusion.\1.bypass",
    r"adapter_list_v\.(\d)\.0": r"vision_fusion.\1.bypass",
    r"vqa_classifier\.(\d)": r"classifier.\1",
    r"(pooler|cross_modal_(?:text|image)_pooler)\.dense": r"backbone_parts.\1.dense",
}


def ours(name: str) -> str:
    """The name in DAS of the reference's trained parameter `name`."""
    for part, own in PARTS.items():
        name = name.replace(f"{part}.", f"{own}.")
    for place, own in PLACES.items():
        if re.match(place, name):
            return re.sub(f"^{place}", own, name)
    return f"backbone_parts.embeddings.{name}"


def adapter(tensors: Mapping[str, Tensor], residual: bool) -> Adapter:
    hidden, width = tensors["down_proj.weight"].shape
    made = Adapter(width, hidden, residual)
    made.load_state_dict({renamed(name): value for name, value in tensors.items()})
    return made


def renamed(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{PARTS[layer]}.{kind}"


def vilt_block(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official block's parameters by transformers' names."""
    names = {
        "layernorm_before": "norm1", "layernorm_after": "norm2", "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
    }  # fmt: skip
    own = {f"{name}.{kind}": tensors[f"{theirs}.{kind}"] for name, theirs in names.items() for kind in KINDS}
    for kind in KINDS:
        parts = zip(("query", "key", "value"), tensors[f"attn.qkv.{kind}"].chunk(3), strict=True)
        own |= {f"attention.attention.{name}.{kind}": x for name, x in parts}
    return own


def vilt(settings: Mapping[str, Any], layers: int, vocabulary: int, longest: int) -> FusionEncoder:
    config = ViltConfig(
        hidden_size=settings["width"], num_attention_heads=settings["heads"], num_hidden_layers=layers,
        intermediate_size=settings["mlp"], layer_norm_eps=settings["norm_eps"], image_size=32, patch_size=8,
        vocab_size=vocabulary, max_position_embeddings=longest,
    )  # fmt: skip
    return tiny_fusion._backbone(ViltModel(config), "ViltImageProcessor")


# adapters, alone and beside the sublayers of a block


def test_das_adapter() -> None:
    settings, case = published.case("das_adapter")
    settings.equal("adapter_norm_eps", nn.LayerNorm(1).eps)
    start = settings["start"]
    torch.manual_seed(0)
    fresh = Adapter(768, 192, True)
    assert start["biases"] == float(fresh.down.bias.abs().max()) == float(fresh.up.bias.abs().max())
    assert start["norm"] == [float(fresh.norm.weight.unique()), float(fresh.norm.bias.unique())]
    for linear in (fresh.down, fresh.up):
        assert float(linear.weight.std()) == pytest.approx(start["weights_std"], rel=0.01)

    bypass = adapter(case.under("param.bypass."), residual=True)
    assert bypass.down.out_features == settings["bypass_hidden"]
    x = case["x"].clone().requires_grad_()
    output = bypass(x)
    case.scaled("bypass", output)
    output.backward(case["upstream"])
    case.relative("grad.bypass.x", x.grad)
    for name, parameter in bypass.named_parameters():
        case.relative(f"grad.bypass.{theirs(name)}", parameter.grad)

    backbone = vilt(settings, 1, 30, 10)
    [block] = backbone.tower("fusion").blocks
    block.module.load_state_dict(vilt_block(case.under("param.block.")))
    beside = [adapter(own_of(case.under("param.block."), f"adapter{i}."), residual=False) for i in (0, 1)]
    assert [each.down.out_features for each in beside] == [settings["hidden"]] * 2
    case.scaled("beside", beside[0](case["x"]))
    changes = [(backbone.tower("fusion"), [Parallel(0, site, each) for site, each in zip(("attn", "mlp"), beside)])]
    x = case["x"].clone().requires_grad_()
    mask = (1 - case["mask"].float())[:, None, None] * torch.finfo(torch.float32).min
    output = run(backbone.model, changes, lambda: first(block.module(x, mask)))
    case.scaled("block", output)
    output.backward(case["upstream"])
    case.relative("grad.block.x", x.grad)
    for i, each in enumerate(beside):
        for name, parameter in each.named_parameters():
            case.relative(f"grad.block.adapter{i}.{theirs(name)}", parameter.grad)


def theirs(name: str) -> str:
    layer, _, kind = name.rpartition(".")
    return f"{next(official for official, own in PARTS.items() if own == layer)}.{kind}"


def own_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


# the policy


@pytest.mark.parametrize("name", ["das_policy", "das_policy_meter"])
def test_das_policy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, case = published.case(name)
    search = searching(settings)
    search.gates = case["start"].double()
    compared = [[tuple(subset) for subset in update] for update in case["compared"].tolist()]
    given = iter([dict(zip(subsets, losses)) for subsets, losses in zip(compared, case["losses"].tolist())])
    case.scaled("rewards", case["losses"].neg().exp(), within=1e-12)
    draws: Iterator[tuple[int, ...]] = iter(())
    updated, before, after = [], [], []

    def update(step: int) -> None:
        nonlocal draws
        losses = next(given)
        draws, search.held_back = iter(losses), iter([SimpleNamespace(again=lambda: None)])
        monkeypatch.setattr(search, "_loss", lambda subset, step: losses[subset])
        updated.append(step)
        before.append(search.gates.sigmoid())
        Search._update(search, step)
        after.append(search.gates)

    monkeypatch.setattr(search, "_draw", lambda: next(draws, tuple(range(settings["skip_num"]))))
    monkeypatch.setattr(search, "_update", update)
    chosen = []
    for epoch in range(settings["das_epoch"]):
        for batch in range(settings["batches"]):
            search._before(epoch, epoch * settings["batches"] + batch)
        order = search.gates.sort(descending=True, stable=True).indices.tolist()
        chosen.append(search._enough(order))
    case.equal("update_step", updated)
    assert float((torch.stack(before) - case["probabilities"].double()).abs().max()) < GATES
    assert float((torch.stack(after) - case["gates"].double()).abs().max()) < GATES
    case.scaled("gates.f64", torch.stack(after), within=1e-6)
    case.equal("chosen", [list(each) for each in chosen[1:]], of=lambda rows: rows[1:].sort(-1).values)

    monkeypatch.undo()
    search.gates = case["gates.f64"][-1]
    drawn = Counter(block for _ in range(settings["draws"]) for block in search._draw())
    chances = torch.tensor([drawn[block] / settings["draws"] for block in range(settings["blocks"])])
    noise = (case["draws.chances"] * (1 - case["draws.chances"]) / settings["draws"]).sqrt()
    case.scaled("draws.chances", chances.double(), within=4 * float(noise.max()))


def searching(settings: Mapping[str, Any]) -> Search:
    """A search with the settings of a case, among blocks that a training alike for all has."""
    blocks, most = tuple(f"fusion.{i}" for i in range(settings["blocks"])), {"fusion": settings["blocks"] - 1}
    config = SimpleNamespace(
        keep_flops=None, count=settings["skip_num"], draws=settings["das_step"], turn=settings["das_turn"],
        warmup_epochs=settings["warmup_epoch"], gate_lr=settings["lr"],
    )  # fmt: skip

    class Even(SimpleNamespace):
        selected: Sequence[str] = ()

        def select(self, names: Sequence[str]) -> None:
            self.selected = names

        def flops(self, towers: Sequence[str]) -> float:
            return float(settings["blocks"] - len(self.selected))

        def held_back(self) -> None:
            return None

    both = Even(config=config, blocks=blocks, most=most, seed=settings["seed"])
    return Search(both, both)  # type: ignore[arg-type]


# adapted models


def adapted(backbone: FusionEncoder, settings: Mapping[str, Any], **config: Any) -> AnsweringModel:
    method = DAS(reduction=settings["width"] // settings["hidden"], **config)
    return adapt.wrap(backbone, method, [f"answer {i}" for i in range(settings["labels"])])


def fill(model: AnsweringModel, case: Any, names: Sequence[str]) -> dict[str, nn.Parameter]:
    """Give the method what the case trained, and return its parameters by the reference's names."""
    own = dict(model.method.named_parameters())
    there = {name: own[ours(name)] for name in names if ours(name) in own}
    with torch.no_grad():
        for name, parameter in there.items():
            parameter.copy_(case[f"param.{name}"])
    return there


def check_training(model: AnsweringModel, settings: Any, case: Any, trained: Mapping[str, nn.Parameter]) -> None:
    """The groups, the optimiser and the schedule, of those that a method has which allocates what it needs."""
    rate, told = settings["learning_rate"], settings["optimizer"]
    train = TrainSettings(
        iterations=told["steps"], optimizer="adamw", lr=rate, betas=told["betas"], eps=told["eps"], weight_decay=0.01,
        schedule="linear_iteration", warmup=told["warmup_share"],
    )  # fmt: skip
    rates = [learning_rate(train, 0, 1, step, told["steps"]) / rate for step in range(told["steps"] + 1)]
    case.scaled("schedule", torch.tensor(rates, dtype=case["schedule"].dtype), within=1e-7)
    names = {id(parameter): name for name, parameter in trained.items()}
    rows = {
        names[id(parameter)]: (row["rate"] * rate, row["weight_decay"], *row["betas"], row["eps"])
        for row in make_optimizer(model, train).param_groups
        for parameter in row["params"]
        if id(parameter) in names
    }
    expected = {
        name: (group["lr"], group["weight_decay"], *told["betas"], told["eps"])
        for group in settings["groups"]
        for name in group["names"]
        if name in trained
    }
    assert rows.keys() == expected.keys() == trained.keys()
    for name, row in rows.items():
        assert row == pytest.approx(expected[name]), name


def test_das_vilt() -> None:
    settings, case = published.case("das_vilt")
    layers, skipped = settings["layers"], settings["skip_module"]
    backbone = vilt(settings, layers, settings["vocab"], settings["longest"])
    state = {
        f"embeddings.text_embeddings.{name}": value for name, value in case.under("param.text_embeddings.").items()
    }
    names = {
        "embeddings.patch_embeddings.projection": "transformer.patch_embed.proj",
        "layernorm": "transformer.norm",
        "pooler.dense": "pooler.dense",
    }
    state |= {f"{own}.{kind}": case[f"param.{theirs}.{kind}"] for own, theirs in names.items() for kind in KINDS}
    state["embeddings.cls_token"] = case["param.transformer.cls_token"]
    state["embeddings.position_embeddings"] = case["param.transformer.pos_embed"]
    state["embeddings.token_type_embeddings.weight"] = case["param.token_type_embeddings.weight"]
    for i in range(layers):
        block = vilt_block(case.under(f"param.transformer.blocks.{i}."))
        state |= {f"encoder.layer.{i}.{name}": value for name, value in block.items()}
    missing = backbone.model.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert all("position_ids" in name for name in missing.missing_keys)
    backbone.model.embeddings.text_embeddings.LayerNorm.eps = settings["text_norm_eps"]
    tokens = {"input_ids": case["ids"], "attention_mask": case["mask"]}
    backbone.tokenize = lambda questions: tokens  # type: ignore[method-assign]

    blocks = [f"fusion.{i}" for i in skipped]
    model = adapted(
        backbone,
        settings,
        towers=("fusion",),
        skipped=blocks,
        trained_parts=("pooler", "token_type"),
        head_rate=settings["lr_mult"],
    )
    assert model.method.fusion[str(skipped[0])]["bypass"].down.out_features == settings["bypass_hidden"]
    trained = fill(model, case, settings["trained"])
    assert set(settings["trained"]) - trained.keys() == set(settings["grads_absent"])
    assert len(trained) == len(list(model.method.parameters()))
    with torch.no_grad():  # what it trains is its own: the backbone's may differ
        backbone.model.pooler.dense.weight.zero_()
    seen: dict[Any, Tensor] = {}
    vilt_model = backbone.model
    parts = {**dict(enumerate(vilt_model.encoder.layer)), "features": vilt_model.pooler, "class": vilt_model.layernorm}
    for name, part in parts.items():
        part.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: first(output)}))
    logits = model(case["images"], [""] * len(case["ids"]))
    for i in range(layers):
        case.scaled(f"text.{i}", seen[i][:, : case["ids"].shape[1]])
    case.scaled("raw_class", seen["class"][:, 0])
    case.scaled("features", seen["features"])
    case.scaled("logits", logits)
    loss = F.binary_cross_entropy_with_logits(logits, case["targets"]) * settings["labels"]
    case.scaled("loss", loss)
    loss.backward()
    for name, parameter in trained.items():
        case.relative(f"grad.{name}", parameter.grad)
    check_training(model, settings, case, trained)


def test_das_meter() -> None:
    settings, case = published.case("das_meter")
    layers, width = settings["layers"], settings["width"]
    sizes = {
        "hidden_size": width, "num_attention_heads": settings["heads"], "num_hidden_layers": layers,
        "intermediate_size": settings["mlp"], "layer_norm_eps": settings["norm_eps"],
    }  # fmt: skip
    config = BridgeTowerConfig(
        **sizes,
        text_config=sizes | {"vocab_size": 20, "max_position_embeddings": 14},
        vision_config={"hidden_size": 64, "num_hidden_layers": layers, "image_size": 32, "patch_size": 8},
    )
    backbone = tiny_fusion._backbone(BridgeTowerModel(config), "BridgeTowerImageProcessor")
    bridge = backbone.model
    official = case.under("param.")
    frozen = {name: official[name] for name in bridge.state_dict() if re.match("cross_modal_.*_(layers|pooler)", name)}
    bridge.load_state_dict(frozen, strict=False)
    mask = (1 - case["mask"].float())[:, None, None] * -10000
    states: dict[str, Tensor] = {}

    def forward(images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """METER's two streams, which no bridges join, from their input on."""
        text, image = case["text"], case["image"]
        streams = zip(bridge.cross_modal_text_layers, bridge.cross_modal_image_layers, strict=True)
        for i, (of_text, of_image) in enumerate(streams):
            text, image = (
                of_text(text, image, attention_mask=mask)[0],
                of_image(image, text, encoder_attention_mask=mask)[0],
            )
            states.update({f"text.{i}": text, f"image.{i}": image})
        return torch.cat([bridge.cross_modal_text_pooler(text), bridge.cross_modal_image_pooler(image)], dim=-1)

    backbone.forward = forward
    towers = {"text": "text_fusion", "image": "vision_fusion"}
    skipped = [f"{tower}.{i}" for stream, tower in towers.items() for i in settings["skipped"][stream]]
    model = adapted(
        backbone,
        settings,
        towers=tuple(towers.values()),
        skipped=skipped,
        trained_parts=("text_pooler", "image_pooler"),
        head_rate=settings["lr_mult_head"],
        kept_rate=settings["lr_mult_cross_modal"],
    )
    trained = fill(model, case, [name for name in settings["trained"] if "token" not in name])
    assert len(trained) == len(list(model.method.parameters()))
    assert model.method.text_fusion["1"]["bypass"].down.out_features == settings["bypass_hidden"]
    logits = model(torch.zeros(len(case["text"]), 3, 32, 32), ["red"] * len(case["text"]))
    for i in range(layers):
        case.scaled(f"text.{i}", states[f"text.{i}"])
        case.scaled(f"image.{i}", states[f"image.{i}"])
    case.scaled("logits", logits)
    loss = F.binary_cross_entropy_with_logits(logits, case["targets"]) * settings["labels"]
    case.scaled("loss", loss)
    loss.backward()
    for name, parameter in trained.items():
        case.relative(f"grad.{name}", parameter.grad)
    check_training(model, settings, case, trained)
