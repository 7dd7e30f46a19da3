"""A run against a reference: files of features, folders, and what is wrong with them."""

import dataclasses
import io
import json
import resource
import zipfile

import numpy as np
import pytest
from PIL import Image
from support.runs import INLINE, StandInPipeline, config, prepare

from tpusd.records.set_scores import read_set_scores
from tpusd.runs.start import start_run
from tpusd.score import main
from tpusd.scores.distances import frechet_distance, gaussian, gaussian_distance, kernel_distance
from tpusd.scores.sets import SET_METRICS
from tpusd.validate import main as validate_main

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def path(tmp_path):
    return start_run(
        config(f"output={tmp_path / 'run'}", INLINE, "num_images_per_prompt=2"),
        prepare=prepare,
        load=lambda *_: StandInPipeline(),
    )


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def lie(path):
    """A header that promises 16 TB."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 2048)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("features.npy", header.getvalue())
    return path


def drawn(seed, number):
    return np.random.default_rng(seed).normal(size=(number, 4))


def test_fid_and_kid_of_given_features_are_in_the_run_and_on_its_page(path, tmp_path, capsys):
    own, other = drawn(1, 6), drawn(2, 9)
    mine, reference = save(tmp_path / "a.npz", features=own), save(tmp_path / "b.npz", features=other)
    assert main([str(path), "metric=fid,kid", f"features={mine}", f"reference={reference}"]) == 0
    assert f"fid of 6 images against {reference}: " in capsys.readouterr().out
    scores = {score.metric: score for score in read_set_scores(path)}
    assert scores["fid"].value == pytest.approx(frechet_distance(gaussian(own), gaussian(other)))
    assert scores["kid"].value == kernel_distance(own, other) and scores["kid"].num_reference == 9
    data = json.loads((path / "index.html").read_text().split('id="data">')[1].split("</script>")[0])
    assert [title for title, _ in data["facts"]][-1] == "Scores of all images"
    covariance = np.cov(other, rowvar=False)
    statistics = save(tmp_path / "c.npz", mu=other.mean(axis=0), sigma=covariance)
    assert main([str(path), "metric=fid", f"features={mine}", f"reference={statistics}"]) == 0
    assert read_set_scores(path)[-1].value == pytest.approx(scores["fid"].value)


class Bright:
    """Features that follow from the pixels alone."""

    weights = "b" * 64

    def __call__(self, pictures):
        return np.array([np.asarray(one.convert("RGB"), np.float64).mean(axis=(0, 1)) / 255 for one in pictures])


def test_cmmd_reads_folders_and_runs(path, tmp_path, monkeypatch, capsys):
    bright = dataclasses.replace(SET_METRICS["cmmd"], embed=lambda places: Bright())
    monkeypatch.setitem(SET_METRICS, "cmmd", bright)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (number * 90, 30, 200)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("x")
    assert main([str(path), "metric=cmmd", f"reference={folder}"]) == 0
    own = Bright()(Image.open(path / "images" / f"0000{row}-00{copy}.png") for row in range(3) for copy in range(2))
    other = Bright()(Image.open(folder / f"{number}.png") for number in range(3))
    assert read_set_scores(path)[0].value == pytest.approx(gaussian_distance(own, other))
    assert main([str(path), "metric=cmmd", f"reference={path}"]) == 0
    assert read_set_scores(path)[1].value == pytest.approx(0, abs=1e-9) and read_set_scores(path)[1].weights == "b" * 64
    (folder / "2.png").write_bytes(b"broken")
    assert main([str(path), "metric=cmmd", f"reference={folder}"]) == 2
    assert "2.png: is not a PNG, JPEG or WebP picture; remove it" in capsys.readouterr().err
    (path / "images" / "00000-000.png").unlink()
    assert main([str(path), "metric=cmmd", f"reference={path}"]) in (1, 2)


WRONG = {
    ("metric=fid",): "metric=fid: give reference=",
    ("metric=fid", "reference={b}"): "give inception.path=FILE, the weights of InceptionV3",
    ("metric=fid", "features={few}", "reference={b}"): "has 3 rows, and the run has 6 images",
    ("metric=fid", "features={a}", "reference={wide}"): "mu is of 5 numbers for each picture",
    ("metric=fid", "features={a}", "reference={negative}"): "sigma is not a covariance",
    ("metric=fid", "features={a}", "reference={lie}"): "has more or fewer bytes than its header says",
    ("metric=fid,kid", "features={a}", "reference={statistics}"): "kid needs `features`",
    ("metric=kid", "features={a}", "reference={statistics}"): "kid needs `features`",
    ("metric=fid", "features={a}", "reference={objects}"): "is not a readable npz file",
    ("metric=fid", "features={a}", "reference={nan}"): "is not an array of finite floats",
    ("metric=fid", "features={a}", "reference={text}"): "is not a readable npz file",
    ("metric=fid", "features={a}", "reference={folder}"): "must be an .npz file where features= is given",
    ("metric=colorfulness", "reference={b}"): "reference: has no effect without metric=",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_reference_is_one_line(path, tmp_path, words, capsys):
    (tmp_path / "text.npz").write_text("x")
    files = {
        "a": save(tmp_path / "a.npz", features=drawn(1, 6)),
        "b": save(tmp_path / "b.npz", features=drawn(2, 6)),
        "few": save(tmp_path / "few.npz", features=drawn(2, 3)),
        "wide": save(tmp_path / "wide.npz", mu=np.zeros(5), sigma=np.eye(5)),
        "statistics": save(tmp_path / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4)),
        "negative": save(tmp_path / "negative.npz", mu=np.zeros(4), sigma=-np.eye(4)),
        "lie": lie(tmp_path / "lie.npz"),
        "objects": save(tmp_path / "objects.npz", features=np.array([[{}]], dtype=object)),
        "nan": save(tmp_path / "nan.npz", features=np.full((4, 4), np.nan)),
        "text": tmp_path / "text.npz",
        "folder": tmp_path,
    }
    assert main([str(path), *(word.format(**files) for word in words)]) == 2
    error = capsys.readouterr().err
    assert WRONG[words] in error and error.count("\n") == 1
    assert read_set_scores(path) == []  # nothing is computed before all is checked


@pytest.mark.slow
def test_a_bomb_is_refused_by_its_header(path, tmp_path, capsys):
    """A gigabyte of zeros in a megabyte, of another width than the run's features."""
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("features.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (90_000, 1500)})
        for _ in range(90):
            file.write(bytes(1000 * 1500 * 8))
    mine = save(tmp_path / "a.npz", features=drawn(1, 6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main([str(path), "metric=fid", f"features={mine}", f"reference={bomb}"]) == 2
    assert "features is of 1500 numbers for each picture, and the run has 4" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


def test_a_broken_file_of_set_scores_is_named(path, tmp_path, capsys):
    files = [
        f"features={save(tmp_path / 'a.npz', features=drawn(1, 6))}",
        f"reference={save(tmp_path / 'b.npz', features=drawn(2, 9))}",
    ]
    assert main([str(path), "metric=fid", *files]) == 0 and validate_main([str(path)]) == 0
    for broken in (b"not json", b"{}", b'[{"metric": 1}]'):
        (path / "scores" / "sets.json").write_bytes(broken)
        assert validate_main([str(path)]) == 1
        assert "scores/sets.json: holds something that is not a score" in capsys.readouterr().out
    assert main([str(path), "metric=fid", *files]) == 0 and validate_main([str(path)]) == 0


class Counted(Bright):
    """Bright, whose calls are counted. seen: pictures of each call."""

    def __init__(self):
        self.seen = []

    def __call__(self, pictures):
        listed = list(pictures)
        self.seen.append(len(listed))
        return super().__call__(listed)


def test_fid_and_kid_share_features_and_keep_those_of_a_reference(path, tmp_path, monkeypatch, capsys):
    counted = Counted()
    for name in ("fid", "kid"):
        monkeypatch.setitem(SET_METRICS, name, dataclasses.replace(SET_METRICS[name], embed=lambda places: counted))
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number * 50, 30, 200 - number)).save(folder / f"{number}.png")
    words = [str(path), "metric=fid,kid", f"reference={folder}"]
    assert main(words) == 0 and counted.seen == [6, 5]  # the run and the reference, each once
    first = read_set_scores(path)
    own = Bright()(Image.open(path / "images" / f"0000{row}-00{copy}.png") for row in range(3) for copy in range(2))
    other = Bright()(Image.open(folder / f"{number}.png") for number in range(5))
    assert first[0].value == pytest.approx(frechet_distance(gaussian(own), gaussian(other)))
    assert first[1].value == pytest.approx(kernel_distance(own, other)) and first[1].weights == "b" * 64
    assert main(words) == 0 and counted.seen == [6, 5, 6] and read_set_scores(path) == first
    (kept,) = (tmp_path / "cache" / "tpusd" / "features").iterdir()
    kept.write_bytes(b"broken")
    assert main(words) == 0 and counted.seen == [6, 5, 6, 6, 5] and read_set_scores(path) == first
    Image.new("RGB", (8, 8), "white").save(folder / "4.png")
    assert main(words) == 0 and counted.seen[-1] == 5 and read_set_scores(path)[-2].value != first[0].value


def test_a_picture_that_is_missing_is_named_once(path, tmp_path, monkeypatch, capsys):
    for name in ("fid", "kid"):
        monkeypatch.setitem(SET_METRICS, name, dataclasses.replace(SET_METRICS[name], embed=lambda places: Bright()))
    reference = save(tmp_path / "b.npz", features=np.random.default_rng(1).random((9, 3)))
    (path / "images" / "00000-000.png").unlink()
    assert main([str(path), "metric=fid,kid", f"reference={reference}"]) == 1
    assert capsys.readouterr().err.count("images/00000-000.png: is not scored") == 1
