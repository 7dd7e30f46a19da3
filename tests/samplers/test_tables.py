"""What the samplers are: their orders, their noise, DDIM's formula, and what they refuse. Tables alone, no JAX."""

import dataclasses
import json
import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.runs import config as run_config
from support.sampler_cases import CASES, NAMES, drawn_options, options_of, run_in_float64

import tpusd
from tpusd.config.compose import compose_jobs
from tpusd.config.schema import make_config
from tpusd.errors import UserError
from tpusd.samplers.rows import C_IN, HISTORY, MAX_ROWS, P_OUT, P_X, PUSH, TERMS, T, X, Y
from tpusd.samplers.schedule import SchedulerConfig, to_sigmas
from tpusd.samplers.table import COLUMNS, SamplerSettings, make_table

PUBLISHED = Path(tpusd.__file__).parent / "assets" / "published"
SD15 = json.loads((PUBLISHED / "sd15/scheduler/scheduler_config.json").read_text())
CONFIG = SchedulerConfig.from_dict(SD15)


def made(name, steps=5, config=CONFIG, **options):
    return make_table(SamplerSettings(name=name, num_inference_steps=steps, **options), config)


def normal_data(config, variance):
    """The best epsilon model of data that are N(0, variance): model(x, t), for x of unit scale such as a UNet sees."""
    sigmas = to_sigmas(config.alphas_cumprod())

    def model(x, t):
        a = 1 / (1 + np.interp(t, np.arange(len(sigmas)), sigmas) ** 2)
        return np.sqrt(1 - a) * x / (a * variance + 1 - a)

    return model, sigmas


# Orders. 100,000 trained timesteps, so that whole ones are as good as continuous.

FINE = SchedulerConfig(num_train_timesteps=100_000, beta_start=8.5e-6, beta_end=1.2e-4, beta_schedule="scaled_linear")
# Ends at sigma 0.5, before epsilon becomes steep, for the samplers that step evenly in time.
BLUNT = SchedulerConfig(num_train_timesteps=100_000, trained_betas=(0.2, *[6e-5] * 99_999))
EVEN = {"use_exponential_sigmas": True}
TO_MIN = EVEN | {"final_sigmas_type": "sigma_min"}


def error(name, steps, config, options):
    """Distance from the exact solution of the probability flow for N(0, 0.49): sigma moves x by its whole deviation."""
    model, sigmas = normal_data(config, 0.49)
    table = made(name, steps, config, **options)
    start = np.ones(1)
    x = run_in_float64(table, model, start, lambda k: np.zeros(1))
    high = np.interp(table.timesteps[0], np.arange(len(sigmas)), sigmas)
    low = 0.0 if name in ("heun", "lms") else sigmas[0]
    karras = name in ("euler", "heun", "lms")  # the variable that the sampler works in
    exact = start * (table.init_scale if karras else math.sqrt(1 + high**2))
    exact *= math.sqrt((low**2 + 0.49) / (high**2 + 0.49))
    return abs(x - (exact if karras else exact / math.sqrt(1 + low**2)))[0]


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {"set_alpha_to_one": False}, 1),
        ("pndm", {}, 2.4),  # 4 but for its first steps
        ("euler", TO_MIN, 1),
        ("heun", EVEN, 2),
        ("lms", EVEN, 3),
        *[("dpmpp_2m", TO_MIN | {"solver_order": order, "lower_order_final": False}, order) for order in (1, 2)],
        ("dpmpp_2m", TO_MIN | {"solver_type": "heun", "lower_order_final": False}, 2),
        ("dpmpp_2m", TO_MIN | {"solver_order": 3, "lower_order_final": False}, 2.4),
        *[("unipc", TO_MIN | {"solver_order": order, "lower_order_final": False}, order + 1) for order in (1, 2)],
        ("unipc", TO_MIN | {"solver_order": 2, "solver_type": "bh1", "lower_order_final": False}, 3),
        ("unipc", TO_MIN | {"disable_corrector": tuple(range(40)), "lower_order_final": False}, 2),
        *[("deis", EVEN | {"solver_order": order, "lower_order_final": False}, order) for order in (1, 2, 3)],
    ],
)
def test_sampler_converges_to_the_exact_solution_with_its_order(name, options, order):
    config = BLUNT if name in ("ddim", "pndm") else FINE
    coarse, fine = (error(name, steps, config, options) for steps in (20, 40))
    assert fine < 0.04
    assert math.log2(coarse / fine) > order - 0.1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "pndm"])  # which averages outputs as they are
