"""run.json: what a run was made on, and how far it is. One file for all sessions that worked on the run.

    {"created", "state": "running" | "finished", "num_images",
     "checkpoint": {repo, commit, variant, sha256: {file: ...}},
     "loras": [{asset, path, repo, file, commit, base_model, sha256}], if the run has any,
     "embeddings": [{token, num_vectors, path, repo, file, commit, sha256}], likewise,
     "environments": {ID: {versions, weights, devices, batch_size_per_device, flags, git, key_derivation, programs}},
     "sessions": [{"started", "environment": ID, "num_images", "seconds"}]}

A manifest line names its image's environment by ID. Knows nothing of how an environment is found out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from tpusd import storage
from tpusd.config.json_values import JsonError, parse_json
from tpusd.config.typed import check_known
from tpusd.errors import UserError, show_path
from tpusd.records.directory import RunWriter
from tpusd.records.layout import CHECK_PERMISSIONS, MAX_RUN_BYTES, RUN
from tpusd.records.parts import FACTS, part_name, shards_of
from tpusd.records.provenance import environment_id
from tpusd.storage import os_errors_as_user_errors

Count = Annotated[int, Interval(ge=0, le=2**32)]


@dataclass(frozen=True, kw_only=True)
class _Session:
    """The fields of a session, likewise."""

    started: str
    environment: str | None
    num_images: Count
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """The fields of run.json, for `read_run` to check."""

    created: str
    state: Literal["running", "finished"]
    num_images: Count
    checkpoint: Mapping[str, Any]
    environments: Mapping[str, Mapping[str, Any]]
    sessions: tuple[Mapping[str, Any], ...]


class RunJson:
    """The run.json of an open run directory. Each method that changes it writes the whole file, except `finish`."""

    def __init__(self, run_dir: RunWriter, before: Mapping[str, Any], *, started: str, num_images: int):
        """before: what run.json held, empty for a new run. started: date and time of this session, ISO 8601.

        num_images: of the whole run.
        """
        self._run_dir = run_dir
        self._session: dict[str, Any] = {"started": started, "environment": None}
        self.facts: dict[str, Any] = {"created": started} | dict(before)
        self.facts |= {
            "state": "running",
            "num_images": num_images,
            "environments": dict(before.get("environments", {})),
            "sessions": [*before.get("sessions", []), self._session],
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
        programs = None if known is None else known.get("programs")
        return programs if isinstance(programs, dict) else {}

    def finish(self, num_made: int, seconds: Mapping[str, float]) -> None:
        """Says that all images are there. The caller writes it, as the last file that the run writes."""
        self._session |= {"num_images": num_made, "seconds": {name: round(s, 6) for name, s in seconds.items()}}
        self.facts["state"] = "finished"


def latest(facts: Mapping[str, Any]) -> dict[str, Any]:
    """run.json with its last session and that session's environment in place of all of them."""
    latest = {name: value for name, value in facts.items() if name not in ("environments", "sessions")}
    session: dict[str, Any] = [{}, *facts.get("sessions", [])][-1]
    environment: dict[str, Any] = facts.get("environments", {}).get(session.get("environment"), {})
    return latest | {"session": session} | environment


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
    """run.json of the run directory `path`, with what its shards have noted by now; an empty dict before that.

    A field that is there has the type of `_Facts`. Raises UserError.
    """
    with os_errors_as_user_errors(path, CHECK_PERMISSIONS, operation="read"):
        parts = [part_name(shard, FACTS) for shard in shards_of(path, FACTS)]
    facts = read_facts(path, RUN)
    return joined_facts([facts, *(read_facts(path, name) for name in parts)]) if parts else facts


def read_facts(path: Path, name: str) -> dict[str, Any]:
    """A file like run.json in the run directory `path`; an empty dict where it is not there. Raises UserError."""
    file = path / name
    if not storage.exists(file):
        return {}
    try:
        values: Any = parse_json(storage.read_file(file, MAX_RUN_BYTES))
        if not isinstance(values, dict):
            raise UserError("must be a group of fields")
        check_known(_Facts, values)
        for number, session in enumerate(values.get("sessions", ())):
            check_known(_Session, session, f"sessions[{number}].")
    except OSError as error:
        raise UserError(f"{show_path(file)}: cannot be read: {error.strerror}") from None
    except (JsonError, UserError) as error:
        raise UserError(
            f"{show_path(file)}: is not the JSON of a run ({error}); remove the file, or restore it"
        ) from None
    return values


def joined_facts(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """run.json and those of shards as one. The first one's facts count where they differ."""
    found = [part for part in parts if part]
    facts: dict[str, Any] = {}
    environments: dict[str, Any] = {}
    sessions: list[Any] = []
    for part in found:
        facts = part | facts
        environments |= part["environments"] if isinstance(part.get("environments"), dict) else {}
        own = part.get("sessions")
        sessions += [one for one in (own if isinstance(own, list) else ()) if one not in sessions]
    facts["created"] = min((str(part["created"]) for part in found if "created" in part), default="")
    sessions.sort(key=lambda one: str(one.get("started", "")) if isinstance(one, dict) else "")
    return facts | {"state": "running", "environments": environments, "sessions": sessions}


def read_run_if_valid(path: Path) -> dict[str, Any]:
    """`read_run` for pages, which a broken run.json does not stop: an empty dict in its place."""
    try:
        return read_run(path)
    except UserError:
        return {}
