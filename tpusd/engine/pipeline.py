"""A loaded checkpoint as three compiled programs over all devices: specs and tables in, pixels out.

Compiles each program when it is first needed, while the weights are still being read. Knows nothing of configs, files
or progress bars.
"""

import functools
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tpusd.checkpoints import Checkpoint, fill, match_weights
from tpusd.checkpoints.tokenizer import Tokenizer
from tpusd.config.schema import PrecisionConfig
from tpusd.config.sizes import Sizes
from tpusd.engine import programs
from tpusd.engine.adapters import MergedWeights, ScaledLora
from tpusd.engine.blueprint import Blueprint, ProgramSpec, further_arguments, leaves
from tpusd.engine.devices import Devices, Program, gather
from tpusd.engine.drawn_noise import ROWS_AT_ONCE, DrawnNoise
from tpusd.engine.jax_settings import with_usual_settings
from tpusd.engine.noise import image_key
from tpusd.engine.not_finite import NotFinite
from tpusd.engine.programs import TRACE_ROWS, traced_rows
from tpusd.engine.texts import TextsByCall
from tpusd.families.base import ChunkTokens, Conditioning, Control, ProgramName, Tokens
from tpusd.inputs.arrays import Input
from tpusd.plan.batches import Kind, full_calls, guided_pieces, kind_of
from tpusd.plan.specs import ImageSpec
from tpusd.samplers.table import MAX_ROWS, Table
from tpusd.syntax.chunks import extent, shape_of
from tpusd.syntax.rules import TextRules, TextShape

PIECE_SECONDS = 0.5  # of a call of the denoiser, where progress is reported; at least a row of the table
Weights = tuple[jax.Array, ...]  # of a network, in the order of blueprint.leaves


@dataclass(frozen=True)
class GeneratedImage:
    """An image as the devices made it.

    pixels: (H,W,3) uint8.
    trace: digests of what came before the pixels, the same however the image was batched.
    not_finite: where NaN or infinity first appeared; None for a sound image.
    """

    pixels: np.ndarray
    trace: Mapping[str, Any]
    not_finite: NotFinite | None = None


class Watch(Protocol):
    """Sees what a batch is on its way, on the host. It decides nothing: the pixels are those of a batch without it."""

    def encoded(self, texts: Sequence[str | None], ids: np.ndarray, conditioning: Conditioning) -> None:
        """One text of each image of the full batch: token ids (b,encoders*l), and what `encode` made of them."""
        ...

    def stepped(self, rows: int, latents: np.ndarray) -> None:
        """The latents (b,h,w,c) after so many rows of the tables; called after every row."""
        ...


class _Encoded(NamedTuple):
    """conditioning, digests (b,2), finite (b,): on the devices. ids: token ids (b, encoders*l)."""

    conditioning: Conditioning
    digests: jax.Array
    finite: jax.Array
    ids: np.ndarray


class _Calls(NamedTuple):
    """Model calls of one program with the same texts: rows of the tables.

    cond, uncond: on the devices; None: calls without guidance.
    deep_half: what the program keeps from row to row, as a shape; None: nothing.
    begins: whether its first row computes the deep half; otherwise that of the row before stays.
    """

    rows: range
    program: Program
    cond: Conditioning
    uncond: Conditioning | None
    deep_half: jax.ShapeDtypeStruct | None
    begins: bool


class _EncodedPicture(NamedTuple):
    """picture: on the devices. digests (b,2), finite (b,): on the host."""

    picture: programs.Picture
    digests: np.ndarray
    finite: np.ndarray


class _EmbeddedControls(NamedTuple):
    """control: on the devices. digests (n,b,2), finite (b,): on the host."""

    control: Control
    digests: np.ndarray
    finite: np.ndarray


