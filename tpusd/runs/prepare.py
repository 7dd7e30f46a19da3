"""A config -> a run that passed every check that needs no device: prompts, checkpoint files, sizes, sampler, tokens.

Cheapest first, and before anything heavy is imported: transformers is loaded inside functions. Knows nothing of run
directories and of how images are made.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from tpusd.config.controls import ControlNet
from tpusd.config.packed_rows import first_rows
from tpusd.config.rows import Row
from tpusd.config.sampler import SamplerSettings
from tpusd.config.schema import ModelConfig, OtherPart, RunConfig, SavedConfig, saved_config
from tpusd.config.scores import weights_to_save
from tpusd.errors import UserError, show
from tpusd.inputs.row_files import control_notes, files_of
from tpusd.inputs.rows import pinned
from tpusd.loggers.registry import check_loggers
from tpusd.plan.batches import Kind, kind_of
from tpusd.plan.sizes import check_image_size, image_size
from tpusd.plan.specs import ImageSpec, image_sizes, make_spec, planned, settings_of, text_rules
from tpusd.process.waiting import waiting
from tpusd.prompts.rows import MAX_LISTED, column_notes, run_rows
from tpusd.prompts.vocabulary import vocabulary_notes
from tpusd.runs.cards import card_notes
from tpusd.runs.embeddings import (
    OpenEmbeddings,
    changed_embeddings,
    embedding_to_save,
    open_embeddings,
    with_embeddings,
)
from tpusd.runs.loras import OpenLoras, check_loras, lora_to_save, loras_of, open_loras, rows_to_save
from tpusd.runs.safety import OpenSafety, check_checker, open_safety, safety_to_save
from tpusd.runs.scores import check_scores
from tpusd.runs.texts import count_tokens, measure_texts, run_texts
from tpusd.syntax.chunks import Extent, shape_of
from tpusd.syntax.rules import TextShape

if TYPE_CHECKING:
    from tpusd.checkpoints import Checkpoint
    from tpusd.checkpoints.adapters import Embedding, Lora
    from tpusd.samplers.rows import Table
    from tpusd.vision.safety import OpenedChecker


MAX_TABLES = 256  # that are kept: rows may have up to a thousand numbers of steps


@dataclass(frozen=True, kw_only=True)
class PreparedRun:
    """A run that passed every check that needs no device.

    config: what config.yaml says: with the commit, the image size and all rows.
    checkpoint: opened; its weights are not read yet. Its tokenizers know the embeddings.
    tokens: text -> (number of tokens before truncation, whether it was truncated).
    extents: what a text is at a step -> its chunks, where prompts are not plain.
    table: an image -> the table of its sampler, with the checkpoint's schedule.
    warnings: a line for each thing that the user should know and that does not stop the run.
    loras: opened, in the order of `loras_of`.
    embeddings: opened, in the order of config.embeddings.
    safety: the safety checker, opened; None where nobody looks at the pictures.
    """

    config: SavedConfig
    checkpoint: "Checkpoint"
    tokens: Mapping[str, tuple[int, bool]]
    table: Callable[[ImageSpec], "Table"]
    warnings: tuple[str, ...]
    loras: tuple["Lora", ...] = ()
    safety: "OpenedChecker | None" = None
    embeddings: tuple["Embedding", ...] = ()
    extents: Mapping[str, Extent] = field(default_factory=dict)

    def num_calls(self, spec: ImageSpec) -> int:
        """Model calls that an image takes."""
        return len(self.table(spec))

    def text_shape(self, spec: ImageSpec) -> TextShape | None:
        """The shape of an image's prompts; None where the program for plain prompts makes them."""
        if spec.text.is_plain:
            return None
        return shape_of((self.extents.get(text, Extent()) for text in spec.texts(self.num_calls(spec))), spec.text)

    def kind(self, spec: ImageSpec) -> Kind:
        """What an image has in common with those of its batch."""
        return kind_of(spec, self.num_calls(spec), self.text_shape(spec))

    def of_size(self, height: int, width: int) -> "PreparedRun":
        """The run as one whose own size is that of an image whose row has another size: for the programs."""
        if (height, width) == (self.config.height, self.config.width):
            return self
        return replace(self, config=replace(self.config, height=height, width=width))


class Prepare(Protocol):
    """The signature of `prepare_run`."""

    def __call__(self, config: RunConfig, /) -> PreparedRun: ...


def open_model(model: ModelConfig) -> "Checkpoint":
    """The checkpoint that a config names; its weights are not read yet. Raises UserError."""
    with waiting("loading libraries"):
        from tpusd.checkpoints import open_checkpoint

    return open_checkpoint(model)


