"""Help, lists and start-up."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal, TypedDict, Unpack

import click
import pytest
import torch
from click.testing import CliRunner

import adapt
from adapt import __version__, methods
from adapt.cli import _COMMANDS, _Shown
from adapt.cli.options import REQUIRED, Argument, Option
from adapt.cli.options import command as command_of


def test_the_overview_names_every_command_and_imports_no_torch() -> None:
    code = "import sys; from adapt.cli import main\ntry: main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, modules = result.stdout.splitlines()
    listed = [line.split()[0] for line in lines[lines.index("Commands:") + 1 :] if line.startswith("  ")]
    assert [name for name in listed if name in _COMMANDS] == list(_COMMANDS)
    assert not {"torch", "open_clip", "transformers", "peft", "timm", "numpy"} & set(modules.split())
    assert result.stderr == ""


@pytest.mark.parametrize("command", [*_COMMANDS, "data list", "data check", "data show"])
def test_every_command_explains_itself(run, command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: main {command} ")
    assert len(result.stdout.splitlines()) > 4


@pytest.mark.parametrize("command", ["chat", "data", "predict"])
def test_what_reads_models_imports_torch_only_then(command: str) -> None:
    code = f"import sys; from adapt.cli import main; main.get_command(None, {command!r}); print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_another_projects_package_in_the_way_is_named(tmp_path: Path) -> None:
    """PyPI's `adapt` puts an `__init__.py` of its own over ours."""
    (tmp_path / "adapt").mkdir()
    theirs = f"__path__ = [{str(Path(adapt.__file__).parent)!r}]\n__all__ = ['feature_based']\n"
    (tmp_path / "adapt" / "__init__.py").write_text(theirs)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from adapt.cli import main; main(['methods'])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "Error: the package adapt from PyPI, an unrelated project, has overwritten files of adapt-vlm"
    )
    assert "pip uninstall adapt" in result.stderr
    assert result.stderr.count("\n") == 1


def test_version(run) -> None:
    assert run("--version").stdout == f"adapt, version {__version__}\n"


def test_methods(run) -> None:
    output = run("methods").stdout
    for name in methods.names():
        assert f"{methods.find(name).title}" in output


@pytest.mark.parametrize("name", methods.names())
def test_the_settings_of_a_method(run, name: str) -> None:
    output = run("methods", name).stdout
    assert output.startswith(methods.find(name).title)
    assert all(key in output for key in methods.find(name).Config.model_fields)


def test_an_unknown_method(run, refused) -> None:
    refused(run("methods", "lore"), "unknown method 'lore'; did you mean 'lora'?")


def test_backbones(run) -> None:
    output = run("backbones").stdout
    assert all(form in output for form in ("mini-clip", "open_clip:ARCH/PRETRAINED", "hf:NAME_OR_PATH", "FOLDER"))


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["predict", "a", "b", "--top-k", "0"], ["train", "--no"]])
def test_wrong_usage_exits_with_2(run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: ")


def test_an_option_that_is_a_setting_says_how_to_set_it(run) -> None:
    for command in ("train", "few-shot"):
        assert run(command, "coop", "--batch-size", 3).stderr.endswith(
            "Error: There is no option --batch-size: give --set train.batch_size=VALUE\n"
        )
    assert "No such option '--nothing'" in run("train", "coop", "--nothing").stderr


def test_a_folder_that_is_gone_is_said(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("methods").stderr == "Error: the current folder no longer exists: change to another one\n"


@pytest.mark.full
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_no_room_for_what_is_said() -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "adapt", "methods"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 2
    assert result.stderr == "Error: the disk that is written to is full: free some space, or write elsewhere\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), "not enough memory"),
        (MemoryError(), "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "set TMPDIR to one"),
    ],
)
def test_what_the_machine_lacks_is_said_in_one_line(
    run, refused, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object) -> None:
        raise error

    monkeypatch.setattr("adapt.methods.names", lacks)
    refused(run("methods"), said)


def test_another_fault_is_not_taken_for_it(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.methods.names", lambda: 1 / 0)
    assert isinstance(run("methods").exception, ZeroDivisionError)


def test_names_in_what_is_logged_steer_no_terminal() -> None:
    record = logging.LogRecord("adapt", logging.WARNING, "", 0, "%s passed over\nand more", ("a\x1b[2J\u202e",), None)
    assert _Shown("%(message)s").format(record) == "a\\x1b[2J\\u202e passed over\nand more"


class More(TypedDict, total=False):
    data: Annotated[str | None, "Data."]
    seed: Annotated[int, Option("Seed.", min=0, default=1)]
    out: Annotated[Path, Option("Folder.", default=REQUIRED)]


@command_of(without=("data",))
def made(
    source: Path,
    others: Annotated[tuple[str, ...], Argument("[OTHER]...")] = (),
    *,
    top_k: Annotated[int | None, Option("Entries.", min=1)] = None,
    form: Annotated[Literal["text", "csv"], Option("Form.", "--format")] = "text",
    cache: Annotated[bool, Option("Keep.", "--cache/--no-cache")] = True,
    plain: Annotated[bool, "Plain."] = False,
    **more: Unpack[More],
) -> None:
    """Say what was given."""
    click.echo(repr((source, others, top_k, form, cache, plain, more["seed"], more["out"])))


def test_a_commands_options_are_its_functions_parameters() -> None:
    def said(*words: str) -> str:
        return CliRunner().invoke(made, words).output

    assert said("a", "--out", "b") == f"{(Path('a'), (), None, 'text', True, False, 1, Path('b'))}\n"
    given = ("a", "x", "y", "--top-k", "3", "--format", "csv", "--no-cache", "--plain", "--seed", "4", "--out", "b")
    assert said(*given) == f"{(Path('a'), ('x', 'y'), 3, 'csv', False, True, 4, Path('b'))}\n"
    assert "Missing option '--out'" in said("a")
    assert "Missing argument 'SOURCE'" in said("--out", "b")
    assert "No such option '--data'" in said("a", "--data", "b", "--out", "b")
    assert "0 is not in the range x>=1" in said("a", "--out", "b", "--top-k", "0")
    assert "'yaml' is not one of 'text', 'csv'" in said("a", "--out", "b", "--format", "yaml")
    lines = [line.split() for line in said("--help").splitlines()]
    assert lines[0] == ["Usage:", "made", "[OPTIONS]", "SOURCE", "[OTHER]..."]
    assert ["--cache", "/", "--no-cache", "Keep.", "[default:", "cache]"] in lines
    assert ["--plain", "Plain."] in lines