class Pipeline:
    """One checkpoint at one precision and size on some devices. `load` makes one."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: PrecisionConfig,
        weights: "_WeightsInReading",
        devices: Devices,
        *,
        height: int,
        width: int,
        batch_size_per_device: int,
    ):
        self._checkpoint, self._weights, self._devices = checkpoint, weights, devices
        self._blueprint = Blueprint(
            checkpoint, precision, height=height, width=width, batch_size_per_device=batch_size_per_device
        )
        self._downscale = height // self._blueprint.state.x.shape[1]
        self._programs: dict[str, Program] = {}
        self._part: Callable[[str], Weights] = weights.part  # of the batch that is made: part -> its weights
        self._rows_a_call = 1  # of the denoiser, by PIECE_SECONDS and the pace of the call before
        self.seconds = {"compile": 0.0, "weights": 0.0}  # spent on compiling, and then on waiting for the weights

    @classmethod
    @with_usual_settings
    def load(
        cls,
        checkpoint: Checkpoint,
        precision: PrecisionConfig,
        *,
        height: int,
        width: int,
        batch_size_per_device: int,
        devices: Sequence[jax.Device],
        weights_of: "Pipeline | None" = None,
    ) -> "Pipeline":
        """Starts to read the weights and returns; what is wrong with them is raised by the first `generate`.

        checkpoint: opened.
        precision: of its networks.
        height, width: pixels, multiples of the family's factor (8).
        batch_size_per_device: images.
        devices: local ones.
        weights_of: a pipeline of the same checkpoint, precision and devices, whose weights are shared.
        """
        on = Devices(devices)
        weights = _WeightsInReading(checkpoint, precision, on) if weights_of is None else weights_of._weights
        return cls(
            checkpoint, precision, weights, on, height=height, width=width, batch_size_per_device=batch_size_per_device
        )

    @property
    def batch_size(self) -> int:
        """Images of a full batch, over all devices."""
        return len(self._devices) * self._blueprint.per_device

    @property
    def fingerprints(self) -> dict[str, str]:
        """Program -> sha256 of its lowered form, for those that were needed so far."""
        return {name: program.fingerprint for name, program in self._programs.items()}

    @with_usual_settings
    def generate(
        self,
        specs: Sequence[ImageSpec],
        tables: Sequence[Table],
        *,
        inputs: Sequence[Input] | None = None,
        controls: Sequence[Sequence[np.ndarray]] | None = None,
        loras: Sequence[ScaledLora] = (),
        tokenizers: Sequence[Tokenizer] | None = None,
        on_step: Callable[[int, int], None] | None = None,
        watch: Watch | None = None,
    ) -> list[GeneratedImage]:
        """Makes a batch of at most `batch_size` images, each by its own table and recipe.

        specs: all of one `kind_of`.
        tables: one for each spec.
        inputs: one for each spec, where they start from pictures.
        controls: for each spec the pictures (H,W,3) uint8 of its active ControlNets, where they have some.
        loras: merged into the weights in this order; those of all specs.
        tokenizers: the checkpoint's own with the embeddings of all specs; None: they have no embedding.
        on_step: on_step(done, total) reports rows of the longest table.
        watch: sees the batch on its way.
        Raises UserError where the weights do not fit the model, or a merged weight its precision.
        """
        assert 0 < len(specs) == len(tables) <= self.batch_size, (len(specs), len(tables), self.batch_size)
        (kind,) = {
            kind_of(spec, len(table), self.text_shape(spec, len(table), tokenizers))
            for spec, table in zip(specs, tables, strict=True)
        }
        assert kind.from_picture == (inputs is not None)
        assert bool(kind.controls) == (controls is not None)
        pieces = guided_pieces(kind.guided, max(map(len, tables)))
        denoisers = {has_it: denoiser(has_it, kind) for _, has_it in pieces}
        compiled = self._compiled(denoisers, kind)
        began = time.monotonic()
        self._part = self._weights.merged.parts(loras)
        self.seconds["weights"] += time.monotonic() - began
        padding = self.batch_size - len(specs)  # the compiled size stays; what is made of the padding is dropped
        padded, padded_tables = [*specs, *[specs[-1]] * padding], [*tables, *[tables[-1]] * padding]

        words = self._checkpoint.tokenizers if tokenizers is None else tokenizers
        encode, rules = compiled[encoder(kind.text)], [spec.text for spec in padded]
        texts = TextsByCall(padded, [len(table) for table in padded_tables], guided=bool(kind.guided))
        encoded = [self._encode(encode, now, rules, kind.text, words) for now in texts.every]
        if watch is not None:
            for now, one in zip(texts.every, encoded, strict=True):
                watch.encoded(now, one.ids, gather(one.conditioning))
        start = None
        if inputs is not None:
            padded_inputs = [*inputs, *[inputs[-1]] * padding]
            start = self._encode_picture(compiled["encode_picture"], padded, padded_inputs, padded_tables)
        embedded = None
        if controls is not None:
            padded_controls = [*controls, *[controls[-1]] * padding]
            embedded = self._embed_controls(compiled, kind.controls, padded, padded_controls)
        calls = [
            _Calls(
                rows,
                compiled[denoisers[has_it]],
                encoded[now.prompts].conditioning,
                None if now.negative_prompts is None or not has_it else encoded[now.negative_prompts].conditioning,
                self._deep_half(kind, guided=has_it),
                rows.start == own.start,
            )
            for own, has_it in pieces
            for rows, now in texts.pieces(own)
        ]
        more = further_arguments(
            None if start is None else start.picture,
            None if embedded is None else embedded.control,
            self._devices.put_split(size_numbers(padded)) if kind.sized else None,
        )
        full_rows = _full_rows(kind, tables)
        latents, trace = self._denoise(calls, kind.controls, padded, padded_tables, more, full_rows, on_step, watch)
        pixels, finite_pixels = gather(compiled["decode"].call(self._weights_of("decode"), latents))
        text_digests = [gather(one.digests) for one in encoded]
        finite_texts = np.logical_and.reduce([gather(one.finite) for one in encoded])
        return [
            GeneratedImage(
                pixels[i] if inputs is None else inputs[i].pasted(pixels[i]),
                {
                    "tokens": _text_digest(encoded[number].ids[i] for number in texts.of_image(i)),
                    "text_embedding": _joined(_hex(text_digests[number][i]) for number in texts.of_image(i)),
                    **({} if start is None else {"picture": _hex(start.digests[i])}),
                    **({} if embedded is None else {"control": "".join(map(_hex, embedded.digests[:, i]))}),
                    "initial_noise": _hex(trace.noise[i]),
                    "latents": {
                        str(row): _hex(trace.rows[i, row // TRACE_ROWS] if row < len(table) else trace.latents[i])
                        for row in traced_rows(len(table))
                    },
                },
                _not_finite(
                    table,
                    bool(finite_texts[i]),
                    start is None or bool(start.finite[i]),
                    embedded is None or bool(embedded.finite[i]),
                    int(trace.num_finite[i]),
                    bool(finite_pixels[i]),
                ),
            )
            for i, table in enumerate(tables)
        ]

    def text_shape(
        self, spec: ImageSpec, num_calls: int, tokenizers: Sequence[Tokenizer] | None = None
    ) -> TextShape | None:
        """The shape of an image's texts; None where they are plain. tokenizers: as in `generate`."""
        if spec.text.is_plain:
            return None
        words = self._checkpoint.tokenizers if tokenizers is None else tokenizers
        return shape_of((extent(text, spec.text, words) for text in spec.texts(num_calls)), spec.text)

    def _encode(
        self,
        encode: Program,
        texts: Sequence[str | None],
        rules: Sequence[TextRules],
        shape: TextShape | None,
        tokenizers: Sequence[Tokenizer],
    ) -> _Encoded:
        """rules: of each text. shape: of texts in chunks; None: they are plain."""
        checkpoint = self._checkpoint
        tokens: Tokens | ChunkTokens
        if shape is None:
            tokens = checkpoint.family.tokenize(tokenizers, texts, checkpoint.options)
            ids = np.concatenate(tokens.input_ids, axis=1)
        else:
            tokens = checkpoint.family.tokenize_chunks(tokenizers, texts, rules, shape, checkpoint.options)
            ids = np.concatenate([one.reshape(len(texts), -1) for one in jax.tree.leaves(tokens)[:-1]], axis=1)
        cond, digests, finite = encode.call(self._weights_of("encode"), self._devices.put_split(tokens))
        return _Encoded(cond, digests, finite, ids)

    def _encode_picture(
        self,
        encode_picture: Program,
        specs: Sequence[ImageSpec],
        inputs: Sequence[Input],
        tables: Sequence[Table],
    ) -> _EncodedPicture:
        """What the images start from. All sequences are of a full batch, padding included."""
        put = self._devices.put_split
        pixel_masks = (np.stack([one.pixel_mask() for one in inputs]),) if self._blueprint.inpaints else ()
        arguments = put((np.stack([one.pixels for one in inputs]), image_keys(specs), *pixel_masks))
        latents, unmasked, digests, finite = encode_picture.call(self._weights_of("encode_picture"), *arguments)
        scale, masked, levels = put(
            (
                np.array([picture_scale(*one) for one in zip(specs, tables, strict=True)], np.float32),
                np.stack([one.latent_mask(self._downscale) for one in inputs]),
                np.stack([table.padded_levels() for table in tables]),
            )
        )
        picture = programs.Picture(latents=latents, scale=scale, masked=masked, levels=levels, unmasked=unmasked)
        return _EncodedPicture(picture, gather(digests), gather(finite))

    def _embed_controls(
        self,
        compiled: Mapping[str, Program],
        places: Sequence[int],
        specs: Sequence[ImageSpec],
        pictures: Sequence[Sequence[np.ndarray]],
    ) -> _EmbeddedControls:
        """What the ControlNets at these places read. specs, pictures: of a full batch, padding included."""
        made = []
        for number, place in enumerate(places):
            pixels = self._devices.put_split(np.stack([own[number] for own in pictures]))
            made.append(compiled[embedder(place)].call(self._weights_of("embed_control", [place]), pixels))
        embedded, digests, finite = zip(*made, strict=True)
        guess = self._devices.put_split(np.array([spec.active_controls[0].guess_mode for spec in specs]))
        return _EmbeddedControls(
            Control(embedded, guess), np.stack(gather(digests)), np.logical_and.reduce(gather(finite))
        )

    def _denoise(
        self,
        pieces: "Sequence[_Calls]",
        controls: Sequence[int],
        specs: Sequence[ImageSpec],
        tables: Sequence[Table],
        more: tuple[Any, ...],
        full_rows: np.ndarray | None,
        on_step: Callable[[int, int], None] | None,
        watch: Watch | None,
    ) -> tuple[jax.Array, programs.Trace]:
        """Runs the sampler: the latents on the devices, and the host's Trace.

        pieces: all model calls, in order.
        controls: the ControlNets, by their places.
        specs, tables: of a full batch, padding included.
        more: the last arguments of the program, on the devices.
        full_rows: bool (MAX_ROWS,), the rows that compute the deep half of the denoiser; None: no cache.
        on_step: as in `generate`; None: one call makes all rows of a piece.
        watch: as in `generate`; then each call makes one row.
        """
        put = self._devices.put_split
        _, h, w, c = self._blueprint.state.x.shape
        drawn = DrawnNoise(specs, tables, (c, h, w)) if specs[0].noise.is_torch else None
        keys = put(image_keys(specs) if drawn is None else drawn.without_steps())
        arguments = put(
            (
                np.array([spec.guidance_rescale for spec in specs], np.float32),
                np.stack(
                    [
                        table.padded(
                            spec.guidance_scales(len(table)), [one.scales(len(table)) for one in spec.active_controls]
                        )
                        for spec, table in zip(specs, tables, strict=True)
                    ]
                ),
                np.array([noise_scale(*one) for one in zip(specs, tables, strict=True)], np.float32),
            )
        )
        full = () if full_rows is None else (self._devices.put_shared(full_rows),)
        state = put(jax.tree.map(lambda s: np.zeros((len(specs), *s.shape[1:]), s.dtype), self._blueprint.state))
        total, stops = pieces[-1].rows.stop, [0]
        traces: list[programs.Trace] = []
        began = time.monotonic()
        while stops[-1] < total:
            piece = next(piece for piece in pieces if stops[-1] in piece.rows)
            if stops[-1] == piece.rows.start and piece.begins:
                deep_half = None if piece.deep_half is None else self._devices.zeros(piece.deep_half)
                state = state._replace(kept=deep_half)
            at_once = 1 if watch is not None else len(piece.rows) if on_step is None else self._rows_a_call
            stop = min(piece.rows.stop, stops[-1] + at_once)
            if drawn is not None and drawn.has_steps:
                stop = min(stop, stops[-1] + ROWS_AT_ONCE)
                keys = put(drawn.given(stops[-1], stop))
            bounds = self._devices.put_shared((np.int32(stops[-1]), np.int32(stop)))
            state, trace = piece.program.call(
                *full,
                self._weights_of("denoise", controls),
                *bounds,
                state,
                piece.cond,
                piece.uncond,
                *arguments,
                keys,
                *more,
            )
            if watch is not None:
                watch.stepped(stop, np.array(gather(state.x)))  # a copy, because the next call takes the buffer over
            # The devices work on this piece while the host waits for the one before it.
            if traces and on_step is not None:
                jax.block_until_ready(traces[-1])
                on_step(stops[-1], total)
                began, seconds = time.monotonic(), time.monotonic() - began
                seconds_a_row = max(seconds, 1e-9) / (stops[-1] - stops[-2])
                self._rows_a_call = max(1, int(PIECE_SECONDS / seconds_a_row))
            traces.append(trace)
            stops.append(stop)
        noise, rows_traced, latents, num_finite = zip(*map(gather, traces), strict=True)
        if on_step is not None:
            on_step(total, total)
        return state.x, programs.Trace(noise[0], sum(rows_traced), latents[-1], np.minimum.reduce(num_finite))

    def _deep_half(self, kind: Kind, *, guided: bool) -> jax.ShapeDtypeStruct | None:
        return None if kind.cache is None else self._blueprint.deep_half(kind.cache.branch, guided=guided)

    def _weights_of(self, program: ProgramName, controls: Sequence[int] = ()) -> tuple[Weights, ...]:
        """A program's weights, as soon as they are on the devices. controls: its ControlNets, by their places."""
        return tuple(map(self._part, self._blueprint.parts(program, controls)))

    def _compiled(self, denoisers: Mapping[bool, str], kind: Kind) -> Mapping[str, Program]:
        """The programs by name, compiled side by side where they are not there yet.

        denoisers: whether they have guidance -> name; both where guidance begins or ends on the way.
        kind: of the batch.
        """
        blueprint, text = self._blueprint, kind.text
        sources: dict[str, Callable[[], ProgramSpec]] = {
            **{
                name: functools.partial(
                    blueprint.denoise,
                    guided=has_it,
                    given_noise=kind.given_noise,
                    from_picture=kind.from_picture,
                    controls=kind.controls,
                    sized=kind.sized,
                    text=text,
                    branch=None if kind.cache is None else kind.cache.branch,
                )
                for has_it, name in denoisers.items()
            },
            encoder(text): blueprint.encode if text is None else functools.partial(blueprint.encode_chunks, text),
            "decode": blueprint.decode,
            **({"encode_picture": blueprint.encode_picture} if kind.from_picture else {}),
            **{embedder(place): functools.partial(blueprint.embed_control, place) for place in kind.controls},
        }
        missing = [name for name in sources if name not in self._programs]
        if missing:
            start = time.monotonic()
            with ThreadPoolExecutor(len(missing), thread_name_prefix="compile") as pool:
                compiled = {name: pool.submit(self._compile, sources[name]) for name in missing}
            self._programs |= {name: future.result() for name, future in compiled.items()}
            compiled_at = time.monotonic()
            wait(self._weights.parts.values())
            self.seconds["compile"] += compiled_at - start
            self.seconds["weights"] += time.monotonic() - compiled_at
        return self._programs

    @with_usual_settings
    def _compile(self, spec: Callable[[], ProgramSpec]) -> Program:
        return self._devices.compile(spec(), check=self._weights.fit.result)


