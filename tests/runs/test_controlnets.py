"""A run with ControlNets: what its files say, how it continues and is made again, and what is refused."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import tiny
from support.controlnets import WEIGHTS, tiny_controlnet
from support.runs import StandInPipeline, config, manifest

from tpusd.config.compose import compose_jobs
from tpusd.config.grammar import hydra_value
from tpusd.config.schema import make_config, saved_config
from tpusd.config.words import with_whole_paths
from tpusd.errors import UserError
from tpusd.gallery.run import write_results
from tpusd.inputs.pictures import read_control
from tpusd.plan.batches import count_batches, num_programs, weights_key
from tpusd.plan.specs import ControlInput, image_sizes, make_specs
from tpusd.prompts.rows import run_rows
from tpusd.recipes.command import config_overrides
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import read_config, read_saved
from tpusd.records.validate import faults
from tpusd.runs.prepare import prepare_run
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.slow]
SIZE = 48


class Pipeline(StandInPipeline):
    """Keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def generate(self, specs, tables, *, controls=None, **options):
        self.given.append(None if controls is None else [[one.mean() for one in own] for own in controls])
        assert all(bool(spec.active_controls) == (controls is not None) for spec in specs)
        return super().generate(specs, tables, **options)


def load(*_, **__):
    return Pipeline()


def save(path, value, size=(SIZE, SIZE)):
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    return save(tmp_path / "a.png", 10), save(tmp_path / "b.png", 200)


def net(**fields):
    return {"path": str(tiny_controlnet()), **fields}


def words(rows, *more, nets=None):
    nets = [net(scale=0.8, end=0.5)] if nets is None else nets
    return (
        "model=local",
        f"model.path={tiny()}",
        f"model.controlnets={hydra_value(nets)}",
        f"prompts.rows={hydra_value(rows)}",
        f"height={SIZE}",
        f"width={SIZE}",
        "sampler.num_inference_steps=10",
        "batch_size_per_device=8",
        *more,
    )


def three(files):
    a, b = map(str, files)
    return [
        {"prompt": "a fox", "control_image": a, "control_scale": 0.5},
        {"prompt": "an owl"},
        {"prompt": "a hat", "control_images": [b]},
    ]


