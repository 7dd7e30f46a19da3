"""`shard=i/n` and `shard=auto`. The variables are those of the schedulers' own documentation."""

import pytest

from tpusd.config.shards import Shard, check_shard, parse_shard
from tpusd.errors import UserError

SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "3"}
TPU = {"TPU_WORKER_ID": "1", "TPU_WORKER_HOSTNAMES": "a,b"}
SLICES = {"MEGASCALE_SLICE_ID": "2", "MEGASCALE_NUM_SLICES": "3"}
SKYPILOT = {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "2"}
ONE_TPU = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}


@pytest.mark.parametrize(
    ("text", "environ", "index", "count"),
    [
        ("1/1", {}, 1, 1),
        ("3/8", SLURM, 3, 8),
        ("auto", SLURM, 3, 4),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}, 3, 4),
        ("auto", SKYPILOT, 1, 2),
        ("auto", TPU, 2, 2),
        ("auto", TPU | SLICES, 6, 6),
        ("auto", TPU | {"JOB_COMPLETION_INDEX": "1"}, 2, 2),
        ("auto", SKYPILOT | ONE_TPU, 1, 2),
        ("auto", ONE_TPU, 1, 1),
        ("auto/8", {"JOB_COMPLETION_INDEX": "7"}, 8, 8),
        ("auto/8", ONE_TPU | {"JOB_COMPLETION_INDEX": "0"}, 1, 8),
        ("auto/4", SLURM, 3, 4),
    ],
)
def test_shard_of_a_process(text, environ, index, count):
    check_shard(text)
    assert parse_shard(text, environ) == Shard(index=index, count=count)


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("4/3", {}, "shard=4/3: the parts of 3 are 1/3 to 3/3; use one of them"),
        ("0/3", {}, "shard=0/3: the parts of 3 are 1/3 to 3/3"),
        ("1/0", {}, "shard=1/0: a run has 1 to 100000 shards"),
        ("1/9999999", {}, "a run has 1 to 100000 shards"),
        ("x", {}, "shard=x: must be i/n"),
        ("-1/3", {}, "shard=-1/3: must be i/n"),
        ("1.0/3", {}, "must be i/n"),
        ("auto/0", {}, "shard=auto/0: a run has"),
        ("auto", {}, "shard=auto: no scheduler numbers this process"),
        ("auto", {"JOB_COMPLETION_INDEX": "1"}, "write shard=auto/n"),
        ("auto/2", {"JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX=2 is not one of 2 from 0 on"),
        ("auto/5", SLURM, "SLURM_ARRAY_TASK_ID means 3/4, which is not one of 5"),
        ("auto", SLURM | TPU, "SLURM_ARRAY_TASK_ID means 3/4, TPU_WORKER_ID means 2/2; write shard=i/n"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "9"}, "has no place in line"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "\x1b[2J"}, "is not a whole number"),
        ("auto", {"SKYPILOT_NODE_RANK": "2", "SKYPILOT_NUM_NODES": "2"}, "is not one of 2 from 0 on"),
    ],
)
def test_a_wrong_shard_is_one_line(text, environ, expected):
    with pytest.raises(UserError) as error:
        parse_shard(text, environ)
    assert expected in str(error.value) and "\n" not in str(error.value) and "\x1b" not in str(error.value)
