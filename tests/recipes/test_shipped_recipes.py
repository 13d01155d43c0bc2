"""Every recipe that ships parses, builds, opens with what a reader needs, and carries the paper's settings."""

from __future__ import annotations

import json
import re
import shlex
from functools import partial
from pathlib import Path
from statistics import harmonic_mean, mean
from typing import Any

import open_clip
import pytest
import tiny_backbones
import tiny_fusion
import tiny_llms
import tiny_natives
import torch
import yaml
from click.testing import CliRunner

from adapt import methods
from adapt.backbones.base import Backbone
from adapt.backbones.joined import joined
from adapt.backbones.native_eyes import NativeEyes
from adapt.backbones.sources import is_bundled
from adapt.cli import main, options
from adapt.data.readers import names_file, published
from adapt.recipe import Recipe, _warn_of_settings, build_recipe, read_recipe
from adapt.recipe.file import OWN, RecipeFile, read_file
from adapt.recipe.shipped import find_recipe, shipped
from adapt.training import run_recipe

_ELEVEN = {
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397",
    "dtd", "eurosat", "ucf101",
}  # fmt: skip
_OF_ELEVEN = ("coop", "lora", "cocoop", "maple", "ivlp")  # methods with the papers' settings for the eleven
_COOP_TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
}

_NATIVE = {"lora/smolvlm": "smolvlm", "lora/qwen_vl": "qwen2_5_vl", "lora/llava": "llava"}  # and their tiny models
_OF_TWO_MODELS = ("compose/mblip", "vlora/pretrain", "vlora/finetune")
_OF_QUESTIONS = {"das/vqa": tiny_fusion.vilt, "das/meter": partial(tiny_fusion.bridgetower, 6)}
_OF_HEADS = ("hec/few_shot", "savs/few_shot")
every_recipe = pytest.mark.parametrize("name", shipped())
every_data_set = pytest.mark.parametrize("data", sorted(_ELEVEN))
_WORDS_OF_COMMANDS = ("train", "few-shot", "base-to-new", "cross-dataset", "domain-generalisation")


def _file(name: str) -> RecipeFile:
    return read_file(shipped()[name], name)


def _on_all_data() -> list[tuple[str, str]]:
    """Each recipe on the data that it names, on each of its own settings, and on one of the eleven."""
    pairs = []
    for name in shipped():
        file = _file(name)
        known = ["photos" if data == OWN else data for data in file.on]
        pairs += [(name, data) for data in dict.fromkeys([file.source() or "eurosat", *known])]
    return pairs


on_all_data = pytest.mark.parametrize(("name", "data"), _on_all_data())


