"""LoRA files against the libraries that write and read them: diffusers with peft, and LyCORIS' own.

The checkpoints are random; the differences are as large as the weights. Merged weights agree to 1e-6 of their norm.
"""

import functools

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytest.importorskip("lycoris")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline  # noqa: E402
from diffusers.training_utils import _collate_lora_metadata  # noqa: E402
from diffusers.utils import convert_state_dict_to_diffusers  # noqa: E402
from lycoris.functional import loha as loha_functional  # noqa: E402
from lycoris.functional import lokr as lokr_functional  # noqa: E402
from lycoris.modules.full import FullModule  # noqa: E402
from lycoris.modules.locon import LoConModule  # noqa: E402
from lycoris.modules.loha import LohaModule  # noqa: E402
from lycoris.modules.lokr import LokrModule  # noqa: E402
from lycoris.modules.norms import NormModule  # noqa: E402
from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402
from support.checkpoints import tiny  # noqa: E402
from support.loras import checkpoint, layers, merged, opened_lora, random, weight_shapes, write  # noqa: E402
from support.runs import config  # noqa: E402

from tpusd.engine import noise as keys  # noqa: E402
from tpusd.engine.adapters import ScaledLora  # noqa: E402
from tpusd.engine.pipeline import Pipeline  # noqa: E402
from tpusd.plan.specs import ImageSpec  # noqa: E402
from tpusd.samplers.table import SamplerSettings, make_table  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the reference's own deprecations are not ours
]
SD2, SDXL = (pytest.param(layout, marks=pytest.mark.long) for layout in ("sd2", "sdxl"))
LAYOUTS = ("sd1", SD2, SDXL)
MAX, MEAN = 5e-3, 1e-4  # of pixels in 0..1, as in tests/engine/test_images_parity.py
RELATIVE = 1e-6
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def torch_pipeline(layout):
    """A new one: LoRAs change it."""
    cls = StableDiffusionXLPipeline if layout == "sdxl" else StableDiffusionPipeline
    pipeline = cls.from_pretrained(str(tiny(layout)), local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def plain(layout):
    """(part, name) -> weight of the checkpoint, as the reference reads it."""
    return torch_weights(torch_pipeline(layout))


def text_parts(layout):
    return ("text_encoder", "text_encoder_2") if layout == "sdxl" else ("text_encoder",)


def torch_weights(pipeline):
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if (network := getattr(pipeline, part, None)) is not None:
            for name, value in network.state_dict().items():
                if part != "unet" and name.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
                    name = f"text_model.{name}"
                found[part, name] = value.detach().numpy().copy()
    return found


def assert_merged(ours, theirs, layout):
    """ours: the changed weights. theirs: all weights of the reference; it must have changed the same ones."""
    before = plain(layout)
    differing = {key for key, value in theirs.items() if key in before and not np.array_equal(value, before[key])}
    assert set(ours) == differing
    for key, value in ours.items():
        assert_close(value, theirs[key], key)


def assert_close(ours, theirs, what):
    theirs = np.asarray(theirs).reshape(ours.shape)
    error = np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs)
    assert error < RELATIVE, (what, error)


def with_peft(layout, *, dora=False, alpha=6, rank=4, text=True):
    """A pipeline with a random LoRA in peft's layers."""
    pipeline = torch_pipeline(layout)
    generator = torch.Generator().manual_seed(7)
    for part, targets in ({"unet": ATTENTION} | ({name: TEXT for name in text_parts(layout)} if text else {})).items():
        network = getattr(pipeline, part)
        own = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, use_dora=dora)
        inject_adapter_in_model(own, network)
        network.peft_config = {"default": own}
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.2
                parameter.data = parameter.data * (1 + drawn) if "magnitude" in name else drawn
    return pipeline


def networks_of(pipeline):
    named = {part: getattr(pipeline, part, None) for part in ("unet", "text_encoder", "text_encoder_2")}
    return {part: network for part, network in named.items() if getattr(network, "peft_config", None)}


def save(pipeline, directory):
    """The file that diffusers and peft write of it."""
    networks = networks_of(pipeline)
    states = {
        f"{part}_lora_layers": convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        for part, network in networks.items()
    }
    type(pipeline).save_lora_weights(str(directory), **states, **_collate_lora_metadata(networks))
    return directory / "pytorch_lora_weights.safetensors"