def test_prediction_types_of_one_model_give_one_image(name):
    eps, _ = normal_data(CONFIG, 0.49)
    sigmas = to_sigmas(CONFIG.alphas_cumprod())

    def a_at(t):
        return 1 / (1 + np.interp(t, np.arange(1000), sigmas) ** 2)

    models = {
        "epsilon": eps,
        "v_prediction": lambda x, t: (eps(x, t) - np.sqrt(1 - a_at(t)) * x) / np.sqrt(a_at(t)),
        "sample": lambda x, t: (x - np.sqrt(1 - a_at(t)) * eps(x, t)) / np.sqrt(a_at(t)),
    }
    if name == "euler_ancestral":
        del models["sample"]
    noise = np.random.default_rng(5).standard_normal((50, 3))
    images = [
        run_in_float64(made(name, 7, prediction_type=kind), model, noise[49], lambda k: noise[k])
        for kind, model in models.items()
    ]
    for image in images[1:]:
        np.testing.assert_allclose(image, images[0], rtol=1e-6, atol=1e-6)  # float32 alphas here, float32 sigmas there


def test_ddim_is_its_published_formula():
    """Song, Meng & Ermon 2021, equations 12 and 16, written with the paper's symbols for three steps of 1000."""
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - beta)
    rng = np.random.default_rng(7)
    x_start, outputs, noise = rng.standard_normal(11), rng.standard_normal((3, 11)), rng.standard_normal((3, 11))
    for eta in (0.0, 0.6):
        x = x_start
        for i, (t, s) in enumerate([(667, 334), (334, 1), (1, None)]):  # leading, offset 1, 333 apart
            a_t, a_s = alpha[t], alpha[s] if s is not None else alpha[0]
            sigma = eta * np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
            predicted_x0 = (x - np.sqrt(1 - a_t) * outputs[i]) / np.sqrt(a_t)
            direction = np.sqrt(1 - a_s - sigma**2) * outputs[i]
            x = np.sqrt(a_s) * predicted_x0 + direction + sigma * noise[i]
        calls = iter(outputs)
        table = made("ddim", 3, eta=eta)
        ours = run_in_float64(table, lambda x, t, calls=calls: next(calls), x_start, lambda k: noise[k])
        np.testing.assert_allclose(ours, x, rtol=2e-6, atol=2e-6)  # diffusers' float32 alphas stand in the table


def test_ddim_at_eta_1_is_ddpm():
    """Song et al. 2021, section 4.1; with the same end, alpha 1."""
    ddim, ddpm = made("ddim", 50, eta=1.0, set_alpha_to_one=True), made("ddpm", 50)
    # ddpm goes from each timestep to the next chosen one, ddim by 1000 // 50, which is the same but for the last step.
    np.testing.assert_allclose(ddim.rows[:-1, X:], ddpm.rows[:-1, X:], rtol=1e-9, atol=1e-12)


# Noise. The best model is linear for normal data, so the variance of a sample can be followed exactly.


def final_variance(table, model, data_variance):
    """Variance of x after the table, started from standard normal noise, with fresh noise in every row."""
    covariance = np.zeros((5, 5))  # of x, y, h1, h2, h3
    covariance[0, 0] = table.init_scale**2
    for row in table.rows:
        given = np.zeros((7, 6))  # seen <- (x, y, h1, h2, h3, noise)
        given[[0, 1, 3, 4, 5, 6], range(6)] = 1
        given[2, 0] = row[P_X] + row[P_OUT] * model(row[C_IN], row[T])
        step = np.zeros((5, 6))
        step[0], step[1] = row[X : X + TERMS] @ given, row[Y : Y + TERMS] @ given
        step[2:] = given[[2, 3, 4]] if row[PUSH] else given[[3, 4, 5]]
        whole = np.eye(6)
        whole[:5, :5] = covariance
        covariance = step @ whole @ step.T
    return covariance[0, 0] / data_variance


