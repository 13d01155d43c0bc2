"""Native vision-language models under LoRA: TRL's rows, losses, gradients and tensors, and transformers' answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_natives
import torch
import torch.nn.functional as F
from PIL import Image
from published import Stored, case
from torch import Tensor

import adapt
from adapt.chats import IMAGE, Chat, Turn
from adapt.data.item import Item
from adapt.methods import LoRA, ZeroShot
from adapt.models import dpo
from adapt.models.native_vlm import ChatModel, ChatStep
from adapt.recipe.settings import DPOSettings, TrainSettings
from adapt.tasks.conversations import Conversation
from adapt.tasks.preferences import Preference
from adapt.training.fitting import Fitting
from adapt.training.loop import Trainer
from adapt.training.plan import TrainingPlan

FORWARD = [
    "forward_smolvlm", "forward_idefics3_tiles", "forward_qwen2_5_vl", "forward_qwen3_vl", "forward_llava",
    "forward_llava_next", "forward_llava_onevision", "forward_internvl", "forward_paligemma", "forward_gemma3",
]  # fmt: skip
TRAINED = ["sft_smolvlm", "sft_qwen2_5_vl", "sft_llava", "sft_smolvlm_everywhere", "sft_smolvlm_accumulate"]
MEANS = ["sft_qwen2_5_vl_accumulate"]
PREFERENCES = ["dpo_qwen2_5_vl", "dpo_smolvlm_start"]
_OURS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "out", "out_proj": "out", "gate_proj": "gate",
    "up_proj": "up", "down_proj": "down",
}  # fmt: skip
Batch = tuple[list[list[Image.Image]], list[Item]]


def pictures(stored: Stored) -> dict[int, Image.Image]:
    return {int(number): Image.fromarray(pixels.numpy()) for number, pixels in stored.under("image.").items()}


def ours(name: str) -> str:
    """The name of a LoRA matrix of transformers' module names."""
    parts = name.split(".")
    tower = (
        "decoder" if {"text_model", "language_model"} & set(parts) else "vision" if "layers" in parts else "connector"
    )
    block = parts[parts.index("layers") + 1] if "layers" in parts else "0"
    return f"{tower}.{block}.{_OURS.get(parts[-2], parts[-2])}.{parts[-1]}.weight"


def chat_of(row: dict[str, Any]) -> Chat:
    def turn(message: dict[str, Any]) -> Turn:
        parts = (IMAGE if part["type"] == "image" else part["text"] for part in message["content"])
        return Turn(message["role"], tuple(parts))

    return Chat(tuple(map(turn, row["messages"])))


class Batches:
    """The rows of a case, in the batches that the official trainer took."""

    gathered = False

    def __init__(self, settings: Stored, stored: Stored) -> None:
        seen, size, count = pictures(stored), settings["batch"], settings["steps"] * settings["accumulate"]
        rows = settings["rows"][: size * count]
        items = [Item(tuple(map(str, row["images"])), Conversation(chat_of(row)), text="-") for row in rows]
        images = [[seen[number] for number in row["images"]] for row in rows]
        self.all = [(images[k * size : (k + 1) * size], items[k * size : (k + 1) * size]) for k in range(count)]

    def __len__(self) -> int:
        return len(self.all)

    def epoch(self, epoch: int, step: int) -> Iterator[Batch]:
        return iter(self.all)


def adapted(settings: Stored, stored: Stored) -> ChatModel:
    """LoRA from the stored start; TRL's alpha counts by alpha / rank, ours by alpha / sqrt(rank)."""
    lora = settings["lora"]
    targets = settings["targets"]
    towers = ("vision", "connector", "decoder") if "connector" in targets else ("decoder",)
    rank, alpha = lora["r"], lora["alpha"] / lora["r"] ** 0.5
    method: Any = LoRA(
        rank=rank, alpha=alpha, dropout=lora["dropout"], towers=towers, projections="all", input_gradient=True
    )
    backbone = tiny_natives.backbone(settings["family"], settings["seed"], settings["split"])
    model: ChatModel = adapt.wrap(backbone, method)
    start = {ours(name): value for name, value in stored.under("param.").items()}
    assert model.method.state_dict().keys() == start.keys()
    model.method.load_state_dict(start)
    return model.train()


