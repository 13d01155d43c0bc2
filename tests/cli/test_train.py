"""`adapt train`: what it prints and leaves, how it stops and goes on, what it refuses."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import stored_numbers
import yaml
from stopping import at_step, interrupt


def _log(out: Path) -> list[str]:
    log = out / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def _loss(line: str) -> tuple[int, float]:
    entry = json.loads(line)
    return entry["step"], entry["loss"]


def test_what_it_prints(run, recipe: Path, tmp_path: Path) -> None:
    result = run("train", recipe, "--out", tmp_path / "run", "--plot", "--set", "train.epochs=1")
    assert result.exit_code == 0
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    trained, zero_shot, adapted, balanced, brackets, calibration, adapter = result.stdout.splitlines()
    assert trained.startswith("64 trained parameters, ")
    low, high = (100 * end for end in metrics["zero_shot"]["intervals"]["accuracy"])
    assert zero_shot == f"zero-shot  {100 * metrics['zero_shot']['accuracy']:5.1f} %  ({low:.1f} to {high:.1f})"
    assert brackets == "in brackets: 95 % confidence interval; only rough with fewer than 100 images"
    assert adapted.startswith(f"adapted    {100 * metrics['adapted']['accuracy']:5.1f} %")
    assert balanced.startswith(f"balanced   {100 * metrics['adapted']['mean_class_accuracy']:5.1f} %")
    assert adapter == f"adapter    {tmp_path}/run/adapter.safetensors ({metrics['adapter_bytes'] / 1024:.1f} KiB)"
    assert (tmp_path / "run/curves.png").stat().st_size > 0
    error = metrics["adapted"]["calibration_error"]
    assert calibration == f"not calibrated: calibration error {100 * error:.1f} %"


@pytest.mark.full
def test_a_clean_run_says_nothing_on_stderr(real, recipe: Path, tmp_path: Path) -> None:
    lora = ("--set", "method={name: lora, projections: q}", "--set", "train.epochs=1")
    process = real("train", recipe, "--out", tmp_path / "run", "--quiet", *lora)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert "adapted" in output


@pytest.mark.full
def test_ctrl_c_stops_the_real_command_and_it_can_go_on(real, run, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ("train", recipe, "--out", out, "--set", "train.epochs=100000")
    process = real(*arguments)
    while process.poll() is None and len(_log(out)) < 3:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("stopped; continue with: adapt train ")
    assert "Traceback" not in errors
    assert (out / "checkpoint.safetensors").is_file()
    assert len(_log(out)) >= 3


def test_the_command_to_go_on_with_works(run, recipe: Path, tmp_path: Path) -> None:
    options = ("--set", "train.epochs=4", "--seed", 5, "--shots", 2, "--track", "tensorboard")
    with at_step(2, interrupt):
        stopped = run("train", recipe, "--out", tmp_path / "my run", *options)
    assert stopped.exit_code == 130
    _, *arguments = shlex.split(stopped.stderr.partition("continue with: ")[2])
    assert run(*arguments).exit_code == 0
    losses = {("train/loss", step): stored_numbers.single(loss) for step, loss in map(_loss, _log(tmp_path / "my run"))}
    assert [step for _, step in losses] == [1, 2, 3, 4]
    assert stored_numbers.tensorboard(tmp_path / "my run").items() >= losses.items()


def test_without_out_a_new_folder_is_named_by_recipe_and_time(
    run, refused, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(time, "strftime", lambda form: {"%Y%m%d-%H%M%S": "20261130-120000"}[form])
    for name in ("tiny-20261130-120000", "tiny-20261130-120000-2"):
        result = run("train", recipe, "--set", "train.epochs=1")
        assert f"\nrun        runs/{name}\n" in result.stderr
        assert f"\nadapter    runs/{name}/adapter.safetensors (" in result.stdout
        assert (here / "runs" / name / "metrics.json").is_file()
    refused(run("train", recipe, "--resume"), "--resume and --plot need the run's directory: give --out FOLDER")
    assert len(list((here / "runs").iterdir())) == 2


def test_out_none_writes_nothing(run, refused, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("train", recipe, "--set", "train.epochs=1", "--out", "none")
    assert result.exit_code == 0
    assert "adapter  " not in result.stdout
    refused(run("train", recipe, "--out", "none", "--plot"), "need the run's directory: give --out FOLDER")
    refused(run("train", recipe, "--out", "none", "--track", "tensorboard"), "TensorBoard writes into the run", "--out")
    assert not (tmp_path / "runs").exists()


def test_what_is_refused_leaves_no_folder(run, refused, recipe: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    refused(run("train", recipe, "--set", "data.source=nowhere"), "data 'nowhere' is not there")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method.name=cop", ["unknown method 'cop'; did you mean 'coop'?"]),
        ("method.ctx=4", ["method: unknown key 'ctx'; did you mean 'n_ctx'?"]),
        ("train.epoch=4", ["unknown key 'train.epoch'; did you mean 'epochs'?"]),
        ("train.lr=fast", ["train.lr is 'fast'"]),
        ("seed", ["override 'seed' is not of the form key=value"]),
        ("backbone=mini-clap", ["unknown backbone 'mini-clap'", "did you mean 'mini-clip'?"]),
        ("backbone=open_clip:ViT-B-61", ["open_clip has no architecture 'ViT-B-61'; did you mean 'ViT-B-16'"]),
        ("backbone=open_clip:ViT-B-16/openia", ["no pretrained weights 'openia'", "did you mean 'openai'?"]),
        ("data.source=nowhere", ["data 'nowhere' is not there: no file or folder has this path"]),
        ("train.precision=fp16", ["fp16 needs a CUDA device"]),
        ("method={name: linear_probe}", ["linear_probe is not trained by gradient steps: leave out"]),
        ("device=gpu", ["device 'gpu' cannot be used here"]),
        ("device=cuda:99", ["device 'cuda:99' cannot be used here"]),
    ],
)
def test_refusals(run, refused, recipe: Path, tmp_path: Path, override: str, words: list[str]) -> None:
    refused(run("train", recipe, "--out", tmp_path / "run", "--set", override), *words)
    assert not (tmp_path / "run/recipe.yaml").exists()  # the directory is free for the corrected command


def test_keep_flops_sets_the_methods_key(run, refused, recipe: Path, tmp_path: Path) -> None:
    das = "method={name: das, search_epochs: 2, warmup_epochs: 0, turn: 1, draws: 2}"
    refused(run("train", recipe, "--set", das, "--keep-flops", 0.01), "das: keep_flops is 0.01, but a larger fraction")
    both = run("train", recipe, "--set", das, "--set", "method.skip=1", "--keep-flops", 0.9)
    refused(both, "--keep-flops and --set method.skip=1 both choose the skipped blocks: leave out one of them")
    result = run("train", recipe, "--set", das, "--keep-flops", 0.9, "--out", tmp_path / "run", "--quiet")
    assert result.exit_code == 0
    search = json.loads((tmp_path / "run/metrics.json").read_text())["search"]
    assert len(search["chosen"]) == 1
    assert search["kept_flops"] <= 0.9
    assert "keep_flops: 0.9" in (tmp_path / "run/recipe.yaml").read_text()


def test_an_unknown_recipe(run, refused) -> None:
    refused(run("train", "cop"), "nor a recipe called 'cop'", "did you mean 'coop'?")
    refused(
        run("train", "coop/eurosad"),
        "no recipe 'eurosad': choose coop/base_to_new or coop/few_shot, and choose data",
    )


def test_options_are_keys_of_the_recipe(run, recipe: Path, photos: Path, model_folder: Path, tmp_path: Path) -> None:
    options = ("--data", f"{photos}/", "--shots", "all", "--seed", 5, "--device", "cpu", "--backbone", model_folder)
    out = tmp_path / "run"
    assert run("train", recipe, *options, "--out", out, "--quiet", "--set", "train.epochs=1").exit_code == 0
    found = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (found["data"]["source"], found["data"]["shots"]) == (f"{photos}/", None)
    assert (found["seed"], found["device"], found["backbone"]) == (5, "cpu", str(model_folder))
    assert not {"on", "expected"} & found.keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "emoji", "--set", "data.source=photos"], "--data emoji and --set data.source=photos disagree"),
        (["--shots", "4", "--set", "data.shots=8"], "--shots 4 and --set data.shots=8 disagree: give only one of them"),
        (["--shots", "all", "--set", "data.shots=8"], "--shots all and --set data.shots=8 disagree"),
        (["--seed", "4", "--set", "seed=5"], "--seed 4 and --set seed=5 disagree"),
        (["--root", "a", "--set", "data={source: x, root: b}"], "--root a and --set data.root=b disagree"),
        (
            ["--backbone", "mini-clip", "--set", "backbone=hf:x"],
            "--backbone mini-clip and --set backbone=hf:x disagree",
        ),
        (["--device", "cpu", "--set", "device=cuda"], "--device cpu and --set device=cuda disagree"),
        (["--root", "somewhere"], "takes no root: leave out 'somewhere'"),
    ],
)
def test_options_and_keys_that_disagree(run, refused, recipe: Path, options: list[str], words: str) -> None:
    refused(run("train", recipe, *options), words)


def test_options_and_keys_that_agree(run, recipe: Path, photos: Path) -> None:
    both = ("--shots", 1, "--set", "data.shots=1", "--data", photos, "--set", f"data.source={photos}")
    assert run("train", recipe, *both, "--set", "train.epochs=1").exit_code == 0


def test_how_without_on_what(run, refused) -> None:
    words = "the recipe coop/few_shot names no data: add --data with a folder of images, a .csv, or one of"
    refused(run("train", "coop"), words, " emoji, imagenet, caltech101, ", "for example --data emoji")


def test_a_finished_run_is_not_overwritten(run, refused, recipe: Path, trained) -> None:
    refused(run("train", recipe, "--out", trained("coop")), "already contains a run")


@pytest.fixture
def broken_photos(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def test_an_empty_class_folder(run, refused, recipe: Path, broken_photos: Path) -> None:
    (broken_photos / "train/unicorn").mkdir()
    refused(run("train", recipe, "--set", f"data.source={broken_photos}"), "no training image of 'unicorn'")


def test_an_unreadable_training_image(run, refused, recipe: Path, broken_photos: Path) -> None:
    broken = broken_photos / "train/sky/0.png"
    broken.write_bytes(b"no image")
    refused(run("train", recipe, "--set", f"data.source={broken_photos}"), f"image '{broken}' cannot be decoded")


def test_a_run_in_the_folder_of_its_data_is_refused(run, refused, recipe: Path, photos: Path) -> None:
    refused(run("train", recipe, "--out", photos), "is the folder of the data; expected a folder for the run")
    assert not (photos / "recipe.yaml").exists()


def test_a_run_that_is_not_finished_has_no_adapter(run, refused, recipe: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe.read_text())
    refused(run("eval", tmp_path, "--data", photos), "is not finished, and has no adapter yet: continue")
    (tmp_path / "metrics.json").write_text("{}")
    refused(run("eval", tmp_path, "--data", photos), "is finished, but its adapter.safetensors is gone")


def test_one_class_is_warned_of(run, recipe: Path, photos: Path, tmp_path: Path, caplog) -> None:
    shutil.copytree(photos / "train/sky", tmp_path / "one/sky")
    for part in ("train", "test"):
        shutil.copytree(photos / part / "sky", tmp_path / "one" / part / "sky", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "one/sky")
    result = run("train", recipe, "--data", tmp_path / "one", "--quiet", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "100.0 %" not in result.stdout
    assert "not measured, as the data has only one class, 'sky': there is nothing to distinguish\n" in result.stdout
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["not_measured"] == "only one class, 'sky': there is nothing to distinguish"
    assert "adapted" not in metrics
    assert "one has only one class, 'sky': there is nothing to distinguish" in caplog.messages
    result = run("eval", tmp_path / "run", "--data", tmp_path / "one")
    assert "has only one class, 'sky': there is nothing to distinguish, so nothing can be measured" in result.stderr
    result = run("few-shot", recipe, "--data", tmp_path / "one", "--shots", "1", "--out", tmp_path / "curve")
    assert "so 'test' cannot be measured: give data of several classes" in result.stderr


def test_the_folder_by_default_is_not_in_the_data(run, refused, recipe: Path, photos: Path, monkeypatch) -> None:
    monkeypatch.chdir(photos)
    refused(run("train", recipe, "--data", ".", "--quiet"), "is inside the data folder ., where a new folder would")
    assert not (photos / "runs").exists()


def test_a_setting_is_given_once(run, refused, recipe: Path) -> None:
    result = run("train", recipe, "--set", "train.lr=0.1", "--set", "seed=2", "--set", "train.lr=0.2", "--dry-run")
    refused(result, "--set train.lr is given 2 values: give one")