def _overrides(words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == "--set"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A narrow CLIP with as many blocks as ViT-B/16 has: settings of any published depth build on it."""
    vision = open_clip.CLIPVisionCfg(**tiny_backbones.VISION | {"layers": 12, "width": 32, "head_width": 16})
    text = open_clip.CLIPTextCfg(**tiny_backbones.TEXT | {"layers": 12, "width": 32})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return tiny_backbones.from_open_clip(open_clip.model.CLIP(32, vision, text, quick_gelu=True))


@pytest.fixture
def _files_of_ones_own(tmp_path: Path, class_names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """What recipes take to lie where the command is given: phrases about each class."""
    phrases = {name: ["a shape"] for name in (*class_names, "cat", "dog")}
    (tmp_path / "descriptors.json").write_text(json.dumps(phrases))
    monkeypatch.setitem(names_file.BUNDLED, "emoji", tmp_path / "descriptors.json")
    monkeypatch.chdir(tmp_path)


def _loaded(recipe: Recipe) -> Backbone:
    return run_recipe.load_backbone(recipe.backbone, recipe.device, recipe.quantize)


def _of_its_kind(name: str, clip: Backbone) -> Backbone:
    if name == "cafo/two_models":
        return joined(clip, clip)
    if name in _OF_HEADS:
        return NativeEyes(tiny_natives.backbone("qwen2_5_vl"), "heads")
    if name in _OF_TWO_MODELS:
        outlined = tiny_llms.vision_llm("llama").to("meta")  # VLoRA's generator of 7B has 2 billion numbers
        return outlined if name.startswith("vlora") else tiny_llms.vision_llm("llama")
    if name in _OF_QUESTIONS:
        return _OF_QUESTIONS[name]()
    return tiny_natives.backbone(_NATIVE[name]) if name in _NATIVE else clip


@pytest.mark.usefixtures("_files_of_ones_own")
@on_all_data
def test_it_builds(
    name: str, data: str, backbone: Backbone, class_names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(name, data=data)
    if not re.sub("^(embed|heads):", "", recipe.backbone).startswith("mini-"):
        monkeypatch.setattr(run_recipe, "load_backbone", lambda *_: _of_its_kind(name, backbone))
    model = run_recipe.build(recipe, class_names, _loaded(recipe))
    assert model.method.name == recipe.method["name"]
    assert (recipe.train is not None) == model.method.takes_steps


@pytest.mark.usefixtures("_files_of_ones_own")
@pytest.mark.parametrize("name", [name for name in shipped() if name.endswith("/few_shot") and name not in _OF_HEADS])
def test_for_ones_own_images_depths_follow_the_tower(
    name: str, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six and four blocks of the bundled backbone, and the published depths on twelve."""
    recipe = read_recipe(name, ["backbone=mini-clip"], str(tmp_path))
    run_recipe.build(recipe, ("cat", "dog"), _loaded(recipe))
    monkeypatch.setattr(run_recipe, "load_backbone", lambda *_: backbone)
    config = run_recipe.build(recipe, ("cat", "dog"), _loaded(recipe)).method.config.model_dump()
    published = {"maple": {"depth": 9}, "prompt_src": {"depth_text": 9, "depth_vision": 9}, "tcp": {"block": 8}}
    published["ivlp"] = {"depth_text": 12, "depth_vision": 12}
    assert published.get(recipe.method["name"], {}).items() <= config.items()


@on_all_data
def test_its_resolved_form_is_the_same_recipe(name: str, data: str) -> None:
    recipe = read_recipe(name, data=data)
    assert build_recipe(yaml.safe_load(recipe.to_yaml()), "resolved") == recipe


@every_recipe
def test_its_header_says_what_to_run_and_what_to_expect(name: str) -> None:
    title, *rest = [line.strip() for line in _file(name).comment.splitlines()]
    assert title
    for word in ("Paper:", "Expected:"):
        assert any(line.startswith(word) for line in rest), word
    assert max(len(line) for line in shipped()[name].read_text(encoding="utf-8").splitlines()) <= 120


@every_recipe
def test_the_commands_of_its_header_take_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the data, which are not here: each command finds this recipe, and gives only what it has."""
    monkeypatch.chdir(tmp_path)
    read = []
    monkeypatch.setattr(options, "read", lambda *given: read.append(given) or _stop())
    commands = [shlex.split(line) for line in _file(name).comment.splitlines() if line.strip().startswith("adapt ")]
    trainings = [words[1:] for words in commands if words[1] in _WORDS_OF_COMMANDS]
    for words in trainings:
        assert isinstance(CliRunner().invoke(main, words).exception, _Stopped), words
    assert len(read) == len(trainings) > 0
    for recipe, overrides, given, *protocol in read:
        assert find_recipe(recipe, *protocol).name == name
        assert isinstance(read_recipe(recipe, overrides, given["data"], *protocol), Recipe)


class _Stopped(Exception):
    pass


def _stop() -> None:
    raise _Stopped


def test_all_are_listed_by_their_names() -> None:
    folder = Path(__file__).resolve().parents[2] / "recipes"
    assert list(shipped().values()) == sorted(folder.rglob("*.yaml"))
    assert len(shipped()) <= 107  # one for each kind of protocol that a paper has settings for
    assert {f"{method}/few_shot" for method in _OF_ELEVEN} < shipped().keys()


@every_data_set
def test_coop_has_the_papers_settings(data: str) -> None:
    recipe = read_recipe("coop", data=data)
    assert recipe.method == {"name": "coop", "n_ctx": 16, "class_position": "end"}
    assert recipe.backbone == "open_clip:ViT-B-16-quickgelu/openai"
    assert (recipe.data.shots, recipe.seed) == (16, 1)
    assert recipe.data.template == _COOP_TEMPLATES.get(data, "a photo of a {}.")
    train = recipe.train
    assert train is not None
    epochs = {1: 50, 2: 100, 4: 100, 8: 200, 16: 200} if data != "imagenet" else dict.fromkeys((1, 2, 4, 8, 16), 50)
    assert {shots: train.at(shots).epochs for shots in epochs} == epochs
    assert (train.optimizer, train.lr, train.momentum, train.weight_decay) == ("sgd", 0.002, 0.9, 5e-4)
    assert (train.schedule, train.warmup_epochs, train.warmup_lr) == ("cosine_epoch", 1, 1e-5)
    assert (train.batch_size, train.accumulate, train.drop_last) == (32, 1, True)
    assert (train.augment, train.views) == ("published", None)


@every_data_set
def test_lora_has_the_papers_settings(data: str) -> None:
    from adapt.methods.lora import LoRAConfig

    recipe = read_recipe("lora", data=data)
    config = LoRAConfig(**recipe.method_config)
    assert (config.rank, config.alpha, config.dropout, config.logit_scale) == (2, 1, 0.25, 100)
    assert (set(config.projections), set(config.towers)) == ({"q", "k", "v"}, {"text", "vision"})
    assert (config.blocks, config.tuner, config.options) == (None, "lora", {})
    assert config.template == recipe.data.template == "a photo of a {}."
    assert recipe.backbone == "open_clip:ViT-B-16-quickgelu/openai"
    train = recipe.train
    assert train is not None
    assert {shots: train.at(shots).iterations for shots in (1, 4, 16)} == {1: 500, 4: 2000, 16: 8000}
    assert (train.optimizer, train.lr, train.weight_decay) == ("adamw", 2e-4, 1e-2)
    assert (train.schedule, train.min_lr) == ("cosine_iteration", 1e-6)
    assert (train.batch_size, train.accumulate, train.drop_last) == (32, 1, False)
    assert (train.augment, train.views) == ("published", None)


def _check_base_to_new(recipe: Recipe, data: str, epochs: int, batch_size: int, lr: float) -> None:
    """What CoCoOp, MaPLe and IVLP share, and the three settings in which they differ."""
    assert recipe.backbone == "open_clip:ViT-B-16-quickgelu/openai"
    assert (recipe.data.shots, recipe.data.classes, recipe.seed) == (16, "all", 1)
    assert recipe.data.template == _COOP_TEMPLATES.get(data, "a photo of a {}.")
    train = recipe.train
    assert train is not None
    assert (train.epochs, train.batch_size, train.lr) == (epochs, batch_size, lr)
    assert (train.optimizer, train.momentum, train.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (train.schedule, train.warmup_epochs, train.warmup_lr) == ("cosine_epoch", 1, 1e-5)
    assert (train.accumulate, train.drop_last, train.augment, train.views) == (1, True, "published", None)


_IVLP = {"depth_text": 12, "depth_vision": 12, "ctx_init": "a photo of a"}


@pytest.mark.parametrize(
    ("method", "settings", "steps"),
    [
        ("cocoop", {"n_ctx": 4, "ctx_init": "a photo of a"}, (10, 1, 0.002)),
        ("coop", {"ctx_init": "a photo of a"}, (50, 32, 0.002)),  # the reference's
        ("ivlp", {"n_ctx_text": 2, "n_ctx_vision": 2, **_IVLP}, (5, 4, 0.0035)),
        ("maple", {"n_ctx": 2, "depth": 9, "ctx_init": "a photo of a"}, (5, 4, 0.0035)),
    ],
)
@every_data_set
def test_base_to_new_has_the_papers_settings(data: str, method: str, settings: dict[str, Any], steps: Any) -> None:
    recipe = read_recipe(method, data=data, protocol="base_to_new")
    assert recipe.method == {"name": method} | settings
    _check_base_to_new(recipe, data, *steps)


def test_maple_has_the_papers_settings_for_transfer() -> None:
    recipe = read_recipe("maple/cross_dataset")
    assert recipe.method == {"name": "maple", "n_ctx": 2, "depth": 3, "ctx_init": "a photo of a"}
    assert recipe.data == read_recipe("maple", data="imagenet").data
    _check_base_to_new(recipe, "imagenet", epochs=2, batch_size=4, lr=0.0026)


@pytest.mark.parametrize(
    ("which", "counts", "touches"),
    [
        (0, {"n_ctx_text": 0, "n_ctx_vision": 8}, {"vision"}),
        (1, {"n_ctx_text": 4, "n_ctx_vision": 0}, {"text"}),
    ],
    ids=["vpt", "language"],
)
@every_data_set
def test_the_header_of_ivlp_turns_it_into_its_variants(
    data: str, which: int, counts: dict[str, Any], touches: set[str]
) -> None:
    lines = [line.strip() for line in _file("ivlp/few_shot").comment.splitlines()]
    variants = [shlex.split(line) for line in lines if line.startswith("--set ")]
    assert len(variants) == 2
    recipe = read_recipe("ivlp", _overrides(variants[which]), data)
    assert recipe.method == {"name": "ivlp"} | counts | _IVLP
    assert methods.IVLP(**recipe.method_config).touches == touches
    _check_base_to_new(recipe, data, epochs=5, batch_size=4, lr=0.0025)


@pytest.mark.parametrize(
    ("method", "averages"),
    [("cocoop", (80.47, 71.69, 75.83)), ("maple", (82.28, 75.14, 78.55))],
    ids=["cocoop", "maple"],
)
def test_the_figures_that_recipes_quote_agree_with_the_published_averages(
    method: str, averages: tuple[float, float, float]
) -> None:
    file = _file(f"{method}/few_shot")
    figures: dict[str, list[tuple[float, float, float]]] = {method: [], "zero-shot": []}
    assert set(file.expected) == _ELEVEN
    for data, text in file.expected.items():
        rows = re.findall(r"([\d.]+) / ([\d.]+) / ([\d.]+) %", text.replace("†", ""))
        for kind, row in zip(figures, rows, strict=True):
            base, new, both = map(float, row)
            assert harmonic_mean([base, new]) == pytest.approx(both, abs=0.011), (data, kind)
            figures[kind].append((base, new, both))
    words = " ".join(file.comment.split())
    assert f"The eleven average {' / '.join(f'{figure:.2f}' for figure in averages)} %" in words
    for kind, quoted in ((method, averages), ("zero-shot", (69.34, 74.22, 71.70))):
        base, new = (mean(row[at] for row in figures[kind]) for at in (0, 1))
        assert (base, new, harmonic_mean([base, new])) == pytest.approx(quoted, abs=0.0051), kind


@pytest.mark.parametrize("method", _OF_ELEVEN)
@every_data_set
def test_all_methods_read_the_published_files(method: str, data: str) -> None:
    found, entry = read_recipe(method, data=data).data, published.sets()[data]
    assert (found.source, found.root, found.shots) == (data, "data", 16)
    is_lora = method == "lora"
    assert found.template == ("a photo of a {}." if is_lora else entry.template)
    assert found.sampling == ("clip-lora" if is_lora else "coop")


@pytest.mark.parametrize("method", _OF_ELEVEN)
def test_ones_own_images_have_the_papers_backbone(method: str) -> None:
    recipe = read_recipe(method, data="photos/")
    assert recipe.backbone == "open_clip:ViT-B-16-quickgelu/openai"
    assert (recipe.data.root, recipe.data.template, recipe.data.sampling) == (None, "a photo of a {}.", "coop")


@every_recipe
def test_settings_of_a_bundled_model_are_said_to_be_such(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Or the recipe has a published part, which is what one's own data take."""
    _warn_of_settings.cache_clear()
    own = read_recipe(name, data="photos").backbone
    read_recipe(name, ["backbone=hf:some/model"], "photos")
    read_recipe(name, ["backbone=hf:some/model"], "photos")
    said = [record.getMessage() for record in caplog.records if "were chosen for" in record.getMessage()]
    assert len(said) == is_bundled(own)
    assert all(f"the settings of {name} were chosen for {own}, a small bundled model" in each for each in said)


@pytest.mark.parametrize("name", ["dpl", "ctp_tft", "coop", "maple"])
@pytest.mark.parametrize("data", ["photos", "eurosat"])
def test_methods_for_a_dual_encoder_start_from_one_backbone(name: str, data: str) -> None:
    assert read_recipe(name, data=data).backbone == "open_clip:ViT-B-16-quickgelu/openai"


def test_dpl_stands_at_maples_settings() -> None:
    for protocol in ("base_to_new", "cross_dataset"):
        dpl, maple = (read_recipe(name, data="imagenet", protocol=protocol) for name in ("dpl", "maple"))
        assert dpl.train == maple.train
        assert dpl.method["depth_text"] == dpl.method["depth_vision"] == maple.method["depth"]


def test_das_and_vlora_have_the_references_settings() -> None:
    for name, size, rate, skip, head, kept in (("das/vqa", 256, 1e-4, 1, 10, 1), ("das/meter", 512, 25e-6, 4, 50, 5)):
        recipe = read_recipe(name, data="photos")
        train = recipe.train
        assert train is not None
        assert (train.batch_size * train.accumulate, train.lr, train.epochs) == (size, rate, 10)
        assert (train.weight_decay, train.schedule, train.warmup) == (0.01, "linear_iteration", 0.1)
        assert train.betas == (0.9, 0.98)
        config = methods.find("das")(**recipe.method_config).config.model_dump()
        assert {
            "skip": skip,
            "search_epochs": 3,
            "warmup_epochs": 1,
            "turn": 10,
            "draws": 3,
            "gate_lr": 1.0,
            "head_rate": head,
            "kept_rate": kept,
        }.items() <= config.items()
    for name, size, rate, dim in (("vlora/pretrain", 768, 5e-5, 1024), ("vlora/finetune", 128, 2e-5, 512)):
        recipe = read_recipe(name, data="photos")
        train = recipe.train
        assert train is not None
        assert (train.batch_size * train.accumulate, train.lr, train.epochs, train.weight_decay) == (size, rate, 1, 0)
        assert (recipe.method["dim"], recipe.method["depth"], recipe.method["skip"]) == (dim, 8, 4)
