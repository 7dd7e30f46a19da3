import functools
import hashlib
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support.checkpoints import TEXT, UNET, VAE, assert_equal, copy, edit, error_of, hollow, opened, tiny, weights

from tpusd.checkpoints import ModelSource, load_weights, match_weights, open_checkpoint, save_checkpoint
from tpusd.checkpoints.fill import parameters
from tpusd.checkpoints.names import destination_name
from tpusd.families.sdxl import SDXL

OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rewrite(path, change):
    """Saves a weight file again with other tensors: `change` gets the dict and edits it."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def renamed(rename):
    def change(tensors):
        items = [(rename(name), tensor) for name, tensor in tensors.items()]
        tensors.clear()
        tensors.update(items)

    return change


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd1", "sd2", "sdxl"])
def test_every_layout_is_filled_with_the_values_in_the_files(layout):
    checkpoint = opened(tiny(layout))
    assert checkpoint.family.name == ("sdxl" if layout == "sdxl" else "stable_diffusion")
    for part in checkpoint.parts:
        stored = load_file(tiny(layout) / checkpoint.weights[part].name)
        state = load_weights(checkpoint, part, param_dtype=jnp.float32)
        flat = dict(nnx.to_flat_state(state))
        wanted = parameters(checkpoint.abstract(part))
        assert len(flat) == len(wanted) == len(stored)
        for name, parameter in wanted.items():
            ours = np.asarray(flat[parameter.path].get_value())
            turned = {4: lambda x: x.transpose(2, 3, 1, 0), 2: lambda x: x.T}.get(ours.ndim, lambda x: x)
            expected = stored[name] if parameter.leaf == "embedding" else turned(stored[name])
            np.testing.assert_array_equal(ours, expected, err_msg=name)


@pytest.mark.slow
def test_the_loaded_state_merges_into_a_model_that_runs():
    checkpoint = opened(tiny())
    graph, _ = nnx.split(checkpoint.abstract("text_encoder"))
    model = nnx.merge(graph, load_weights(checkpoint, "text_encoder", param_dtype=jnp.float32))
    ids = checkpoint.tokenizers[0](["a cat"]).input_ids
    assert np.isfinite(np.asarray(model(jnp.asarray(ids)).last_hidden_state)).all()


@pytest.mark.slow
def test_linear_weights_are_turned_by_the_destinations_type_and_not_by_shape():
    # A square matrix looks the same either way round.
    checkpoint = opened(tiny())
    flat = dict(nnx.to_flat_state(load_weights(checkpoint, "unet", param_dtype=jnp.float32)))
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    path = ("mid_block", "attentions", 0, "transformer_blocks", 0, "attn1", "to_q", "kernel")
    np.testing.assert_array_equal(flat[path].get_value(), load_file(tiny() / UNET)[f"{name}.weight"].T)


@pytest.mark.slow
def test_text_encoder_names_may_lack_the_prefix(tmp_path):
    root = copy(tmp_path)
    rewrite(root / TEXT, renamed(lambda name: name.removeprefix("text_model.")))
    assert_equal(weights(root, "text_encoder"), weights(tiny(), "text_encoder"))


@pytest.mark.slow
def test_position_ids_are_ignored(tmp_path):
    root = copy(tmp_path)
    rewrite(root / TEXT, lambda t: t.update({"text_model.embeddings.position_ids": np.arange(77)[None]}))
    assert_equal(weights(root, "text_encoder"), weights(tiny(), "text_encoder"))


@pytest.mark.slow
def test_autoencoder_attention_may_have_its_old_names_and_be_a_convolution(tmp_path):
    root = copy(tmp_path)

    def old(tensors):
        for name in [n for n in tensors if ".attentions." in n]:
            new = functools.reduce(
                lambda n, pair: n.replace(f".{pair[0]}.", f".{pair[1]}."), OLD_ATTENTION.items(), name
            )
            tensor = tensors.pop(name)
            tensors[new] = tensor[:, :, None, None] if tensor.ndim == 2 else tensor

    rewrite(root / VAE, old)
    assert any(".query." in name for name in load_file(root / VAE))
    assert_equal(weights(root, "vae"), weights(tiny(), "vae"))


@pytest.mark.slow
def test_a_one_by_one_convolution_may_be_stored_as_a_matrix(tmp_path):
    root = copy(tmp_path)
    rewrite(root / UNET, lambda t: t.update({n: v[:, :, 0, 0] for n, v in t.items() if "proj_in.weight" in n}))
    assert_equal(weights(root, "unet"), weights(tiny(), "unet"))


def shard(root, pieces=3):
    """Splits the UNet's file as diffusers does."""
    tensors = load_file(root / UNET)
    names = [f"diffusion_pytorch_model-{i + 1:05}-of-{pieces:05}.safetensors" for i in range(pieces)]
    weight_map = {name: names[i % pieces] for i, name in enumerate(tensors)}
    for file in names:
        save_file(
            {n: np.ascontiguousarray(t) for n, t in tensors.items() if weight_map[n] == file}, root / "unet" / file
        )
    index = root / "unet/diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    (root / UNET).unlink()
    return index, names


