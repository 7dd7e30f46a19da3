"""`python -m tpusd.run`: config -> rows -> checkpoint -> plan -> run directory -> images.

Everything that can be wrong is checked in that order, cheapest first, before anything heavy is imported: jax, flax and
transformers are loaded inside functions. Knows nothing of samplers, models or file formats.
"""

import contextlib
import functools
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tpusd.config import RunConfig, check_size, config_values, make_config, show
from tpusd.errors import UserError
from tpusd.plan import ImageSpec, Plan, make_plan
from tpusd.prompts import Row, read_rows, row_values

SHEET_COLUMNS = 8
SHEET_IMAGES = 96  # a contact sheet of more is no longer looked at
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that passed every check that needs no device. Sizes in pixels."""

    config: RunConfig  # height, width, revision and rows filled in: what config.yaml says
    rows: tuple[Row, ...]
    checkpoint: Any
    height: int
    width: int
    tokens: Mapping[str, tuple[int, bool]]  # text -> tokens before truncation, and whether it was truncated
    table: Callable[[Any], Any]  # sampler settings -> table of the checkpoint's schedule
    warnings: tuple[str, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """The command. argv: without the program's name. Returns the exit status."""
    with exit_status() as status:
        from tpusd.compose import compose_jobs

        jobs = compose_jobs(sys.argv[1:] if argv is None else argv)
        if jobs is not None:
            configs = [make_config(job.values) for job in jobs]  # all of them, before the first starts
            outputs = [config.output for config in configs if config.output is not None]
            if len(set(outputs)) < len(outputs):
                raise UserError(f"output={show(outputs[0])}: several runs cannot share a directory; leave output out")
            for job, config in zip(jobs, configs, strict=True):
                run(
                    config,
                    hydra_files={
                        "overrides.yaml": list(job.overrides),
                        "config.yaml": job.values,
                        "hydra.yaml": job.hydra_yaml,
                    },
                )
    return status[0]


@contextlib.contextmanager
def exit_status() -> Iterator[list[int]]:
    """What every entry point wraps itself in: one line on stderr and status 2 for what the user can mend."""
    status = [0]
    try:
        yield status
    except UserError as error:
        print(f"tpusd: {' '.join(str(error).split())}", file=sys.stderr)
        status[0] = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("tpusd: interrupted; every image in the manifest is whole", file=sys.stderr)
        status[0] = EXIT_INTERRUPTED


def run(
    config: RunConfig,
    *,
    hydra_files: Mapping[str, Any] | None = None,
    prepare: Callable[..., PreparedRun] | None = None,
    load: Callable[..., Any] | None = None,
) -> Path:
    """Makes a whole run; returns its directory. prepare, load: `prepare_run` and `load_pipeline` unless given."""
    from tpusd.run_dir import RunDir, check_claim, make_claim, to_yaml

    started = datetime.now(UTC)
    name = config.prompts.name if config.prompts.path is None else Path(config.prompts.path).stem
    claim = make_claim(config.output, name, started.astimezone())
    check_claim(claim)
    prepared = (prepare or prepare_run)(config)
    for warning in prepared.warnings:
        print(f"tpusd: {warning}", file=sys.stderr)
    run_dir = RunDir.claim(claim)
    try:
        with logged(run_dir):
            for warning in prepared.warnings:
                run_dir.log(f"{_now()} {warning}")
            run_dir.write_config(config_values(prepared.config))
            for file, values in (hydra_files or {}).items():
                run_dir.write(f".hydra/{file}", (values if isinstance(values, str) else to_yaml(values)).encode())
            _make(prepared, run_dir, started, load or load_pipeline)
    except UserError:
        if next(run_dir.records(), None) is None:
            run_dir.discard()  # nothing came of it, so nothing stays of it
        raise
    finally:
        with contextlib.suppress(OSError):
            run_dir.close()
    return run_dir.path


def prepare_run(config: RunConfig) -> PreparedRun:
    """Every check that needs no device: prompts, checkpoint files, sizes, sampler, token counts. Raises UserError."""
    rows = read_rows(config.prompts)
    from tpusd.checkpoints import ModelSource, open_checkpoint
    from tpusd.samplers.table import make_table

    model = config.model
    checkpoint = open_checkpoint(
        ModelSource(asset=model.asset, path=model.path, repo=model.repo, revision=model.revision, variant=model.variant)
    )
    if checkpoint.kind == "sdxl" and config.precision.vae.dtype == "float16":
        raise UserError("precision.vae.dtype=float16: SDXL's VAE overflows in float16; use float32 or bfloat16")
    table = functools.cache(lambda settings: make_table(settings, checkpoint.scheduler_config))
    table(config.sampler)  # its settings may not suit each other or the checkpoint
    height, width = image_size(config, checkpoint)
    tokens, warnings = count_tokens(config, rows, checkpoint.tokenizers)
    return PreparedRun(
        config=_saved_config(config, rows, checkpoint, height, width),
        rows=rows,
        checkpoint=checkpoint,
        height=height,
        width=width,
        tokens=tokens,
        table=table,
        warnings=warnings,
    )