@pytest.mark.parametrize("data_variance", [1.0, 0.3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": 1.0}),
        ("ddim", {"eta": 0.5}),
        ("ddpm", {}),
        ("ddpm", {"variance_type": "fixed_large"}),
        ("euler_ancestral", {}),
        ("dpmpp_2m_sde", {"solver_order": 1}),
        ("dpmpp_2m_sde", {}),
        ("dpmpp_2m_sde", {"solver_type": "heun"}),
        ("dpmpp_2m_sde", {"use_karras_sigmas": True}),
    ],
)
def test_stochastic_samplers_keep_the_variance_of_the_data(name, options, data_variance):
    model, _ = normal_data(CONFIG, data_variance)
    assert any(made(name, 5, **options).rows[:, X + TERMS - 1])
    few, many = (abs(final_variance(made(name, n, **options), model, data_variance) - 1) for n in (50, 500))
    assert many < 0.035 and few < 0.25
    assert many < max(few, 0.01)


def test_lcm_keeps_the_variance_of_the_data_at_any_number_of_steps():
    """A consistency model goes from anywhere to the end of the flow, which only rescales normal data."""
    sigmas = to_sigmas(CONFIG.alphas_cumprod())

    def model(x, t):
        a = 1 / (1 + np.interp(t, np.arange(1000), sigmas) ** 2)
        x0 = x * np.sqrt(0.3 / (a * 0.3 + 1 - a))
        return (x - np.sqrt(a) * x0) / np.sqrt(1 - a)

    for steps in (1, 2, 4, 8):
        assert abs(final_variance(made("lcm", steps), model, 0.3) - 1) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_noise_is_asked_for_by_stochastic_samplers_alone(name):
    noise = made(name, 20).rows[:, X + TERMS - 1]
    assert (np.count_nonzero(noise) >= 18) == CASES[name].noise
    assert noise[-1] == 0 and noise.min() >= 0 or name == "ddpm"


# Shapes.


@pytest.mark.parametrize("name", NAMES)
def test_number_of_model_calls(name):
    calls = {"pndm": 1, "heun": 19}.get(name, 0)
    assert len(made(name, 20)) == 20 + calls
    assert len(made(name, 1)) == 1


@pytest.mark.parametrize("name", NAMES)
def test_tables_of_every_option_are_finite_and_ask_falling_timesteps(name):
    for options in options_of(name):
        kind = "v_prediction" if options.get("rescale_betas_zero_snr") else "epsilon"
        table = made(name, len(options.get("timesteps", range(20))), prediction_type=kind, **options)
        assert table.rows.shape[1] == COLUMNS and np.isfinite(table.rows).all()
        assert (np.diff(table.timesteps) <= 0).all() and 0 <= table.timesteps.min() <= table.timesteps.max() <= 999
        assert np.abs(table.rows[:, X:]).max() < 5000  # float32 holds what is left after differences


def test_longest_table_fits_the_compiled_loop():
    assert len(made("heun", 1000, timestep_spacing="trailing")) == 1999 <= MAX_ROWS


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_zeros(name):
    padded = made(name, 7).padded()
    rows = len(made(name, 7))
    assert padded.shape == (MAX_ROWS, COLUMNS) and padded.dtype == np.float32
    assert padded[:rows, X : X + TERMS].any(axis=1).all() and not padded[rows:].any()


@pytest.mark.parametrize("steps", [61, 103, 499, 998])
def test_trailing_gives_as_many_steps_as_asked(steps):
    """diffusers' arange runs one too far for these."""
    table = made("ddim", steps, timestep_spacing="trailing")
    assert len(table) == steps and table.timesteps[0] == 999 and table.timesteps[-1] >= 0


def test_history_is_as_long_as_the_longest_multistep():
    assert made("lms", 6).rows[5, X + 3 : X + 3 + HISTORY].all()


