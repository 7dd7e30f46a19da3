"""The schema of a run: frozen dataclasses, made from plain values, with every rule that needs no file and no model.

A field's hint holds its range and its help. Rules between fields are functions. Knows nothing of Hydra, of YAML, or of
where the values come from; a saved config.yaml is read in the same way.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Interval, Len, MultipleOf

from tpusd.config.adapters import LoraConfig, check_lora
from tpusd.config.cache import NO_CACHE, CacheConfig, check_cache, with_interval
from tpusd.config.controls import MAX_CONTROLNETS, ControlNet, ControlScale, check_controlnet
from tpusd.config.embeddings import MAX_EMBEDDINGS, EmbeddingConfig, check_embedding
from tpusd.config.executor import LOCAL, ExecutorConfig, check_executor
from tpusd.config.limits import MAX_CLIP_SKIP, MAX_COPIES, MAX_FEATHER, MAX_ROWS, GuidanceScale, Seed, Size, Strength
from tpusd.config.options import options
from tpusd.config.paths import expanded_path, picture_path, with_whole_path
from tpusd.config.rows import MAX_LORAS, Row
from tpusd.config.safety import OFF, SafetyConfig, check_safety
from tpusd.config.sampler import GuidanceSchedule, PredictionType, SamplerSettings
from tpusd.config.scores import PUBLISHED, Metric, ScoreWeights, check_score_weights, check_scores_once, with_home
from tpusd.config.shards import check_shard, parse_rows
from tpusd.config.sizes import Pair
from tpusd.config.typed import Advice, Help, SavedIfSet, plain, read, split_hint
from tpusd.errors import UserError, show

DType = Literal["bfloat16", "float16", "float32"]
Noise = Literal["threefry", "torch_cpu", "torch_cuda"]
Syntax = Literal["plain", "a1111", "compel"]
Weighting = Literal["a1111", "a1111_no_norm", "comfy", "compel"]
Resize = Literal["fill", "pad", "stretch", "fit", "bucket"]


@dataclass(frozen=True, kw_only=True)
class OtherPart:
    """A network to use in place of the checkpoint's own: at most one of `path` and `repo`."""

    path: Annotated[str | None, Help("a directory in the layout of diffusers, or one .safetensors file")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    file: Annotated[str | None, Help("a .safetensors file in the repo; null: the repo is a directory of diffusers")] = (
        None
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Where the checkpoint comes from: exactly one of `asset`, `path` and `repo`."""

    name: Annotated[str, Help("the file in conf/model that it comes from")]
    asset: Annotated[str | None, Help("a checkpoint inside the package, by name")] = None
    path: Annotated[str | None, Help("a directory in the layout of diffusers, or one .safetensors file")] = None
    repo: Annotated[str | None, Help("owner/name on the Hugging Face Hub")] = None
    revision: Annotated[str | None, Help("the repo's branch, tag or commit")] = None
    variant: Annotated[str | None, Help("the variant of the weights' files, such as fp16")] = None
    # The digest is tpusd.checkpoints.weights_digest.
    sha256: Annotated[str | None, Help("one digest of all its files; a run refuses other files")] = None
    guidance_scale: Annotated[GuidanceScale, Help("what suits this model, where the run sets no other")] = 7.5
    file: Annotated[
        str | None,
        SavedIfSet(),
        Help("one .safetensors file of the repo, with all networks; null: the repo is a directory of diffusers"),
    ] = None
    config: Annotated[
        str | None,
        SavedIfSet(),
        Help("the architecture of a single file: `sd15`, `sd21_base`, `sd21`, `sdxl`, or a directory of diffusers"),
    ] = None
    prediction_type: Annotated[
        PredictionType | None, SavedIfSet(), Help("what a single file's model predicts, where the file does not say it")
    ] = None
    use_ema: Annotated[bool, SavedIfSet(), Help("reads a single file's averaged copy of the UNet")] = False
    unet: Annotated[OtherPart, SavedIfSet(), Help("another UNet than the checkpoint's own")] = OtherPart()
    vae: Annotated[OtherPart, SavedIfSet(), Help("another VAE than the checkpoint's own")] = OtherPart()
    clip_skip: Annotated[
        int,
        Interval(ge=0, le=MAX_CLIP_SKIP),
        Advice("A1111's Clip skip less one"),
        SavedIfSet(),
        Help("layers of the text encoder to leave out at its end, as in diffusers: A1111's number less one"),
    ] = 0
    loras: Annotated[
        tuple[LoraConfig, ...],
        Len(0, MAX_LORAS),
        SavedIfSet(),
        Help("LoRAs that make this model what it is; a run has them behind its own, and a saved config in `loras`"),
    ] = ()
    controlnets: Annotated[
        tuple[ControlNet, ...],
        Len(0, MAX_CONTROLNETS),
        SavedIfSet(),
        Help("ControlNets and T2I-Adapters, which read control images: `[{path: DIR, scale: 0.8, end: 0.7}]`"),
    ] = ()


@dataclass(frozen=True, kw_only=True)
class PartPrecision:
    """The precision of one network."""

    param_dtype: Annotated[DType, Help("how its weights are stored")]
    dtype: Annotated[DType, Help("what its layers compute in")]


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The precision of each network; both of SDXL's text encoders have the same."""

    name: Annotated[str, Help("the file in conf/precision that it comes from")]
    text_encoder: Annotated[PartPrecision, Help("of the text encoders")]
    unet: Annotated[PartPrecision, Help("of the UNet")]
    vae: Annotated[PartPrecision, Help("of the VAE")]


@dataclass(frozen=True, kw_only=True)
class PromptsConfig:
    """A prompt set: either `rows`, or a file at `path`."""

    name: Annotated[str, Help("the file in conf/prompts that it comes from; the run directory's name ends in it")]
    rows: Annotated[Sequence[Row] | None, Help("the prompts themselves, a group of fields each")] = None
    path: Annotated[str | None, Help("a prompt file: txt, csv, tsv, jsonl, json or parquet")] = None
    column: Annotated[str | None, Help("the file's column that holds the prompts; null: `prompt`")] = None
    on_empty: Annotated[
        Literal["error", "skip"],
        SavedIfSet(),
        Help("`skip` leaves out the file's rows whose prompt is empty"),
    ] = "error"
    replace: Annotated[
        tuple[tuple[str, ...], ...] | None,
        SavedIfSet(),
        Help("`[[cat, dog]]` puts dog in the place of cat; with -m, `[[cat, dog, fox]]` makes a run for each"),
    ] = None
    syntax: Annotated[
        Syntax,
        SavedIfSet(),
        Help("what brackets and signs in a prompt mean: words of it weigh more or less, as in A1111 or in compel"),
    ] = "plain"
    weighting: Annotated[
        Weighting | None,
        SavedIfSet(),
        Help("what weights do to the text embedding; null: what the program of `syntax` does, which has the same name"),
    ] = None
    wildcards: Annotated[
        bool,
        SavedIfSet(),
        Help("choices in braces and lines of files, `__NAME__`, in prompts: chosen once, by the seed and the row"),
    ] = False
    wildcards_dir: Annotated[
        str | None, SavedIfSet(), Help("the directory with the files of `__NAME__`, NAME.txt; it sets `wildcards`")
    ] = None
    lora_dir: Annotated[
        str | None,
        SavedIfSet(),
        Help("where `<lora:NAME:0.8>` in a prompt finds NAME.safetensors, also in its folders; for the syntax `a1111`"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run."""

    model: Annotated[ModelConfig, Help("the checkpoint")]
    precision: Annotated[PrecisionConfig, Help("how weights are stored, and what the layers compute in")]
    sampler: Annotated[SamplerSettings, Help("the sampler and its options")]
    prompts: Annotated[PromptsConfig, Help("the prompt set")]
    loras: Annotated[
        tuple[LoraConfig, ...],
        Len(0, MAX_LORAS),
        SavedIfSet(),
        Help("LoRAs, merged into the weights in this order: `[{path: FILE.safetensors, scale: 0.8}]`"),
    ] = ()
    embeddings: Annotated[
        tuple[EmbeddingConfig, ...],
        Len(0, MAX_EMBEDDINGS),
        SavedIfSet(),
        Help("words of prompts with vectors of their own (textual inversion): `[{path: FILE, token: NAME}]`"),
    ] = ()
    seed: Annotated[Seed, Help("the noise of every image follows from it, from the row and from the copy")] = 0
    noise: Annotated[
        Noise,
        SavedIfSet(),
        Help(
            "what draws noise from a seed: `torch_cpu` and `torch_cuda` draw as PyTorch does on a CPU and on an NVIDIA "
            "GPU, so that a seed of another program gives its picture here"
        ),
    ] = "threefry"
    noise_batch_size: Annotated[
        int,
        Interval(ge=1, le=MAX_COPIES),
        Advice("1 draws each copy from a seed of its own"),
        SavedIfSet(),
        Help(
            "copies that PyTorch draws at once from one seed, as the other program's batch; the copies after them are "
            "drawn from the next seed"
        ),
    ] = 1
    noise_threads: Annotated[
        int | None,
        Interval(ge=256, le=2**24),
        MultipleOf(256),
        SavedIfSet(),
        Help(
            "threads that the other program's GPU runs at once, for `torch_cuda`; null: at least one for each number "
            "of a draw"
        ),
    ] = None
    num_images_per_prompt: Annotated[
        int, Interval(ge=1, le=MAX_COPIES), Advice("use more rows or another seed"), Help("copies of every row")
    ] = 1
    first_row: Annotated[
        int,
        Interval(ge=0, le=MAX_ROWS - 1),
        Advice("rows count from 0"),
        Help(
            "the number that the first row gets: for a file with a part of a larger set, whose images stay the same. "
            "`rows` and `limit` choose rows of a whole set, which keep their numbers"
        ),
    ] = 0
    first_copy: Annotated[
        int,
        Interval(ge=0, le=MAX_COPIES - 1),
        Advice("copies count from 0"),
        Help("the number of the first copy of a row"),
    ] = 0
    guidance_scale: Annotated[
        GuidanceScale | None,
        Help(
            "null: the model's own, `model.guidance_scale`. 0 to 1: the prompt alone; "
            "the unconditional half is then not computed"
        ),
    ] = None
    guidance_rescale: Annotated[
        float,
        Interval(ge=0, le=1),
        Advice("0 switches it off"),
        Help("how far guided predictions take the standard deviation of unguided ones (Lin et al. 2023, section 3.4)"),
    ] = 0.0
    guidance_interval: Annotated[
        tuple[float, ...],
        SavedIfSet(),
        Help(
            "which steps have guidance, as fractions: from the first on, before the second (Kynkäänniemi et al. 2024). "
            "The others take the prompt alone, which is half the work"
        ),
    ] = (0.0, 1.0)
    guidance_schedule: Annotated[
        GuidanceSchedule,
        SavedIfSet(),
        Help("how the scale's part beyond 1 grows over the steps, with the same mean (Wang et al. 2024)"),
    ] = "constant"
    cache: Annotated[CacheConfig, SavedIfSet(), Help("which steps reuse what an earlier one computed")] = NO_CACHE
    negative_prompt: Annotated[
        str | None,
        Help('for the rows that have none of their own; null and "" differ for SDXL, as in diffusers'),
    ] = None
    height: Annotated[Size | None, Help("pixels; null: the model's own size")] = None
    width: Annotated[Size | None, Help("pixels; null: the model's own size")] = None
    image: Annotated[
        str | None, SavedIfSet(), Help("a picture to start from, for the rows that have none of their own")
    ] = None
    mask: Annotated[
        str | None,
        SavedIfSet(),
        Help("a picture whose white part is made again, for the rows that have none of their own; null: all is made"),
    ] = None
    strength: Annotated[
        Strength, SavedIfSet(), Help("the share of the steps that is made from a picture: how much of it changes")
    ] = 0.8
    resize: Annotated[
        Resize,
        SavedIfSet(),
        Help(
            "how a picture gets the image's size: `fill` cuts off its edges, `pad` adds black ones, `stretch` changes "
            "its shape, `fit` gives the image the picture's shape, `bucket` one of some 20 shapes of as many pixels, "
            "and cuts off the rest"
        ),
    ] = "fill"
    paste_back: Annotated[
        bool, SavedIfSet(), Help("with a mask: the pixels that are not masked are the picture's own, bit for bit")
    ] = True
    mask_feather: Annotated[
        int,
        Interval(ge=0, le=MAX_FEATHER),
        Advice("0 is a hard edge"),
        SavedIfSet(),
        Help("with `paste_back`: pixels within the mask's edge over which the picture gives way to what is made"),
    ] = 0
    control_image: Annotated[
        str | None,
        SavedIfSet(),
        Help("the picture that the ControlNet reads, for the rows that have none of their own"),
    ] = None
    control_images: Annotated[
        tuple[str, ...],
        Len(0, MAX_CONTROLNETS),
        SavedIfSet(),
        Help("of several ControlNets, a picture for each, in their order"),
    ] = ()
    control_scale: Annotated[
        ControlScale, SavedIfSet(), Help("a factor on the `scale` of every ControlNet; rows may have their own")
    ] = 1.0
    guess_mode: Annotated[
        bool,
        SavedIfSet(),
        Help("ControlNets guide the prompt's half alone, and their first layers less, so that no prompt is needed"),
    ] = False
    original_size: Annotated[
        Pair | None,
        SavedIfSet(),
        Help(
            "SDXL: height and width of the picture before it was resized: a small one gives a blurred image; null: own"
        ),
    ] = None
    crop: Annotated[
        Pair | None,
        SavedIfSet(),
        Help("SDXL: top and left at which the picture was cropped: 0 and 0 show the object whole; null: 0, 0"),
    ] = None
    target_size: Annotated[
        Pair | None, SavedIfSet(), Help("SDXL: height and width that the picture was resized to; null: own")
    ] = None
    negative_original_size: Annotated[
        Pair | None,
        SavedIfSet(),
        Help("the same of the negative prompt, together with `negative_target_size`; null: those of the prompt"),
    ] = None
    negative_crop: Annotated[
        Pair | None, SavedIfSet(), Help("of the negative prompt, where its sizes are set; null: 0, 0")
    ] = None
    negative_target_size: Annotated[
        Pair | None, SavedIfSet(), Help("of the negative prompt, together with `negative_original_size`")
    ] = None
    batch_size_per_device: Annotated[
        int,
        Interval(ge=1, le=4096),
        Advice("1 needs the least memory"),
        Help("images that a device makes at a time; it does not change them"),
    ] = 1
    on_truncate: Annotated[
        Literal["warn", "error", "chunk"],
        Help(
            "a prompt that is longer than the text encoder's window: `warn` cuts its end off, `error` refuses it, "
            "`chunk` encodes it whole, a window at a time"
        ),
    ] = "warn"
    image_format: Annotated[
        Literal["png", "webp", "jpeg"], Help("how images are stored; each format carries the recipe")
    ] = "png"
    image_quality: Annotated[
        int | None,
        Interval(ge=1, le=100),
        Advice("90 or more is hard to tell from the original"),
        Help("for `webp` (null: without loss) and `jpeg` (null: 95)"),
    ] = None
    on_changed_weights: Annotated[
        Literal["error", "warn"],
        Help("`warn` accepts a checkpoint whose files are not those of `model.sha256`"),
    ] = "error"
    on_nan: Annotated[
        Literal["error", "record"],
        Help(
            "an image with NaN or infinity on its way: `error` leaves it out and ends the run with exit status 1, "
            "`record` writes it and marks its line of the manifest"
        ),
    ] = "error"
    on_error: Annotated[Literal["continue", "stop"], Help("`stop` ends a sweep at its first run that fails")] = (
        "continue"
    )
    dry_run: Annotated[bool, Help("says what would be made, loaded and compiled, and makes nothing")] = False
    loggers: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Help("where a finished run is logged too")
    ] = ()
    scores: Annotated[
        tuple[Metric, ...], SavedIfSet(), Help("metrics that the run computes for its images when they are made")
    ] = ()
    score_weights: Annotated[
        ScoreWeights, SavedIfSet(), Help("where the weights of `scores` are, if not where they were published")
    ] = PUBLISHED
    images: Annotated[
        tuple[str, ...] | None, Help("only these of the run's images, such as `[00003-001]` (row 3, copy 1)")
    ] = None
    executor: Annotated[ExecutorConfig, SavedIfSet(), Help("where the images are made")] = LOCAL
    safety: Annotated[
        SafetyConfig, SavedIfSet(), Help("a safety checker that looks at every picture before it is written")
    ] = OFF
    output: Annotated[
        str | None, Help("the exact run directory, new or empty; null: `runs/<date>_<time>_<prompts>`")
    ] = None
    rows: Annotated[
        str | None,
        SavedIfSet(),
        Advice("in YAML, put it in quotes"),
        Help("`START:STOP`: only the rows START to STOP - 1, which keep their numbers, names and images"),
    ] = None
    limit: Annotated[
        int | None,
        SavedIfSet(),
        Interval(ge=1, le=MAX_ROWS),
        Advice("null makes all rows"),
        Help("only so many rows, the first of the set or of `rows`; `resume=` with a larger one makes more"),
    ] = None
    shard: Annotated[
        str | None,
        SavedIfSet(),
        Help(
            "`i/n`: this process makes part i of n, in the `output` that all parts share or in one of its own. `auto`: "
            "as the scheduler numbers it; `auto/n` where that does not say n"
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class SavedPrompts(PromptsConfig):
    """A prompt set whose rows are all there."""

    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class SavedConfig(RunConfig):
    """A run whose rows and image size are known: what the config.yaml of a run directory holds."""

    prompts: SavedPrompts
    guidance_scale: float
    height: int  # pixels
    width: int


_Config = TypeVar("_Config", bound=RunConfig)


def saved_config(
    config: RunConfig,
    *,
    rows: Sequence[Row],
    height: int,
    width: int,
    prompts_name: str | None = None,
) -> SavedConfig:
    """`config` with its rows and its image size filled in, and without `shard`: it is the config of all parts.

    rows: all rows of the prompt set.
    height, width: pixels.
    prompts_name: a name for the prompt set; None keeps the one that it has.
    """
    assert config.guidance_scale is not None
    own = config.prompts
    prompts = SavedPrompts(name=prompts_name or own.name, rows=rows, syntax=own.syntax, weighting=own.weighting)
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return SavedConfig(**known | {"prompts": prompts, "height": height, "width": width, "shard": None})


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """Plain values (as YAML gives them) -> a checked RunConfig. Raises UserError for the first thing that is wrong."""
    config = _with_paths(_with_the_models_loras(read(RunConfig, values)))
    if config.guidance_scale is None:
        config = dataclasses.replace(config, guidance_scale=config.model.guidance_scale)
    _check(config)
    return dataclasses.replace(config, cache=with_interval(config.cache))


def _with_the_models_loras(config: RunConfig) -> RunConfig:
    """Those that the model brings, behind the run's own, so that `loras.0` stays the first that the run names.

    One that the run names itself, with a scale of its own, is not added a second time.
    """
    model, own = config.model, {(lora.path, lora.repo, lora.file) for lora in config.loras}
    brought = (lora for lora in model.loras if (lora.path, lora.repo, lora.file) not in own)
    loras = (*config.loras, *brought)
    if len(loras) > MAX_LORAS:
        raise UserError(f"loras: has {len(loras)} with those of the model; at most {MAX_LORAS} can be merged")
    return dataclasses.replace(config, model=dataclasses.replace(model, loras=()), loras=loras)


def _with_paths(config: RunConfig) -> RunConfig:
    """Every path with the home that a leading ~ stands for."""
    model, prompts, output = config.model, config.prompts, config.output
    image, mask, control_image = (
        None if path is None else picture_path(path, name)
        for name, path in (("image", config.image), ("mask", config.mask), ("control_image", config.control_image))
    )
    if model.path is not None:
        model = dataclasses.replace(model, path=expanded_path(model.path, "model.path"))
    if model.config is not None:
        model = dataclasses.replace(model, config=expanded_path(model.config, "model.config"))
    unet, vae = with_whole_path(model.unet, "model.unet"), with_whole_path(model.vae, "model.vae")
    nets = tuple(with_whole_path(net, f"model.controlnets[{i}]") for i, net in enumerate(model.controlnets))
    model = dataclasses.replace(model, unet=unet, vae=vae, controlnets=nets)
    for name in ("path", "wildcards_dir", "lora_dir"):
        if (path := getattr(prompts, name)) is not None:
            whole: dict[str, Any] = {name: expanded_path(path, f"prompts.{name}")}
            prompts = dataclasses.replace(prompts, **whole)
    if output is not None:
        output = expanded_path(output, "output")
    loras = tuple(with_whole_path(lora, f"loras[{i}]") for i, lora in enumerate(config.loras))
    safety = with_whole_path(config.safety, "safety")
    embeddings = tuple(with_whole_path(one, f"embeddings[{i}]") for i, one in enumerate(config.embeddings))
    control_images = tuple(picture_path(path, f"control_images[{i}]") for i, path in enumerate(config.control_images))
    return dataclasses.replace(
        config,
        model=model,
        loras=loras,
        embeddings=embeddings,
        prompts=prompts,
        output=output,
        image=image,
        mask=mask,
        control_image=control_image,
        control_images=control_images,
        safety=safety,
        score_weights=with_home(config.score_weights),
    )


def without_scores(config: _Config) -> _Config:
    """The same images, which nobody scores."""
    return dataclasses.replace(config, scores=(), score_weights=PUBLISHED)


def config_values(config: RunConfig) -> dict[str, Any]:
    """The inverse of make_config: dicts, lists and scalars that YAML and JSON can hold."""
    values: dict[str, Any] = plain(config)
    return values


def field_names() -> list[str]:
    """Every dotted field that a command line can set, such as `sampler.num_inference_steps`."""
    return [option.path for option in options(RunConfig)]


@functools.cache
def text_fields() -> frozenset[str]:
    """The fields whose value is one text, such as `negative_prompt`."""
    return frozenset(option.path for option in options(RunConfig) if split_hint(option.hint)[0] in (str, str | None))


@functools.cache
def true_or_false_fields() -> frozenset[str]:
    """The fields that are true or false."""
    return frozenset(option.path for option in options(RunConfig) if split_hint(option.hint)[0] in (bool, bool | None))


def _check(config: RunConfig) -> None:
    """The rules between fields."""
    last_first = MAX_COPIES - config.num_images_per_prompt
    if config.first_copy > last_first:
        raise UserError(
            f"first_copy={config.first_copy}: must be from 0 to {last_first}; a row has at most {MAX_COPIES} copies"
        )
    if config.image_quality is not None and config.image_format == "png":
        raise UserError(f"image_quality={config.image_quality}: PNG loses nothing; use image_format=webp or jpeg")
    interval = config.guidance_interval
    if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
        raise UserError(
            f"guidance_interval={show(list(interval))}: must be two fractions from 0 to 1, the smaller one first; "
            "[0, 1] is all steps"
        )
    _check_noise(config)
    pictures = [("image", config.image), ("mask", config.mask), ("control_image", config.control_image)]
    pictures += [(f"control_images[{i}]", path) for i, path in enumerate(config.control_images)]
    for name, picture in pictures:
        if picture is not None and not picture.strip():
            raise UserError(f"{name}='': must name a picture; {name}=null means no picture")
    if config.control_image is not None and config.control_images:
        raise UserError("control_images: control_image is set too; leave one of the two out")
    if config.rows is not None:
        parse_rows(config.rows)
    if config.shard is not None:
        check_shard(config.shard)
    _check_model(config.model)
    for i, lora in enumerate(config.loras):
        check_lora(lora, f"loras[{i}]")
    for i, embedding in enumerate(config.embeddings):
        check_embedding(embedding, f"embeddings[{i}]")
    _check_prompts(config.prompts)
    check_cache(config.cache)
    if config.cache.name != "none" and config.model.controlnets:
        raise UserError(f"cache={config.cache.name}: does not go with ControlNets; remove it, or model.controlnets")
    check_executor(config.executor)
    check_safety(config.safety)
    check_scores_once(config.scores)
    check_score_weights(config.score_weights)


def _check_noise(config: RunConfig) -> None:
    if config.noise_batch_size != 1 and config.noise == "threefry":
        raise UserError(
            f"noise_batch_size={config.noise_batch_size}: is for noise=torch_cpu and noise=torch_cuda; choose one of "
            "them or remove noise_batch_size"
        )
    if config.noise_threads is not None and config.noise != "torch_cuda":
        raise UserError(
            f"noise_threads={config.noise_threads}: is for noise=torch_cuda; add it or remove noise_threads"
        )


def _check_prompts(prompts: PromptsConfig) -> None:
    if prompts.lora_dir is not None and prompts.syntax != "a1111":
        raise UserError(
            f"prompts.lora_dir={show(prompts.lora_dir)}: is for prompts.syntax=a1111; add it or remove lora_dir"
        )
    if prompts.weighting is not None and prompts.syntax == "plain":
        raise UserError(
            f"prompts.weighting={prompts.weighting}: is for prompts.syntax=a1111 and prompts.syntax=compel; choose one "
            "of them or remove prompts.weighting"
        )
    if prompts.path is not None and prompts.rows is not None:
        raise UserError(
            f"prompts.path={show(prompts.path)}: prompts={prompts.name} has its own rows; "
            "add prompts=file to read the file"
        )
    if prompts.rows is not None and not prompts.rows:
        raise UserError("prompts.rows: holds no prompt; add at least one")
    if prompts.rows is not None and len(prompts.rows) > MAX_ROWS:
        raise UserError(f"prompts.rows: more than {MAX_ROWS} prompts; split them over several runs")
    if prompts.path is None and prompts.rows is None and prompts.name == "inline":
        raise UserError('prompts=inline: has no rows; write prompt="a red fox", which needs no prompts=')
    if prompts.path is None and prompts.rows is None:
        raise UserError("prompts.path=null: prompts=file reads a file; add prompts.path=FILE")
    if prompts.column is not None and prompts.path is None:
        raise UserError(f"prompts.column={show(prompts.column)}: is for files; add prompts=file prompts.path=FILE")
    _check_replace(prompts.replace)
    if prompts.on_empty != "error" and prompts.path is None:
        raise UserError(f"prompts.on_empty={prompts.on_empty}: is for files; add prompts=file prompts.path=FILE")


def _check_replace(lists: tuple[tuple[str, ...], ...] | None) -> None:
    for texts in lists or ():
        listed = ", ".join(texts)
        shown = f"prompts.replace=[[{show(listed)}]]"
        if len(texts) > 2:
            raise UserError(f"{shown}: has several texts to put in; add -m to make a run for each")
        if len(texts) < 2 or not texts[0]:
            raise UserError(f"{shown}: must be a text and what takes its place, as in [[cat, dog]]")


def _check_model(model: ModelConfig) -> None:
    sources = [name for name in ("asset", "path", "repo") if getattr(model, name) is not None]
    if model.name == "local" and not sources:
        raise UserError("model.path=null: model=local reads a directory or a file; add model.path=DIR")
    if len(sources) != 1:
        given = " ".join(f"model.{name}={show(getattr(model, name))}" for name in sources) or "model.repo=null"
        raise UserError(
            f"{given}: exactly one of model.asset, model.path and model.repo must be set; "
            "use model=local model.path=DIR for a directory"
        )
    if model.asset is not None and not model.asset.isidentifier():
        raise UserError(f"model.asset={show(model.asset)}: is a name, not a path; use model=local model.path=DIR")
    if model.repo is None and model.revision is not None:
        raise UserError(f"model.revision={show(model.revision)}: is for models from the Hub; leave it out")
    if model.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", model.sha256):
        raise UserError(f"model.sha256={show(model.sha256)}: must be 64 hexadecimal digits, as a saved config.yaml has")
    if model.path is not None and not model.path.strip():
        raise UserError("model.path='': must name a directory or a .safetensors file")
    if model.file is not None and model.repo is None:
        raise UserError(
            f"model.file={show(model.file)}: is a file of model.repo; for a local one write model.path=FILE"
        )
    if model.file is not None and model.variant is not None:
        raise UserError(f"model.variant={show(model.variant)}: is for directories; name the file with model.file alone")
    _check_file_of_repo(model.file, "model.file")
    _check_part(model.unet, "model.unet", "a UNet")
    _check_part(model.vae, "model.vae", "a VAE")
    for i, net in enumerate(model.controlnets):
        check_controlnet(net, f"model.controlnets[{i}]")
        _check_file_of_repo(net.file, f"model.controlnets[{i}].file")


def _check_part(part: OtherPart, field: str, noun: str) -> None:
    if part.path is not None and part.repo is not None:
        raise UserError(f"{field}.path={show(part.path)}: {field}.repo is set too; leave one of the two out")
    for name in ("revision", "file"):
        if part.repo is None and (value := getattr(part, name)) is not None:
            raise UserError(f"{field}.{name}={show(value)}: is for {noun} from the Hub; set {field}.repo")
    _check_file_of_repo(part.file, f"{field}.file")


def _check_file_of_repo(file: str | None, field: str) -> None:
    if file is None:
        return
    if not file.endswith(".safetensors"):
        raise UserError(f"{field}={show(file)}: must be a .safetensors file; pickles (.ckpt, .pt) can run code")
    if file.startswith("/") or "\\" in file or {"", ".", ".."} & set(file.split("/")):
        raise UserError(f"{field}={show(file)}: must be a path inside the repository, such as model.safetensors")
