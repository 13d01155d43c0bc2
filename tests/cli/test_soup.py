"""`adapt soup`"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from checks import perturb

import adapt
from adapt.cli import formats as command
from adapt.methods.base.mixture import Combination

NAMES = ("goldfish", "lime tree", "sky")


@pytest.fixture
def pot(model_folder: Path, tmp_path: Path) -> Callable[[str], list[Path]]:
    """`pot(method)`: three adapters of a common start."""
    backbone = adapt.load_backbone(str(model_folder))

    def made(name: str) -> list[Path]:
        paths = []
        for seed in range(3):
            torch.manual_seed(0)
            method = adapt.methods.find(name)(**({"n_ctx": 2} if name == "coop" else {"rank": 2}))
            model = perturb(adapt.wrap(backbone, method, NAMES), seed=seed, size=0.5)
            paths.append(model.save(tmp_path / f"{name}-{seed}.safetensors"))
        return paths

    return made


@pytest.mark.full
def test_a_mean_is_an_adapter_like_another(run, pot, photos: Path, tmp_path: Path) -> None:
    paths, out = pot("coop"), tmp_path / "soup.safetensors"
    result = run("soup", *paths, "--out", out)
    size = out.stat().st_size / 1024
    assert (result.exit_code, result.stdout) == (0, f"soup of 3 of 3 at {out} ({size:.1f} KiB)\n")
    contexts = torch.stack([adapt.load(path).method.ctx.detach() for path in paths])
    assert torch.allclose(adapt.load(out).method.ctx, contexts.mean(0), atol=1e-7)
    assert run("predict", out, photos / "test").exit_code == 0


def test_weights_and_ties_of_lora(run, pot, tmp_path: Path) -> None:
    paths = pot("lora")[:2]
    given = ("--combination", "ties", "--density", "0.5", "--rank", "5", "--weights", "1,0.5")
    assert run("soup", *paths, *given, "--out", tmp_path / "ties.safetensors").exit_code == 0
    model = adapt.load(tmp_path / "ties.safetensors")
    assert model.method.config.rank == 5
    recorded = model.metadata["recipe"]["soup"]
    assert (recorded["combination"], recorded["density"]) == ("ties", 0.5)
    assert [each["weight"] for each in recorded["ingredients"]] == [1.0, 0.5]
    assert [each["adapter"] for each in recorded["ingredients"]] == list(map(str, paths))


def test_a_greedy_soup_says_what_it_takes(run, pot, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "greedy.safetensors"
    result = run("soup", *pot("coop"), "--greedy", photos, "--out", out)
    assert (result.exit_code, result.stderr) == (0, "")
    *lines, last = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("taken")
    taken = sum(line.startswith("taken") for line in lines)
    assert last.startswith(f"soup of {taken} of 3 at ")
    assert run("eval", out, "--data", photos, "--part", "val", "--json").exit_code == 0


def test_refusals(run, refused, pot, tmp_path: Path) -> None:
    coop, lora = pot("coop"), pot("lora")
    out = tmp_path / "soup.safetensors"
    refused(run("soup", coop[0], lora[0], "--out", out), "differ in method, 'coop' and 'lora'")
    refused(run("soup", *coop, "--weights", "1,2", "--out", out), "there are 2 weights for 3 adapters")
    refused(run("soup", *coop, "--combination", "ties", "--out", out), "ties needs a density")
    refused(run("soup", *coop, "--weights", "a,b,c", "--out", out), "--weights is 'a,b,c'; expected numbers such as")
    assert not out.exists()
    refused(run("soup", *coop, "--out", coop[0]), "exists already; name a new file")


def test_data_without_validation_images_cannot_choose(run, refused, pot, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label,split\ntrain/sky/0.png,sky,train\n")
    given = ("--greedy", tmp_path / "list.csv", "--root", photos, "--out", tmp_path / "soup.safetensors")
    refused(run("soup", *pot("coop"), *given), "list.csv has no validation images, on which adapters are compared")


def test_the_combinations_are_those_of_the_library() -> None:
    """The command lists them itself, as its help imports no torch."""
    [option] = [each for each in command.soup.params if each.name == "combination"]
    assert get_args(Combination) == tuple(option.type.choices)
