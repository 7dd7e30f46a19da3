"""The devices of this process: one pipeline for each program, and one copy of the weights for runs that share them."""

import functools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from tpusd.config.schema import SavedConfig
from tpusd.errors import UserError
from tpusd.inputs.arrays import Input
from tpusd.inputs.reader import InputReader
from tpusd.plan.batches import Batch, ProgramKey, WeightsKey, program_key
from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.records.provenance import (
    BatchProvenance,
    describe_checkpoint,
    describe_environment,
    hash_checkpoint,
)
from tpusd.runs.embeddings import describe_embeddings
from tpusd.runs.executors.base import FailedBatch, MadeBatch, MadeImage, Run, Watcher, Writing
from tpusd.runs.loras import describe_loras, scaled
from tpusd.runs.prepare import PreparedRun
from tpusd.vision.verdict import Verdict

if TYPE_CHECKING:
    import jax
    import numpy as np

    from tpusd.checkpoints.tokenizer import Tokenizer
    from tpusd.engine.adapters import ScaledLora
    from tpusd.engine.pipeline import Pipeline
    from tpusd.vision.safety import OpenedChecker, SafetyChecker


LOADING = "loading the model"
PREPARING = "reading weights and compiling, once"


class OnStep(Protocol):
    def __call__(self, done: int, total: int, /) -> None: ...


class PipelineLike(Protocol):
    """What is used of `tpusd.engine.pipeline.Pipeline`."""

    @property
    def fingerprints(self) -> Mapping[str, str]: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    def generate(
        self,
        specs: Sequence[ImageSpec],
        tables: Sequence[Any],
        *,
        inputs: Sequence[Input] | None = None,
        controls: "Sequence[Sequence[np.ndarray]] | None" = None,
        loras: "Sequence[ScaledLora]" = (),
        tokenizers: "Sequence[Tokenizer] | None" = None,
        on_step: OnStep | None = None,
    ) -> Sequence[MadeImage]: ...


class LoadPipeline(Protocol):
    """The signature of `load_pipeline`."""

    def __call__(
        self, prepared: PreparedRun, devices: "Sequence[jax.Device]", /, *, weights_of: Any = None
    ) -> PipelineLike: ...


def load_pipeline(
    prepared: PreparedRun, devices: "Sequence[jax.Device]", *, weights_of: "Pipeline | None" = None
) -> "Pipeline":
    """Starts to read the weights, and returns the pipeline of a run.

    weights_of: a pipeline of the same checkpoint, precision and devices, whose weights the new one shares.
    """
    from tpusd.engine.compile_cache import enable_compile_cache
    from tpusd.engine.pipeline import Pipeline

    enable_compile_cache()
    return Pipeline.load(
        prepared.checkpoint,
        prepared.config.precision,
        height=prepared.config.height,
        width=prepared.config.width,
        batch_size_per_device=prepared.config.batch_size_per_device,
        devices=devices,
        weights_of=weights_of,
    )


