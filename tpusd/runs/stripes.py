"""Which images of a run this process makes, by `shard` and by what the scheduler says."""

import os
import re

from tpusd.config.schema import RunConfig
from tpusd.config.shards import parse_shard
from tpusd.plan.specs import Stripe


def stripe_of(config: RunConfig, name: str = "") -> Stripe | None:
    """The images of this process; None: all. Raises UserError.

    name: of the run in its sweep, such as 003_seed=1.
    """
    if config.shard is None:
        return None
    number = re.match(r"\d+", name)
    shard = parse_shard(config.shard, os.environ)
    return Stripe(shard=shard, offset=int(number[0]) if number is not None else 0)
