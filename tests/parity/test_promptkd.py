"""PromptKD's student on the stored answers of its teacher, against the published implementation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import published
import tiny_clip
import torch
from published import LIBRARIES
from selection import by_turns
from torch import Tensor
from trainings import stepped

import adapt
from adapt import methods

BLOCK = "image_encoder.transformer.resblocks.1.VPT_shallow"
NAMES = {"image_encoder.VPT": "vision.0", BLOCK: "vision.1", "VPT_image_trans.": ""}


def ours(key: str) -> str:
    """The name that we have for a tensor of the student."""
    theirs = next(name for name in NAMES if key.startswith(name))
    return NAMES[theirs] + key.removeprefix(theirs)


def drawn(key: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of the student at the start, as it was drawn by its name."""
    noise = tiny_clip.draw(f"f2/promptkd/{key}", shape)
    if key.endswith("1.weight"):
        return 1 + 0.1 * noise
    return noise * (shape[-1] ** -0.5 if key.endswith("weight") else 0.1)


@by_turns("library", LIBRARIES)
def test_promptkd(library: str) -> None:
    """Batch norm takes the statistics of a batch in the steps, and running ones in the end."""
    settings, expected = published.case("promptkd")
    config = {"n_ctx_vision": settings["n_ctx"], "depth_vision": settings["depth_vision"]}
    texts = expected["teacher_text_features"]
    method = methods.PromptKD(**config, weight=settings["kd_weight"], temperature=settings["temperature"],
                              size=texts.shape[-1])  # fmt: skip
    model = adapt.wrap(published.backbone(library), method, settings["names"])
    keys = [key.removeprefix("after.") for key in expected if key.startswith("after.")]
    trained = {key: dict(method.named_parameters())[ours(key)] for key in keys if "running" not in key}
    for key, parameter in trained.items():
        parameter.data = drawn(key, tuple(parameter.shape))
    method.teacher_text.copy_(texts)
    batches = [tiny_clip.draw(f"f2/promptkd/images.{number}", (6, 3, 32, 32)) for number in range(settings["steps"])]
    answers = iter([expected[f"teacher_logits.{number}"] for number in range(settings["steps"])])
    method._teacher = SimpleNamespace(logits=lambda pixels: next(answers))  # type: ignore[assignment]
    model.train()
    first = model.step(batches[0])
    running = {name: value.clone() for name, value in method.named_buffers() if "running" in name}
    expected.scaled("student_features", first.features)
    expected.scaled("logits", first.logits)
    for name, value in running.items():  # which the steps begin with
        dict(method.named_buffers())[name].copy_(value.fill_(1.0 if name.endswith("var") else 0.0))
    gradients: dict[str, Tensor] = {}

    def after() -> None:
        gradients.update({key: value.grad.clone() for key, value in trained.items() if key not in gradients})

    rates = {key: settings[key] for key in ("lr", "momentum", "weight_decay")}
    optimizer: Any = torch.optim.SGD(trained.values(), **rates)
    losses = [
        *stepped(
            model,
            [(images, torch.zeros(6, dtype=torch.long)) for images in batches],
            optimizer,
            len(batches),
            after=after,
        )
    ]
    expected.scaled("loss", losses[0])
    expected.scaled("steps.loss", torch.stack(losses))
    state = method.state_dict()
    for key in keys:
        if key == "VPT_image_trans.conv1.0.bias":
            continue  # it stands before a norm, so that its gradient is rounding alone
        if key in trained:
            expected.relative(f"grad.{key}", summed(gradients[key]))
        expected.relative(f"after.{key}", summed(state[ours(key)]))
    model.eval()
    test = model.step(tiny_clip.draw("f2/promptkd/test_images", (5, 3, 32, 32)))
    expected.scaled("after_features", test.features)
    expected.scaled("after_logits", test.logits)


def summed(value: Tensor) -> Tensor:
    """A tensor as it is stored: summed over its last axis if it is large."""
    return value.sum(-1) if value.numel() > 2048 else value
