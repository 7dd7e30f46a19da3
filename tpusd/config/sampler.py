"""A sampler and its options, as a config names them."""

from dataclasses import dataclass
from typing import Literal

Spacing = Literal["leading", "linspace", "trailing"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
FinalSigmas = Literal["zero", "sigma_min"]
Interpolation = Literal["linear", "log_linear"]
SamplerName = Literal[
    "pndm",
    "ddim",
    "ddpm",
    "euler",
    "euler_ancestral",
    "heun",
    "lms",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
    "deis",
    "lcm",
]


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """A sampler and its options, named as diffusers names them. docs/samplers.md says which sampler has which.

    None: as the checkpoint's scheduler_config.json says, else the default of the diffusers class.
    """

    name: SamplerName
    num_inference_steps: int = 50
    prediction_type: PredictionType | None = None
    timestep_spacing: Spacing | None = None
    steps_offset: int | None = None
    rescale_betas_zero_snr: bool | None = None
    set_alpha_to_one: bool | None = None
    eta: float | None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large"] | None = None
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    use_lu_lambdas: bool | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: FinalSigmas | None = None
    interpolation_type: Interpolation | None = None
    solver_order: int | None = None
    solver_type: Literal["midpoint", "heun", "bh1", "bh2"] | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    lambda_min_clipped: float | None = None
    predict_x0: bool | None = None
    disable_corrector: tuple[int, ...] | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None