class _WeightsInReading:
    """A checkpoint's weights, read in a thread that does not keep an interrupted process from ending.

    fit: done when every stored tensor has its parameter, by name and shape.
    parts: part -> its parameters.
    merged: the same with LoRAs.
    """

    def __init__(self, checkpoint: Checkpoint, precision: PrecisionConfig, devices: Devices):
        self.fit: Future[None] = Future()
        self.parts: dict[str, Future[Weights]] = {part: Future() for part in checkpoint.parts}
        self.merged = MergedWeights(checkpoint, devices, self.part)
        self._checkpoint, self._precision, self._devices = checkpoint, precision, devices
        threading.Thread(target=self._read, name="weights", daemon=True).start()

    def part(self, name: str) -> Weights:
        """One part's parameters, as soon as they are on the devices."""
        return self.parts[name].result()

    @with_usual_settings
    def _read(self) -> None:
        precisions = self._checkpoint.family.precisions(self._precision, self._checkpoint.parts)
        dtypes = {part: jnp.dtype(of.param_dtype) for part, of in precisions.items()}
        try:
            matched = {part: match_weights(self._checkpoint, part, param_dtype=dtype) for part, dtype in dtypes.items()}
        except BaseException as error:
            self.fit.set_exception(error)
            for future in self.parts.values():
                future.set_exception(error)
            return
        self.fit.set_result(None)
        for part, dtype in dtypes.items():
            try:
                state = fill(matched.pop(part), dtype=dtype, sharding=self._devices.replicated)
                self.parts[part].set_result(leaves(state))
            except BaseException as error:
                self.parts[part].set_exception(error)


