"""One small run of each method, and what its adapter's file hashes to; `python equal_runs.py` prints all of them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import tiny_backbones
import tiny_fusion
import tiny_llms
import tiny_natives

from adapt import Backbone, methods
from adapt.backbones.joined import joined
from adapt.backbones.native_eyes import NativeEyes
from adapt.testing import Case

KINDS = {
    "dual encoder": lambda: tiny_backbones.backbone("open_clip"),
    "fusion encoder": tiny_fusion.vilt,
    "vision LLM": lambda: tiny_llms.vision_llm("llama"),
    "embedding": tiny_natives.dual_encoder,
    "joined": lambda: joined(tiny_backbones.backbone("open_clip"), tiny_backbones.backbone("hf_clip")),
    "heads": lambda: NativeEyes(tiny_natives.backbone("smolvlm"), "heads"),
}
ON_ITS_OWN = {"cafo": "joined", "hec": "heads", "savs": "heads", "vladva": "embedding"}
# each method on the first kind of backbone that it serves, or on the only backbones that it takes; gpt4image needs its
# own data, which tests/methods has
CASES = tuple(
    (name, ON_ITS_OWN.get(name, methods.find(name).serves[0])) for name in methods.names() if name != "gpt4image"
)


@cache
def _backbone(kind: str) -> Backbone:
    return KINDS[kind]()


def digest(name: str, kind: str, folder: Path) -> str:
    """SHA-256 of the adapter that a run in `folder` writes: a search, two epochs and all that is measured."""
    method = methods.find(name)
    case = Case(method, method.example, _backbone(kind))
    out = case.train(case.new(), out=folder, test_set=case.split.test).adapter
    return hashlib.sha256(out.read_bytes()).hexdigest()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        for number, case in enumerate(CASES):
            print(*case, digest(*case, Path(temporary) / str(number)), sep="\t", flush=True)
