"""Processes that train one run together: how they are started, what ends them, what is refused. Nothing is trained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_accelerators import pretend

from adapt import AdaptError
from adapt.cli import train

Start = Callable[..., None]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> Start:
    """`programs(main, other)`: what the main process runs in adapt's place, and the others."""
    popen = subprocess.Popen
    pretend(monkeypatch, 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(sys, "argv", ["adapt", "train", "maple", "--processes", "2"])

    def arrange(main: str, other: str) -> None:
        def start(words: list[str], env: dict[str, str], **how: Any) -> Any:
            assert words == [sys.executable, "-m", "adapt", "train", "maple", "--processes", "2"]
            return popen([sys.executable, "-S", "-c", main if env["RANK"] == "0" else other], env=env, **how)

        monkeypatch.setattr(subprocess, "Popen", start)

    return arrange


def test_each_process_is_told_its_place(programs: Start, tmp_path: Path) -> None:
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"
    place = f"{str(tmp_path)!r} + '/' + os.environ['RANK']"
    told = f"import os; open({place}, 'w').write(repr([os.environ[name] for name in {names}]))"
    programs(told, told)
    assert train.launched(2, "auto") == 0
    assert (tmp_path / "0").read_text() == "['0', '0', '2', '127.0.0.1']"
    assert (tmp_path / "1").read_text() == "['1', '1', '2', '127.0.0.1']"


def test_the_main_one_speaks(programs: Start, capfd: pytest.CaptureFixture[str]) -> None:
    speak = "import os, sys; print(os.environ['RANK'], 'done'); print('Error: no', file=sys.stderr); sys.exit(2)"
    programs(speak, speak)
    assert train.launched(2, "cpu") == 2
    said = capfd.readouterr()
    assert (said.out, said.err) == ("0 done\n", "Error: no\n")


def test_one_that_fails_ends_those_that_wait_for_it(
    programs: Start, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "GRACE", 0.1)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60); "
    programs(deaf + f"open({str(tmp_path / 'waited')!r}, 'w')", "import sys; sys.exit('Error: of the other')")
    assert train.launched(2, "cpu") == 1
    assert not (tmp_path / "waited").exists()
    assert capfd.readouterr().err == "Error: of the other\n"


def test_a_signal_reaches_each_once(programs: Start) -> None:
    """Here by one of them, which asks this process in the place of a person."""
    waits = "import signal, sys, time; signal.signal(signal.SIGINT, lambda *_: sys.exit(130)); "
    asks = "import os; time.sleep(0.5); os.kill(os.getppid(), signal.SIGINT); "
    programs(waits + "time.sleep(60)", waits + asks + "time.sleep(60)")
    assert train.launched(2, "cpu") == train.STOPPED


def test_processes_that_would_share_an_accelerator_are_refused(
    programs: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, 2)
    with pytest.raises(AdaptError, match="--processes 3 needs 3 accelerators, but there are only 2: give at most 2"):
        train.launched(3, "auto")
    with pytest.raises(
        AdaptError, match="--device cuda:1 is a single device, but --processes 2 needs one device per process"
    ):
        train.launched(2, "cuda:1")
