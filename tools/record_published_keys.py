"""Records what the published checkpoints hold: name and shape of every tensor, from the reference's own classes.

    pip install "tpusd[parity]"; python tools/record_published_keys.py

Builds the PyTorch models of the reference configs without allocating them (the meta device) and writes the names and
shapes of their state dicts to tests/data/published_keys.json.gz, as the files on the Hub have them: text encoders with
the prefix `text_model.` and the buffer `position_ids`, the autoencoder's attention as `query`. The later spellings (no
prefix, `to_q`) stand beside them.
"""

import gzip
import json
from pathlib import Path

import diffusers
import torch
import transformers

DATA = Path(__file__).parents[1] / "tests" / "data"
PUBLISHED = Path(__file__).parents[1] / "tpusd" / "assets" / "published"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def shapes(model) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def text_encoder(config: dict) -> dict:
    cls = getattr(transformers, config["architectures"][0])
    now = shapes(cls(transformers.CLIPTextConfig(**config)))
    now = {name: shape for name, shape in now.items() if not name.endswith("position_ids")}
    bare = {name.removeprefix("text_model."): shape for name, shape in now.items()}
    published = {n if n.startswith("text_projection") else f"text_model.{n}": shape for n, shape in bare.items()}
    published["text_model.embeddings.position_ids"] = [1, config["max_position_embeddings"]]
    return {"published": published, "transformers 5": bare}


def vae(config: dict) -> dict:
    now = shapes(diffusers.AutoencoderKL.from_config(config))
    published = {}
    for name, shape in now.items():
        if ".attentions." in name:
            for new, old in OLD_ATTENTION.items():
                name = name.replace(f".{new}.", f".{old}.")
        published[name] = shape
    return {"published": published, "diffusers 0.42": now}


def unet(config: dict) -> dict:
    return {"published": shapes(diffusers.UNet2DConditionModel.from_config(config))}


def main() -> None:
    record = {}
    with torch.device("meta"):
        for folder in sorted(PUBLISHED.iterdir()):
            record[folder.name] = {}
            for part, build in {
                "text_encoder": text_encoder,
                "text_encoder_2": text_encoder,
                "unet": unet,
                "vae": vae,
            }.items():
                path = folder / part / "config.json"
                if path.exists():
                    record[folder.name][part] = build(json.loads(path.read_text()))
    text = json.dumps(record, indent=0)
    out = DATA / "published_keys.json.gz"
    out.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
