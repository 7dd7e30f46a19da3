"""One shard's share of a run directory: it writes files of its own there, and shares the others under a lock.

    shards/lock            held for moments, by the shard that reads or writes what all share
    shards/2-of-3.log      its log, and the lock that keeps a second process off this shard
    shards/2-of-3.jsonl    its manifest lines
    shards/2-of-3.json     its run.json

Each shard also shares the lock of run.log, which a process that makes the whole run takes for itself. So shards never
work beside such a process, and such a process finds their files at rest: it joins them with the run's own.
"""

import contextlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tpusd import storage
from tpusd.config.limits import MAX_COPIES
from tpusd.config.schema import SavedConfig, config_values
from tpusd.config.shards import Shard
from tpusd.config.yaml_files import to_yaml
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import Stripe, parse_name, planned
from tpusd.records.directory import (
    DirectoryLog,
    RunDir,
    check_folders,
    close_quietly,
    refuse_taken,
    temporary_images,
)
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import (
    CHECK_PERMISSIONS,
    CHOOSE_ANOTHER,
    CONFIG,
    HYDRA,
    IMAGES,
    LOG,
    MAKE_ROOM,
    MANIFEST,
    RUN,
    SHARDS,
    SHARDS_LOCK,
    SWEEP,
    SWEEP_LOG,
)
from tpusd.records.manifest import ImageRecord, key_of, manifest_lines, parse_line, records_of
from tpusd.records.parts import FACTS, LINES, lines_of, part_name, shards_of
from tpusd.records.parts import LOG as PART_LOG
from tpusd.records.prompt_file import write_config_files
from tpusd.records.run_json import read_facts, read_run
from tpusd.records.saved import read_config, read_saved, refuse_other_run
from tpusd.records.sweep import Sweep, is_sweep, read_sweep, refuse_other_sweep, write_sweep
from tpusd.storage import os_errors_as_user_errors
from tpusd.storage.local import LineFile