def steps_of(model: ChatModel, batches: Batches) -> list[ChatStep]:
    return [items[0].task.step(model, items, images) for images, items in batches.all]  # type: ignore[misc]


def train_settings(settings: Stored) -> TrainSettings:
    optimizer = settings["optimizer"]
    assert optimizer["betas"] == [0.9, 0.999]
    return TrainSettings(
        iterations=settings["steps"], batch_size=settings["batch"], accumulate=settings["accumulate"],
        optimizer="adamw", lr=optimizer["lr"], eps=optimizer["eps"], weight_decay=optimizer["weight_decay"],
        max_grad_norm=settings["max_grad_norm"], schedule="constant", precision="fp32", drop_last=False,
    )  # fmt: skip


def _hold_rows(stored: Stored, prefix: str, inputs: dict[str, Tensor], labels: Tensor | None = None) -> None:
    for name in stored.under(prefix):
        own = labels if name == "labels" else inputs[name]
        assert own is not None
        if own.is_floating_point():
            stored.scaled(prefix + name, own)
        else:
            stored.equal(prefix + name, own.long(), Tensor.long)


def _hold_first_gradients(stored: Stored, model: ChatModel) -> None:
    gradients = {key: parameter.grad for key, parameter in model.method.named_parameters()}
    for key in stored.under("grad."):
        stored.relative(f"grad.{key}", gradients[ours(key)])
    norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
    stored.scaled("steps.grad_norm", norm.double(), lambda norms: norms[0], within=1e-4)


def _hold_tensors(stored: Stored, model: ChatModel) -> None:
    tensors = model.method.state_dict()
    for key in stored.under("after."):
        stored.relative(f"after.{key}", tensors[ours(key)])


@pytest.mark.parametrize("name", [*TRAINED, *MEANS])
def test_native_rows(name: str) -> None:
    """Tokens, labels, masks, grids and pixels are those of TRL's collator, and nothing is left out."""
    settings, stored = case(name)
    model, batches = adapted(settings, stored), Batches(settings, stored)
    for number, step in enumerate(steps_of(model, batches)):
        prefix = f"batch.{number}."
        assert {*step.rows.inputs, "labels"} == set(stored.under(prefix))
        _hold_rows(stored, prefix, step.rows.inputs, step.rows.labels)
        texts = model.backbone.tokenizer.batch_decode(step.rows.inputs["input_ids"])
        assert texts == settings["texts"][number * len(texts) : (number + 1) * len(texts)]


@pytest.mark.parametrize("path", ["fast", "encoded", "plain"])
@pytest.mark.parametrize("name", [*TRAINED])
def test_native_training(name: str, path: str) -> None:
    """Losses, the first gradients, and the tensors after all steps of our own trainer are TRL's."""
    settings, stored = case(name)
    model, batches = adapted(settings, stored), Batches(settings, stored)
    if path == "plain":
        model.path = "plain"
    if path == "encoded":
        if "vision" in model.method.touches:
            pytest.skip("an adapted vision tower encodes its images in every step")
        batches.all = [(model.encoded(images), items) for images, items in batches.all]  # type: ignore[misc]
    accumulated = steps_of(model, batches)[: settings["accumulate"]]
    for step in accumulated:
        share = step.weight / sum(each.weight for each in accumulated)
        (share * model.losses(step)[0]["cross_entropy"]).backward()
    _hold_first_gradients(stored, model)
    losses: list[float] = []
    Trainer(model, batches, train_settings(settings), None).train(lambda entry: losses.append(entry["loss"]))  # type: ignore[arg-type]
    stored.scaled("steps.loss", torch.tensor(losses, dtype=torch.float64))
    _hold_tensors(stored, model)


