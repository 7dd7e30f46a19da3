"""Where a checkpoint comes from: a packaged asset, a local directory, or a Hugging Face Hub repository -> a directory.

Knows which files a checkpoint consists of, and of their content only the family that model_index.json names.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from tpusd.checkpoints import model_index, tokenizer
from tpusd.checkpoints.architecture import SCHEDULER_FILE
from tpusd.checkpoints.copies import PUBLISHED
from tpusd.checkpoints.files import Directory
from tpusd.checkpoints.hub_file import HubFile, check_cache, hub_file, refusal
from tpusd.config.assets import ASSETS
from tpusd.config.controls import ControlNet
from tpusd.config.schema import OtherPart
from tpusd.errors import UserError, show, show_path
from tpusd.families import registry
from tpusd.families.base import Component, Family
from tpusd.families.latent_diffusion import UNET, VAE

log = logging.getLogger(__name__)

_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
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
    @property
    def sha256(self) -> str | None: ...
    @property
    def file(self) -> str | None: ...
    @property
    def config(self) -> str | None: ...
    @property
    def prediction_type(self) -> str | None: ...
    @property
    def use_ema(self) -> bool: ...
    @property
    def unet(self) -> OtherPart: ...
    @property
    def vae(self) -> OtherPart: ...
    @property
    def clip_skip(self) -> int: ...
    @property
    def controlnets(self) -> tuple[ControlNet, ...]: ...


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """One of asset (a name inside the package), path (a directory or a file) and repo (owner/name on the Hub).

    The fields without a word here mean what they mean in ModelConfig.
    """

    asset: str | None = None
    path: str | None = None
    repo: str | None = None
    revision: str | None = None  # branch, tag or commit of the repo
    variant: str | None = None  # such as fp16
    sha256: str | None = None  # `weights_digest` of its files, if it is known
    file: str | None = None
    config: str | None = None
    prediction_type: str | None = None
    use_ema: bool = False
    unet: OtherPart = OtherPart()
    vae: OtherPart = OtherPart()
    clip_skip: int = 0
    controlnets: tuple[ControlNet, ...] = ()


class Gone(UserError):
    """The Hub has no such repository, or does not show it."""


class Unreachable(UserError):
    """The Hub does not answer, and the cache has not all of the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A directory on this machine, and for the Hub the commit that it is.

    replaced: parts whose weights come from elsewhere, and need not be there.
    """

    directory: Directory
    repo: str | None = None
    commit: str | None = None
    variant: str | None = None
    replaced: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class WeightFiles:
    """One part's weights in one format. `name`: the file, or the index of shards."""

    format: str  # "safetensors", "shards" or "msgpack"
    name: str
    variant: str | None


def resolve_source(source: CheckpointSource, *, only_cached: bool = False) -> Resolved:
    """Finds the checkpoint, downloading what it lacks. Raises UserError for all that a user can mend.

    only_cached: the Hub is not asked. Raises Unreachable if its cache has not all of the checkpoint.
    """
    if source.asset is not None:
        folder = ASSETS / source.asset
        if "/" in source.asset or "\\" in source.asset or not folder.is_dir():
            raise UserError(f"model.asset={show(source.asset)}: the package holds no such checkpoint; try model=tiny")
        return Resolved(directory=Directory(str(folder)), variant=source.variant, replaced=_replaced(source))
    if source.path is not None:
        return Resolved(directory=_local(source.path), variant=source.variant, replaced=_replaced(source))
    if source.repo is None:
        raise UserError(
            "model: has neither path nor repo; choose a model such as model=sd15, or model=local model.path=DIR"
        )
    return _hub(source, only_cached=only_cached)


def _replaced(source: CheckpointSource) -> frozenset[str]:
    """The parts that another network replaces."""
    others = {UNET: source.unet, VAE: source.vae}
    return frozenset(part for part, other in others.items() if other != OtherPart())


def is_single_file(source: CheckpointSource) -> bool:
    """Whether the source is one file. Raises UserError for a directory with a field of single files."""
    if source.file is not None or (source.path is not None and Path(source.path).expanduser().is_file()):
        return True
    for field, advice in (
        ("config", "leave it out"),
        ("prediction_type", "for a directory, sampler.prediction_type replaces what its scheduler's file says"),
        ("use_ema", "leave it out"),
    ):
        if value := getattr(source, field):
            raise UserError(f"model.{field}={show(value)}: is for a checkpoint in a single file; {advice}")
    return False


def is_pickle(path: Path) -> bool:
    """Whether a file's name is that of a pickle, which is never opened."""
    return path.suffix.lower() in _PICKLES


def local_or_hub_file(
    path: str | None, repo: str | None, file: str | None, revision: str | None, field: str
) -> HubFile:
    """A .safetensors file that is here. field: the group that names it, such as `model`. Raises UserError."""
    if path is None:
        assert repo is not None and file is not None
        return hub_file(repo, file, revision, field)
    found = Path(path).expanduser()
    if is_pickle(found):
        raise UserError(
            f"{field}.path={show_path(path)}: is a pickle, which can run code and is never opened; {_CONVERT_FILE}"
        )
    if found.suffix != ".safetensors":
        raise UserError(f"{field}.path={show_path(path)}: must be a .safetensors file, or a directory")
    return HubFile(found.resolve(), None)


