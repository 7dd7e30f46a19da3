"""One run's life: opened, written, completed or left. The same for a run alone and for each run of a sweep.

Knows nothing of devices, and nothing of the other runs.
"""

import contextlib
import dataclasses
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpusd.config.schema import RunConfig, config_values
from tpusd.config.yaml_files import to_yaml
from tpusd.engine.not_finite import NotFinite
from tpusd.errors import ChangedFile, UserError, show, show_path
from tpusd.gallery.run import write_results
from tpusd.loggers.registry import log_run
from tpusd.plan.specs import ImageSize, ImageSpec, Stripe, counted_specs, make_specs, planned
from tpusd.process.report import report
from tpusd.records.directory import Claim, RunDir, RunWriter, close_quietly, now
from tpusd.records.dropped import read_dropped
from tpusd.records.layout import DROPPED, HYDRA, MAKE_ROOM
from tpusd.records.manifest import ImageRecord, described_values
from tpusd.records.parts import has_lines
from tpusd.records.provenance import BatchProvenance, changes, describe_checkpoint
from tpusd.records.run_json import RunJson, images_per_second, read_facts
from tpusd.records.shards import ShardDir, num_unlisted, shared_files
from tpusd.runs.not_finite import ImagesNotFinite
from tpusd.runs.prepare import PreparedRun
from tpusd.runs.safety import describe_safety
from tpusd.runs.set_aside import ImagesSetAside
from tpusd.storage import os_errors_as_user_errors

MAX_CHANGES = 5  # in which a session differs from the one before, that a line names


@dataclass(frozen=True, kw_only=True)
class ImageProvenance:
    """What the images of a batch have in common. config: the run's, with the sha256 of the weights that made them."""

    config: RunConfig
    environment: str  # a key of run.json's environments


