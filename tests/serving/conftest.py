"""Two adapters of tiny models in a folder, and a client of an application over them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
import torch
from fastapi.dependencies import models as dependencies
from starlette.testclient import TestClient

import adapt
from adapt import AdaptedModel, Backbone
from adapt.data import Split
from adapt.methods import TDA, CoOp, LoRA, ZeroShot
from adapt.serving.adapters import ServedAdapters
from adapt.serving.app import Limits, create_app

NAMES = ("goldfish", "red panda", "sea cucumber")


def make(backbone: Backbone) -> dict[str, AdaptedModel]:
    """Models which differ in their answers; one edits the vision tower, one remembers what it was asked."""
    torch.manual_seed(0)
    methods = {"coop": CoOp(n_ctx=4), "lora": LoRA(rank=4), "zero_shot": ZeroShot(), "tda": TDA()}
    made = {name: adapt.wrap(backbone, method, NAMES).eval() for name, method in methods.items()}
    with torch.no_grad():
        for model in made.values():
            for parameter in model.method.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Empty FastAPI's caches of routes, which keep the models of each application: gigabytes, after all tests."""
    yield
    for function in vars(dependencies).values():
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def models(open_clip: Backbone) -> dict[str, AdaptedModel]:
    return make(open_clip)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models' adapters, which no test changes."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, model in make(tiny_backbones.backbone("open_clip")).items():
        model.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """`NAME.safetensors` of each, and beside the folder one that lies outside."""
    shutil.copy(saved / "coop.safetensors", tmp_path / "outside.safetensors")
    return shutil.copytree(saved, tmp_path / "adapters")


@pytest.fixture
def served(folder: Path, open_clip: Backbone) -> ServedAdapters:
    """coop, the default, and lora; the others may be loaded."""
    return ServedAdapters([f"{folder}/coop.safetensors", f"{folder}/lora.safetensors"], folder, open_clip)


@pytest.fixture
def serve(served: ServedAdapters) -> Iterator[Callable[..., TestClient]]:
    """A client of an application with the limits given; closed behind the test."""
    clients: list[TestClient] = []

    def start(**limits: Any) -> TestClient:
        clients.append(TestClient(create_app(served, Limits(**limits)), raise_server_exceptions=False))
        return clients[-1].__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def images(tiny_split: Split) -> list[bytes]:
    """Twelve PNGs of 24 x 24 pixels."""
    return [Path(item.path).read_bytes() for item in tiny_split.train]