# Settings.


@pytest.mark.parametrize("name", NAMES)
def test_config_lists_exactly_the_options_that_the_sampler_has(name):
    (job,) = compose_jobs([f"sampler={name}"])
    listed = job.values["sampler"]
    examples = {
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
        "steps_offset": 1,
        "eta": 0.5,
        "variance_type": "fixed_large",
        "sigma_min": 0.1,
        "sigma_max": 9.0,
        "final_sigmas_type": "sigma_min",
        "interpolation_type": "linear",
        "solver_order": 1,
        "solver_type": "bh1" if name == "unipc" else "heun",
        "lambda_min_clipped": -5.1,
        "disable_corrector": (0,),
        "original_inference_steps": 50,
        "timestep_scaling": 9.0,
        "timesteps": (999, 600, 400, 300, 7),
    }
    for field in dataclasses.fields(SamplerSettings):
        if field.name in ("name", "num_inference_steps"):
            continue
        more = {"use_karras_sigmas": True} if field.name in ("sigma_min", "sigma_max") and field.name in listed else {}
        options = {"prediction_type": "v_prediction", **more, field.name: examples.get(field.name, True)}
        if field.name in listed:
            made(name, 5, **options)
        else:
            with pytest.raises(UserError, match=f"sampler.{field.name}=.*: {name} has no such option"):
                made(name, 5, **options)


def test_settings_win_over_the_checkpoint_and_the_checkpoint_over_defaults():
    config = SchedulerConfig.from_dict(SD15 | {"timestep_spacing": "trailing", "use_karras_sigmas": True})
    assert made("ddim", 5, config).timesteps[0] == 999
    assert made("ddim", 5, config, timestep_spacing="leading").timesteps[0] == 801
    karras = made("dpmpp_2m", 5, config).rows
    assert np.array_equal(karras, made("dpmpp_2m", 5, use_karras_sigmas=True).rows)
    plain = made("dpmpp_2m", 5, config, use_karras_sigmas=False).rows
    assert np.array_equal(plain, made("dpmpp_2m", 5, timestep_spacing="trailing").rows)
    beta = made("dpmpp_2m", 5, config, use_beta_sigmas=True).rows  # a chosen schedule replaces the checkpoint's
    assert np.array_equal(beta, made("dpmpp_2m", 5, use_beta_sigmas=True).rows)


