"""The schedule of each few-step choice of conf/model against diffusers' scheduler, set up as the model's card says.

The cards' own words are in docs/few_steps.md. Compared are timesteps, sigmas, and the sample after every step, the last
one included, of a closed-form model.
"""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import numpy as np  # noqa: E402
from support.runs import config  # noqa: E402
from support.sampler_cases import golden_model, golden_noise, golden_start, run_in_float64  # noqa: E402
from support.scheduler_reference import sample  # noqa: E402

import tpusd  # noqa: E402
from tpusd.runs.cards import CARDS  # noqa: E402
from tpusd.samplers.rows import C_IN, Table  # noqa: E402
from tpusd.samplers.schedule import SchedulerConfig  # noqa: E402
from tpusd.samplers.table import make_table  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
PUBLISHED = Path(tpusd.__file__).parent / "assets" / "published"
TRAILING = {"timestep_spacing": "trailing"}
# Choice -> (base model's scheduler file, class, its options, numbers of steps or timesteps), each from the card. The
# schedules of SD 1.5 and of SD 2.1 base are the same.
CARD = {
    "sd_turbo": ("sd15", "EulerDiscreteScheduler", TRAILING, (1, 2, 4)),
    "sdxl_turbo": ("sdxl", "EulerAncestralDiscreteScheduler", TRAILING, (1, 2, 4)),
    "sdxl_lightning": ("sdxl", "EulerDiscreteScheduler", TRAILING, (2, 4, 8)),
    "hyper_sd15": ("sd15", "DDIMScheduler", TRAILING, (2, 4, 8)),
    "hyper_sdxl": ("sdxl", "DDIMScheduler", TRAILING, (2, 4, 8)),
    "lcm_sd15": ("sd15", "LCMScheduler", {}, (2, 4, 8)),
    "lcm_sdxl": ("sdxl", "LCMScheduler", {}, (2, 4, 8)),
    "dmd2_sdxl": ("sdxl", "LCMScheduler", {}, ([999, 749, 499, 249],)),
}
GRIDS = {1: [999], 2: [999, 499], 4: [999, 749, 499, 249], 8: [999, 874, 749, 624, 499, 374, 249, 124]}


def test_every_card_is_compared():
    assert CARD.keys() == CARDS.keys()


@pytest.mark.parametrize("name", CARD)
def test_the_schedule_is_that_of_the_card(name):
    base, cls, options, settings = CARD[name]
    published = json.loads((PUBLISHED / base / "scheduler/scheduler_config.json").read_text())
    for given in settings:
        steps, timesteps = (given, None) if isinstance(given, int) else (len(given), given)
        made = config(f"model={name}", f"sampler.num_inference_steps={steps}").sampler
        table = make_table(made, SchedulerConfig.from_dict(published))
        scheduler = getattr(diffusers, cls).from_config(published, **options)
        if timesteps is None:
            scheduler.set_timesteps(steps)
        else:
            scheduler.set_timesteps(timesteps=timesteps)
        np.testing.assert_array_equal(table.timesteps, scheduler.timesteps.numpy())
        if options:
            assert table.timesteps.tolist() == GRIDS[steps]
        if hasattr(scheduler, "sigmas"):
            sigmas = np.sqrt(1 / table.rows[:, C_IN] ** 2 - 1)
            np.testing.assert_allclose(sigmas, scheduler.sigmas[:-1].numpy(), rtol=1e-5)
            assert scheduler.sigmas[-1] == 0
        for stop in range(1, steps + 1):
            part = Table(table.rows[:stop], table.init_scale)
            ours = run_in_float64(part, lambda x, t: golden_model(x, t, np.sin), golden_start(), golden_noise)
            theirs = after(scheduler, steps, timesteps, stop)
            assert np.abs(ours - theirs).max() < 2e-5 * max(1.0, np.abs(theirs).max()), (given, stop)


def after(scheduler, steps, timesteps, stop):
    """The reference's sample after `stop` steps."""
    seen = []

    def model(x, t):
        seen.append(x)
        return golden_model(x, t, torch.sin)

    class Stopped(Exception):
        pass

    step, done = scheduler.step, []

    def counted(*args, **kw):
        done.append(step(*args, **kw)[0])
        if len(done) == stop:
            raise Stopped
        return (done[-1],)

    scheduler.step = counted
    try:
        x = torch.from_numpy(golden_start())[None]
        sample(scheduler, model, x, steps, noise=lambda k: torch.from_numpy(golden_noise(k))[None], timesteps=timesteps)
    except Stopped:
        pass
    finally:
        del scheduler.step
    return done[-1][0].numpy()
