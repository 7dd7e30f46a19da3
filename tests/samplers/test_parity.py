"""Every sampler with every shared option against PyTorch diffusers' scheduler, driven by the same closed-form model."""

import json
import random
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from support.sampler_cases import CASES, NAMES, UNLOGGED, drawn_options, options_of, run_in_float64, steps_of  # noqa: E402
from support.scheduler_reference import make_scheduler, sample  # noqa: E402

import tpusd  # noqa: E402
from tpusd.samplers.loop import LoopState, run_steps  # noqa: E402
from tpusd.samplers.registry import samplers  # noqa: E402
from tpusd.samplers.schedule import SchedulerConfig  # noqa: E402
from tpusd.samplers.table import SamplerSettings, make_table  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
PUBLISHED = Path(tpusd.__file__).parent / "assets" / "published"
CONFIG = json.loads((PUBLISHED / "sd15/scheduler/scheduler_config.json").read_text())
SHAPE = (3, 5, 7)
MAX_CALLS = 99  # Heun's at 50 steps
RNG = np.random.default_rng(0)
START = RNG.standard_normal(SHAPE, np.float32)
NOISE = RNG.standard_normal((MAX_CALLS, *SHAPE), np.float32)


def model(x, t, sin):
    """Bounded in t, curved in x, so that a wrong timestep and a wrong order both show."""
    return 0.8 * sin(x + 0.003 * t) + 0.1 * x


def cases(name):
    """(prediction type, options, steps)."""
    return [
        (prediction, options, steps)
        for prediction in samplers()[name].prediction_types
        for options in options_of(name)
        for steps in steps_of(name, options)
        # The reference divides by zero: the first step of an epsilon model begins at pure noise.
        if not (CASES[name].zero_alpha and prediction == "epsilon" and options.get("rescale_betas_zero_snr", False))
    ]


def tables_of(name):
    made = []
    for prediction, options, steps in cases(name):
        settings = SamplerSettings(name=name, num_inference_steps=steps, **options)
        made.append(make_table(settings, SchedulerConfig.from_dict(CONFIG | {"prediction_type": prediction})))
    return made


def reference(name, case, dtype):
    prediction, options, steps = case
    scheduler = make_scheduler(name, CONFIG | {"prediction_type": prediction}, options)
    x = sample(
        scheduler,
        lambda x, t: model(x, t, torch.sin),
        torch.from_numpy(START).to(dtype)[None],
        steps,
        noise=lambda k: torch.from_numpy(NOISE[k])[None],
        eta=options.get("eta"),
        timesteps=options.get("timesteps"),
    )
    return x[0].numpy(), scheduler.timesteps.numpy()


def distance(ours, theirs):
    """Largest difference, as a share of the largest value where that is above 1."""
    assert np.isfinite(theirs).all()
    return np.abs(ours - theirs).max() / max(1.0, np.abs(theirs).max())


def rounding(table):
    """What float32 loses of a sample at the highest sigma, 4096 at zero terminal SNR; 1 for other variables."""
    return table.init_scale * 2.0**-22


@pytest.mark.parametrize("name", NAMES)
def test_table_gives_the_sample_of_the_reference(name):
    wrong = []
    for case, table in zip(cases(name), tables_of(name), strict=True):
        theirs, timesteps = reference(name, case, torch.float64)
        ours = run_in_float64(table, lambda x, t: model(x, t, np.sin), START, lambda k: NOISE[k])
        assert len(table) == len(timesteps), case
        # Fractional timesteps are interpolated from sigmas that the reference holds in float32.
        if np.abs(table.timesteps - timesteps).max() > 1e-3:
            wrong.append((case, "timesteps", table.timesteps, timesteps))
        if distance(ours, theirs) > max(2e-5, rounding(table)):
            wrong.append((case, distance(ours, theirs)))
    assert not wrong, wrong


@pytest.mark.parametrize("name", NAMES)
def test_options_together_give_the_sample_of_the_reference(name):
    """A sample of all combinations, wherever the reference gives numbers."""
    generator, equal, wrong = random.Random(name), 0, []
    schedules = [CONFIG, CONFIG | {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}]
    for i in range(24):
        options, steps, config = drawn_options(generator, name), generator.randint(2, 40), schedules[i % 2]
        if options.get("rescale_betas_zero_snr") and not CASES[name].zero_alpha:
            options["rescale_betas_zero_snr"] = False  # float32 decides timesteps near sigma 4096
        options = {option: value for option, value in options.items() if value is not None}
        x = torch.from_numpy(START).double()[None]
        try:
            scheduler = make_scheduler(name, config, options)
            theirs = sample(
                scheduler,
                lambda x, t: model(x, t, torch.sin),
                x,
                steps,
                noise=lambda k: torch.from_numpy(NOISE[k])[None],
                eta=options.get("eta"),
            )[0].numpy()
        except (ValueError, IndexError, AssertionError, RuntimeError):  # of a step that it cannot make
            continue
        if not np.isfinite(theirs).all():
            continue
        table = make_table(
            SamplerSettings(name=name, num_inference_steps=steps, **options), SchedulerConfig.from_dict(config)
        )
        ours = run_in_float64(table, lambda x, t: model(x, t, np.sin), START, lambda k: NOISE[k])
        equal += 1
        if distance(ours, theirs) > 1e-4 or np.abs(table.timesteps - scheduler.timesteps.numpy()).max() > 1e-3:
            wrong.append((options, steps, distance(ours, theirs)))
    assert not wrong, wrong
    assert equal > 5


