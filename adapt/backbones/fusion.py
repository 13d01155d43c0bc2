"""Backbones that encode an image together with a question (fusion encoders): transformers' ViLT and BridgeTower."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import BridgeTowerModel, ViltForQuestionAnswering, ViltModel

from adapt.backbones.base import Backbone
from adapt.backbones.hf import export_folder, preprocess_of
from adapt.backbones.tower import Block, Form, Projection, Site, Tower
from adapt.common.errors import AdaptError

_LONGEST = 40  # the most tokens of a question, as published, unless the model takes fewer


@dataclass(kw_only=True, eq=False, repr=False)
class FusionEncoder(Backbone):
    """A frozen encoder of image-question pairs; `encode(images, questions)` returns one feature per pair, `(b, d)`.

    Images are resized to a square, whereas the models' published code keeps the aspect ratio of images.
    """

    kind = "fusion encoder"

    forward: Callable[[Tensor, dict[str, Tensor]], Tensor]  # from images and tokens
    features: int  # values of a feature
    longest: int  # the most tokens of a question
    classifier: nn.Sequential | None = None  # the model's own head, if it has one
    answers: tuple[str, ...] = ()  # its classes

    def tokenize(self, questions: Sequence[str]) -> dict[str, Tensor]:
        """Return `input_ids` and `attention_mask` `(b, l)` of questions. Raises AdaptError for overlong questions."""
        tokens = self.tokenizer(list(questions), padding=True, return_tensors="pt")
        if tokens["input_ids"].shape[1] > self.longest:
            longest = questions[int(tokens["attention_mask"].sum(-1).argmax())]
            raise AdaptError(f"the question {longest!r} has more than {self.longest} tokens: shorten the question")
        return {key: tokens[key].to(self.device) for key in ("input_ids", "attention_mask")}

    def encode(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """Return features `(b, d)` of images `(b, 3, h, w)` paired with questions, using the library's own forward."""
        return self.forward(images.to(self.dtype), self.tokenize(questions))

    def knows(self, answers: Sequence[str]) -> bool:
        """Return whether the model's own classifier has a class for every answer in `answers`."""
        return set(answers) <= set(self.answers)

    def new_classifier(self, answers: Sequence[str]) -> nn.Sequential:
        """Return a trainable classifier `(b, d) -> (b, answers)` with the layers and the start of ViLT's and METER's.

        The weights are copied from the model's own classifier if `knows(answers)`; otherwise they are drawn from
        N(0, 0.02), and biases are 0.
        """
        if self.classifier is not None and self.knows(answers):
            head = copy.deepcopy(self.classifier).float()
            rows = [self.answers.index(answer) for answer in answers]
            last = head[-1]
            assert isinstance(last, nn.Linear)
            last.weight, last.bias = nn.Parameter(last.weight[rows]), nn.Parameter(last.bias[rows])
            last.out_features = len(rows)
            return head.requires_grad_(True)
        width = 2 * next(iter(self.towers.values())).width
        first, last = nn.Linear(self.features, width), nn.Linear(width, len(answers))
        for linear in (first, last):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        return nn.Sequential(first, nn.LayerNorm(width), nn.GELU(), last).to(self.device)


def build_vilt(model: ViltForQuestionAnswering | ViltModel, processor: Any, name: str | None = None) -> FusionEncoder:
    """Wrap a `ViltForQuestionAnswering` or `ViltModel` and its processor as a backbone."""
    answering = isinstance(model, ViltForQuestionAnswering)
    vilt = model.vilt if isinstance(model, ViltForQuestionAnswering) else model
    config = cast("transformers.PreTrainedConfig", model.config)
    labels = cast("dict[int, str]", config.id2label) if answering else {}
    blocks = tuple(map(_vilt_block, vilt.encoder.layer))
    return FusionEncoder(
        model=model,
        towers={"fusion": Tower("fusion", config.hidden_size, config.num_attention_heads, _MIXED, blocks)},
        tokenizer=processor.tokenizer,
        preprocess=preprocess_of(processor.image_processor, config.image_size, "squash"),
        forward=partial(_through_vilt, vilt),
        features=config.hidden_size,
        longest=min(_LONGEST, config.max_position_embeddings),
        classifier=model.classifier if isinstance(model, ViltForQuestionAnswering) else None,
        answers=tuple(labels[i] for i in range(len(labels))),
        name=name,
        write=partial(export_folder, [processor.image_processor, processor.tokenizer]),
    )


