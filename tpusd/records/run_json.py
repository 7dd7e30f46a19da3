"""run.json: what a run was made on, and how far it is. One record for all sessions that worked on the run.

    {"created", "state": "running" | "finished", "num_images",
     "checkpoint": {repo, commit, variant, sha256: {file: ...}},
     "environments": {ID: {versions, weights, devices, batch_size_per_device, flags, git, key_derivation, programs}},
     "sessions": [{"started", "environment": ID, "num_images", "seconds"}]}

A manifest line names its image's environment by ID. Knows nothing of how either is found out.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tpusd.records.provenance import environment_id
from tpusd.storage import local as storage


class RunRecord:
    """Keeps run.json of an open run directory as it should be; each method that changes it writes it whole."""

    def __init__(self, run_dir: Any, before: Mapping[str, Any], *, started: str, num_images: int):
        """before: what run.json held, empty for a new run. started: date and time of this session, ISO 8601."""
        self._run_dir = run_dir
        self.environment_id: str | None = None
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

    def note(self, **facts: Any) -> None:
        """Further facts about the run, such as `checkpoint`."""
        if any(self.facts.get(name) != value for name, value in facts.items()):
            self.facts |= facts
            self.write()

    def note_environment(self, environment: Mapping[str, Any], programs: Mapping[str, str]) -> None:
        """What the images that follow are made with. programs: name -> sha256, of those compiled so far."""
        name = environment_id(environment)
        before = self._programs_of(name)
        if any(before.get(program, digest) != digest for program, digest in programs.items()):
            # The same versions and other programs: the code of a checkout was edited between two sessions.
            name = environment_id({**environment, "programs": dict(programs)})
            before = self._programs_of(name)
        self.environment_id = self._session["environment"] = name
        noted = dict(environment) | {"programs": before | dict(programs)}
        if self.facts["environments"].get(name) != noted:
            self.facts["environments"][name] = noted
            self.write()

    def _programs_of(self, name: str) -> dict[str, str]:
        known = self.facts["environments"].get(name)
        programs = known.get("programs") if isinstance(known, dict) else None
        return programs if isinstance(programs, dict) else {}

    def finish(self, num_made: int, seconds: Mapping[str, float]) -> None:
        """All images are there. Left to the caller is to write that, last of all that the run writes."""
        self._session |= {"num_images": num_made, "seconds": {name: round(s, 3) for name, s in seconds.items()}}
        self.facts["state"] = "finished"


def latest(facts: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with its last session and that session's environment in place of all of them."""
    told = {name: value for name, value in facts.items() if name not in ("environments", "sessions")}
    sessions, environments = facts.get("sessions"), facts.get("environments")
    session = sessions[-1] if isinstance(sessions, list) and sessions and isinstance(sessions[-1], dict) else {}
    name = session.get("environment")
    environment = environments.get(name) if isinstance(environments, dict) and isinstance(name, str) else None
    return told | {"session": session} | (environment if isinstance(environment, dict) else {})


def images_per_second(facts: Mapping[str, Any]) -> float | None:
    try:
        return facts["session"]["num_images"] / facts["session"]["seconds"]["generate"]
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def read_facts(path: Path) -> dict[str, Any]:
    """run.json; empty where it is missing or none."""
    from tpusd.records.layout import RUN

    try:
        facts = json.loads(storage.read_file(path / RUN))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
