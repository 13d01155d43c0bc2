"""A hub that does not answer is asked once, and nobody waits: what is not in the cache is said at once, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_backbones
from click.testing import CliRunner
from huggingface_hub import constants
from huggingface_hub.utils import _http

import adapt
from adapt import AdaptError
from adapt.backbones import sources
from adapt.choosing import recommendation
from adapt.cli import main
from adapt.common.hub import asked_once
from adapt.data import Split

NOWHERE = "http://127.0.0.1:9"  # where nobody listens


@pytest.fixture
def waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Without a network, and with an empty cache; the seconds that libraries would wait between two tries."""
    found: list[float] = []
    values = {"ENDPOINT": NOWHERE, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": False}
    values["HUGGINGFACE_CO_URL_TEMPLATE"] = NOWHERE + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(_http.time, "sleep", found.append)
    return found


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "open_clip:ViT-B-16-quickgelu/openai",
            r"the weights 'openai' of ViT-B-16-quickgelu are damaged, or are not on this machine .*: "
            r"the hub does not answer at http://127.0.0.1:9\. Connect to the internet, give a weight file as "
            r"open_clip:ViT-B-16-quickgelu/FILE or a local folder, or take what needs no hub: "
            r"--backbone efficientnet-lite0 \(.* no words\) or --backbone mini-clip \(.* drawings, reads words\)$",
        ),
        ("hf:openai/clip-vit-base-patch16", "couldn't find them in the cached files. Connect to the internet, or give"),
        ("mini-clip+hf:nobody/nothing", "couldn't find them in the cached files. Connect to the internet, or give"),
    ],
)
def test_nobody_waits_for_a_hub_that_does_not_answer(waits: list[float], spec: str, words: str) -> None:
    with pytest.raises(AdaptError, match=words) as raised:
        adapt.load_backbone(spec)
    assert "\n" not in str(raised.value)
    assert waits == []
    assert not constants.HF_HUB_OFFLINE


def test_an_adapter_whose_backbone_is_not_here_is_named(waits: list[float], tmp_path: Path) -> None:
    model = adapt.wrap(tiny_backbones.backbone("open_clip"), adapt.methods.CoOp(n_ctx=2), ("cat", "dog"))
    model.backbone.name = "hf:nobody/nothing"
    path = model.save(tmp_path / "mine.safetensors")
    with pytest.raises(AdaptError, match=rf"^{path}: cannot load 'nobody/nothing' with transformers: "):
        adapt.load(path)


def test_a_chat_model_that_is_not_known_gets_those_that_are(tmp_path: Path) -> None:
    config = {"model_type": "mllama", "architectures": ["MllamaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(AdaptError, match=r"is a mllama model, .* its chat models are gemma3, .*, smolvlm$"):
        adapt.load_backbone(f"hf:{tmp_path}")


@pytest.mark.parametrize("command", [("recommend",), ("train", "linear_probe", "--data"), ("index",)])
def test_commands_refuse_before_an_image_is_opened_and_name_both_ways_on(
    waits: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for number in range(8):
        folder = tmp_path / "photos" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.png").touch()  # no image, which would be said if it were opened
    out = tmp_path / "out.safetensors"
    result = CliRunner().invoke(main, [*command, str(tmp_path / "photos"), f"--out={out}"])
    assert result.exit_code == 2
    said = result.stderr.splitlines()[-1]
    assert "HF_HUB_OFFLINE forbids asking the hub: unset it. Connect" in said
    assert "--backbone efficientnet-lite0 (of the extra lite: trained on photographs, reads no words)" in said
    assert "--backbone mini-clip (trained on drawings, reads words)" in said
    assert not out.exists()


def test_recommend_offers_the_best_backbone_that_is_here(
    waits: list[float], tmp_path: Path, tiny_split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, item in enumerate(tiny_split.train):
        path = tmp_path / "photos" / item.answer / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(item.path).read_bytes())
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda self: self.name == "<stdin>", raising=False)
    assert sources.best_here() == "efficientnet-lite2"
    monkeypatch.setattr(sources, "find_spec", lambda package: None)  # as without the extra lite
    asked, compare = list[tuple[str, ...]](), recommendation.recommend

    def compared(data: str, **options: Any) -> Any:
        asked.append(options["backbone"])
        if options["backbone"]:
            raise AdaptError("as far as this test goes")
        return compare(data, **options)

    monkeypatch.setattr(recommendation, "recommend", compared)
    command = ["recommend", str(tmp_path / "photos"), f"--out={tmp_path / 'out'}"]
    refused = CliRunner().invoke(main, command, input="n\n")
    assert refused.exit_code == 1
    assert "the hub does not answer" in refused.stderr
    assert "Compare methods on mini-clip, which is here? [Y/n]" in refused.stderr
    assert not (tmp_path / "out").exists()
    taken = CliRunner().invoke(main, command, input="\n")
    assert taken.stderr.endswith("Error: as far as this test goes\n")
    assert asked == [(), (), ("mini-clip",)]
    with_name = CliRunner().invoke(main, [*command, "--backbone=open_clip:ViT-B-32/openai"], input="\n")
    assert "Compare methods on" not in with_name.stderr  # who names one is not asked for another


def test_a_hub_that_answers_is_asked_as_ever(hub) -> None:
    with asked_once() as silence:
        assert silence is None
        assert not constants.HF_HUB_OFFLINE


def test_what_is_on_this_machine_asks_nobody(
    waits: list[float], model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the hub is asked"))
    for spec in ("mini-clip", str(model_folder), "mini-vilt"):
        assert adapt.load_backbone(spec).name == spec


def test_label_refuses_the_backbone_of_its_run_at_once(waits: list[float], tmp_path: Path, tiny_split: Split) -> None:
    for item in tiny_split.train:
        path = tmp_path / "photos" / item.answer / f"{len(list(tmp_path.rglob('*.png')))}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(item.path).read_bytes())
    options = ("--data", tmp_path / "photos", "--backbone", "mini-clip", "--out", tmp_path / "run", "--quiet")
    trained = CliRunner().invoke(main, ["train", "nearest_mean", *map(str, options)])
    assert trained.exit_code == 0, trained.output
    model = adapt.load(tmp_path / "run")
    model.backbone.name = "open_clip:ViT-B-16-quickgelu/openai"
    model.save(tmp_path / "run" / "adapter.safetensors")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new.png").write_bytes(Path(tiny_split.test[0].path).read_bytes())
    result = CliRunner().invoke(
        main, ["label", str(tmp_path / "more"), f"--adapter={tmp_path / 'run'}", f"--out={tmp_path / 'labels'}"]
    )
    assert result.exit_code == 2
    assert "or take what needs no hub: --backbone efficientnet-lite0 (" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "labels" / "annotations.csv").exists()
    assert waits == []
