"""A config -> a run that passed every check that needs no device: prompts, checkpoint files, sizes, sampler, tokens.

Cheapest first, and before anything heavy is imported: transformers is loaded inside functions. Knows nothing of run
directories and of how images are made.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tpusd.config.rows import Row
from tpusd.config.sampler import SamplerSettings
from tpusd.config.schema import ModelConfig, RunConfig, SavedConfig, saved_config
from tpusd.errors import UserError, show
from tpusd.loggers.registry import check_loggers
from tpusd.plan.sizes import image_size
from tpusd.plan.specs import ImageSpec
from tpusd.process.waiting import waiting
from tpusd.prompts.rows import MAX_LISTED, column_notes, read_rows
from tpusd.prompts.vocabulary import vocabulary_notes

if TYPE_CHECKING:
    from tpusd.checkpoints import Checkpoint
    from tpusd.checkpoints.tokenizer import Tokenizer
    from tpusd.samplers.rows import Table


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that passed every check that needs no device.

    config: what config.yaml says: with the commit, the image size and all rows.
    checkpoint: opened; its weights are not read yet.
    tokens: text -> (number of tokens before truncation, whether it was truncated).
    table: sampler settings -> the table of the checkpoint's schedule.
    warnings: a line for each thing that the user should know and that does not stop the run.
    """

    config: SavedConfig
    checkpoint: "Checkpoint"
    tokens: Mapping[str, tuple[int, bool]]
    table: Callable[[SamplerSettings], "Table"]
    warnings: tuple[str, ...]

    def num_calls(self, spec: ImageSpec) -> int:
        """Model calls that an image takes."""
        return len(self.table(spec.sampler))


class Prepare(Protocol):
    """The signature of `prepare_run`."""

    def __call__(self, config: RunConfig, /) -> PreparedRun: ...


def open_model(model: ModelConfig) -> "Checkpoint":
    """The checkpoint that a config names; its weights are not read yet. Raises UserError."""
    with waiting("loading libraries"):
        from tpusd.checkpoints import open_checkpoint

    return open_checkpoint(model)


def prepare_run(config: RunConfig, *, open_model: Callable[[ModelConfig], "Checkpoint"] = open_model) -> PreparedRun:
    """Every check that needs no device: prompts, checkpoint files, sizes, sampler, token counts. Raises UserError.

    open_model: what hands out a checkpoint that is open already, where several runs share it.
    """
    check_loggers(config.loggers)
    rows = read_rows(config.prompts)
    model = config.model
    checkpoint = open_model(model)
    checkpoint.family.check(config)
    height, width = image_size(config, checkpoint)

    @functools.cache
    def table(settings: SamplerSettings) -> "Table":
        return checkpoint.family.schedule(settings, checkpoint.scheduler_config, height, width)

    table(config.sampler)  # its settings may not suit each other or the checkpoint
    tokens, warnings = count_tokens(config, rows, checkpoint.tokenizers)
    notes = [*column_notes(rows), *checkpoint.family.schedule_notes(config.sampler, checkpoint.scheduler_config)]
    warnings = (*warnings, *notes, *vocabulary_notes(model, list(tokens), checkpoint.tokenizers))
    return PreparedRun(
        config=config_to_save(config, rows, checkpoint, height, width),
        checkpoint=checkpoint,
        tokens=tokens,
        table=table,
        warnings=warnings,
    )


def count_tokens(
    config: RunConfig, rows: Sequence[Row], tokenizers: Sequence["Tokenizer"]
) -> tuple[dict[str, tuple[int, bool]], tuple[str, ...]]:
    """Token count of every text of the run, and the warnings; with on_truncate=error the first long one is refused."""
    texts: dict[str, str] = {}  # text -> where it comes first
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
    rest = [f"{texts[name]} ({counts[name][0]})" for name in long[1:MAX_LISTED]]
    more = f"; also too long: {', '.join(rest)}" if rest else ""
    more += f" and {len(long) - MAX_LISTED} more" if len(long) > MAX_LISTED else ""
    if config.on_truncate == "error":
        raise UserError(f"{first}; shorten it, or set on_truncate=warn to have its end left out: {show(long[0])}{more}")
    return counts, (f"{first}; its end is left out: {show(long[0])}{more}",)


def config_to_save(
    config: RunConfig, rows: tuple[Row, ...], checkpoint: "Checkpoint", height: int, width: int
) -> SavedConfig:
    """The config with what its meaning depended on: the file's rows, the commit, the size, a full path."""
    model = config.model
    if model.repo is not None:
        model = replace(model, revision=checkpoint.identity.commit or model.revision)
    elif model.path is not None:
        model = replace(model, path=str(Path(model.path).resolve()))
    name = None if config.prompts.path is None else Path(config.prompts.path).stem
    return saved_config(replace(config, model=model), rows=rows, height=height, width=width, prompts_name=name)
