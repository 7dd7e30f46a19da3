"""What verify found: as text and as JSON."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from tpusd.errors import printable, show
from tpusd.plan.specs import ImageSpec
from tpusd.verify.compare import EQUAL, LATENTS_BOUND, PIXELS_BOUND, TEXT_BOUND, Stage, stage
from tpusd.verify.ours import Made
from tpusd.verify.weights import Weights

MAX_WEIGHTS = 10  # that the text names
EVERY = 5  # calls of the denoiser, of whose latents the text has a line


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One image by both programs."""

    spec: ImageSpec
    stages: tuple[Stage, ...]

    @property
    def first(self) -> Stage | None:
        """The first place that differs."""
        return next((one for one in self.stages if not one.same), None)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What verify found.

    model, reference: what the two programs read, for the reader.
    reader: who read the weights of the reference.
    versions: package -> version.
    num_images: of the run, of which some are compared.
    """

    model: str
    reference: str
    reader: str
    versions: Mapping[str, str]
    num_images: int
    weights: Weights
    images: tuple[Compared, ...]

    @property
    def first(self) -> str | None:
        """The first place that differs; None: nothing does."""
        if (name := self.weights.first) is not None:
            return f"weights: {name}"
        found = ((image.spec.name, image.first) for image in self.images)
        return next((f"image {name}: {one.name}" for name, one in found if one is not None), None)

    def to_json(self) -> dict[str, Any]:
        """One JSON object. A number that is not finite is null."""
        return {
            "same": self.first is None,
            "first_difference": self.first,
            "model": self.model,
            "reference": self.reference,
            "reader": self.reader,
            "versions": dict(self.versions),
            "images_of_the_run": self.num_images,
            "weights": {
                "compared": self.weights.number,
                "different": [_json(one) for one in self.weights.different],
                "alone": dict(self.weights.alone),
            },
            "images": [
                {
                    "name": image.spec.name,
                    "prompt": image.spec.prompt,
                    "stages": [_json(one) for one in image.stages],
                }
                for image in self.images
            ],
        }


def compare(spec: ImageSpec, ours: Made, theirs: Made) -> Compared:
    """Place by place, in the order in which an image is made."""
    return Compared(spec=spec, stages=tuple(_stages(ours, theirs)))


def _stages(ours: Made, theirs: Made) -> Iterator[Stage]:
    for side, ids in ours.tokens.items():
        yield stage(f"tokens of the {side}", ids, theirs.tokens[side], EQUAL)
    for side, values in ours.texts.items():
        yield stage(f"text embedding of the {side}", values, theirs.texts[side], TEXT_BOUND)
    total = max(len(ours.latents), len(theirs.latents))
    for call, (own, other) in enumerate(zip(ours.latents, theirs.latents, strict=False), 1):
        yield stage(f"latents after call {call} of {total}", own, other, LATENTS_BOUND)
    if len(ours.latents) != len(theirs.latents):
        text = f"model calls: {len(ours.latents)}, in the reference {len(theirs.latents)}"
        yield Stage(name=text, largest=math.inf, mean=math.inf, bound=EQUAL)
    rounded = (theirs.pixels * 255).round() / 255  # as ours are
    yield stage("pixels", ours.pixels, rounded, PIXELS_BOUND, largest_value=1.0)


def text_of(report: Report) -> Iterator[str]:
    """Lines for a terminal."""
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    yield f"tpusd: {show(report.model, 200)}"
    yield f"diffusers: {show(report.reference, 200)}, by {report.reader} ({versions})"
    weights = report.weights
    equal = weights.number - len(weights.different)
    yield f"weights: {equal:,} of {weights.number + len(weights.alone):,} parameters are equal"
    names = [f"  {one.name}: DIFFERS, by {one.largest:.1e} of its largest value" for one in weights.different]
    names += [f"  {name}: {why}" for name, why in weights.alone.items()]
    yield from names[:MAX_WEIGHTS]
    if len(names) > MAX_WEIGHTS:
        yield f"  and {len(names) - MAX_WEIGHTS:,} more"
    yield from chain.from_iterable(map(_table, report.images))
    yield ""
    count = f"{len(report.images)} of the run's {report.num_images:,} images"
    if report.first is None:
        yield f"same: {count}, within the bounds of rounding at every place"
    else:
        yield f"DIFFERS: {count} compared; the first place that differs is {printable(report.first)}"


def _table(image: Compared) -> Iterator[str]:
    shown = list(_shown(image))
    width = max(len(one.name) for one in shown)
    yield ""
    yield f"image {image.spec.name}: {show(image.spec.prompt)}"
    yield f"  {'':<{width}}  largest     mean    bound"
    for one in shown:
        bound = f"{one.bound.largest:.0e}" if one.bound.largest else "equal"
        verdict = "ok" if one.same else "DIFFERS"
        yield f"  {one.name:<{width}}  {one.largest:7.1e}  {one.mean:7.1e}  {bound:>7}  {verdict}"


def _shown(image: Compared) -> Iterator[Stage]:
    """The places that have a line: of the latents those after every few calls, and the first that differ."""
    latents = [one for one in image.stages if one.bound is LATENTS_BOUND]
    lines = {id(one) for n, one in enumerate(latents, 1) if n in (1, len(latents)) or n % EVERY == 0}
    for one in image.stages:
        if one.bound is not LATENTS_BOUND or id(one) in lines or one is image.first:
            yield one


def _json(one: Stage) -> dict[str, Any]:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "place": one.name,
        "largest": finite(one.largest),
        "mean": finite(one.mean),
        "bound": {"largest": one.bound.largest, "mean": one.bound.mean},
        "same": one.same,
    }
