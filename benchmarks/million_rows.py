"""Time and memory of large prompt sets: dry run, start, resume and validate, without a model that generates.

    python -m benchmarks.million_rows --rows 10000 100000 1000000

Each command runs in a process of its own, on the embedded model. `start` is a run up to its first batch. `make`
writes a complete run directory with one black picture under all names, and `page` the page, the contact sheet and
metadata.jsonl, as a run does at its end. `resume` finds that run complete, and `validate` is that with --sizes.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEAD = ("rows", "command", "seconds", "processor seconds", "peak MB", "MB of rows", "bytes a row")
COMMANDS = ("dry_run", "start", "make", "page", "resume", "validate")
LINKS = 10_000  # to one file: file systems allow some 65,000


class _Started(BaseException):
    """A run is at its first batch."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    parser.add_argument("--directory", type=Path, help="where the runs are kept; default: a temporary directory")
    parser.add_argument("--work", choices=COMMANDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        print(json.dumps(measure(arguments.work, arguments.rows[0], arguments.directory)))
        return
    root = arguments.directory or Path(tempfile.mkdtemp())
    print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
    for rows in arguments.rows:
        for command in arguments.commands:
            words = [sys.executable, "-m", "benchmarks.million_rows", "--work", command]
            words += ["--rows", str(rows), "--directory", str(root)]
            done = subprocess.run(words, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)
            wall, cpu, peak, held = json.loads(done.stdout.splitlines()[-1])
            row = (rows, command, f"{wall:.1f}", f"{cpu:.1f}", peak, f"{held / 1e6:.1f}", f"{held / rows:.0f}")
            print(f"| {' | '.join(map(str, row))} |", flush=True)
    if arguments.directory is None:
        shutil.rmtree(root)


def measure(command: str, rows: int, root: Path) -> tuple[float, float, int, int]:
    """(seconds, processor seconds, peak MB, bytes of the rows' file) of one command in this process."""
    root.mkdir(parents=True, exist_ok=True)
    file, run = root / f"{rows}.txt", root / str(rows)
    if not file.exists():
        with open(file, "w") as stream:
            stream.writelines(f"a portrait of a woman with {number} freckles and red hair\n" for number in range(rows))
    began, cpu_began = time.monotonic(), time.process_time()
    words = ["prompts=file", f"prompts.path={file}", "seed=0"]
    if command == "make":
        _make(words, run)
    elif command == "page":
        _write_page(run)
    elif command == "start":
        _start([*words, f"output={root / 'started'}"])
        shutil.rmtree(root / "started", ignore_errors=True)
    elif command == "validate":
        from tpusd.validate import main as validate

        _expect(validate(["--sizes", str(run)]))
    else:
        from tpusd.run import main as run_main

        _expect(run_main([*words, "dry_run=true"] if command == "dry_run" else [f"resume={run}"]))
    wall, cpu = time.monotonic() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    held = sum(own.stat().st_size for own in run.glob("prompts-*.jsonl"))
    return wall, cpu, peak, held


def _expect(status: int) -> None:
    if status:
        sys.exit(f"the command ended with status {status}")


def _config(words: list[str]) -> Any:
    from tpusd.config.compose import compose_jobs
    from tpusd.config.schema import make_config

    jobs = compose_jobs(words)
    assert jobs is not None
    return make_config(jobs[0].values)


def _start(words: list[str]) -> None:
    """A run up to its first batch."""
    from tpusd.runs.start import start_run

    def load(*_: Any, **__: Any) -> Any:
        raise _Started

    try:
        start_run(_config(words), load=load)
    except _Started:
        return
    sys.exit("the run made no batch")


def _make(words: list[str], path: Path) -> None:
    """A complete run directory, without its page."""
    from tpusd.config.schema import config_values
    from tpusd.records.directory import Claim, RunDir, now
    from tpusd.records.run_json import RunJson
    from tpusd.runs.prepare import prepare_run

    prepared = prepare_run(_config(words))
    shutil.rmtree(path, ignore_errors=True)
    run_dir = RunDir.claim(Claim(output=path))
    run_dir.write_config(config_values(prepared.config))
    run_json = RunJson(run_dir, {}, started=now(), num_images=len(prepared.config.prompts.rows))
    environment = run_json.note_environment({"tpusd": "benchmark"}, {})
    run_dir.rewrite_manifest(_lines(prepared.config, run_dir, environment))
    run_json.finish(len(prepared.config.prompts.rows), {})
    run_json.write()
    run_dir.close()


def _lines(config: Any, run_dir: Any, environment: str) -> Iterator[bytes]:
    """A manifest line for each image, whose file is there then."""
    from tpusd.plan.specs import image_name, planned
    from tpusd.records.manifest import OPTIONAL_FIELDS
    from tpusd.records.recipes import Recipes

    recipes, images = Recipes(config), run_dir.path / "images"
    data, first, made = _tiny_png(config.width, config.height), images, dict[str, Any]()
    for number, key in enumerate(planned(config)):
        name = f"{image_name(*key)}.png"
        if number % LINKS:
            os.link(first, images / name)
        else:
            made, first = run_dir.write_image(name, data), images / name
        recipe = recipes.of(*key)
        own = {name: value for name, value in recipe.items() if value is not None or name not in OPTIONAL_FIELDS}
        facts = {"num_tokens": 12, "truncated": False, "environment": environment, "trace": {}}
        yield json.dumps({**made, "file_name": f"images/{name}", **own, **facts}).encode()


def _write_page(path: Path) -> None:
    from tpusd.gallery.run import write_results

    write_results(path)


def _tiny_png(width: int, height: int) -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