def denoiser(guided: bool, kind: Kind) -> str:
    """The name of a denoising program."""
    endings = ("" if guided else "_unguided", "_given_noise" * kind.given_noise, "_picture" * kind.from_picture)
    cache = "" if kind.cache is None else f"_cached_{kind.cache.branch}"
    chunks = "" if kind.text is None or kind.text.chunks == 1 else f"_{kind.text.chunks}"
    controls = f"_control{'_'.join(map(str, kind.controls))}" if kind.controls else ""
    return f"denoise{''.join(endings)}{controls}{'_sizes' * kind.sized}{cache}{chunks}"


def embedder(place: int) -> str:
    """The name of the program that embeds the pictures of the ControlNet at this place."""
    return f"embed_control_{place}"


def encoder(text: TextShape | None) -> str:
    """The name of a program that encodes prompts."""
    if text is None:
        return "encode"
    return f"encode_{text.weighting or 'plain'}_{text.chunks}_{text.versions}{'_embedded' * text.embedded}"


def image_keys(specs: Sequence[ImageSpec]) -> np.ndarray:
    """uint32 (b,2)."""
    return np.stack([image_key(spec.seed, spec.row, spec.copy, spec.row_seed) for spec in specs])


def size_numbers(specs: Sequence[ImageSpec]) -> np.ndarray:
    """float32 (b,2,6): the size conditioning of the prompts and of the negative prompts."""
    sizes = [(spec.sizes or Sizes()).numbers(spec.height, spec.width) for spec in specs]
    return np.array(sizes, np.float32)


