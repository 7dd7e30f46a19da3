"""Records what PyTorch diffusers' schedulers make of a closed-form model, for tests that run without PyTorch.

    python tools/record_sampler_goldens.py tcd      records these samplers, and keeps the records of the others
    python tools/record_sampler_goldens.py          records all of them

Needs diffusers 0.42.1 and torch. Writes the timesteps and the sample for each sampler, option and number of steps to
tests/data/sampler_goldens.json.gz. The model, start and noise are those of `golden_model`, `golden_start` and
`golden_noise` in tests/support/sampler_cases.py.
"""

import gzip
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from support.sampler_cases import NAMES, golden_cases, golden_model, golden_noise, golden_start  # noqa: E402
from support.scheduler_reference import make_scheduler, sample  # noqa: E402

TARGET = ROOT / "tests/data/sampler_goldens.json.gz"
CONFIG = ROOT / "tpusd/assets/published/sd15/scheduler/scheduler_config.json"


def record(name: str, options: dict, steps: int, config: dict) -> dict:
    scheduler = make_scheduler(name, config, options)
    x = sample(
        scheduler,
        lambda x, t: golden_model(x, t, torch.sin),
        torch.from_numpy(golden_start())[None],
        steps,
        noise=lambda k: torch.from_numpy(golden_noise(k))[None],
        eta=options.get("eta"),
        timesteps=options.get("timesteps"),
    )
    return {
        "name": name,
        "options": options,
        "steps": steps,
        "prediction_type": config["prediction_type"],
        "timesteps": [round(float(t), 3) for t in scheduler.timesteps],
        "sample": [round(float(value), 7) for value in x[0]],
    }


def main(argv: Sequence[str]) -> None:
    """argv: the samplers to record; all of them if there are none."""
    warnings.simplefilter("ignore")
    config = json.loads(CONFIG.read_text())
    kept = json.loads(gzip.decompress(TARGET.read_bytes()))["records"] if argv else []
    records = []
    for name in NAMES:
        if argv and name not in argv:
            records += [old for old in kept if old["name"] == name]
            continue
        records += [
            record(name, options, steps, config | {"prediction_type": prediction_type})
            for options, steps, prediction_type in golden_cases(name)
        ]
    whole = {"diffusers": diffusers.__version__, "torch": torch.__version__.split("+")[0], "records": records}
    TARGET.write_bytes(gzip.compress(json.dumps(whole).encode(), mtime=0))
    print(f"{TARGET.relative_to(ROOT)}: {len(records)} records, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
