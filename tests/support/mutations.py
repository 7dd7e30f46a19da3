"""Every value of every file of a run and of a sweep, changed; and every command, on each of the changed directories.

    python tests/support/mutations.py --all            all of them; the number, and each failure in a line
    python tests/support/mutations.py --sample 500     so many of them, by --seed

A command must end with status 0, 1 or 2 within seconds, say what it says in short printable lines, raise nothing, and
write nothing outside the directories that it was given. Models are stand-ins, and all runs in one process.
"""

import argparse
import contextlib
import copy
import functools
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import yaml  # noqa: E402
from PIL import Image, PngImagePlugin  # noqa: E402

import tpusd.config.compose  # noqa: E402
import tpusd.reproduce  # noqa: E402
import tpusd.runs.resume  # noqa: E402
import tpusd.runs.sweep  # noqa: E402
from support import safety  # noqa: E402
from support.runs import INLINE, StandInPipeline, config, prepare  # noqa: E402
from support.sweeps import make  # noqa: E402
from tpusd.errors import UserError  # noqa: E402
from tpusd.export import main as export_main  # noqa: E402
from tpusd.recipe import main as recipe_main  # noqa: E402
from tpusd.records.manifest import read_manifest  # noqa: E402
from tpusd.records.set_scores import SetScore, digest_of, write_set_score  # noqa: E402
from tpusd.records.sweep import run_directories  # noqa: E402
from tpusd.reproduce import main as reproduce_main  # noqa: E402
from tpusd.results import main as results_main  # noqa: E402
from tpusd.run import main as run_main  # noqa: E402
from tpusd.runs.executors.local import LocalExecutor  # noqa: E402
from tpusd.runs.start import start_run  # noqa: E402
from tpusd.score import main as score_main  # noqa: E402
from tpusd.validate import main as validate_main  # noqa: E402

SECONDS = 5.0  # of processor time that a command may take
MAX_LINE = 2000
HERE = "@@here@@"  # is replaced by the raw text of a value
NESTED, TOO_NESTED = 60, 5000
# Values as both JSON and YAML read them. What only one of them can say is text for the other, which is a value too.
VALUES = {
    "null": "null",
    "true": "true",
    "negative": "-1",
    "fraction": "1.5",
    "huge": "1" + "0" * 30,
    "digits": "9" * 5000,
    "overflow": "1e400",
    "nan": "NaN",
    "empty": '""',
    "text": '"x"',
    "control": '"\\u0000a\\u001b[2J\\n"',
    "half a pair": '"\\ud800"',
    "long": '"' + "x" * 100_000 + '"',
    "outside": '"../../outside"',
    "list": "[]",
    "texts": '["x", "y"]',
    "group": "{}",
    "other group": '{"a": {"b": [null]}}',
    "nested": "[" * NESTED + "]" * NESTED,
    "too nested": "[" * TOO_NESTED + "]" * TOO_NESTED,
}
# Whole files.
FILES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "twice": lambda data: data + data,
    "byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data: data.decode("latin-1").encode("utf-16"),
    "bytes": lambda data: bytes(range(256)),
    "null": lambda data: b"null\n",
    "number": lambda data: b"3\n",
    "list": lambda data: b"[]\n",
    "group": lambda data: b"{}\n",
    "nested": lambda data: b"[" * 100_000,
    "newlines": lambda data: b"\n" * 1000,
}


@dataclass(frozen=True)
class Mutation:
    """file: within the directory. place: of the value, empty for the whole file. kind: a key of VALUES or FILES."""

    file: str
    place: tuple[str | int, ...]
    kind: str

    def __str__(self) -> str:
        return f"{self.file} {'.'.join(map(str, self.place)) or 'whole'}: {self.kind}"


def make_run(path: Path) -> Path:
    """Rows with and without values of their own, a further column, and images that need thumbnails."""
    rows = INLINE[:-1] + ', {prompt: "a hen", guidance_scale: 3, note: {a: [1, x]}}]'
    made = config(f"output={path}", rows, "height=8", "width=264", "num_images_per_prompt=2")
    return with_scores(start_run(made, hydra_files={"overrides.yaml": ["seed=0"]}, prepare=prepare, load=load))


