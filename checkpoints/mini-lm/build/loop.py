"""Training on one thread: Muon for the blocks' matrices, AdamW for the rest, warm-up and a cosine.

There are checkpoints, from which a run that was killed goes on.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "mini-clip" / "build"))  # has the optimiser

from muon import Muon

WARM_UP, REPORT, SAVE = 50, 50, 200  # steps


def arguments(description: str | None, steps: int) -> argparse.Namespace:
    """Return the command line's `work`, the folder for the checkpoint, and `steps`, by default those given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("work", type=Path, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=steps)
    return parser.parse_args()


def fit(
    model: nn.Module, losses: Callable[[int], Iterator[Tensor]], file: Path, steps: int, rates: tuple[float, float]
) -> nn.Module:
    """Train for `steps`, with `rates` for Muon and AdamW; `losses(step)` yields the losses from that step on."""
    optimisers = optimisers_of(model, rates)
    tops = [optimiser.param_groups[0]["lr"] for optimiser in optimisers]
    parts = {"model": model} | {f"optimiser{number}": each for number, each in enumerate(optimisers)}
    first = restored(parts, file) if file.exists() else 0
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {first}", flush=True)
    started, seen = time.monotonic(), []
    for step, loss in zip(range(first, steps), losses(first)):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        factor = min(1, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for optimiser, top in zip(optimisers, tops, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = top * factor
            optimiser.step()
            optimiser.zero_grad()
        seen.append(loss.item())
        if (step + 1) % REPORT == 0:
            line = {"step": step + 1, "loss": round(sum(seen) / len(seen), 4)}
            print(json.dumps(line | {"seconds": round(time.monotonic() - started)}), flush=True)
            seen = []
        if (step + 1) % SAVE == 0 or step + 1 == steps:
            save(parts, step + 1, file)
    return model.eval()


def optimisers_of(model: nn.Module, rates: tuple[float, float]) -> list[torch.optim.Optimizer]:
    """One Muon for each width of matrices, since it takes blocks of one size; then AdamW."""
    by_side: dict[int, list[Tensor]] = {}
    rest = []
    for name, param in model.named_parameters():
        if param.ndim == 2 and ".layer" in name:
            by_side.setdefault(min(param.shape), []).append(param)
        else:
            rest.append(param)
    groups = [{"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.02}]
    groups += [{"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}]
    muons = [Muon(params, rates[0], weight_decay=0.02) for params in by_side.values()]
    return [*muons, torch.optim.AdamW(groups, rates[1], betas=(0.9, 0.98))]


def restored(parts: dict, file: Path) -> int:
    """Put back what a checkpoint holds; the steps that were done."""
    state = torch.load(file)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])


def save(parts: dict, step: int, file: Path) -> None:
    """Write the checkpoint in one move, so that a kill leaves the old or the new one."""
    partial = file.with_suffix(".partial")
    torch.save({name: part.state_dict() for name, part in parts.items()} | {"step": step}, partial)
    partial.rename(file)
