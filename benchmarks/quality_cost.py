"""Quality against cost of the embedded model: fewer steps, guidance in an interval, and DeepCache, as a table.

    python -m benchmarks.quality_cost                       # 400 prompts, about an hour on two idle cores
    python -m benchmarks.quality_cost --count 20            # a try

Quality is the share of attributes that are drawn as prompted, on combinations that were never trained on
(training/evaluate.py); cost is seconds an image without compiling, the median of batches. A setting is of use only
where it beats fewer steps at equal time, so each one that is cheaper than all steps gets a line with as many steps as
take its time. All settings make the same prompts from the same noise, a batch each in turn: what else the machine does
falls on all alike. Differences are of pairs of pictures, with their standard error. Further arguments are those of
`python -m tpusd.run`, such as sampler=ddim.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
from training.world import Portrait

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
    parser.add_argument("--processes", type=int, default=2, help="that read pictures")
    args = parser.parse_args()
    settings = {name: [*args.overrides, *more, *name.split()] for name, more in SETTINGS.items()}
    settings = {steps_name(args.steps): list(args.overrides)} | settings
    settings = {name: [f"sampler.num_inference_steps={args.steps}", *words] for name, words in settings.items()}
    portraits, prompts = held_out_prompts(args.count)
    equal = equal_steps(prompts[:BATCH_SIZE], settings, args.steps)
    for steps in sorted(set(equal.values()), reverse=True):
        settings[steps_name(steps)] = [f"sampler.num_inference_steps={steps}", *args.overrides]
    images, seconds = made_in_turn(prompts, settings)
    scores = {
        name: np.array([share(seen, wanted) for seen, wanted in zip(of, portraits, strict=True)])
        for name, pixels in images.items()
        for of in [read_portraits(pixels, processes=args.processes)]
    }
    print(table(scores, seconds, {name: steps_name(steps) for name, steps in equal.items()}, steps_name(args.steps)))


def steps_name(steps: int) -> str:
    return f"{steps} steps"


def equal_steps(prompts: Sequence[str], settings: Mapping[str, Sequence[str]], steps: int) -> dict[str, int]:
    """For each setting that is cheaper than all steps, how many steps take its time.

    The time of steps is a line through all of them and a fifth of them: what is done once is not for free.
    """
    few = max(1, steps // 5)
    whole = steps_name(steps)
    tried = dict(settings) | {"few": [*settings[whole], f"sampler.num_inference_steps={few}"]}
    for words in tried.values():
        generate_timed(prompts, *words)  # compiled, and warm
    seconds = {name: min(generate_timed(prompts, *words)[1] for _ in range(2)) for name, words in tried.items()}
    a_step = max((seconds[whole] - seconds["few"]) / (steps - few), 1e-9)
    found = {name: few + round((seconds[name] - seconds["few"]) / a_step) for name in settings if name != whole}
    return {name: max(1, number) for name, number in found.items() if number < steps}


def made_in_turn(
    prompts: Sequence[str], settings: Mapping[str, Sequence[str]]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Pictures of each setting, and its seconds an image."""
    images: dict[str, list[np.ndarray]] = {name: [] for name in settings}
    seconds: dict[str, list[float]] = {name: [] for name in settings}
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        for name, words in settings.items():
            pixels, spent = generate_timed(batch, *words, f"first_row={start}")
            images[name].append(pixels)
            if len(batch) == BATCH_SIZE or start == 0:  # a last batch is padded
                seconds[name].append(spent / len(batch))
    return {name: np.concatenate(of) for name, of in images.items()}, {
        name: statistics.median(of) for name, of in seconds.items()
    }


def share(seen: Portrait, wanted: Portrait) -> float:
    """Of the attributes that should show, how many are as prompted."""
    right = [name in seen.visible and getattr(seen, name) == getattr(wanted, name) for name in wanted.visible]
    return float(np.mean(right))


def table(scores: Mapping[str, np.ndarray], seconds: Mapping[str, float], equal: Mapping[str, str], whole: str) -> str:
    """Markdown. equal: setting -> the steps that take its time. whole: all steps."""
    lines = [
        "| setting | s an image | times as fast | attributes as prompted | against all steps "
        "| against as many steps as take its time |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in scores.items():
        fewer = f"{difference(own, scores[equal[name]])} ({equal[name]})" if name in equal else ""
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
