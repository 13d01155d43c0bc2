"""Make the vision-language model: `python make.py WORK`. One thread needs about 35 minutes.

The eyes are mini-clip's and stay frozen, the decoder begins as mini-lm, the connector at random. Training goes on from
its last checkpoint in the work folder; the finished model is written beside this folder.
"""

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers as tf
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "mini-lm" / "build"))  # has the loop

import conversations
import loop
import parts

from adapt.backbones.base import Backbone

TARGET = Path(__file__).resolve().parents[1]
SEED, BATCH, STEPS, RATES = 0, 32, 1600, (0.004, 1e-3)
POOL = 8  # batches are cut from so many at a time, sorted by length: little is padding


def losses(model: tf.LlavaForConditionalGeneration, backbone: Backbone, first: int) -> Iterator[Tensor]:
    """The mean cross-entropy of the answers of each batch, from step `first` on without end."""
    stream = random.Random(f"{SEED}/{first}")
    drawn = conversations.without_end(stream)
    while True:
        pool = sorted((next(drawn) for _ in range(BATCH * POOL)), key=lambda each: len(backbone.render(each.chat)))
        for start in stream.sample(range(0, len(pool), BATCH), POOL):
            batch = pool[start : start + BATCH]
            rows = backbone.rows([each.chat for each in batch], [each.pictures() for each in batch])
            learned = rows.answers[:, 1:]
            with torch.autocast("cpu", torch.bfloat16):
                kept = F.pad(learned, (0, 1))
                logits = model(**rows.inputs, logits_to_keep=kept, use_cache=False).logits
            yield F.cross_entropy(logits.float(), rows.inputs["input_ids"][:, 1:][learned])


def main() -> None:
    """Train, and write the folder."""
    arguments = loop.arguments(__doc__, STEPS)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    model, processor = parts.untrained()
    backbone = Backbone.from_transformers(model, processor)
    learned = nn.ModuleDict({"connector": model.model.multi_modal_projector, "decoder": model.model.language_model})
    model.model.vision_tower.requires_grad_(False)
    arguments.work.mkdir(parents=True, exist_ok=True)
    file = arguments.work / "mini-vlm.pt"
    loop.fit(learned, lambda first: losses(model, backbone, first), file, arguments.steps, RATES)
    model.half().save_pretrained(TARGET)
    processor.save_pretrained(TARGET)


if __name__ == "__main__":
    main()