@pytest.mark.slow
def test_shards_fill_like_one_file(tmp_path):
    root = copy(tmp_path)
    shard(root)
    checkpoint = opened(root)
    assert_equal(load_weights(checkpoint, "unet", param_dtype=jnp.float32), weights(tiny(), "unet"))
    assert sum(name.startswith("unet/diffusion") for name in checkpoint.identity.files) == 3


def test_a_missing_shard_is_named(tmp_path):
    root = copy(tmp_path)
    _, names = shard(root)
    (root / "unet" / names[1]).unlink()
    assert names[1] in error_of(root)


def test_shards_that_disagree_with_their_index_are_refused(tmp_path):
    root = copy(tmp_path)
    index, names = shard(root)
    weight_map = json.loads(index.read_text())["weight_map"]
    edit(
        index, weight_map=weight_map | {"conv_in.bias": names[0], "conv_in.weight": names[0], "conv_out.bias": names[0]}
    )
    assert "does not agree with its shards" in error_of(root)
    edit(index, weight_map=weight_map | {"conv_in.bias": "../../elsewhere.safetensors"})
    assert "not a safetensors file beside it" in error_of(root)


@pytest.mark.slow
def test_many_layers_beside_a_file_of_as_many_other_tensors_are_refused(tmp_path):
    """The count of tensors fits, their names do not: found by names, before anything is compiled."""
    root = copy(tmp_path)
    edit(root / "unet/config.json", layers_per_block=2)
    hollow(root / UNET, {f"a{i}": [1] for i in range(150)})
    assert "weights do not fit" in error_of(root, lambda c: match_weights(c, "unet", param_dtype=jnp.float32))


@pytest.mark.slow
def test_the_variant_chooses_the_file(tmp_path):
    root = copy(tmp_path)
    for name in (UNET, VAE, TEXT):
        half = {n: t.astype(np.float16) for n, t in load_file(root / name).items()}
        save_file(half, root / name.replace(".safetensors", ".fp16.safetensors"))
    assert opened(root, variant="fp16").weights["unet"].name.endswith(".fp16.safetensors")
    assert opened(root).weights["unet"].name == UNET
    half = weights(root, "unet", jnp.float16, variant="fp16")
    assert_equal(half, weights(root, "unet", jnp.float16))
    assert "leave model.variant unset" in error_of(root, variant="fp32")
    for name in (UNET, VAE, TEXT):
        (root / name).unlink()
    assert_equal(half, weights(root, "unet", jnp.float16))  # the only variant that there is


@pytest.mark.slow
def test_bfloat16_files_and_parameters_round_once(tmp_path):
    root = copy(tmp_path)
    bfloat16 = jnp.dtype(jnp.bfloat16)
    rewrite(root / UNET, lambda t: t.update({n: v.astype(bfloat16) for n, v in t.items()}))
    assert_equal(weights(root, "unet", bfloat16), weights(tiny(), "unet", bfloat16))


@pytest.mark.slow
def test_a_value_beyond_float16_is_refused_not_made_infinite(tmp_path):
    root = copy(tmp_path)
    rewrite(root / UNET, lambda t: t["conv_in.bias"].fill(1e6))
    weights(root, "unet", jnp.bfloat16)
    line = error_of(root, lambda c: load_weights(c, "unet", param_dtype=jnp.float16))
    assert "conv_in.bias" in line and "float16" in line


