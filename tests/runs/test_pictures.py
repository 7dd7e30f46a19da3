"""A run whose images start from pictures: what its files say, how it goes on and is made again, what is refused."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.checkpoints import tiny
from support.cluster import FakeHosts
from support.runs import StandInPipeline, config, manifest

import tpusd
from tpusd.config.grammar import hydra_value
from tpusd.config.schema import saved_config
from tpusd.errors import UserError
from tpusd.gallery.run import write_results
from tpusd.inputs import reader
from tpusd.inputs.pictures import read_input
from tpusd.plan.batches import Batch
from tpusd.plan.specs import make_specs
from tpusd.prompts.rows import run_rows
from tpusd.recipes.readers import read_recipe
from tpusd.records.saved import read_config, read_saved
from tpusd.records.validate import faults
from tpusd.reproduce import main as reproduce_main
from tpusd.runs.dry_run import RunToShow, show_plan
from tpusd.runs.executors import ray
from tpusd.runs.prepare import open_model, prepare_run
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")
SIZE = 48


class Pipeline(StandInPipeline):
    """The stand-in's pixels, with those that are not masked put back, as the real pipeline does."""

    def __init__(self):
        super().__init__()
        self.with_pictures = []

    def generate(self, specs, tables, *, inputs=None, **options):
        made = super().generate(specs, tables, **options)
        self.with_pictures.append(inputs is not None)
        assert all((spec.picture is not None) == (inputs is not None) for spec in specs)
        for image, own in zip(made, inputs or (), strict=inputs is not None):
            image.pixels = own.pasted(image.pixels)
        return made


def load(*_, **__):
    return Pipeline()