def make_dropped_run(path: Path) -> Path:
    """A run some of whose images its safety checker found."""
    made = config(f"output={path}", INLINE, "height=8", "width=8", "num_images_per_prompt=2", "safety=drop")
    with mock.patch.object(LocalExecutor, "_loaded", lambda *_: safety.StandInChecker()):
        start_run(made, prepare=safety.prepare, load=load)
    assert len((path / "dropped.jsonl").read_text().splitlines()) in range(1, 6)
    return path


def with_scores(path: Path) -> Path:
    """A run or a sweep, with a column of scores and a score of the whole run."""
    assert score_main([str(path), "metric=colorfulness"]) == 0
    for _, run in run_directories(path):
        records = list(read_manifest(run))
        score = SetScore(
            metric="kid",
            weights=None,
            reference="x.npz",
            reference_sha256="a" * 64,
            num_images=len(records),
            num_reference=9,
            images=digest_of(records),
            value=0.5,
        )
        write_set_score(run, score)
    assert results_main([str(path)]) == 0
    return path


def make_small_sweep(path: Path) -> Path:
    assert make(f"output={path}", INLINE, "height=8", "width=8", "seed=0,1").status == 0
    return with_scores(path)


def load(prepared: Any, devices: object, **_: object) -> StandInPipeline:
    """A stand-in, for images as small as those of the directories; a changed config may ask for large ones."""
    if prepared.config.height * prepared.config.width > 64 * 264 or prepared.config.num_images_per_prompt > 4:
        raise UserError("too large for a test")
    return StandInPipeline()


Command = tuple[str, Callable[[list[str]], int], tuple[str, ...]]
ON_RUN: tuple[Command, ...] = (
    ("validate", validate_main, ("{path}",)),
    ("webdataset", export_main, ("{path}", "{out}/tar", "--format=webdataset")),
    ("geneval", export_main, ("{path}", "{out}/geneval", "--format=geneval")),
    ("dry reproduce", reproduce_main, ("{path}", "output={out}/again", "dry_run=true")),
    ("reproduce", reproduce_main, ("{path}", "output={out}/again")),
    ("results", results_main, ("{path}",)),
    ("score", score_main, ("{path}", "metric=colorfulness")),
    ("dry resume", run_main, ("resume={path}", "dry_run=true")),
    ("resume", run_main, ("resume={path}", "num_images_per_prompt=3")),
)
ON_SWEEP: tuple[Command, ...] = (
    ("validate", validate_main, ("{path}",)),
    ("webdataset", export_main, ("{path}", "{out}/tar", "--format=webdataset")),
    ("geneval", export_main, ("{path}", "{out}/geneval", "--format=geneval")),
    ("reproduce", reproduce_main, ("{path}", "output={out}/again")),
    ("results", results_main, ("{path}",)),
    ("grid", results_main, ("{path}", "--grid-columns=seed", "--grid-prompts=0,1")),
    ("score", score_main, ("{path}", "metric=colorfulness")),
    ("dry resume", run_main, ("resume={path}", "dry_run=true")),
    ("resume", run_main, ("resume={path}", "seed=0,1,2")),
)
ON_PICTURE: tuple[Command, ...] = tuple(
    (f"recipe {form}", recipe_main, ("{path}/images/00000-000.png", f"--format={form}"))
    for form in ("text", "command", "json", "yaml")
)


@dataclass(frozen=True)
class Subject:
    """A directory, the files of it that are changed, and the commands that take it.

    made: files that follow from the others; no value of them is read, so each is changed only as a whole.
    """

    path: Path
    files: tuple[str, ...]
    commands: tuple[Command, ...]
    made: tuple[str, ...] = ()

    def mutations(self) -> Iterator[Mutation]:
        for file in (*self.files, *self.made):
            yield from (Mutation(file, (), kind) for kind in FILES)
        for file in self.files:
            for place in places(read(self.path / file)):
                yield from (Mutation(file, place, kind) for kind in (*VALUES, "missing", "unknown key"))