def test_options_travel_from_the_command_line_to_the_table():
    made_config = run_config("sampler=unipc", "sampler.disable_corrector=[0,1]", "sampler.solver_type=bh1")
    assert made_config.sampler.disable_corrector == (0, 1)
    assert hash(made_config.sampler) == hash(dataclasses.replace(made_config.sampler))
    table = make_table(dataclasses.replace(made_config.sampler, num_inference_steps=5), CONFIG)
    assert np.array_equal(table.rows, made("unipc", 5, disable_corrector=(0, 1), solver_type="bh1").rows)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        (
            "euler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "use_karras_sigmas=True: cannot be combined",
        ),
        ("ddim", {"eta": 1.5}, "sampler.eta=1.5: must be from 0"),
        ("ddim", {"eta": math.nan}, "sampler.eta=nan: must be a finite number"),
        ("ddim", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "use a v_prediction model"),
        ("pndm", {"prediction_type": "sample"}, "pndm takes epsilon or v_prediction"),
        ("euler_ancestral", {"prediction_type": "sample"}, "euler_ancestral takes epsilon or v_prediction"),
        ("ddim", {"steps_offset": -1}, "sampler.steps_offset=-1: must be from 0 to 999"),
        ("ddim", {"steps_offset": 300}, "sampler.steps_offset=300: the first of 5 steps would be at 1100"),
        ("dpmpp_2m", {"solver_order": 4}, "sampler.solver_order=4: dpmpp_2m takes 1 or 2 or 3"),
        ("dpmpp_2m", {"solver_type": "bh2"}, "sampler.solver_type=bh2: dpmpp_2m takes midpoint or heun"),
        ("unipc", {"solver_type": "heun"}, "sampler.solver_type=heun: unipc takes bh1 or bh2"),
        ("unipc", {"predict_x0": False}, "add sampler.final_sigmas_type=sigma_min"),
        ("unipc", {"lower_order_final": False}, "add sampler.final_sigmas_type=sigma_min"),
        ("euler", {"sigma_min": 0.1}, "sampler.sigma_min=0.1: bounds the sigmas of"),
        ("euler", {"sigma_min": 0.0, "use_karras_sigmas": True}, "sampler.sigma_min=0 "),
        ("euler", {"sigma_min": 99.0, "use_karras_sigmas": True}, "sampler.sigma_min=99 "),
        ("euler", {"sigma_max": math.inf, "use_karras_sigmas": True}, "sampler.sigma_max=inf: must be a finite"),
        ("dpmpp_2m", {"lambda_min_clipped": 20.0}, "leaves no noise levels"),
        ("lcm", {"original_inference_steps": 4}, "sampler.num_inference_steps=5: lcm chooses among"),
        ("lcm", {"original_inference_steps": 0}, "sampler.original_inference_steps=0: must be from 1 to 1000"),
        ("lcm", {"timestep_scaling": 0.0}, "sampler.timestep_scaling=0: must be above 0"),
        ("lcm", {"timesteps": (9, 8, 8, 7, 6)}, "sampler.timesteps=[9, 8, 8, 7, 6]: must fall from step to step, from"),
        ("lcm", {"timesteps": (1000, 8, 5, 1, 0)}, "must fall from step to step, from at most 999, the last that the"),
        ("lcm", {"timesteps": (999, 8)}, "sampler.timesteps=[999, 8]: has 2, and sampler.num_inference_steps=5; write"),
        ("ddim", {"timesteps": (5, 4, 3, 2, 1)}, "has no such option; leave it out, or write sampler.timesteps=null"),
        ("heun", {"timesteps": (5, 4, 3, 2, 1), "use_karras_sigmas": True}, "write sampler.use_karras_sigmas=false"),
    ],
)
def test_settings_that_do_not_suit_are_one_line(name, options, expected):
    with pytest.raises(UserError) as caught:
        made(name, 5, **options)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "steps"), [("ddim", 0), ("ddim", 1001), ("ddim", 1000), ("dpmpp_2m", 1000), ("unipc", 1000)]
)
def test_more_steps_than_the_model_has_timesteps_are_refused(name, steps):
    with pytest.raises(UserError, match="use fewer|must be from 1 to 1000"):
        made(name, steps)


@pytest.mark.parametrize(
    "values",
    [
        {"thresholding": True},
        {"use_flow_sigmas": True},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"_class_name": "EDMEulerScheduler"},
        {"timestep_type": "continuous"},
        {"prediction_type": "flow_prediction"},
        {"beta_schedule": "sigmoid"},
        {"beta_start": "0.1"},
        {"beta_start": -0.1},
        {"beta_end": 2.0},
        {"beta_end": 1e400},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 10**9},
        {"num_train_timesteps": True},
        {"trained_betas": [0.1, 0.2]},
        {"trained_betas": [0.1, "x"]},
        {"steps_offset": -1},
        {"set_alpha_to_one": 1},
        {"timestep_spacing": ["leading"]},
        {"solver_order": 0},
    ],
    ids=str,
)
def test_schedules_that_are_not_implemented_or_absurd_are_refused(values):
    with pytest.raises(UserError) as caught:
        SchedulerConfig.from_dict(SD15 | values)
    assert next(iter(values)) in str(caught.value)


def test_clip_sample_is_passed_over_and_minus_infinity_is_no_clip():
    values = SD15 | {"clip_sample": True, "lambda_min_clipped": -math.inf, "unheard_of": 7}
    assert made("dpmpp_2m", 5, SchedulerConfig.from_dict(values)).rows.tolist() == made("dpmpp_2m", 5).rows.tolist()


