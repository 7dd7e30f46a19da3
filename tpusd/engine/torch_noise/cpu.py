"""`torch.randn` in float32 with a generator on a CPU: the Mersenne Twister, and the transform of Box and Muller.

Bit for bit what PyTorch draws on an x86 CPU with AVX2 or AVX-512. On another CPU, PyTorch's own logarithm and sine
round otherwise: its numbers there differ from those of AVX2 by up to 2e-6.
"""

import math

import numpy as np

from tpusd.engine.torch_noise.cephes import F, log, sin_cos

BLOCK = 16  # numbers that are made together: 8 radii and 8 angles


class CPUGenerator:
    """`torch.Generator("cpu").manual_seed(seed)`: PyTorch takes the last 32 bits of the seed."""

    def __init__(self, seed: int):
        self._bits = np.random.MT19937()
        self._bits._legacy_seeding(seed & 0xFFFFFFFF)
        self._spare: float | None = None  # of the pair that the scalar path draws

    def randn(self, size: int) -> np.ndarray:
        """The next draw of `size` numbers, float32 (size,)."""
        if size < BLOCK:
            return np.array([self._next_normal() for _ in range(size)], F)
        uniform = self._uniform(size)
        whole = size // BLOCK * BLOCK
        normal = np.empty(size, F)
        normal[:whole] = _box_muller(uniform[:whole])
        if whole < size:  # the last 16 numbers are drawn again, so that they are a block too
            normal[-BLOCK:] = _box_muller(self._uniform(BLOCK))
        return normal

    def _uniform(self, size: int) -> np.ndarray:
        """Multiples of 2**-24 in [0, 1)."""
        bits = self._bits.random_raw(size).astype(np.uint32) & np.uint32((1 << 24) - 1)
        return bits.astype(F) * F(2.0**-24)

    def _next_normal(self) -> float:
        """One number of the scalar path, which draws pairs in float64."""
        if self._spare is not None:
            spare, self._spare = self._spare, None
            return spare
        high, low = (self._bits.random_raw(4).astype(np.uint64)).reshape(2, 2).T
        angle, inner = (((high << np.uint64(32) | low) & np.uint64((1 << 53) - 1)) * 2.0**-53).tolist()
        radius = math.sqrt(-2 * math.log1p(-inner))
        self._spare = radius * math.sin(2 * math.pi * angle)
        return radius * math.cos(2 * math.pi * angle)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Uniform float32, whole blocks -> as many normal ones."""
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(F(-2) * log(F(1) - blocks[:, 0]))
    sin, cos = sin_cos(F(2 * math.pi) * blocks[:, 1])
    return np.stack([radius * cos, radius * sin], axis=1).reshape(-1)