def peft_layers(pipeline):
    for part, network in networks_of(pipeline).items():
        for name, module in network.named_modules():
            if isinstance(module, BaseTunerLayer):
                prefix = "" if part == "unet" or name.startswith("text_model.") else "text_model."
                yield (part, f"{prefix}{name}.weight"), module


def merged_by_peft(pipeline, scale=1.0):
    """(part, name) -> weight of every layer that has a LoRA."""
    found = {}
    for key, module in peft_layers(pipeline):
        module.set_scale("default", scale)
        module.merge()
        found[key] = module.get_base_layer().weight.detach().numpy()
    return found


def fused(layout, file, scale=1.0):
    pipeline = torch_pipeline(layout)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name, low_cpu_mem_usage=False)
    pipeline.fuse_lora(components=["unet", *text_parts(layout)], lora_scale=scale)
    pipeline.unload_lora_weights()
    return torch_weights(pipeline)


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert_close(value, theirs[key], key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_diffusers_merge_as_in_peft(tmp_path, layout):
    pipeline = with_peft(layout)
    file = save(pipeline, tmp_path)
    assert_same_weights(merged(file, layout, scale=0.7), merged_by_peft(pipeline, 0.7))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dora_of_peft_merges_as_in_peft(tmp_path, layout):
    pipeline = with_peft(layout, dora=True)
    file = save(pipeline, tmp_path)
    assert_same_weights(merged(file, layout), merged_by_peft(pipeline))


def factors(layout, part, paths):
    """Path -> up and down of random LoRA layers of rank 3."""
    found = {}
    for number, path in enumerate(paths):
        shape = weight_shapes(layout, part)[path]
        ones = (1,) * (len(shape) - 2)
        found[path] = (random(shape[0], 3, *ones, seed=number), random(3, *shape[1:], seed=number))
    return found


def kohya_name(layout, part, path):
    prefix = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}[part]
    if layout == "sdxl" and part == "text_encoder":
        prefix = "lora_te1"
    return f"{prefix}_{path.replace('.', '_')}"


def kohya_tensors(layout):
    """Attention, feed-forward and resnets of the UNet, and the text encoders: what kohya's scripts and LoCon train.

    All have one alpha: diffusers 0.42.1 with peft 0.21.2 takes the most frequent one for most of the layers.
    """
    tensors = {}
    for part in ("unet", *text_parts(layout)):
        words = ("attn", "proj_in", "proj_out", "ff", "conv1", "conv2") if part == "unet" else ("self_attn", "mlp")
        paths = [path for path in layers(layout, part, *words) if len(weight_shapes(layout, part)[path]) > 1]
        for path, (up, down) in factors(layout, part, paths).items():
            name = kohya_name(layout, part, path)
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            tensors[f"{name}.alpha"] = np.float32(2)
    return tensors