@dataclass(kw_only=True)
class Timing:
    """Seconds of a run: its shares of the batches that it had images in.

    seconds: by part, as an executor reports them, and "import" for a command's first run.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, seconds: Mapping[str, float], num_images: int, num_in_batch: int) -> None:
        """Counts `num_images` of a batch of `num_in_batch`."""
        share = num_images / num_in_batch
        for name, value in seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + share * value
        once = seconds.get("compile", 0.0) + seconds.get("weights", 0.0)
        self.seconds.setdefault("first_batch", seconds.get("generate", 0.0) - once)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    run_dir: RunWriter
    run_json: RunJson


class RunSession:
    """A prepared run. Its directory is opened with `open`, and closed by `complete` or `leave`."""

    def __init__(
        self,
        prepared: PreparedRun,
        place: Claim | Path | RunWriter,
        *,
        name: str,
        hydra_files: Mapping[str, Any] | None = None,
        done: frozenset[tuple[int, int]] = frozenset(),
        dropped: frozenset[tuple[int, int]] = frozenset(),
        keep_empty: bool = True,
        stripe: Stripe | None = None,
    ):
        """place: a claim makes a new directory, a path is an existing one, or of a shard the one that it shares; they
            are opened by `open`. A writer is a directory that is open already.
        name: the run's name in messages.
        hydra_files: name in .hydra/ -> text or plain values, for a new directory.
        done: (row, copy) of the images that are whole already.
        dropped: of those that the safety checker found earlier, and that have no file.
        keep_empty: whether a new directory stays that has a config and no image, because the run was interrupted.
        stripe: the images of one shard, which are all that the session makes; None: the whole run.
        """
        self.prepared, self.name, self.done, self.stripe = prepared, name, done, stripe
        self.dropped = set(dropped)  # and those of this session
        self.num_images = len(planned(prepared.config, stripe))
        self.num_elsewhere = 0  # images of other shards that are still missing when this one is complete
        self.num_made = 0
        self.left_out: dict[str, NotFinite] = {}  # images that were made, are not finite, and are not written
        self.set_aside: dict[str, str] = {}  # images that no worker could make -> why
        self.timing = Timing()
        self.error: BaseException | None = None
        self.is_complete = False
        self.is_new = isinstance(place, Claim)
        self._place, self._hydra_files, self._keep_empty = place, hydra_files or {}, keep_empty
        self._opened: _Opened | None = None
        self._config: RunConfig = prepared.config
        self._weights_checked = False
        self._reported = False  # that an image is not finite
        self._said_dropped = False

    @property
    def path(self) -> Path:
        """The run's directory. A claim may get another one than it asked for, which is known once it is open."""
        return self._place if isinstance(self._place, Path) else self._place.path

    @property
    def num_missing(self) -> int:
        return self.num_images - len(self.done) - self.num_made - len(self.dropped)

    @property
    def is_tried(self) -> bool:
        """Whether every image was made or tried, also those that are left out."""
        return self.num_missing <= len(self.left_out) + len(self.set_aside)

    def specs(self, size: ImageSize | None = None) -> Iterator[ImageSpec]:
        """The images to make, in order. size: only those of this size."""
        return make_specs(self.prepared.config, self.done | self.dropped, size, self.stripe)

    def counted_specs(self) -> Iterator[tuple[ImageSpec, int]]:
        """The same, with one of those that are made alike, and their number."""
        return counted_specs(self.prepared.config, self.done | self.dropped, stripe=self.stripe)

    def open(self) -> None:
        """Opens the run's directory, which then says what will happen in it. Raises UserError; then call `leave`."""
        if self._opened is not None:
            return
        run_dir = self._open_directory()
        self._place = run_dir.path
        try:
            if not self.is_new and not self._is_as_it_was(run_dir):
                raise UserError(
                    f"{show_path(self.path)}: another process continued this run since it was looked at; start the "
                    "command again"
                )
            for warning in self.prepared.warnings:
                run_dir.log(warning)
            if self.is_new:
                for name, values in self._hydra_files.items():
                    text = values if isinstance(values, str) else to_yaml(values)
                    run_dir.write(f"{HYDRA}/{name}", text.encode())
                run_dir.write_config(config_values(self._config))  # from here on it is a run that can be resumed
            before = read_facts(run_dir.path, run_dir.RUN)
            run_json = RunJson(run_dir, before, started=now(), num_images=self.num_images)
            self._opened = _Opened(run_dir=run_dir, run_json=run_json)
            checker = self.prepared.safety
            noted = {} if checker is None else {"safety": describe_safety(checker)}
            run_json.note(checkpoint=describe_checkpoint(self.prepared.checkpoint), **noted)
        except BaseException:
            if self._opened is None:
                run_dir.discard() if self.is_new else close_quietly(run_dir)
            raise

    def _is_as_it_was(self, run_dir: RunWriter) -> bool:
        """Whether the images of the directory are still those that it had when the session was made."""
        if {record.key for record in run_dir.records()} != self.done:
            return False
        images = planned(self.prepared.config, self.stripe)
        dropped = read_dropped(run_dir.path, self.prepared.config) - self.done
        return {key for key in dropped if key in images} == self.dropped

    def log(self, line: str) -> None:
        """A line of the run's log; the run must be open."""
        self._open_now().run_dir.log(line)

    def describe(self, spec: ImageSpec) -> dict[str, Any]:
        """The manifest's fields that are known before the image is made."""
        return described_values(self.prepared.config, self.prepared.tokens, spec)

    def note(self, provenance: BatchProvenance) -> ImageProvenance:
        """Writes down what made a batch, before the first of its images is written. Raises UserError."""
        opened = self._open_now()
        if not self._weights_checked:
            for warning in check_weights(self.prepared.config, provenance.weights):
                report(warning)
                opened.run_dir.log(warning)
            if self._config.model.sha256 is None:
                model = dataclasses.replace(self._config.model, sha256=provenance.weights)
                self._config = dataclasses.replace(self._config, model=model)
                opened.run_dir.write_weights(config_values(self._config))
            opened.run_json.note(checkpoint=provenance.checkpoint, **_files(provenance))
            self._weights_checked = True
        earlier = list(opened.run_json.facts["environments"].items())
        environment = opened.run_json.note_environment(provenance.environment, provenance.programs)
        if earlier and environment not in dict(earlier):
            self._say_changes(earlier[-1][1], provenance.environment)
        return ImageProvenance(config=self._config, environment=environment)

    def _say_changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        """Says in what this session differs from the one before it."""
        found = [change for change in changes(before, now) if not change.startswith("programs.")]
        if found:
            more = f"; and {len(found) - MAX_CHANGES} more" if len(found) > MAX_CHANGES else ""
            words = "; ".join(found[:MAX_CHANGES]) + more
            line = f"{self.name}: continues with {words}; pixels may differ in their last bits"
            report(line)
            self.log(line)

    def write_image(self, name: str, data: bytes) -> dict[str, Any]:
        """A picture's file; returns the manifest's fields about it. Thread-safe."""
        return self._open_now().run_dir.write_image(name, data)

    def append(self, *records: ImageRecord) -> None:
        """The manifest lines of pictures whose files are written. From here on the images count."""
        self._open_now().run_dir.append_records(*records)
        self.num_made += len(records)

    def drop(self, spec: ImageSpec, values: Mapping[str, Any]) -> None:
        """Notes an image that the safety checker found, and that is not written: in dropped.jsonl and in the log.

        values: of its line there, beside its own numbers.
        """
        opened = self._open_now()
        opened.run_dir.append_dropped({"row": spec.row, "copy": spec.copy} | dict(values))
        self.dropped.add((spec.row, spec.copy))
        line = f"{spec.name}: is not written, because the safety checker found it (safety=drop)"
        if not self._said_dropped:
            report(f"{self.name}: {line}")
        self._said_dropped = True
        self.log(line)

    def note_not_finite(self, name: str, place: NotFinite, *, written: bool) -> None:
        """Says of an image that it has NaN or infinity, in the log, and of the run's first one on stderr too.

        written: whether it is written all the same, by on_nan=record.
        """
        line = f"{name} has NaN or infinity, first in the {place}; it is {'' if written else 'not '}written"
        if not self._reported:
            report(f"{self.name}: {line}")
        self._reported = True
        self.log(line)
        if not written:
            self.left_out[name] = place

    def note_set_aside(self, names: Sequence[str], reason: str) -> None:
        """Says of images that no worker could make them, in the log and on stderr."""
        line = f"{', '.join(names)}: set aside, because {reason}"
        report(f"{self.name}: {line}")
        self.log(line)
        self.set_aside |= dict.fromkeys(names, reason)

    def complete(self) -> None:
        """Writes the page and all that belongs to it, and closes the directory. Raises UserError."""
        opened = self._open_now()
        if self.set_aside:
            raise ImagesSetAside(self.path, self.set_aside, self.num_images)
        if self.left_out:
            raise ImagesNotFinite(self.path, self.left_out, self.num_images, self._config.precision)
        if isinstance(opened.run_dir, ShardDir):
            self._complete_shard(opened.run_dir, opened.run_json)
        else:
            opened.run_dir.check_held()
            opened.run_json.finish(self.num_made, self.timing.seconds)
            self._write_results(opened.run_json.facts)
            opened.run_json.write()
            log_run(self.path, self.prepared.config, opened.run_json.facts)
        opened.run_dir.log(f"{self.path}: {self.summary()}")
        self._opened, self.is_complete = None, True
        close_quietly(opened.run_dir)

    def _complete_shard(self, shard_dir: ShardDir, run_json: RunJson) -> None:
        """Completes the shard, and the run too where no image of it is missing. Raises UserError."""
        run_json.finish(self.num_made, self.timing.seconds)
        with shared_files(self.path):  # another shard may be completing the run
            run_json.write()
            self.num_elsewhere = num_unlisted(self.path)
            if self.num_elsewhere:
                return
            facts = shard_dir.join_all()
            if facts["state"] != "finished":
                facts["state"] = "finished"
                self._write_results(facts)
                shard_dir.write_run_of_all(facts)
                log_run(self.path, self.prepared.config, facts)

    def _write_results(self, facts: Mapping[str, Any]) -> None:
        with os_errors_as_user_errors(self.path, MAKE_ROOM):
            write_results(self.path, facts)

    def leave(self, error: BaseException | None = None) -> None:
        """Closes the directory of a run that is not complete. What it has made stays, and `resume=` continues it.

        error: why the run stops, if not by `self.error`.
        """
        opened, self._opened = self._opened, None
        if opened is None:
            return
        error = self.error or error
        opened.run_dir.log(f"stopped{_text_of(error)}")
        empty = not self.num_made and not holds_images(self.path)
        empty = empty and not self.left_out and not self.set_aside and not self.dropped
        if self.is_new and empty and (isinstance(error, UserError) or not self._keep_empty):
            opened.run_dir.discard()
        else:
            close_quietly(opened.run_dir)

    def summary(self) -> str:
        """What the run took, in one line."""
        summary = summary_line(self.num_made, self.timing.seconds)
        summary += f", {dropped_text(len(self.dropped))}" if self.dropped else ""
        return summary if self.stripe is None else f"shard {self.stripe.shard}: {summary}"

    def _open_directory(self) -> RunWriter:
        if isinstance(self._place, Claim):
            return RunDir.claim(self._place)
        if not isinstance(self._place, Path):
            return self._place
        if self.stripe is None:
            return RunDir.open(self._place)
        return ShardDir.join(self._place, self.stripe, self.prepared.config, hydra_files=self._hydra_files)

    def _open_now(self) -> _Opened:
        assert self._opened is not None, f"{self.name} is not open"
        return self._opened


