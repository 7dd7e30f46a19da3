"""Checkpoint directories from strangers: a clear error, soon, in little memory, and no code of theirs run."""

import json
import os
import struct
import time
import tracemalloc

import jax.numpy as jnp
import pytest
from support.checkpoints import UNET, copy, edit, error_of, hollow, opened, tiny
from support.original_files import UNET as ORIGINAL_UNET

from tpusd.checkpoints import load_weights

SECONDS = 5.0
BYTES = 64 << 20


@pytest.fixture(autouse=True)
def bounded():
    """Every test here is about an input that must be refused soon and cheaply."""
    opened(tiny())  # imports and the first tokenizer are not the input's cost
    tracemalloc.start()
    start = time.monotonic()
    yield
    assert time.monotonic() - start < SECONDS
    assert tracemalloc.get_traced_memory()[1] < BYTES
    tracemalloc.stop()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(
    "part, changes",
    [
        ("unet", {"block_out_channels": [10**9, 10**9]}),
        ("unet", {"block_out_channels": [16] * 100_000}),
        ("unet", {"block_out_channels": []}),
        ("unet", {"block_out_channels": "1632"}),
        ("unet", {"block_out_channels": 16}),
        ("unet", {"block_out_channels": [16, -32]}),
        ("unet", {"block_out_channels": [16, "32"]}),
        ("unet", {"block_out_channels": [16, [32]]}),
        ("unet", {"block_out_channels": {"0": 16}}),
        ("unet", {"layers_per_block": 10**6}),
        ("unet", {"layers_per_block": 32, "transformer_layers_per_block": 30}),
        ("unet", {"layers_per_block": 8, "transformer_layers_per_block": 20}),  # a limit away, and not in the file
        ("text_encoder", {"num_hidden_layers": 200}),
        ("vae", {"layers_per_block": 32}),
        ("unet", {"layers_per_block": True}),
        ("unet", {"layers_per_block": 0}),
        ("unet", {"layers_per_block": 10**400}),
        ("unet", {"layers_per_block": 32, "transformer_layers_per_block": 128}),
        ("unet", {"transformer_layers_per_block": [1, 10**6]}),
        ("unet", {"attention_head_dim": 0}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_eps": 10**400}),
        ("unet", {"cross_attention_dim": 10**9}),
        ("unet", {"down_block_types": [1, 2]}),
        ("unet", {"addition_embed_type": ["text_time"]}),
        ("vae", {"block_out_channels": None}),
        ("vae", {"block_out_channels": 7}),
        ("vae", {"scaling_factor": "big"}),
        ("vae", {"layers_per_block": 10**6}),
        ("text_encoder", {"num_hidden_layers": 10**6}),
        ("text_encoder", {"num_attention_heads": 0}),
        ("text_encoder", {"vocab_size": 10**12}),
        ("text_encoder", {"hidden_act": ["gelu"]}),
        ("text_encoder", {"hidden_act": {"a": 1}}),
    ],
)
def test_absurd_configs_are_refused(tmp_path, part, changes):
    root = copy(tmp_path)
    edit(root / part / "config.json", **changes)
    assert part in error_of(root)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"7",
        b"{",
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b'{"a": 1' + b"0" * 5000 + b"}",
    ],
    ids=["empty", "list", "null", "number", "torn", "utf16", "nested", "nested-maps", "nan", "digits"],
)
def test_broken_json_is_refused(tmp_path, name, content):
    root = copy(tmp_path)
    (root / name).write_bytes(content)
    assert name.split("/")[0] in error_of(root)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"]
)
def test_huge_small_files_are_not_read(tmp_path, name):
    root = copy(tmp_path)
    with open(root / name, "wb") as file:
        file.truncate(1 << 40)  # a hole: no disk is used
    assert "larger than" in error_of(root)


