"""A diffusers scheduler as its pipelines drive it, with the noise of its steps given."""

import importlib
from contextlib import contextmanager

import diffusers
import torch

from tpusd.samplers.registry import samplers


def make_scheduler(name: str, config: dict, options: dict):
    """`X.from_config(config, **options)`; eta and timesteps are arguments of calls, not of the config."""
    own = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
    own = {key: value for key, value in own.items() if key not in ("eta", "timesteps")}
    sampler = samplers()[name]
    return getattr(diffusers, sampler.diffusers).from_config(config, **own, **sampler.diffusers_options)


@contextmanager
def given_noise(scheduler, draw):
    """The scheduler's own draws of noise come from draw() -> tensor."""
    module = importlib.import_module(type(scheduler).__module__)
    before = getattr(module, "randn_tensor", None)
    if before is not None:
        module.randn_tensor = lambda shape, **kw: draw()
    try:
        yield
    finally:
        if before is not None:
            module.randn_tensor = before


def sample(
    scheduler, model, x: torch.Tensor, steps: int, *, noise, eta: float | None = None, timesteps=None
) -> torch.Tensor:
    """model(x, t) on tensors; noise(k): the tensor of call k. Runs in the dtype of x, as far as the scheduler does.

    timesteps: in place of `steps`, for a scheduler that takes them.
    """
    if timesteps is None:
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=list(timesteps))
    if x.dtype == torch.float64 and hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()  # coefficients follow the dtype of sigmas
    x, more, calls = x * scheduler.init_noise_sigma, {} if eta is None else {"eta": eta}, []
    with given_noise(scheduler, lambda: noise(len(calls) - 1).to(x.dtype)):
        for t in scheduler.timesteps:
            calls.append(t)
            out = model(scheduler.scale_model_input(x, t), t.to(x.dtype))
            x = scheduler.step(out, t, x, **more, return_dict=False)[0]
    return x
