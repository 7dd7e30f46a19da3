"""What the TPU compiler expects of every published model on every TPU version: a table, by `tpusd.preflight`.

    python -m benchmarks.tpu_estimates                                  # the table of what was compiled so far
    python -m benchmarks.tpu_estimates --compile                        # compile what is missing: hours on two cores
    python -m benchmarks.tpu_estimates --compile v5e/sd15/8 v5e/sdxl/2  # or these cells
    python -m benchmarks.tpu_estimates --flax REF/bin/python v2/sd15/1  # the 2022 program's step (flax_2022_step.py)

Each cell is compiled in a process of its own and kept in benchmarks/results/tpu_estimates.json with the versions it was
made by, so that the work can be stopped and gone on with. A cell of another version of jax or libtpu is made again.
"""

import argparse
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "tpu_estimates.json"
TOPOLOGIES = {"v2": "v2:2x2x1", "v4": "v4:2x2x1", "v5e": "v5e:2x4", "v5p": "v5p:2x2x1", "v6e": "v6e:2x4"}
MODELS = {
    "sd15": ["sampler=pndm", "sampler.num_inference_steps=50"],  # 512x512, 51 model calls
    "sd21": ["sampler=ddim", "sampler.num_inference_steps=50"],  # 768x768
    "sdxl": ["sampler=euler", "sampler.num_inference_steps=20"],  # 1024x1024
}
BATCHES = (1, 4, 8)
ERROR = re.compile(r"(tpusd|[\w.]+(Error|Exception)): ")
CELLS = [f"{chip}/{model}/{batch}" for chip in TOPOLOGIES for model in MODELS for batch in BATCHES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", help="chip/model/batch, such as v5e/sd15/8 (default: all)")
    parser.add_argument("--compile", action="store_true", help="compile the cells that are missing")
    parser.add_argument("--flax", metavar="PYTHON", help="compile the 2022 program's steps that are missing, with this")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for cell in arguments.cells or CELLS:
        kept = results.get(cell, {})
        if arguments.compile and kept.get("versions") != versions():
            keep(results, cell, {"versions": versions(), "flax_2022": kept.get("flax_2022"), **compile_cell(cell)})
        elif arguments.flax and (kept.get("flax_2022") or {}).get("versions") != versions():
            keep(results, cell, kept | {"flax_2022": {"versions": versions(), **compile_2022(cell, arguments.flax)}})
    print(table(results))


def keep(results: dict, cell: str, values: dict) -> None:
    results[cell] = values
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def compile_cell(cell: str) -> dict:
    """Preflight's `report`, or the `failure` where the compiler fails."""
    chip, model, batch = cell.split("/")
    fields = [f"topology={TOPOLOGIES[chip]}", f"model={model}", "precision=bf16", f"batch_size_per_device={batch}"]
    return _ask([sys.executable, "-m", "tpusd.preflight", *fields, *MODELS[model], "--json"], "report")


def compile_2022(cell: str, python: str) -> dict:
    """The 2022 program's `step`, or the `failure`: its scores may not fit the chip."""
    chip, model, batch = cell.split("/")
    return _ask([python, "-m", "benchmarks.flax_2022_step", TOPOLOGIES[chip], model, batch], "step")


def _ask(command: list[str], name: str) -> dict:
    print(" ".join(command[1:]), "...", file=sys.stderr, flush=True)
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if done.returncode == 0:
        return {name: json.loads(done.stdout)}
    if done.returncode < 0:  # somebody stopped it, which says nothing of the cell
        sys.exit(f"{' '.join(command)}: ended by signal {-done.returncode}")
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    line = ([line for line in lines if ERROR.match(line)] or lines)[-1]  # the compiler's may go on for many lines
    print(line, file=sys.stderr, flush=True)
    return {"failure": line}


def table(results: dict) -> str:
    """Markdown; a cell that was not compiled is left out, and counted below."""
    head = ["chip", "model", "batch", "step, ms/image", "2022 step", "image, s", "floor, s", "ratio", "peak, GiB"]
    rows = [[*head, "compile, s"], ["---"] * (len(head) + 1)]
    for cell in sorted(results, key=lambda cell: (CELLS.index(cell) if cell in CELLS else len(CELLS), cell)):
        kept, batch = results[cell], int(cell.split("/")[2])
        old = step_2022(kept.get("flax_2022"), batch)
        report = kept.get("report")
        if report is None or report["seconds_per_image"] is None:
            why = "does not fit" if report is not None else "the compiler fails" if "failure" in kept else ""
            rows.append([*cell.split("/"), why, old, *[""] * 5])
            continue
        step = report["programs"]["denoise"]["seconds"] / report["model_calls"] / batch
        seconds, floor = report["seconds_per_image"], report["floor_seconds_per_image"]
        rows.append(
            [
                *cell.split("/"),
                f"{step * 1e3:.2f}",
                old,
                f"{seconds:.3f}",
                f"{floor:.3f}",
                f"{seconds / floor:.2f}",
                f"{report['peak_bytes'] / 2**30:.2f}" + ("" if report["fits"] else " (does not fit)"),
                f"{report['compile_seconds']:.0f}",
            ]
        )
    missing = [cell for cell in CELLS if "versions" not in results.get(cell, {})]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{len(CELLS) - len(missing)} of {len(CELLS)} cells of the table are made."]
    lines += ["", f"The 2022 step as a multiple of ours, where both were compiled: {'; '.join(_multiples(results))}."]
    return "\n".join(lines)


def _multiples(results: dict) -> list[str]:
    """By chip, the least and the most."""
    ratios: dict[str, list[float]] = {}
    for cell, kept in results.items():
        denoise = kept.get("report", {}).get("programs", {}).get("denoise")
        old = (kept.get("flax_2022") or {}).get("step")
        if denoise and old:
            ours = denoise["seconds"] / kept["report"]["model_calls"]
            ratios.setdefault(cell.split("/")[0], []).append(old["seconds"] / ours)
    return [f"{chip} {min(ratios[chip]):.2f} to {max(ratios[chip]):.2f}" for chip in TOPOLOGIES if chip in ratios]


def step_2022(kept: dict | None, batch: int) -> str:
    """Milliseconds an image, + where kernels of the compiler's own come on top without an estimate."""
    if kept is None:
        return ""
    if "step" not in kept:
        full = re.search("RESOURCE_EXHAUSTED(?!.*Vmem)", kept["failure"])  # HBM; vector memory is the compiler's affair
        return "does not fit" if full else "the compiler fails"
    more = " +" if kept["step"]["unpriced_kernels"] else ""
    return f"{kept['step']['seconds'] * 1e3 / batch:.1f}{more}"


if __name__ == "__main__":
    main()
