"""All methods on the bundled set: `python methods.py WORK` fills the tables of docs/methods.md.

Runs that exist in the work folder are not repeated, so an interrupted measurement goes on.
"""

import argparse
import json
from pathlib import Path

import card
import curves
from card import TARGET

METHODS = {
    "linear_probe": "linear probe",
    "lda": "LDA",
    "lda method.words=null method.ridge=null": "LDA beside words",
    "nearest_mean": "nearest mean",
    "knn": "nearest neighbours",
    "coop": "CoOp",
    "kgcoop": "KgCoOp",
    "prograd": "ProGrad",
    "tcp": "TCP",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter/trained": "Tip-Adapter-F",
    "gda": "GDA",
    "gda method.views=10": "GDA, ten views",
    "proker": "ProKeR",
    "rehark": "ReHARK",
    "ss_text": "SS-Text+",
    "lp_plus_plus": "LP++",
    "task_res": "TaskRes",
    "clap": "CLAP",
    "clap method.constraint=none": "ZS-LP",
    "clip_adapter": "CLIP-Adapter",
    "prolip": "ProLIP",
    "tda": "TDA",
}
TOWERS = {  # whose steps pass through a tower
    "two_stage": "2SFS",
    "lora": "CLIP-LoRA",
    "clip_svd": "CLIP-SVD",
    "ivlp": "IVLP",
    "maple": "MaPLe",
    "prompt_src": "PromptSRC",
    "hicropl": "HiCroPL",
    "mmrl": "MMRL",
    "mmrlpp": "MMRL++",
    "mma": "MMA",
    "dpl": "DPL",
    "das": "DAS",
    "cocoop": "CoCoOp",
    "ln_tuning": "LayerNorms",
    "bitfit": "BitFit",
    "tpt": "TPT",
}
WEIGHTS = {  # which train the towers' weights themselves
    "finetune": "all weights",
    "finetune method.blocks=1": "the last block of each tower",
    "finetune method.alpha=null": "all weights, WiSE-FT",
    "finetune method.loss=contrastive": "all weights, FLYP",
}
NATIVE = {"lora/chats": "LoRA on mini-vlm"}  # which learns the words of the classes as answers
SAME = {("tpt", shots) for shots in (1, 2, 4, 8)}  # it learns from no training image


def main() -> None:
    """Measure what is missing, then write the figures and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="the work folder of make.py")
    work = parser.parse_args().work
    fill(work, METHODS, {("gda", 1)}, "few-shot", "methods")  # one image a class has no spread
    fill(work, TOWERS, SAME, "few-shot-towers", "methods_towers")
    fill(work, WEIGHTS, set(), "few-shot-weights", "methods_weights")
    fill(work, NATIVE, set(), "few-shot-native", "methods_native")
    seconds = [curves.measure(work, "lora/chats", 16, seed)["seconds"] for seed in curves.SEEDS]
    print(f"LoRA on mini-vlm at 16 shots: {min(seconds):.0f} to {max(seconds):.0f} s of training")


def fill(work: Path, methods: dict[str, str], refused: set[tuple[str, int]], place: str, file: str) -> None:
    """Measures `methods` and writes their table to its place on the page, and the figures beside the backbone."""
    results = curves.curves(work, methods, refused)
    (TARGET / f"{file}.json").write_text(json.dumps(results, indent=2) + "\n")
    page = TARGET.parents[1] / "docs" / "methods.md"
    shown = curves.table(results, methods)
    page.write_text(card.filled(page.read_text(), place, shown))
    print(shown)


if __name__ == "__main__":
    main()
