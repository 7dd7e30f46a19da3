"""UNets with blocks left out, as distilled models have them, against PyTorch diffusers: random weights, tiny sizes."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from flax import nnx  # noqa: E402

from tpusd.checkpoints.files import Directory  # noqa: E402
from tpusd.checkpoints.fill import Matched, fill  # noqa: E402
from tpusd.checkpoints.opened import FolderWeights  # noqa: E402
from tpusd.families.latent_diffusion import UNET_COMPONENT  # noqa: E402
from tpusd.networks.abstract import abstract_model  # noqa: E402
from tpusd.networks.unet_config import UNetConfig  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # the reference's own deprecations are not ours
]
RELATIVE = 1e-4  # of the largest value
SMALL = dict(
    sample_size=8,
    block_out_channels=[16, 24, 32],
    norm_num_groups=8,
    cross_attention_dim=20,
    attention_head_dim=4,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
)
XL = dict(
    down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    use_linear_projection=True,
    layers_per_block=2,
)
CASES = {
    "BK-SDM-Base": dict(layers_per_block=1),
    "BK-SDM-Tiny, tiny-sd: no mid block": dict(layers_per_block=1, mid_block_type=None),
    "a mid block without attention": dict(layers_per_block=1, mid_block_type="UNetMidBlock2D"),
    "other resnets per level": dict(layers_per_block=[1, 3, 2]),
    "SSD-1B: transformer layers by resnet": XL
    | dict(
        transformer_layers_per_block=[1, [2, 1], [3, 1]],
        reverse_transformer_layers_per_block=[[3, 1, 2], [2, 1, 1], 1],
    ),
    "Segmind-Vega: other layers on the way up": XL
    | dict(
        transformer_layers_per_block=[0, 1, 2],
        reverse_transformer_layers_per_block=[[1, 1, 2], [1, 1, 1], 0],
        mid_block_type="UNetMidBlock2D",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_distilled_unet_predicts_as_the_reference(tmp_path, case):
    values = SMALL | CASES[case]
    torch.manual_seed(3)
    model = UNet2DConditionModel(**values).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    directory = Directory(tmp_path)
    config = UNetConfig.from_dict(directory.json("config.json"))
    ours = abstract_model(UNET_COMPONENT.network, config, dtype=jnp.float32, param_dtype=jnp.float32)
    stored = FolderWeights(directory=directory, format="safetensors", name="diffusion_pytorch_model.safetensors")
    state = fill(Matched.of(ours, UNET_COMPONENT, stored.open(), stored.where), dtype=jnp.float32)
    rng = np.random.default_rng(5)
    sample = rng.standard_normal((2, 9, 13, 4), np.float32)
    text = rng.standard_normal((2, 7, 20), np.float32)
    times = np.array([7.0, 811.0], np.float32)
    graph, _ = nnx.split(ours)
    found = jax.jit(lambda state, *args: nnx.merge(graph, state)(*args))(state, sample, times, text)
    with torch.no_grad():
        expected = model(torch.tensor(sample).permute(0, 3, 1, 2), torch.tensor(times), torch.tensor(text)).sample
    expected = expected.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(np.asarray(found), expected, atol=RELATIVE * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_blocks_is_that_of_the_reference(case):
    """It bounds what a stranger's config may ask for, so it must count every layer."""
    with torch.device("meta"):
        model = UNet2DConditionModel(**(SMALL | CASES[case]))
    blocks = [type(module).__name__ for module in model.modules()]
    assert UNetConfig.from_dict(SMALL | CASES[case]).num_blocks == (
        blocks.count("ResnetBlock2D") + blocks.count("BasicTransformerBlock")
    )
