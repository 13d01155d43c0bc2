"""Runs the tests of each module of modules.toml on its mutants and says which of them survive.

    python tests/mutation/run.py [--only few_shot] [--at-most 40] [--out runs/mutants.json] [--jobs 2] [--again]

Each mutant lives in a process of its own, forked from one that has imported the libraries but nothing of adapt: that
saves seconds for each, and no file is changed. Exit code 1 where a module's score is below 0.85.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mutants as generated
import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEAST = 0.85
AT_MOST = 120  # mutants of a module


@dataclass
class Module:
    path: str
    tests: list[str]
    functions: list[str] = field(default_factory=list)
    at_most: int = AT_MOST

    @property
    def name(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def mutants(self) -> list[generated.Mutant]:
        return generated.mutants((ROOT / self.path).read_text(encoding="utf-8"), self.functions)

    def sample(self, every: list[generated.Mutant]) -> list[generated.Mutant]:
        """Those to run."""
        return sorted(random.Random(0).sample(every, min(self.at_most, len(every))), key=every.index)


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from a mutant's source."""

    def __init__(self, module: Module, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, fullname: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname == self.module.name else None

    def get_filename(self, fullname: str) -> str:
        return str(ROOT / self.module.path)

    def get_data(self, path: str) -> bytes:
        return self.source.encode()


def start(module: Module, source: str | None, imported: Path | None = None) -> int:
    """Starts the tests of `module` in a child, with the mutant's source if there is one. Gives the child's id.

    The names of all libraries' modules that the child has imported at the end are written to `imported`.
    """
    child = os.fork()
    if child:
        return child
    os.setsid()
    silent = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silent, stream)
    if source is not None:
        sys.meta_path.insert(0, Mutated(module, source))
    options = ["-x", "-q", "-n0", "--full", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
    try:
        code = int(pytest.main([*options, *(str(ROOT / each) for each in module.tests)]))
    except BaseException:  # noqa: BLE001 - a mutant may raise anything, and is noticed then
        code = 1
    if imported is not None:
        names = [name for name, each in sys.modules.items() if "site-packages" in (getattr(each, "__file__", "") or "")]
        imported.write_text("\n".join(names), encoding="utf-8")
    os._exit(code)


def warm(imported: Path) -> None:
    """Imports what a child has imported, so that later children find it."""
    for name in imported.read_text(encoding="utf-8").split():
        with contextlib.suppress(Exception):  # parts of libraries that cannot be imported by themselves
            importlib.import_module(name)
    gc.freeze()  # children need not look through all of it again


@dataclass
class Running:
    mutant: generated.Mutant
    until: float


def run(
    module: Module, chosen: list[generated.Mutant], limit: float, jobs: int
) -> Iterator[tuple[generated.Mutant, str]]:
    """Each mutant with `killed`, `survived` or `out of time`, which is as good as killed."""
    waiting, running = list(reversed(chosen)), dict[int, Running]()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[start(module, mutant.source)] = Running(mutant, time.monotonic() + limit)
        for child, each in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            late = time.monotonic() > each.until
            if not ended and not late:
                continue
            if not ended:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
            del running[child]
            yield each.mutant, "out of time" if not ended else "survived" if status == 0 else "killed"
        time.sleep(0.02)


def measure(module: Module, jobs: int, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """Runs all mutants, or those that survived `earlier`; the others are as they were then."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        imported = Path(folder) / "imported"
        _, status = os.waitpid(start(module, None, imported), 0)
        if status:
            raise SystemExit(f"the tests of {module.path} fail without a mutant: {' '.join(module.tests)}")
        warm(imported)
    unchanged = time.monotonic()
    os.waitpid(start(module, None), 0)
    limit = 10 + 4 * (time.monotonic() - unchanged)
    every = module.mutants()
    chosen = module.sample(every)
    outcomes = {"killed": 0, "survived": 0, "out of time": 0}
    if earlier is not None:
        outcomes = earlier["outcomes"] | {"survived": 0}
        left = {each["name"] for each in earlier["survivors"]}
        chosen = [each for each in every if each.name in left]
    survivors = []
    for mutant, outcome in run(module, chosen, limit, jobs):
        outcomes[outcome] += 1
        if outcome == "survived":
            survivors.append({"name": mutant.name, "change": mutant.change})
            print(f"{module.path}: survived {mutant.name}\n{mutant.change}", flush=True)
    ran, seconds = sum(outcomes.values()), round(time.monotonic() - started)
    score = 1 - outcomes["survived"] / max(1, ran)
    print(f"{module.path}: {score:.2f}, {outcomes['survived']} of {ran} survive ({len(every)} in all), {seconds} s")
    return {"path": module.path, "score": round(score, 3), "mutants": len(every), "run": ran, "seconds": seconds} | {
        "outcomes": outcomes,
        "survivors": survivors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="modules whose path has this in it")
    parser.add_argument("--at-most", type=int, default=AT_MOST, help="mutants of a module; more are sampled")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.json")
    parser.add_argument("--again", action="store_true", help="only those that survived in --out: tests were added")
    arguments = parser.parse_args()
    listed = tomllib.loads((HERE / "modules.toml").read_text(encoding="utf-8"))["module"]
    modules = [Module(**each) for each in listed if arguments.only in each["path"]]
    for module in modules:
        module.at_most = min(module.at_most, arguments.at_most)
    os.chdir(ROOT)
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.again else []
    known = {each["path"]: each for each in earlier}
    found = [measure(module, arguments.jobs, known.get(module.path)) for module in modules]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    raise SystemExit(any(each["score"] < LEAST for each in found))


if __name__ == "__main__":
    main()
