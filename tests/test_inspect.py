import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoints import copy, tiny
from support.embeddings import pickled_dict, pickled_tensor, write_archive
from support.original_files import UNET, write_original

from tpusd.inspect import main


def inspected(capsys, *argv) -> dict:
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *argv) -> str:
    assert main([*map(str, argv)]) == 2
    captured = capsys.readouterr()
    assert not captured.out and captured.err.count("\n") == 1
    return captured.err


@pytest.mark.slow
def test_a_single_file_is_described_whole(tmp_path, capsys):
    file = write_original(tiny("sdxl"), tmp_path / "x.safetensors", metadata={"modelspec.title": "a tiny one"})
    report = inspected(capsys, file, "--config", tiny("sdxl"))
    assert (report["kind"], report["family"], report["prediction_type"]) == ("checkpoint", "sdxl", "epsilon")
    assert list(report["parts"]) == ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert all("fits" in part and "refused" not in part for part in report["parts"].values())
    assert report["parts"]["unet"]["precision"] == {"float32": report["parts"]["unet"]["tensors"]}
    assert report["metadata"] == {"modelspec.title": "a tiny one"}
    assert report["bytes"] == file.stat().st_size


def test_hashes_are_those_of_civitai(tmp_path, capsys):
    """AutoV1: 64 kB at 1 MB; AutoV2: the whole file; AutoV3: without length and header. By their definitions."""
    file = tmp_path / "x.safetensors"
    save_file({"lora_unet_x.lora_down.weight": np.random.default_rng(0).random((400, 800))}, file)
    data = file.read_bytes()
    assert len(data) > 0x110000
    header = int.from_bytes(data[:8], "little")
    assert inspected(capsys, file)["hashes"] == {
        "sha256": hashlib.sha256(data).hexdigest(),
        "AutoV1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
        "AutoV2": hashlib.sha256(data).hexdigest()[:10],
        "AutoV3": hashlib.sha256(data[8 + header :]).hexdigest()[:12],
    }


@pytest.mark.slow
def test_what_would_be_refused_is_said_and_is_no_error(tmp_path, capsys):
    def change(tensors):
        tensors[UNET + "input_blocks.1.0.odd"] = np.ones(2, np.float32)

    file = write_original(tiny(), tmp_path / "x.safetensors", change)
    assert "give its configs with model.config=DIR" in inspected(capsys, file)["refused"]
    report = inspected(capsys, file, "--config", tiny())
    assert "input_blocks.1.0.odd" in report["parts"]["unet"]["refused"]
    assert "fits" in report["parts"]["vae"]
    assert main([str(file), "--config", str(tiny())]) == 0
    text = capsys.readouterr().out
    assert "    refused: " in text and "family: stable_diffusion" in text


@pytest.mark.parametrize(
    "name, kind", [("lora_te_text_model_x.lora_up.weight", "lora"), ("emb_params", "embedding"), ("x", "unknown")]
)
def test_other_files_are_named(tmp_path, capsys, name, kind):
    save_file({name: np.ones((2, 3), np.float32)}, tmp_path / "x.safetensors", metadata={"ss_base_model": "sd\x1b[1m"})
    report = inspected(capsys, tmp_path / "x.safetensors")
    assert (report["kind"], report["tensors"], report["parameters"]) == (kind, 1, 6)
    assert main([str(tmp_path / "x.safetensors")]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_directory_is_described(tmp_path, capsys):
    report = inspected(capsys, copy(tmp_path))
    assert report["family"] == "stable_diffusion" and "fits" in report["parts"]["unet"]
    assert "unet/config.json" in report["sha256"]


def test_what_is_not_there_is_one_line(tmp_path, capsys):
    assert "no such file or directory" in refused(capsys, tmp_path / "nowhere.safetensors")
    (tmp_path / "x.ckpt").write_bytes(b"x")
    assert "is a pickle" in refused(capsys, tmp_path / "x.ckpt")
    (tmp_path / "x.safetensors").write_bytes(b"x" * 100)
    assert "x.safetensors" in refused(capsys, tmp_path / "x.safetensors")


def test_an_embedding_is_described_also_as_a_pickle(tmp_path, capsys):
    pickled = pickled_dict(**{"<toy>": pickled_tensor((2, 768), (768, 1))})
    file = write_archive(tmp_path / "x.pt", pickled, np.ones((2, 768), np.float32).tobytes())
    report = inspected(capsys, file)
    assert (report["kind"], report["token"], report["vectors"], report["width"]) == ("embedding", "<toy>", 2, "768")
    assert report["for"] == "Stable Diffusion 1.x" and len(report["sha256"]) == 64
    both = {"clip_l": np.ones((3, 768), np.float32), "clip_g": np.ones((3, 1280), np.float32)}
    save_file(both, tmp_path / "ink.safetensors")
    report = inspected(capsys, tmp_path / "ink.safetensors")
    assert (report["token"], report["vectors"], report["for"]) == ("ink", 3, "Stable Diffusion XL")
    assert main([str(file)]) == 0 and "token: <toy>" in capsys.readouterr().out
