"""The folder that keeps a labelling: its lock, and the run and the sources of images that it belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from adapt.common.disk import write_json
from adapt.common.errors import AdaptError
from adapt.evaluation import stored

logger = logging.getLogger("adapt")
BEGUN, DATA, ANNOTATIONS = "labelling.json", "data.csv", "annotations.csv"
PROPOSALS, ROUNDS = "proposals.csv", "rounds.json"


class Begun(BaseModel):
    """The run and the sources of images that a folder of answers belongs to."""

    run: str
    sources: list[str]

    @classmethod
    def of(cls, out: Path, run: Path, sources: Sequence[Path]) -> Begun:
        """Return what the folder `out` belongs to, with the sources of earlier commands.

        Sources that are gone are left out with a warning. Raises AdaptError if `out` has answers about another run.
        """
        own = cls(run=str(run.absolute()), sources=[str(source.absolute()) for source in sources])
        if not (out / BEGUN).exists():
            return own
        before = cls(**stored.read(out / BEGUN, cls, "description of a labelling"))
        if before.run != own.run and (out / ANNOTATIONS).exists():
            raise AdaptError(
                f"{out} has answers about the run {before.run}, not {own.run}: choose another --out, or correct the "
                f"run in {out / BEGUN} if it was moved"
            )
        earlier = [source for source in before.sources if Path(source).exists()]
        for source in before.sources:
            if source not in earlier:
                logger.warning("%s, of an earlier command, is gone: its images are left out", source)
        return cls(run=own.run, sources=list(dict.fromkeys([*earlier, *own.sources])))

    def write(self, out: Path) -> None:
        """Write the description to the folder `out`."""
        write_json(out / BEGUN, self.model_dump())


def locked(out: Path) -> FileLock:
    """Return a held lock on a folder, which is created. Raises AdaptError if another process holds it."""
    lock = FileLock(out / ".lock")
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise AdaptError(f"{out} is in use by another labelling: end it, or choose another --out") from None
    except OSError as error:
        raise AdaptError(f"cannot write to {out}: {error.strerror or error}; choose another --out") from error
    return lock
