"""A small run without a model: configs from the real conf/, and a pipeline whose pixels follow from the spec alone."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from tpusd.config.compose import compose_jobs
from tpusd.config.rows import Row
from tpusd.config.schema import RunConfig, SavedConfig, make_config, saved_config
from tpusd.prompts.rows import read_rows
from tpusd.runs.prepare import PreparedRun, config_to_save
from tpusd.runs.texts import count_tokens
from tpusd.samplers.rows import COLUMNS, Table

INLINE = 'prompts.rows=[{prompt: "a red fox"}, {prompt: "an owl", negative_prompt: dark}, {prompt: "a moose", seed: 7}]'


def config(*overrides: str) -> RunConfig:
    (job,) = compose_jobs(overrides)
    return make_config(job.values)


def saved(*overrides: str, rows: Sequence[Row] | None = None, height: int = 24, width: int = 40) -> SavedConfig:
    """A config with its rows and size filled in: those given, or the ones that the overrides name."""
    made = config(*overrides)
    return saved_config(made, rows=tuple(rows or read_rows(made.prompts)), height=height, width=width)


def manifest(path: Path) -> list[dict]:
    """The lines of a manifest as the file has them."""
    return [json.loads(line) for line in (Path(path) / "manifest.jsonl").read_bytes().splitlines()]


def pixels(spec) -> np.ndarray:
    recipe = (
        spec.row if spec.row_seed is None else None,
        spec.copy,
        spec.prompt,
        spec.negative_prompt,
        spec.seed,
        spec.row_seed,
        spec.guidance_scale,
        spec.guidance_rescale,
        spec.height,
        spec.width,
        spec.sampler,
    )
    generator = np.random.default_rng(zlib.crc32(repr(recipe).encode()))
    return generator.integers(0, 256, (spec.height, spec.width, 3), np.uint8)


def generated(spec) -> SimpleNamespace:
    """As tpusd.engine.pipeline.GeneratedImage; the trace, too, follows from the spec alone."""
    made = pixels(spec)
    return SimpleNamespace(
        pixels=made,
        trace={"tokens": f"{zlib.crc32(spec.prompt.encode()):08x}", "latents": {"1": f"{zlib.crc32(made):08x}"}},
        not_finite=None,
    )


class StandInPipeline:
    """Generates like the real one, with three steps of progress; `fails_at`: raises at that batch."""

    fingerprints = {"encode": "e" * 64, "denoise": "d" * 64, "decode": "c" * 64}

    seconds = {"compile": 0.0, "weights": 0.0}

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None):
        self.batches, self.fails_at, self.error = [], fails_at, error

    def generate(self, specs, tables, *, loras=(), on_step=None):
        assert len(tables) == len(specs)
        if len(self.batches) == self.fails_at:
            raise self.error
        self.batches.append(specs)
        for step in range(1, 4):
            on_step(step, 3)
        return [generated(spec) for spec in specs]


def tokenize(texts, limit=7):
    """A token a word, between a start and an end."""
    lengths = np.array([len(text.split()) + 2 for text in texts])
    return SimpleNamespace(
        input_ids=np.zeros((len(texts), limit), np.int32), num_tokens=lengths, truncated=lengths > limit
    )


SHA256 = {"unet/weights.safetensors": "0" * 64}


def stand_in_checkpoint():
    identity = SimpleNamespace(repo=None, commit=None, variant=None, sha256=SHA256)
    return SimpleNamespace(identity=identity, scheduler_config=None, tokenizers=(tokenize,), controls=())


def prepare(config: RunConfig) -> PreparedRun:
    rows = read_rows(config.prompts)
    checkpoint = stand_in_checkpoint()
    tokens, warnings = count_tokens(config, rows, checkpoint.tokenizers)
    height, width = config.height or 24, config.width or 40
    return PreparedRun(
        config=config_to_save(config, rows, checkpoint, height, width),
        checkpoint=checkpoint,
        tokens=tokens,
        table=lambda spec: Table(np.zeros((spec.sampler.num_inference_steps, COLUMNS)), 1.0),  # a real one's length
        warnings=warnings,
    )


# First lines of a child process that is to be signalled: a shell's job in the background ignores SIGINT, nohup SIGHUP.
HEAR_SIGNALS = (
    "import signal\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
)