class LocalExecutor:
    """Makes batches on the local devices, one at a time, in the thread that asks for them."""

    writing = Writing(threads=4)  # Pillow releases the interpreter while it encodes

    def __init__(self, watcher: Watcher, *, load: LoadPipeline = load_pipeline):
        from tpusd.engine.faults import local_devices
        from tpusd.engine.jax_settings import check_settings

        check_settings()
        self.devices = local_devices()
        self._watcher, self._load = watcher, load
        self._background = ThreadPoolExecutor(1, thread_name_prefix="hash")
        self._inputs = InputReader()
        self._weights: WeightsKey | None = None  # which weights are on the devices
        self._hashes: Future[Mapping[str, str]] | None = None  # of the checkpoint that has them
        self._checker: tuple[str, SafetyChecker] | None = None  # with the digest of its files
        self._pipelines: dict[ProgramKey, PipelineLike | Exception] = {}  # an exception: it could not be loaded

    def __enter__(self) -> "LocalExecutor":
        return self

    def __exit__(self, *exception: object) -> None:
        self._background.shutdown(wait=True)
        self._inputs.close()

    def describe(self) -> str:
        return f"{len(self.devices)} {self.devices[0].device_kind} device{'' if len(self.devices) == 1 else 's'}"

    def batch_size(self, config: SavedConfig) -> int:
        return len(self.devices) * config.batch_size_per_device

    def generate(self, batches: Iterable[Batch[Run]]) -> Iterator[MadeBatch[Run] | FailedBatch[Run]]:
        for batch in self._inputs.ahead(batches):
            signals.check()
            yield from self._make(batch)

    def _make(self, batch: Batch[Run]) -> Iterator[MadeBatch[Run] | FailedBatch[Run]]:
        self._watcher.start_batch(len(batch.entries))
        try:
            made = self._generate(batch)
        except Exception as error:
            self._watcher.start_batch(0)
            parts = list(batch.parts())
            if len(parts) == 1:
                yield FailedBatch(batch=batch, error=self._explained(error, batch))
            else:
                for part in parts:
                    yield from self._make(part)
            return
        self._watcher.end_batch()
        yield made

    def _explained(self, error: Exception, batch: Batch[Run]) -> Exception:
        """An error of the machine as a UserError; any other as it is."""
        from tpusd.engine.faults import out_of_memory

        size = batch.entries[0][0].prepared.config.batch_size_per_device
        line = out_of_memory(error, self.devices, size)
        return error if line is None else UserError(line)

    def _generate(self, batch: Batch[Run]) -> MadeBatch[Run]:
        run, spec = batch.entries[0]
        prepared = run.prepared.of_size(spec.height, spec.width)
        began = time.monotonic()
        if program_key(prepared.config) not in self._pipelines:
            self._watcher.prepare(LOADING)
        pipeline = self._pipeline(prepared)
        loaded = time.monotonic()
        spent = dict(pipeline.seconds)
        if not pipeline.fingerprints:
            self._watcher.prepare(PREPARING)
        tables = [run.prepared.table(spec) for run, spec in batch.entries]
        loras = scaled(spec.loras, prepared.loras)
        files = {"inputs": self._inputs.of(batch.specs), "controls": self._inputs.controls_of(batch.specs)}
        more: dict[str, Any] = {name: own for name, own in files.items() if own is not None}
        if prepared.embeddings:
            more["tokenizers"] = prepared.checkpoint.tokenizers
        images = pipeline.generate(list(batch.specs), tables, loras=loras, on_step=self._watcher.step, **more)
        verdicts = self._verdicts(batch, images)
        seconds = {name: value - spent[name] for name, value in pipeline.seconds.items()}
        assert self._hashes is not None
        return MadeBatch(
            batch=batch,
            images=images,
            provenance=functools.partial(self._provenance, prepared, pipeline.fingerprints, self._hashes),
            safety=verdicts,
            seconds=seconds | {"load": loaded - began, "generate": time.monotonic() - loaded},
        )

    def _verdicts(self, batch: Batch[Run], images: Sequence[MadeImage]) -> list[Verdict | None]:
        """What the safety checkers of the runs say of their images; empty where no run has one. Raises UserError."""
        checkers = {run.prepared.safety.sha256: run.prepared.safety for run, _ in batch.entries if run.prepared.safety}
        verdicts: list[Verdict | None] = [None] * len(images) if checkers else []
        for digest, opened in checkers.items():
            runs = [run.prepared.safety for run, _ in batch.entries]
            own = [i for i, checker in enumerate(runs) if checker is not None and checker.sha256 == digest]
            size = batch.entries[0][0].prepared.config.batch_size_per_device
            found = self._loaded(opened, size).check([images[i].pixels for i in own])
            for i, verdict in zip(own, found, strict=True):
                verdicts[i] = verdict
        return verdicts

    def _loaded(self, opened: "OpenedChecker", batch_size_per_device: int) -> "SafetyChecker":
        from tpusd.engine.devices import Devices
        from tpusd.vision.safety import SafetyChecker

        if self._checker is None or self._checker[0] != opened.sha256:
            self._checker = None  # first, so that the devices do not have to hold two
            made = SafetyChecker(opened, Devices(self.devices), batch_size_per_device=batch_size_per_device)
            self._checker = opened.sha256, made
        return self._checker[1]

    def _pipeline(self, prepared: PreparedRun) -> PipelineLike:
        key = program_key(prepared.config)
        if key.weights != self._weights:
            self._pipelines.clear()  # first, so that the devices do not have to hold two checkpoints
            self._weights = key.weights
            self._hashes = self._background.submit(hash_checkpoint, prepared.checkpoint)  # beside all other work
        if key not in self._pipelines:
            shared = next((one for one in self._pipelines.values() if not isinstance(one, Exception)), None)
            try:
                pipeline = self._load(prepared, self.devices, **({} if shared is None else {"weights_of": shared}))
                signals.renew()  # jax.distributed.initialize replaces our SIGTERM handler
                self._pipelines[key] = pipeline
            except Exception as error:
                self._pipelines[key] = error
        found = self._pipelines[key]
        if isinstance(found, Exception):
            raise found
        return found

    def _provenance(
        self, prepared: PreparedRun, programs: Mapping[str, str], hashes: "Future[Mapping[str, str]]"
    ) -> BatchProvenance:
        from tpusd.checkpoints import weights_digest  # imports JAX, which is loaded by now
        from tpusd.engine.jax_settings import noted_settings

        sha256 = hashes.result()
        size = prepared.config.batch_size_per_device
        settings = noted_settings()
        return BatchProvenance(
            environment=describe_environment(
                self.devices,
                size,
                weights_digest(sha256),
                settings,
                [lora.file.sha256 for lora in prepared.loras],
                [one.file.sha256 for one in prepared.embeddings],
            ),
            programs=programs,
            checkpoint=describe_checkpoint(prepared.checkpoint, sha256),
            loras=describe_loras(prepared.loras),
            embeddings=describe_embeddings(prepared.embeddings),
        )