@pytest.mark.parametrize("layout", ["sd1", SD2, "sdxl"])
def test_kohyas_names_merge_as_in_diffusers(tmp_path, layout):
    file = write(tmp_path / "kohya.safetensors", kohya_tensors(layout))
    assert_merged(merged(file, layout, scale=0.6), fused(layout, file, 0.6), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_old_names_of_diffusers_merge_as_in_diffusers(tmp_path, layout):
    """Attention processors, before diffusers 0.22, and `lora_linear_layer` in the text encoders."""
    tensors = {}
    for path, (up, down) in factors(layout, "unet", layers(layout, "unet", ".to_")).items():
        block, projection = path.removesuffix(".0").rsplit(".", 1)
        name = f"unet.{block}.processor.{projection}_lora"
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    for path, (up, down) in factors(layout, "text_encoder", layers(layout, "text_encoder", "self_attn")).items():
        name = f"text_encoder.{path}.lora_linear_layer"
        tensors |= {f"{name}.up.weight": up, f"{name}.down.weight": down}
    file = write(tmp_path / "old.safetensors", tensors)
    assert_merged(merged(file, layout), fused(layout, file), layout)


def torch_layer(layout, path):
    """The reference's layer with the checkpoint's weight."""
    network = torch_pipeline(layout).unet
    return network.get_submodule(path)


KINDS = {
    "locon": (LoConModule, {}),
    "locon_tucker": (LoConModule, {"use_tucker": True}),
    "locon_dora": (LoConModule, {"weight_decompose": True}),
    "loha": (LohaModule, {}),
    "loha_tucker": (LohaModule, {"use_tucker": True}),
    "loha_dora": (LohaModule, {"weight_decompose": True}),
    "loha_dora_in": (LohaModule, {"weight_decompose": True, "wd_on_out": False}),
    "lokr": (LokrModule, {}),
    "lokr_both": (LokrModule, {"decompose_both": True, "factor": 4}),
    "lokr_tucker": (LokrModule, {"use_tucker": True}),
    "lokr_full": (LokrModule, {"full_matrix": True}),
    "lokr_dora": (LokrModule, {"weight_decompose": True}),
    "full": (FullModule, {}),
}


@functools.cache
def some_layers(layout):
    """A linear layer, a convolution 1x1 (in SD 1.x) and convolutions 3x3, of different widths."""
    unet = torch_pipeline(layout).unet
    wanted = ("attn2.to_k", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj")
    named = dict(unet.named_modules())
    return {next(name for name in named if name.endswith(end)): end for end in wanted}


def lycoris_file(path, layout, kind):
    """A file of one of LyCORIS' modules for each layer; and (part, name) -> weight as LyCORIS merges it.

    `get_diff_weight` of LoHa and LoKr in lycoris-lora 4.1.3 applies alpha / rank twice, and its `forward` and its
    functions apply it once. So here it is 1 for these.
    """
    cls, options = KINDS[kind]
    tensors, theirs = {}, {}
    generator = torch.Generator().manual_seed(3)
    unet = torch_pipeline(layout).unet
    for name in some_layers(layout):
        layer = unet.get_submodule(name)
        module = cls("x", layer, multiplier=1.0, lora_dim=2, alpha=3 if cls is LoConModule else 2, **options)
        with torch.no_grad():
            for own, parameter in module.named_parameters():
                drawn = torch.randn(parameter.shape, generator=generator) * 0.3
                parameter.copy_(parameter * (1 + drawn) if own == "dora_scale" else drawn)
            stored = dict(module.state_dict()) if cls is not FullModule else None
            if stored is None:
                stored = {"diff": module.weight.detach()} | ({} if module.bias is None else {"diff_b": module.bias})
            weight, bias = (
                module.get_merged_weight(shape=layer.weight.shape) if cls is not FullModule else module.make_weight()
            )
        tensors |= {f"lora_unet_{name.replace('.', '_')}.{end}": t.detach().numpy() for end, t in stored.items()}
        theirs["unet", f"{name}.weight"] = weight.detach().numpy()
        if bias is not None:
            theirs["unet", f"{name}.bias"] = bias.detach().numpy()
    return write(path, tensors), theirs


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_lycoris_merge_as_in_lycoris(tmp_path, layout, kind):
    file, theirs = lycoris_file(tmp_path / f"{kind}.safetensors", layout, kind)
    assert_same_weights(merged(file, layout), theirs)


def test_norms_of_lycoris_merge_as_in_lycoris(tmp_path):
    norm = torch_pipeline("sd1").unet.get_submodule("down_blocks.0.resnets.0.norm1")
    module = NormModule("x", norm, 1.0)
    with torch.no_grad():
        module.w_norm.copy_(torch.randn(module.w_norm.shape))
        module.b_norm.copy_(torch.randn(module.b_norm.shape))
        weight, bias = norm.weight + 0.5 * module.w_norm, norm.bias + 0.5 * module.b_norm
    stored = {"w_norm": module.w_norm, "b_norm": module.b_norm}
    name = "lora_unet_down_blocks_0_resnets_0_norm1"
    file = write(tmp_path / "norm.safetensors", {f"{name}.{end}": t.detach().numpy() for end, t in stored.items()})
    ours = merged(file, scale=0.5)
    assert len(ours) == 2
    assert_close(ours["unet", "down_blocks.0.resnets.0.norm1.weight"], weight.detach().numpy(), "weight")
    assert_close(ours["unet", "down_blocks.0.resnets.0.norm1.bias"], bias.detach().numpy(), "bias")


@pytest.mark.parametrize("both", [False, True])
def test_alpha_of_lokr_is_that_of_lycoris_functions(tmp_path, both):
    path = "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    o, i = weight_shapes("sd1", "unet")[path]
    w1 = random(2, 4) if not both else None
    w1a, w1b = (random(2, 2), random(2, 4)) if both else (None, None)
    w2a, w2b = random(o // 2, 2, seed=1), random(2, i // 4, seed=2)
    tensors = {"lokr_w1": w1, "lokr_w1_a": w1a, "lokr_w1_b": w1b, "lokr_w2_a": w2a, "lokr_w2_b": w2b}
    given = {f"lora_unet_{path.replace('.', '_')}.{k}": t for k, t in tensors.items() if t is not None}
    given[f"lora_unet_{path.replace('.', '_')}.alpha"] = np.float32(5)
    arrays = [None if t is None else torch.from_numpy(t) for t in (w1, w1a, w1b, None, w2a, w2b, None)]
    delta = lokr_functional.diff_weight(*arrays, gamma=5.0).numpy()
    ours = merged(write(tmp_path / "lokr.safetensors", given))["unet", f"{path}.weight"]
    assert_close(ours, plain("sd1")["unet", f"{path}.weight"] + delta, path)


def test_alpha_of_loha_is_that_of_lycoris_functions(tmp_path):
    path = "down_blocks.0.resnets.0.conv1"
    o, i, h, w = weight_shapes("sd1", "unet")[path]
    names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a")
    arrays = [random(*shape, seed=n) for n, shape in enumerate([(2, i * h * w), (o, 2)] * 2)]
    given = {f"lora_unet_{path.replace('.', '_')}.{name}": t for name, t in zip(names, arrays, strict=True)}
    given[f"lora_unet_{path.replace('.', '_')}.alpha"] = np.float32(5)
    tensors = [*map(torch.from_numpy, arrays), None, None]
    delta = loha_functional.diff_weight(*tensors, gamma=torch.tensor(5 / 2)).numpy().reshape(o, i, h, w)
    ours = merged(write(tmp_path / "loha.safetensors", given))["unet", f"{path}.weight"]
    assert_close(ours, plain("sd1")["unet", f"{path}.weight"] + delta, path)


SIZE, STEPS, GUIDANCE = 64, 6, 3.0
TEXTS = ("a red fox", "blurry, dark")


@pytest.mark.parametrize("layout", ["sd1", SD2, "sdxl"])
def test_images_are_those_of_diffusers(tmp_path, layout):
    """The reference runs its layers beside the LoRA's; it does not merge them."""
    image_keys = np.stack([keys.image_key(0, 0, 0)])
    noise = np.asarray(keys.initial_latents(image_keys, (4, SIZE // 8, SIZE // 8))).transpose(0, 3, 1, 2).copy()
    pipeline = with_peft(layout)
    file = save(pipeline, tmp_path)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)

    def reference():
        with torch.no_grad():
            return pipeline(
                prompt=TEXTS[0], negative_prompt=TEXTS[1], latents=torch.from_numpy(noise), height=SIZE, width=SIZE,
                num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="np",
            ).images[0]  # fmt: skip

    def scale_by(scale):
        for _, module in peft_layers(pipeline):
            module.set_scale("default", scale)

    scale_by(0.0)
    without = reference()
    scale_by(0.8)
    theirs = reference()
    assert np.abs(theirs - without).mean() > 0.02
    settings = SamplerSettings(name="ddim", num_inference_steps=STEPS)
    spec = ImageSpec(
        row=0, copy=0, prompt=TEXTS[0], negative_prompt=TEXTS[1], seed=0, row_seed=None, height=SIZE, width=SIZE,
        guidance_scale=GUIDANCE, guidance_rescale=0.0, sampler=settings,
    )  # fmt: skip
    opened = checkpoint(layout)
    pipe = Pipeline.load(
        opened, config("precision=fp32").precision, height=SIZE, width=SIZE, batch_size_per_device=1,
        devices=jax.devices()[:1],
    )  # fmt: skip
    table = opened.family.schedule(settings, opened.scheduler_config, SIZE, SIZE)
    assert len(table) == len(make_table(settings, opened.scheduler_config))
    lora = ScaledLora(lora=opened_lora(file, layout), scale=0.8, text_encoder_scale=0.8)
    (made,) = pipe.generate([spec], [table], loras=[lora])
    difference = np.abs(made.pixels.astype(np.float32) / 255 - np.round(theirs * 255) / 255)
    assert difference.max() < MAX and difference.mean() < MEAN, (difference.max(), difference.mean())
