"""Pictures at addresses: fetched once, pinned, and what cannot be fetched is one line with its row."""

import functools
import http.server
import io
import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from PIL import Image
from support.runs import StandInPipeline, config, manifest, prepare

from tpusd.config.grammar import hydra_value
from tpusd.errors import UserError
from tpusd.inputs import addresses
from tpusd.inputs.addresses import local_file
from tpusd.prompts.rows import run_rows
from tpusd.records.validate import faults
from tpusd.runs.reproduce import reproduce
from tpusd.runs.resume import resume_run
from tpusd.runs.start import start_run

pytestmark = pytest.mark.usefixtures("one_device")


class Pipeline(StandInPipeline):
    def generate(self, specs, tables, *, inputs=None, **options):
        return super().generate(specs, tables, **options)


def load(*_, **__):
    return Pipeline()


def png(seed=0):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 40, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def bucket(monkeypatch):
    """The address of a folder of an object store in memory, as a process sees it that has fetched nothing."""
    monkeypatch.setattr(addresses, "_fetched", {})
    return f"memory://{uuid.uuid4().hex}"


def put(address, data):
    with fsspec.open(address, "wb") as file:
        file.write(data)
    return address


def line_of(act, *arguments, **options):
    with pytest.raises(UserError) as caught:
        act(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line and line.isprintable()
    return line


@pytest.mark.slow
def test_a_run_starts_from_addresses_goes_on_and_is_made_again(bucket, tmp_path):
    rows = [
        {"prompt": "a", "image": put(f"{bucket}/a.png", png(0))},
        {"prompt": "b", "image": put(f"{bucket}/b.png", png(1))},
    ]
    made = config(f"prompts.rows={hydra_value(rows)}", f"output={tmp_path / 'run'}")
    run = start_run(made, prepare=prepare_with_files, load=load)
    lines = manifest(run)
    assert [line["image"] for line in lines] == [row["image"] for row in rows] and list(faults(run)) == []
    (run / "manifest.jsonl").write_text(json.dumps(lines[0]) + "\n")
    addresses._fetched.clear()  # another process
    resume_run(run, [], prepare=prepare_with_files, load=load)
    assert manifest(run) == lines
    assert reproduce(run, [f"output={tmp_path / 'again'}"], prepare=prepare_with_files, load=load)
    put(rows[1]["image"], png(2))
    addresses._fetched.clear()
    line = line_of(reproduce, run, [f"output={tmp_path / 'other'}"], prepare=prepare_with_files, load=load)
    assert "row 1" in line and "another file" in line and rows[1]["image"] in line


def prepare_with_files(made, *arguments, **options):
    """The stand-in's preparation, with the real check of files."""
    from dataclasses import replace

    from tpusd.inputs.rows import pinned

    prepared = prepare(made)
    saved = prepared.config
    rows = pinned(saved.prompts.rows, made, box=(saved.height, saved.width), multiple=8)
    return replace(prepared, config=replace(saved, prompts=replace(saved.prompts, rows=rows)))


def test_addresses_stay_as_they_are_beside_relative_paths(bucket):
    row = {"prompt": "a", "image": f"{bucket}/a.png", "mask": "s3://b/m.png"}
    (made,) = run_rows(config(f"prompts.rows={hydra_value([row])}"))
    assert (made.image, made.mask) == (row["image"], row["mask"])
    (made,) = run_rows(config("prompts.rows=[{prompt: a}]", "image=https://x.y/a.png?b=c"))
    assert made.image == "https://x.y/a.png?b=c"


def test_an_address_is_fetched_once_and_a_large_one_is_refused(bucket, monkeypatch):
    address = put(f"{bucket}/a.png", png(0))
    file = local_file(address, "image")
    assert file.read_bytes() == png(0) and file.suffix == ".png"
    put(address, png(1))
    assert local_file(address, "image").read_bytes() == png(0)
    monkeypatch.setattr(addresses, "MAX_BYTES", 100)
    assert "is over 0 MiB" in line_of(local_file, put(f"{bucket}/b.png", bytes(101)), "image")


def test_threads_have_one_folder(bucket, monkeypatch):
    monkeypatch.setattr(addresses, "_folder", functools.cache(addresses._folder.__wrapped__))
    names = [put(f"{bucket}/{i}.png", png(i)) for i in range(16)]
    with ThreadPoolExecutor(16) as pool:
        files = list(pool.map(lambda name: local_file(name, "image"), names))
    assert {str(file.parent) for file in files} == {addresses._folder().name}
    assert [file.read_bytes() for file in files] == list(map(png, range(16)))
    addresses._folder().cleanup()


@pytest.mark.parametrize("address", ["memory://nowhere/a.png", "http://127.0.0.1:1/a.png", "s3://no-such-bucket/a.png"])
def test_what_cannot_be_fetched_is_one_line(bucket, address):
    line = line_of(local_file, address, "image")
    assert line.startswith(f"image={address}: ")
    assert any(text in line for text in ("no such file", "pip install", "cannot be fetched", "credentials"))


def test_a_web_server_is_read(bucket, tmp_path):
    pytest.importorskip("aiohttp")
    (tmp_path / "a.png").write_bytes(png(3))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_address[1]}"
        assert local_file(f"{at}/a.png", "image").read_bytes() == png(3)
        assert "no such file" in line_of(local_file, f"{at}/b.png", "image")
        server.shutdown()


@pytest.mark.parametrize("given", ["foo://x.png", "memory://", "ftp://a/b.png"])
def test_what_looks_like_an_address_and_is_none_is_refused(given):
    line = line_of(config, "prompts.rows=[{prompt: a}]", f"image={given}")
    assert line.startswith(f"image={given}: is no address that is read") and "s3://" in line
