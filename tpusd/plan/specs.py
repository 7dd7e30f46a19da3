"""A run's config -> the images to make, in order. Pure Python; knows nothing of devices and of how an image is made."""

import dataclasses
import itertools
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpusd.config.adapters import AppliedLora, applied
from tpusd.config.cache import NO_CACHE, CacheConfig
from tpusd.config.controls import ControlNet
from tpusd.config.embeddings import AppliedEmbedding, applied_embeddings
from tpusd.config.limits import MAX_ROWS
from tpusd.config.packed_rows import PackedRows, first_rows
from tpusd.config.rows import Row
from tpusd.config.sampler import GuidanceSchedule, SamplerSettings
from tpusd.config.schema import Noise, Resize, RunConfig, SavedConfig
from tpusd.config.shards import Shard, parse_rows
from tpusd.config.sizes import SIZE_FIELDS, Sizes
from tpusd.errors import UserError, show
from tpusd.families.guidance import guided_calls, scale_at
from tpusd.syntax.rules import TextRules
from tpusd.syntax.schedules import Phase, phases

ImageSize = tuple[int, int]  # height and width, in pixels
_NAME = re.compile(r"(\d{5,7})-(\d{3,4})")


def image_name(row: int, copy: int) -> str:
    """An image's name within its run: row-copy, as in 00003-001."""
    return f"{row:05d}-{copy:03d}"


def parse_name(name: str) -> tuple[int, int]:
    """The inverse of image_name. Raises UserError for another kind of name."""
    match = _NAME.fullmatch(name)
    if match is None or image_name(int(match[1]), int(match[2])) != name:
        raise UserError(f"images={show(name)}: must be names such as 00003-001 (row 3, copy 1)")
    return int(match[1]), int(match[2])


@dataclass(frozen=True, kw_only=True)
class PictureInput:
    """The picture that an image starts from. Two are equal if they lead to the same pixels, wherever the files are.

    image: the file.
    image_sha256: of its bytes.
    strength: the share of the steps that are made.
    resize: how the picture gets the image's size.
    mask: a file whose white part is made; None: all is made.
    mask_sha256: of its bytes.
    paste_back: whether the pixels that are not masked are the picture's own.
    mask_feather: pixels within the mask over which the made pixels begin.
    """

    image: str = field(compare=False)
    image_sha256: str | None
    strength: float
    resize: Resize
    mask: str | None = field(default=None, compare=False)
    mask_sha256: str | None = None
    paste_back: bool = True
    mask_feather: int = 0

    @property
    def starts_from_noise(self) -> bool:
        """Whether nothing of the picture is in the first sample: with a mask and all steps, as in diffusers."""
        return self.mask is not None and self.strength == 1