def test_oversized_safetensors_headers_are_not_read(tmp_path):
    root = copy(tmp_path)
    for declared, size in ((2**63, 100), (1 << 40, 1 << 41), (90 << 20, 1 << 30)):
        with open(root / UNET, "wb") as file:
            file.write(struct.pack("<Q", declared) + b"{")
            file.truncate(size)
        assert "header" in error_of(root)


@pytest.mark.slow
def test_declared_tensors_must_lie_in_the_file(tmp_path):
    root = copy(tmp_path)
    for tensors in (
        {"a": {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}},
        {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
        {"a": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 8]}},
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
    ):
        header = json.dumps(tensors).encode()
        (root / UNET).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        assert "not a whole safetensors file" in error_of(root)


@pytest.mark.parametrize(
    "shapes",
    [{"a": [700_000_000]}, {f"a{i}": [200_000_000] for i in range(150)}, {"a": [65_536, 65_536, 3, 3]}],
)
def test_weights_larger_than_any_network_are_refused(tmp_path, shapes):
    root = copy(tmp_path)
    hollow(root / UNET, shapes)
    assert "ten times the largest published network" in error_of(root)


@pytest.mark.slow
def test_names_from_a_file_cannot_reach_the_terminal(tmp_path):
    root = copy(tmp_path)
    header = json.dumps(
        {"\x1b[2J\n\u202e" + "x" * 5000: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    ).encode()
    (root / UNET).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    line = error_of(root, lambda c: load_weights(c, "unet", param_dtype=jnp.float32))  # asserts that it is printable
    assert len(line) < 3000
    edit(root / "unet/config.json", **{"\x1b[2J": ["\n"] * 100_000})
    assert len(error_of(root)) < 3000
    edit(root / "model_index.json", _class_name="\x1b[31m")
    error_of(root)


@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", UNET, "tokenizer/merges.txt", "tokenizer/notes.txt"]
)
def test_links_out_of_the_directory_are_refused(tmp_path, name):
    root = copy(tmp_path)
    outside = tmp_path / "secret"
    outside.write_bytes((tiny() / name).read_bytes() if (tiny() / name).exists() else b"secret")
    (root / name).unlink(missing_ok=True)
    (root / name).symlink_to(outside)
    assert "leads out of the checkpoint directory" in error_of(root)


def test_a_folder_that_is_a_link_out_of_the_directory_is_refused(tmp_path):
    root = copy(tmp_path)
    (root / "unet").rename(tmp_path / "unet")
    (root / "unet").symlink_to(tmp_path / "unet")
    assert "leads out of the checkpoint directory" in error_of(root)


def test_links_within_the_directory_and_to_the_directory_are_followed(tmp_path):
    root = copy(tmp_path)
    (root / "vae/config.json").rename(root / "vae/real.json")
    (root / "vae/config.json").symlink_to("real.json")
    (tmp_path / "link").symlink_to(root)
    assert opened(tmp_path / "link").family.name == "stable_diffusion"