def save(path, seed=0, size=SIZE, mask=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    if mask:
        pixels = np.zeros((size, size), np.uint8)
        pixels[10:30, 20:40] = 255
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def files(tmp_path):
    return save(tmp_path / "a.png"), save(tmp_path / "b.png", seed=1), save(tmp_path / "m.png", mask=True)


def words(files, *more):
    a, b, m = map(str, files)
    rows = [
        {"prompt": "a fox", "image": a, "strength": 0.5},
        {"prompt": "an owl"},
        {"prompt": "a hat", "image": b, "mask": m},
    ]
    size = (f"height={SIZE}", f"width={SIZE}", "sampler.num_inference_steps=10", "batch_size_per_device=8")
    return ("model=local", f"model.path={tiny()}", f"prompts.rows={hydra_value(rows)}", *size, *more)


@pytest.fixture
def run(files, tmp_path):
    return start_run(config(*words(files, f"output={tmp_path / 'run'}")), load=load)


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def line_of(act, *arguments, **options):
    with pytest.raises(UserError) as caught:
        act(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


def test_config_manifest_and_pictures_say_what_the_images_start_from(run, files):
    a, b, m = files
    fox, owl, hat = sorted(manifest(run), key=lambda line: line["row"])
    assert (fox["image"], fox["image_sha256"], fox["strength"]) == (str(a), sha256(a), 0.5)
    assert fox["resize"] == "fill" and not {"mask", "mask_sha256", "paste_back", "mask_feather"} & set(fox)
    assert not {"image", "image_sha256", "strength", "resize", "mask"} & set(owl)
    assert (hat["image_sha256"], hat["mask_sha256"], hat["strength"]) == (sha256(b), sha256(m), 0.8)
    assert (hat["paste_back"], hat["mask_feather"]) == (True, 0)
    own = [row.get("image_sha256") for row in read_config(run)["prompts"]["rows"]]
    assert own == [sha256(a), None, sha256(b)]
    assert list(faults(run)) == []
    made, masked = np.asarray(Image.open(run / hat["file_name"])), np.asarray(Image.open(m)) > 0
    np.testing.assert_array_equal(made[~masked], np.asarray(Image.open(b))[~masked])


@pytest.mark.slow
def test_the_command_of_an_image_makes_it_again(run):
    saved = read_saved(run)
    for spec in make_specs(saved):
        (line,) = (line for line in manifest(run) if line["row"] == spec.row)
        made = config(*read_recipe(run / line["file_name"]).overrides)
        (again,) = make_specs(saved_config(made, rows=run_rows(made), height=SIZE, width=SIZE))
        assert again == spec
        assert (again.picture and again.picture.image) == (spec.picture and spec.picture.image)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_pictures_alone(run, files, tmp_path):
    a, _, m = files
    (run / "images" / "00000-000.png").unlink()
    resume_run(run, ["num_images_per_prompt=2"], load=load)
    assert len(manifest(run)) == 6 and list(faults(run)) == []
    assert "strength" in line_of(resume_run, run, ["strength=0.3"], load=load)
    assert "paste_back" in line_of(resume_run, run, ["paste_back=false"], load=load)
    kept = shutil.move(m, tmp_path / "kept.png")
    assert "row 2: mask=" in line_of(resume_run, run, ["num_images_per_prompt=3"], load=load)
    shutil.move(kept, m)
    save(a, seed=5)
    line = line_of(resume_run, run, ["num_images_per_prompt=3"], load=load)
    assert "row 0: image=" in line and "is another file" in line and len(manifest(run)) == 6


def test_a_complete_run_needs_its_pictures_no_more(run, files, capsys):
    for file in files:
        file.unlink()
    resume_run(run, [], load=load)
    assert "complete, 3 images" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_is_made_again_from_its_own_config(run, files, tmp_path, capsys):
    assert reproduce(run, [f"output={tmp_path / 'again'}"], load=load)
    report = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert report["counts"] == {"identical": 3} and report["changed"] == []
    save(files[1], seed=5)
    assert reproduce_main([str(run), f"output={tmp_path / 'third'}"]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()[-1:]
    assert "row 2: image=" in line and "is another file" in line and not (tmp_path / "third").exists()


@pytest.mark.slow
def test_a_run_is_made_again_from_another_picture_where_one_is_given(files, tmp_path, monkeypatch):
    """Of the row that has the run's picture; the other row has its own."""
    a, b, m = files
    rows = hydra_value([{"prompt": "a fox"}, {"prompt": "an owl", "image": str(b)}])
    monkeypatch.chdir(tmp_path)
    fields = words(files, f"prompts.rows={rows}", "image=a.png", "mask=m.png")
    run = start_run(config(*fields, f"output={tmp_path / 'run'}"), load=load)
    other, white = save(tmp_path / "c.png", seed=9), save(tmp_path / "white.png", size=SIZE)

    def inputs(*overrides, name):
        reproduce(run, [*overrides, f"output={tmp_path / name}"], load=load)
        return [(line["image_sha256"], line.get("mask_sha256")) for line in manifest(tmp_path / name)]

    masked = sha256(m)
    assert inputs(name="same") == [(sha256(a), masked), (sha256(b), masked)]
    assert inputs(f"image={other}", name="other") == [(sha256(other), masked), (sha256(b), masked)]
    assert inputs(f"mask={white}", name="white") == [(sha256(a), sha256(white)), (sha256(b), sha256(white))]
    assert inputs("mask=null", name="none") == [(sha256(a), None), (sha256(b), None)]


@pytest.mark.slow
@pytest.mark.parametrize("resize", ["fit", "bucket"])
def test_sizes_that_a_run_took_from_its_pictures_stay(files, tmp_path, resize):
    run = start_run(config(*words(files, f"resize={resize}", f"output={tmp_path / 'run'}")), load=load)
    assert "decided its sizes" in line_of(reproduce, run, ["resize=pad"], load=load)


@pytest.mark.slow
def test_a_run_with_buckets_goes_on_and_is_made_again_at_the_same_sizes(tmp_path):
    shapes = [(96, 24), (48, 48), (47, 50), (30, 70)]
    files = [tmp_path / f"{i}.png" for i in range(len(shapes))]
    for file, shape in zip(files, shapes, strict=True):
        Image.new("RGB", shape[::-1], "teal").save(file)
    rows = hydra_value([{"prompt": f"a {i}", "image": str(file)} for i, file in enumerate(files)])
    size = [f"height={SIZE}", f"width={SIZE}", "resize=bucket"]
    made = config(f"prompts.rows={rows}", f"output={tmp_path / 'run'}", *size)
    run = start_run(made, load=load)
    sizes = [(line["height"], line["width"]) for line in manifest(run)]
    assert len(set(sizes)) == 3 and sizes[1] == sizes[2] == (SIZE, SIZE) and all(h * w <= SIZE**2 for h, w in sizes)
    lines = (run / "manifest.jsonl").read_bytes().splitlines(keepends=True)
    (run / "manifest.jsonl").write_bytes(b"".join(lines[:2]))
    resume_run(run, [], load=load)
    assert manifest(run) == [json.loads(line) for line in lines] and list(faults(run)) == []
    assert reproduce(run, [f"output={tmp_path / 'again'}"], load=load)


@pytest.mark.slow
def test_a_picture_that_changes_while_the_run_is_made_ends_it_with_a_line(files, tmp_path):
    """The third batch's picture changes while the first batch is made; until then one batch is read ahead."""
    last = save(tmp_path / "c.png", seed=2)

    class Changing(Pipeline):
        def generate(self, specs, tables, **options):
            if not self.batches:
                save(last, seed=5)
            return super().generate(specs, tables, **options)

    rows = hydra_value([{"prompt": "a", "image": str(path)} for path in (*files[:2], last)])
    fields = words(files, f"prompts.rows={rows}", "num_images_per_prompt=8", f"output={tmp_path / 'run'}")
    line = line_of(start_run, config(*fields), load=lambda *_, **__: Changing())
    assert f"image={last}: has changed since the run began" in line
    assert {line["row"] for line in manifest(tmp_path / "run")} == {0, 1}
    save(last, seed=2)
    resume_run(tmp_path / "run", [], load=load)
    assert len(manifest(tmp_path / "run")) == 24 and list(faults(tmp_path / "run")) == []


@pytest.mark.slow
def test_a_cluster_makes_the_same_images_and_lines(files, tmp_path, monkeypatch):
    pipelines = [Pipeline(), Pipeline()]
    on = dict(zip(("host 0", "host 1"), pipelines, strict=True))
    hosts = FakeHosts(pipelines=on, open_model=lambda place, model: open_model(model))
    monkeypatch.setattr(ray, "check_cluster", lambda address: None)
    monkeypatch.setattr(ray.RayHosts, "connect", lambda config: hosts)
    made = {}
    for name, more in (("local", []), ("cluster", ["executor=ray"])):
        fields = words(files, "num_images_per_prompt=4", f"output={tmp_path / name}", *more)
        path = start_run(config(*fields), load=load)
        lines = sorted((path / "manifest.jsonl").read_bytes().splitlines())
        made[name] = lines, {image.name: image.read_bytes() for image in (path / "images").iterdir()}
    assert made["local"] == made["cluster"] and len(made["local"][0]) == 12
    assert any(any(pipeline.with_pictures) for pipeline in pipelines)


@pytest.mark.slow
def test_an_inpainting_checkpoint_makes_images_with_masks_alone(files):
    fields = words(files, f"model.path={tiny('sd1_inpaint')}")
    line = line_of(prepare_run, config(*fields))
    assert line.startswith(
        "model=local: makes the masked part of a picture, and row 0 has no mask; add image=FILE mask="
    )
    made = prepare_run(config(*fields, f"image={files[0]}", f"mask={files[2]}"))
    assert [row.mask for row in made.config.prompts.rows] == [str(files[2])] * 3


def test_the_page_has_a_thumbnail_of_each_input_that_is_as_it_was(run, files):
    thumbnails = {path: run / ".thumbs" / f"input-{sha256(path)[:16]}-{SIZE}x{SIZE}.webp" for path in files}
    for thumbnail in thumbnails.values():
        with Image.open(thumbnail) as small:
            assert small.size == (SIZE, SIZE)
        thumbnail.unlink()
    (data,) = re.findall(r"<script[^>]*application/json[^>]*>(.*?)</script>", (run / "index.html").read_text(), re.S)
    assert json.loads(data)["jobs"][0]["settings"]["strength"] == 0.8
    a, b, m = files
    save(a, seed=5)
    b.unlink()
    os.mkfifo(b)
    write_results(run)
    assert [thumbnails[path].exists() for path in files] == [False, False, True]
    assert list(faults(run)) == []


@pytest.mark.slow
@pytest.mark.parametrize("in_rows", [False, True])
def test_a_picture_of_the_package_is_known_by_its_name(tmp_path, in_rows):
    names = {"image": "asset:portrait", "mask": "asset:eyes"}
    rows = hydra_value([{"prompt": "glasses"} | (names if in_rows else {})])
    given = [] if in_rows else [f"{name}={value}" for name, value in names.items()]
    run = start_run(config(f"prompts.rows={rows}", f"output={tmp_path / 'run'}", *given), load=load)
    (line,) = manifest(run)
    assets = Path(tpusd.__file__).parent / "assets" / "pictures"
    for name, file in {"image": assets / "portrait.png", "mask": assets / "eyes.png"}.items():
        assert line[name] == names[name] and line[f"{name}_sha256"] == sha256(file)
    assert str(assets) not in (run / "config.yaml").read_text() + (run / "index.html").read_text()
    assert reproduce(run, [f"output={tmp_path / 'again'}"], load=load)


@pytest.mark.parametrize("name", ["hat", "", "../tiny/unet/config", "portrait.png"])
def test_another_name_is_one_line_that_lists_them(name):
    line = line_of(config, f"prompts.rows={hydra_value([{'prompt': 'a', 'image': f'asset:{name}'}])}")
    assert "the package holds no such picture; it holds eyes, outline, portrait" in line


@pytest.mark.parametrize(("resize", "red"), [("fill", 1.0), ("pad", 0.125), ("stretch", 0.5)])
def test_an_input_is_shown_as_its_image_got_it(tmp_path, resize, red):
    """A picture four times as wide as high, red in the middle half: cut, padded or pressed together."""
    pixels = np.zeros((SIZE, 4 * SIZE, 3), np.uint8)
    pixels[:, SIZE:-SIZE, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    rows = hydra_value([{"prompt": "a fox", "image": str(tmp_path / "wide.png")}])
    size = [f"height={SIZE}", f"width={SIZE}", f"resize={resize}"]
    run = start_run(config(f"prompts.rows={rows}", f"output={tmp_path / 'run'}", *size), load=load)
    with Image.open(run / ".thumbs" / f"input-{sha256(tmp_path / 'wide.png')[:16]}-{SIZE}x{SIZE}.webp") as shown:
        share = (np.asarray(shown.convert("RGB"))[..., 0] > 128).mean()
    assert share == pytest.approx(red, abs=0.03)


@pytest.mark.slow
def test_a_strength_that_makes_no_step_is_refused_with_its_row(files, tmp_path):
    line = line_of(prepare_run, config(*words(files, "strength=0.05")))
    assert line == (
        "prompts: row 2: strength=0.05: makes no step of sampler.num_inference_steps=10; use strength=0.1 or more"
    )
    rows = hydra_value([{"prompt": "a fox", "image": str(files[0]), "strength": 0.5, "num_inference_steps": 1}])
    assert "use strength=1 or more" in line_of(prepare_run, config(*words(files, f"prompts.rows={rows}")))


@pytest.mark.slow
def test_the_dry_run_counts_the_programs_of_pictures(files, capsys):
    """Encode, decode, one for pictures, and a denoiser for images from noise and one for those from pictures."""
    show_plan([RunToShow(name="", config=config(*words(files)))], prepare_run)
    first, last = capsys.readouterr().out.splitlines()
    assert "3 images in 2 batches" in first and "5 programs" in first and "5 compilations" in last


def test_inputs_are_read_once_and_few_are_held(files, monkeypatch):
    read = []

    def counted(picture, size):
        read.append(picture.image)
        return read_input(picture, size)

    monkeypatch.setattr(reader, "read_input", counted)
    made = config(*words(files, "num_images_per_prompt=40"))
    specs = [spec for spec in make_specs(saved_config(made, rows=run_rows(made), height=SIZE, width=SIZE))]
    from_pictures = [spec for spec in specs if spec.picture is not None]
    batches = [Batch(entries=((None, spec),)) for spec in from_pictures]
    inputs = reader.InputReader()
    try:
        for batch in inputs.ahead(batches):
            (one,) = inputs.of(batch.specs)
            assert one.pixels.shape == (SIZE, SIZE, 3)
            assert len(inputs._read) <= 2 + reader.HELD
    finally:
        inputs.close()
    assert sorted(read) == sorted(map(str, files[:2]))
