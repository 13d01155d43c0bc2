"""Make the question-answering model from the bundled CLIP: `python make.py WORK`, on one thread in 22 minutes.

The budget is time, so the number of steps depends on the machine. The finished model is written beside this folder and
measured; `python make.py --evaluate` only measures.
"""

import argparse
import json
import math
import time
from pathlib import Path

import asking
import evaluate
import start
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, ViltForQuestionAnswering

TARGET = Path(__file__).resolve().parents[1]
SEED, BATCH, MINUTES = 0, 64, 22.0
RATE, RATE_OF_NEW, WEIGHT_DECAY, SMOOTHING = 5e-4, 1e-3, 0.02, 0.02
WARM_UP = 0.03  # of the time
HALF = 0.6  # of the time, each step has a random half of the patches only
REPORT, SAVE = 25, 100  # steps


def logits_of(model: ViltForQuestionAnswering, words: dict[str, Tensor], images: Tensor, patches: int) -> Tensor:
    """(b, answers), from a random choice of so many patches of each image.

    With all of them this is the library's forward, without its own, slow shuffling of patches.
    """
    parts = model.vilt.embeddings
    tokens = parts.patch_embeddings(images).flatten(2).mT + parts.position_embeddings[:, 1:]
    if patches < tokens.shape[1]:
        chosen = torch.rand(tokens.shape[:2]).argsort(1)[:, :patches, None]
        tokens = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[2]))
    first = (parts.cls_token + parts.position_embeddings[:, :1]).expand(len(images), -1, -1)
    tokens = torch.cat([first, tokens], 1)
    seen = torch.ones(tokens.shape[:2], dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        return model(**words, image_embeds=tokens, pixel_mask=seen).logits.float()


def optimiser_of(model: ViltForQuestionAnswering) -> torch.optim.AdamW:
    """What does not come from the bundled CLIP learns faster; only matrices decay."""
    groups = []
    for new in (False, True):
        for matrices in (False, True):
            params = [p for name, p in model.named_parameters() if is_new(name) is new and (p.ndim > 1) is matrices]
            decay = WEIGHT_DECAY if matrices else 0.0
            groups.append({"params": params, "lr": RATE_OF_NEW if new else RATE, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))


def is_new(name: str) -> bool:
    """Whether a parameter is of the words, the pooler or the classifier."""
    return any(part in name for part in ("text_embeddings", "token_type", "pooler", "classifier"))


def train(tokenizer, file: Path, seconds: float) -> ViltForQuestionAnswering:
    """Cross-entropy over the answers on fresh scenes, until the time is up; the last weights are kept in `file`."""
    torch.manual_seed(SEED)
    stream = asking.batches(BATCH, SEED)
    model = start.new_model(tokenizer, next(stream)[0]).train()
    optimiser = optimiser_of(model)
    tops = [group["lr"] for group in optimiser.param_groups]
    begun, share, step, seen = time.monotonic(), 0.0, 0, []
    while share < 1:
        images, texts, answers = next(stream)
        words = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        logits = logits_of(model, words, images, patches=32 if share < HALF else 64)
        F.cross_entropy(logits, answers, label_smoothing=SMOOTHING).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, top in zip(optimiser.param_groups, tops, strict=True):
            group["lr"] = top * factor(share)
        optimiser.step()
        optimiser.zero_grad()
        step, share = step + 1, (time.monotonic() - begun) / seconds
        seen.append((logits.argmax(1) == answers).float().mean().item())
        if step % REPORT == 0:
            line = {"step": step, "time": round(share, 3), "right": round(sum(seen) / len(seen), 4)}
            print(json.dumps(line), flush=True)
            seen = []
        if step % SAVE == 0 or share >= 1:
            torch.save(model.state_dict(), file)
    return model.eval()


def save(model: ViltForQuestionAnswering, folder: Path) -> None:
    """With the weights in half precision, and a configuration by which they are loaded in full."""
    model.half().save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))


def factor(share: float) -> float:
    """Of the learning rates, when this share of the time is over: warm-up and cosine."""
    return min(1, (share + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(1, share)))


def main() -> None:
    """Train, write the folder, and measure what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, nargs="?", default=Path(), help="folder for the weights so far")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--evaluate", action="store_true", help="measure the model that is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.evaluate:
        asking.save_tokenizer(TARGET)
        asking.save_preprocessor(TARGET)
        tokenizer = AutoTokenizer.from_pretrained(TARGET)
        model = train(tokenizer, arguments.work / "mini-vilt.pt", 60 * arguments.minutes)
        save(model, TARGET)
    evaluate.save(TARGET)


if __name__ == "__main__":
    main()
