"""The driver of a cluster, on workers in threads: what it writes is what a local run writes, whatever ends."""

import dataclasses
import json
import time
from types import SimpleNamespace

import pytest
from support.checkpoints import tiny
from support.cluster import FakeHosts, open_stand_in, with_versions
from support.loras import random, write
from support.runs import INLINE, StandInPipeline, config, manifest, prepare

from tpusd.config.schema import config_values
from tpusd.engine.not_finite import NotFinite
from tpusd.errors import UserError
from tpusd.process.exit import exit_status
from tpusd.records.provenance import versions
from tpusd.records.saved import read_config, read_saved
from tpusd.records.validate import faults
from tpusd.runs.executors import ray
from tpusd.runs.executors.cluster import refusal
from tpusd.runs.loras import open_loras
from tpusd.runs.prepare import open_model
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.set_aside import ImagesSetAside
from tpusd.runs.start import start_run
from tpusd.runs.sweep import resume_sweep, start_sweep

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]
LAYER = "unet.mid_block.attentions.0.proj_in"
WORDS = (INLINE, "num_images_per_prompt=5", "batch_size_per_device=2")


@pytest.fixture
def on(monkeypatch):
    """Has executor=ray use these hosts."""

    def use(hosts):
        monkeypatch.setattr(ray, "check_cluster", lambda address: None)
        monkeypatch.setattr(ray.RayHosts, "connect", lambda config: hosts)
        return hosts

    return use


def start(path, *overrides, pipeline=None):
    """A local run, or with executor=ray one on the hosts."""
    made = config(f"output={path}", *WORDS, *overrides)
    return start_run(made, prepare=prepare, load=lambda *_, **__: pipeline or StandInPipeline())


def files(path):
    """The images of a run and the lines of its manifest, in order."""
    lines = sorted((path / "manifest.jsonl").read_bytes().splitlines())
    return lines, {file.name: file.read_bytes() for file in sorted((path / "images").iterdir())}


def ends(status, start):
    with exit_status() as ended:
        start()
    assert ended == [status]


class Deadly(StandInPipeline):
    """Ends its worker when it is given one of these images, (row, copy)."""

    def __init__(self, images):
        super().__init__()
        self.images, self.hosts = images, None

    def generate(self, specs, tables, **options):
        if any((spec.row, spec.copy) in self.images for spec in specs):
            (name,) = [name for name in self.hosts.workers if self.hosts.pipelines[self.hosts.place_of[name]] is self]
            self.hosts.kill(name, "exit detail")
            time.sleep(0.05)
        return super().generate(specs, tables, **options)


def deadly(images, places=2):
    pipelines = {f"host {place}": Deadly(images) for place in range(places)}
    hosts = FakeHosts(places, pipelines=pipelines)
    for pipeline in pipelines.values():
        pipeline.hosts = hosts
    return hosts


def test_files_and_manifest_lines_are_those_of_a_local_run(tmp_path, on):
    hosts = on(FakeHosts(3))
    there = start(tmp_path / "cluster", "executor=ray")
    assert files(there) == files(start(tmp_path / "local")) and len(manifest(there)) == 15
    assert hosts.closed and read_config(there)["executor"]["name"] == "ray"


def test_sweep_fills_batches_across_runs_and_makes_what_a_local_one_makes(tmp_path, on):
    on(FakeHosts(2))
    words = ["-m", *WORDS, "seed=0,1,2"]
    for name, more in (("local", []), ("cluster", ["executor=ray"])):
        argv = [*words, f"output={tmp_path / name}", *more]
        assert start_sweep(argv, prepare=prepare, load=lambda *_, **__: StandInPipeline()) == 0
    for run in ("00_seed=0", "01_seed=1", "02_seed=2"):
        found = sorted(path.name for path in (tmp_path / "local").iterdir() if path.is_dir())
        name = next(one for one in found if one.endswith(run[-1]))
        assert files(tmp_path / "cluster" / name) == files(tmp_path / "local" / name)


def test_shards_that_each_use_the_cluster_end_with_the_run_of_one_process(tmp_path, on):
    """Also where one of them makes its images here."""
    for which, place in (("1/3", "ray"), ("2/3", "local"), ("3/3", "ray")):
        on(FakeHosts(2))
        start(tmp_path / "run", f"executor={place}", f"shard={which}")
    assert files(tmp_path / "run") == files(start(tmp_path / "local")) and list(faults(tmp_path / "run")) == []