@dataclass(frozen=True, kw_only=True)
class ControlInput:
    """The picture that a ControlNet reads for an image. Two are equal if they lead to the same pixels.

    net: the place of the ControlNet in `model.controlnets`.
    image: the file.
    image_sha256: of its bytes.
    scale: how strong the ControlNet is; 0: it has no effect.
    start, end: fractions of the steps between which it has an effect.
    guess_mode: whether it guides the half of the prompt alone.
    resize: how the picture gets the image's size.
    """

    net: int
    image: str = field(compare=False)
    image_sha256: str | None
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    guess_mode: bool = False
    resize: Resize = "fill"

    def scales(self, num_calls: int) -> list[float]:
        """The scale at each model call, of `num_calls`."""
        steps = ControlNet(start=self.start, end=self.end).steps(num_calls)
        return [self.scale if has_effect else 0.0 for has_effect in steps]


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """What draws an image's noise. batch_size, threads: as `noise_batch_size` and `noise_threads` of a run."""

    name: Noise = "threefry"
    batch_size: int = 1
    threads: int | None = None

    @property
    def is_torch(self) -> bool:
        """Whether the noise is PyTorch's, which the host draws."""
        return self.name != "threefry"


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """All that decides an image's pixels beside checkpoint and precision. Sizes in pixels."""

    row: int
    copy: int
    prompt: str
    negative_prompt: str | None  # None: not given, which SDXL tells from an empty one
    seed: int
    row_seed: int | None
    guidance_scale: float
    guidance_rescale: float
    height: int
    width: int
    sampler: SamplerSettings
    guidance_interval: tuple[float, ...] = (0.0, 1.0)
    guidance_schedule: GuidanceSchedule = "constant"
    cache: CacheConfig = NO_CACHE
    loras: tuple[AppliedLora, ...] = ()
    embeddings: tuple[AppliedEmbedding, ...] = ()
    text: TextRules = TextRules()
    noise: NoiseSource = NoiseSource()
    # The texts as they were before wildcards and LoRAs were read in them; None: they had none.
    prompt_template: str | None = field(default=None, compare=False)
    negative_prompt_template: str | None = field(default=None, compare=False)
    extra: Mapping[str, Any] = field(default_factory=dict)  # further columns: to the manifest, not to the pixels
    picture: PictureInput | None = None  # None: starts from noise alone
    controls: tuple[ControlInput, ...] = ()  # in the order of the ControlNets
    control_scale: float = 1.0  # the factor that is in theirs
    sizes: Sizes | None = None  # size conditioning, where it is not that of the image's own size

    @property
    def strength(self) -> float:
        """The share of the steps, the last ones, that the image makes."""
        return 1.0 if self.picture is None else self.picture.strength

    @property
    def active_controls(self) -> tuple[ControlInput, ...]:
        """The ControlNets that have an effect."""
        return tuple(control for control in self.controls if control.scale)

    def guided_calls(self, num_calls: int) -> range:
        """The model calls that need classifier-free guidance, of `num_calls`."""
        return guided_calls(self.guidance_scale, self.guidance_interval, num_calls)

    def texts(self, num_calls: int) -> list[str]:
        """The texts that are encoded, with `num_calls` model calls."""
        whole = [self.prompt, *([self.negative_prompt or ""] if self.guided_calls(num_calls) else [])]
        return [phase.text for text in whole for phase in self.phases(text, num_calls)]

    def phases(self, text: str, num_calls: int) -> tuple[Phase, ...]:
        """What a text is by the model call, of `num_calls`: marks of A1111 may change it. Raises UserError.

        As in A1111, `when` counts steps of the whole schedule, and both model calls where a step has two.
        """
        if self.text.syntax != "a1111":
            return (Phase(num_calls, text),)
        steps = self.sampler.num_inference_steps
        return phases(text, 2 * steps if num_calls > 1.5 * steps * self.strength else steps)

    def guidance_scales(self, num_calls: int) -> list[float]:
        """The guidance scale of each model call, of `num_calls`; outside the interval it is not read."""
        return [scale_at(self.guidance_scale, self.guidance_schedule, call, num_calls) for call in range(num_calls)]

    @property
    def name(self) -> str:
        return image_name(self.row, self.copy)


@dataclass(frozen=True, kw_only=True)
class Stripe:
    """The images of one shard: every count-th, along the rows and along the copies.

    It follows from an image's own numbers, so a run that grows leaves each image with its shard. offset: the number of
    the run in its sweep, so that runs of one image each are spread too.
    """

    shard: Shard
    offset: int = 0

    @staticmethod
    def index_of(row: int, copy: int, *, count: int, offset: int) -> int:
        """Which of `count` shards has the image, from 1."""
        return (row + copy + offset) % count + 1

    def has(self, row: int, copy: int) -> bool:
        return self.index_of(row, copy, count=self.shard.count, offset=self.offset) == self.shard.index

    def copies_of(self, row: int, copies: range) -> range:
        """Those of `copies` of a row that the shard has."""
        return copies[(self.shard.index - 1 - row - copies.start - self.offset) % self.shard.count :: self.shard.count]


