"""A model's output -> the variable that a sampler keeps, as two coefficients: of the sample and of the output.

a: the share of the clean sample's variance: the sample is sqrt(a) x0 + sqrt(1 - a) epsilon. sigma: the noise in
Karras' variable, x0 + sigma * epsilon.
"""

import math

from tpusd.errors import UserError


def to_x0(a: float, prediction_type: str) -> tuple[float, float]:
    """The clean sample. Salimans & Ho 2022, appendix D, for the velocity."""
    if prediction_type == "epsilon":
        if a == 0:
            raise UserError(
                "sampler.rescale_betas_zero_snr=True: the first step is pure noise, from which an epsilon model "
                "predicts nothing; use a v_prediction model, or leave it out"
            )
        return 1 / math.sqrt(a), -math.sqrt((1 - a) / a)
    return (math.sqrt(a), -math.sqrt(1 - a)) if prediction_type == "v_prediction" else (0.0, 1.0)


def to_epsilon(a: float, prediction_type: str) -> tuple[float, float]:
    """The noise."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return math.sqrt(1 - a), math.sqrt(a)
    return 1 / math.sqrt(1 - a), -math.sqrt(a / (1 - a))


def to_derivative(sigma: float, prediction_type: str) -> tuple[float, float]:
    """(sample - x0) / sigma, for a sample in Karras' variable. Karras et al. 2022, equation 4."""
    if prediction_type == "epsilon":
        return 0.0, 1.0
    if prediction_type == "v_prediction":
        return sigma / (sigma**2 + 1), 1 / math.sqrt(sigma**2 + 1)
    return 1 / sigma, -1 / sigma