def _through_vilt(vilt: ViltModel, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    """Return ViLT's features of image-question pairs, with image patches shuffled by a fixed random seed.

    ViLT shuffles patches, whose order affects only the last bits of the features. The fixed seed does not affect other
    random numbers, such as the dropout of a method inside the blocks.
    """
    seen = torch.ones(len(images), *images.shape[-2:], device=images.device)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        patches, mask, _ = vilt.embeddings.visual_embed(images, seen, vilt.config.max_image_length)
    features: Tensor = vilt(image_embeds=patches, pixel_mask=mask, **tokens).pooler_output
    return features


def build_bridgetower(
    model: BridgeTowerModel | transformers.BridgeTowerForContrastiveLearning,
    processor: Any,
    name: str | None = None,
) -> FusionEncoder:
    """Wrap a BridgeTower model and its processor as a backbone; the text and image cross-modal layers are towers."""
    bridge = model if isinstance(model, BridgeTowerModel) else model.bridgetower
    config = cast("transformers.PreTrainedConfig", bridge.config)
    streams = {"text": bridge.cross_modal_text_layers, "vision": bridge.cross_modal_image_layers}
    shape = (config.hidden_size, config.num_attention_heads, _MIXED)
    towers = [Tower(f"{name}_fusion", *shape, tuple(map(_cross_block, layers))) for name, layers in streams.items()]
    return FusionEncoder(
        model=model,
        towers={tower.name: tower for tower in towers},
        tokenizer=processor.tokenizer,
        preprocess=preprocess_of(processor.image_processor, config.vision_config.image_size, "squash"),
        forward=partial(_through_bridgetower, bridge),
        features=2 * config.hidden_size,
        longest=min(_LONGEST, config.text_config.max_position_embeddings - 2),
        name=name,
        write=partial(export_folder, [processor.image_processor, processor.tokenizer]),
    )


def _through_bridgetower(bridge: BridgeTowerModel, images: Tensor, tokens: dict[str, Tensor]) -> Tensor:
    features: Tensor = bridge(pixel_values=images, **tokens).pooler_output
    return features


_MIXED = Form(causal=False, pooling="none", plain_mask=False)


def _vilt_block(layer: nn.Module) -> Block:
    part = layer.get_submodule
    attention, norm1, norm2 = part("attention"), part("layernorm_before"), part("layernorm_after")
    sites = {"attn": Site(norm1, attention), "mlp": Site(norm2, part("output"))}
    act = part("intermediate.intermediate_act_fn")
    return Block(
        layer, attention, norm1, norm2, act, _projections(layer, "attention.attention"), sites=sites, returns=1
    )


def _cross_block(layer: nn.Module) -> Block:
    """Describe a cross-modal BridgeTower layer as a post-norm `Block`.

    The output of an attention's last linear map joins the sum that its norm reads; the MLP outputs the stream itself.
    """
    part = layer.get_submodule
    attention, cross = part("attention"), part("crossattention")
    norm1, norm2, act = map(
        part, ("attention.output.LayerNorm", "output.LayerNorm", "intermediate.intermediate_act_fn")
    )
    sites = {
        "attn": Site(attention, part("attention.output.dense")),
        "cross": Site(cross, part("crossattention.output.dense")),
        "mlp": Site(part("intermediate"), part("output")),
    }
    return Block(layer, attention, norm1, norm2, act, _projections(layer, "attention.self"), sites=sites, returns=3)


def _projections(layer: nn.Module, attention: str) -> dict[str, Projection]:
    paths = {"q": f"{attention}.query", "k": f"{attention}.key", "v": f"{attention}.value"}
    paths |= {"out": "attention.output.dense", "fc1": "intermediate.dense", "fc2": "output.dense"}
    return {letter: Projection(layer.get_submodule(path)) for letter, path in paths.items()}
