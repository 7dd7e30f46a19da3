"""A run that is there already: repaired, and the rest prepared."""

import dataclasses
from pathlib import Path

from tpusd.config.packed_rows import first_rows, pack
from tpusd.config.schema import SavedConfig, config_values
from tpusd.errors import UserError
from tpusd.gallery.run import results_are_whole
from tpusd.plan.specs import planned
from tpusd.process.report import report, say
from tpusd.records.directory import RunDir
from tpusd.records.dropped import Key, mend_dropped, read_dropped
from tpusd.records.layout import DROPPED, MAKE_ROOM, PAGE
from tpusd.records.manifest import read_manifest
from tpusd.records.older_rules import WEAKENED, weakened
from tpusd.records.repair import repair
from tpusd.records.run_json import read_run
from tpusd.records.saved import CHANGEABLE_ON_RESUME
from tpusd.records.shards import ShardDir, join_parts
from tpusd.runs.prepare import Prepare
from tpusd.runs.session import RunSession, dropped_text
from tpusd.storage import os_errors_as_user_errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompleteRun:
    """A run that lacks nothing."""

    path: Path
    num_images: int
    num_dropped: int = 0  # of them, those that the safety checker found and that have no file

    def say(self) -> None:
        plural = "" if self.num_images == 1 else "s"
        dropped = f", {dropped_text(self.num_dropped)}" if self.num_dropped else ""
        say(f"{self.path}: complete, {self.num_images} image{plural}{dropped}; see {self.path / PAGE}")


def take_up(
    run_dir: RunDir, saved: SavedConfig, config: SavedConfig, prepare: Prepare, *, name: str
) -> RunSession | CompleteRun:
    """What an existing run has, repaired, and the rest prepared. The directory stays open. Raises UserError.

    run_dir: of the whole run, or of one shard, whose images are then all that counts.
    saved: the config that the directory holds.
    config: the one to continue with, `saved` or more of it; is written where it is more.
    prepare: as `prepare_run`.
    name: of the run in messages.
    """
    stripe = run_dir.stripe if isinstance(run_dir, ShardDir) else None
    try:
        if stripe is None:
            join_parts(run_dir)
        repaired = repair(run_dir, saved)
        for note in repaired.notes:
            report(note)
            run_dir.log(note)
        dropped = _dropped(run_dir, saved, repaired.done)
        images = planned(config, stripe)
        dropped = frozenset(key for key in dropped if key in images)
        missing = len(images) - sum(key in images for key in repaired.done) - len(dropped)
        if not missing and _is_finished(run_dir.path, None if stripe is None else len(planned(config))):
            return CompleteRun(path=run_dir.path, num_images=len(planned(config)), num_dropped=len(dropped))
        if missing and _guides_below_one(config) and _weakened(run_dir.path):
            note = f"{WEAKENED} than those that are there; start a new run to have all alike"
            report(note)
            run_dir.log(note)
        session = RunSession(prepare(config), run_dir, name=name, done=repaired.done, dropped=dropped, stripe=stripe)
    except UserError as error:
        run_dir.log(f"stopped: {error}")
        raise
    own = len(saved.prompts.rows)
    rows = config.prompts.rows
    if len(rows) > own:
        rows = pack((*rows[:own], *session.prepared.config.prompts.rows[own:]))
    lasting = dataclasses.replace(
        config,
        prompts=dataclasses.replace(config.prompts, rows=rows),
        **{field: getattr(saved, field) for field in CHANGEABLE_ON_RESUME},
    )
    if config_values(lasting) != config_values(saved):
        run_dir.write_config(config_values(lasting))
    run_dir.log(f"continues: {len(repaired.done)} images are there and {missing} are missing")
    return session


def _dropped(run_dir: RunDir, config: SavedConfig, done: frozenset[Key]) -> frozenset[Key]:
    """The images that are dropped, and have no line of the manifest. The file is mended where no shard is at work."""
    if not isinstance(run_dir, ShardDir):
        with os_errors_as_user_errors(run_dir.path, MAKE_ROOM):
            if mend_dropped(run_dir.path, config, done):
                note = f"lines that say nothing are removed from {DROPPED}"
                report(note)
                run_dir.log(note)
    return read_dropped(run_dir.path, config) - done


def _guides_below_one(config: SavedConfig) -> bool:
    own = (row.guidance_scale for _, row in first_rows(config.prompts.rows))
    return any(scale is not None and scale < 1 for scale in (config.guidance_scale, *own))


def _weakened(path: Path) -> bool:
    return weakened(read_run(path), read_manifest(path), surely=True)


def _is_finished(path: Path, num_images: int | None) -> bool:
    """num_images: that the run must have had then, where other shards may lack some; None: it is known to have all."""
    facts = read_run(path)
    whole = num_images is None or facts.get("num_images") == num_images
    return whole and facts.get("state") == "finished" and results_are_whole(path)
