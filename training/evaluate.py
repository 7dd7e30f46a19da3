"""How often the embedded model draws what its prompt says: through the product, on combinations never trained on.

    python -m training.evaluate                      # 500 prompts at default settings, a table by attribute
    python -m training.evaluate --behaviour          # guidance, negative prompts, steps and samplers, 100 prompts each

Further arguments are those of `python -m tpusd.run`: model=local model.path=DIR measures another export. Attributes are
read from the pixels by tpusd.scores.portraits.measure; nothing is learned for it.
"""

import argparse
import functools
import json
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tpusd.config.choices import conf_directory
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.plan.batches import pack
from tpusd.plan.specs import make_specs
from tpusd.scores.portraits.measure import Look, as_drawn, read_portrait
from tpusd.scores.portraits.world import VALUES, Portrait, draw_portrait
from training.captions import make_caption
from training.pool import sheet

SEED = 101
BATCH_SIZE = 20
# What the negative prompt names, in prompts that are silent about it, and the value that should become rare: the most
# frequent one.
NEGATIVE = {
    "person": ("a woman", "woman"),
    "expression": ("a serious person", "serious"),
    "hair_color": ("brown hair", "brown"),
    "background": ("yellow background", "yellow"),
}


def held_out_prompts(count: int, silent: Sequence[str] = ()) -> tuple[list[Portrait], list[str]]:
    """Portraits and their captions, which name all that shows but `silent`. The first n do not depend on count."""
    rng = np.random.default_rng(SEED)
    portraits, prompts = [], []
    for _ in range(count):
        portraits.append(draw_portrait(rng, held_out=True))
        prompts.append(make_caption(portraits[-1], set(portraits[-1].visible) - set(silent), rng))
    return portraits, prompts


def generate(prompts: Sequence[str], *overrides: str) -> np.ndarray:
    """(n,H,W,3) uint8, as `python -m tpusd.run` with these overrides and prompts makes them."""
    return generate_timed(prompts, *overrides)[0]


def generate_timed(prompts: Sequence[str], *overrides: str) -> tuple[np.ndarray, float]:
    """The same, and the seconds of the batches without compiling and reading weights."""
    from tpusd.runs.loras import scaled
    from tpusd.runs.prepare import prepare_run

    (job,) = compose_jobs([f"batch_size_per_device={BATCH_SIZE}", f"seed={SEED}", *overrides])
    rows = [{"prompt": prompt} for prompt in prompts]
    config = make_config(job.values | {"prompts": {"name": "evaluation", "rows": rows}})
    prepared = prepare_run(config)
    pipeline = _pipeline(config.model, config.precision, prepared.config.height, prepared.config.width)
    images = ((prepared, spec) for spec in make_specs(prepared.config))
    made, seconds = {}, 0.0
    for batch in pack(images, config.batch_size_per_device, lambda run, spec: run.num_calls(spec)):
        tables = [prepared.table(spec) for spec in batch.specs]
        began, spent = time.monotonic(), sum(pipeline.seconds.values())
        images_of = pipeline.generate(batch.specs, tables, loras=scaled(prepared.config, prepared.loras))
        seconds += time.monotonic() - began - (sum(pipeline.seconds.values()) - spent)
        for spec, image in zip(batch.specs, images_of, strict=True):
            made[spec.row] = image.pixels
    return np.stack([made[row] for row in sorted(made)]), seconds


@functools.cache
def _pipeline(model, precision, height: int, width: int):
    """One pipeline for all settings that compile nothing again."""
    import jax

    from tpusd.checkpoints import ModelSource, open_checkpoint
    from tpusd.engine.pipeline import Pipeline

    checkpoint = open_checkpoint(ModelSource(asset=model.asset, path=model.path, repo=model.repo))
    return Pipeline.load(
        checkpoint, precision, height=height, width=width, batch_size_per_device=BATCH_SIZE, devices=jax.devices()[:1]
    )


def read_portraits(images: np.ndarray, look: Look = as_drawn, processes: int = 2) -> list[Portrait]:
    """What `tpusd.scores.portraits.measure` sees in each. look: of the images."""
    read = functools.partial(read_portrait, look=look)
    if processes == 1:
        return [read(image) for image in images]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return pool.map(read, list(images), chunksize=5)


