"""What the runs of a sweep were made from binds the runs that join them: checkpoint, LoRAs, embeddings, pictures, and
the safety checker.

A sweep's command line names files; the saved configs of its runs say which bytes they were.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tpusd import storage
from tpusd.config.adapters import LoraConfig
from tpusd.config.embeddings import EmbeddingConfig
from tpusd.config.packed_rows import first_rows, pack
from tpusd.config.safety import OFF, SafetyConfig
from tpusd.config.schema import ModelConfig, SavedConfig
from tpusd.errors import UserError
from tpusd.inputs.row_files import files_of
from tpusd.inputs.rows import refuse_other_pictures
from tpusd.records.layout import CONFIG
from tpusd.records.provenance import hash_checkpoint
from tpusd.records.saved import read_saved
from tpusd.runs.embeddings import changed_embeddings
from tpusd.runs.loras import changed_loras, loras_of
from tpusd.runs.prepare import PreparedRun
from tpusd.runs.safety import check_checker
from tpusd.runs.session import check_weights

# Of one or of several files; a picture's path; a safety checker, which may be the model's own.
Source = ModelConfig | LoraConfig | EmbeddingConfig | str | tuple[SafetyConfig, ModelConfig]
JoinRuns = Callable[[PreparedRun], PreparedRun]


def joining(runs: Sequence[Path]) -> JoinRuns:
    """Checks a new run against the run directories `runs`, of which some may not be there.

    It returns the run with a warning for each difference that `on_changed_weights` accepts, and raises ChangedFile for
    the others. Saved configs are read as far as the run's sources ask for it.
    """
    unread = iter(runs)
    known: dict[Source, str] = {}

    def sha256_of(source: Source) -> str | None:
        """What the first run that has the source says of it."""
        while source not in known:
            run = next(unread, None)
            if run is None:
                return None
            for other, sha256 in _files_of(run):
                known.setdefault(other, sha256)
        return known[source]

    def join(prepared: PreparedRun) -> PreparedRun:
        config = prepared.config
        refuse_other_pictures(config.prompts.rows, sha256_of, config.first_row)
        loras = tuple(_bound(lora, sha256_of) for lora in config.loras)
        rows = config.prompts.rows
        if any(row.loras for _, row in first_rows(rows)):
            rows = pack(
                row
                if row.loras is None
                else dataclasses.replace(row, loras=tuple(_bound(own, sha256_of) for own in row.loras))
                for row in rows
            )
        words = tuple(dataclasses.replace(one, sha256=sha256_of(_embedding(one))) for one in config.embeddings)
        model = dataclasses.replace(config.model, sha256=sha256_of(_model(config.model)))
        safety = dataclasses.replace(config.safety, sha256=sha256_of(_safety(config))) if prepared.safety else OFF
        bound = dataclasses.replace(config, loras=loras, embeddings=words, model=model, safety=safety)
        changed = (
            *changed_loras(bound, rows, prepared.loras),
            *changed_embeddings(bound, prepared.embeddings),
            *check_checker(bound, prepared.safety),
        )
        if model.sha256 is not None:
            from tpusd.checkpoints import weights_digest

            changed += check_weights(bound, weights_digest(hash_checkpoint(prepared.checkpoint)))
        return dataclasses.replace(prepared, warnings=(*prepared.warnings, *changed)) if changed else prepared

    return join


def _files_of(run: Path) -> Iterator[tuple[Source, str]]:
    """The sources that a run's saved config knows, each with its sha256. A config that is not valid has no say."""
    config: SavedConfig | None = None
    with contextlib.suppress(UserError):
        if storage.file_size(run / CONFIG) is not None:
            config = read_saved(run)
    if config is None:
        return
    if config.model.sha256 is not None:
        yield _model(config.model), config.model.sha256
    for lora in loras_of(config, config.prompts.rows):
        if lora.sha256 is not None:
            yield _lora(lora), lora.sha256
    for one in config.embeddings:
        if one.sha256 is not None:
            yield _embedding(one), one.sha256
    if config.safety.sha256 is not None:
        yield _safety(config), config.safety.sha256
    for _, row in first_rows(config.prompts.rows):
        for file in files_of(row):
            if file.sha256 is not None:
                yield file.path, file.sha256


def _model(model: ModelConfig) -> ModelConfig:
    """Which files it is, whatever runs do with it."""
    nets = tuple(net.alone() for net in model.controlnets)
    return dataclasses.replace(model, name="", sha256=None, guidance_scale=1.0, clip_skip=0, loras=(), controlnets=nets)


def _safety(config: SavedConfig) -> tuple[SafetyConfig, ModelConfig]:
    """Which checker it is, whatever becomes of the pictures that it finds."""
    return dataclasses.replace(config.safety, name="record", sha256=None), _model(config.model)


def _bound(lora: LoraConfig, sha256_of: Callable[[Source], str | None]) -> LoraConfig:
    return dataclasses.replace(lora, sha256=sha256_of(_lora(lora)))


def _lora(lora: LoraConfig) -> LoraConfig:
    return dataclasses.replace(lora, scale=1.0, text_encoder_scale=None, sha256=None)


def _embedding(embedding: EmbeddingConfig) -> EmbeddingConfig:
    return dataclasses.replace(embedding, token=None, sha256=None)
