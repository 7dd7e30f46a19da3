"""Metrics of a whole set of pictures against a reference: a folder of pictures, another run, or a file of features."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from tpusd import storage
from tpusd.errors import UserError, show, show_path
from tpusd.records.directory import check_run_directory
from tpusd.records.layout import CONFIG
from tpusd.records.manifest import ImageRecord, read_manifest
from tpusd.records.set_scores import SetScore, digest_of
from tpusd.scores.base import Place
from tpusd.scores.kept import keep, read_kept
from tpusd.scores.metrics.clip import clip_at
from tpusd.scores.scoring import NOT_SCORED, read_picture
from tpusd.storage.pictures import PictureError, open_picture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_FEATURE_BYTES = 8 << 30  # of an npz file, unpacked
ARRAYS = ("features", "mu", "sigma")  # of an npz file
MIN_PICTURES = 2
CLIP_L_336 = Place(repo="openai/clip-vit-large-patch14-336", revision="ce19dc912ca5cd21c8a653c79e251e808ccabcd1")


class Embed(Protocol):
    """Pictures -> features (n,d). weights: their sha256."""

    @property
    def weights(self) -> str: ...

    def __call__(self, pictures: "Iterator[Image.Image]", /) -> "NDArray[np.floating[Any]]": ...


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What a set is compared with: features (n,d), or for FID alone their mean and covariance, and their number."""

    features: Any
    gaussian: Any
    num_pictures: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SetMetric:
    """As `Metric`, of a whole set.

    embed: the places of its weights -> its features.
    network: what its features are of; metrics of one network share them.
    takes_features: whether the user may give those of the run, of another program.
    needs_features: of the reference; else their mean and covariance do too.
    distance: the features of the set, and the reference -> a value.
    """

    name: str
    about: str
    range: str
    better: Literal["higher", "lower"] | None = "lower"
    needs: str
    paper: str
    places: Mapping[str, Place] = field(default_factory=dict)
    embed: Callable[[Mapping[str, Place]], Embed]
    network: str
    takes_features: bool = False
    needs_features: bool = True
    distance: "Callable[[NDArray[np.floating[Any]], Reference], float]"


@dataclass(frozen=True)
class _ClipFeatures:
    clip: Any

    @property
    def weights(self) -> str:
        weights: str = self.clip.sha256
        return weights

    def __call__(self, pictures: "Iterator[Image.Image]", /) -> "NDArray[np.floating[Any]]":
        from tpusd.vision.clip import unit

        features: NDArray[np.floating[Any]] = unit(self.clip.image_features(pictures))
        return features


# Network, weights and run -> the features of its pictures.
Known = dict[tuple[str, str, Path], "NDArray[np.floating[Any]]"]


def score_set(
    path: Path,
    metric: SetMetric,
    embed: Embed | None,
    features: Path | None,
    reference: Path,
    known: Known | None = None,
) -> tuple[SetScore, list[str]]:
    """(the score of the run directory `path`, a line for each picture that was left out). Raises UserError.

    embed: of the metric; None: `features` has those of the run's images, a row each, by row and copy.
    reference: a folder of pictures, a run directory, or an npz file with `features`, or `mu` and `sigma`.
    known: features that are computed already; gets those of this run.
    """
    check_run_directory(path)
    records = sorted(read_manifest(path), key=lambda record: record.key)
    faults: list[str] = []
    if embed is None:
        own = _given_features(features, metric, len(records))
    else:
        known, key = {} if known is None else known, (metric.network, embed.weights, path)
        if key not in known:
            known[key] = _embedded(embed, _pictures_of(path, records, faults), path)
        own = known[key]
    found = read_reference(reference, embed, metric, own.shape[1])
    score = SetScore(
        metric=metric.name,
        weights=None if embed is None else embed.weights,
        reference=str(reference),
        reference_sha256=found.sha256,
        num_images=len(own),
        num_reference=found.num_pictures,
        images=digest_of(records),
        value=metric.distance(own, found),
    )
    return score, faults