def choose_all_weights(
    names: Mapping[str, Iterable[str]],
    family: Family,
    variant: str | None,
    where: str,
    replaced: frozenset[str] = frozenset(),
) -> dict[str, WeightFiles]:
    """The files of every part, by its name. Raises UserError.

    names: part -> the names in its folder.
    variant: a part that does not have it is read without it, as in diffusers, where another part has it. None: the only
        variant is read of a part that has no other weights.
    where: the checkpoint, for errors.
    replaced: parts that are left out, because their weights come from elsewhere.
    """
    components = {part: component for part, component in family.components.items() if part not in replaced}
    inside = {part: set(names[part]) for part in components}
    asked = {part: weight_files(inside[part], component, variant) for part, component in components.items()}
    some_have_it = variant is not None and any(asked.values())
    chosen = {}
    for part, component in components.items():
        found = asked[part]
        if found is None and some_have_it:
            found = weight_files(inside[part], component, None)
        if found is None and variant is None and len(only := variants(inside[part], component)) == 1:
            found = weight_files(inside[part], component, only[0])
        chosen[part] = found or _refuse(inside[part], component, variant, f"{where}/{part}")
    return chosen


def variant_notes(chosen: Mapping[str, WeightFiles], variant: str | None) -> tuple[str, ...]:
    """One line if a part is not read in the variant that was asked for."""
    others = {part: files.variant for part, files in chosen.items() if files.variant != variant}
    if not others:
        return ()
    if variant is None:
        listed = ", ".join(f"{part} as {other}" for part, other in others.items())
        return (f"model.variant is not set, and some weights are there only as a variant, which is read: {listed}",)
    listed = ", ".join(others)
    return (f"model.variant={show(variant)}: is missing in {listed}, so the weights without a variant are read there",)


def variants(names: Iterable[str], component: Component) -> list[str]:
    """The variants that a folder has whole files or an index of, sorted."""
    stem, number = component.weights, r"-\d+-of-\d+"
    file = re.compile(rf"{stem}\.(?![\w-]*{number}\.)([\w-]+)\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index\.([\w-]+)\.json")
    return sorted({m[1] for name in names if (m := file.fullmatch(name) or index.fullmatch(name))})


def _refuse(names: set[str], component: Component, variant: str | None, where: str) -> NoReturn:
    """Raises the UserError for a folder that has no weights of this variant."""
    torch = component.weights
    others = variants(names, component)
    if others and variant is None:
        raise UserError(f"{where}: has weights only as variant {' or '.join(others)}; set model.variant={others[0]}")
    plain = weight_files(names, component, None) is not None
    dot = f".{variant}" if variant is not None else ""
    if variant is not None and (plain or others):
        advice = f"set model.variant={others[0]}" if others and not plain else "leave model.variant unset"
        raise UserError(f"model.variant={show(variant)}: {where} has no {torch}{dot}.safetensors; {advice}")
    if pickles := sorted(n for n in names if n.endswith(_PICKLES)):
        raise UserError(
            f"{where}: has only pickled weights ({show(pickles[0])}), which can run code and are never opened; "
            + _CONVERT
        )
    raise UserError(f"{where}: has no weights ({torch}{dot}.safetensors missing); get the checkpoint again")


def weight_files(names: set[str], component: Component, variant: str | None) -> WeightFiles | None:
    """The weights of exactly this variant: safetensors, then shards, then msgpack. None if the folder has none."""
    dot = f".{variant}" if variant is not None else ""
    kinds = [
        ("safetensors", f"{component.weights}{dot}.safetensors"),
        ("shards", f"{component.weights}.safetensors.index{dot}.json"),
    ]
    if variant is None:
        kinds.append(("msgpack", f"{component.flax_weights}.msgpack"))
    return next((WeightFiles(format=kind, name=name, variant=variant) for kind, name in kinds if name in names), None)


def likely_family(names: Iterable[str]) -> Family:
    """The family whose parts a repository's folders are: known before anything is downloaded."""
    folders = {name.partition("/")[0] for name in names}

    def fit(family: Family) -> tuple[int, int]:
        present = folders & family.components.keys()
        return len(present), len(present) - len(family.components)

    return max(registry.FAMILIES, key=fit)


