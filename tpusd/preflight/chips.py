"""What Google publishes of its TPUs: rates and memory. Numbers for estimates; nothing here is measured."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip; `devices` of it are what JAX sees (v2 and v3: its two cores). Rates and memory are of the whole chip.

    Sources: Google Cloud's pages of each version (peak rate, HBM); Jouppi et al. 2020 and 2023 (units of a core).
    """

    peak_flops: float  # dense bfloat16, FLOP/s
    memory: int  # HBM, bytes
    bandwidth: float  # HBM, bytes/s
    devices: int  # per chip
    cores: int  # tensor cores: v4, v5p drive two as one device
    mxus: int  # matrix units of a core
    mxu_side: int  # its rows and columns

    @property
    def clock(self) -> float:
        """Hz, as follows from the peak rate: each MXU does side x side multiply-adds a cycle."""
        return self.peak_flops / (self.cores * self.mxus * self.mxu_side**2 * 2)

    @property
    def lanes(self) -> float:
        """Element-wise float32 operations per second: a vector unit of 8 x 128 lanes with two ALUs in each core."""
        return 2 * 8 * 128 * self.cores * self.clock


GiB = 2**30
CHIPS = {
    "v2": Chip(peak_flops=46e12, memory=16 * GiB, bandwidth=0.7e12, devices=2, cores=2, mxus=1, mxu_side=128),
    "v3": Chip(peak_flops=123e12, memory=32 * GiB, bandwidth=0.9e12, devices=2, cores=2, mxus=2, mxu_side=128),
    "v4": Chip(peak_flops=275e12, memory=32 * GiB, bandwidth=1.2e12, devices=1, cores=2, mxus=4, mxu_side=128),
    "v5e": Chip(peak_flops=197e12, memory=16 * GiB, bandwidth=0.82e12, devices=1, cores=1, mxus=4, mxu_side=128),
    "v5p": Chip(peak_flops=459e12, memory=95 * GiB, bandwidth=2.8e12, devices=1, cores=2, mxus=4, mxu_side=128),
    "v6e": Chip(peak_flops=918e12, memory=32 * GiB, bandwidth=1.6e12, devices=1, cores=1, mxus=4, mxu_side=256),
}