class ShardDir(RunDir):
    """A run directory as one of its shards has it open."""

    def __init__(self, path: Path, stripe: Stripe):
        """Raises UserError where another process makes this shard, or the whole run, and OSError."""
        self.stripe = stripe
        self.LOG, self.MANIFEST, self.RUN = (part_name(stripe.shard, suffix) for suffix in (PART_LOG, LINES, FACTS))
        self._run_log = LineFile(path / LOG)
        try:
            if not self._run_log.lock(shared=True):
                raise UserError(
                    f"{show_path(path)}: another process is working on this whole run; wait until it ends, or stop it"
                )
            super().__init__(path, kind=f"shard {stripe.shard} of this run")
        except BaseException:
            self._run_log.close()
            raise

    @classmethod
    def join(
        cls,
        path: Path,
        stripe: Stripe,
        config: SavedConfig | None = None,
        *,
        hydra_files: Mapping[str, Any] | None = None,
    ) -> "ShardDir":
        """Opens the directory that the shards share, and makes it if this one is the first. Raises UserError.

        config: of the whole run, which must be the one that the directory has; None: that one, whichever it is.
        hydra_files: name in .hydra/ -> text or plain values, for a new directory.
        """
        _check_config(path, config)  # before anything is made
        with os_errors_as_user_errors(path, CHOOSE_ANOTHER):
            _make_shared(path, CONFIG)
            with shared_files(path):
                _refuse_other_count(path, stripe)
                for name in (IMAGES, HYDRA):
                    with contextlib.suppress(FileExistsError):
                        storage.make_directory(path / name)
                if not _check_config(path, config):
                    for name, values in (hydra_files or {}).items():
                        text = values if isinstance(values, str) else to_yaml(values)
                        storage.write_file(path / HYDRA / name, text.encode())
                    assert config is not None
                    write_config_files(path, config_values(config))
                return cls(path, stripe)

    def write_config(self, values: Mapping[str, Any]) -> None:
        with shared_files(self.path):
            super().write_config(values)

    def write_weights(self, values: Mapping[str, Any]) -> None:
        """The sha256 of the weights, in the config that all shards share. Raises UserError where theirs is another."""
        sha256 = values["model"]["sha256"]
        with shared_files(self.path):
            shared = read_config(self.path)
            there = shared["model"].get("sha256")
            if there not in (None, sha256):
                raise UserError(
                    f"model={show(values['model']['name'])}: has other files here than for the shards before: sha256 "
                    f"{sha256[:12]}..., not {show(there)[:12]}...; give all shards the same checkpoint"
                )
            if there is None:
                super().write_config(shared | {"model": shared["model"] | {"sha256": sha256}})

    def append_dropped(self, values: Mapping[str, Any]) -> None:
        with shared_files(self.path):
            super().append_dropped(values)

    def waste(self) -> list[Path]:
        """What interrupted writes of this shard left. Those of others may be at work."""
        own = [self.path / f"{name}{storage.TEMPORARY}" for name in (self.MANIFEST, self.RUN)]
        images = temporary_images(self.path / IMAGES)
        mine = [file for name, file in images if self.stripe.has(*parse_name(name))]
        return [file for file in own if storage.exists(file)] + mine

    def lines(self) -> Iterator[tuple[str, int, bytes]]:
        """(file, number, line) of this shard: its own, and those that earlier shards left in the run's manifest."""
        seen = set()
        with os_errors_as_user_errors(self.path, CHECK_PERMISSIONS, operation="read"):
            for file, number, line in lines_of(self.path, self.MANIFEST):
                seen.add(_key_of(line))
                yield file, number, line
            for file, number, line in lines_of(self.path, MANIFEST):
                key = _key_of(line)
                if key is not None and key not in seen and self.stripe.has(*key):
                    yield file, number, line

    def rewrite_manifest(self, lines: Iterable[bytes]) -> None:
        """Keeps `lines` alone of this shard: in its own file, and no longer in the run's manifest."""
        super().rewrite_manifest(lines)
        with shared_files(self.path):
            others = (line for _, _, line in lines_of(self.path, MANIFEST) if not self._is_own(line))
            if any(self._is_own(line) for _, _, line in lines_of(self.path, MANIFEST)):
                storage.write_chunks(self.path / MANIFEST, (line + b"\n" for line in others))

    def records(self) -> Iterator[ImageRecord]:
        return records_of(self.path, self.lines())

    def join_all(self) -> dict[str, Any]:
        """What all shards made becomes the run's; returns run.json. Under `shared_files`, when no image is missing.

        Each step leaves a run that has every line, so that another shard can complete it if this one is stopped.
        """
        finished = read_facts(self.path, RUN).get("state") == "finished"
        facts = read_run(self.path) | {"num_images": len(planned(read_saved(self.path)))}
        if any(storage.file_size(self.path / part_name(shard, LINES)) for shard in shards_of(self.path)):
            storage.write_chunks(self.path / MANIFEST, (line + b"\n" for line in sorted_lines(self.path)))
            finished = False
        facts["state"] = "finished" if finished else "running"
        self.write_run_of_all(facts)
        _remove_parts(self.path)
        return facts

    def write_run_of_all(self, facts: Mapping[str, Any]) -> None:
        """run.json. Under `shared_files`."""
        self.write(RUN, json.dumps(facts, indent=2, ensure_ascii=False).encode())

    def close(self) -> None:
        try:
            with contextlib.suppress(OSError):
                if storage.file_size(self.path / self.MANIFEST) == 0:
                    storage.remove_file(self.path / self.MANIFEST)
            super().close()
        finally:
            self._run_log.close()

    def _is_own(self, line: bytes) -> bool:
        key = _key_of(line)
        return key is not None and self.stripe.has(*key)


def _make_shared(path: Path, mark: str) -> None:
    """The directory that shards share, unless it is there. Raises UserError where it is something else, and OSError.

    mark: the file by which it is known.
    """
    storage.make_parents(path, [])
    with contextlib.suppress(FileExistsError):
        storage.make_directory(path)
    if not _is_shared(path, mark):
        try:
            refuse_taken(path)
        except UserError:
            if not _is_shared(path, mark):  # unless another shard has made it since
                raise
    _make_shards_folder(path)


def _is_shared(path: Path, mark: str) -> bool:
    return not {mark, SHARDS}.isdisjoint(storage.list_directory(path))


def _make_shards_folder(path: Path) -> None:
    with contextlib.suppress(FileExistsError):
        storage.make_directory(path / SHARDS)
    check_folders(path)


def join_sweep(path: Path, sweep: Sweep) -> Path:
    """The directory of a sweep that shards share; makes it if this shard is the first. Raises UserError."""
    with os_errors_as_user_errors(path, CHOOSE_ANOTHER):
        if is_sweep(path):
            refuse_other_sweep(path, read_sweep(path), sweep)
        _make_shared(path, SWEEP)
        with shared_files(path):
            if is_sweep(path):
                refuse_other_sweep(path, read_sweep(path), sweep)
            else:
                write_sweep(path, sweep)
    return path


