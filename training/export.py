"""Writes what was trained as an ordinary diffusers directory.

    python -m training.export DIR tpusd/assets/tiny

DIR: what training.denoiser wrote; the autoencoder and the tokenizer lie beside it.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from tpusd.checkpoints import save_checkpoint
from tpusd.families.stable_diffusion import StableDiffusion
from training import autoencoder
from training.denoiser import SCHEDULER, load_autoencoder, load_model, load_scaling_factor, unet_config
from training.text_encoder import text_config, tokenizer_in


def export(directory: Path, target: Path, dtype: str = "float16") -> None:
    """Writes the moving averages of the newest checkpoints to `target`."""
    root = directory.parent
    tokenizer = tokenizer_in(root)
    _, params = load_model(directory, tokenizer.vocab_size)
    _, vae = load_autoencoder(root / "autoencoder")
    vae_config = dataclasses.replace(autoencoder.CONFIG, scaling_factor=load_scaling_factor(root))
    save_checkpoint(
        target,
        StableDiffusion(),
        networks={
            "unet": (unet_config(), params["unet"]),
            "vae": (vae_config, vae),
            "text_encoder": (text_config(tokenizer.vocab_size), params["text_encoder"]),
        },
        tokenizers={"tokenizer": tokenizer},
        scheduler_config=SCHEDULER,
        dtype=dtype,
    )
    # transformers computes in the type that this names, diffusers in float32 whatever is stored: unless they agree,
    # a pipeline that was opened without a type stops at its first step.
    file = target / "text_encoder" / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) | {"torch_dtype": "float32"}
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    export(args.directory, args.target)
    print(f"{args.target}: {sum(f.stat().st_size for f in args.target.rglob('*') if f.is_file()):,} bytes")


if __name__ == "__main__":
    main()