def test_reproduce_makes_the_images_here_or_on_the_cluster_that_is_named(tmp_path, on):
    hosts = on(FakeHosts(2))
    path = start(tmp_path / "run", "executor=ray", "executor.num_workers=2")
    for name, words in (("here", []), ("cluster", ["executor=ray"])):
        hosts = on(FakeHosts(2))
        words = [f"output={tmp_path / name}", *words]
        assert reproduce(path, words, prepare=prepare, load=lambda *_, **__: StandInPipeline())
        assert json.loads((tmp_path / name / "comparison.json").read_text())["counts"] == {"identical": 15}
        assert hosts.started == (2 if name == "cluster" else 0)


@pytest.mark.parametrize("is_there", [False, True])
def test_sweep_on_a_cluster_without_what_it_asks_for_leaves_nothing(tmp_path, monkeypatch, is_there):
    def connect(config):
        raise UserError("executor.resources_per_worker={TPU: 4}: no host of the cluster has that")

    monkeypatch.setattr(ray, "check_cluster", lambda address: None)
    monkeypatch.setattr(ray.RayHosts, "connect", connect)
    path = tmp_path / "new" / "sweep"
    if is_there:
        path.mkdir(parents=True)
    with pytest.raises(UserError, match="no host of the cluster has that"):
        start_sweep(["-m", *WORDS, "seed=0,1", "executor=ray", f"output={path}"], prepare=prepare)
    assert list(tmp_path.rglob("*")) == ([path.parent, path] if is_there else [])


def test_sweep_that_loses_all_workers_after_an_image_stays_and_is_resumed(tmp_path, on):
    on(deadly({(row, copy) for row in range(3) for copy in range(5)} - {(0, 0)}, places=1))
    words = ["-m", *WORDS, "batch_size_per_device=1", "seed=0,1", "executor=ray", f"output={tmp_path / 'sweep'}"]
    with pytest.raises(UserError, match="no worker is left"):
        start_sweep(words, prepare=prepare)
    on(FakeHosts(2))
    assert resume_sweep(tmp_path / "sweep", [], prepare=prepare) == 0
    assert [len(manifest(run)) for run in sorted(tmp_path.glob("sweep/0*"))] == [15, 15]


def test_worker_with_fewer_devices_makes_the_batches_in_parts(tmp_path, on, monkeypatch):
    """The first worker said that it has four devices; all of them have one."""
    on(FakeHosts(2, hello=lambda place, hello: _with_devices(hello, 4)))
    there = start(tmp_path / "cluster", "executor=ray")
    assert files(there) == files(start(tmp_path / "local"))


def _with_devices(hello, number):
    return dataclasses.replace(hello, devices=dict(hello.devices) | {"count": number})


def test_images_of_workers_that_end_are_made_by_others_and_none_twice(tmp_path, on):
    class Slow(StandInPipeline):
        def generate(self, specs, tables, **options):
            time.sleep(0.005)
            if len(self.batches) == 2:
                hosts.kill(next(iter(hosts.workers)))
            return super().generate(specs, tables, **options)

    hosts = on(FakeHosts(2, pipelines={"host 0": Slow(), "host 1": Slow()}))
    there = start(tmp_path / "cluster", "executor=ray")
    assert hosts.started > 2 and files(there) == files(start(tmp_path / "local"))


def test_images_that_end_three_workers_are_named_and_the_rest_is_made(tmp_path, on, capsys):
    hosts = on(deadly({(1, 2)}))
    path = tmp_path / "run"
    with pytest.raises(ImagesSetAside, match="2 of 15 images are not made: .*3 workers ended while they made it"):
        start(path, "executor=ray")
    assert len(manifest(path)) == 13 and "00001-002" not in {line["file_name"][7:16] for line in manifest(path)}
    assert "set aside" in (path / "run.log").read_text() and "set aside" in capsys.readouterr().err
    assert hosts.started <= 6  # two, one for each that it ended, and one more where another batch was blamed first
    on(FakeHosts(1))
    resume_run(path, prepare=prepare)
    assert files(path) == files(start(tmp_path / "local"))


def test_run_whose_every_image_ends_its_worker_stops_and_says_why(tmp_path, on, capsys):
    every = {(row, copy) for row in range(3) for copy in range(5)}
    on(deadly(every, places=1))
    ends(2, lambda: start(tmp_path / "run", "executor=ray"))
    assert "no worker is left; the last one: exit detail" in capsys.readouterr().err


def test_worker_of_another_version_is_refused_and_the_others_make_the_run(tmp_path, on, capsys):
    hosts = on(FakeHosts(2, hello=lambda place, hello: with_versions(hello, jax="0.1") if "0" in place else hello))
    there = start(tmp_path / "run", "executor=ray")
    assert len(manifest(there)) == 15 and hosts.started == 2
    assert "has jax 0.1, and the driver has" in capsys.readouterr().err


