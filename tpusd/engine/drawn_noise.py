"""PyTorch's noise for the images of a batch, drawn on the host in the order in which diffusers draws it.

A generator draws the initial latents of its images first, and then the noise of each step, for every step of a
stochastic sampler. Which seed an image has: copy i is image i % n of the generator of seed + i // n, where n is
`noise_batch_size`. The row plays no part: rows start from one noise, unless they have seeds of their own.
"""

from collections.abc import Sequence

import numpy as np

from tpusd.engine.noise import GivenNoise
from tpusd.engine.torch_noise.cpu import CPUGenerator
from tpusd.engine.torch_noise.cuda import CUDAGenerator
from tpusd.plan.specs import ImageSpec, NoiseSource
from tpusd.samplers.rows import NOISE
from tpusd.samplers.table import Table

ROWS_AT_ONCE = 8  # whose noise a call of the denoiser gets


class DrawnNoise:
    """The noise of the images of one batch.

    specs, tables: of a full batch, padding included.
    shape: (c,h,w) of the latents.
    """

    def __init__(self, specs: Sequence[ImageSpec], tables: Sequence[Table], shape: tuple[int, int, int]):
        self._streams: dict[tuple[NoiseSource, int], _Stream] = {}
        self._images = []  # each image's stream, and its place there
        for spec in specs:
            seed, place = generator_of(spec)
            stream = self._streams.setdefault((spec.noise, seed), _Stream(spec.noise, seed, shape))
            self._images.append((stream, place))
        self._takes_noise = [bool(table.rows[:, NOISE].any()) for table in tables]
        self._initial = self._of_images([True] * len(specs))

    @property
    def has_steps(self) -> bool:
        """Whether a sampler of the batch takes noise in its steps."""
        return any(self._takes_noise)

    def without_steps(self) -> GivenNoise:
        """For calls whose samplers take no noise in their steps."""
        b, *shape = self._initial.shape
        return GivenNoise(self._initial, np.zeros((b, ROWS_AT_ONCE, *shape), np.float32), np.zeros(b, np.int32))

    def given(self, start: int, stop: int) -> GivenNoise:
        """For a call of rows [start, stop), at most ROWS_AT_ONCE, each of which is asked for once and in order."""
        initial, steps, first = map(np.asarray, self.without_steps())
        for k in range(stop - start):
            steps[:, k] = self._of_images(self._takes_noise)
        return GivenNoise(initial, steps, first + np.int32(start))

    def _of_images(self, wanted: Sequence[bool]) -> np.ndarray:
        """The next draw, (b,h,w,c). wanted: of which images; the others get zeros."""
        streams = {id(stream) for (stream, _), own in zip(self._images, wanted, strict=True) if own}
        drawn = {id(one): one.draw() for one in self._streams.values() if id(one) in streams}
        shape = next(iter(drawn.values())).shape[1:]
        images = [
            drawn[id(stream)][place] if own else np.zeros(shape, np.float32)
            for (stream, place), own in zip(self._images, wanted, strict=True)
        ]
        return np.stack(images).transpose(0, 2, 3, 1)


def generator_of(spec: ImageSpec) -> tuple[int, int]:
    """The seed of the generator that draws an image's noise, and the image's place in its draws."""
    generator, place = divmod(spec.copy, spec.noise.batch_size)
    return (spec.seed if spec.row_seed is None else spec.row_seed) + generator, place


class _Stream:
    """One generator, and draws of a batch of latents from it. shape: (c,h,w)."""

    def __init__(self, noise: NoiseSource, seed: int, shape: tuple[int, int, int]):
        self._generator = CPUGenerator(seed) if noise.name == "torch_cpu" else CUDAGenerator(seed, noise.threads)
        self._shape = (noise.batch_size, *shape)

    def draw(self) -> np.ndarray:
        """(noise_batch_size,c,h,w) float32."""
        return self._generator.randn(int(np.prod(self._shape))).reshape(self._shape)
