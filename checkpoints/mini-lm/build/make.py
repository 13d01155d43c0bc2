"""Make the language model from nothing: `python make.py WORK`. One thread needs about 20 minutes.

Training goes on from its last checkpoint in the work folder; the finished model is written beside this folder.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import evaluate
import loop
import text
import torch
import torch.nn.functional as F
import words
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

TARGET = Path(__file__).resolve().parents[1]
SEED, BATCH, STEPS, RATES = 0, 64, 1000, (0.01, 2e-3)
EASY_STEPS = 300  # the first ones are of a few things only: copying a word is learnt sooner there
# Of words that nothing before them decides, in prompts and elsewhere; words that follow from a description have 1.
# With more, the model learns to copy a word from a description in three times as many steps.
PROMPT_WEIGHT, GUESS_WEIGHT = 0.02, 0.1
POOL = 16  # batches are cut from so many at a time, sorted by length: little is padding
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 576,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": words.CONTEXT,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
}


def new_model(tokenizer) -> LlamaForCausalLM:
    """Untrained."""
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(**SHAPE, **ids, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    return LlamaForCausalLM(config)


def batches(tokenizer, rng: random.Random, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids (b, longest) and the weights of their losses, 0 for padding, from `step` on without end."""
    while True:
        examples = [text.example(rng, easy=step < EASY_STEPS) for _ in range(BATCH * POOL)]
        rows = sorted((encoded(tokenizer, example) for example in examples), key=lambda row: len(row[0]))
        chunks = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        for chunk in rng.sample(chunks, len(chunks)):
            longest = len(chunk[-1][0])
            ids = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids, _ in chunk]
            weights = [weights + [0.0] * (longest - len(weights)) for _, weights in chunk]
            yield torch.tensor(ids), torch.tensor(weights)
        step += len(chunks)


def encoded(tokenizer, example: text.Example) -> tuple[list[int], list[float]]:
    """Ids of the prompt, the answer and the end, and the weight of each."""
    prompt = tokenizer(example.prompt).input_ids
    answer = tokenizer(example.answer, add_special_tokens=False).input_ids + [tokenizer.eos_token_id]
    weight = 1.0 if example.certain else GUESS_WEIGHT
    return prompt + answer, [PROMPT_WEIGHT] * len(prompt) + [weight] * len(answer)


def loss_of(model: LlamaForCausalLM, ids: Tensor, weights: Tensor) -> Tensor:
    """Padding is on the right, where nothing that counts sees it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights[:, 1:].flatten()).sum() / weights[:, 1:].sum()


def train(tokenizer, file: Path, steps: int) -> LlamaForCausalLM:
    """From the seed, or from the checkpoint."""
    torch.manual_seed(SEED)
    model = new_model(tokenizer)

    def losses(first: int) -> Iterator[Tensor]:
        for ids, weights in batches(tokenizer, random.Random(f"{SEED}/{first}"), first):
            yield loss_of(model, ids, weights)

    return loop.fit(model, losses, file, steps, RATES)


def main() -> None:
    """Train, write the folder, and measure what was written."""
    arguments = loop.arguments(__doc__, STEPS)
    torch.set_num_threads(1)
    words.save(TARGET)
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    model = train(tokenizer, arguments.work / "mini-lm.pt", arguments.steps)
    model.half().save_pretrained(TARGET)
    evaluate.save(TARGET)


if __name__ == "__main__":
    main()
