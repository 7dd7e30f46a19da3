"""The fields of a cache: what they mean, and what is refused."""

import pytest
from support.runs import config

from tpusd.config.cache import CacheConfig
from tpusd.config.schema import config_values, make_config
from tpusd.errors import UserError


def test_without_a_cache_the_config_says_nothing_of_it():
    assert "cache" not in config_values(config()) and config().cache == CacheConfig()
    assert "cache" not in config_values(config("cache=none"))


def test_the_usual_interval_is_written_down():
    made = config("cache=deepcache")
    assert (
        made.cache == CacheConfig(name="deepcache", interval=3) == config("cache=deepcache", "cache.interval=3").cache
    )
    assert config_values(made)["cache"] == {"name": "deepcache", "interval": 3, "branch": 0, "steps": None}
    assert make_config(config_values(made)) == made
    assert config("cache=deepcache", "cache.steps=[0,4]").cache.interval is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["cache.interval=2"], "cache.interval=2: is for a cache; add cache=deepcache"),
        (["cache.branch=1"], "cache.branch=1: is for a cache; add cache=deepcache"),
        (["cache=none", "cache.steps=[0]"], r"cache.steps=\[0\]: is for a cache; add cache=deepcache"),
        (["cache=deepcache", "cache.interval=0"], "cache.interval=0: must be from 1 to 1000; 1 reuses nothing"),
        (["cache=deepcache", "cache.branch=-1"], "cache.branch=-1: must be from 0 to 255; 0 reuses the most"),
        (["cache=deepcache", "cache.steps=[1,2]"], r"cache.steps=\[1, 2\]: must be growing numbers that begin with 0"),
        (["cache=deepcache", "cache.steps=[0,2,2]"], "must be growing numbers"),
        (["cache=deepcache", "cache.steps=[]"], "cache.steps"),
        (["cache=deepcache", "cache.steps=[0,2.5]"], "cache.steps.*whole number"),
        (["cache=deepcache", "cache.steps=[0,99999]"], "cache.steps.*from 0 to 1999"),
        (
            ["cache=deepcache", "cache.steps=[0]", "cache.interval=2"],
            "and so does cache.interval=2; remove one of them",
        ),
        (["cache=teacache"], "cache=teacache: no such cache.*the choices are deepcache, none"),
    ],
)
def test_what_means_nothing_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        config(*fields)
