"""An image as tpusd makes it, with what it is on the way; and its noise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from tpusd.engine.adapters import ScaledLora
from tpusd.engine.drawn_noise import DrawnNoise
from tpusd.engine.noise import initial_latents, step_noise
from tpusd.engine.pipeline import Pipeline, image_keys
from tpusd.families.latent_diffusion import TextConditioning
from tpusd.plan.specs import ImageSpec
from tpusd.samplers.rows import NOISE
from tpusd.samplers.table import Table

PROMPT, NEGATIVE = "prompt", "negative prompt"


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image on its way. Both programs give the same places in the same order.

    tokens: text -> ids (encoders*l,).
    texts: text, and what it became -> an array.
    latents: after each model call, (h,w,c).
    pixels: (H,W,3) float in 0..1.
    """

    tokens: Mapping[str, np.ndarray]
    texts: Mapping[str, np.ndarray]
    latents: Sequence[np.ndarray]
    pixels: np.ndarray


@dataclass(frozen=True)
class Noise:
    """An image's own noise: initial (c,h,w), and of model call k, (c,h,w), float32."""

    initial: np.ndarray
    step: Callable[[int], np.ndarray]


@dataclass
class _Watched:
    """The Watch of one image."""

    encoded_texts: dict[str | None, tuple[np.ndarray, TextConditioning]] = field(default_factory=dict)
    latents: list[np.ndarray] = field(default_factory=list)

    def encoded(self, texts: Sequence[str | None], ids: np.ndarray, conditioning: object) -> None:
        assert isinstance(conditioning, TextConditioning)
        self.encoded_texts[texts[0]] = ids[0], jax.tree.map(lambda own: own[0], conditioning)

    def stepped(self, rows: int, latents: np.ndarray) -> None:
        self.latents.append(latents[0])


def make_ours(pipeline: Pipeline, spec: ImageSpec, table: Table, loras: Sequence[ScaledLora] = ()) -> Made:
    """One image, by the programs of a run. loras: of the image. Raises UserError where the weights do not fit."""
    watched = _Watched()
    (image,) = pipeline.generate([spec], [table], loras=loras, watch=watched)
    sides = {PROMPT: spec.prompt, **({NEGATIVE: spec.negative_prompt} if spec.guided_calls(len(table)) else {})}
    tokens, texts = {}, {}
    for side, text in sides.items():
        ids, conditioning = watched.encoded_texts[text]
        tokens[side], texts[side] = ids, np.asarray(conditioning.hidden)
        if conditioning.pooled is not None:
            texts[f"{side}, pooled"] = np.asarray(conditioning.pooled)
    return Made(tokens=tokens, texts=texts, latents=watched.latents, pixels=image.pixels.astype(np.float32) / 255)


def noise_of(spec: ImageSpec, table: Table, shape: tuple[int, int, int]) -> Noise:
    """What the image starts from, and the noise of its steps. shape: (c,h,w) of the latents."""
    if not spec.noise.is_torch:
        keys = jnp.asarray(image_keys([spec]))
        return Noise(
            _first(np.asarray(initial_latents(keys, shape))), lambda k: _first(np.asarray(step_noise(keys, k, shape)))
        )
    drawn = DrawnNoise([spec], [table], shape)
    initial = _first(drawn.without_steps().initial)
    takes_noise = bool(table.rows[:, NOISE].any())
    steps = [_first(drawn.given(k, k + 1).steps[:, 0]) for k in range(len(table))] if takes_noise else []
    return Noise(initial, steps.__getitem__)


def _first(images: np.ndarray) -> np.ndarray:
    """(b,h,w,c) -> (c,h,w) of the first, as PyTorch has it."""
    first: np.ndarray = images[0].transpose(2, 0, 1).copy()
    return first
