"""Quality against cost of the embedded model: fewer steps, guidance in an interval, and DeepCache, as a table.

    python -m benchmarks.quality_cost                       # 400 prompts, about an hour on two idle cores
    python -m benchmarks.quality_cost --count 20 --steps 10 --only cache.interval=3     # a try

Quality is the share of attributes that are drawn as prompted, on combinations that were never trained on
(training/evaluate.py); cost is seconds an image without compiling, the median of batches. A setting is of use only
where it beats fewer steps at equal time, so steps of three tenths to nine tenths are made too, and each setting is put
beside the fewest of them that take as long as it or longer. All settings make the same prompts from the same noise, a
batch each in turn: what else the machine does falls on all alike. Differences are of pairs of pictures, with their
standard error. Further arguments are those of `python -m tpusd.run`, such as sampler=ddim.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from tpusd.scores.portraits.world import Portrait
from training.evaluate import BATCH_SIZE, generate_timed, held_out_prompts, read_portraits

STEPS = 50
CACHE = "cache=deepcache"
SETTINGS: Mapping[str, tuple[str, ...]] = {
    "guidance_interval=[0,0.5]": (),
    "guidance_interval=[0.2,0.8]": (),
    **{f"cache.interval={interval}": (CACHE,) for interval in (2, 3, 5)},
    **{f"cache.interval={interval} cache.branch=1": (CACHE,) for interval in (2, 3, 5)},
    "cache.interval=3 guidance_interval=[0.2,0.8]": (CACHE,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as for python -m tpusd.run")
    parser.add_argument("--count", type=int, default=400, help="prompts, in batches of 20")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--only", default="", metavar="TEXT", help="only the settings whose name has it")
    parser.add_argument("--processes", type=int, default=2, help="that read pictures")
    args = parser.parse_args()
    settings = {name: [*args.overrides, *more, *name.split()] for name, more in SETTINGS.items() if args.only in name}
    settings = {steps_name(args.steps): list(args.overrides)} | settings
    settings = {name: [f"sampler.num_inference_steps={args.steps}", *words] for name, words in settings.items()}
    portraits, prompts = held_out_prompts(args.count)
    ladder = sorted({max(1, args.steps * tenth // 10) for tenth in range(3, 10)} - {args.steps}, reverse=True)
    for steps in ladder:
        settings[steps_name(steps)] = [f"sampler.num_inference_steps={steps}", *args.overrides]
    for name, words in settings.items():
        say(f"compiling for {name}")
        generate_timed(prompts[:BATCH_SIZE], *words)
    images, seconds = made_in_turn(prompts, settings)
    scores = {
        name: np.array([share(seen, wanted) for seen, wanted in zip(of, portraits, strict=True)])
        for name, pixels in images.items()
        for of in [read_portraits(pixels, processes=args.processes)]
    }
    print(table(scores, seconds, [steps_name(steps) for steps in (args.steps, *ladder)]))


def steps_name(steps: int) -> str:
    return f"{steps} steps"


def made_in_turn(
    prompts: Sequence[str], settings: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Pictures of each setting, and its seconds an image."""
    images: dict[str, list[np.ndarray]] = {name: [] for name in settings}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        say(f"{start} of {len(prompts)} prompts, with {len(settings)} settings")
        for name, words in settings.items():
            pixels, spent = generate_timed(batch, *words, f"first_row={start}")
            images[name].append(pixels)
            if len(batch) == BATCH_SIZE or start == 0:  # a last batch is padded
                seconds[name].append(spent / len(batch))
    return {name: np.concatenate(of) for name, of in images.items()}, {
        name: statistics.median(of) for name, of in seconds.items()
    }


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def share(seen: Portrait, wanted: Portrait) -> float:
    """Of the attributes that should show, how many are as prompted."""
    right = [name in seen.visible and getattr(seen, name) == getattr(wanted, name) for name in wanted.visible]
    return float(np.mean(right))


def table(scores: Mapping[str, np.ndarray], seconds: Mapping[str, float], steps: Sequence[str]) -> str:
    """Markdown. steps: the settings that differ in their number alone, all steps first."""
    whole, *_ = steps
    lines = [
        "| setting | s an image | times as fast | attributes as prompted | against all steps "
        "| against the fewest steps that take as long |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in scores.items():
        fewer = ""
        if name not in steps:
            equal = min((one for one in steps if seconds[one] >= seconds[name]), key=seconds.__getitem__, default=whole)
            fewer = f"{difference(own, scores[equal])} ({equal}, {seconds[equal]:.3f} s)"
        cells = [
            name,
            f"{seconds[name]:.3f}",
            f"{seconds[whole] / seconds[name]:.2f}",
            f"{100 * own.mean():.1f} %",
            "" if name == whole else difference(own, scores[whole]),
            fewer,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(one: np.ndarray, other: np.ndarray) -> str:
    """Of the means of pairs, in points, with its standard error."""
    pairs = 100 * (one - other)
    return f"{pairs.mean():+.1f} ± {pairs.std(ddof=1) / len(pairs) ** 0.5:.1f}"


if __name__ == "__main__":
    main()
