"""What diffusers and transformers take for the same network, our configs take for the same; their defaults are ours."""

import inspect
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import transformers  # noqa: E402
from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402
from support.checkpoints import copy, edit, opened, tiny  # noqa: E402

from tpusd.errors import UserError  # noqa: E402
from tpusd.networks.clip_text import CLIPTextConfig  # noqa: E402
from tpusd.networks.unet_config import UNetConfig  # noqa: E402
from tpusd.networks.vae import VAEConfig  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.slow, pytest.mark.filterwarnings("default")]
NETWORKS = {"unet": (UNet2DConditionModel, UNetConfig), "vae": (AutoencoderKL, VAEConfig)}


def values(part):
    return json.loads((tiny() / part / "config.json").read_text())


def defaults(part):
    """Every argument of the reference's class, as a config.json has it."""
    parameters = inspect.signature(NETWORKS[part][0].__init__).parameters.items()
    return json.loads(json.dumps({name: p.default for name, p in parameters if name != "self"}))


@pytest.mark.parametrize("part", NETWORKS)
def test_each_field_may_be_at_the_references_default(part):
    ours = NETWORKS[part][1]
    for name, value in defaults(part).items():
        assert ours.from_dict({name: value}) == ours.from_dict({}), name
    assert ours.from_dict(defaults(part)) == ours.from_dict({})


def test_each_field_of_the_text_config_may_be_at_the_references_default():
    for name, value in transformers.CLIPTextConfig().to_dict().items():
        assert CLIPTextConfig.from_dict({name: value}) == CLIPTextConfig.from_dict({}), name


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("unet", {"act_fn": "swish"}),
        ("unet", {"addition_embed_type_num_heads": 8}),
        ("unet", {"cross_attention_dim": [32, 32]}),
        ("unet", {"dropout": 0.5}),
        ("unet", {"layers_per_block": [1, 1]}),
        ("unet", {"only_cross_attention": [False, False]}),
        ("unet", {"sample_size": [8, 8]}),
        ("unet", {"time_embedding_dim": 64}),
        ("vae", {"act_fn": "swish"}),
        ("vae", {"sample_size": [64, 64]}),
        ("vae", {"shift_factor": 0.5}),
    ],
)
def test_what_is_the_same_network_in_the_reference_is_the_same_here(part, changes):
    """Equal weights give equal outputs there."""
    reference, ours = NETWORKS[part]
    plain, changed = (reference.from_config({**values(part), **more}).eval() for more in ({}, changes))
    changed.load_state_dict(plain.state_dict())
    torch.manual_seed(0)
    if part == "unet":
        inputs = (torch.randn(1, 4, 8, 8), torch.tensor([7]), torch.randn(1, 5, 32))
        outputs = [network(*inputs).sample for network in (plain, changed)]
    else:
        latents = torch.randn(1, 4, 4, 4)
        outputs = [network.decode(latents).sample for network in (plain, changed)]
    assert torch.equal(*outputs)
    same = {**vars(ours.from_dict({**values(part), **changes})), "sample_size": None}
    assert same == {**vars(ours.from_dict(values(part))), "sample_size": None}


def test_what_ema_writes_into_a_config_has_no_effect():
    network = UNet2DConditionModel.from_config(values("unet"))
    state = EMAModel(network.parameters()).state_dict()
    state.pop("shadow_params")  # save_pretrained removes it and registers the rest in the config
    assert UNetConfig.from_dict({**values("unet"), **state}) == UNetConfig.from_dict(values("unet"))


def test_a_config_of_the_whole_clip_is_that_of_its_text_model(tmp_path):
    root = copy(tmp_path)
    text = values("text_encoder")
    whole = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 32, "vision_config": {}}
    (root / "text_encoder/config.json").write_text(json.dumps({**whole, "text_config": text}))
    read = transformers.CLIPTextConfig.from_pretrained(str(root / "text_encoder"))
    assert read.hidden_size == text["hidden_size"] and read.vocab_size == text["vocab_size"]
    assert opened(root).configs["text_encoder"] == opened(tiny()).configs["text_encoder"]
    edit(root / "text_encoder/config.json", text_config={**text, "hidden_act": "relu"})
    with pytest.raises(UserError, match="hidden_act"):
        opened(root)