def check_reference(path: Path, metric: SetMetric) -> None:
    """What can be known of a reference before anything is computed. Raises UserError."""
    if _is_npz(path) and metric.needs_features:
        where = f"reference={show_path(path)}"
        if "features" not in _shapes(path, where):
            raise UserError(f"{where}: {metric.name} needs `features`, and the file has only their mean and covariance")


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def read_reference(path: Path, embed: Embed | None, metric: SetMetric, width: int) -> Reference:
    """width: numbers that the run has for each picture. Raises UserError."""
    check_reference(path, metric)
    if _is_npz(path):
        return _read_npz(path, f"reference={show_path(path)}", width)
    if embed is None:
        raise UserError(
            f"reference={show_path(path)}: must be an .npz file where features= is given; or remove features="
        )
    wanted = _digest_in(path)
    features = read_kept(metric.network, embed.weights, wanted)
    if features is not None:
        return Reference(features=features, gaussian=None, num_pictures=len(features), sha256=wanted)
    digest, faults = hashlib.sha256(), list[str]()
    features = _embedded(embed, _pictures_in(path, digest, faults), path)
    if faults:
        raise UserError(f"{faults[0]}; remove it from the reference")
    keep(metric.network, embed.weights, digest.hexdigest(), features)
    return Reference(features=features, gaussian=None, num_pictures=len(features), sha256=digest.hexdigest())


def _embedded(embed: Embed, pictures: "Iterator[Image.Image]", path: Path) -> "NDArray[np.floating[Any]]":
    features = embed(pictures)
    if len(features) < MIN_PICTURES:
        raise UserError(f"{show_path(path)}: has {len(features)} pictures, and a set must have {MIN_PICTURES} or more")
    return features


def _pictures_of(path: Path, records: Sequence[ImageRecord], faults: list[str]) -> "Iterator[Image.Image]":
    for record in records:
        picture = read_picture(path, record)
        if isinstance(picture, str):
            faults.append(f"{record.file_name}: {NOT_SCORED}: {picture}")
        else:
            yield picture.image


def _pictures_in(path: Path, digest: "hashlib._Hash", faults: list[str]) -> "Iterator[Image.Image]":
    """The pictures of a run, or of a folder by their names. digest: gets the sha256 of each."""
    if storage.file_size(path / CONFIG) is not None:
        records = sorted(read_manifest(path), key=lambda record: record.key)
        for record in records:
            digest.update(record.sha256.encode())
        yield from _pictures_of(path, records, faults)
        return
    for name in _names_in(path):
        try:
            digest.update(storage.file_sha256(path / name).encode())
            with open_picture(path / name) as image:
                image.load()
                copied = image.copy()
            yield copied
        except PictureError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{show_path(path / name)}: cannot be read: {error.strerror}")


def _names_in(path: Path) -> list[str]:
    """The pictures of a folder. Raises UserError."""
    try:
        return [name for name in storage.list_directory(path) if Path(name).suffix.lower() in SUFFIXES]
    except OSError as error:
        raise UserError(f"reference={show_path(path)}: cannot be read: {error.strerror}") from None


def _digest_in(path: Path) -> str:
    """What `_pictures_in` gives its digest, without opening pictures. Raises UserError."""
    digest = hashlib.sha256()
    if storage.file_size(path / CONFIG) is not None:
        records = sorted(read_manifest(path), key=lambda record: record.key)
        digests = iter([record.sha256 for record in records])
    else:
        digests = (_sha256_of(path / name) for name in _names_in(path))
    for one in digests:
        digest.update(one.encode())
    return digest.hexdigest()


def _sha256_of(file: Path) -> str:
    try:
        return storage.file_sha256(file)
    except OSError:
        return "unreadable"  # which is found, and named, when the pictures are read


def _given_features(path: Path | None, metric: SetMetric, num_images: int) -> Any:
    assert path is not None
    where = f"features={show_path(path)}"
    found = _read_npz(path, where).features
    if found is None or len(found) != num_images:
        number = "no features" if found is None else f"{len(found)} rows"
        raise UserError(f"{where}: has {number}, and the run has {num_images} images; give a row for each image")
    return found


@contextmanager
def _npz_errors(where: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{where}: is not a readable npz file of numbers ({show(str(error))})") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror or error}") from None


