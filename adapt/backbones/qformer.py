"""The eyes of BLIP-2: a vision model, and a Q-Former whose learned queries read it, without the language half."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import Blip2Config, Blip2PreTrainedModel, Blip2QFormerModel, Blip2VisionModel

from adapt.backbones.native import connector_tower
from adapt.backbones.tower import Tower

_ELSEWHERE = "language_model|language_projection|embeddings|vision_projection|text_projection|itm_head"
# the maps of a layer; those of cross-attention are left out, because only every other layer has them
_PROJECTIONS = {
    "q": "attention.attention.query", "k": "attention.attention.key", "v": "attention.attention.value",
    "out": "attention.output.dense", "fc1": "intermediate_query.dense", "fc2": "output_query.dense",
}  # fmt: skip


class Blip2Eyes(Blip2PreTrainedModel):
    """The parts of a BLIP-2 checkpoint that see, under the names that they have in transformers' BLIP-2."""

    main_input_name = "pixel_values"
    _keep_in_fp32_modules = ["query_tokens", "qformer"]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [rf"^({_ELSEWHERE})\."]  # noqa: RUF012

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, self.qformer.config.hidden_size))
        self.post_init()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return the query outputs `(b, n, d)` of images `(b, 3, h, w)`, which BLIP-2 maps to its language model."""
        seen = self.vision_model(pixel_values=pixel_values).last_hidden_state
        queries = self.query_tokens.expand(len(seen), -1, -1)
        outputs: Tensor = self.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return outputs


def query_tower(qformer: Blip2QFormerModel) -> Tower:
    """Return the layers of a Q-Former as a vision tower whose linear maps can be edited, and nothing else."""
    linears = {
        layer: {name: layer.get_submodule(path) for name, path in _PROJECTIONS.items()}
        for layer in qformer.encoder.layer
    }
    return replace(connector_tower(qformer.config.hidden_size, linears), name="vision")
