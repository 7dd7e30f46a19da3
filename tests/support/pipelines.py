"""Real pipelines on tiny random checkpoints, each compiled once for all tests of the process."""

import functools
from pathlib import Path

import jax

from support.checkpoints import tiny
from support.runs import config
from tpusd.checkpoints import ModelSource, open_checkpoint
from tpusd.config.controls import ControlNet
from tpusd.config.schema import saved_config
from tpusd.engine.pipeline import GeneratedImage, Pipeline
from tpusd.inputs.pictures import read_control, read_input
from tpusd.plan.batches import pack
from tpusd.plan.specs import ImageSpec, make_specs
from tpusd.prompts.rows import run_rows
from tpusd.samplers.table import Table, make_table

SIZE = 64  # pixels


@functools.cache
def pipeline(
    layout: str = "sd1",
    *,
    devices: int = 1,
    per_device: int = 1,
    precision: str = "fp32",
    more: tuple[str, ...] = (),
    path: Path | None = None,
    nets: tuple[Path, ...] = (),
) -> Pipeline:
    """more: further fields of the precision. nets: ControlNets."""
    made = config(f"precision={precision}", *more)
    return Pipeline.load(
        checkpoint(layout, path, nets),
        made.precision,
        height=SIZE,
        width=SIZE,
        batch_size_per_device=per_device,
        devices=jax.devices()[:devices],
    )


@functools.cache
def checkpoint(layout: str = "sd1", path: Path | None = None, nets: tuple[Path, ...] = ()):
    sources = tuple(ControlNet(path=str(net)) for net in nets)
    return open_checkpoint(ModelSource(path=str(path or tiny(layout)), controlnets=sources))


def generate(
    pipe: Pipeline,
    *overrides: str,
    layout: str = "sd1",
    path: Path | None = None,
    loras=(),
    tokenizers=None,
    on_step=None,
):
    """{(row, copy): GeneratedImage} of a run with these overrides."""
    made = config(*overrides)
    whole = saved_config(made, rows=run_rows(made), height=SIZE, width=SIZE)
    scheduler_config = checkpoint(layout, path).scheduler_config

    def table(spec: ImageSpec) -> Table:
        return make_table(spec.sampler, scheduler_config, strength=spec.strength)

    entries = ((None, spec) for spec in make_specs(whole))
    images: dict[tuple[int, int], GeneratedImage] = {}
    for batch in pack(
        entries,
        pipe.batch_size,
        lambda run, spec: len(table(spec)),
        lambda run, spec: pipe.text_shape(spec, len(table(spec)), tokenizers),
    ):
        specs = list(batch.specs)
        inputs = [read_input(spec.picture, (SIZE, SIZE)) for spec in specs if spec.picture is not None] or None
        controls = [tuple(read_control(one, (SIZE, SIZE)) for one in spec.active_controls) for spec in specs]
        made_images = pipe.generate(
            specs,
            list(map(table, specs)),
            inputs=inputs,
            controls=controls if any(controls) else None,
            loras=loras,
            tokenizers=tokenizers,
            on_step=on_step,
        )
        images |= {(spec.row, spec.copy): image for spec, image in zip(specs, made_images, strict=True)}
    return images


def prompts(*texts: str) -> str:
    return "prompts.rows=[" + ", ".join(f'{{prompt: "{text}"}}' for text in texts) + "]"