def image_size(config: RunConfig, checkpoint: Any) -> tuple[int, int]:
    """Height and width in pixels, the model's own where the config leaves them open. Raises UserError."""
    scale = 2 ** (len(checkpoint.vae_config.block_out_channels) - 1)
    own = checkpoint.unet_config.sample_size
    own = (own, own) if isinstance(own, int) else tuple(own)
    sizes = [
        size if size is not None else latents * scale
        for size, latents in zip((config.height, config.width), own, strict=True)
    ]
    for name, size in zip(("height", "width"), sizes, strict=True):
        check_size(name, size)
        if size % scale:
            raise UserError(f"{name}={size}: must be a multiple of {scale} for model={config.model.name}")
    return sizes[0], sizes[1]


def count_tokens(
    config: RunConfig, rows: Sequence[Row], tokenizers: Sequence[Callable]
) -> tuple[dict[str, tuple[int, bool]], tuple[str, ...]]:
    """Token count of every text of the run, and the warnings; with on_truncate=error the first long one is refused."""
    texts: dict[str, str] = {}  # text -> where it stands first
    for index, row in enumerate(rows):
        texts.setdefault(row.prompt, f"prompt of row {index}")
        if row.negative_prompt is not None:
            texts.setdefault(row.negative_prompt, f"negative_prompt of row {index}")
    if config.negative_prompt is not None:
        texts.setdefault(config.negative_prompt, "negative_prompt")
    names = list(texts)
    counts = dict.fromkeys(names, (0, False))
    for tokenizer in tokenizers:
        tokenized = tokenizer(names)
        for name, number, truncated in zip(names, tokenized.num_tokens, tokenized.truncated, strict=True):
            counts[name] = (max(counts[name][0], int(number)), counts[name][1] or bool(truncated))
        limit = tokenized.input_ids.shape[1]
    long = [name for name in names if counts[name][1]]
    if not long:
        return counts, ()
    first = f"{texts[long[0]]}: {counts[long[0]][0]} tokens, and the model reads {limit}"
    if config.on_truncate == "error":
        raise UserError(f"{first}; shorten it, or set on_truncate=warn to have its end left out: {show(long[0])}")
    more = f" ({len(long)} texts are too long)" if len(long) > 1 else ""
    return counts, (f"{first}; its end is left out{more}: {show(long[0])}",)


def load_pipeline(config: RunConfig, checkpoint: Any, devices: Sequence[Any], *, height: int, width: int) -> Any:
    from tpusd.pipeline import Pipeline

    return Pipeline.load(
        checkpoint,
        config.precision,
        height=height,
        width=width,
        batch_size_per_device=config.batch_size_per_device,
        devices=devices,
    )


def run_images(
    plan: Plan,
    run_dir: Any,
    pipeline: Any,
    *,
    tables: Callable[[ImageSpec], Any],
    describe: Callable[[ImageSpec], Mapping[str, Any]],
    progress: Any,
) -> None:
    """Makes every batch of the plan: the device works on the next while a pool encodes and writes the last."""
    from tpusd.writer import ImageWriter

    largest = max((batch.padded_size for batch in plan.batches), default=1)
    with ImageWriter(run_dir, describe, max_pending=2 * largest) as writer:
        for batch in plan.batches:
            progress.start_batch(len(batch.specs))
            pixels = pipeline.generate(list(batch.specs), [tables(spec) for spec in batch.specs], on_step=progress.step)
            writer.submit(batch.specs, pixels)
            progress.end_batch()


@contextlib.contextmanager
def logged(run_dir: Any) -> Iterator[None]:
    """run.log gets the end of the block, and the whole traceback where that is an error of ours."""
    try:
        yield
    except UserError as error:
        run_dir.log(f"{_now()} stopped: {error}")
        raise
    except BaseException as error:
        run_dir.log(f"{_now()} stopped: {type(error).__name__}\n{traceback.format_exc()}")
        raise