def test_no_worker_of_the_right_version_is_one_line_and_leaves_nothing(tmp_path, on, capsys):
    on(FakeHosts(2, hello=lambda place, hello: with_versions(hello, tpusd="0.0.1")))
    ends(2, lambda: start(tmp_path / "run", "executor=ray"))
    assert "has tpusd 0.0.1, and the driver has" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tpusd", "jax"])
def test_versions_must_be_those_of_the_driver(name):
    hello = SimpleNamespace(versions=versions())
    assert refusal(hello) is None
    assert refusal(SimpleNamespace(versions={name: None}), {name: "1"}).startswith(f"has {name} none, and the driver")


def test_worker_with_other_weights_is_refused_and_nothing_of_it_is_written(tmp_path, on, capsys):
    def open_model(place, model):
        checkpoint = open_stand_in(model)
        if place == "host 0":
            checkpoint.identity.sha256 = {"unet/weights.safetensors": "1" * 64}
        return checkpoint

    on(FakeHosts(2, open_model=open_model))
    there = start(tmp_path / "run", "executor=ray")
    assert files(there) == files(start(tmp_path / "local"))
    assert "has other files: sha256" in capsys.readouterr().err


@pytest.fixture
def with_lora(tmp_path):
    """The words of a run with a LoRA, and its file."""
    file = write(
        tmp_path / "style.safetensors",
        {f"{LAYER}.lora_B.weight": random(32, 2, 1, 1), f"{LAYER}.lora_A.weight": random(2, 32, 1, 1)},
    )
    return [
        *("model=local", f"model.path={tiny()}", "prompts=inline", "prompts.rows=[{prompt: a fox}, {prompt: a dog}]"),
        *("num_images_per_prompt=4", "sampler.num_inference_steps=2", f"loras=[{{path: {file}, scale: 0.5}}]"),
    ], file


def test_loras_reach_the_workers(tmp_path, on, with_lora):
    words, file = with_lora
    made = []

    class Noting(StandInPipeline):
        def generate(self, specs, tables, *, loras=(), on_step=None):
            made.extend((one.lora.file.path, one.scale) for one in loras)
            return super().generate(specs, tables, on_step=on_step)

    on(FakeHosts(2, pipelines={"host 0": Noting(), "host 1": Noting()}, open_model=lambda _, model: open_model(model)))
    for name, more in (("local", []), ("cluster", ["executor=ray"])):
        start_run(config(*words, *more, f"output={tmp_path / name}"), load=lambda *_, **__: Noting())
    assert len(manifest(tmp_path / "cluster")) == 8 and set(made) == {(file, 0.5)}
    assert files(tmp_path / "cluster") == files(tmp_path / "local")
    facts = [json.loads((tmp_path / name / "run.json").read_bytes()) for name in ("cluster", "local")]
    assert facts[0]["loras"] == facts[1]["loras"]


@pytest.mark.parametrize("change", ["is gone", "is another"])
def test_worker_without_the_file_of_a_lora_is_refused_and_the_others_make_the_run(
    tmp_path, on, with_lora, capsys, change
):
    words, file = with_lora

    def open_there(place, loras, model, checkpoint):
        if "0" not in place:
            return open_loras(loras, model, checkpoint)
        if change == "is gone":
            loras = [dataclasses.replace(loras[0], path=str(tmp_path / "gone.safetensors"))]
        opened = open_loras(loras, model, checkpoint)
        return [dataclasses.replace(opened[0], file=SimpleNamespace(where=opened[0].file.where, sha256="1" * 64))]

    on(FakeHosts(2, open_model=lambda _, model: open_model(model), open_loras=open_there))
    for name, more in (("local", []), ("cluster", ["executor=ray"])):
        start_run(config(*words, *more, f"output={tmp_path / name}"), load=lambda *_, **__: StandInPipeline())
    assert files(tmp_path / "cluster") == files(tmp_path / "local")
    line = {
        "is gone": "loras[0].path=",
        "is another": f"loras[0].path={file}: is another file than the driver's: sha256 111111111111..., not ",
    }[change]
    said = " ".join(capsys.readouterr().err.split())
    assert "worker on " in said and line in said and "every host" in said


def test_no_worker_with_the_checkpoint_is_one_line_and_leaves_nothing(tmp_path, on):
    def open_nowhere(place, model):
        raise UserError("model.path=/there: does not exist")

    on(FakeHosts(2, open_model=open_nowhere))
    with pytest.raises(UserError, match="no worker is left; the last one: worker on .*: model.path=/there: does not"):
        start(tmp_path / "run", "executor=ray")
    assert not (tmp_path / "run").exists()