@pytest.fixture(scope="module")
def run_all():
    """One compilation for all samplers: a batch of tables, its images side by side."""

    @jax.jit
    def run(tables, starts, stop):
        def predict(k, x, t, guidance, kept):
            return model(x, t[:, None, None, None], jnp.sin), kept

        noise = jnp.asarray(NOISE.transpose(0, 2, 3, 1))  # (k, h, w, c)

        def draw(k):
            return jnp.broadcast_to(noise[k], starts.shape)

        return run_steps(predict, LoopState.start(starts), tables, 0, stop, noise=draw, **UNLOGGED)[0].x

    size = 64

    def run_tables(tables):
        out = []
        for i in range(0, len(tables), size):
            group = tables[i : i + size] + [tables[-1]] * (size - len(tables[i : i + size]))
            starts = np.stack([START.transpose(1, 2, 0) * np.float32(table.init_scale) for table in group])
            x = run(np.stack([table.padded() for table in group]), starts, max(map(len, group)))
            out.append(np.asarray(x).transpose(0, 3, 1, 2))
        assert run._cache_size() == 1
        return np.concatenate(out)[: len(tables)]

    return run_tables


@pytest.mark.parametrize("name", NAMES)
def test_compiled_loop_gives_the_sample_of_the_reference(name, run_all):
    wrong = []
    chosen = [(case, table) for case, table in zip(cases(name), tables_of(name), strict=True) if case[2] != 5]
    chosen = chosen[::2] if name == "lms" else chosen  # whose reference integrates by quadrature, slowly
    for (case, table), ours in zip(chosen, run_all([table for _, table in chosen]), strict=True):
        theirs, _ = reference(name, case, torch.float32)
        # Coefficients of order 3 are differences of logarithms, in which the reference loses half of float32.
        bound = 1e-3 if case[1].get("solver_order") == 3 else 1e-4
        if distance(ours, theirs) > max(bound, rounding(table)):
            wrong.append((case, distance(ours, theirs)))
    assert not wrong, wrong


@pytest.mark.parametrize(
    "changes",
    [
        {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"trained_betas": np.linspace(0.001, 0.03, 1000).tolist()},
        {"num_train_timesteps": 777},
    ],
    ids=["linear", "cosine", "trained", "777"],
)
@pytest.mark.parametrize("name", NAMES)
def test_other_noise_schedules(name, changes):
    config = CONFIG | changes
    table = make_table(SamplerSettings(name=name, num_inference_steps=7), SchedulerConfig.from_dict(config))
    scheduler = make_scheduler(name, config, {})
    x = torch.from_numpy(START).double()[None]
    theirs = sample(
        scheduler, lambda x, t: model(x, t, torch.sin), x, 7, noise=lambda k: torch.from_numpy(NOISE[k])[None]
    )
    ours = run_in_float64(table, lambda x, t: model(x, t, np.sin), START, lambda k: NOISE[k])
    assert np.abs(table.timesteps - scheduler.timesteps.numpy()).max() < 1e-3
    assert distance(ours, theirs[0].numpy()) < max(2e-5, rounding(table))


@pytest.mark.parametrize("steps", [2, 9, 28])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"beta_schedule": "squaredcos_cap_v2"},  # whose timesteps are cut and not rounded
        {"beta_start": 1e-4, "beta_end": 0.02, "rescale_betas_zero_snr": True},  # whose sigmas fall at their end
    ],
    ids=str,
)
def test_lu_lambdas_begin_where_the_reference_begins(config, steps):
    settings = SamplerSettings(name="dpmpp_2m", num_inference_steps=steps, use_lu_lambdas=True)
    table = make_table(settings, SchedulerConfig.from_dict(config))
    scheduler = make_scheduler("dpmpp_2m", config, {"use_lu_lambdas": True})
    scheduler.set_timesteps(steps)
    assert table.timesteps[0] == scheduler.timesteps[0] == 999


@pytest.mark.parametrize("name", NAMES)
def test_what_a_checkpoint_leaves_out_has_the_default_of_the_reference_class(name):
    bare = {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    table = make_table(SamplerSettings(name=name, num_inference_steps=5), SchedulerConfig.from_dict(bare))
    scheduler = make_scheduler(name, bare, {"clip_sample": False} if name in ("ddim", "ddpm") else {})
    x = torch.from_numpy(START).double()[None]
    theirs = sample(
        scheduler, lambda x, t: model(x, t, torch.sin), x, 5, noise=lambda k: torch.from_numpy(NOISE[k])[None]
    )
    ours = run_in_float64(table, lambda x, t: model(x, t, np.sin), START, lambda k: NOISE[k])
    assert distance(ours, theirs[0].numpy()) < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_options_that_a_checkpoint_carries_are_taken_as_the_reference_takes_them(name):
    """A config saved by another scheduler class carries options that are meant for it."""
    for donor, options in (
        ("dpmpp_2m", {"use_karras_sigmas": True, "solver_order": 3, "solver_type": "heun", "euler_at_final": True}),
        ("unipc", {"solver_type": "bh1", "final_sigmas_type": "sigma_min", "predict_x0": True}),
        ("euler", {"use_exponential_sigmas": True, "timestep_spacing": "trailing"}),
    ):
        published = json.loads(make_scheduler(donor, CONFIG, options).to_json_string())
        config = published | {"clip_sample": False, "skip_prk_steps": True}
        table = make_table(SamplerSettings(name=name, num_inference_steps=6), SchedulerConfig.from_dict(config))
        scheduler = make_scheduler(name, config, {})
        x = torch.from_numpy(START).double()[None]
        theirs = sample(
            scheduler, lambda x, t: model(x, t, torch.sin), x, 6, noise=lambda k: torch.from_numpy(NOISE[k])[None]
        )
        ours = run_in_float64(table, lambda x, t: model(x, t, np.sin), START, lambda k: NOISE[k])
        assert distance(ours, theirs[0].numpy()) < 2e-5, (donor, options)
