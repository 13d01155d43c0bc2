"""A style that training does not show: VL2V-SD beside cross-entropy, both by LoRA in the vision tower."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

import adapt
from adapt.data import Item
from adapt.methods import ZeroShot
from adapt.methods.lora import PlainLoRAConfig
from adapt.recipe import read_recipe
from adapt.training.run_recipe import read_data
from benchmarks.drawings import SEEN, UNSEEN, backbone, drawings, paired, per_cent, right, trained
from benchmarks.measure import Row

SEEDS = (1, 2, 3)
CROSS_ENTROPY: dict[str, object] = PlainLoRAConfig.published | {
    "name": "lora",
    "towers": ["vision"],
    "logit_scale": None,
    "template": "a photo of a {}",
}
# training that could make the tower forget other styles: four times the rank and the epochs, and five times the rate
LONGER: dict[str, object] = {"train.lr": 0.005, "train.epochs": 40}
RANK = 16


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report accuracy on a style that the backbone does not know either, and on a known one that is left out."""
    for style, longer in ((None, False), ("noto", False), ("noto", True)):
        progress(f"without {style}{', longer' * longer}")
        items = drawings(UNSEEN).test if style is None else drawings(SEEN).leaving_out(style).test
        yield _row(f"{style or UNSEEN}{', longer' * longer}", style, items, longer)


def _row(case: str, style: str | None, items: Sequence[Item], longer: bool) -> Row:
    frozen = right(adapt.wrap(backbone(), ZeroShot("a photo of a {}"), drawings(SEEN).class_names), items)
    rank: dict[str, object] = {"rank": RANK, "alpha": float(RANK)} if longer else {}
    settings = LONGER if longer else {}
    own = settings | {f"method.{name}": value for name, value in rank.items()}
    plain = [_right(settings | {"method": CROSS_ENTROPY | rank}, style, seed, items) for seed in SEEDS]
    ours = [_right(own, style, seed, items) for seed in SEEDS]
    cells = {
        "zero-shot": per_cent([frozen]),
        "cross-entropy": per_cent(plain),
        "vl2v_sd": per_cent(ours),
        "above cross-entropy": paired(ours, plain, items),
    }
    return {"case": case, **cells, "text": ", ".join(f"{name} {cell}" for name, cell in cells.items())}


def _right(changes: dict[str, object], style: str | None, seed: int, items: Sequence[Item]) -> Tensor:
    recipe = read_recipe("vl2v_sd", ({"seed": seed, "data.leave_out": style} | changes).items(), SEEN)
    return right(trained(recipe, read_data(recipe)), items)