def _shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays, from their headers: nothing else is unpacked. Raises UserError."""
    from numpy.lib import format as npy

    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    found: dict[str, tuple[int, ...]] = {}
    with _npz_errors(where), zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        for name in ARRAYS:
            if (entry := entries.get(f"{name}.npy")) is None:
                continue
            with archive.open(entry) as file:
                shape, _, dtype = readers.get(npy.read_magic(file), npy.read_array_header_2_0)(file)
                if dtype.hasobject:
                    raise ValueError(f"{name} holds objects")
                promised = math.prod(shape) * dtype.itemsize
                if promised != entry.file_size - file.tell():
                    raise UserError(f"{where}: {name} has more or fewer bytes than its header says; write it again")
            found[name] = shape
        if sum(entries[f"{name}.npy"].file_size for name in found) > MAX_FEATURE_BYTES:
            raise UserError(f"{where}: is over {MAX_FEATURE_BYTES >> 30} GiB unpacked; give fewer features")
    return found


def _read_npz(path: Path, where: str, width: int | None = None) -> Reference:
    """width: numbers for each picture; None: any. Raises UserError."""
    import numpy as np

    from tpusd.scores.distances import Gaussian, is_covariance

    shapes = _shapes(path, where)
    for name, shape in shapes.items():
        if width is not None and shape and shape[-1] != width:
            raise UserError(
                f"{where}: {name} is of {shape[-1]} numbers for each picture, and the run has {width}; give those of "
                "the same network"
            )
    with _npz_errors(where):
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in shapes}
        sha256 = storage.file_sha256(path)
    for name, array in found.items():
        if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
            raise UserError(f"{where}: {name} is not an array of finite floats; write it again")
    features, mu, sigma = (found.get(name) for name in ("features", "mu", "sigma"))
    if features is not None and features.ndim == 2 and len(features) >= MIN_PICTURES:
        return Reference(features=features, gaussian=None, num_pictures=len(features), sha256=sha256)
    if mu is not None and sigma is not None and mu.ndim == 1 and sigma.shape == (len(mu), len(mu)):
        gaussian = Gaussian(mu.astype(np.float64), sigma.astype(np.float64))
        if not is_covariance(gaussian.covariance):
            raise UserError(f"{where}: sigma is not a covariance: it must be symmetric, without negative eigenvalues")
        return Reference(features=None, gaussian=gaussian, num_pictures=0, sha256=sha256)
    raise UserError(f"{where}: has neither `features` (pictures, numbers) nor `mu` and `sigma`; write one of them")


def _inception(places: Mapping[str, Place]) -> Embed:
    path = places["inception"].path
    if path is None:
        raise UserError(
            "metric=fid, metric=kid: give inception.path=FILE, the weights of InceptionV3 "
            "(pt_inception-2015-12-05-6726825d.pth; docs/scores.md says where it is), or features=FILE.npz"
        )
    from tpusd.vision.inception import load_inception  # brings JAX with it

    return load_inception(path)


_INCEPTION: Any = {
    "places": {"inception": Place()},
    "embed": _inception,
    "network": "inception",
    "takes_features": True,
}


def _fid(own: "NDArray[np.floating[Any]]", reference: Reference) -> float:
    from tpusd.scores.distances import frechet_distance, gaussian

    other = gaussian(reference.features) if reference.gaussian is None else reference.gaussian
    return frechet_distance(gaussian(own), other)


def _kid(own: "NDArray[np.floating[Any]]", reference: Reference) -> float:
    from tpusd.scores.distances import kernel_distance

    return kernel_distance(own, reference.features)


def _cmmd(own: "NDArray[np.floating[Any]]", reference: Reference) -> float:
    from tpusd.scores.distances import gaussian_distance

    return gaussian_distance(own, reference.features)


SET_METRICS: Mapping[str, SetMetric] = {
    metric.name: metric
    for metric in (
        SetMetric(
            name="cmmd",
            about="how far the run's pictures are from a reference, by CLIP's features and a Gaussian kernel",
            range="0 (alike) and more",
            needs=f"`reference=` a folder of pictures, a run or an .npz of `features`; `{CLIP_L_336.repo}` (1.7 GB)",
            paper="[Jayasumana et al. 2024](https://arxiv.org/abs/2401.09603)",
            network="clip",
            places={"cmmd": CLIP_L_336},
            embed=lambda places: _ClipFeatures(clip_at(places["cmmd"], "cmmd")),
            distance=_cmmd,
        ),
        SetMetric(
            name="fid",
            about="the distance of two Gaussians, the run's and a reference's, by InceptionV3's features",
            range="0 (alike) and more",
            needs="`inception.path=FILE` (96 MB); `reference=` as CMMD, or `mu` and `sigma`; 10,000 pictures or more",
            paper="[Heusel et al. 2017](https://arxiv.org/abs/1706.08500)",
            needs_features=False,
            distance=_fid,
            **_INCEPTION,
        ),
        SetMetric(
            name="kid",
            about="as FID, with a polynomial kernel: less bias for few pictures",
            range="about 0 (alike) and more",
            needs="`inception.path=FILE` (96 MB) and `reference=` as CMMD",
            paper="[Binkowski et al. 2018](https://arxiv.org/abs/1801.01401)",
            distance=_kid,
            **_INCEPTION,
        ),
    )
}