def prepare_run(
    config: RunConfig,
    *,
    open_model: Callable[[ModelConfig], "Checkpoint"] = open_model,
    open_loras: OpenLoras = open_loras,
    open_safety: OpenSafety = open_safety,
    open_embeddings: OpenEmbeddings = open_embeddings,
) -> PreparedRun:
    """Every check that needs no device: prompts, checkpoint files, sizes, sampler, token counts. Raises UserError.

    open_model: what hands out a checkpoint that is open already, where several runs share it.
    open_loras, open_embeddings, open_safety: the same for LoRAs, embeddings and the safety checker.
    """
    check_loggers(config.loggers)
    rows = run_rows(config)
    model = config.model
    bare = open_model(model)
    embeddings = open_embeddings(config.embeddings, model.name, bare)
    checkpoint = with_embeddings(bare, embeddings)
    checkpoint.family.check(config)
    checkpoint.family.check_cache(checkpoint.configs, config.cache)
    rules = text_rules(config)
    checkpoint.family.check_rules(rules)
    height, width = image_size(config, checkpoint)

    loras = open_loras(loras_of(config, rows), model, checkpoint)
    checker = open_safety(config.safety, model, checkpoint)
    file_notes = [
        *check_loras(config, rows, loras),
        *changed_embeddings(config, embeddings),
        *check_checker(config, checker),
    ]
    saved = config_to_save(config, rows, checkpoint, height, width, loras, embeddings)
    saved = replace(_with_pictures(saved, checkpoint), safety=safety_to_save(config.safety, checker))
    rows = saved.prompts.rows
    file_notes += check_scores(saved)

    table = _tables(checkpoint)
    num_calls = len(table(config.sampler, height, width, 1.0))  # its settings may not suit each other or the checkpoint
    _check_rows(saved, checkpoint, lambda settings, strength: table(settings, height, width, strength))
    extents: dict[str, Extent] = {}
    if rules.is_plain:
        tokens, warnings = count_tokens(config, rows, checkpoint.tokenizers)
    else:
        texts_of = _texts_over_steps(saved, lambda spec: table(spec.sampler, spec.height, spec.width, spec.strength))
        tokens, extents, warnings = measure_texts(config, rows, rules, checkpoint.tokenizers, texts_of)
    notes = [*file_notes, *_size_notes(saved), *column_notes(rows), *control_notes(rows, saved, num_calls)]
    notes += checkpoint.family.schedule_notes(config.sampler, checkpoint.scheduler_config)
    notes += [*checkpoint.family.guidance_notes(checkpoint.configs, saved), *card_notes(saved)]
    warnings = (
        *checkpoint.notes,
        *warnings,
        *notes,
        *vocabulary_notes(model, run_texts(saved, tokens), checkpoint.tokenizers),
    )
    return PreparedRun(
        config=saved,
        checkpoint=checkpoint,
        tokens=tokens,
        table=lambda spec: table(spec.sampler, spec.height, spec.width, spec.strength),
        warnings=warnings,
        loras=loras,
        safety=checker,
        embeddings=embeddings,
        extents=extents,
    )


def _texts_over_steps(config: SavedConfig, table: Callable[[ImageSpec], "Table"]) -> Callable[[int, str], list[str]]:
    """The number of a row, and a text of it -> what the text is over the steps of the row."""

    def texts_of(number: int, text: str) -> list[str]:
        spec = make_spec(config, number, config.first_copy)
        return [phase.text for phase in spec.phases(text, len(table(spec)))]

    return texts_of


def table_of(checkpoint: "Checkpoint") -> Callable[[ImageSpec], "Table"]:
    """An image -> the table of its sampler, with the checkpoint's schedule."""
    table = _tables(checkpoint)
    return lambda spec: table(spec.sampler, spec.height, spec.width, spec.strength)


def _tables(checkpoint: "Checkpoint") -> Callable[[SamplerSettings, int, int, float], "Table"]:
    @functools.lru_cache(MAX_TABLES)
    def table(settings: SamplerSettings, height: int, width: int, strength: float) -> "Table":
        return checkpoint.family.schedule(settings, checkpoint.scheduler_config, height, width, strength=strength)

    return table


def _with_pictures(config: SavedConfig, checkpoint: "Checkpoint") -> SavedConfig:
    """The config with the sha256 of every picture of its rows. Raises UserError for a broken one."""
    images = planned(config)
    if checkpoint.family.inpaints(checkpoint.configs):
        bare = next((number for number, row in settings_of(config) if row.mask is None), None)
        if bare is not None:
            raise UserError(
                f"model={show(config.model.name)}: makes the masked part of a picture, and row {bare} has no mask; add "
                "image=FILE mask=FILE, or choose a model that makes whole pictures"
            )
    if not any(next(files_of(row), None) for _, row in first_rows(config.prompts.rows)):
        return config
    with waiting("reading pictures"):
        rows = pinned(
            config.prompts.rows,
            config,
            box=(config.height, config.width),
            multiple=checkpoint.family.size_multiple(checkpoint.configs),
            used=lambda number: any((number, copy) in images for copy in images.copies),
        )
    return replace(config, prompts=replace(config.prompts, rows=rows))