def test_batch_that_fails_on_one_worker_is_made_by_another(tmp_path, on):
    broken = StandInPipeline(fails_at=0, error=RuntimeError("a disk of this host"))
    on(FakeHosts(2, pipelines={"host 0": broken}))
    there = start(tmp_path / "run", "executor=ray")
    assert files(there) == files(start(tmp_path / "local"))


def test_run_that_fails_everywhere_fails_as_on_one_machine(tmp_path, on):
    class Broken(StandInPipeline):
        def generate(self, specs, tables, **options):
            raise UserError("model: does not fit")

    on(FakeHosts(2, pipelines={"host 0": Broken(), "host 1": Broken()}))
    for name, more in (("cluster", ["executor=ray"]), ("local", [])):
        with pytest.raises(UserError, match="^model: does not fit$"):
            start(tmp_path / name, *more, pipeline=Broken())
        assert not (tmp_path / name).exists()


def test_images_with_nan_are_left_out_as_on_one_machine(tmp_path, on):
    class Overflowing(StandInPipeline):
        def generate(self, specs, tables, **options):
            made = super().generate(specs, tables, **options)
            for spec, image in zip(specs, made, strict=True):
                image.not_finite = NotFinite(program="decode") if (spec.row, spec.copy) == (1, 1) else None
            return made

    on(FakeHosts(2, pipelines={"host 0": Overflowing(), "host 1": Overflowing()}))
    for more in ([], ["on_nan=record"]):
        names = f"cluster{len(more)}", f"local{len(more)}"
        for name, place in zip(names, (["executor=ray"], []), strict=True):
            ends(0 if more else 1, lambda: start(tmp_path / name, *place, *more, pipeline=Overflowing()))  # noqa: B023
        assert files(tmp_path / names[0]) == files(tmp_path / names[1])


def test_saved_config_names_a_cluster_only_where_one_made_the_images(tmp_path, on):
    assert "executor" not in config_values(config())
    on(FakeHosts(1))
    path = start(tmp_path / "run", "executor=ray", "executor.num_workers=1")
    assert read_saved(path).executor.num_workers == 1
    assert "executor" not in read_config(start(tmp_path / "local"))


def test_resume_changes_the_executor_and_its_fields_for_once(tmp_path, on):
    on(FakeHosts(1))
    path = start(tmp_path / "run", "executor=ray")
    before = read_config(path)
    resume_run(path, ["num_images_per_prompt=6", "executor=local"], prepare=prepare, load=lambda *_: StandInPipeline())
    resume_run(path, ["num_images_per_prompt=7", "executor.num_workers=3"], prepare=prepare)
    assert len(manifest(path)) == 21 and read_config(path)["executor"] == before["executor"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("executor.num_workers=3", "executor.num_workers=3: is for a cluster; add executor=ray"),
        ("executor.address=auto", "executor.address=auto: is for a cluster; add executor=ray"),
        ("executor.address=here", "executor.address=here: must be auto, HOST:PORT or ray://HOST:PORT"),
        ("executor.address=ray://x:99999", "must be auto, HOST:PORT or ray://HOST:PORT"),
        ("executor.resources_per_worker={TPU: 0}", "executor.resources_per_worker.TPU=0: must be a number above 0"),
        ("executor.resources_per_worker={}", "executor.resources_per_worker: must name 1 to 32 resources"),
        ("executor.unit_seconds=0", "executor.unit_seconds=0: must be from 0.1 to 3600"),
    ],
)
def test_wrong_executor_fields_are_one_line(word, line):
    kind = [] if "is for a cluster" in line else ["executor=ray"]
    with pytest.raises(UserError) as error:
        config(*kind, word)
    assert line in str(error.value)


@pytest.mark.parametrize("head_first", [False, True])
def test_hosts_without_what_is_asked_are_listed_by_kind_in_one_order(head_first):
    head, host = {"node:10.0.0.1": 1.0, "memory": 1e9}, {"CPU": 1.0, "memory": 1e9}
    nodes = [head, host, host] if head_first else [host, host, head]
    nodes = [{"NodeID": str(number), "Alive": True, "Resources": has} for number, has in enumerate(nodes)]
    asked = config("executor=ray", "executor.resources_per_worker={TPU: 4}").executor
    hosts = ray.RayHosts(SimpleNamespace(nodes=lambda: nodes), asked, is_own=False, load=None)
    with pytest.raises(UserError) as raised:
        hosts.check()
    assert str(raised.value) == (
        "executor.resources_per_worker={TPU: 4}: no host of the cluster has that; "
        "its hosts have {CPU: 1} (2 hosts), {} (1 host)"
    )