def _files(provenance: BatchProvenance) -> dict[str, Any]:
    """LoRAs and embeddings; a run without them has no such fact."""
    files = {"loras": list(provenance.loras), "embeddings": list(provenance.embeddings)}
    return {name: own for name, own in files.items() if own}


def dropped_text(number: int) -> str:
    """What a summary says of images that have no file because of safety=drop."""
    return f"{number} dropped by the safety checker ({DROPPED})"


def summary_line(num_images: int, seconds: Mapping[str, float]) -> str:
    """What a run took: all of it, start-up by its parts, its first batch, and the rate without start-up.

    seconds: by part, as in Timing.
    """
    start_up = {name: seconds[name] for name in ("import", "compile", "weights") if name in seconds}
    generate = seconds.get("generate", 0.0)
    plural = "" if num_images == 1 else "s"
    parts = [f"{num_images} image{plural} in {start_up.get('import', 0.0) + generate:.1f} s"]
    if start_up:
        listed = ", ".join(f"{name} {value:.1f}" for name, value in start_up.items())
        parts.append(f"start-up {sum(start_up.values()):.1f} s ({listed})")
    if "first_batch" in seconds:
        parts.append(f"first batch {seconds['first_batch']:.1f} s")
    rate = images_per_second(num_images, seconds)
    if rate is not None:
        parts.append(f"{rate:.2f} images/s")
    return ", ".join(parts)


def check_weights(config: RunConfig, digest: str) -> tuple[str, ...]:
    """Raises ChangedFile where the config asks for other weights than these, or returns that as a warning.

    digest: `weights_digest` of the checkpoint.
    """
    wanted = config.model.sha256
    if wanted is None or wanted == digest:
        return ()
    differs = f"model={show(config.model.name)}: its files have changed: sha256 {digest[:12]}..., not {wanted[:12]}..."
    if config.on_changed_weights == "error":
        raise ChangedFile(
            f"{differs}; restore the old files, or set on_changed_weights=warn to continue with these, which make "
            "other images"
        )
    return (differs,)


def holds_images(path: Path) -> bool:
    """Whether the manifest of the run directory has a line."""
    with contextlib.suppress(OSError):
        return has_lines(path)
    return False


def _text_of(error: BaseException | None) -> str:
    """An error for a log: one line for what the user can mend, the traceback for what is our fault."""
    if error is None:
        return ""
    if isinstance(error, UserError):
        return f": {error}"
    if isinstance(error, KeyboardInterrupt):
        return f": {type(error).__name__} {error}"
    return f": {type(error).__name__} {error}\n{''.join(traceback.format_exception(error))}".rstrip()
