"""The same damage to a LoRA in our file and in peft's folder: which loads say something else without a word.

`PYTHONPATH=tests:tests/contract:. python -m faults.peft_table` prints the table of docs/faults.md.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import one_of_each
import tiny_backbones
import torch
from checks import perturb
from faults import corrupt, outcomes

import adapt
from adapt.formats import peft_layout

SEEDS = 40
NAMES = ("goldfish", "red_panda", "sea cucumber")
ROWS: dict[str, corrupt.Damage] = {
    "a bit of the header turned over": corrupt.flip_in_header,
    "a bit of the data turned over": corrupt.flip_in_data,
    "another character in the header": corrupt.other_byte_in_header,
    "cut short": corrupt.cut,
    "zeros in place of a block": corrupt.wiped,
    "a tensor renamed": corrupt.tensor_renamed,
    "a key twice": corrupt.key_twice,
    "NaN or infinity": corrupt.not_finite,
}


def main() -> None:
    torch.manual_seed(0)
    backbone = tiny_backbones.backbone("hf_clip")
    model = perturb(adapt.wrap(backbone, adapt.methods.LoRA(dropout=0.0), NAMES)).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with TemporaryDirectory() as name, torch.no_grad():
        ours, theirs = Path(name) / "a.safetensors", Path(name) / "peft"
        model.save(ours)
        peft_layout.export(model, theirs)
        expected = model(images)
        features = _by_peft(theirs, backbone.model, images)
        looks = {
            ours: lambda: outcomes.loaded(ours, backbone, expected, one_of_each.logits),
            theirs / "adapter_model.safetensors": lambda: _compared(theirs, backbone.model, images, features),
        }
        print("| damage | files | peft: refused | harmless | **other outputs** | adapt: refused | harmless |", end="")
        print(" **other outputs** |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
        for title, damage in ROWS.items():
            counts = [_counted(path, look, damage) for path, look in reversed(looks.items())]
            cells = [str(found[kind]) for found in counts for kind in ("refused", "equal", "changed")]
            print(f"| {title} | {SEEDS} | {' | '.join(cells)} |", flush=True)


def _counted(path: Path, look: Any, damage: corrupt.Damage) -> Counter[str]:
    whole = path.read_bytes()
    kinds: Counter[str] = Counter()
    for seed in range(SEEDS):
        path.write_bytes(damage(whole, random.Random(f"{damage.__name__} {seed}")))
        kind = outcomes.of(look).kind
        kinds["refused" if kind in ("traceback", "killed") else kind] += 1  # by other libraries' errors
    path.write_bytes(whole)
    return kinds


def _compared(folder: Path, model: Any, images: torch.Tensor, expected: torch.Tensor) -> tuple[str, str]:
    found = _by_peft(folder, model, images)
    same = torch.allclose(found, expected, rtol=1e-5, atol=1e-5)
    return ("equal" if same else "changed"), ""


@torch.no_grad()
def _by_peft(folder: Path, model: Any, images: torch.Tensor) -> torch.Tensor:
    import peft

    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    text = torch.tensor([[49406, 320, 1125, 539, 49407]])
    output = loaded(input_ids=text, pixel_values=images, attention_mask=torch.ones_like(text))
    return torch.cat([output.image_embeds, output.text_embeds])


if __name__ == "__main__":
    main()
