"""run.json: what a run was made on, and how far it is. One file for all sessions that worked on the run.

    {"created", "state": "running" | "finished", "num_images",
     "checkpoint": {repo, commit, variant, sha256: {file: ...}},
     "loras": [{path, repo, file, commit, base_model, sha256}], if the run has any,
     "environments": {ID: {versions, weights, devices, batch_size_per_device, flags, git, key_derivation, programs}},
     "sessions": [{"started", "environment": ID, "num_images", "seconds"}]}

A manifest line names its image's environment by ID. Knows nothing of how an environment is found out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpusd import storage
from tpusd.errors import UserError, show_path
from tpusd.records.directory import RunWriter
from tpusd.records.layout import MAX_RUN_BYTES, RUN
from tpusd.records.provenance import environment_id


class RunJson:
    """The run.json of an open run directory. Each method that changes it writes the whole file, except `finish`."""

    def __init__(self, run_dir: RunWriter, before: Mapping[str, Any], *, started: str, num_images: int):
        """before: what run.json held, empty for a new run. started: date and time of this session, ISO 8601.

        num_images: of the whole run.
        """
        self._run_dir = run_dir
        environments = before.get("environments")
        sessions = before.get("sessions")
        self._session: dict[str, Any] = {"started": started, "environment": None}
        self.facts: dict[str, Any] = {"created": started} | dict(before)
        self.facts |= {
            "state": "running",
            "num_images": num_images,
            "environments": dict(environments) if isinstance(environments, dict) else {},
            "sessions": [*(sessions if isinstance(sessions, list) else []), self._session],
        }

    def write(self) -> None:
        self._run_dir.write_run(self.facts)

    def note(self, **facts: object) -> None:
        """Further facts about the run, such as `checkpoint`."""
        if any(self.facts.get(name) != value for name, value in facts.items()):
            self.facts |= facts
            self.write()

    def note_environment(self, environment: Mapping[str, Any], programs: Mapping[str, str]) -> str:
        """Notes what makes the images that follow; returns the key under which it is kept.

        environment: as `describe_environment` gives it.
        programs: name -> sha256, of those that are compiled so far.
        """
        name = environment_id(environment)
        before = self._programs_of(name)
        if any(before.get(program, digest) != digest for program, digest in programs.items()):
            # The same versions and other programs: the code of a checkout was edited between two sessions.
            name = environment_id({**environment, "programs": dict(programs)})
            before = self._programs_of(name)
        self._session["environment"] = name
        noted = dict(environment) | {"programs": before | dict(programs)}
        if self.facts["environments"].get(name) != noted:
            self.facts["environments"][name] = noted
            self.write()
        return name

    def _programs_of(self, name: str) -> dict[str, str]:
        known = self.facts["environments"].get(name)
        programs = known.get("programs") if isinstance(known, dict) else None
        return programs if isinstance(programs, dict) else {}

    def finish(self, num_made: int, seconds: Mapping[str, float]) -> None:
        """Says that all images are there. The caller writes it, as the last file that the run writes."""
        self._session |= {"num_images": num_made, "seconds": {name: round(s, 6) for name, s in seconds.items()}}
        self.facts["state"] = "finished"


def latest(facts: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with its last session and that session's environment in place of all of them."""
    latest = {name: value for name, value in facts.items() if name not in ("environments", "sessions")}
    sessions, environments = facts.get("sessions"), facts.get("environments")
    session = sessions[-1] if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict) else {}
    name = session.get("environment")
    environment = environments.get(name) if isinstance(environments, dict) and isinstance(name, str) else None
    return latest | {"session": session} | (environment if isinstance(environment, dict) else {})


def images_per_second(num_images: int, seconds: Mapping[str, float]) -> float | None:
    """The rate of a session without its start-up, as terminal, page and loggers say it; None if nothing was made.

    seconds: by part, as `finish` writes them.
    """
    after = seconds.get("generate", 0.0) - seconds.get("compile", 0.0) - seconds.get("weights", 0.0)
    return num_images / after if num_images > 0 and after > 0 else None


def session_rate(facts: Mapping[str, Any]) -> float | None:
    """`images_per_second` of the last session, from what `latest` gives; None where it does not say."""
    try:
        return images_per_second(facts["session"]["num_images"], facts["session"]["seconds"])
    except (KeyError, TypeError, AttributeError, OverflowError):
        return None


def read_run(path: Path) -> dict[str, Any]:
    """run.json of the run directory `path`; an empty dict where the run stopped before it was written.

    Raises UserError where it is not a JSON object.
    """
    if not storage.exists(path / RUN):
        return {}
    try:
        values = json.loads(storage.read_file(path / RUN, MAX_RUN_BYTES))
    except OSError as error:
        raise UserError(f"{show_path(path / RUN)}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{show_path(path / RUN)}: is not the JSON of a run; remove the file, or restore it")
    return values


def read_run_if_valid(path: Path) -> dict[str, Any]:
    """`read_run` for pages, which a broken run.json does not stop: an empty dict in its place."""
    try:
        return read_run(path)
    except UserError:
        return {}
