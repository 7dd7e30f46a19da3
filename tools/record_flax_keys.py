"""Records what the published Flax files hold: name and shape of every array, from the last diffusers that had Flax.

    pip install diffusers==0.39.0 transformers==4.57.6 flax jax torch; python tools/record_flax_keys.py

Writes tests/data/published_keys_flax.json.gz for the reference configs of SD 1.5 and 2.1, names joined by dots.
"""

import gzip
import json
from pathlib import Path

import jax
from diffusers import FlaxAutoencoderKL, FlaxUNet2DConditionModel
from flax.traverse_util import flatten_dict
from transformers import CLIPTextConfig, FlaxCLIPTextModel

DATA = Path(__file__).parents[1] / "tests" / "data"
PUBLISHED = Path(__file__).parents[1] / "tpusd" / "assets" / "published"


def shapes(init) -> dict[str, list[int]]:
    """init(key) -> parameters; nothing is allocated."""
    return {name: list(x.shape) for name, x in flatten_dict(jax.eval_shape(init, jax.random.key(0)), sep=".").items()}


def main() -> None:
    record = {}
    for model in ("sd15", "sd21"):
        configs = {p: json.loads((PUBLISHED / model / p / "config.json").read_text()) for p in ("unet", "vae")}
        text = CLIPTextConfig(**json.loads((PUBLISHED / model / "text_encoder" / "config.json").read_text()))
        encoder = FlaxCLIPTextModel(text, _do_init=False)
        record[model] = {
            "text_encoder": shapes(lambda key, encoder=encoder: encoder.init_weights(key, (1, 77))),
            "unet": shapes(FlaxUNet2DConditionModel.from_config(configs["unet"]).init_weights),
            "vae": shapes(FlaxAutoencoderKL.from_config(configs["vae"]).init_weights),
        }
    out = DATA / "published_keys_flax.json.gz"
    out.write_bytes(gzip.compress(json.dumps(record, indent=0).encode(), mtime=0))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
