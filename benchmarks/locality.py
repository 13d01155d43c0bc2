"""Locality alignment: what patches tell before and after, beside the error of a control whose tower is frozen."""

from __future__ import annotations

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean, pstdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import adapt
from adapt import AdaptedModel
from adapt.backbones.base import DualEncoder
from adapt.backbones.sources import bundled
from adapt.data import load
from adapt.data.emoji import questions
from adapt.data.emoji.scenes import SIDE, Scene, scenes
from adapt.evaluation.evaluate import evaluate
from adapt.formats.merge import merge
from adapt.methods import AnoVL, ZeroShot
from adapt.recipe import read_recipe
from adapt.training.fit import fit_plan
from adapt.training.run_recipe import build, plan_of
from benchmarks import anew, sides
from benchmarks.drawings import drawings, right
from benchmarks.measure import Row

IMAGES = "emoji-captions"  # scenes, whose captions are not read
EPOCHS, SEEDS = 5, (1, 2, 3)
PROBED = {"train": 500, "test": 150}  # scenes of each kind, for the thing on a patch
OF_EACH = 8  # patches of a scene
COVERED = 0.75  # of a patch, by a drawing that it counts as showing
PROJECTOR_EPOCHS = 4
PLACES = (questions.LEFT, questions.RIGHT)


def rows(progress: Callable[[str], None]) -> Iterator[Row]:
    """Report the error of rebuilding with the tower trained and frozen, then each probe before and after.

    The same but for maps and a projector follows for a tower that begins anew and learns by class tokens alone.
    """
    for title in ("", "begun anew: "):
        figures: dict[str, dict[str, list[float]]] = {"before": defaultdict(list), "after": defaultdict(list)}
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                progress(f"{title}aligning, seed {seed}")
                spec = _anew(seed, Path(folder) / "anew") if title else "mini-clip"
                errors = _aligned(spec, seed, Path(folder) / "aligned")
                for case, name in (("before", spec), ("after", f"{folder}/aligned")):
                    figures[case]["rebuilding error"].append(errors[case])
                    encoder = adapt.load_backbone(name)
                    assert isinstance(encoder, DualEncoder)
                    progress(f"{title}probes {case}, seed {seed}")
                    found = _probes(encoder, seed)
                    if not title:
                        progress(f"projector {case}, seed {seed}")
                        found |= _maps(encoder) | _projector(f"{name}+mini-lm", seed)
                    for probe, value in found.items():
                        figures[case][probe].append(value)
        for name in figures["after"]:
            cells = {case: f"{case} {_shown(figures[case][name])}" for case in figures}
            yield {
                "case": f"{title}{name}",
                "values": {case: figures[case][name] for case in figures},
                "text": " | ".join(cells.values()),
            }


def _shown(values: Sequence[float]) -> str:
    return f"{mean(values):.3f} ± {pstdev(values):.3f}"


def _anew(seed: int, folder: Path) -> str:
    """Write the bundled CLIP with a vision tower that began anew to `folder`, and return the folder's name."""
    shutil.copytree(bundled(), folder, ignore=shutil.ignore_patterns("build", "*.png"))
    weights, vision = load_file(bundled() / "open_clip_model.safetensors"), anew.tower(seed)
    anew.learned(vision, seed)
    save_file(weights | {f"visual.{name}": each.contiguous() for name, each in vision.state_dict().items()},
              folder / "open_clip_model.safetensors")  # fmt: skip
    return str(folder)


def _aligned(spec: str, seed: int, folder: Path) -> dict[str, float]:
    """Write the aligned CLIP `spec` to `folder`, and return the errors of both decoders on held-out scenes."""
    recipe = read_recipe("locality", [("seed", seed), ("train.epochs", EPOCHS)], IMAGES)
    split = drawings(IMAGES)
    model = build(recipe, (), adapt.load_backbone(spec))
    result = fit_plan(plan_of(recipe, model, replace(split, test=())), None)
    merge(model, folder)
    errors = result.metrics["rebuilding"]
    return {"before": errors["control"], "after": errors["locality"]}


