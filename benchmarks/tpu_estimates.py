"""What the TPU compiler expects of every published model on every TPU version: a table, by `tpusd.preflight`.

    python -m benchmarks.tpu_estimates                                  # the table of what was compiled so far
    python -m benchmarks.tpu_estimates --compile                        # compile what is missing: hours on two cores
    python -m benchmarks.tpu_estimates --compile v5e/sd15/8 v5e/sdxl/2  # or these cells

Each cell is compiled in a process of its own and kept in benchmarks/results/tpu_estimates.json with the versions it was
made by, so that the work can be stopped and gone on with. A cell of another version of jax or libtpu is made again.
"""

import argparse
import json
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
CELLS = [f"{chip}/{model}/{batch}" for chip in TOPOLOGIES for model in MODELS for batch in BATCHES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cells", nargs="*", help="chip/model/batch, such as v5e/sd15/8 (default: all)")
    parser.add_argument("--compile", action="store_true", help="compile the cells that are missing")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if arguments.compile:
        for cell in arguments.cells or CELLS:
            if results.get(cell, {}).get("versions") != versions():
                print(f"{cell} ...", file=sys.stderr, flush=True)
                results[cell] = {"versions": versions(), "report": compile_cell(cell)}
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


def versions() -> dict[str, str]:
    return {name: metadata.version(name) for name in ("jax", "libtpu")}


def compile_cell(cell: str) -> dict:
    chip, model, batch = cell.split("/")
    fields = [f"topology={TOPOLOGIES[chip]}", f"model={model}", "precision=bf16", f"batch_size_per_device={batch}"]
    command = [sys.executable, "-m", "tpusd.preflight", *fields, *MODELS[model], "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def table(results: dict) -> str:
    """Markdown; a cell that was not compiled is left out, and counted below."""
    head = ["chip", "model", "batch", "step, ms/image", "image, s", "floor, s", "ratio", "peak, GiB", "compile, s"]
    rows = [head, ["---"] * len(head)]
    for cell in sorted(results, key=lambda cell: (CELLS.index(cell) if cell in CELLS else len(CELLS), cell)):
        report = results[cell]["report"]
        if report["seconds_per_image"] is None:
            rows.append([*cell.split("/"), "does not fit", *[""] * 5])
            continue
        step = report["programs"]["denoise"]["seconds"] / report["model_calls"] / report["batch_size_per_device"]
        seconds, floor = report["seconds_per_image"], report["floor_seconds_per_image"]
        rows.append(
            [
                *cell.split("/"),
                f"{step * 1e3:.2f}",
                f"{seconds:.3f}",
                f"{floor:.3f}",
                f"{seconds / floor:.2f}",
                f"{report['peak_bytes'] / 2**30:.2f}" + ("" if report["fits"] else " (does not fit)"),
                f"{report['compile_seconds']:.0f}",
            ]
        )
    missing = [cell for cell in CELLS if cell not in results]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"{len(CELLS) - len(missing)} of {len(CELLS)} cells of the table are compiled."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
