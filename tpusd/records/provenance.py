"""What a run was made on and with: all that decides its pixels, and all that might. Knows nothing of files of a run.

Of the environment only the variables named here are read, so that no secret can reach a file.
"""

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from tpusd import __version__
from tpusd.config.typed import flatten
from tpusd.errors import UserError, show

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "transformers", "tokenizers", "pillow")
KEY_DERIVATION = 1  # which rule tpusd.engine.noise follows; it changes only with the noise of every image
# Environment variables that can change what is computed, and none that can hold a secret.
FLAG_VARIABLES = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "JAX_DEFAULT_MATMUL_PRECISION",
    "JAX_ENABLE_X64",
    "JAX_THREEFRY_PARTITIONABLE",
    "NVIDIA_TF32_OVERRIDE",
)
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|AUTH", re.I)
_SECRET_TEXT = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\b(?:sk|ghp|gho|ghs|glpat)[-_][A-Za-z0-9_-]{20,}|(?<=://)[^/\s:@]+:[^/\s@]+@"
)


class Device(Protocol):
    """What is recorded of a jax.Device."""

    @property
    def platform(self) -> str: ...
    @property
    def device_kind(self) -> str: ...


class Identity(Protocol):
    """Which bytes a checkpoint is: see `tpusd.checkpoints.Identity`."""

    @property
    def repo(self) -> str | None: ...
    @property
    def commit(self) -> str | None: ...
    @property
    def variant(self) -> str | None: ...
    @property
    def sha256(self) -> Mapping[str, str]: ...


class HasIdentity(Protocol):
    @property
    def identity(self) -> Identity: ...


@dataclass(frozen=True, kw_only=True)
class BatchProvenance:
    """What made a batch of images, whoever ran it.

    environment: as `describe_environment` gives it.
    programs: name -> sha256 of the compiled programs.
    checkpoint: as `describe_checkpoint` gives it, with the sha256 of each file.
    loras, embeddings: where each comes from, and its sha256.
    """

    environment: Mapping[str, Any]
    programs: Mapping[str, str]
    checkpoint: Mapping[str, Any]
    loras: Sequence[Mapping[str, Any]] = ()
    embeddings: Sequence[Mapping[str, Any]] = ()

    @property
    def weights(self) -> str:
        """`weights_digest` of the checkpoint."""
        weights: str = self.environment["weights"]
        return weights


def describe_environment(
    devices: Sequence[Device],
    batch_size_per_device: int,
    weights: str,
    settings: Mapping[str, Any] | None = None,
    loras: Sequence[str] = (),
    embeddings: Sequence[str] = (),
) -> dict[str, Any]:
    """What decides a pixel, or its last bit, besides the recipe.

    devices: those that make the images.
    batch_size_per_device: images.
    weights: `weights_digest` of the checkpoint.
    settings: of JAX, those that do not have their usual values.
    loras, embeddings: the sha256 of each LoRA and embedding; without one there is no such field.
    """
    environment = {
        "versions": versions(),
        "key_derivation": KEY_DERIVATION,
        "weights": weights,
        "devices": describe_devices(devices),
        "batch_size_per_device": batch_size_per_device,
        "flags": flags(),
        "git": git_state(Path(__file__).resolve().parents[2]),
    }
    own = {"settings": dict(settings or {}), "loras": list(loras), "embeddings": list(embeddings)}
    return environment | {name: value for name, value in own.items() if value}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """`versions.jax: 0.10.2 -> 0.12.0` for everything in which two environments of run.json differ."""
    was, now = dict(flatten(before)), dict(flatten(after))
    for name in sorted(was.keys() | now.keys()):
        # A program that one of the two did not need says nothing.
        needed = not name.startswith("programs.") or (name in was and name in now)
        if needed and was.get(name) != now.get(name):
            yield f"{name}: {_short(was.get(name))} -> {_short(now.get(name))}"


def environment_id(environment: Mapping[str, Any]) -> str:
    """The short name under which run.json keeps an environment and the manifest refers to it: equal ones share it."""
    return hashlib.sha256(json.dumps(environment, sort_keys=True).encode()).hexdigest()[:12]


@functools.cache
def versions() -> dict[str, str | None]:
    """The versions of the packages that may decide a pixel; None: not installed."""
    return {"tpusd": __version__, "python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def describe_devices(devices: Sequence[Device]) -> dict[str, Any]:
    return {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)}


def flags(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of FLAG_VARIABLES that are set; flags that only say where to write are left out."""
    found = {name: environ[name] for name in FLAG_VARIABLES if environ.get(name)}
    kept = {
        name: " ".join(word for word in value.split() if not word.startswith("--xla_dump"))
        for name, value in found.items()
    }
    return {name: scrub(value, environ) for name, value in kept.items() if value}


@functools.cache
def git_state(root: Path) -> dict[str, Any] | None:
    """The commit of the checkout that the package runs from, and whether files differ from it; None: no checkout."""
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    status = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit.strip(), "dirty": None if status is None else bool(status.strip())}


def describe_checkpoint(checkpoint: HasIdentity, sha256: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Repository, commit and variant, and the sha256 of each file where they are known."""
    identity = checkpoint.identity
    described = {"repo": identity.repo, "commit": identity.commit, "variant": identity.variant}
    return described if sha256 is None else described | {"sha256": dict(sha256)}


def hash_checkpoint(checkpoint: HasIdentity) -> Mapping[str, str]:
    """File -> sha256. Reads every weight. Raises UserError."""
    try:
        return checkpoint.identity.sha256
    except OSError as error:
        raise UserError(f"model: a file of the checkpoint went away while it was read: {error}") from None


def scrub(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without the values of variables whose names say that they are secret, and without what looks like one."""
    secrets = {value for name, value in environ.items() if len(value) >= 8 and _SECRET_NAME.search(name)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _SECRET_TEXT.sub("***", text)


def _short(value: object) -> str:
    text = show(value)
    return text[:12] + "..." if len(text) in (40, 64) else text


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(root: Path, *arguments: str) -> str | None:
    """Output of a git command that runs no hook or helper of the checkout; None where git is not there or refuses."""
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