def count_matches(seen: Sequence[Portrait], wanted: Sequence[Portrait]) -> dict[str, tuple[int, int]]:
    """Per attribute: (pictures in which it is as wanted, pictures in which it should show)."""
    counts = {}
    for name in VALUES:
        pairs = [(a, b) for a, b in zip(seen, wanted, strict=True) if name in b.visible]
        counts[name] = (sum(_shows(a, name, getattr(b, name)) for a, b in pairs), len(pairs))
    return counts


def _shows(portrait: Portrait, name: str, value: str) -> bool:
    return name in portrait.visible and getattr(portrait, name) == value


def mean_accuracy(counts: dict[str, tuple[int, int]]) -> float:
    """Of the attributes' shares, 0..1."""
    return float(np.mean([right / shown for right, shown in counts.values() if shown]))


def table(counts: dict[str, tuple[int, int]]) -> str:
    """Markdown, with the mean of the attributes' accuracies last."""
    lines = ["| attribute | accuracy | pictures |", "| --- | --- | --- |"]
    lines += [
        f"| {name.replace('_', ' ')} | {100 * right / shown:.1f} % | {shown} |"
        for name, (right, shown) in counts.items()
        if shown
    ]
    return "\n".join([*lines, f"| **mean** | **{100 * mean_accuracy(counts):.1f} %** | |"])


def accuracy_at(count: int, *overrides: str) -> float:
    """Mean accuracy on `count` held-out prompts with these overrides."""
    portraits, prompts = held_out_prompts(count)
    return mean_accuracy(count_matches(read_portraits(generate(prompts, *overrides)), portraits))


def rates_with_negative(name: str, count: int, *overrides: str) -> tuple[float, float]:
    """How often NEGATIVE[name]'s value shows where prompts are silent about it, without and with the negative one."""
    text, value = NEGATIVE[name]
    _, prompts = held_out_prompts(count, silent=(name, *(("beard",) if name == "person" else ())))
    rates = []
    for more in ((), (f'negative_prompt="{text}"',)):
        seen = read_portraits(generate(prompts, *overrides, *more))
        rates.append(sum(_shows(portrait, name, value) for portrait in seen) / count)
    return rates[0], rates[1]


def report_behaviour(count: int, overrides: Sequence[str]) -> None:
    """Prints Markdown tables, each line as soon as it is known."""
    print("| guidance_scale | mean accuracy |\n| --- | --- |")
    for scale in (1, 2, 4, 7.5):
        print(f"| {scale} | {100 * accuracy_at(count, *overrides, f'guidance_scale={scale}'):.1f} % |", flush=True)
    print("\n| negative prompt | without | with |\n| --- | --- | --- |")
    for name, (text, value) in NEGATIVE.items():
        without, given = rates_with_negative(name, count, *overrides)
        print(f"| {text} | {100 * without:.0f} % {value} | {100 * given:.0f} % |", flush=True)
    print("\n| steps | mean accuracy |\n| --- | --- |")
    for steps in (20, 50, 100):
        accuracy = accuracy_at(count, *overrides, f"sampler.num_inference_steps={steps}")
        print(f"| {steps} | {100 * accuracy:.1f} % |", flush=True)
    print("\n| sampler, at its own steps | mean accuracy |\n| --- | --- |")
    for sampler in sorted(file.stem for file in (conf_directory() / "sampler").glob("*.yaml")):
        print(f"| {sampler} | {100 * accuracy_at(count, *overrides, f'sampler={sampler}'):.1f} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*", help="as for python -m tpusd.run")
    parser.add_argument("--count", type=int, help="prompts: 500, or 100 with --behaviour")
    parser.add_argument("--behaviour", action="store_true")
    parser.add_argument("--sheet", type=Path, help="where a sheet of the first 60 pictures goes")
    args = parser.parse_args()
    if args.behaviour:
        return report_behaviour(args.count or 100, args.overrides)
    portraits, prompts = held_out_prompts(args.count or 500)
    since = time.monotonic()
    images = generate(prompts, *args.overrides)
    seconds = time.monotonic() - since
    if args.sheet is not None:
        Image.fromarray(sheet(images[: len(images) // 10 * 10][:60], 10)).save(args.sheet)
    counts = count_matches(read_portraits(images), portraits)
    print(table(counts))
    print(json.dumps({"images": len(images), "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    main()