@pytest.mark.slow
def test_all_faults_come_in_one_error_of_bounded_length(tmp_path):
    root = copy(tmp_path)

    def damage(tensors):
        del tensors["conv_in.bias"]
        tensors["conv_out.weight"] = tensors["conv_out.weight"][:3]
        tensors["time_embedding.linear_1.bias"] = tensors["time_embedding.linear_1.bias"].astype(np.int32)
        tensors.update({f"lora.{i}": np.zeros(1, np.float32) for i in range(50)})

    rewrite(root / UNET, damage)
    line = error_of(root, lambda c: load_weights(c, "unet", param_dtype=jnp.float32))
    assert "1 missing: conv_in.bias (16,)" in line
    assert "50 that the model of config.json does not have" in line and "and 42 more" in line and "lora.0 (1,)" in line
    assert "conv_out.weight (3, 16, 3, 3), the config asks for (4, 16, 3, 3)" in line
    assert "time_embedding.linear_1.bias int32" in line
    assert len(line) < 2000


@pytest.mark.slow
def test_a_parameter_stored_under_two_names_is_refused(tmp_path):
    root = copy(tmp_path)
    rewrite(root / VAE, lambda t: t.update({"encoder.mid_block.attentions.0.query.bias": np.zeros(16, np.float32)}))
    line = error_of(root, lambda c: load_weights(c, "vae", param_dtype=jnp.float32))
    assert "1 stored twice: " in line and "query.bias" in line and "to_q.bias" in line


def test_names_that_only_look_like_a_row_of_the_table_stay():
    same = "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    assert destination_name(SDXL.components["unet"], "torch", same) == same
    assert destination_name(SDXL.components["vae"], "torch", "encoder.conv_in.weight") == "encoder.conv_in.weight"
    flax = "time_embedding.linear_1.kernel"
    assert destination_name(SDXL.components["unet"], "flax", flax) == "time_embedding.linear_1.weight"


def test_parameters_go_where_the_sharding_says():
    device = jax.devices()[-1]
    sharding = jax.sharding.SingleDeviceSharding(device)
    state = load_weights(opened(tiny()), "text_encoder", param_dtype=jnp.bfloat16, sharding=sharding)
    assert all(x.sharding == sharding and x.dtype == jnp.bfloat16 for x in jax.tree.leaves(state))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_saving_and_loading_gives_the_same_again(tmp_path, layout):
    checkpoint = opened(tiny(layout))
    states = {part: load_weights(checkpoint, part, param_dtype=jnp.float32) for part in checkpoint.parts}
    networks = {part: (checkpoint.configs[part], state) for part, state in states.items()}
    tokenizers = dict(zip(checkpoint.family.tokenizers, checkpoint.tokenizers, strict=True))
    for _ in range(2):  # the second time over the first
        save_checkpoint(
            tmp_path / "new",
            checkpoint.family,
            networks=networks,
            tokenizers=tokenizers,
            scheduler_config=checkpoint.scheduler_values,
            options=checkpoint.options,
        )
    again = opened(tmp_path / "new")
    assert again.family is checkpoint.family and again.options == checkpoint.options
    assert again.scheduler_values == checkpoint.scheduler_values
    for part in checkpoint.parts:
        assert again.configs[part] == checkpoint.configs[part]
        assert_equal(load_weights(again, part, param_dtype=jnp.float32), states[part])


@pytest.mark.slow
def test_the_packaged_checkpoint_opens_and_is_small():
    checkpoint = open_checkpoint(ModelSource(asset="tiny"))
    for part in checkpoint.parts:
        load_weights(checkpoint, part, param_dtype=jnp.bfloat16)
    assert sum(file.stat().st_size for file in checkpoint.directory.rglob("*") if file.is_file()) < 16 << 20


def test_identity_hashes_every_file_that_is_read(tmp_path):
    root = copy(tmp_path)
    (root / "README.md").write_text("not read")
    identity = opened(root).identity
    files = {str(f.relative_to(root)): f for f in root.rglob("*") if f.is_file() and f.name != "README.md"}
    assert identity.sha256 == {name: hashlib.sha256(f.read_bytes()).hexdigest() for name, f in files.items()}
    assert (identity.repo, identity.commit) == (None, None)


