"""One file of a repository on the Hugging Face Hub -> a path in the Hub's cache, and the commit that it is of."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

from tpusd.errors import UserError, show

log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class HubFile(NamedTuple):
    """A file that is here, and the commit of the repository that it is of, if it came from one."""

    path: Path
    commit: str | None


class NoSuchFile(UserError):
    """The repository has no such file."""


def hub_file(repo: str, file: str, revision: str | None, field: str) -> HubFile:
    """Downloads a file, unless the cache has it. A pinned commit that is there needs no network. Raises UserError.

    field: the group of the config's fields that name it, such as `model` for model.repo, model.revision and model.file.
    Raises NoSuchFile where the repository does not have it.
    """
    import huggingface_hub  # a second to import
    from huggingface_hub import errors

    where = f"{field}.repo={show(repo)}"
    check_cache(where)
    pinned = revision is not None and _COMMIT.fullmatch(revision) is not None
    if pinned and (found := _cached(repo, file, revision)) is not None:
        return found
    if pinned and _is_known_to_be_missing(repo, file, revision):
        raise _no_such_file(repo, file, revision, field)
    try:
        path = Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    except Exception as error:  # offline, a proxy, a timeout, 5xx: the HTTP libraries share no base class
        if (refused := refusal(error, repo, revision, field)) is not None:
            raise refused from None
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            raise _no_such_file(repo, file, revision, field) from None
        if (found := _cached(repo, file, revision)) is None:
            raise UserError(
                f"{where}: the Hub cannot be reached ({type(error).__name__}) and the cache does not hold "
                f"{show(file)}; connect once, or download the file and give its path"
            ) from None
        log.warning("%s: the Hub cannot be reached; using the cached commit %s", repo, found.commit)
        return found
    return _of_snapshot(path, file)


def _no_such_file(repo: str, file: str, revision: str | None, field: str) -> NoSuchFile:
    return NoSuchFile(
        f"{field}.file={show(file)}: {show(repo)} has no such file; "
        f"see https://huggingface.co/{show(repo)}/tree/{show(revision or 'main')}"
    )


def check_cache(where: str) -> None:
    """Raises UserError, whose line begins with `where`, for a user without a home and without another place."""
    from huggingface_hub import constants

    if str(constants.HF_HUB_CACHE).startswith("~"):
        raise UserError(
            f"{where}: downloads are kept in the user's home, and this user has none; set HF_HOME=DIRECTORY"
        )


def refusal(error: Exception, repo: str, revision: str | None, field: str) -> UserError | None:
    """What the user can do where the Hub refuses a repository or its revision; None for any other error.

    field: as in `hub_file`.
    """
    from huggingface_hub import errors

    where = f"{field}.repo={show(repo)}"
    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError: must come first
        return UserError(
            f"{where}: gated; accept its terms at https://huggingface.co/{show(repo)}, then log in with: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.DisabledRepoError):
        return UserError(
            f"{where}: no such repository, or a private one; check the name, or log in with: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{field}.revision={show(revision)}: {show(repo)} has no such branch, tag or commit; "
            f"see https://huggingface.co/{show(repo)}/commits"
        )
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{where}: not the name of a repository ({show(str(error), 160)}); it must be owner/name")
    return None


def _cached(repo: str, file: str, revision: str | None) -> HubFile | None:
    import huggingface_hub

    path = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
    return _of_snapshot(Path(path), file) if isinstance(path, str) else None


def _is_known_to_be_missing(repo: str, file: str, revision: str | None) -> bool:
    """Whether the cache has noted that a commit does not have the file."""
    import huggingface_hub

    return huggingface_hub.try_to_load_from_cache(repo, file, revision=revision) is huggingface_hub._CACHED_NO_EXIST


def _of_snapshot(path: Path, file: str) -> HubFile:
    """The cache has a file at snapshots/COMMIT/file."""
    return HubFile(path, path.parents[len(Path(file).parts) - 1].name)
