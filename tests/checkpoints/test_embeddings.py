"""Embedding files: every format gives the same vectors, and what does not fit or is not one is a line of text."""

import os
import pickle
import time
import zipfile

import numpy as np
import pytest
from support.checkpoints import opened, tiny
from support.embeddings import (
    pickled_dict,
    pickled_tensor,
    text,
    vectors,
    whole,
    write,
    write_archive,
    write_old,
)

from tpusd.checkpoints.adapters import find_embedding, open_embedding
from tpusd.checkpoints.formats.torch_file import Refused, read_torch_file
from tpusd.config.embeddings import EmbeddingConfig
from tpusd.errors import UserError

OWN = vectors(3, 32)
MAX_SECONDS = 5


def fitted(path, layout="sd1", token=None):
    file = find_embedding(EmbeddingConfig(path=str(path)), "embeddings[0]")
    return open_embedding(file, opened(tiny(layout)), "tiny", token)


def widths(layout):
    configs = opened(tiny(layout)).configs
    return [configs[part].hidden_size for part in ("text_encoder", "text_encoder_2") if part in configs]


def archive_of_a1111(path, tensor=OWN):
    """As A1111's training writes it, with further fields."""
    inner = b"}" + text("*") + pickled_tensor(tensor.shape, (tensor.shape[1], 1)) + b"s"
    pickled = pickled_dict(
        string_to_token=b"}" + text("*") + whole(265) + b"s", string_to_param=inner, name=text("ink")
    )
    return write_archive(path, pickled, tensor.tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emb_params", "*", "clip_l", "text_encoders_0"])
def test_a_file_of_one_tensor_has_its_own_name_as_its_word(tmp_path, name):
    made = fitted(write(tmp_path / "ink-1.safetensors", {name: OWN}))
    assert made.token == "ink-1" and made.num_vectors == 3
    np.testing.assert_array_equal(made.vectors[0], OWN)


@pytest.mark.slow
def test_a_file_of_diffusers_has_its_word_inside(tmp_path):
    made = fitted(write(tmp_path / "learned_embeds.safetensors", {"<cat-toy>": OWN[0]}))
    assert made.token == "<cat-toy>" and made.num_vectors == 1
    np.testing.assert_array_equal(made.vectors[0], OWN[:1])


def test_a_word_that_is_given_is_taken(tmp_path):
    assert fitted(write(tmp_path / "a.safetensors", {"<cat-toy>": OWN}), token="toy").token == "toy"


def test_halves_are_read_as_float32(tmp_path):
    made = fitted(write(tmp_path / "a.safetensors", {"emb_params": OWN.astype(np.float16)}))
    np.testing.assert_array_equal(made.vectors[0], OWN.astype(np.float16).astype(np.float32))


@pytest.mark.slow
def test_a_file_for_sdxl_has_vectors_for_both_text_encoders(tmp_path):
    first, second = (vectors(2, width, seed=i) for i, width in enumerate(widths("sdxl")))
    for names in (("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")):
        made = fitted(write(tmp_path / "a.safetensors", dict(zip(names, (first, second), strict=True))), "sdxl")
        np.testing.assert_array_equal(made.vectors[0], first)
        np.testing.assert_array_equal(made.vectors[1], second)


def test_a_pickle_of_a1111_gives_its_vectors(tmp_path):
    made = fitted(archive_of_a1111(tmp_path / "ink.pt"))
    assert made.token == "ink"
    np.testing.assert_array_equal(made.vectors[0], OWN)


def test_a_link_has_the_word_of_its_own_name(tmp_path):
    target = archive_of_a1111(tmp_path / "0123abcd")
    (tmp_path / "ink.pt").symlink_to(target)
    assert fitted(tmp_path / "ink.pt").token == "ink"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "tensors", "said"),
    [
        ("sd1", {"emb_params": vectors(1, 768)}, "of 768 numbers, for Stable Diffusion 1.x, and model=tiny reads 32;"),
        ("sd1", {"emb_params": vectors(1, 1024)}, "for Stable Diffusion 2.x, and"),
        (
            "sd1",
            {"clip_l": vectors(1, 768), "clip_g": vectors(1, 1280)},
            "768 and 1280 numbers, for Stable Diffusion XL",
        ),
        ("sdxl", {"emb_params": vectors(1, 768)}, "of 768 numbers, for Stable Diffusion 1.x, and model=tiny reads"),
        ("sd1", {"emb_params": vectors(1, 33)}, "of 33 numbers, and model=tiny reads 32; choose an embedding for this"),
        ("sd1", {"emb_params": vectors(76, 32)}, r"shape \(76, 32\), and an embedding is 1 to 75 vectors"),
        ("sd1", {"emb_params": OWN[None]}, r"shape \(1, 3, 32\), and an embedding is"),
        ("sd1", {"emb_params": OWN[:0]}, r"shape \(0, 32\), and an embedding is"),
        ("sd1", {"emb_params": OWN * np.nan}, "emb_params has NaN or infinity"),
        ("sd1", {"<a>": OWN, "<b>": OWN}, "has <a>, <b>, and an embedding has one tensor, or clip_l and clip_g"),
        ("sd1", {f"layer.{i}": OWN for i in range(9)}, "has layer.0, layer.1, layer.2 and 6 more, and an embedding"),
        ("sd1", {"emb_params": OWN.astype(np.int64)}, "and an embedding has one tensor"),
        ("sdxl", "uneven", "another number of vectors for each text encoder"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, layout, tensors, said):
    if tensors == "uneven":
        first, second = widths(layout)
        tensors = {"clip_l": vectors(2, first), "clip_g": vectors(3, second)}
    with pytest.raises(UserError, match=said) as caught:
        fitted(write(tmp_path / "a.safetensors", tensors), layout)
    assert str(caught.value).startswith("embeddings[0].path=") and "\n" not in str(caught.value)


class Attack:
    """Runs a command where Python's own reader meets it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Evaluated(Attack):
    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w').close()",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("attack", [Attack, Evaluated])
def test_a_pickle_that_calls_something_is_refused_and_calls_nothing(tmp_path, attack, protocol):
    pickled = pickle.dumps({"string_to_param": {"*": attack(tmp_path / "ran")}}, protocol)
    file = write_archive(tmp_path / "a.pt", pickled)
    with pytest.raises(UserError, match="if you trust the file, convert it with PyTorch, as docs/embeddings.md says"):
        fitted(file)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickled)
    assert (tmp_path / "ran").exists()  # the attack is one


@pytest.mark.parametrize(
    ("instructions", "said"),
    [
        (b"cos\nsystem\n" + b"(" + text("touch ran") + b"tR", "asks to call os.system, which is not a tensor"),
        (b"\x8c\x02os\x8c\x06system\x93" + b"(" + text("touch ran") + b"tR", "asks to call os.system"),
        (b"cbuiltins\neval\n" + b"(" + text("1") + b"tR", "asks to call builtins.eval"),
        (b"ctorch.storage\n_load_from_bytes\n(" + text("x") + b"tR", "asks to call torch.storage._load_from_bytes"),
        (b"(" + text("touch ran") + b"ios\nsystem\n", "the pickle instruction INST, which no tensor needs"),
        (b"cos\nsystem\n)\x81", "the pickle instruction NEWOBJ"),
        (b"\x82\x01", "the pickle instruction EXT1"),
        (b"(cos\nsystem\n" + text("touch ran") + b"o", "the pickle instruction OBJ"),
        (b"P1\n", "the pickle instruction PERSID"),
        (text("storage") + b"Q", "a pickle that is broken"),
        (pickled_tensor((2, 2), (2, 1), storage=b"cos\nsystem\n"), "a tensor of os.system, which is not a type"),
        (pickled_tensor((2, 2), (2, 1), key="../../../etc/passwd"), "which is not a type"),
        (pickled_tensor((2, 2), (2, 1), key="7"), "has no data/7 of at most"),
        (pickled_tensor((2, 2), (200, 1)), "a tensor that is larger than its data"),
        (pickled_tensor((2, 2), (2, 1), offset=1), "a tensor that is larger than its data"),
        (pickled_tensor((2, 2), (-2, 1)), "a tensor that is broken"),
        (pickled_tensor((1 << 30, 1 << 30), (0, 0)), "a tensor of the shape"),
        (pickled_tensor((2,) * 9, (1,) * 9), "a tensor of the shape"),
        (b"}}Ns", "a dict with other keys"),
        (b"0" * 9, "instruction POP"),
        (b"", "is not a whole file of torch.save"),
    ],
)
def test_a_hostile_pickle_is_refused_with_its_reason(tmp_path, monkeypatch, instructions, said):
    monkeypatch.chdir(tmp_path)
    file = write_archive(tmp_path / "a.pt", b"\x80\x02" + instructions + b".", bytes(16))
    with pytest.raises(UserError, match=said) as caught:
        fitted(file)
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage", ["not a zip", "cut off", "compressed", "many entries", "large", "no pickle", "deep", "big endian"]
)
def test_a_broken_archive_is_refused_in_bounded_time(tmp_path, damage):
    file = archive_of_a1111(tmp_path / "a.pt")
    whole_file = file.read_bytes()
    if damage == "not a zip":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif damage == "cut off":
        file.write_bytes(whole_file[: len(whole_file) // 2])
    elif damage == "large":
        os.truncate(file, 100 << 20)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if damage == "compressed" else 0) as archive:
            pickled = b"\x80\x02" + (b"(" * 200_000 if damage == "deep" else b"}") + b"."
            if damage != "no pickle":
                archive.writestr("x/data.pkl", bytes(1 << 20) if damage == "compressed" else pickled)
            if damage == "big endian":
                archive.writestr("x/byteorder", "big")
            for i in range(5000 if damage == "many entries" else 0):
                archive.writestr(f"x/{i}", b"")
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        fitted(file)
    assert time.monotonic() - began < MAX_SECONDS and "\n" not in str(caught.value)


def test_a_tensor_of_several_strides_is_read_as_pytorch_reads_it(tmp_path):
    data = np.arange(12, dtype=np.float32)
    pickled = pickled_dict(a=pickled_tensor((3, 2), (1, 3), offset=2, numel=12))
    values = read_torch_file(write_archive(tmp_path / "a.pt", pickled, data.tobytes()))
    np.testing.assert_array_equal(values["a"], data[2:8].reshape(2, 3).T)


def test_what_shares_itself_many_times_is_small(tmp_path):
    """A list of two of itself, 40 times over, has 2**40 items where somebody walks through it."""
    again = (
        b"]" + b"q\x00" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(40))
    )
    file = write_archive(tmp_path / "a.pt", b"\x80\x02" + again + b".")
    began = time.monotonic()
    with pytest.raises(UserError, match="has no tensor, and an embedding has one"):
        fitted(file)
    assert time.monotonic() - began < MAX_SECONDS


def assert_damage_is_refused(file, data):
    """Whichever bytes of a good file's data are changed, reading raises nothing but its own refusal."""
    random = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 3):
            damaged[place] = random.integers(0, 256)
        file.write_bytes(damaged)
        try:
            read_torch_file(file)
        except Refused:
            pass


