"""`torch.randn` in float32 with a generator on a CUDA device: Philox4x32-10 (Salmon et al. 2011), as cuRAND counts.

A draw runs a grid of threads. Each thread has a subsequence of its own and takes four normal numbers at a time, for
elements that are a grid apart; the grid has at most as many threads as the device runs at once. So where a draw has
more numbers than that, it depends on the device. The device's own logarithm and sine round otherwise in the last bits.
"""

import numpy as np

from tpusd.engine.torch_noise.cephes import F

THREADS_PER_BLOCK = 256
NORMALS_PER_CALL = 4
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)


class CUDAGenerator:
    """`torch.Generator("cuda").manual_seed(seed)`.

    seed: below 2**64.
    threads: how many the device runs at once; None: as many as a draw has numbers.
    """

    def __init__(self, seed: int, threads: int | None = None):
        self._seed, self._threads, self._calls = seed, threads, 0

    def randn(self, size: int) -> np.ndarray:
        """The next draw of `size` numbers, float32 (size,)."""
        blocks = -(-size // THREADS_PER_BLOCK)
        if self._threads is not None:
            blocks = min(blocks, self._threads // THREADS_PER_BLOCK)
        grid = blocks * THREADS_PER_BLOCK
        calls = -(-size // (grid * NORMALS_PER_CALL))  # of each thread
        used = np.arange(min(size, grid), dtype=np.uint64)
        normal = [_normals(philox(self._seed, used, self._calls + call)) for call in range(calls)]
        self._calls += calls
        # Thread i of call n makes the elements i + grid * (4 n + 0..3).
        return np.concatenate(normal).reshape(-1)[:size]


def philox(seed: int, subsequence: np.ndarray, call: int) -> np.ndarray:
    """Call `call` of each subsequence (n,) uint64 -> uint32 (4, n): Philox4x32-10 with the seed as its key."""
    counter = [
        np.full_like(subsequence, call & 0xFFFFFFFF),
        np.full_like(subsequence, call >> 32),
        subsequence & _LOW,
        subsequence >> np.uint64(32),
    ]
    key = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * counter[0], _MULTIPLIERS[1] * counter[2]
        counter = [
            (second >> np.uint64(32)) ^ counter[1] ^ np.uint64(key[0]),
            second & _LOW,
            (first >> np.uint64(32)) ^ counter[3] ^ np.uint64(key[1]),
            first & _LOW,
        ]
        key = [(part + weyl) & 0xFFFFFFFF for part, weyl in zip(key, _WEYL, strict=True)]
    return np.stack(counter).astype(np.uint32)


def _normals(bits: np.ndarray) -> np.ndarray:
    """uint32 (4, n) -> four normal float32 of each, (4, n): sine and cosine of the first pair, then of the second."""
    radius = np.sqrt(F(-2) * np.log(_scaled(bits[::2], 1.0)))
    angle = _scaled(bits[1::2], 2 * np.pi)
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1).reshape(4, -1)


def _scaled(bits: np.ndarray, width: float) -> np.ndarray:
    """uint32 -> float32 above 0 and up to `width`, in the middles of 2**32 equal parts, as float32 can hold them."""
    part = float(F(width * 2.0**-32))
    return (bits.astype(F) * np.float64(part) + part / 2).astype(F)