@pytest.mark.slow
def test_tables_are_made_without_jax_and_settings_survive_plain_values():
    code = (
        "import sys; from tpusd.samplers.table import SamplerSettings, make_table\n"
        "from tpusd.samplers.schedule import SchedulerConfig\n"
        "make_table(SamplerSettings(name='dpmpp_2m', use_karras_sigmas=True), SchedulerConfig())\n"
        "assert not {'jax', 'scipy', 'torch'} & set(sys.modules), 'heavy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    from tpusd.config.schema import config_values

    made_config = run_config("sampler=lcm")
    assert make_config(config_values(made_config)) == made_config


# Every sampler, with options together, on the schedules of published checkpoints and on absurd ones.
PUBLISHED_SCHEDULES = (
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "squaredcos_cap_v2"},
)
ABSURD_SCHEDULES = (
    {"beta_schedule": "linear", "beta_start": 1e-6, "beta_end": 0.999},  # its alphas underflow to 0
    {"beta_schedule": "linear", "beta_start": 1e-9, "beta_end": 0.02},  # its first alphas round to 1
    {"num_train_timesteps": 1},
    {"num_train_timesteps": 3, "beta_end": 0.5},
    {"num_train_timesteps": 4, "trained_betas": (0.1, 0.2, 0.3, 1.0)},  # ends in pure noise
    {"num_train_timesteps": 5000},
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_combination_is_a_finite_table_or_one_line(name):
    """The corners, and a sample of the rest; docs/log.md has the count of a larger one."""
    generator = random.Random(name)
    cases = [({}, steps, schedule) for steps in (1, 401, 1000) for schedule in PUBLISHED_SCHEDULES]
    for schedule in (*PUBLISHED_SCHEDULES * 8, *ABSURD_SCHEDULES * 4):
        cases.append((drawn_options(generator, name), int(1001 ** generator.random()), schedule))
    finite = 0
    for options, steps, schedule in cases:
        try:
            table = made(name, steps, SchedulerConfig(**schedule), **options)
        except UserError as error:
            assert "\n" not in str(error) and str(error).isprintable()
            assert str(error).startswith("sampler") and "=" in str(error)  # the field, with its value
        else:
            finite += 1
            assert np.isfinite(table.rows).all() and np.isfinite(table.padded()).all()
    assert finite > len(cases) // 10  # lcm and tcd take at most 50 steps


ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}


@pytest.mark.parametrize(
    ("name", "steps", "schedule", "advice"),
    [
        # The variance of a step is below zero, because zero SNR became 2**-24 and the level before it is smaller.
        ("euler_ancestral", 401, PUBLISHED_SCHEDULES[1], {"rescale_betas_zero_snr": False}),
        ("euler_ancestral", 401, PUBLISHED_SCHEDULES[1], {"num_inference_steps": 200}),
        ("euler_ancestral", 401, PUBLISHED_SCHEDULES[1], {"name": "euler"}),
        ("dpmpp_2m_sde", 401, PUBLISHED_SCHEDULES[1], {"name": "euler"}),
        # Neighbouring levels are equal.
        ("dpmpp_2m", 17, ABSURD_SCHEDULES[0], {"name": "euler"}),
        ("ddim", 1000, ABSURD_SCHEDULES[1], {"name": "euler"}),
        ("unipc", 1, ABSURD_SCHEDULES[2], {"name": "ddim", "rescale_betas_zero_snr": False}),
    ],
)
def test_a_table_that_is_not_finite_is_one_line_with_what_to_change(name, steps, schedule, advice):
    """Where the reference has NaN, an infinity or an IndexError. With what the line says, there is a table."""
    settings = SamplerSettings(name=name, num_inference_steps=steps, **ZERO_SNR)
    config = SchedulerConfig(**schedule)
    with pytest.raises(UserError) as caught:
        make_table(settings, config)
    for field, value in advice.items():
        said = {"name": f"as {value}|sampler={value}", "num_inference_steps": "fewer steps"}
        said["rescale_betas_zero_snr"] = "sampler.rescale_betas_zero_snr=false|num_train_timesteps=1"
        assert re.search(said.get(field, ""), str(caught.value)), caught.value
    make_table(dataclasses.replace(settings, **advice), config)