def needed_files(
    names: Iterable[str], family: Family, variant: str | None, where: str, replaced: frozenset[str] = frozenset()
) -> list[str]:
    """Those of a repository's files that a checkpoint of this family is read from. Raises UserError if it lacks one.

    names: all files of the repository. variant, where, replaced: as in `choose_all_weights`.
    """
    names = sorted(names)
    small = {model_index.FILE, SCHEDULER_FILE, *(f"{part}/config.json" for part in family.components)}
    small |= {f"{folder}/{name}" for folder in family.tokenizers for name in tokenizer.FILES}
    wanted = [name for name in names if name in small]
    inside = {
        part: [name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")]
        for part in family.components
    }
    for part, chosen in choose_all_weights(inside, family, variant, where, replaced).items():
        component = family.components[part]
        wanted.append(f"{part}/{chosen.name}")
        if chosen.format == "shards":
            dot = "" if chosen.variant is None else re.escape(f".{chosen.variant}")
            number = r"-\d+-of-\d+"
            shard = re.compile(
                rf"{component.weights}({dot}{number}|{number}{dot})\.safetensors"
            )  # both orders are in use
            wanted += [f"{part}/{name}" for name in inside[part] if shard.fullmatch(name)]
    return wanted


def _local(path: str) -> Directory:
    directory = Directory(path)
    if directory.path(model_index.FILE) is None:
        files = directory.names()
        single = [name for name in files if name.endswith(".safetensors")]
        pickled = [name for name in files if name.endswith(_PICKLES)]
        hint = "give the directory that holds model_index.json"
        if single:
            hint = f"if a single file is meant, write model.path={show_path(directory.root / single[0])}"
        elif pickled:
            hint = f"it holds {show(pickled[0])}, a pickle: {_CONVERT_FILE}"
        raise UserError(f"model.path={show_path(path)}: not a diffusers checkpoint (no model_index.json); {hint}")
    return directory


def _hub(source: CheckpointSource, *, only_cached: bool) -> Resolved:
    """A snapshot in the Hub's cache, complete for this variant. A pinned commit that is there needs no network."""
    import huggingface_hub  # a second to import
    from huggingface_hub import errors

    repo, revision = source.repo, source.revision
    assert repo is not None
    where = f"model.repo={show(repo)}"
    check_cache(where)
    try:
        if revision is not None and _COMMIT.fullmatch(revision) and (found := _cached(source, where)) is not None:
            return found
        if only_cached:
            raise Unreachable(f"{where}: is not in the cache of the Hub")
        try:
            info = huggingface_hub.HfApi().model_info(repo, revision=revision, timeout=20)
        except Exception as error:  # offline, a proxy, a timeout, 5xx: the HTTP libraries share no base class
            if (refused := refusal(error, repo, revision, "model")) is not None:
                gone = (errors.RepositoryNotFoundError, errors.DisabledRepoError)
                is_gone = isinstance(error, gone) and not isinstance(error, errors.GatedRepoError)
                raise (_gone(repo, refused) if is_gone else refused) from None
            return _offline(source, where, error)
        names = [file.rfilename for file in info.siblings or ()]
        if model_index.FILE not in names:
            single = [name for name in names if name.endswith(".safetensors")]
            hint = f"for a single file, set model.file={show(single[0])}" if single else "choose another repository"
            raise UserError(f"{where}: has no model_index.json, so it is not a diffusers checkpoint; {hint}")
        replaced = _replaced(source)
        wanted = needed_files(names, likely_family(names), source.variant, where, replaced)
        log.info("%s: commit %s", repo, info.sha)
        # By the user's name for it, not by info.sha: only then can the cache resolve a branch when offline.
        root = huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=[_literal(name) for name in wanted]
        )
        directory = Directory(root)
        if directory.root.name != info.sha:  # after some HTTP errors the library hands out an older copy
            raise UserError(f"{where}: commit {info.sha} could not be downloaded whole; run again")
        return Resolved(directory=directory, repo=repo, commit=info.sha, variant=source.variant, replaced=replaced)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{where}: the download failed ({type(error).__name__}: {show(str(error), 160)}); run again to continue"
        ) from None


def _gone(repo: str, refused: UserError) -> Gone:
    """Of a repository that is not there: with its mirror, where its owner is known to have removed it."""
    if (known := PUBLISHED.get(repo)) is None or not known.removed:
        return Gone(str(refused))
    mirror = f"model.repo={known.copies[0].repo} model.revision={known.copies[0].commit}"
    return Gone(f"model.repo={show(repo)}: its owner removed it; a mirror is {mirror}")


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
        if not _whole(directory, source, where):
            return None
    except (errors.LocalEntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError, UserError):
        return None
    return Resolved(
        directory=directory,
        repo=source.repo,
        commit=directory.root.name,
        variant=source.variant,
        replaced=_replaced(source),
    )


def _whole(directory: Directory, source: CheckpointSource, where: str) -> bool:
    """Whether an interrupted download left nothing out. A file in the cache is complete or absent."""
    family, _ = model_index.read_family(directory)
    folders = (*family.components, *family.tokenizers, SCHEDULER_FILE.partition("/")[0])
    names = [f"{folder}/{name}" for folder in folders for name in directory.names(folder)]
    needed = needed_files(names, family, source.variant, where, _replaced(source))
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
        raise Unreachable(
            f"{where}: the Hub cannot be reached ({type(error).__name__}) and the cache does not hold all of this "
            "checkpoint; connect once, or use model=local model.path=DIR"
        )
    log.warning("%s: the Hub cannot be reached; using the cached commit %s", source.repo, found.commit)
    return found


def _literal(name: str) -> str:
    """A file name as a pattern that matches it alone."""
    return re.sub(r"([*?\[])", r"[\1]", name)
