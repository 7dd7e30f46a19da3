"""`shard=i/n`, `rows=START:STOP`: which part of a run a process makes. Pure: knows nothing of images and of disks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tpusd.errors import UserError, show

MAX_SHARDS = 100_000
_SHARD = re.compile(r"(\d{1,9})/(\d{1,9})")
_AUTO = re.compile(r"auto(?:/(\d{1,9}))?")
_ROWS = re.compile(r"(\d{0,9}):(\d{0,9})")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
_SKYPILOT = ("SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES")
_SLICES = ("MEGASCALE_SLICE_ID", "MEGASCALE_NUM_SLICES")  # of a TPU multislice, as JobSet's are on GKE
_TPU = ("TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES")
_INDEX = "JOB_COMPLETION_INDEX"  # of a Kubernetes Indexed Job, which does not say how many there are


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One of `count` parts of a run, or of a sweep. index: from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_rows(text: str) -> tuple[int, int | None]:
    """`2:5` -> (2, 5); a side that is left out is the set's own. Raises UserError."""
    match = _ROWS.fullmatch(text)
    if match is None or text == ":":
        raise UserError(f"rows={show(text)}: must be START:STOP, such as 100:200 for rows 100 to 199; 100: has no end")
    start, stop = int(match[1] or 0), int(match[2]) if match[2] else None
    if stop is not None and stop <= start:
        raise UserError(f"rows={show(text)}: holds no row, because STOP is the first row left out; use a larger STOP")
    return start, stop


def check_shard(text: str) -> None:
    """Raises UserError for a value of `shard` that is wrong wherever the process runs."""
    auto = _AUTO.fullmatch(text)
    if auto is None:
        _parse(text)
    elif auto[1] is not None:
        _check_count(text, int(auto[1]))


def parse_shard(text: str, environ: Mapping[str, str]) -> Shard:
    """The value of `shard`; `auto` and `auto/n` ask the variables that schedulers set. Raises UserError."""
    check_shard(text)
    auto = _AUTO.fullmatch(text)
    return _parse(text) if auto is None else _auto(text, environ, None if auto[1] is None else int(auto[1]))


def _parse(text: str) -> Shard:
    match = _SHARD.fullmatch(text)
    if match is None:
        raise UserError(f"shard={show(text)}: must be i/n, such as 1/4 for the first of four parts, or auto")
    index, count = int(match[1]), int(match[2])
    _check_count(text, count)
    if not 1 <= index <= count:
        raise UserError(f"shard={show(text)}: the parts of {count} are 1/{count} to {count}/{count}; use one of them")
    return Shard(index=index, count=count)


def _check_count(text: str, count: int) -> None:
    if not 1 <= count <= MAX_SHARDS:
        raise UserError(f"shard={show(text)}: a run has 1 to {MAX_SHARDS} shards")


def _auto(text: str, environ: Mapping[str, str], count: int | None) -> Shard:
    """From the environment. count: as the user says it; None: as the scheduler does."""
    said = {_SLURM[0]: _slurm(environ), _SKYPILOT[0]: _pair(environ, *_SKYPILOT), _TPU[0]: _tpu(environ)}
    found = {name: shard for name, shard in said.items() if shard is not None}
    if count is not None and _INDEX in environ:
        found.setdefault(_INDEX, _shard(_INDEX, _number(environ, _INDEX), count))
    several = {name: shard for name, shard in found.items() if shard.count > 1} or found
    if len(set(several.values())) > 1:
        listed = ", ".join(f"{name} means {shard}" for name, shard in several.items())
        raise UserError(f"shard={text}: the environment is not clear: {listed}; write shard=i/n")
    for name, shard in several.items():
        if count not in (None, shard.count):
            raise UserError(f"shard={text}: {name} means {shard}, which is not one of {count}; write shard=i/n")
        return shard
    if _INDEX in environ:
        raise UserError(
            f"shard=auto: {_INDEX} is set, and a Kubernetes Job does not say how many there are; write shard=auto/n, "
            "with n as the Job's completions"
        )
    raise UserError(
        "shard=auto: no scheduler numbers this process, as a Slurm array, a Kubernetes Indexed Job, a TPU slice and "
        "SkyPilot do; write shard=i/n"
    )


def _slurm(environ: Mapping[str, str]) -> Shard | None:
    if _SLURM[0] not in environ or _SLURM[1] not in environ:
        return None
    number, count = _number(environ, _SLURM[0]), _number(environ, _SLURM[1])
    first = _number(environ, _SLURM[2]) if _SLURM[2] in environ else 0
    step = _number(environ, _SLURM[3]) if _SLURM[3] in environ else 1
    index, rest = divmod(number - first, max(1, step))
    if rest or not 0 <= index < count:
        raise UserError(
            f"shard=auto: task {number} of a Slurm array of {count} tasks from {first} on has no place in line; use an "
            f"array without gaps, such as --array=1-{count}, or write shard=i/n"
        )
    return Shard(index=index + 1, count=count)


def _tpu(environ: Mapping[str, str]) -> Shard | None:
    """The hosts of all slices, slice by slice."""
    if not all(environ.get(name) for name in _TPU):
        return None
    hosts = len(environ[_TPU[1]].split(","))
    host = _shard(_TPU[0], _number(environ, _TPU[0]), hosts)
    slice_ = _pair(environ, *_SLICES)
    if slice_ is None:
        return host
    return Shard(index=(slice_.index - 1) * hosts + host.index, count=slice_.count * hosts)


def _pair(environ: Mapping[str, str], index: str, count: str) -> Shard | None:
    if index not in environ or count not in environ:
        return None
    return _shard(index, _number(environ, index), _number(environ, count))


def _shard(name: str, number: int, count: int) -> Shard:
    """number: from 0."""
    if not 0 <= number < count <= MAX_SHARDS:
        raise UserError(f"shard=auto: {name}={number} is not one of {count} from 0 on; write shard=i/n")
    return Shard(index=number + 1, count=count)


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ[name].strip()
    if not re.fullmatch(r"\d{1,9}", value):
        raise UserError(f"shard=auto: {name}={show(value)} is not a whole number; write shard=i/n")
    return int(value)