@pytest.fixture
def run(files, tmp_path):
    return start_run(config(*words(three(files), f"output={tmp_path / 'run'}")), load=load)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def line_of(act, *arguments, **options):
    with pytest.raises(UserError) as caught:
        act(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def test_config_manifest_and_pictures_say_what_controls_the_images(run, files):
    a, b = files
    fox, owl, hat = sorted(manifest(run), key=lambda line: line["row"])
    assert (fox["control_images"], fox["control_images_sha256"]) == ([str(a)], [sha256(a)])
    assert (fox["control_scale"], fox["control_settings"]) == (0.5, [{"scale": 0.4, "start": 0.0, "end": 0.5}])
    assert fox["resize"] == "fill" and "guess_mode" not in fox and "image" not in fox
    assert not {name for name in owl if "control" in name} and "resize" not in owl
    assert hat["control_scale"] == 1.0 and hat["control_settings"][0]["scale"] == 0.8
    saved = read_config(run)
    assert [row.get("control_images_sha256") for row in saved["prompts"]["rows"]] == [[sha256(a)], None, [sha256(b)]]
    assert saved["model"]["controlnets"][0]["path"] == str(tiny_controlnet())
    facts = json.loads((run / "run.json").read_bytes())
    assert facts["checkpoint"]["sha256"][f"model.controlnets.0/{WEIGHTS}"] == sha256(tiny_controlnet() / WEIGHTS)
    assert list(faults(run)) == []


def test_each_image_gets_its_control_image(files):
    pipeline = Pipeline()
    rows = [*three(files), {"prompt": "off", "control_image": str(files[0]), "control_scale": 0}]
    start_run(config(*words(rows)), load=lambda *a, **k: pipeline)
    assert sorted(pipeline.given, key=str) == sorted([[[10.0], [200.0]], None], key=str)


def test_the_command_of_an_image_makes_it_again(run):
    saved = read_saved(run)
    for spec in make_specs(saved):
        (line,) = (line for line in manifest(run) if line["row"] == spec.row)
        made = config(*read_recipe(run / line["file_name"]).overrides)
        (again,) = make_specs(saved_config(made, rows=run_rows(made), height=SIZE, width=SIZE))
        assert again == spec
        assert [one.image for one in again.controls] == [one.image for one in spec.controls]
    made = config(*config_overrides(saved), "prompt=x")
    assert made.model.controlnets == saved.model.controlnets


def test_a_run_goes_on_with_the_same_control_images_and_strengths_alone(run, files):
    (run / "images" / "00000-000.png").unlink()
    resume_run(run, ["num_images_per_prompt=2"], load=load)
    assert len(manifest(run)) == 6 and list(faults(run)) == []
    assert "control_scale=0.3" in line_of(resume_run, run, ["control_scale=0.3"], load=load)
    line = line_of(resume_run, run, ["model.controlnets.0.scale=0.3"], load=load)
    assert "model.controlnets.0.scale=0.3: the run was made with 0.8" in line
    assert "guess_mode" in line_of(resume_run, run, ["guess_mode=true"], load=load)
    save(files[0], 11)
    line = line_of(resume_run, run, ["num_images_per_prompt=3"], load=load)
    assert "row 0: control_image=" in line and "is another file" in line and len(manifest(run)) == 6


def test_a_run_is_made_again_and_with_other_control(run, files, tmp_path):
    assert reproduce(run, [f"output={tmp_path / 'again'}"], load=load)
    report = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert report["counts"] == {"identical": 3} and report["changed"] == []
    reproduce(run, ["model.controlnets.0.scale=0.1", f"output={tmp_path / 'weak'}"], load=load)
    scales = {line["row"]: line.get("control_settings", [{}])[0].get("scale") for line in manifest(tmp_path / "weak")}
    assert scales == {0: pytest.approx(0.05), 1: None, 2: 0.1}


def test_a_run_is_made_again_from_another_control_image_where_one_is_given(files, tmp_path):
    a, b = files
    rows = [{"prompt": "a fox"}, {"prompt": "an owl", "control_image": str(b)}]
    run = start_run(config(*words(rows, f"control_image={a}", f"output={tmp_path / 'run'}")), load=load)
    other = save(tmp_path / "c.png", 90)
    reproduce(run, [f"control_image={other}", f"output={tmp_path / 'other'}"], load=load)
    assert [line["control_images_sha256"] for line in manifest(tmp_path / "other")] == [[sha256(other)], [sha256(b)]]


def test_the_page_shows_the_control_image_beside_its_image(run, files):
    page = write_results(run).read_text()
    for file in files:
        assert (run / ".thumbs" / f"input-{sha256(file)[:16]}-{SIZE}x{SIZE}.webp").is_file() and str(file) in page


def test_strengths_share_weights_and_programs_and_the_nets_count(files):
    def specs(*more, nets):
        made = config(*words(three(files), *more, nets=nets))
        return prepare_run(made)

    first, second = specs(nets=[net(scale=0.8)]), specs("control_scale=0.1", nets=[net(start=0.3)])
    assert weights_key(first.config) == weights_key(second.config)
    kinds = [(run.kind(spec), 10) for run in (first, second) for spec in make_specs(run.config)]
    assert len({kind for kind, _ in kinds}) == 2 and count_batches(kinds, 4) == 2
    assert num_programs(kind for kind, _ in kinds) == 5  # encode, embed, two denoisers, decode
    off = specs("control_scale=0", nets=[net()])
    assert [len(off.kind(spec).controls) for spec in make_specs(off.config)] == [1, 0, 0]  # the first has its own


def test_a_scale_is_swept(tmp_path, files):
    fields = words(three(files))
    jobs = compose_jobs(["-m", *fields, "model.controlnets.0.scale=0.2,0.9"])
    assert [make_config(job.values).model.controlnets[0].scale for job in jobs] == [0.2, 0.9]
    line = line_of(compose_jobs, [*fields, "model.controlnets.1.scale=0.2"])
    assert "model.controlnets.1: there is no such ControlNet" in line


def test_a_sweep_has_whole_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [
        "-m",
        "control_images=[a.png,b.png]",
        "model.controlnets=[{path: net, scale: 1}]",
        "control_image=c.png,d.png",
    ]
    _, images, nets, swept = with_whole_paths(given)
    assert (
        images == f'control_images=["{tmp_path}/a.png", "{tmp_path}/b.png"]'.replace('"', "") or str(tmp_path) in images
    )
    assert f"{tmp_path}/net" in nets and "scale: 1" in nets
    assert f"{tmp_path}/c.png" in swept and f"{tmp_path}/d.png" in swept


@pytest.mark.parametrize(
    ("rows", "more", "nets", "expected"),
    [
        ([{"prompt": "a", "control_image": "A"}], [], [], "there is no ControlNet to read it; add model.controlnets="),
        ([{"prompt": "a", "control_images": ["A", "B"]}], [], None, "row 0: has 2 control images for 1 ControlNets"),
        ([{"prompt": "a", "control_image": "A", "control_images": ["B"]}], [], None, "has both control_image and"),
        ([{"prompt": "a", "control_images": "A"}], [], None, "must be a list of 1 to 8, one for each ControlNet"),
        ([{"prompt": "a", "control_images": []}], [], None, "must be a list of 1 to 8"),
        ([{"prompt": "a", "control_images_sha256": ["0" * 64]}], [], None, "has no control_images beside it"),
        ([{"prompt": "a", "control_scale": 0.5}], [], None, "control_scale=0.5: has no control image"),
        ([{"prompt": "a", "control_scale": -1, "control_image": "A"}], [], None, "control_scale=-1"),
        ([{"prompt": "a"}], ["control_scale=0.5"], [], "control_scale=0.5: there is no control image"),
        ([{"prompt": "a"}], ["guess_mode=true"], [], "guess_mode=True: there is no control image"),
        ([{"prompt": "a"}], ["control_image=A", "control_images=[A]"], None, "control_images: control_image is set"),
        ([{"prompt": "a"}], ["control_image=''"], None, "control_image='': must name a picture"),
        ([{"prompt": "a", "control_image": "A"}], [], [{"scale": 1}], "exactly one of asset, path and repo must"),
        ([{"prompt": "a", "control_image": "A"}], [], [{"path": "x", "start": 0.5, "end": 0.5}], "must be smaller"),
        ([{"prompt": "a", "control_image": "A"}], [], [{"path": "x", "scale": -1}], "must be from 0 to 100"),
        ([{"prompt": "a", "control_image": "A"}], [], [{"path": "x", "file": "y"}], "is for a ControlNet from the Hub"),
        ([{"prompt": "a", "control_image": "A"}], [], [{"repo": "x/y", "file": "y.bin"}], "pickles"),
        ([{"prompt": "a", "control_image": "missing.png"}], [], None, "row 0: control_image=missing.png: no such file"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_one_line(files, tmp_path, monkeypatch, rows, more, nets, expected):
    monkeypatch.chdir(tmp_path)
    a, b = map(str, files)
    names = {"A": a, "B": b}

    def own(value):
        return [own(one) for one in value] if isinstance(value, list) else names.get(value, value)

    rows = [
        {name: own(value) if isinstance(value, str | list) else value for name, value in row.items()} for row in rows
    ]
    more = [word.replace("=A", f"={a}").replace("[A]", f"[{a}]") for word in more]
    line = line_of(lambda: prepare_run(config(*words(rows, *more, nets=nets))))
    assert expected in line.replace(f"{tmp_path}/", "")


def test_a_controlnet_between_two_steps_is_said_to_have_no_effect(files):
    rows = [{"prompt": "a", "control_image": str(files[0])}]
    steps = "sampler.num_inference_steps=2"
    idle = prepare_run(config(*words(rows, steps, "sampler=ddim", nets=[net(start=0.2, end=0.6)])))
    assert any("none of the 2 model calls is whole between start=0.2 and end=0.6" in line for line in idle.warnings)
    assert not prepare_run(config(*words(rows, steps, nets=[net(start=0.2, end=1)]))).warnings


def test_one_group_in_place_of_a_list_is_one_line():
    line = line_of(config, "model.controlnets={path: x}")
    assert line == "model.controlnets: must be a list of groups, as in model.controlnets=[{path: PATH}]"


def test_a_broken_control_image_is_found_before_anything_runs(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    line = line_of(lambda: prepare_run(config(*words([{"prompt": "a", "control_image": str(tmp_path / "x.png")}]))))
    assert "row 0: control_image=" in line and "x.png" in line


def test_an_image_may_have_the_shape_of_its_control_image(tmp_path):
    wide = save(tmp_path / "wide.png", 5, size=(20, 40))
    run = prepare_run(config(*words([{"prompt": "a", "control_image": str(wide)}], "resize=fit")))
    assert image_sizes(run.config) == ((24, 48),)


def test_what_is_transparent_in_a_control_image_is_black(tmp_path):
    pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
    pixels[:, :24, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    own = ControlInput(net=0, image=str(tmp_path / "a.png"), image_sha256=None)
    made = read_control(own, (SIZE, SIZE))
    assert (made[:, :24] == 0).all() and (made[:, 24:] == 255).all()


def test_columns_of_a_prompt_file(tmp_path, files):
    (tmp_path / "p.csv").write_text("prompt,control_image,control_scale\na fox,a.png,0.5\nan owl,,\n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a fox", "control_images": ["a.png", null]}\n')
    path = "model.path=x"
    fox, owl = run_rows(
        config(
            "model=local",
            path,
            f"model.controlnets={hydra_value([net()])}",
            "prompts=file",
            f"prompts.path={tmp_path / 'p.csv'}",
        )
    )
    assert (fox.control_images, fox.control_scale, owl.control_images) == ((str(files[0]),), 0.5, None)
    (row,) = run_rows(
        config(
            "model=local",
            path,
            f"model.controlnets={hydra_value([net(), net()])}",
            "prompts=file",
            f"prompts.path={tmp_path / 'p.jsonl'}",
        )
    )
    assert row.control_images == (str(files[0]), None)


def test_only_whole_steps_between_start_and_end_are_controlled():
    own = ControlInput(net=0, image="a", image_sha256=None, scale=0.5, start=0.2, end=0.75)
    assert own.scales(10) == [0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0]
    assert SimpleNamespace(scales=own.scales(1)).scales == [0.0]