def test_reading_raises_nothing_but_its_own_refusal(tmp_path):
    """Every cut and many changed bytes of a good file."""
    good = archive_of_a1111(tmp_path / "a.pt")
    assert_damage_is_refused(good, good.read_bytes())


def test_the_form_before_1_6_is_read_too(tmp_path):
    good = write_old(tmp_path / "a.pt", pickled_dict(a=pickled_tensor((3, 32), (32, 1))), OWN.tobytes())
    np.testing.assert_array_equal(read_torch_file(good)["a"], OWN)
    data = good.read_bytes()
    for cut in range(0, len(data), 5):
        good.write_bytes(data[:cut])
        with pytest.raises(Refused):
            read_torch_file(good)
    assert_damage_is_refused(good, data)


@pytest.mark.slow
@pytest.mark.parametrize("write_one", [write_archive, write_old])
def test_a_few_bytes_are_not_repeated_without_bound(tmp_path, write_one):
    tensors = {f"t{number}": pickled_tensor((1 << 12, 1 << 11), (0, 0), numel=4) for number in range(20)}
    began = time.monotonic()
    with pytest.raises(Refused, match="has over 67108864 values"):
        read_torch_file(write_one(tmp_path / "a.pt", pickled_dict(**tensors), bytes(16)))
    assert time.monotonic() - began < MAX_SECONDS