def test_a_truncated_file_is_found_on_opening(tmp_path):
    root = copy(tmp_path)
    data = (root / UNET).read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        (root / UNET).write_bytes(data[:size])
        line = error_of(root)
        assert "diffusion_pytorch_model.safetensors" in line and "get it again" in line


def test_a_bad_header_is_found_on_opening(tmp_path):
    root = copy(tmp_path)
    for header in (b"[]", b'{"a": 1}', b"\xff" * 40, b'{"a":' * 10_000, b"<html>not found</html>"):
        (root / UNET).write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
        assert "safetensors file" in error_of(root)
    (root / UNET).write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    assert "not a safetensors file" in error_of(root)


def test_a_scheduler_that_diffusers_saved_with_infinity_opens(tmp_path):
    """DPMSolverMultistepScheduler writes lambda_min_clipped so, which JSON does not have."""
    file = (root := copy(tmp_path)) / "scheduler/scheduler_config.json"
    edit(file, lambda_min_clipped=float("-inf"), solver_order=3)
    assert "-Infinity" in file.read_text() and opened(root).scheduler_config.solver_order == 3
    edit(file, lambda_min_clipped=float("nan"))
    assert "scheduler_config.json" in error_of(root)


def test_missing_files_are_named(tmp_path):
    root = copy(tmp_path)
    for name in (UNET, "vae/config.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"):
        data = (root / name).read_bytes()
        (root / name).unlink()
        assert name.split("/")[0] in error_of(root)
        (root / name).write_bytes(data)
    opened(root)


def test_what_is_not_a_diffusers_directory_is_told_so(tmp_path):
    assert "no such directory" in error_of(tmp_path / "nowhere")
    assert "no model_index.json" in error_of(tmp_path)
    (tmp_path / "v1-5-pruned.ckpt").write_bytes(b"x")
    assert "from_single_file" in error_of(tmp_path)
    assert "from_single_file" in error_of(tmp_path / "v1-5-pruned.ckpt")
    (tmp_path / "v1-5-pruned.safetensors").write_bytes(b"x")
    assert "if a single file is meant, write model.path=" in error_of(tmp_path)
    assert "too few for a safetensors file" in error_of(tmp_path / "v1-5-pruned.safetensors")


def test_pickled_weights_are_never_opened(tmp_path):
    root = copy(tmp_path)
    (root / UNET).unlink()
    (root / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'exit 7'\ntR.")
    line = error_of(root)
    assert "pickled weights (diffusion_pytorch_model.bin)" in line and "save_pretrained" in line


def test_another_pipeline_class_is_refused(tmp_path):
    root = copy(tmp_path)
    edit(root / "model_index.json", _class_name="StableDiffusion3Pipeline")
    assert "_class_name=StableDiffusion3Pipeline" in error_of(root)
    edit(root / "model_index.json", _class_name="StableDiffusionXLPipeline")
    assert "text_encoder_2 is missing" in error_of(root)
    edit(root / "model_index.json", _class_name="StableDiffusionPipeline", unet=["diffusers", "UNet3DConditionModel"])
    assert "unet=UNet3DConditionModel" in error_of(root)
    edit(root / "model_index.json", unet=["diffusers", "UNet2DConditionModel"], prior=["diffusers", "PriorTransformer"])
    assert "component prior" in error_of(root)


@pytest.mark.parametrize(
    "part, changes, told",
    [
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ("unet", {"mid_block_type": "UNetMidBlock3D"}, "mid_block_type='UNetMidBlock3D'"),
        ("unet", {"some_new_option": 3}, "some_new_option=3"),
        ("unet", {"in_channels": 8}, "in_channels=8"),
        ("unet", {"cross_attention_dim": 31}, "cross_attention_dim=31"),
        ("unet", {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}, "addition_embed_type=text_time"),
        ("unet", {"block_out_channels": [16, 33]}, "block_out_channels=33"),
        ("vae", {"latent_channels": 16}, "latent_channels=16"),
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act='relu'"),
        ("text_encoder", {"max_position_embeddings": 64}, "max_position_embeddings=64"),
        ("text_encoder", {"vocab_size": 513}, "vocab_size=513"),
    ],
)
def test_a_config_that_is_not_implemented_is_refused(tmp_path, part, changes, told):
    root = copy(tmp_path)
    edit(root / part / "config.json", **changes)
    assert told in error_of(root)
