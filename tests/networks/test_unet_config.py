"""Configs of UNets that cannot be right: one line, before anything is built."""

import pytest

from tpusd.errors import UserError
from tpusd.networks.unet_config import UNetConfig


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type='UNetMidBlock2DSimpleCrossAttn' is not"),
        ({"layers_per_block": [1, 2]}, "resnets: 2 values for 4 levels"),
        ({"transformer_layers_per_block": [1, 1, [1, 2], 1]}, "reverse_transformer_layers_per_block is needed"),
        ({"reverse_transformer_layers_per_block": [1, 1]}, "up_transformer_layers: 2 values for 4 levels"),
        ({"reverse_transformer_layers_per_block": [1, [1, 2], 1, 1]}, "a list of 2 for 3 resnets"),
        (
            {"transformer_layers_per_block": [[1], 1, 1, 1], "reverse_transformer_layers_per_block": [1, 1, 1, 1]},
            "a list of 1 for 2 resnets",
        ),
        ({"reverse_transformer_layers_per_block": [[128] * 3] * 4, "layers_per_block": 2}, "over 870"),
        ({"transformer_layers_per_block": [1, 1, 1, -1]}, "must be from 0 to 128"),
        ({"layers_per_block": [1, 2, 3, 10**9]}, "must be from 1 to 32"),
    ],
)
def test_a_config_that_cannot_be_right_is_one_line(values, expected):
    with pytest.raises(UserError) as caught:
        UNetConfig.from_dict(values)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_no_mid_block_and_lists_that_fit_are_accepted():
    UNetConfig.from_dict({"mid_block_type": None, "layers_per_block": [1, 2, 3, 4]})
    UNetConfig.from_dict(
        {
            "transformer_layers_per_block": [[1, 2], 1, 1, 1],
            "reverse_transformer_layers_per_block": [1, [1, 2, 3], 1, 1],
        }
    )
