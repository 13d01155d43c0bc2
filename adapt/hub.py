"""The Hugging Face hub: names on it, the files of a repository from its cache, and one commit of files to it.

What is fetched is named file by file, and none of it is a pickle. Without a network, or with HF_HUB_OFFLINE=1, what was
fetched before serves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapt.errors import AdaptError
from adapt.shown import one_line

SCHEME = "hf://"
_PREFIX = re.compile(r"hf:/{1,2}(?!/)")  # a Path folds the two slashes into one
_WORD = r"[A-Za-z0-9][\w.-]*"
_REPOSITORY = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_TOKEN = "`hf auth login`, or the variable HF_TOKEN"


def is_name(path: str | os.PathLike[str]) -> bool:
    """Whether `path` names something on the hub, and nothing on this machine."""
    return _PREFIX.match(os.fspath(path)) is not None


def parse(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The repository and the revision in `hf://user/name@revision`; the scheme and the revision may be left out.

    Raises AdaptError for another form.
    """
    text = _PREFIX.sub("", os.fspath(name))
    found = _REPOSITORY.fullmatch(text)
    if found is None:
        raise AdaptError(
            f"{SCHEME}{text} names no repository of the hub: expected {SCHEME}user/name, or {SCHEME}user/name@revision"
        )
    return found["repository"], found["revision"]


def spelled(name: str | os.PathLike[str]) -> str:
    """`name` as it is written, also where a Path has folded its slashes."""
    return _PREFIX.sub(SCHEME, os.fspath(name))


def snapshot(name: str | os.PathLike[str], files: Sequence[str]) -> Path:
    """A folder in the hub's cache with those of `files` that the repository has, as they are at its revision.

    `files` may be patterns such as `*.json`. Raises AdaptError where there is no such repository or revision, it is
    gated or private, or it is neither in the cache nor within reach.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parse(name)
    with _told(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


@contextmanager
def asked_once() -> Iterator[str | None]:
    """Inside, where the hub does not answer, libraries take what is in its cache, or fail at once; yields why.

    They would ask again and again for each file, and wait for minutes.
    """
    from huggingface_hub import constants, errors, get_session

    if constants.HF_HUB_OFFLINE:
        yield None
        return
    silence = None
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.HTTPError, OSError):
        silence = _silence()
        constants.HF_HUB_OFFLINE = True  # what the variable of this name sets
    try:
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = False


def commit(
    repository: str, folder: Path, message: str, *, replaced: Sequence[str], private: bool | None, token: str | None
) -> str:
    """Adds the files of `folder` to a repository, which is made where there is none, and returns its address.

    It is one commit, which also deletes those of `replaced` that the folder has not. `private` is of a new repository.
    Raises AdaptError where the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    added = {file.name: CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())}
    with _told(repository, None):
        address = api.create_repo(repository, private=private, exist_ok=True)
        stale = {*api.list_repo_files(repository)}.intersection(replaced) - added.keys()
        deleted = [CommitOperationDelete(file) for file in sorted(stale)]
        api.create_commit(repository, [*added.values(), *deleted], commit_message=message)
    return str(address)


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """AdaptError, with what to do, where the hub refuses what is asked inside, or cannot be reached."""
    from huggingface_hub import errors

    name = SCHEME + repository + (f"@{revision}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise AdaptError(f"{name} is gated: ask for access on its page, and give your token ({_TOKEN})") from error
    except errors.RepositoryNotFoundError as error:
        raise AdaptError(
            f"the hub has no repository {repository}, or it is private: check the name, or give a token that may "
            f"use it ({_TOKEN})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise AdaptError(
            f"{repository} has no revision {revision!r}: give a branch, a tag or a commit of it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        answered = isinstance(error.__cause__, errors.HfHubHTTPError | errors.FileMetadataError)
        why = f"the hub refuses it: {_refusal(error.__cause__)}" if answered else _out_of_reach()
        raise AdaptError(f"{name} is not in the cache, and {why}") from error
    except errors.HfHubHTTPError as error:
        raise AdaptError(f"{name} is refused by the hub: {_refusal(error)}") from error
    except (errors.HTTPError, ConnectionError) as error:  # httpx's own, whichever httpx there is
        raise AdaptError(f"{name} was not reached: {_out_of_reach()}") from error
    except (ValueError, OSError, RuntimeError) as error:
        raise AdaptError(f"{name}: {_line(error)}") from error


def _out_of_reach() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub: unset it"
    return f"{_silence()}: connect this machine"


def _silence() -> str:
    from huggingface_hub import constants

    return f"the hub does not answer at {constants.ENDPOINT}"


def _refusal(error: BaseException | None) -> str:
    """What the server says, and what to do about it where that is known."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    said = getattr(error, "server_message", None) or _line(error)
    return said + (f". Give a token that may write there ({_TOKEN})" if status in (401, 403) else "")


def _line(error: BaseException | None) -> str:
    """What a library says on one line, or else the kind of its error."""
    return one_line(error) or type(error).__name__
