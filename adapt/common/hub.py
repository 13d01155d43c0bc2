"""The Hugging Face hub: names of repositories, downloads through its cache, and commits.

Files are fetched by name, and none of them is a pickle. Without a network, or with HF_HUB_OFFLINE=1, the cache is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adapt.common.errors import AdaptError
from adapt.common.shown import one_line

SCHEME = "hf://"
_PREFIX = re.compile(r"hf:/{1,2}(?!/)")  # a Path folds the two slashes into one
_WORD = r"[A-Za-z0-9][\w.-]*"
REPOSITORY = re.compile(rf"(?P<repository>{_WORD}/{_WORD})(?:@(?P<revision>[^@\s]+))?", re.ASCII)
_TOKEN = "`hf auth login`, or the variable HF_TOKEN"


def is_name(path: str | os.PathLike[str]) -> bool:
    """Return whether `path` is the name of a repository on the hub, such as `hf://user/name`, and not a local path."""
    return _PREFIX.match(os.fspath(path)) is not None


def parse(name: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Split `hf://user/name@revision` into repository and revision; the prefix `hf://` and the revision are optional.

    Raises AdaptError if `name` does not have this form.
    """
    text = _PREFIX.sub("", os.fspath(name))
    parts = REPOSITORY.fullmatch(text)
    if parts is None:
        raise AdaptError(
            f"{SCHEME}{text} is not the name of a repository on the hub: expected {SCHEME}user/name, or "
            f"{SCHEME}user/name@revision"
        )
    return parts["repository"], parts["revision"]


def spelled(name: str | os.PathLike[str]) -> str:
    """Return `name` with both slashes of `hf://`, which `pathlib.Path` merges into one slash."""
    return _PREFIX.sub(SCHEME, os.fspath(name))


def snapshot(name: str | os.PathLike[str], files: Sequence[str]) -> Path:
    """Download the files of a hub repository that match `files`, and return their folder in the hub's local cache.

    `files` are names, or patterns such as `*.json`. Raises AdaptError if the repository or revision does not exist, is
    gated or private, or is not in the cache while the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repository, revision = parse(name)
    with _explaining(repository, revision):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))


@contextmanager
def asked_once() -> Iterator[str | None]:
    """Check whether the hub answers, and yield None if the hub answers, or else a text that says why not.

    If the hub does not answer, libraries use only the hub's local cache in the `with` block. Without this check,
    libraries would retry for each file, and wait for minutes.
    """
    from huggingface_hub import constants, errors, get_session

    if constants.HF_HUB_OFFLINE:
        yield _out_of_reach()
        return
    silence = None
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (errors.HTTPError, OSError):
        silence = f"the hub does not answer at {constants.ENDPOINT}"
        constants.HF_HUB_OFFLINE = True  # as the environment variable of this name does
    try:
        yield silence
    finally:
        constants.HF_HUB_OFFLINE = False


def commit(
    repository: str, folder: Path, message: str, *, replaced: Sequence[str], private: bool | None, token: str | None
) -> str:
    """Upload the files of `folder` to a hub repository in one commit, and return the repository's URL.

    A missing repository is created, as a private repository if `private` is true. The commit also deletes files of the
    repository that are named in `replaced` and missing from `folder`. Raises AdaptError if the hub refuses the commit,
    or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    added = {file.name: CommitOperationAdd(file.name, file) for file in sorted(folder.iterdir())}
    with _explaining(repository, None):
        address = api.create_repo(repository, private=private, exist_ok=True)
        stale = {*api.list_repo_files(repository)}.intersection(replaced) - added.keys()
        deleted = [CommitOperationDelete(file) for file in sorted(stale)]
        api.create_commit(repository, [*added.values(), *deleted], commit_message=message)
    return str(address)


@contextmanager
def _explaining(repository: str, revision: str | None) -> Iterator[None]:
    """Turn errors of the hub in the `with` block (a refused request, no connection) into AdaptError with advice."""
    from huggingface_hub import errors

    name = SCHEME + repository + (f"@{revision}" if revision else "")
    try:
        yield
    except errors.GatedRepoError as error:
        raise AdaptError(f"{name} is gated: request access on its hub page, and give your token ({_TOKEN})") from error
    except errors.RepositoryNotFoundError as error:
        raise AdaptError(
            f"the hub has no repository {repository}, or it is private: check the name, or give a token with access "
            f"({_TOKEN})"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise AdaptError(
            f"{repository} has no revision {revision!r}: give one of its branches, tags or commits"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        answered = isinstance(error.__cause__, errors.HfHubHTTPError | errors.FileMetadataError)
        why = f"the hub refuses the download: {_refusal(error.__cause__)}" if answered else _out_of_reach()
        raise AdaptError(f"{name} is not in the hub's local cache, and {why}") from error
    except errors.HfHubHTTPError as error:
        raise AdaptError(f"the hub refuses the request for {name}: {_refusal(error)}") from error
    except (errors.HTTPError, ConnectionError) as error:  # from any version of httpx
        raise AdaptError(f"{name} cannot be reached: {_out_of_reach()}") from error
    except (ValueError, OSError, RuntimeError) as error:
        raise AdaptError(f"{name}: {_line(error)}") from error


def _out_of_reach() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub: unset it"
    return f"the hub does not answer at {constants.ENDPOINT}: connect this machine"


def _refusal(error: BaseException | None) -> str:
    """Return the hub's reason for a refused request, or else the message of `error`, with advice about tokens."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None) or _line(error)
    return message + (f": give a token with write access ({_TOKEN})" if status in (401, 403) else "")


def _line(error: BaseException | None) -> str:
    """Return the message of `error` on one line, or the name of its type if the message is empty."""
    return one_line(error) or type(error).__name__