class PlannedImages(Collection[tuple[int, int]]):
    """(row, copy) of images of a run, row by row and copy by copy. Holds ranges, so it is small for any run."""

    def __init__(
        self,
        rows: range,
        copies: range,
        chosen: Iterable[tuple[int, int]] | None = None,
        stripe: Stripe | None = None,
    ):
        """chosen: the only images of these rows and copies that the run has; None: it has all of them.
        stripe: the shard whose images these are; None: all.

        Raises UserError for a chosen image that the rows and copies do not hold.
        """
        self.rows, self.copies, self._stripe = rows, copies, stripe
        self._chosen = None if chosen is None else dict.fromkeys(sorted(chosen))
        for row, copy in self._chosen or ():
            if row not in rows or copy not in copies:
                raise UserError(
                    f"images={image_name(row, copy)}: the run has rows {rows.start} to {rows[-1]} and copies "
                    f"{copies.start} to {copies[-1]}; name one of them"
                )

    def __contains__(self, key: object) -> bool:
        if not (isinstance(key, tuple) and len(key) == 2):
            return False
        if self._stripe is not None and not self._stripe.has(*key):
            return False
        return key in self._chosen if self._chosen is not None else key[0] in self.rows and key[1] in self.copies

    def __iter__(self) -> Iterator[tuple[int, int]]:
        if self._chosen is not None:
            return (key for key in self._chosen if key in self)
        return ((row, copy) for row in self.rows for copy in self.copies_of(row))

    def __len__(self) -> int:
        if self._chosen is not None:
            return len(self._chosen) if self._stripe is None else sum(1 for _ in self)
        if self._stripe is None:
            return len(self.rows) * len(self.copies)
        count = self._stripe.shard.count  # of rows with the same remainder, each has as many images of the shard
        return sum(
            len(self.rows[start::count]) * len(self.copies_of(row)) for start, row in enumerate(self.rows[:count])
        )

    def copies_of(self, row: int) -> range:
        """The copies of a row, where no images are chosen."""
        return self.copies if self._stripe is None else self._stripe.copies_of(row, self.copies)


def planned(config: SavedConfig, stripe: Stripe | None = None) -> PlannedImages:
    """The images of a run. stripe: of one shard alone.

    Raises UserError: its rows are too many, `rows` has none of them, or `images` names one that it does not have.
    """
    rows = row_numbers(config, len(config.prompts.rows))
    copies = range(config.first_copy, config.first_copy + config.num_images_per_prompt)
    return PlannedImages(rows, copies, None if config.images is None else map(parse_name, config.images), stripe)


def row_numbers(config: RunConfig, num_rows: int) -> range:
    """The numbers of the rows that a run makes. num_rows: of its prompt set. Raises UserError."""
    first, end = config.first_row, config.first_row + num_rows
    if end > MAX_ROWS:
        raise UserError(f"first_row={first}: with {num_rows} rows goes beyond {MAX_ROWS}; use a smaller one")
    start, stop = (first, None) if config.rows is None else parse_rows(config.rows)
    rows = range(max(start, first), end if stop is None else min(stop, end))[: config.limit]
    if not rows and num_rows:
        raise UserError(f"rows={config.rows}: the prompt set has rows {first} to {end - 1}; choose some of them")
    return rows


def make_spec(config: SavedConfig, number: int, copy: int) -> ImageSpec:
    """One image of a run: copy `copy` of row `number`. Rows are numbered from first_row."""
    row = row_of(config, number)
    height, width = _size_of(config, row)
    return ImageSpec(
        row=number,
        copy=copy,
        prompt=row.prompt,
        negative_prompt=config.negative_prompt if row.negative_prompt is None else row.negative_prompt,
        seed=config.seed,
        row_seed=row.seed,
        guidance_scale=config.guidance_scale if row.guidance_scale is None else row.guidance_scale,
        guidance_rescale=config.guidance_rescale,
        guidance_interval=config.guidance_interval,
        guidance_schedule=config.guidance_schedule,
        cache=config.cache,
        noise=NoiseSource(name=config.noise, batch_size=config.noise_batch_size, threads=config.noise_threads),
        height=height,
        width=width,
        sampler=_sampler_of(config, row),
        loras=applied((*config.loras, *(row.loras or ()))),
        embeddings=applied_embeddings(config.embeddings),
        text=text_rules(config),
        prompt_template=row.prompt_template,
        negative_prompt_template=row.negative_prompt_template,
        extra=row.extra,
        picture=_picture_of(config, row),
        controls=tuple(_controls_of(config, row)),
        control_scale=config.control_scale if row.control_scale is None else row.control_scale,
        sizes=Sizes.of({name: _first_set(getattr(row, name), getattr(config, name)) for name in SIZE_FIELDS}),
    )