@pytest.mark.parametrize("name", MEANS)
def test_native_means_of_batches(name: str) -> None:
    """For Qwen, TRL averages the means of accumulated batches; ours count by their tokens, so only the parts agree."""
    settings, stored = case(name)
    model, batches = adapted(settings, stored), Batches(settings, stored)
    first = steps_of(model, batches)[: settings["accumulate"]]
    losses = [model.losses(step)[0]["cross_entropy"] for step in first]
    torch.stack(losses).mean().backward()
    stored.scaled("steps.loss", torch.stack(losses).mean().detach().double(), lambda values: values[0])
    for key in stored.under("grad."):
        stored.relative(f"grad.{key}", model.method.get_parameter(ours(key)).grad)


class PreferredBatches(Batches):
    """The pairs of answers of a case, whose images are files in `folder`."""

    def __init__(self, settings: Stored, stored: Stored, folder: Path, encoded: ChatModel | None = None) -> None:
        for number, picture in pictures(stored).items():
            picture.save(folder / f"{number}.png")
        self.items = [_preferred(row, folder) for row in settings["rows"][: settings["batch"] * settings["steps"]]]
        images: list[Any] = [[Image.open(path) for path in item.paths] for item in self.items]
        if encoded is not None:
            images = encoded.encoded(images)
        size = settings["batch"]
        starts = range(0, len(self.items), size)
        self.all = [(images[start : start + size], self.items[start : start + size]) for start in starts]


def _preferred(row: dict[str, Any], folder: Path) -> Item:
    chat = chat_of({"messages": [*row["prompt"], *row["chosen"]]})
    rejected = chat_of({"messages": row["rejected"]}).answer
    return Item(tuple(str(folder / f"{number}.png") for number in row["images"]), Preference(chat, rejected), text="-")


@pytest.mark.parametrize("name", PREFERENCES)
def test_native_preference_rows(name: str, tmp_path: Path) -> None:
    """Chosen and rejected answers, as one conversation each, are TRL's tokens and masks."""
    settings, stored = case(name)
    backbone = tiny_natives.backbone(settings["family"], settings["seed"], settings["split"])
    for number, (images, items) in enumerate(PreferredBatches(settings, stored, tmp_path).all):
        asked = [item.label.chat.question for item in items]
        answers = [item.label.words for item in items], [item.label.rejected for item in items]
        chats = [chat.ending(answer) for each in answers for chat, answer in zip(asked, each, strict=True)]
        rows = backbone.rows(chats, [*images, *images])
        prefix = f"batch.{number}."
        assert {*rows.inputs, "completion_mask"} == set(stored.under(prefix))
        _hold_rows(stored, prefix, {**rows.inputs, "completion_mask": rows.answers})


