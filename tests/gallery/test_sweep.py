import json
import shutil

import pytest
from PIL import Image
from support.sweeps import make

from tpusd.gallery.sweep import write_sweep_results
from tpusd.records.run_json import session_rate
from tpusd.records.sweep import read_sweep
from tpusd.runs.session import summary_line

pytestmark = pytest.mark.slow

AXES = ("sampler=ddim,euler,heun", "guidance_scale=1,2,3", "seed=0,1", "prompts.rows=[{prompt: x}]")


def test_grid_has_the_two_longest_axes_and_the_first_value_of_the_others(tmp_path):
    make(*AXES, f"output={tmp_path / 'sweep'}")
    with Image.open(tmp_path / "sweep" / "grid.png") as grid:
        assert grid.width > 3 * 120 and grid.height > 3 * 72
    for path in (tmp_path / "sweep").glob("*_seed=1"):
        shutil.rmtree(path)
    before = (tmp_path / "sweep" / "grid.png").read_bytes()
    write_sweep_results(tmp_path / "sweep", read_sweep(tmp_path / "sweep"))
    assert (tmp_path / "sweep" / "grid.png").read_bytes() == before


def test_sweep_without_the_grids_runs_has_no_grid(tmp_path):
    path = tmp_path / "sweep"
    make(*AXES, f"output={path}")
    (path / "grid.png").unlink()
    for run in path.glob("*_seed=0"):
        shutil.rmtree(run)
    assert write_sweep_results(path, read_sweep(path)) == path / "index.html" and not (path / "grid.png").exists()


def page_data(path):
    text = (path / "index.html").read_text()
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_details_and_summary_of_a_sweep_speak_of_all_its_runs(tmp_path):
    path = tmp_path / "sweep"
    make("precision=bf16,fp32", "height=24,48", "prompts.rows=[{prompt: x}]", f"output={path}")
    runs = sorted(run for run in path.glob("0*"))
    for number, run in enumerate(runs):
        facts = json.loads((run / "run.json").read_text())
        (environment,) = facts["environments"].values()
        environment["devices"]["kind"] = "TPU v4" if number < 3 else "cpu"
        facts["sessions"][-1]["seconds"] = {"generate": 4.0, "compile": 2.0 * (number == 0), "weights": 1.0}
        facts["created"] = f"2026-11-2{9 - number}T10:00:00"
        (run / "run.json").write_text(json.dumps(facts))
    write_sweep_results(path, read_sweep(path))
    data = page_data(path)
    facts = {title: dict(lines) for title, lines in data["facts"]}
    assert facts["Devices"]["kind"] == "TPU v4 (3 of 4 runs); cpu (1 of 4 runs)"
    assert not {"created", "num_images", "state"} & set(facts["All runs"]) and "Session" not in facts
    summary = data["summary"].split(" · ")
    assert summary[:4] == ["4 runs", "4 images", "tiny, bf16 / tiny, fp32", "40×24 / 40×48"]
    count = facts["Devices"]["count"]
    assert summary[4] == f"{count} × TPU v4 / {count} × cpu"
    assert "0.40 images/s" in summary and summary[-1] == "2026-11-26 10:00"  # 4 images in 1 + 3 * 3 seconds
    assert [job["rate"] for job in data["jobs"]] == [1.0, *[pytest.approx(1 / 3)] * 3]


def test_terminal_and_page_have_one_rate():
    seconds = {"import": 3.0, "load": 1.0, "compile": 4.0, "weights": 2.0, "first_batch": 2.0, "generate": 10.0}
    assert session_rate({"session": {"num_images": 8, "seconds": seconds}}) == 2.0  # without start-up
    assert summary_line(8, seconds).endswith("2.00 images/s")
    for broken in ({}, {"session": {}}, {"session": {"num_images": "8", "seconds": seconds}}, {"session": None}):
        assert session_rate(broken) is None
    assert session_rate({"session": {"num_images": 8, "seconds": {"generate": 1.0, "compile": 2.0}}}) is None


def test_an_images_own_values_are_on_the_page(tmp_path):
    path = tmp_path / "sweep"
    rows = "[{prompt: x}, {prompt: y, seed: 7, guidance_scale: 2, negative_prompt: dark}]"
    make("sampler=ddim,euler", f"prompts.rows={rows}", "seed=3", "guidance_scale=5", f"output={path}")
    images = page_data(path)["images"]
    assert images["seed"] == [3, 7, 3, 7] and images["guidance_scale"] == [5, 2, 5, 2]
    assert images["negative_prompt"] == [None, "dark"] * 2
    assert not {"sampler", "width", "height", "num_inference_steps"} & set(images)
