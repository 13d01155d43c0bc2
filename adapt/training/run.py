"""A run directory: locked while in use, never overwritten, and all that a run leaves behind."""

from __future__ import annotations

import hashlib
import platform
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from adapt import plain
from adapt.devices import accelerator, described
from adapt.disk import write_text
from adapt.errors import AdaptError
from adapt.formats.adapter import versions
from adapt.shown import brief
from adapt.training.result import read_history

_OF_THE_START = ("environment.json", "tracking.json")  # written before anything is learned


class Run:
    """Holds the lock of `path` as a context manager.

    Of several processes that train one model one `writes` it, and holds its lock; the others read.

    Raises AdaptError where another process uses the directory, where it holds a run that is not to be resumed, or where
    there is none to resume or it is of another recipe.
    """

    def __init__(self, path: str | Path, recipe: str, resume: bool, writes: bool = True) -> None:
        self.path = Path(path)
        self.recipe = recipe
        self.resume = resume
        self.writes = writes
        self.images = ""  # the training images, once they are known
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        if self.path.exists() and not self.path.is_dir():
            raise AdaptError(f"{self.path} is a file; a run needs a directory of its own")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise AdaptError(f"{self.path} is in use by another run: wait for it, or choose another --out") from None
        except OSError as error:
            raise AdaptError(f"cannot make the run directory {self.path}: {error.strerror or error}") from error
        try:
            self._check()
            self._clean()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.writes:
            return
        if isinstance(value, Exception) and not self.resume and not self._begun():
            # refused, or failed, before there is anything to go on from: the next try may use the directory
            for name in ("recipe.yaml", *_OF_THE_START):
                (self.path / name).unlink(missing_ok=True)
            self._lock.release()
            with suppress(OSError):  # a folder with more in it stays
                (self.path / ".lock").unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.release()

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.safetensors"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter.safetensors"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions.csv"

    @property
    def explanations(self) -> Path:
        return self.path / "explanations.json"

    @property
    def picks(self) -> Path:
        return self.path / "train_images.csv"

    @property
    def tracking(self) -> Path:
        return self.path / "tracking.json"

    @property
    def goes_on(self) -> bool:
        """Whether it has a checkpoint to go on from."""
        return self.resume and self.checkpoint.is_file()

    def kept(self, name: str) -> Path:
        """Where a method keeps what took it long to find out. AdaptError for the name of another file of a run."""
        if name in ("metrics", "environment", "targets", "explanations", "tracking"):
            raise AdaptError(f"{name}.json is a run's own: keep what a method found by another name")
        return self.path / f"{name}.json"

    @property
    def identity(self) -> str:
        """What a checkpoint must belong to: this recipe, on these images."""
        return hashlib.sha256(f"{_of_any_device(self.recipe)}\n{self.images}".encode()).hexdigest()[:16]

    def _begun(self) -> bool:
        kept = {path.name for path in self.path.glob("*.json")} - {*_OF_THE_START}
        return bool(kept) or self.checkpoint.exists() or (self.path / "log.jsonl").exists()

    def _check(self) -> None:
        recipe = self.path / "recipe.yaml"
        if not self.resume:
            if recipe.exists() or self.checkpoint.exists():
                raise AdaptError(
                    f"{self.path} already holds a run: choose another --out (out=), or go on with it by --resume "
                    "(resume=True)"
                )
            write_text(recipe, self.recipe)
            write_text(self.path / "environment.json", plain.dump(environment(), indent=2) + "\n")
        elif not recipe.is_file():
            raise AdaptError(f"{self.path} holds no run to resume; leave out --resume to start one")
        elif (self.path / "metrics.json").exists():
            raise AdaptError(f"the run in {self.path} is complete: nothing to resume. To train again, change --out")
        elif _of_any_device(recipe.read_text(encoding="utf-8", errors="replace")) != _of_any_device(self.recipe):
            raise AdaptError(
                f"{self.path} was started with another recipe ({recipe}): resume with that one, or choose another --out"
            )

    def _clean(self) -> None:
        """Deletes what a killed run left half written."""
        for path in self.path.glob(".*.tmp"):
            path.unlink(missing_ok=True)

    def text_memory(self, own: int) -> int:
        """The bytes within which this run cuts the text side into parts: `own`, or those that it began with.

        Other parts would draw other dropout, so a run that goes on elsewhere keeps to them.
        """
        if not self.writes:
            return own
        path = self.path / "environment.json"
        try:
            # missing where a run was stopped before it had begun
            known = plain.parse(path.read_bytes()) if path.exists() else environment()
            if not isinstance(known, dict):
                raise ValueError("it holds no keys")
            kept: int | None = known.get("text_memory")  # None of a new run
            if kept is not None and (type(kept) is not int or kept < 0):
                raise ValueError(f"text_memory is {brief(kept)}; expected a number of bytes")
        except (OSError, ValueError) as error:
            raise AdaptError(f"{path} is damaged ({error}): start a new run in another --out") from error
        if kept is None:
            write_text(path, plain.dump(known | {"text_memory": own}, indent=2) + "\n")
        return own if kept is None else kept

    def log(self, entry: dict[str, Any]) -> None:
        """Appends one line to log.jsonl."""
        if not self.writes:
            return
        log = self.path / "log.jsonl"
        try:
            with log.open("a") as file:
                file.write(plain.dump(entry) + "\n")
        except OSError as error:
            raise AdaptError(f"cannot write {log}: {error.strerror or error}; then go on by --resume") from error

    def history(self) -> list[dict[str, Any]]:
        """The entries of log.jsonl. AdaptError where it is damaged."""
        return read_history(self.path / "log.jsonl")

    def cut_log(self, step: int) -> None:
        """Drops what a killed run logged after the checkpoint at `step`, so that no step appears twice."""
        log = self.path / "log.jsonl"
        if self.writes and log.is_file():
            # one a step; the last may be cut short
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[:step]
            write_text(log, "".join(f"{line}\n" for line in lines))

    def finish(self, metrics: dict[str, Any]) -> None:
        """Writes metrics.json; the checkpoint has served."""
        write_text(self.path / "metrics.json", plain.dump(metrics, indent=2) + "\n")
        self.checkpoint.unlink(missing_ok=True)


def _of_any_device(recipe: str) -> str:
    """A recipe without the line of its device: a run may go on elsewhere."""
    return "".join(line for line in recipe.splitlines(keepends=True) if not line.startswith("device: "))


def environment() -> dict[str, Any]:
    """What a result may depend on beside the recipe."""
    import torch

    own = accelerator()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "accelerator": None if own is None else described(own),
        "versions": versions(),
    }