@pytest.mark.parametrize("path", ["fast", "encoded", "plain"])
@pytest.mark.parametrize("name", PREFERENCES)
def test_native_preferences(name: str, path: str, tmp_path: Path) -> None:
    """Losses, rewards, the first gradients and the tensors after all steps are TRL's."""
    settings, stored = case(name)
    model = adapted(settings, stored)
    if path == "plain":
        model.path = "plain"
    model.started = settings["reference"] != "adapter off"
    batches = PreferredBatches(settings, stored, tmp_path, model if path == "encoded" else None)
    chosen = train_settings(settings).model_copy(update={"workers": 0, "dpo": DPOSettings(beta=settings["beta"])})
    dpo.refer(Fitting(TrainingPlan(model, batches.items, chosen=chosen, cache=path == "encoded")), chosen.dpo)
    seen: list[dpo.PreferenceStep] = []

    def loss(step: Any) -> dict[str, Tensor]:
        seen.append(step)
        return {"dpo": step.dpo}

    images, items = batches.all[0]
    model.losses(items[0].task.step(model, items, images))[0]["dpo"].backward()
    _hold_first_gradients(stored, model)
    losses: list[float] = []
    Trainer(model, batches, chosen, None, loss=loss).train(lambda entry: losses.append(entry["loss"]))  # type: ignore[arg-type]
    stored.scaled("steps.loss", torch.tensor(losses, dtype=torch.float64))
    rewards = torch.stack([step.rewards.detach().double().mean(0) for step in seen])
    sums = torch.stack([step.sums.detach().double().mean(0) for step in seen])
    for column, answer in enumerate(("chosen", "rejected")):
        stored.scaled(f"steps.rewards/{answer}", rewards[:, column])
        stored.scaled(f"steps.logps/{answer}", sums[:, column])
    stored.scaled("steps.rewards/margins", rewards[:, 0] - rewards[:, 1])
    ahead = [(step.rewards[:, 0] > step.rewards[:, 1]).double().mean() for step in seen]
    stored.scaled("steps.rewards/accuracies", torch.stack(ahead))
    _hold_tensors(stored, model)


@pytest.mark.parametrize("name", FORWARD)
def test_native_answers(name: str) -> None:
    """Logits, losses, features, scores of given answers, and greedy answers are those of transformers."""
    settings, stored = case(name)
    backbone = tiny_natives.backbone(settings["family"], settings["seed"], settings["split"])
    model: ChatModel = adapt.wrap(backbone, ZeroShot())
    model.eval()
    images = [[picture] for picture in pictures(stored).values()]
    chats = [Chat.about(*each) for each in zip(settings["questions"], settings["answers"], strict=True)]
    step = model.step(images)
    step.chats = chats
    assert [backbone.tokenizer.decode(ids) for ids in step.rows.inputs["input_ids"]] == settings["texts"]
    _hold_rows(stored, "batch.", step.rows.inputs, step.rows.labels)
    places = (step.rows.inputs["input_ids"] == backbone.vlm.config.image_token_id).sum(-1)
    assert places.tolist() == settings["image_tokens"]
    with torch.no_grad():
        stored.scaled("logits", step.answer_logits)
        stored.scaled("loss", step.cross_entropy)
        stored.scaled("features", features(model, step))
        questions = [chat.question for chat in chats]
        scores, tokens = zip(*(model._sums(images, questions, [option] * 2) for option in settings["choices"]))
        stored.scaled("choices.logps", torch.stack(scores, 1))
        stored.equal("choices.tokens", torch.stack(tokens, 1))
        asked = backbone.rows(questions, images, left=True, asks=True)
        _hold_rows(stored, "prompt.", asked.inputs)
        output = backbone.vlm.generate(
            **asked.inputs, max_new_tokens=8, do_sample=False, eos_token_id=model.ends,
            pad_token_id=backbone.tokenizer.pad_token_id, return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    words = output.sequences[:, asked.inputs["input_ids"].shape[1] :]
    filled = F.pad(words, (0, 8 - words.shape[1]), value=backbone.tokenizer.pad_token_id)
    stored.equal("words.tokens", filled)
    texts = backbone.tokenizer.batch_decode(words, skip_special_tokens=True)
    assert [answer.text for answer in model.generate(images, questions, max_new_tokens=8)] == [
        text.strip() for text in texts
    ]


def features(model: ChatModel, step: ChatStep) -> Tensor:
    """What the connector hands to the decoder: the embeddings that are put in place of image tokens."""
    seen: list[Tensor] = []
    decoder = model.backbone.vlm.model
    inner = getattr(decoder, "language_model", None) or decoder.text_model
    handle = inner.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    try:
        model.answer_logits(step.rows)
    finally:
        handle.remove()
    return seen[0][step.rows.inputs["input_ids"] == model.backbone.vlm.config.image_token_id]