def cache_layout(tmp_path):
    """The Hub's cache: snapshots/COMMIT/... are links to blobs/HASH."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--owner--name" / "snapshots" / commit
    blobs = tmp_path / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    for i, file in enumerate(f for f in tiny().rglob("*") if f.is_file()):
        (blobs / str(i)).write_bytes(file.read_bytes())
        link = root / file.relative_to(tiny())
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(i), link.parent))
    return root, blobs


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    root, _ = cache_layout(tmp_path)
    assert opened(root).family.name == "stable_diffusion"


def test_the_hubs_layout_does_not_open_the_rest_of_the_machine(tmp_path):
    root, blobs = cache_layout(tmp_path)
    blobs.rename(tmp_path / "elsewhere")
    blobs.symlink_to(tmp_path / "elsewhere")
    assert "leads out of the checkpoint directory" in error_of(root)


def test_devices_pipes_and_loops_are_refused(tmp_path):
    root = copy(tmp_path)
    for name in ("unet/config.json", UNET, "tokenizer/vocab.json"):
        data = (root / name).read_bytes()
        for make in (os.mkfifo, os.mkdir, lambda p: os.symlink(p, p), lambda p: os.symlink("/dev/zero", p)):
            (root / name).unlink()
            make(root / name)
            assert name.split("/")[0] in error_of(root)
            os.rmdir(root / name) if (root / name).is_dir() else os.unlink(root / name)
            (root / name).write_bytes(data)
    assert opened(root).family.name == "stable_diffusion"


def test_code_named_by_a_checkpoint_is_not_run(tmp_path):
    root = copy(tmp_path)
    for folder in ("tokenizer", "unet", "."):
        (root / folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    edit(
        root / "tokenizer/tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        tokenizer_class="Evil",
    )
    opened(root)
    edit(root / "model_index.json", unet=["evil", "Evil"])
    error_of(root)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name, content",
    [
        ("vocab.json", b'{"a": "b"}'),
        ("vocab.json", b'{"a": -1}'),
        ("vocab.json", b"{}"),
        ("merges.txt", b"\xff\xff"),
        ("merges.txt", b"#version: 0.2\na b c d\n"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Nope"}}'),
        ("special_tokens_map.json", b'{"bos_token": 7}'),
        ("special_tokens_map.json", b'{"pad_token": null}'),
        ("tokenizer_config.json", b'{"pad_token": {"__type": "os.system"}}'),
        ("tokenizer_config.json", b'{"bos_token": "<|endoftext|>", "eos_token": null}'),
    ],
)
def test_broken_tokenizers_give_one_line_or_work(tmp_path, name, content):
    from tpusd.errors import UserError

    root = copy(tmp_path)
    (root / "tokenizer" / name).write_bytes(content)
    try:
        ids = opened(root).tokenizers[0](["a cat"]).input_ids
    except UserError as error:
        assert "\n" not in str(error) and "tokenizer" in str(error)
    else:
        assert ids.shape == (1, 77)


FIRST = {f"{ORIGINAL_UNET}input_blocks.0.0.weight": ("F32", [16, 4, 3, 3], 16 * 4 * 9 * 4)}
LAYER = f"{ORIGINAL_UNET}input_blocks.1.1.proj_in"
FP8 = FIRST | {f"{LAYER}.weight": ("F8_E4M3", [4, 4], 16)}


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, "tiny"])
@pytest.mark.parametrize(
    "tensors, metadata",
    [
        (FIRST, None),
        (FIRST | {f"{ORIGINAL_UNET}x{i}": ("F32", [0], 0) for i in range(20_000)}, None),
        (FIRST | {f"{ORIGINAL_UNET}huge": ("F32", [1 << 20, 1 << 12], 1 << 34)}, None),
        (FP8 | {f"{LAYER}.scale_weight": ("F32", [1 << 20, 1], 1 << 22)}, None),
        (FP8 | {f"{LAYER}.comfy_quant": ("U8", [1 << 24], 1 << 24)}, None),
        (FP8 | {f"{LAYER}.comfy_quant": ("U8", [4], 4)}, None),
        (FIRST, {"_quantization_metadata": "[" * 100_000}),
        (FIRST, {"_quantization_metadata": '{"layers": {"x": {"format": ["a"]}}}'}),
        (FIRST, {"modelspec.prediction_type": "v" * 100_000}),
    ],
    ids=lambda value: "" if value is None else str(len(value)),
)
def test_single_files_of_strangers_are_one_line(tmp_path, tensors, metadata, config):
    """Headers that promise too much, a scale of another size, text that is not JSON, and very many odd names."""
    header, start = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
    source = {} if config is None else {"config": str(tiny())}
    line = error_of(
        tmp_path / "x.safetensors",
        lambda checkpoint: load_weights(checkpoint, "unet", param_dtype=jnp.float32),
        **source,
    )
    assert len(line) < 3000