@contextlib.contextmanager
def locked_shard(path: Path, shard: Shard) -> Iterator[Callable[[str], None]]:
    """Holds the locks of one shard of the sweep at `path`; yields what writes a line of its log. Raises UserError."""
    with contextlib.ExitStack() as stack:
        with os_errors_as_user_errors(path, MAKE_ROOM):
            _make_shards_folder(path)
            whole = LineFile(path / SWEEP_LOG)
            stack.callback(close_quietly, whole)
            if not whole.lock(shared=True):
                raise UserError(
                    f"{show_path(path)}: another process is working on this whole sweep; wait until it ends, or stop it"
                )
            log = DirectoryLog(path, part_name(shard, PART_LOG), kind=f"shard {shard} of this sweep")
            stack.callback(close_quietly, log)
        yield log.write


@contextlib.contextmanager
def shared_files(path: Path) -> Iterator[None]:
    """Holds the lock of what all shards share; waits while another shard holds it. Raises UserError."""
    with os_errors_as_user_errors(path, MAKE_ROOM):
        lock = LineFile(path / SHARDS / SHARDS_LOCK)
        try:
            lock.lock(wait=True)
            yield
        finally:
            lock.close()


def num_unlisted(path: Path) -> int:
    """How many images of the run at `path` have no manifest line and are not dropped. Raises UserError."""
    config = read_saved(path)
    images = planned(config)
    keys = {_key_of(line) for _, _, line in manifest_lines(path)} | read_dropped(path, config)
    return len(images) - sum(key in images for key in keys)


def join_parts(run_dir: RunDir) -> None:
    """What shards made becomes the run's: a manifest in the order of the plan, and run.json. Raises UserError.

    run_dir: of the whole run, so that no shard is at work. The shards' logs stay.
    """
    path = run_dir.path
    with os_errors_as_user_errors(path, MAKE_ROOM):
        if shards_of(path) or shards_of(path, FACTS):
            facts = read_run(path)
            run_dir.rewrite_manifest(sorted_lines(path))
            run_dir.write_run(facts)
            _remove_parts(path)


def _remove_parts(path: Path) -> None:
    for suffix in (LINES, FACTS):
        for shard in shards_of(path, suffix):
            storage.remove_file(path / part_name(shard, suffix))


def sorted_lines(path: Path) -> Iterator[bytes]:
    """The manifest's lines by row and copy. Memory holds four numbers for each, and no line."""
    names = [MANIFEST, *(part_name(shard, LINES) for shard in shards_of(path))]
    keys, files, starts, lengths = array("q"), array("q"), array("q"), array("q")
    for file, name in enumerate(names):
        start = 0
        for _, _, line in lines_of(path, name):
            key = _key_of(line)
            if key is not None:
                for column, value in ((keys, key[0] * MAX_COPIES + key[1]), (files, file), (starts, start)):
                    column.append(value)
                lengths.append(len(line))
            start += len(line) + 1
    order = np.argsort(np.array(keys), kind="stable")
    with contextlib.ExitStack() as stack:
        opened = [
            stack.enter_context(storage.open_file(path / name)) if storage.file_size(path / name) else None
            for name in names
        ]
        for place, index in enumerate(order):
            if place + 1 < len(order) and keys[order[place + 1]] == keys[index]:
                continue  # a part has a newer line of this image
            source = opened[files[index]]
            assert source is not None
            source.seek(starts[index])
            yield source.read(lengths[index])


def _check_config(path: Path, config: SavedConfig | None) -> bool:
    """Whether the directory has a config already; raises UserError where that is of another run."""
    if config is not None and storage.file_size(path / CONFIG) is None:
        return False
    saved = read_saved(path)
    if config is not None:
        refuse_other_run(path, saved, config, advice="give all shards one command, or choose another output")
    return True


def _refuse_other_count(path: Path, stripe: Stripe) -> None:
    others = [shard.count for shard in shards_of(path) if shard.count != stripe.shard.count]
    if others:
        raise UserError(
            f"shard={stripe.shard}: {show_path(path)} is being made in {others[0]} shards; use shard=i/{others[0]}, or "
            f"complete it as one run with resume={show_path(path)}"
        )


def _key_of(line: bytes) -> tuple[int, int] | None:
    values = parse_line(line)
    return None if values is None else key_of(values)
