"""A sweep with scores that follow from its settings, and with rates that its test knows."""

import json

from support.sweeps import make
from tpusd.records.run_json import read_run
from tpusd.records.sweep import read_sweep
from tpusd.score import main

# (steps, guidance scale, seed, row) -> score; a setting's score is the mean over seeds and rows.
STEPS, SCALES, SEEDS = (2, 4), (1, 3, 5), (0, 1, 2)
SECONDS = {2: 0.5, 4: 1.0}  # per image


def score_of(steps, scale, seed, row):
    return steps + scale * 10 + seed * (0.5 if scale == 3 else 0.1) + row * 0.5


def make_scored_sweep(path):
    """Of 36 images, with the columns `fit` and, for the images of one seed, `rare`. Returns `path`."""
    make(
        "sampler.num_inference_steps=2,4",
        "guidance_scale=1,3,5",
        "seed=0,1,2",
        "prompts.rows=[{prompt: a red fox}, {prompt: an owl}]",
        f"output={path}",
    )
    lines = [json.loads(line) for line in (path / "index.jsonl").read_text().splitlines()]
    with open(path.parent / "scores.jsonl", "w") as file:
        for line in lines:
            values = {
                "file_name": line["file_name"],
                "fit": score_of(line["num_inference_steps"], int(line["guidance_scale"]), line["seed"], line["row"]),
                "rare": line["row"] if line["seed"] == 0 else None,
            }
            file.write(json.dumps(values) + "\n")
    for run in read_sweep(path).runs:
        facts = read_run(path / run.name)
        seconds = SECONDS[int(run.at["sampler.num_inference_steps"])]
        facts["sessions"][-1] |= {"num_images": 2, "seconds": {"generate": 2 * seconds, "compile": 0.0, "weights": 0.0}}
        (path / run.name / "run.json").write_text(json.dumps(facts))
    assert main([str(path), f"import={path.parent / 'scores.jsonl'}"]) == 0
    return path