def text_rules(config: RunConfig) -> TextRules:
    """How the run's prompts are read. A1111 reads every prompt whole."""
    syntax = config.prompts.syntax
    weighting = None if syntax == "plain" else config.prompts.weighting or syntax
    return TextRules(
        syntax=syntax,
        weighting=weighting,
        whole=syntax == "a1111" or config.on_truncate == "chunk",
        embedded=bool(config.embeddings),
    )


def make_specs(
    config: SavedConfig,
    done: Container[tuple[int, int]] = (),
    size: ImageSize | None = None,
    stripe: Stripe | None = None,
) -> Iterator[ImageSpec]:
    """The images of a run, in order.

    done: (row, copy) of those to leave out, because they exist.
    size: only the images of this size; None: all.
    stripe: only the images of this shard; None: all.
    """
    for key in planned(config, stripe):
        if key not in done and (size is None or _size_of(config, row_of(config, key[0])) == size):
            yield make_spec(config, *key)


def image_sizes(config: SavedConfig) -> tuple[ImageSize, ...]:
    """The different sizes of a run's images, in the order of its rows. Each has programs of its own."""
    return tuple(dict.fromkeys(_size_of(config, row) for _, row in settings_of(config)))


def settings_of(config: SavedConfig) -> Iterator[tuple[int, Row]]:
    """(number, row) of enough of the rows that a run makes to see all that they set, see `first_rows`."""
    first, numbers = config.first_row, planned(config).rows
    chosen = first_rows(config.prompts.rows, range(numbers.start - first, numbers.stop - first))
    return ((first + index, row) for index, row in chosen)


def counted_specs(
    config: SavedConfig,
    done: Container[tuple[int, int]] = (),
    size: ImageSize | None = None,
    stripe: Stripe | None = None,
) -> Iterator[tuple[ImageSpec, int]]:
    """Images that are made alike, and how many of them `make_specs` would give. Arguments as of `make_specs`.

    Where the text of an image says nothing of how it is made, one of each kind of row is looked at.
    """
    rows = config.prompts.rows
    if not isinstance(rows, PackedRows) or not text_rules(config).is_plain:
        yield from ((spec, 1) for spec in make_specs(config, done, size, stripe))
        return
    number: dict[int, int] = {}
    first: dict[int, tuple[int, int]] = {}
    for key in planned(config, stripe):
        if key not in done:
            kind = rows.kind(key[0] - config.first_row)
            number[kind] = number.get(kind, 0) + 1
            first.setdefault(kind, key)
    for kind, key in first.items():
        spec = make_spec(config, *key)
        if size is None or (spec.height, spec.width) == size:
            yield spec, number[kind]


def row_of(config: SavedConfig, number: int) -> Row:
    """A row by its number."""
    rows: Sequence[Row] = config.prompts.rows
    return rows[number - config.first_row]


def _size_of(config: SavedConfig, row: Row) -> ImageSize:
    return config.height if row.height is None else row.height, config.width if row.width is None else row.width


def _picture_of(config: SavedConfig, row: Row) -> PictureInput | None:
    if row.image is None:
        return None
    return PictureInput(
        image=row.image,
        image_sha256=row.image_sha256,
        strength=config.strength if row.strength is None else row.strength,
        resize=config.resize,
        mask=row.mask,
        mask_sha256=row.mask_sha256,
        paste_back=config.paste_back,
        mask_feather=config.mask_feather,
    )


def _first_set(own: tuple[int, ...] | None, of_run: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return of_run if own is None else own


def _controls_of(config: SavedConfig, row: Row) -> Iterator[ControlInput]:
    factor = config.control_scale if row.control_scale is None else row.control_scale
    paths, sums = row.control_images or (), row.control_images_sha256 or itertools.repeat(None)
    for number, (net, path, sha256) in enumerate(zip(config.model.controlnets, paths, sums, strict=False)):
        if path is not None:
            yield ControlInput(
                net=number,
                image=path,
                image_sha256=sha256,
                scale=net.scale * factor,
                start=net.start,
                end=net.end,
                guess_mode=config.guess_mode,
                resize=config.resize,
            )


def _sampler_of(config: SavedConfig, row: Row) -> SamplerSettings:
    if row.num_inference_steps in (None, config.sampler.num_inference_steps):
        return config.sampler
    return dataclasses.replace(config.sampler, num_inference_steps=row.num_inference_steps)
