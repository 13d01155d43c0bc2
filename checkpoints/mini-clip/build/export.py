"""Assemble the two towers into a folder that open_clip loads as `local-dir:`."""

import json
import shutil
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from shape import SHAPE
from torch import Tensor

TARGET = SHAPE.folder


def config() -> dict:
    """The contents of `open_clip_config.json`."""
    image, words = SHAPE.image, SHAPE.text
    vision = {key: image[key] for key in ("image_size", "patch_size", "width", "layers", "mlp_ratio")}
    return {
        "model_cfg": {
            "embed_dim": SHAPE.embed_dim,
            "vision_cfg": vision | {"head_width": image["width"] // image["heads"]},
            "text_cfg": words | {"vocab_size": SHAPE.vocabulary, "hf_tokenizer_name": SHAPE.name},
        },
        "preprocess_cfg": {
            "size": image["image_size"],
            "mean": open_clip.OPENAI_DATASET_MEAN,
            "std": open_clip.OPENAI_DATASET_STD,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def image_tower(work: Path) -> dict[str, Tensor]:
    """The averaged image tower under CLIP's names, with projection and temperature, without the teacher's head."""
    average = torch.load(work / "train.pt")["average"]
    tower = {name: value for name, value in average.items() if name.startswith("visual.")}
    return tower | {"visual.proj": average["proj"], "logit_scale": average["logit_scale"]}


def save(work: Path) -> None:
    """Write configuration, weights (fp16) and tokenizer beside the card."""
    weights = image_tower(work) | torch.load(work / "text.pt")
    half = {name: value.half().contiguous() for name, value in weights.items()}
    TARGET.mkdir(exist_ok=True)
    file = TARGET / "open_clip_model.safetensors"
    save_file(half, file, metadata={"format": "pt"})
    file.chmod(0o644)  # safetensors leaves it readable to its writer only
    (TARGET / "open_clip_config.json").write_text(json.dumps(config(), indent=2) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "tokenizer" / name, TARGET / name)
    count = sum(value.numel() for value in half.values())
    print(f"{count / 1e6:.2f} M parameters in {TARGET}")
