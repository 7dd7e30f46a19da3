"""PyTorch's noise: against published values, and against PyTorch's own CPU generator."""

import numpy as np
import pytest

from tpusd.engine.drawn_noise import ROWS_AT_ONCE, DrawnNoise, generator_of
from tpusd.engine.torch_noise.cephes import fused
from tpusd.engine.torch_noise.cpu import CPUGenerator
from tpusd.engine.torch_noise.cuda import CUDAGenerator, philox
from tpusd.plan.specs import ImageSpec, NoiseSource
from tpusd.samplers.registry import samplers
from tpusd.samplers.rows import NOISE
from tpusd.samplers.schedule import SchedulerConfig
from tpusd.samplers.table import SamplerSettings, make_table

# Random123's kat_vectors, philox4x32 of 10 rounds: counter, key, result.
KNOWN_ANSWERS = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)
# torch.randn((3, 4)) of seed 0 on an NVIDIA GPU, as A1111's modules/rng_philox.py publishes it.
PUBLISHED = (
    (-0.92466259, -0.42534415, -2.6438457, 0.14518388),
    (-0.12086647, -0.57972564, -0.62285122, -0.32838709),
    (-1.07454231, -0.36314407, -1.67105067, 2.26550497),
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    call, subsequence, seed = (low | high << 32 for low, high in (counter[:2], counter[2:], key))
    assert tuple(philox(seed, np.array([subsequence], np.uint64), call)[:, 0]) == expected


def test_cuda_numbers_are_those_that_are_published():
    np.testing.assert_allclose(CUDAGenerator(0).randn(12).reshape(3, 4), PUBLISHED, rtol=0, atol=1e-6)


def test_cuda_grid_has_at_most_the_threads_of_the_device():
    """Thread i draws four numbers at a time, for the elements i, i + grid, i + 2 grid and i + 3 grid."""
    grid, size = 512, 5000
    generator = CUDAGenerator(7, threads=grid)
    for calls_before in (0, 3):  # 5000 numbers take 3 calls of each thread
        drawn = generator.randn(size)
        for element in (0, 511, 512, 1024, 2047, 2048, 4999):
            call, rest = divmod(element, 4 * grid)
            which, thread = divmod(rest, grid)
            bits = philox(7, np.array([thread], np.uint64), calls_before + call)[:, 0].astype(np.float64)
            radius, angle = bits[which // 2 * 2 : which // 2 * 2 + 2]
            radius = np.sqrt(-2 * np.log((radius + 0.5) * 2.0**-32))
            wave = (np.sin, np.cos)[which % 2]((angle + 0.5) * 2 * np.pi * 2.0**-32)
            assert abs(drawn[element] - radius * wave) < 2e-6, element


def test_cuda_grid_does_not_matter_to_small_draws():
    np.testing.assert_array_equal(CUDAGenerator(3, threads=43008).randn(16384), CUDAGenerator(3).randn(16384))
    assert (CUDAGenerator(3, threads=43008).randn(65536) != CUDAGenerator(3).randn(65536)).any()


def test_seeds_are_those_of_pytorch():
    """A CPU generator takes 32 bits of a seed, a CUDA generator 64."""
    np.testing.assert_array_equal(CPUGenerator(5).randn(20), CPUGenerator(5 + 2**32).randn(20))
    assert (CUDAGenerator(5).randn(20) != CUDAGenerator(5 + 2**32).randn(20)).all()


def test_a_sum_halfway_between_two_values_is_rounded_once():
    """The square of 1 + 2**-12 lies halfway between two values of float32; 2**-80, which float64 loses, decides."""
    top = np.array([1 + 2.0**-12], np.float32)
    assert fused(top, top, np.float32(2.0**-80))[0] == np.float32(1 + 2.0**-11 + 2.0**-23)
    assert fused(top, top, np.float32(-(2.0**-80)))[0] == np.float32(1 + 2.0**-11)


@pytest.mark.slow
@pytest.mark.parity
def test_cpu_numbers_are_bit_for_bit_those_of_pytorch():
    """1,000 seeds of 64 bits, several draws from each, of sizes around every rule of the algorithm."""
    torch = pytest.importorskip("torch")
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("PyTorch rounds otherwise on a CPU without AVX2")
    random = np.random.default_rng(0)
    for seed in random.integers(0, 2**63, 1000).tolist():
        sizes = [*random.integers(1, 16, 2).tolist(), 16, *random.integers(17, 2000, 2).tolist(), 4096]
        random.shuffle(sizes)
        theirs, ours = torch.Generator().manual_seed(seed), CPUGenerator(seed)
        for size in sizes:
            np.testing.assert_array_equal(ours.randn(size), torch.randn(size, generator=theirs).numpy(), str(seed))


def spec(copy=0, row=0, sampler="ddim", **noise):
    return ImageSpec(
        row=row, copy=copy, prompt="a", negative_prompt=None, seed=5, row_seed=None, guidance_scale=1.0,
        guidance_rescale=0.0, height=64, width=64, sampler=SamplerSettings(name=sampler, num_inference_steps=11),
        noise=NoiseSource(name="torch_cpu", **noise),
    )  # fmt: skip


def table(name):
    return make_table(SamplerSettings(name=name, num_inference_steps=11), SchedulerConfig())


def test_copies_of_a_batch_share_a_generator_and_later_ones_take_the_next_seed():
    assert [generator_of(spec(copy)) for copy in (0, 1, 2)] == [(5, 0), (6, 0), (7, 0)]
    assert [generator_of(spec(copy, batch_size=3)) for copy in (0, 2, 3, 7)] == [(5, 0), (5, 2), (6, 0), (7, 1)]
    assert generator_of(spec(row=9)) == (5, 0)


def test_noise_of_an_image_does_not_depend_on_its_batch():
    shape = (4, 3, 5)  # 60 numbers: not whole blocks of 16
    specs = [spec(0), spec(4, batch_size=3), spec(3, batch_size=3), spec(1), spec(0, sampler="euler_ancestral")]
    tables = [table(one.sampler.name) for one in specs]
    tables[3] = table("dpmpp_2m_sde")
    together = DrawnNoise(specs, tables, shape)
    pieces = [together.given(0, ROWS_AT_ONCE), together.given(ROWS_AT_ONCE, 11)]
    assert pieces[1].first.tolist() == [ROWS_AT_ONCE] * 5
    for i, (one, own) in enumerate(zip(specs, tables, strict=True)):
        alone = DrawnNoise([one], [own], shape)
        assert alone.has_steps == bool(own.rows[:, NOISE].any())
        np.testing.assert_array_equal(alone.without_steps().initial[0], pieces[0].initial[i])
        if alone.has_steps:
            single = [step for k in range(11) for step in alone.given(k, k + 1).steps[0, :1]]
            np.testing.assert_array_equal(single[:8], pieces[0].steps[i])
            np.testing.assert_array_equal(single[8:], pieces[1].steps[i, :3])
        else:
            assert not pieces[0].steps[i].any()


def test_stochastic_samplers_take_noise_in_every_row_before_the_last():
    """So row k takes draw k of the steps, as in diffusers, where every step draws."""
    stochastic = 0
    for name, sampler in samplers().items():
        options = {"eta": 1.0} if "eta" in sampler.defaults else {}
        rows = make_table(SamplerSettings(name=name, num_inference_steps=11, **options), SchedulerConfig()).rows
        if rows[:, NOISE].any():
            stochastic += 1
            assert (rows[:-1, NOISE] != 0).all(), name
    assert stochastic >= 6
