"""Both programs, one after the other, image by image."""

from dataclasses import replace
from typing import TYPE_CHECKING

from tpusd import __version__
from tpusd.checkpoints import Checkpoint, ModelSource, open_checkpoint, weights_digest
from tpusd.checkpoints.source import is_single_file
from tpusd.config.schema import RunConfig
from tpusd.engine.faults import local_devices, out_of_memory
from tpusd.engine.jax_settings import check_settings
from tpusd.errors import UserError, show, show_path
from tpusd.plan.specs import ImageSize, ImageSpec, planned
from tpusd.process import signals
from tpusd.process.report import report
from tpusd.process.waiting import waiting
from tpusd.runs.executors.local import load_pipeline
from tpusd.runs.loras import scaled
from tpusd.runs.prepare import PreparedRun, prepare_run
from tpusd.runs.session import check_weights
from tpusd.verify.covered import check_rows, compared
from tpusd.verify.ours import Made, make_ours, noise_of
from tpusd.verify.reference import Reference
from tpusd.verify.reference_files import check_installed, open_reference, versions
from tpusd.verify.report import Compared, Report, compare
from tpusd.verify.weights import compare_weights

if TYPE_CHECKING:
    import jax

    from tpusd.engine.pipeline import Pipeline
    from tpusd.samplers.rows import Table


def verify(config: RunConfig, reference_path: str | None) -> Report:
    """Makes some images of the run twice, and compares. Raises UserError.

    config: of a run that `check_covered` accepts.
    reference_path: another checkpoint for diffusers; None: that of the run.
    """
    check_installed()
    check_settings()
    prepared = prepare_run(replace(config, batch_size_per_device=1))
    for warning in prepared.warnings:
        report(warning)
    specs = compared(prepared.config)
    check_rows(specs)
    if prepared.loras:
        check_installed("peft")
    checkpoint, other = prepared.checkpoint, prepared.checkpoint
    if reference_path is not None:
        other = _other(reference_path, checkpoint, config)
    if config.model.sha256 is not None:
        with waiting("comparing the sums of the weights' files"):
            for warning in check_weights(config, weights_digest(checkpoint.identity.sha256)):
                report(warning)
    with waiting("reading the weights into PyTorch"):
        pipeline, reader = open_reference(other)
    with waiting("comparing the weights"):
        modules = {part: getattr(pipeline, part) for part in checkpoint.family.components}
        weights = compare_weights(checkpoint, modules)
    with waiting("reading the LoRAs into PyTorch"):
        reference = Reference(pipeline, config.model.clip_skip, prepared.loras)
    devices = local_devices()[:1]
    pipelines: dict[ImageSize, Pipeline] = {}
    images: list[Compared] = []
    for spec in specs:
        signals.check()
        size = spec.height, spec.width
        if size not in pipelines:
            pipelines[size] = _load(prepared, size, devices, next(iter(pipelines.values()), None))
        images.append(_compared(prepared, spec, pipelines[size], reference, devices))
    return Report(
        model=_named(config, checkpoint),
        reference=_named(config, checkpoint) if reference_path is None else str(reference_path),
        reader=reader,
        versions={"tpusd": __version__, **versions()},
        num_images=len(planned(prepared.config)),
        weights=weights,
        images=tuple(images),
    )


def _load(
    prepared: PreparedRun, size: ImageSize, devices: "list[jax.Device]", weights_of: "Pipeline | None"
) -> "Pipeline":
    return load_pipeline(prepared.of_size(*size), devices, weights_of=weights_of)


def _ours(
    prepared: PreparedRun, pipeline: "Pipeline", spec: ImageSpec, table: "Table", devices: "list[jax.Device]"
) -> Made:
    """Raises UserError where the device's memory is too small."""
    try:
        return make_ours(pipeline, spec, table, scaled(spec.loras, prepared.loras))
    except Exception as error:
        if out_of_memory(error, devices, 1) is None:
            raise
        raise UserError(
            f"height={spec.height} width={spec.width}: out of device memory, in float32; try smaller ones, or "
            "JAX_PLATFORMS=cpu"
        ) from error


def _compared(
    prepared: PreparedRun, spec: ImageSpec, pipeline: "Pipeline", reference: Reference, devices: "list[jax.Device]"
) -> Compared:
    checkpoint, table = prepared.checkpoint, prepared.table(spec)
    with waiting(f"image {spec.name}, by tpusd"):
        ours = _ours(prepared, pipeline, spec, table, devices)
    h, w, c = checkpoint.family.latent_shape(checkpoint.configs, spec.height, spec.width)
    noise = noise_of(spec, table, (c, h, w))
    with waiting(f"image {spec.name}, by diffusers"):
        theirs = reference.make(spec, noise, guided=bool(spec.guided_calls(len(table))))
    return compare(spec, ours, theirs)


def _other(path: str, checkpoint: Checkpoint, config: RunConfig) -> Checkpoint:
    """The checkpoint of the reference. Raises UserError where it is of another family."""
    model, source = config.model, ModelSource(path=path, clip_skip=config.model.clip_skip)
    if is_single_file(source):  # what the file does not say of itself
        source = replace(source, config=model.config, prediction_type=model.prediction_type)
    try:
        other = open_checkpoint(source)
    except UserError as error:
        raise UserError(str(error).replace("model.path=", "reference.path=")) from None
    if other.family.name != checkpoint.family.name:
        raise UserError(
            f"reference.path={show(path)}: is a checkpoint of {other.family.name}, and the model is one of "
            f"{checkpoint.family.name}; choose a reference of the same family"
        )
    return other


def _named(config: RunConfig, checkpoint: Checkpoint) -> str:
    """The checkpoint, for the reader."""
    identity = checkpoint.identity
    if identity.repo is not None:
        return f"{identity.repo}@{identity.commit}"
    return f"model={config.model.name}" if config.model.path is None else show_path(config.model.path)