def _make(prepared: PreparedRun, run_dir: Any, started: datetime, load: Callable[..., Any]) -> None:
    """The part of a run that needs devices, from the claimed directory to its summary line."""
    import jax

    from tpusd.progress import Progress
    from tpusd.provenance import KEY_DERIVATION, describe_checkpoint, describe_devices, versions

    config, checkpoint = prepared.config, prepared.checkpoint
    devices = jax.local_devices()
    plan = make_plan(config, prepared.rows, len(devices), height=prepared.height, width=prepared.width)
    facts = {
        "created": started.isoformat(timespec="seconds"),
        "state": "running",
        "num_images": plan.num_images,
        "versions": versions(),
        "key_derivation": KEY_DERIVATION,
        "devices": describe_devices(devices),
        "checkpoint": describe_checkpoint(checkpoint),
    }
    run_dir.write_run(facts)
    run_dir.log(
        f"{_now()} {plan.num_to_make} images in {len(plan.batches)} batches on {len(devices)} "
        f"{devices[0].device_kind} device(s)"
    )

    def hash_files() -> None:  # reads every weight file, so it goes on beside the images
        facts["checkpoint"] = describe_checkpoint(checkpoint, with_files=True)
        run_dir.write_run(facts)

    progress = Progress(plan.num_images, plan.num_done)
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as background, contextlib.closing(progress):
        hashed = background.submit(hash_files)
        loading = time.monotonic()
        pipeline = load(config, checkpoint, devices, height=prepared.height, width=prepared.width)
        generating = time.monotonic()
        run_images(
            plan,
            run_dir,
            pipeline,
            tables=lambda spec: prepared.table(spec.sampler),
            progress=progress,
            describe=functools.partial(describe_image, config, prepared.tokens),
        )
        seconds = {"load": generating - loading, "generate": time.monotonic() - generating}
        hashed.result()
    write_contact_sheet(run_dir, plan.num_images, len(prepared.rows))
    facts |= {"state": "finished", "seconds": {name: round(value, 3) for name, value in seconds.items()}}
    run_dir.write_run(facts)
    rate = plan.num_to_make / max(seconds["generate"], 1e-9)
    summary = (
        f"{run_dir.path}: {plan.num_to_make} image{'s' if plan.num_to_make != 1 else ''} in "
        f"{seconds['generate']:.1f} s ({rate:.2f} images/s)"
    )
    run_dir.log(f"{_now()} {summary}")
    print(summary)


def describe_image(config: RunConfig, tokens: Mapping[str, tuple[int, bool]], spec: ImageSpec) -> dict[str, Any]:
    """The manifest's own fields of an image, but for `file_name` and `sha256`."""
    num_tokens, truncated = tokens[spec.prompt]
    if spec.negative_prompt is not None:
        truncated = truncated or tokens[spec.negative_prompt][1]
    return {
        "row": spec.row,
        "copy": spec.copy,
        "prompt": spec.prompt,
        "negative_prompt": spec.negative_prompt,
        "seed": spec.seed if spec.row_seed is None else spec.row_seed,
        "row_seed": spec.row_seed,
        "height": spec.height,
        "width": spec.width,
        "sampler": spec.sampler.name,
        "num_inference_steps": spec.sampler.num_inference_steps,
        "guidance_scale": spec.guidance_scale,
        "guidance_rescale": spec.guidance_rescale,
        "model": config.model.name,
        "precision": config.precision.name,
        "num_tokens": num_tokens,
        "truncated": truncated,
    }


def write_contact_sheet(run_dir: Any, num_images: int, num_rows: int) -> None:
    """Thumbnails of the run's images, read back from its manifest: the first copies of the first rows."""
    from PIL import Image

    from tpusd.images import contact_sheet, encode_sheet, sheet_labels
    from tpusd.run_dir import CONTACT_SHEET

    max_copies = SHEET_COLUMNS if num_rows > 1 else SHEET_IMAGES
    first = itertools.islice((record for record in run_dir.records() if record["copy"] < max_copies), SHEET_IMAGES)
    records = sorted(first, key=lambda record: (record["row"], record["copy"]))
    if not records:
        return

    def entries() -> Iterator[tuple[str, Image.Image]]:
        for label, record in zip(sheet_labels(records), records, strict=True):
            with Image.open(run_dir.path / record["file_name"]) as image:
                image.load()
                yield label, image

    note = f"{len(records)} of {num_images} images; all of them are in images/" if len(records) < num_images else ""
    copies = len({record["copy"] for record in records})
    columns = copies if 2 < copies <= SHEET_COLUMNS else 4 if len(records) <= 16 else SHEET_COLUMNS
    run_dir.write(CONTACT_SHEET, encode_sheet(contact_sheet(entries(), columns=columns, note=note)))


def _saved_config(config: RunConfig, rows: Sequence[Row], checkpoint: Any, height: int, width: int) -> RunConfig:
    """The config with everything in it that its meaning hung on: the file's rows, the commit, the size, a full path."""
    model = config.model
    if model.repo is not None:
        model = replace(model, revision=checkpoint.identity.commit or model.revision)
    elif model.path is not None:
        model = replace(model, path=str(Path(model.path).resolve()))
    prompts = config.prompts
    if prompts.path is not None:
        prompts = replace(prompts, name=Path(prompts.path).stem, path=None, column=None)
    prompts = replace(prompts, rows=tuple(row_values(row) for row in rows))
    return replace(config, model=model, prompts=prompts, height=height, width=width)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


if __name__ == "__main__":
    sys.exit(main())