def _check_rows(
    config: SavedConfig, checkpoint: "Checkpoint", table: Callable[[SamplerSettings, float], object]
) -> None:
    """Raises UserError for sizes, steps and strengths of rows that the checkpoint cannot make: each value once.

    table: sampler settings and strength -> their table.
    """
    faults: list[str] = []
    seen: set[object] = {(config.height, config.width), (config.sampler, 1.0)}
    for number, _ in settings_of(config):
        spec = make_spec(config, number, config.first_copy)
        checks: dict[object, Callable[[], object]] = {
            (spec.height, spec.width): functools.partial(check_image_size, config, checkpoint, spec.height, spec.width),
            (spec.sampler, spec.strength): functools.partial(table, spec.sampler, spec.strength),
            spec.sizes: functools.partial(_check_sizes, spec, checkpoint),
        }
        for value, check in checks.items():
            if value in seen:
                continue
            seen.add(value)
            try:
                check()
            except UserError as error:
                faults.append(f"row {number}: {error}")
    if faults:
        more = f"; and {len(faults) - MAX_LISTED} more values" if len(faults) > MAX_LISTED else ""
        raise UserError("prompts: " + "; ".join(faults[:MAX_LISTED]) + more)


def _check_sizes(spec: ImageSpec, checkpoint: "Checkpoint") -> None:
    """Raises UserError for size conditioning of a model that has none, and for negative sizes that lack another."""
    if spec.sizes is None:
        return
    if not checkpoint.family.reads_sizes:
        name, value = next((name, value) for name, value in vars(spec.sizes).items() if value is not None)
        raise UserError(f"{name}={show(list(value))}: is for SDXL, which reads sizes; leave it out")
    spec.sizes.check()


def _size_notes(config: SavedConfig) -> tuple[str, ...]:
    sizes = image_sizes(config)
    if len(sizes) == 1:
        return ()
    listed = ", ".join(f"{width}x{height}" for height, width in sizes[:MAX_LISTED])
    more = f", and {len(sizes) - MAX_LISTED} more" if len(sizes) > MAX_LISTED else ""
    return (f"prompts: images of {len(sizes)} sizes, and programs are compiled for each: {listed}{more}",)


Part = TypeVar("Part", OtherPart, ControlNet)


def _part_to_save(part: Part, checkpoint: "Checkpoint", name: str) -> Part:
    if part.path is not None:
        return replace(part, path=str(Path(part.path).resolve()))
    return part if part.repo is None else replace(part, revision=checkpoint.identity.part_commits[name])


def config_to_save(
    config: RunConfig,
    rows: Sequence[Row],
    checkpoint: "Checkpoint",
    height: int,
    width: int,
    loras: Sequence["Lora"] = (),
    embeddings: Sequence["Embedding"] = (),
) -> SavedConfig:
    """The config with what its meaning depended on: the file's rows, the commit, the size, full paths, sha256.

    rows: all rows of the prompt set.
    height, width: pixels.
    loras: opened, in the order of `loras_of`.
    embeddings: opened, in the order of config.embeddings.
    """
    model = config.model
    if model.repo is not None:
        is_copy = checkpoint.identity.repo != model.repo  # run.json says which; the config stays as it was asked for
        model = model if is_copy else replace(model, revision=checkpoint.identity.commit or model.revision)
    elif model.path is not None:
        model = replace(model, path=str(Path(model.path).resolve()))
    if model.config is not None and Path(model.config).is_dir():
        model = replace(model, config=str(Path(model.config).resolve()))
    model = replace(
        model,
        unet=_part_to_save(model.unet, checkpoint, "unet"),
        vae=_part_to_save(model.vae, checkpoint, "vae"),
        controlnets=tuple(
            _part_to_save(net, checkpoint, part)
            for net, part in zip(model.controlnets, checkpoint.controls, strict=True)
        ),
    )
    rows = rows_to_save(config, rows, loras)
    name = None if config.prompts.path is None else Path(config.prompts.path).stem
    own = tuple(
        lora_to_save(given, lora.file) for given, lora in zip(config.loras, loras[: len(config.loras)], strict=True)
    )
    words = tuple(embedding_to_save(*one) for one in zip(config.embeddings, embeddings, strict=True))
    weights = weights_to_save(config.score_weights)
    config = replace(config, model=model, loras=own, embeddings=words, score_weights=weights)
    return saved_config(config, rows=rows, height=height, width=width, prompts_name=name)
