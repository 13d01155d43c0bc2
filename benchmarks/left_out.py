"""A style that training does not show: VL2V-SD beside cross-entropy, both by LoRA in the vision tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

import adapt
from adapt.data import Item
from adapt.methods import ZeroShot
from adapt.methods.lora import PlainLoRAConfig
from adapt.recipe import read_recipe
from adapt.training.run_recipe import build, learn, read_data
from benchmarks.drawings import SEEN, UNSEEN, backbone, drawings, paired, per_cent, right
from benchmarks.text import Row

SEEDS = (1, 2, 3)
CROSS_ENTROPY: dict[str, object] = PlainLoRAConfig.published | {
    "name": "lora",
    "towers": ["vision"],
    "logit_scale": None,
    "template": "a photo of a {}",
}


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Accuracy on a style that the backbone does not know either, and on one of those that it knows, left out."""
    for style in (None, "noto"):
        progress(f"without {style}")
        items = drawings(UNSEEN).test if style is None else drawings(SEEN).leaving_out(style).test
        yield _row(style or UNSEEN, style, items)


def _row(case: str, style: str | None, items: Sequence[Item]) -> Row:
    frozen = right(adapt.wrap(backbone(), ZeroShot("a photo of a {}"), drawings(SEEN).class_names), items)
    plain, drawn = ([_trained(each, style, seed, items) for seed in SEEDS] for each in (CROSS_ENTROPY, None))
    cells = {
        "zero-shot": per_cent([frozen]),
        "cross-entropy": per_cent(plain),
        "vl2v_sd": per_cent(drawn),
        "above cross-entropy": paired(drawn, plain, items),
    }
    return {"case": case} | cells | {"text": ", ".join(f"{name} {cell}" for name, cell in cells.items())}


def _trained(method: dict[str, object] | None, style: str | None, seed: int, items: Sequence[Item]) -> Tensor:
    changes: list[tuple[str, object]] = [("seed", seed), ("data.leave_out", style)]
    recipe = read_recipe("vl2v_sd", changes + ([("method", method)] if method else []), SEEN)
    split = read_data(recipe)
    model = build(recipe, split.class_names, backbone())
    learn(recipe, model, split, None, progress=False)
    return right(model.eval(), items)
