"""Tiny backbones, images and splits for all tests: seeded, offline, on the CPU."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_stand_in
import open_clip as open_clip_library
import pytest
import selection
import tiny_backbones
import torch
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from adapt import Backbone
from adapt.data import Item, Split
from adapt.data.decoding import decoded
from adapt.data.decoding.decoded import _may_start_workers as may_start_workers

gc.disable()  # until all tests are found: modules and tests stay, and need not be looked through again and again
torch.set_num_threads(1)  # the tensors are tiny: more threads only wait for one another

NAMES = ("goldfish", "red_panda", "sea cucumber")
_COLOURS = ((230, 60, 40), (40, 200, 70), (50, 80, 220))
_FOLDER_MODEL: dict[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
_QUIET = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run all tests, also those that tests/selection.py leaves out")
    parser.addoption("--ci", action="store_true", help="run what `make test-ci` has of them")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    left_out = selection.left_out(items, config.getoption("--ci"))
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _in_a_folder_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where commands without --out leave their runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _level_of_the_log() -> Iterator[None]:
    """A command that a test runs in this process sets the level for the process: the next test has the usual one."""
    logger = logging.getLogger("adapt")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def _features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(_features: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user of this machine has cached stands for nothing that a test computes."""
    monkeypatch.setenv("ADAPT_CACHE", str(_features))


@pytest.fixture(scope="session", autouse=True)
def _decodes_here() -> Iterator[None]:
    """Images are decoded by the tests' own process: to start others takes longer than most of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "_may_start_workers", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_vocabulary() -> Iterator[None]:
    """open_clip's tokenizer of each kind is made once: it takes a quarter of a second and 25 MB each time."""
    usual, made = SimpleTokenizer.__init__, dict[str, dict[str, Any]]()

    def init(self: SimpleTokenizer, *args: Any, **options: Any) -> None:
        kind = repr((args, options))
        if kind not in made:
            usual(self, *args, **options)
            made[kind] = {**self.__dict__}
        self.__dict__.update(made[kind])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimpleTokenizer, "__init__", init)
        yield


@pytest.fixture
def in_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes decode images, as many as are asked for."""
    monkeypatch.setattr(decoded, "_may_start_workers", may_start_workers)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_stand_in.StandIn]:
    """A stand-in for the hub, with a cache of its own, and the token of who owns `user/...`."""
    from huggingface_hub import constants

    with hub_stand_in.running() as server:
        values = {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "no-token"),
            "HF_HUB_DISABLE_XET": True,  # the LFS protocol, which is plain HTTP
            "HF_HUB_OFFLINE": False,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", hub_stand_in.TOKEN)
        yield server


@pytest.fixture
def open_clip() -> Backbone:
    """A native open_clip CLIP of the parity sizes."""
    return tiny_backbones.backbone("open_clip")


@pytest.fixture
def open_clip_timm() -> Backbone:
    """A CustomTextCLIP over a timm ViT."""
    return tiny_backbones.backbone("open_clip_timm")


@pytest.fixture
def open_clip_resnet() -> Backbone:
    """A CLIP whose vision tower has no transformer blocks."""
    return tiny_backbones.backbone("open_clip_resnet")


@pytest.fixture
def hf_clip() -> Backbone:
    """transformers' CLIP of the parity sizes."""
    return tiny_backbones.backbone("hf_clip")


@pytest.fixture
def hf_siglip() -> Backbone:
    """transformers' SigLIP: text that is not causal."""
    return tiny_backbones.backbone("hf_siglip")


@pytest.fixture
def backbone(request: pytest.FixtureRequest) -> Backbone:
    """The backbone of the kind that the test's parameter names; the native CLIP without one."""
    return tiny_backbones.backbone(getattr(request, "param", "open_clip"))


@pytest.fixture
def class_names() -> tuple[str, ...]:
    """Three names whose prompts differ in length."""
    return NAMES


@pytest.fixture
def images() -> Tensor:
    """Six images, already transformed."""
    return torch.randn(6, 3, tiny_backbones.IMAGE, tiny_backbones.IMAGE, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    """The labels of `images`."""
    return torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A seeded open_clip model in open_clip's own folder format."""
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    folder.mkdir()
    torch.manual_seed(0)
    model = open_clip_library.model.CLIP(**_FOLDER_MODEL)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": _FOLDER_MODEL, "preprocess_cfg": preprocess})
    )
    return folder


@pytest.fixture(scope="session")
def five_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`train/` and `test/` with four images, plain in any colour, of each of five classes."""
    folder, colours = tmp_path_factory.mktemp("data") / "plain", torch.Generator().manual_seed(3)
    for part in ("train", "test"):
        for name in ("goldfish", "lime tree", "red panda", "sky", "tin can"):
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                colour = tuple(torch.randint(0, 256, (3,), generator=colours).tolist())
                Image.new("RGB", (8, 8), colour).save(folder / part / name / f"{name}-{i}.png")
    return folder


@pytest.fixture
def tiny_split(tmp_path: Path) -> Split:
    """Three classes of noisy plain-coloured PNGs: 4 for training, 2 for validation and 2 for the test of each."""
    noise = torch.Generator().manual_seed(2)

    def part(name: str, count: int) -> tuple[Item, ...]:
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        return tuple(
            Item.of(path=_picture(folder / f"{number}-{i}.png", _COLOURS[number], noise), label=class_name)
            for number, class_name in enumerate(NAMES)
            for i in range(count)
        )

    root = str(tmp_path / "images")
    return Split("tiny", NAMES, part("train", 4), part("val", 2), part("test", 2), root=root)


def _picture(path: Path, colour: tuple[int, int, int], noise: torch.Generator) -> str:
    pixels = torch.tensor(colour) + torch.randint(-20, 21, (24, 24, 3), generator=noise)
    Image.fromarray(pixels.clamp(0, 255).byte().numpy()).save(path)
    return str(path)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, which never gets a network."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on the PATH")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=_QUIET)
        yield opened.new_context(offline=True)
        opened.close()
