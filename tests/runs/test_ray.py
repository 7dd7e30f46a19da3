"""A real Ray cluster of several local nodes: the bytes of a local run, whatever is ended with SIGKILL."""

import os
import random
import signal
import time

import pytest
from support import ray_nodes
from support.ray_nodes import WORDS, ended, files, run, start, with_driver_ended, with_nodes_ended

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning"),  # JAX, as Ray starts its processes
]
SWEEP = ("-m", "prompts=portraits", "sampler=ddim,euler", "sampler.num_inference_steps=3", "seed=0,1")


@pytest.fixture(scope="module")
def cluster():
    before = dict(os.environ)
    try:
        with ray_nodes.nodes(2) as made:
            yield made
    finally:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same images, made by a local run."""
    path = tmp_path_factory.mktemp("local") / "run"
    run(*WORDS[:-1], f"output={path}")
    return files(path)


def there(cluster):
    return "executor=ray", f"executor.address={cluster.address}"


def test_run_has_the_bytes_of_a_local_run(cluster, local, tmp_path):
    run(*WORDS, *there(cluster), f"output={tmp_path / 'run'}")
    assert files(tmp_path / "run") == local


def test_packed_sweep_has_the_bytes_of_a_local_sweep(cluster, tmp_path):
    """Also with more workers than the cluster has room for: the third waits for a host that does not come."""
    run(*SWEEP, f"output={tmp_path / 'local'}")
    run(*SWEEP, *there(cluster), "executor.num_workers=3", f"output={tmp_path / 'ray'}")
    names = sorted(path.name for path in (tmp_path / "local").iterdir() if path.is_dir())
    assert len(names) == 4
    for name in names:
        assert files(tmp_path / "ray" / name) == files(tmp_path / "local" / name)


@pytest.mark.parametrize("seed", [1, 2])
def test_nodes_that_are_switched_off_change_nothing(cluster, local, tmp_path, seed):
    with_nodes_ended(cluster, tmp_path / "run", random.Random(seed))
    assert files(tmp_path / "run") == local


def test_run_whose_driver_was_killed_is_resumed_and_makes_no_whole_image_again(cluster, local, tmp_path):
    with_driver_ended(cluster, tmp_path / "run", random.Random(3))
    assert files(tmp_path / "run") == local


def test_interrupted_run_stops_its_workers_and_says_how_to_continue(cluster, tmp_path):
    process = start(*WORDS, "num_images_per_prompt=500", *there(cluster), f"output={tmp_path / 'run'}")
    manifest = tmp_path / "run" / "manifest.jsonl"
    until = time.monotonic() + 90
    while (not manifest.exists() or not manifest.stat().st_size) and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    status, said = ended(process)
    assert status == 143 and "interrupted (SIGTERM)" in said and "resume=" in said and "Traceback" not in said
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["executor.resources_per_worker={TPU: 4}"], "no host of the cluster has that; its hosts have {CPU: 1} ("),
        (["executor.address=127.0.0.1:1"], "cannot be reached (Connection refused)"),
    ],
)
def test_what_a_cluster_lacks_is_one_line_and_leaves_nothing(cluster, tmp_path, words, line):
    status, said = ended(start(*WORDS, *there(cluster), *words, f"output={tmp_path / 'run'}"))
    (own,) = [text for text in said.splitlines() if text.startswith("tpusd: ")]
    assert status == 2 and line in own and not (tmp_path / "run").exists()