@pytest.mark.parametrize(
    ("keys", "data"), [(("0", "7"), bytes(16)), ((), bytes(16)), (("0",), b""), ((3,), bytes(16))], ids=str
)
def test_storages_that_are_not_there_are_refused(tmp_path, keys, data):
    file = write_old(tmp_path / "a.pt", pickled_dict(a=pickled_tensor((2, 2), (2, 1))), data, keys)
    with pytest.raises(Refused):
        read_torch_file(file)


@pytest.mark.parametrize("damage", ["cut off", "large header", "no header", "empty", "huge shape", "a directory"])
def test_a_broken_safetensors_file_is_one_line(tmp_path, damage):
    file = write(tmp_path / "a.safetensors", {"emb_params": OWN})
    data = file.read_bytes()
    if damage == "cut off":
        file.write_bytes(data[:-10])
    elif damage == "large header":
        file.write_bytes((1 << 40).to_bytes(8, "little") + data[8:])
    elif damage == "no header":
        file.write_bytes(b"\xff" * 64)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "huge shape":
        file.write_bytes(data.replace(b"[3,32]", b"[9,99]"))
    else:
        file.unlink()
        file.mkdir()
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        fitted(file)
    assert time.monotonic() - began < MAX_SECONDS and "\n" not in str(caught.value)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_files_of_torch_save_have_the_tensors_that_pytorch_reads(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    tensor = torch.randn(3, 32).to(getattr(torch, dtype))
    parameter = torch.nn.Parameter(tensor.float().T.contiguous().T)
    path = tmp_path / "a.pt"
    torch.save({"string_to_param": {"*": tensor}, "string_to_token": {"*": torch.tensor(265)}, "name": "ink"}, path)
    np.testing.assert_array_equal(fitted(path).vectors[0], tensor.float().numpy())
    torch.save({"<toy>": parameter}, path)
    np.testing.assert_array_equal(fitted(path).vectors[0], parameter.detach().numpy())
    torch.save({"<toy>": tensor[1]}, tmp_path / "learned_embeds.bin")
    made = fitted(tmp_path / "learned_embeds.bin")
    assert made.token == "<toy>"
    np.testing.assert_array_equal(made.vectors[0], tensor[1:2].float().numpy())
    torch.save({"<toy>": tensor}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(fitted(path).vectors[0], tensor.float().numpy())