def picture_scale(spec: ImageSpec, table: Table) -> float:
    """The factor on a picture's latents before the first row."""
    assert spec.picture is not None and table.levels is not None
    return 0.0 if spec.picture.starts_from_noise else float(table.levels[0, 0])


def noise_scale(spec: ImageSpec, table: Table) -> float:
    """The factor on the initial noise before the first row."""
    if spec.picture is None or spec.picture.starts_from_noise:
        return table.init_scale
    assert table.levels is not None
    return float(table.levels[0, 1])


def _full_rows(kind: Kind, tables: Sequence[Table]) -> np.ndarray | None:
    """bool (MAX_ROWS,): the rows that compute the deep half of the denoiser; None: all do, and there is no cache."""
    if kind.cache is None:
        return None
    rows = np.ones(MAX_ROWS, np.bool_)
    called = full_calls(kind.cache, kind.guided, max(map(len, tables)))
    rows[: len(called)] = called
    return rows


def _not_finite(
    table: Table,
    finite_texts: bool,
    finite_picture: bool,
    finite_control: bool,
    num_finite: int,
    finite_pixels: bool,
) -> NotFinite | None:
    """Where an image is not finite first. num_finite: rows of its table after which its latents were finite."""
    if not finite_texts:
        return NotFinite(program="encode")
    if not finite_picture:
        return NotFinite(program="encode_picture")
    if not finite_control:
        return NotFinite(program="embed_control")
    if num_finite < len(table):
        timestep = float(table.timesteps[num_finite])
        return NotFinite(program="denoise", call=num_finite + 1, num_calls=len(table), timestep=timestep)
    return None if finite_pixels else NotFinite(program="decode")


def _text_digest(ids: Iterable[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(one.tobytes() for one in ids)).hexdigest()[:16]


def _joined(digests: Iterable[str]) -> str:
    """One after the other; of more than two, one digest of them."""
    every = list(digests)
    return "".join(every) if len(every) <= 2 else hashlib.sha256("".join(every).encode()).hexdigest()[:32]


def _hex(digest: np.ndarray | jax.Array) -> str:
    return "".join(f"{int(part):08x}" for part in digest)
