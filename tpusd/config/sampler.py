"""A sampler and its options, as a config and a checkpoint's scheduler_config.json name them. Knows no sampler.

`tpusd/samplers/registry.py` knows which samplers exist and which options each has.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval, Len

from tpusd.config.limits import MAX_STEPS, MAX_TIMESTEP, NumSteps
from tpusd.config.typed import Help, SavedIfSet

Spacing = Literal["leading", "linspace", "trailing"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large"]
FinalSigmas = Literal["zero", "sigma_min"]
Interpolation = Literal["linear", "log_linear"]
SolverType = Literal["midpoint", "heun", "bh1", "bh2"]
GuidanceSchedule = Literal["constant", "linear", "cosine"]
Timesteps = Annotated[tuple[Annotated[int, Interval(ge=0, le=MAX_TIMESTEP)], ...], Len(1, MAX_STEPS)]


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """The options of all samplers, with the names that diffusers gives them; None: not set.

    docs/samplers.md prints the text beside each type.
    """

    prediction_type: Annotated[PredictionType | None, Help("what the model predicts")] = None
    timestep_spacing: Annotated[Spacing | None, Help("how the timesteps are spread over the trained ones")] = None
    steps_offset: Annotated[int | None, Help("added to every timestep; only with `leading`")] = None
    rescale_betas_zero_snr: Annotated[bool | None, Help("rescales the schedule, so that it begins at pure noise")] = (
        None
    )
    set_alpha_to_one: Annotated[bool | None, Help("ends at the clean sample, not at the lowest trained noise")] = None
    eta: Annotated[float | None, Help("the share of fresh noise in each step, 0 to 1")] = None
    variance_type: Annotated[str | None, Help("the variance of the fresh noise")] = None
    use_karras_sigmas: Annotated[bool | None, Help("the sigmas of Karras et al. 2022")] = None
    use_exponential_sigmas: Annotated[bool | None, Help("sigmas in equal ratios")] = None
    use_beta_sigmas: Annotated[bool | None, Help("sigmas from the quantiles of a beta distribution")] = None
    use_lu_lambdas: Annotated[bool | None, Help("sigmas in equal ratios, with rounded timesteps")] = None
    sigma_min: Annotated[float | None, Help("the lowest sigma of one of these schedules")] = None
    sigma_max: Annotated[float | None, Help("the highest sigma of one of these schedules")] = None
    final_sigmas_type: Annotated[FinalSigmas | None, Help("where the last step ends")] = None
    interpolation_type: Annotated[Interpolation | None, Help("how sigmas between trained timesteps are found")] = None
    solver_order: Annotated[int | None, Help("the order of the solver")] = None
    solver_type: Annotated[str | None, Help("the form of the solver")] = None
    lower_order_final: Annotated[bool | None, Help("lowers the order of the last steps")] = None
    euler_at_final: Annotated[bool | None, Help("takes the last step with order 1")] = None
    lambda_min_clipped: Annotated[float | None, Help("the lowest log of alpha / sigma")] = None
    predict_x0: Annotated[bool | None, Help("solves for the clean sample, not for the noise")] = None
    disable_corrector: Annotated[tuple[int, ...] | None, Help("the steps without a corrector, as in [0, 1]")] = None
    original_inference_steps: Annotated[int | None, Help("the number of timesteps in the distillation")] = None
    timestep_scaling: Annotated[float | None, Help("scales the timestep in the boundary condition")] = None
    timesteps: Annotated[
        Timesteps | None, SavedIfSet(), Help("the timesteps themselves, falling, one a step: [999, 749, 499, 249]")
    ] = None


@dataclass(frozen=True, kw_only=True)
class _ChosenSampler:
    name: Annotated[str, Help("the sampler")]
    num_inference_steps: Annotated[NumSteps, Help("the number of steps")] = 50


# A dataclass takes the fields of its last base first: name and num_inference_steps stand before the options in every
# config.yaml and in the recipe of every image.
@dataclass(frozen=True, kw_only=True)
class SamplerSettings(SamplerOptions, _ChosenSampler):
    """A sampler, its number of steps and its options; None: the checkpoint's value, else the sampler's default."""

    variance_type: Annotated[VarianceType | None, Help("the variance of the fresh noise")] = None
    solver_type: Annotated[SolverType | None, Help("the form of the solver")] = None
