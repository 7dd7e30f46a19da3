"""What deploy/ has: commands that tpusd takes, the parts of one run, and fields that Kubernetes knows.

Each shell text runs as it is, with stand-ins for `python`, `srun` and `scontrol` that write down their arguments."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.runs import config

from tpusd.config.shards import parse_shard

DEPLOY = Path(__file__).parents[2] / "deploy"
NOTE = "import json, os, sys; print(json.dumps(sys.argv[1:]), file=open(os.environ['NOTES'], 'a'))"


def load(name):
    return yaml.safe_load((DEPLOY / name).read_text())


def container(pod):
    (found,) = pod["spec"]["containers"]
    return found


JOB = load("indexed-job.yaml")
SLICES = load("jobset.yaml")["spec"]["replicatedJobs"][0]
RAY = load("rayjob.yaml")
SHELL = {
    "indexed-job.yaml": (
        " ".join([*container(JOB["spec"]["template"])["command"], *container(JOB["spec"]["template"])["args"]])
    ),
    "jobset.yaml": container(SLICES["template"]["spec"]["template"])["args"][0],
    "rayjob.yaml": RAY["spec"]["entrypoint"],
    "skypilot.yaml": load("skypilot.yaml")["run"],
    "slurm.sh": (DEPLOY / "slurm.sh").read_text(),
}


@pytest.fixture
def started(tmp_path):
    """Runs a file's shell in an environment; gives what was started, a list of words each, and the exit status."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(name, environ, *, status=0):
        for program in ("python", "srun", "scontrol"):
            stand_in = programs / program
            stand_in.write_text(
                f"#!{sys.executable}\n{NOTE.replace('sys.argv[1:]', '[' + repr(program) + '] + sys.argv[1:]')}\n"
                f"sys.exit({status if program == 'srun' else 0})\n"
            )
            stand_in.chmod(0o755)
        notes = tmp_path / "notes"
        notes.unlink(missing_ok=True)
        path = f"{programs}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", SHELL[name]], env={"PATH": path, "NOTES": str(notes)} | environ, timeout=60
        )
        return [json.loads(line) for line in notes.read_text().splitlines()], done.returncode

    return run


ENVIRONMENTS = {  # what each scheduler sets, for every part of one run
    "indexed-job.yaml": [{"JOB_COMPLETION_INDEX": str(index)} for index in range(JOB["spec"]["completions"])],
    "jobset.yaml": [
        {"SLICE": str(job), "JOB_COMPLETION_INDEX": str(index)}
        for job in range(SLICES["replicas"])
        for index in range(SLICES["template"]["spec"]["completions"])
    ],
    "rayjob.yaml": [{}],
    "skypilot.yaml": [
        {"SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(load("skypilot.yaml")["num_nodes"])}
        for rank in range(load("skypilot.yaml")["num_nodes"])
    ],
    "slurm.sh": [
        {
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": "8",
            "SLURM_ARRAY_TASK_MIN": "1",
            "SLURM_ARRAY_JOB_ID": "9",
        }
        for task in range(1, 9)
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHELL)
def test_the_parts_are_those_of_one_run(started, tmp_path, name):
    parts, runs = set(), set()
    for environ in ENVIRONMENTS[name]:
        (command,), status = started(name, environ)
        begin = command.index("tpusd.run")
        assert status == 0 and command[:begin] in (["python", "-m"], ["srun", "python", "-m"])
        words = command[begin + 1 :]
        (shard,) = [word.removeprefix("shard=") for word in words if word.startswith("shard=")]
        parts.add(parse_shard(shard, environ))
        runs.add(tuple(word for word in words if not word.startswith("shard=")))
    (count,) = {part.count for part in parts}
    assert sorted(part.index for part in parts) == list(range(1, count + 1)) and len(ENVIRONMENTS[name]) == count
    (words,) = runs
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("prompt\na fox\n")
    made = config(*[word.replace("/shared/prompts.csv", str(prompts)) for word in words])
    assert made.model.name == "sdxl" and made.output == "/shared/set"
    assert (made.executor.name == "ray") == (name == "rayjob.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(("status", "queued"), [(0, False), (1, False), (2, False), (143, True)])
def test_slurm_queues_a_task_again_that_ran_out_of_time(started, status, queued):
    (_, *after), ended = started("slurm.sh", ENVIRONMENTS["slurm.sh"][2], status=status)
    assert ended == status and after == ([["scontrol", "requeue", "9_3"]] if queued else [])


def test_slurm_reads_every_option():
    """sbatch reads #SBATCH lines up to the first command, and ignores later ones."""
    lines = (DEPLOY / "slurm.sh").read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert options and max(options) < first
    assert "#SBATCH --array=1-8" in lines and "#SBATCH --requeue" in lines


@pytest.mark.parametrize(
    "pod",
    [
        JOB["spec"]["template"],
        SLICES["template"]["spec"]["template"],
        *[group["template"] for group in RAY["spec"]["rayClusterSpec"]["workerGroupSpecs"]],
        RAY["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
    ],
)
def test_pods_share_the_disk_of_shared_disk_yaml(pod):
    (volume,) = pod["spec"]["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == load("shared-disk.yaml")["metadata"]["name"]
    assert container(pod)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
    resources = container(pod)["resources"]
    assert resources["requests"] == resources["limits"]  # extended resources must be equal


@pytest.mark.libraries
@pytest.mark.parametrize(
    "resource",
    [
        load("shared-disk.yaml"),
        JOB,
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "slice"}, "spec": SLICES["template"]["spec"]},
        *[
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "ray"}, "template": template}
            for template in [
                RAY["spec"]["rayClusterSpec"]["headGroupSpec"]["template"],
                RAY["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
            ]
        ],
    ],
    ids=["claim", "job", "jobset", "ray_head", "ray_worker"],
)
def test_kubernetes_knows_every_field(resource):
    validate = pytest.importorskip("kubernetes_validate")
    validate.validate(resource, "1.33", strict=True)
    broken = json.loads(json.dumps(resource).replace('"name"', '"nane"', 1))
    with pytest.raises(validate.ValidationError):
        validate.validate(broken, "1.33", strict=True)


def test_the_image_has_what_the_files_need():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    extras = re.search(r"^ARG EXTRAS=(.+)$", dockerfile, re.M)[1].split(",")
    declared = (DEPLOY.parent / "pyproject.toml").read_text()
    assert all(re.search(rf"^{extra} = \[", declared, re.M) for extra in extras)
