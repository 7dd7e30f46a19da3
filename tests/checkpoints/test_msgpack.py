import math

import flax.serialization
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import unflatten_dict
from support.checkpoints import assert_equal, copy, error_of, opened, tiny, weights

from tpusd.checkpoints import load_weights
from tpusd.checkpoints.fill import parameters
from tpusd.checkpoints.formats.msgpack import FlaxMsgpack
from tpusd.errors import UserError

LISTS = (
    "down_blocks",
    "up_blocks",
    "attentions",
    "resnets",
    "transformer_blocks",
    "downsamplers",
    "upsamplers",
    "to_out",
    "net",
)
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}


def flax_name(part, path):
    """Our path -> the path in a published Flax file."""
    out = []
    for item in path:
        if isinstance(item, int) and out[-1] in LISTS:
            out[-1] = f"{out[-1]}_{item}"
        else:
            out.append(str(item))
    if part == "vae" and "attentions_0" in out:
        out = [OLD_ATTENTION.get(item, item) for item in out]
    return tuple(out)


def as_flax(root, dtype=np.float32):
    """Replaces a checkpoint's safetensors by the Flax files that the 2022 program wrote."""
    checkpoint = opened(root)
    for part in checkpoint.parts:
        flat = dict(nnx.to_flat_state(load_weights(checkpoint, part, param_dtype=dtype)))
        tree = unflatten_dict(
            {
                flax_name(part, p.path): np.asarray(flat[p.path].get_value())
                for p in parameters(checkpoint.abstract(part)).values()
            }
        )
        stem = "flax_model" if part.startswith("text") else "diffusion_flax_model"
        (root / part / f"{stem}.msgpack").write_bytes(flax.serialization.msgpack_serialize(tree))
        (root / checkpoint.weights[part].name).unlink()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16])
def test_flax_files_fill_like_safetensors(tmp_path, dtype):
    root = copy(tmp_path)
    as_flax(root, dtype)
    for part in opened(tiny()).parts:
        assert opened(root).weights[part].format == "msgpack"
        assert_equal(weights(root, part, dtype), weights(tiny(), part, dtype))


@pytest.mark.slow
def test_a_truncated_flax_file_is_found_on_opening(tmp_path):
    root = copy(tmp_path)
    as_flax(root)
    file = root / "unet/diffusion_flax_model.msgpack"
    data = file.read_bytes()
    for size in (0, 1, 40, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        assert "get it again" in error_of(root)
    file.write_bytes(data + b"\0")
    assert "bytes after its end" in error_of(root)


def array(shape, dtype="float32", data=None):
    data = bytes(4 * math.prod(shape)) if data is None else data
    return msgpack.ExtType(1, msgpack.packb([list(shape), dtype, data]))


def nested(depth):
    value = array((1,))
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "content",
    [
        [1, 2, 3],
        {"a": 1},
        {"a": array((3, 5), data=bytes(59))},
        {"a": array((2**40, 2**40), data=b"")},
        {"a": array((1,), dtype="object", data=b"cos\nsystem\n")},
        {"a": msgpack.ExtType(2, msgpack.packb([1.0, 2.0]))},
        {"a": msgpack.ExtType(1, b"\x93")},
        {"a": {"__msgpack_chunked_array__": True}},
        {"a.b": array((1,)), "a": {"b": array((1,))}},
        {"a" * 300: array((1,))},
        nested(40),
        {str(i): {} for i in range(30_000)},
    ],
    ids=str(list(range(12))).strip("[]").split(", "),
)
def test_flax_files_that_hold_anything_but_arrays_are_refused(tmp_path, content):
    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(msgpack.packb(content))
    with pytest.raises(UserError, match="not a whole Flax msgpack file"):
        FlaxMsgpack(file)


@pytest.mark.parametrize(
    "head",
    [
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32-1 entries
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",  # an array of 4 GiB
        b"\x81\xdb\xff\xff\xff\xff",  # a name of 4 GiB
        b"\x81\xa1a\xc7\x20\x01\x93\x92\xce\xff\xff\xff\xff\xce\xff\xff\xff\xff\xa7float32\xc6\xff\xff\xff\xff",
    ],
    ids=["map", "extension", "name", "data"],
)
def test_declared_sizes_are_checked_before_anything_is_allocated(tmp_path, head):
    import tracemalloc

    file = tmp_path / "flax_model.msgpack"
    file.write_bytes(head + bytes(64))
    tracemalloc.start()
    with pytest.raises(UserError, match="flax_model.msgpack"):
        FlaxMsgpack(file)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
