"""The LoRAs of a run: found, fitted to its model, and what its config and run.json say of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tpusd.config.adapters import AppliedLora, LoraConfig, same_file
from tpusd.config.packed_rows import first_rows, pack
from tpusd.config.rows import Row
from tpusd.config.schema import ModelConfig, RunConfig
from tpusd.errors import ChangedFile, show

if TYPE_CHECKING:
    from tpusd.checkpoints import Checkpoint
    from tpusd.checkpoints.adapters import AdapterFile, Lora
    from tpusd.engine.adapters import ScaledLora


class OpenLoras(Protocol):
    """The signature of `open_loras`."""

    def __call__(
        self, loras: Sequence[LoraConfig], model: ModelConfig, checkpoint: "Checkpoint", /
    ) -> tuple["Lora", ...]: ...


class Locked(Protocol):
    """Which bytes a file must have."""

    @property
    def sha256(self) -> str | None: ...


def open_loras(loras: Sequence[LoraConfig], model: ModelConfig, checkpoint: "Checkpoint") -> tuple["Lora", ...]:
    """Each LoRA, found and fitted to the model; the differences are not read yet. Raises UserError."""
    return tuple(_open(lora, number, model, checkpoint) for number, lora in enumerate(loras))


def open_loras_once() -> OpenLoras:
    """As `open_loras`, for runs of which several name the same file for the same model: it is opened once."""
    opened: dict[tuple[ModelConfig, LoraConfig], Lora] = {}

    def open_all(loras: Sequence[LoraConfig], model: ModelConfig, checkpoint: "Checkpoint", /) -> tuple["Lora", ...]:
        for number, lora in enumerate(loras):
            if (key := _key(lora, model)) not in opened:
                opened[key] = _open(lora, number, model, checkpoint)
        return tuple(opened[_key(lora, model)] for lora in loras)

    return open_all


def loras_of(config: RunConfig, rows: Sequence[Row]) -> tuple[LoraConfig, ...]:
    """The LoRAs of a run, then each file that its rows name besides."""
    return (*config.loras, *dict.fromkeys(same_file(lora) for _, row in first_rows(rows) for lora in row.loras or ()))


def rows_to_save(config: RunConfig, rows: Sequence[Row], loras: Sequence["Lora"]) -> Sequence[Row]:
    """The rows, whose own LoRAs are pinned as those of the run are. loras: opened, in the order of `loras_of`."""
    if not any(row.loras for _, row in first_rows(rows)):
        return rows
    files = {same_file(given): lora.file for given, lora in zip(loras_of(config, rows), loras, strict=True)}
    return pack(
        row
        if row.loras is None
        else replace(row, loras=tuple(lora_to_save(own, files[same_file(own)]) for own in row.loras))
        for row in rows
    )


def check_loras(config: RunConfig, rows: Sequence[Row], loras: Sequence["Lora"]) -> tuple[str, ...]:
    """What the user should know, a line each. Raises ChangedFile for a file that is not the one of the config."""
    return (*(note for lora in loras for note in lora.notes), *changed_loras(config, rows, loras))


def changed_loras(config: RunConfig, rows: Sequence[Row], loras: Sequence["Lora"]) -> tuple[str, ...]:
    """A line for each file that is not the one that the config asks for. Raises ChangedFile unless that is accepted."""
    return changed_files(config, "loras", loras_of(config, rows), [lora.file for lora in loras])


def changed_files(
    config: RunConfig, field: str, given: Sequence[Locked], files: Sequence["AdapterFile"]
) -> tuple[str, ...]:
    """As `changed_loras`, for any field of the config that lists files. given: what it lists. files: those found."""
    notes: list[str] = []
    for number, (wanted, file) in enumerate(zip(given, files, strict=True)):
        if wanted.sha256 is None or wanted.sha256 == file.sha256:
            continue
        changed = f"{file.where}: has changed: sha256 {file.sha256[:12]}..., not {show(wanted.sha256)[:12]}..."
        if config.on_changed_weights == "error":
            raise ChangedFile(
                f"{changed}; restore the old file, leave out {field}.{number}.sha256, or set on_changed_weights=warn "
                "to continue with this one, which makes other images"
            )
        notes.append(changed)
    return tuple(notes)


def lora_to_save(given: LoraConfig, file: "AdapterFile") -> LoraConfig:
    """A LoRA's fields with what their meaning depended on: a full path, or the file and the commit, and the sha256."""
    if given.asset is not None:
        return replace(given, sha256=file.sha256)
    if given.repo is None:
        return replace(given, path=str(file.path), sha256=file.sha256)
    return replace(given, file=file.file, revision=file.commit or given.revision, sha256=file.sha256)


def describe_loras(loras: Sequence["Lora"]) -> list[dict[str, Any]]:
    """What run.json says of the files: the packaged name, the path, or repository, file and commit; base; sha256."""
    return [
        {
            "asset": lora.file.asset,
            "path": str(lora.file.path) if lora.file.repo is lora.file.asset is None else None,
            "repo": lora.file.repo,
            "file": lora.file.file,
            "commit": lora.file.commit,
            "base_model": lora.base,
            "sha256": lora.file.sha256,
        }
        for lora in loras
    ]


def scaled(applied: Sequence[AppliedLora], loras: Sequence["Lora"]) -> tuple["ScaledLora", ...]:
    """The LoRAs of an image with its scales, as the engine takes them. loras: all of the run."""
    from tpusd.engine.adapters import ScaledLora

    by_sum = {lora.file.sha256: lora for lora in loras}
    return tuple(
        ScaledLora(lora=by_sum[one.sha256], scale=one.scale, text_encoder_scale=one.text_encoder_scale)
        for one in applied
    )


def _open(lora: LoraConfig, number: int, model: ModelConfig, checkpoint: "Checkpoint") -> "Lora":
    from tpusd.checkpoints.adapters import find_lora, open_lora

    return open_lora(find_lora(lora, f"loras[{number}]"), checkpoint, model.name)


def _key(lora: LoraConfig, model: ModelConfig) -> tuple[ModelConfig, LoraConfig]:
    """What decides the opened file: not how strong it is, and not which sum is asked for."""
    return model, replace(same_file(lora), sha256=None)
