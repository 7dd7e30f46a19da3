"""An image as PyTorch diffusers makes it, from our noise, with what it is on the way.

Nothing here calls a table, a network or a text encoder of tpusd: only the settings and the noise are the same.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from tpusd.checkpoints.adapters import Lora
from tpusd.config.sampler import SamplerSettings
from tpusd.errors import UserError, show
from tpusd.plan.specs import ImageSpec
from tpusd.process import signals
from tpusd.samplers.registry import find_sampler
from tpusd.verify.ours import NEGATIVE, PROMPT, Made, Noise
from tpusd.verify.reference_files import quiet
from tpusd.verify.reference_loras import ReferenceLoras

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin

_OF_CALLS = ("name", "num_inference_steps", "eta", "timesteps")  # not of a scheduler's config


class Reference:
    """A pipeline of diffusers.

    pipeline: as `open_reference` gives it.
    clip_skip: layers of the text encoders that are left out.
    loras: those of the run. Raises UserError for one that diffusers does not take whole.
    """

    def __init__(self, pipeline: "DiffusionPipeline", clip_skip: int, loras: Sequence[Lora] = ()):
        self.pipeline = pipeline
        self._loras = ReferenceLoras(pipeline, loras)
        self._torch = importlib.import_module("torch")
        self._clip_skip = clip_skip or None
        self._scheduler = pipeline.scheduler  # the checkpoint's own, as the pipeline corrected it

    def make(self, spec: ImageSpec, noise: Noise, *, guided: bool) -> Made:
        """One image. guided: whether it has guidance. Raises UserError where diffusers cannot make it."""
        try:
            with quiet(), self._torch.no_grad():
                return self._make(spec, noise, guided=guided)
        except Exception as error:  # the library raises many types for settings that it does not take
            text = show(str(error).strip() or type(error).__name__, 200)
            raise UserError(
                f"sampler={spec.sampler.name}: diffusers cannot make image {spec.name} ({text}); try other steps or "
                "another sampler"
            ) from error

    def _make(self, spec: ImageSpec, noise: Noise, *, guided: bool) -> Made:
        sides = {PROMPT: spec.prompt, **({NEGATIVE: spec.negative_prompt} if guided else {})}
        self._loras.apply(spec.loras)
        embeddings = self._encode(spec, guided=guided)
        latents: list[np.ndarray] = []

        def see(
            pipeline: "DiffusionPipeline", call: int, timestep: "torch.Tensor", tensors: dict[str, Any]
        ) -> dict[str, Any]:
            signals.check()
            latents.append(tensors["latents"][0].permute(1, 2, 0).float().cpu().numpy().copy())
            return tensors

        self.pipeline.scheduler = self.scheduler(spec.sampler)
        with _given_noise(self.pipeline.scheduler, lambda: self._tensor(noise.step(len(latents)))):
            images = self.pipeline(
                **embeddings,
                **self._sizes(spec),
                latents=self._tensor(noise.initial),
                num_inference_steps=spec.sampler.num_inference_steps,
                timesteps=None if spec.sampler.timesteps is None else list(spec.sampler.timesteps),
                guidance_scale=spec.guidance_scale,
                guidance_rescale=spec.guidance_rescale,
                eta=_eta(spec.sampler),
                height=spec.height,
                width=spec.width,
                clip_skip=self._clip_skip,
                callback_on_step_end=see,
                output_type="np",
            ).images
        return Made(
            tokens={side: self._tokens(text or "") for side, text in sides.items()},
            texts=_named(embeddings),
            latents=latents,
            pixels=np.asarray(images[0], np.float32),
        )

    def scheduler(self, settings: SamplerSettings) -> "SchedulerMixin":
        """The scheduler of these settings, made from the checkpoint's own, as diffusers' users do."""
        sampler = find_sampler(settings.name)
        options = {name: value for name, value in asdict(settings).items() if value is not None}
        own = {name: list(v) if isinstance(v, tuple) else v for name, v in options.items() if name not in _OF_CALLS}
        cls = getattr(importlib.import_module("diffusers"), sampler.diffusers)
        config = dict(self._scheduler.config)
        if type(self._scheduler) is cls:  # the pipeline's corrections are lost only with another class
            config.pop("_use_default_values", None)
        return cls.from_config(config, **own, **sampler.diffusers_options)

    def _encode(self, spec: ImageSpec, *, guided: bool) -> dict[str, Any]:
        """The text embeddings, as keyword arguments of the pipeline."""
        with _own_text_model(self.pipeline.text_encoder):
            made = self.pipeline.encode_prompt(
                prompt=spec.prompt,
                negative_prompt=spec.negative_prompt,
                device="cpu",
                num_images_per_prompt=1,
                do_classifier_free_guidance=guided,
                clip_skip=self._clip_skip,
            )
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        return {name: one for name, one in zip(names, made, strict=False) if one is not None}

    def _tokens(self, text: str) -> np.ndarray:
        """(encoders*l,): as the pipeline tokenizes a text."""
        parts = sorted(self.pipeline.components.items())
        return np.concatenate(
            [
                own(
                    text, padding="max_length", max_length=own.model_max_length, truncation=True, return_tensors="np"
                ).input_ids[0]
                for name, own in parts
                if name.startswith("tokenizer") and own is not None
            ]
        )

    def _sizes(self, spec: ImageSpec) -> dict[str, tuple[int, ...]]:
        """SDXL's size conditioning, by the names of its pipeline."""
        if spec.sizes is None:
            return {}
        values = vars(spec.sizes).items()
        return {name.replace("crop", "crops_coords_top_left"): value for name, value in values if value is not None}

    def _tensor(self, noise: np.ndarray) -> "torch.Tensor":
        return self._torch.from_numpy(noise)[None]


def _eta(settings: SamplerSettings) -> float:
    default = find_sampler(settings.name).defaults.get("eta", 0.0)
    assert isinstance(default, float | int)
    return default if settings.eta is None else settings.eta


def _named(embeddings: dict[str, Any]) -> dict[str, np.ndarray]:
    names = {
        "prompt_embeds": PROMPT,
        "pooled_prompt_embeds": f"{PROMPT}, pooled",
        "negative_prompt_embeds": NEGATIVE,
        "negative_pooled_prompt_embeds": f"{NEGATIVE}, pooled",
    }
    return {shown: embeddings[name][0].cpu().numpy() for name, shown in names.items() if name in embeddings}


@contextlib.contextmanager
def _own_text_model(encoder: "torch.nn.Module") -> Iterator[None]:
    """With `clip_skip` diffusers 0.42 looks for the last norm in `text_model`, which transformers 5 does not have.

    Only here: where LoRAs are read, diffusers takes it for the text encoder of an older transformers.
    """
    if hasattr(encoder, "text_model"):
        yield
        return
    object.__setattr__(encoder, "text_model", encoder)  # not as a module, which would be a part of itself
    try:
        yield
    finally:
        object.__delattr__(encoder, "text_model")


@contextlib.contextmanager
def _given_noise(scheduler: "SchedulerMixin", draw: Callable[[], "torch.Tensor"]) -> Iterator[None]:
    """The scheduler's own draws of noise come from draw() -> tensor; its module draws with one function."""
    module = importlib.import_module(type(scheduler).__module__)
    before = getattr(module, "randn_tensor", None)
    if before is None:
        yield
        return

    def given(shape: tuple[int, ...], **_: object) -> "torch.Tensor":
        return draw()

    setattr(module, "randn_tensor", given)  # noqa: B010  (a module has no such attribute for type checkers)
    try:
        yield
    finally:
        setattr(module, "randn_tensor", before)  # noqa: B010
