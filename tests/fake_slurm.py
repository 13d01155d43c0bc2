"""A stand-in for SLURM's commands on the PATH: `sbatch` runs the tasks of a job one after the other on this machine."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

_COMMON = """#!{python}
import os, re, signal, subprocess, sys
from pathlib import Path
state = Path({state!r})
"""
_SBATCH = """
script = Path(sys.argv[-1]).read_text()
number = 100 + len(list(state.glob("*.script")))
(state / f"{number}.script").write_text(script)
array = re.search(r"--array=0-(\\d+)", script)
tasks = {f"{number}_{task}": task for task in range(int(array[1]) + 1)} if array else {str(number): None}
for name in tasks:
    (state / f"{name}.state").write_text("PENDING")
print(f"Submitted batch job {number}", flush=True)
if os.fork():
    sys.exit()
os.setsid()
nowhere = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(nowhere, stream)
for name, task in tasks.items():
    if (state / f"{name}.state").read_text() == "CANCELLED":
        continue
    ids = {"SLURM_JOB_ID": str(number), "SLURM_NTASKS": "1"} | dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID"), "0")
    if task is not None:
        ids |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    (state / f"{name}.state").write_text("RUNNING")
    status = subprocess.run(["bash", "-c", script], env=os.environ | ids).returncode
    if (state / f"{name}.state").read_text() == "RUNNING":
        (state / f"{name}.state").write_text("FAILED" if status else "COMPLETED")
"""
_SRUN = """
words = sys.argv[1:]
options = {}
while words[0].startswith("--"):
    name = words.pop(0)
    if name in ("--output", "--error"):
        options[name] = words.pop(0)
array = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
for name, path in options.items():
    for mark, value in (("%A", array[0]), ("%a", array[1]), ("%j", os.environ["SLURM_JOB_ID"]), ("%t", "0")):
        path = path.replace(mark, str(value))
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1 if name == "--output" else 2)
sys.exit(subprocess.run(words).returncode)
"""
_SACCT = """
print("JobID|State|NodeList")
for file in sorted(state.glob("*.state")):
    print(f"{file.stem}|{file.read_text()}|here")
"""
_SCANCEL = """
for file in state.glob(f"{sys.argv[1]}*.state"):
    file.write_text("CANCELLED")
"""


def install(folder: Path) -> Path:
    """Write the commands to `folder/bin`, for the PATH, and return the folder of what they know."""
    state, programs = folder / "state", folder / "bin"
    state.mkdir(parents=True)
    programs.mkdir()
    head = _COMMON.format(python=sys.executable, state=str(state))
    for name, body in {"sbatch": _SBATCH, "srun": _SRUN, "sacct": _SACCT, "scancel": _SCANCEL}.items():
        (programs / name).write_text(head + body)
        (programs / name).chmod(stat.S_IRWXU)
    return state


def on_the_path(folder: Path) -> str:
    """Return a PATH that finds the commands in `folder/bin` first."""
    return f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