@torch.no_grad()
def _probes(encoder: DualEncoder, seed: int) -> dict[str, float]:
    """Return what ridge regression reads off patches and class tokens, and the zero-shot accuracy."""
    model = adapt.wrap(encoder, ZeroShot(), ()).eval()
    last = len(encoder.tower("vision").blocks) - 1
    figures = {}
    for block in (last - 1, last):
        known, queries = (_things(model, block, part, count, seed) for part, count in PROBED.items())
        chosen = sides.scores(known, queries[0]).argmax(-1) == queries[1]
        figures[f"thing on a patch after block {block + 1}"] = float(chosen.double().mean())
    pairs = [sides.scenes_of_two(part, count, seed) for part, count in (("train", sides.TRAIN), ("test", sides.TEST))]
    seen, unseen = (sides.of_images(model, each) for each in pairs)
    for name in seen:
        _, order = sides.sides_right(seen[name], unseen[name])
        figures[f"order of two, {name}"] = float(order.mean())
    emoji = load("emoji")
    figures["zero-shot accuracy"] = float(right(adapt.wrap(encoder, ZeroShot(), emoji.class_names), emoji.test).mean())
    return figures


def _things(model: AdaptedModel, block: int, part: str, count: int, seed: int) -> sides.Pairs:
    """Return patches after a block `(n, d)`, and the number of the thing that each shows."""
    stream = Random(f"{part}/{seed}")
    drawn = list(scenes(questions.drawings("emoji-questions", part), count, stream))
    transform, name = model.transform(), f"vision.{block}"
    patches, things = [], []
    for start in range(0, len(drawn), 50):
        group = drawn[start : start + 50]
        tokens = model.frozen_blocks(torch.stack([transform(scene.draw()) for scene in group]), [name])[name][1]
        for scene, own in zip(group, sides.patches_of(tokens), strict=True):
            shown = list(_shown_on(scene, round(len(own) ** 0.5)).items())
            for place, thing in stream.sample(shown, min(OF_EACH, len(shown))):
                patches.append(own[place])
                things.append((thing,))
    return torch.stack(patches), sides.numbers(things)


def _shown_on(scene: Scene, side: int) -> dict[int, str]:
    """Return the thing on each patch of a grid that a drawing covers, by the patch's number."""
    shown, size = dict[int, str](), SIDE / side
    for piece in scene.pieces:
        for place in range(side * side):
            top, left = (size * each for each in divmod(place, side))
            across = min(left + size, piece.left + piece.side) - max(left, piece.left)
            down = min(top + size, piece.top + piece.side) - max(top, piece.top)
            if across > 0 and down > 0 and across * down >= COVERED * size**2:
                shown[place] = piece.drawing.concept.name
    return shown


def _maps(encoder: DualEncoder) -> dict[str, float]:
    model = adapt.wrap(encoder, AnoVL(object="drawing", smoothing=1), ("normal", "abnormal"))
    scores: dict[str, Any] = evaluate(model, load("emoji-defects").test).figures()
    return {
        f"anovl, AUROC of {name}": float(scores[f"{key}_auroc"])
        for name, key in (("pixels", "pixel"), ("images", "image"))
    }


def _projector(spec: str, seed: int) -> dict[str, float]:
    """Return how often a projector's answers are right, for questions about places and for all."""
    split = drawings("emoji-questions")
    recipe = read_recipe("projector", [("seed", seed), ("train.epochs", PROJECTOR_EPOCHS)], "emoji-questions")
    model = build(recipe, split.class_names, adapt.load_backbone(spec))
    fit_plan(plan_of(recipe, model, replace(split, val=(), test=())), None)
    correct = right(model.eval(), split.test)
    of_places: Tensor = torch.tensor([item.label.columns["question"] in PLACES for item in split.test])
    return {"projector, left and right": float(correct[of_places].mean()), "projector, all": float(correct.mean())}
