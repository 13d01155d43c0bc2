"""Measure the finished model: greedy answers about descriptions that training did not have. `python evaluate.py`"""

import json
import random
from pathlib import Path

import text
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from world import asked, others

FOLDER = Path(__file__).resolve().parents[1]
COUNT, BATCH = 2000, 100


@torch.inference_mode()
def answered(folder: Path, examples: list[text.Example]) -> list[str]:
    """What the model writes after each prompt, up to the end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    written: list[str] = []
    for start in range(0, len(examples), BATCH):
        prompts = [example.prompt for example in examples[start : start + BATCH]]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        written += tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    return written


def save(folder: Path) -> None:
    """Write `results.json`: the share of exact answers, by what was asked about and by question."""
    results = {}
    for title, things in {"asked about": asked(), "all": asked() + others()}.items():
        examples = text.held_out(random.Random(f"test/{title}"), things, COUNT)
        right = [found == example.answer for found, example in zip(answered(folder, examples), examples)]
        row = {"all": round(100 * sum(right) / len(right), 2)}
        for question in text.OTHER_WORDS:
            of_it = [r for r, example in zip(right, examples) if f"question: {question} " in example.prompt]
            row[question] = round(100 * sum(of_it) / len(of_it), 2)
        results[title] = row
        print(title, row, flush=True)
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    save(FOLDER)
