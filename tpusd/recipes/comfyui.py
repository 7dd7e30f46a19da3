"""The reader of ComfyUI's pictures: its standard text-to-image graph -> a like picture at best.

The graph: CheckpointLoaderSimple, two CLIPTextEncode, EmptyLatentImage -> KSampler or KSamplerAdvanced -> VAEDecode ->
SaveImage. Of a larger graph it takes the part that has this form, and names every other node that the picture was made
with. Knows nothing of files.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from tpusd.config.limits import MAX_COPIES
from tpusd.config.rows import MAX_PROMPT_CHARS
from tpusd.errors import UserError, show
from tpusd.recipes.base import GRAPH, PictureTexts, Recipe
from tpusd.recipes.carry_over import NOT_GIVEN, CarryOver, Missing, Value
from tpusd.recipes.graph import Graph, Node, Source, read_graph
from tpusd.samplers.registry import samplers

# ComfyUI's samplers -> a choice of conf/sampler, and the options with which it is the same method.
SAMPLERS: Mapping[str, tuple[str, Mapping[str, Value]]] = {
    "euler": ("euler", {}),
    "euler_ancestral": ("euler_ancestral", {}),
    "heun": ("heun", {}),
    "lms": ("lms", {}),
    "dpmpp_2m": ("dpmpp_2m", {}),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}),
    "dpmpp_2m_sde_gpu": ("dpmpp_2m_sde", {}),
    "ddim": ("ddim", {}),
    "ddpm": ("ddpm", {}),
    "deis": ("deis", {"solver_order": 3}),
    "uni_pc": ("unipc", {"solver_order": 3, "solver_type": "bh1"}),
    "uni_pc_bh2": ("unipc", {"solver_order": 3, "solver_type": "bh2"}),
    "lcm": ("lcm", {}),
}
# ComfyUI's schedulers -> the options that give the same timesteps. Karras, exponential and beta lie between the ends of
# the model's whole range of noise, which are those of `linspace`.
SCHEDULERS: Mapping[str, Mapping[str, Value]] = {
    "normal": {"timestep_spacing": "linspace"},
    "simple": {"timestep_spacing": "trailing"},
    "sgm_uniform": {"timestep_spacing": "trailing"},
    "ddim_uniform": {"timestep_spacing": "leading", "steps_offset": 1},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    "exponential": {"timestep_spacing": "linspace", "use_exponential_sigmas": True},
    "beta": {"timestep_spacing": "linspace", "use_beta_sigmas": True},
}
# The published files' names, without their endings -> the choice of conf/model with these weights.
MODEL_NAMES = {
    "sd-v1-4": "sd14",
    "v1-5-pruned-emaonly": "sd15",
    "v1-5-pruned-emaonly-fp16": "sd15",
    "v2-1_512-ema-pruned": "sd21_base",
    "v2-1_768-ema-pruned": "sd21",
    "sd_xl_base_1.0": "sdxl",
}
_KSAMPLERS = ("KSampler", "KSamplerAdvanced")
_SAVERS = ("SaveImage", "PreviewImage")
_STANDARD = {*_KSAMPLERS, *_SAVERS, "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "VAEDecode"}
_PASSED_ON = ("Reroute", "Primitive")  # the names of nodes that only pass a value on begin so
_CONDITIONINGS = ("conditioning", "conditioning_to", "conditioning_1")
_FILES = ("lora_name", "control_net_name", "vae_name", "model_name", "unet_name", "clip_name", "image")
_WEIGHTED = re.compile(r"(?<!\\)\((?:\\.|[^()\\])*\)", re.DOTALL)
_EMBEDDING = re.compile(r"\bembedding:[^\s,()]{1,200}")


def read_comfyui(texts: PictureTexts) -> Recipe | None:
    """Raises UserError for a graph without a sampler that is known."""
    graph = read_graph(texts.chunks.get(GRAPH, ""))
    if graph is None:
        return None
    reading = _Reading(graph)
    carried = reading.carried
    return Recipe(source="ComfyUI", values=reading.values, overrides=carried.overrides, left_out=carried.left_out)


class _Reading:
    """What one graph says.

    values: those of the standard nodes, in ComfyUI's names.
    carried: what of it tpusd can make.
    """

    def __init__(self, graph: Graph):
        self.graph = graph
        self.carried = CarryOver()
        self.values: dict[str, str | int | float | bool] = {}
        made_from = self._made_from()
        sampler = self._first_sampler(made_from)
        self._steps(sampler)
        self._prompts(sampler)
        self._latent(sampler)
        self._model(sampler)
        self._others(made_from, sampler)
        self.carried.leave_out(
            "noise", "ComfyUI draws it with PyTorch on the CPU; tpusd draws other noise, so the picture differs"
        )

    def _made_from(self) -> Sequence[Node]:
        """The nodes that the picture was made with. The picture does not say which node saved it: the first counts."""
        nodes = self.graph.nodes.values()
        savers = [node for node in nodes if node.class_type in _SAVERS]
        seen: set[str] = set()  # of nodes that no sampler comes before
        for end in [*savers, *(node for node in nodes if node.class_type in _KSAMPLERS)]:
            if any(node.class_type in _KSAMPLERS for node in self.graph.upstream(end, seen)):
                if len(savers) > 1:
                    self.carried.leave_out(f"{len(savers)} nodes save pictures", f"{_name(end)} is taken")
                return list(self.graph.upstream(end))
        raise UserError(f"its ComfyUI graph has no {' or '.join(_KSAMPLERS)}; graphs of other samplers are not read")

    def _first_sampler(self, made_from: Sequence[Node]) -> Node:
        """Of several samplers the one that begins with noise alone; the others work on its result."""
        samplers = [node for node in made_from if node.class_type in _KSAMPLERS]
        return next((node for node in samplers if self._empty_latent(node) is not None), samplers[-1])

    def _steps(self, sampler: Node) -> None:
        self._sampler(self._read(sampler, "sampler_name"), self._read(sampler, "scheduler"))
        advanced = sampler.class_type == "KSamplerAdvanced"
        seed = "noise_seed" if advanced else "seed"
        steps = self._read(sampler, "steps")
        self.carried.steps("steps", steps)
        self.carried.guidance("cfg", self._read(sampler, "cfg"))
        self.carried.seed(seed, self._read(sampler, seed))
        usual = {"add_noise": "enable", "start_at_step": 0, "return_with_leftover_noise": "disable"}
        for name, value in (usual if advanced else {"denoise": 1}).items():
            found = self._read(sampler, name)
            if found not in (value, NOT_GIVEN):
                self.carried.leave_out(name, _described(found), "tpusd begins with noise alone, and makes every step")
        last = self._read(sampler, "end_at_step") if advanced else NOT_GIVEN
        if isinstance(last, int) and isinstance(steps, int) and last < steps:
            self.carried.leave_out("end_at_step", last, "tpusd makes every step")

    def _sampler(self, name: object, scheduler: object) -> None:
        if not isinstance(name, str) or name not in SAMPLERS:
            rule = f"is not one of {', '.join(SAMPLERS)}; the default is taken"
            self.carried.leave_out("sampler_name", _described(name), rule)
            return
        own, options = SAMPLERS[name]
        self.carried.set("sampler", own)
        for option, value in {**options, **self._schedule(own, scheduler)}.items():
            self.carried.set(f"sampler.{option}", value)

    def _schedule(self, sampler: str, scheduler: object) -> Mapping[str, Value]:
        """sampler: tpusd's. The options that give ComfyUI's scheduler; none if they cannot."""
        if not isinstance(scheduler, str) or scheduler not in SCHEDULERS:
            rule = f"is not one of {', '.join(SCHEDULERS)}; the sampler's own is taken"
            self.carried.leave_out("scheduler", _described(scheduler), rule)
            return {}
        options = SCHEDULERS[scheduler]
        if not options.keys() <= samplers()[sampler].defaults.keys():
            rule = f"sampler={sampler} has no such schedule; its own is taken"
            self.carried.leave_out("scheduler", scheduler, rule)
            return {}
        if scheduler == "beta":
            self.carried.leave_out(
                "scheduler", scheduler, "ComfyUI spreads the timesteps by it, tpusd the noise levels"
            )
        return options

    def _prompts(self, sampler: Node) -> None:
        prompts = {name: self._prompt(sampler, name) for name in ("positive", "negative")}
        self.values |= {name: prompt[:MAX_PROMPT_CHARS] for name, prompt in prompts.items()}
        self.carried.prompts(prompts["positive"], prompts["negative"])
        embeddings = {found[0] for prompt in prompts.values() for found in _EMBEDDING.finditer(prompt)}
        rule = "embeddings are not loaded; the text model reads their names as words"
        self.carried.leave_out_each(sorted(embeddings), rule)
        weighted = next((found[0] for prompt in prompts.values() for found in _WEIGHTED.finditer(prompt)), None)
        if weighted is not None:
            self.carried.leave_out(weighted, "brackets weigh words in ComfyUI; the text model reads them as text")

    def _prompt(self, sampler: Node, name: str) -> str:
        """The text of the nearest CLIPTextEncode; `_others` names the nodes between it and the sampler."""
        for source in self.graph.follow(sampler.inputs.get(name), (*_CONDITIONINGS, name)):
            if source.node.class_type == "CLIPTextEncode":
                text = self.graph.value(source.node.inputs.get("text"))
                if isinstance(text, str):
                    return text
                what = f"{_name(text.node)} makes its text" if isinstance(text, Source) else "has no text"
                self.carried.leave_out(name, f"{what}; it is left out")
                return ""
            if source.node.class_type == "ConditioningZeroOut":
                return ""
        self.carried.leave_out(name, "leads to no CLIPTextEncode; it is left out")
        return ""

    def _latent(self, sampler: Node) -> None:
        latent = self._empty_latent(sampler)
        if latent is None:
            rule = "is not from an EmptyLatentImage; tpusd begins with noise, at the model's own size"
            self.carried.leave_out("latent_image", rule)
            return
        for name in ("width", "height"):
            self.carried.size(name, name, self._read(latent, name))
        copies = self._read(latent, "batch_size")
        if isinstance(copies, int) and 1 < copies <= MAX_COPIES:
            self.carried.set("num_images_per_prompt", copies)
            self.carried.leave_out("batch_size", copies, "the picture does not say which one it is; all are made")
        elif copies not in (1, NOT_GIVEN):
            rule = f"must be a whole number from 1 to {MAX_COPIES}; one image is made"
            self.carried.leave_out("batch_size", _described(copies), rule)

    def _empty_latent(self, sampler: Node) -> Node | None:
        source = self.graph.source(sampler.inputs.get("latent_image"))
        return source.node if source is not None and source.node.class_type == "EmptyLatentImage" else None

    def _model(self, sampler: Node) -> None:
        loaders = (source.node for source in self.graph.follow(sampler.inputs.get("model"), ("model",)))
        loader = next((node for node in loaders if node.class_type == "CheckpointLoaderSimple"), None)
        name = NOT_GIVEN if loader is None else self._read(loader, "ckpt_name")
        stem = re.sub(r"\.(safetensors|ckpt)$", "", re.split(r"[/\\]", name)[-1]) if isinstance(name, str) else ""
        if stem in MODEL_NAMES:
            self.carried.set("model", MODEL_NAMES[stem])
            self.carried.leave_out("ckpt_name", name, f"only this name says that it is model={MODEL_NAMES[stem]}")
        else:
            self.carried.model("ckpt_name", name)

    def _others(self, made_from: Sequence[Node], sampler: Node) -> None:
        """A line for each kind of node outside the standard graph, and one for further samplers."""
        others = Counter(_kind(node) for node in made_from if not _is_standard(node))
        kinds = (f"{kind} ({count} nodes)" if count > 1 else kind for kind, count in others.items())
        self.carried.leave_out_each(kinds, "has no counterpart")
        samplers = sum(node.class_type in _KSAMPLERS for node in made_from)
        if samplers > 1:
            self.carried.leave_out(f"{samplers} samplers", f"only {_name(sampler)} carries over, which comes first")

    def _read(self, node: Node, name: str) -> str | int | float | bool | Missing:
        """An input's value, which goes into `values` too."""
        value = self.graph.value(node.inputs.get(name))
        if isinstance(value, Source):
            return Missing(f"is worked out by {_name(value.node)}, which is not read")
        if value is None:
            return NOT_GIVEN
        if not isinstance(value, str | bool | int | float):
            return Missing("is neither text nor a number")
        printable = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        self.values[name] = value if printable else show(value)
        return value


def _is_standard(node: Node) -> bool:
    return node.class_type in _STANDARD or node.class_type.startswith(_PASSED_ON)


def _kind(node: Node) -> str:
    """A node's class, and the files that it names."""
    files = [value for name in _FILES if isinstance(value := node.inputs.get(name), str)]
    return ": ".join(map(show, [node.class_type, *files]))


def _described(value: object) -> str:
    return value.why if isinstance(value, Missing) else show(value)


def _name(node: Node) -> str:
    return f"{show(node.class_type)} {show(node.id)}"