def subjects(folder: Path) -> list[Subject]:
    """What is changed: a run, a sweep, and the recipe in a picture."""
    run, sweep = make_run(folder / "run"), make_small_sweep(folder / "sweep")
    dropped = make_dropped_run(folder / "dropped")
    first = min(path.name for path in sweep.iterdir() if path.is_dir())
    parts = ("config.yaml", "run.json", "manifest.jsonl", "scores/colorfulness.jsonl", "scores/sets.json")
    made = ("metadata.jsonl", "index.html", "contact_sheet.png")
    return [
        Subject(run, parts, ON_RUN, made=made),
        Subject(sweep, ("sweep.json", *(f"{first}/{part}" for part in parts)), ON_SWEEP, made=("index.jsonl",)),
        Subject(run, ("images/00000-000.png",), ON_PICTURE),
        Subject(dropped, ("dropped.jsonl",), ON_RUN),
    ]


def read(file: Path) -> Any:
    """The values of a file: of a picture, those of its recipe; of a file of lines, those of the last one."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return json.loads(image.text["tpusd"])
    data = file.read_text()
    if file.suffix == ".yaml":
        return yaml.safe_load(data)
    return json.loads(data.splitlines()[-1] if file.suffix == ".jsonl" else data)


def places(values: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a file are: each leaf, each group and each list, except the file itself."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def mutate(path: Path, mutation: Mutation) -> None:
    """Changes the file of the directory `path`."""
    file = path / mutation.file
    if not mutation.place:
        data = FILES[mutation.kind](file.read_bytes())
        file.unlink() if data is None else file.write_bytes(data)
        return
    values = copy.deepcopy(read(file))
    *above, last = mutation.place
    inner = values
    for key in above:
        inner = inner[key]
    if mutation.kind == "missing":
        del inner[last]
    elif mutation.kind == "unknown key":
        inner[last] = {"unknown\x1b": inner[last]} if isinstance(inner, list) else inner[last]
        if isinstance(inner, dict):
            inner["unknown\x1b"] = inner[last]
    else:
        inner[last] = HERE
    write(file, values, VALUES.get(mutation.kind, ""))


def write(file: Path, values: Any, raw: str) -> None:
    """The inverse of `read`, with `raw` for HERE."""
    if file.suffix == ".png":
        text = json.dumps(values).replace(f'"{HERE}"', raw)
        info = PngImagePlugin.PngInfo()
        info.add_itxt("tpusd", text)
        with Image.open(file) as image:
            image.save(file, "PNG", pnginfo=info)
    elif file.suffix == ".yaml":
        file.write_text(yaml.safe_dump(values, sort_keys=False, width=1000).replace(f"'{HERE}'", raw))
    elif file.suffix == ".jsonl":
        *before, _ = file.read_text().splitlines(keepends=True)
        file.write_text("".join(before) + json.dumps(values).replace(f'"{HERE}"', raw) + "\n")
    else:
        file.write_text(json.dumps(values).replace(f'"{HERE}"', raw))


def faults(subject: Subject, mutation: Mutation, folder: Path) -> Iterator[str]:
    """What is wrong with what the commands make of a changed directory. folder: an empty one."""
    path, out, outside = folder / "given", folder / "out", folder / "outside"  # the last is the working directory
    shutil.copytree(subject.path, path)
    mutate(path, mutation)
    out.mkdir()
    outside.mkdir()
    before = names(folder, path)
    for name, main, words in subject.commands:
        argv = [word.format(path=path, out=out) for word in words]
        with contextlib.chdir(outside):
            found = list(outcome(main, argv))
        for fault in found:
            yield f"{mutation}: {name}: {fault}"
        for directory in out.iterdir():
            shutil.rmtree(directory) if directory.is_dir() else directory.unlink()
        if names(folder, path) != before:
            yield f"{mutation}: {name}: wrote outside: {sorted(names(folder, path) ^ before)[:3]}"


def names(folder: Path, given: Path) -> set[str]:
    """What is in the folder, without the directory that the commands were given."""
    return {str(path) for path in folder.rglob("*") if given not in (path, *path.parents)}


def outcome(main: Callable[[list[str]], int], argv: list[str]) -> Iterator[str]:
    """What is wrong with how a command ends, and with what it says."""
    said, started = io.StringIO(), time.process_time()
    status, raised = None, None
    with stand_ins(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main(argv)
        except (Exception, SystemExit) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__} {str(error)[:80]!r} at {Path(where.filename).name}:{where.lineno}"
    seconds, text = time.process_time() - started, said.getvalue()
    if raised is not None:
        yield raised
    elif status not in (0, 1, 2):
        yield f"status {status}"
    wrong = next((line for line in text.splitlines() if "Traceback" in line or "Error:" in line), None)
    if wrong is not None:
        yield f"says {wrong[:150]!r}"
    if seconds > SECONDS:
        yield f"took {seconds:.1f} s"
    longest = max(map(len, text.splitlines()), default=0)
    if longest > MAX_LINE and main is not recipe_main:  # whose results are long: prompts, commands
        yield f"a line of {longest} characters"
    if not all(c.isprintable() or c in "\n\r" for c in text):
        yield f"prints {sorted({c for c in text if not c.isprintable()})}"


def stand_ins() -> contextlib.ExitStack:
    """Commands without models, and without composing the same command line again and again."""
    stack = contextlib.ExitStack()
    for module, name, function in (
        (tpusd.reproduce, "reproduce", partial(REPRODUCE, prepare=prepare, load=load)),
        (tpusd.runs.resume, "resume_run", partial(RESUME_RUN, prepare=prepare, load=load)),
        (tpusd.runs.sweep, "resume_sweep", partial(RESUME_SWEEP, prepare=prepare, load=load)),
        (tpusd.runs.sweep, "compose_jobs", composed),
        (tpusd.config.compose, "compose_jobs", composed),
    ):
        stack.enter_context(mock.patch.object(module, name, function))
    return stack


def composed(argv: list[str]) -> Any:
    return copy.deepcopy(_composed(tuple(argv)))


@functools.cache
def _composed(argv: tuple[str, ...]) -> Any:
    return COMPOSE_JOBS(list(argv))


RESUME_RUN, RESUME_SWEEP = tpusd.runs.resume.resume_run, tpusd.runs.sweep.resume_sweep
REPRODUCE, COMPOSE_JOBS = tpusd.reproduce.reproduce, tpusd.config.compose.compose_jobs


def chosen(all_subjects: list[Subject], number: int | None, seed: int) -> list[tuple[Subject, Mutation]]:
    """All mutations, or a sample of them."""
    cases = [(subject, mutation) for subject in all_subjects for mutation in subject.mutations()]
    return cases if number is None else random.Random(seed).sample(cases, number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    amount = parser.add_mutually_exclusive_group(required=True)
    amount.add_argument("--all", action="store_true")
    amount.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only those whose line has this text")
    arguments = parser.parse_args()
    import jax

    devices = jax.local_devices()[:1]
    num_commands = num_faults = 0
    with tempfile.TemporaryDirectory() as directory, mock.patch.object(jax, "local_devices", lambda: devices):
        folder = Path(directory)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            made = subjects(folder)
        cases = [case for case in chosen(made, arguments.sample, arguments.seed) if arguments.only in str(case[1])]
        for number, (subject, mutation) in enumerate(cases):
            with tempfile.TemporaryDirectory(dir=folder) as case:
                for fault in faults(subject, mutation, Path(case)):
                    num_faults += 1
                    print(fault, flush=True)
            num_commands += len(subject.commands)
            if number % 100 == 99:
                print(f"{number + 1} of {len(cases)}", file=sys.stderr, flush=True)
    print(f"{len(cases)} changed directories, {num_commands} commands, {num_faults} faults")
    return bool(num_faults)


if __name__ == "__main__":
    sys.exit(main())
