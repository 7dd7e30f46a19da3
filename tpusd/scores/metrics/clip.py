"""Metrics that compare a picture with its prompt in the space of a CLIP model."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpusd.errors import UserError
from tpusd.scores.base import Metric, Picture, Place, Scorer

if TYPE_CHECKING:
    from tpusd.vision.clip import Clip

CLIP_L = Place(repo="openai/clip-vit-large-patch14", revision="32bd64288804d66eefd0ccbe215aa642df71cc41")
PICKSCORE = Place(repo="yuvalkirstain/PickScore_v1", revision="a4e4367c6dfa7288a00c550414478f865b875800")
HPS = Place()  # published as a pickle alone


@functools.cache
def clip_at(place: Place, name: str) -> "Clip":
    """The model at a place, once for all metrics that need it. name: as the user's words have it. Raises UserError."""
    from tpusd.vision.clip import load_clip  # brings JAX with it

    return load_clip(place.path, repo=place.repo, revision=place.revision, field=f"{place.prefix}{name}")


@functools.cache
def check_clip(place: Place, name: str, *, texts: bool) -> None:
    """Raises UserError where `clip_at` and its embeddings would, as far as files tell. texts: embeds prompts too."""
    from tpusd.vision.clip import open_clip  # brings JAX with it

    opened = open_clip(place.path, repo=place.repo, revision=place.revision, field=f"{place.prefix}{name}")
    opened.match_vision()
    if texts:
        opened.match_text()


@dataclass(frozen=True)
class Agreement:
    """From the cosines of pictures and prompts, and the model's logit scale, to values."""

    clip: "Clip"
    value: "Callable[[float, Clip], float]"

    @property
    def weights(self) -> str:
        return self.clip.sha256

    def __call__(self, pictures: Sequence[Picture], /) -> Sequence[float | None]:
        from tpusd.vision.clip import unit

        texts = list(dict.fromkeys(picture.record.prompt for picture in pictures))
        features = dict(zip(texts, unit(self.clip.text_features(texts)), strict=True))
        images = unit(self.clip.image_features(picture.image for picture in pictures))
        cosines = [float(image @ features[one.record.prompt]) for image, one in zip(images, pictures, strict=True)]
        return [self.value(cosine, self.clip) for cosine in cosines]


def clip_score(cosine: float, clip: "Clip") -> float:
    """100 times the cosine, and 0 below that (Hessel et al. 2021, in the scale of torchmetrics)."""
    return max(100 * cosine, 0.0)


def pickscore(cosine: float, clip: "Clip") -> float:
    """The cosine times the logit scale that was trained with it (Kirstain et al. 2023)."""
    return clip.logit_scale * cosine


def hpsv21(cosine: float, clip: "Clip") -> float:
    """The cosine, as `hpsv2.score` gives it; the tables of the paper have 100 times that (Wu et al. 2023)."""
    return cosine


def _place(places: Mapping[str, Place], name: str) -> Place:
    if places[name] == Place():
        raise UserError(
            f"metric={name}: give {places[name].prefix}{name}.path=DIR, its weights in transformers' layout "
            "(config.json, ...)"
        )
    return places[name]


def _opener(name: str, value: "Callable[[float, Clip], float]") -> Callable[[Mapping[str, Place]], Scorer]:
    return lambda places: Agreement(clip_at(_place(places, name), name), value)


def _checker(name: str) -> Callable[[Mapping[str, Place]], object]:
    return lambda places: check_clip(_place(places, name), name, texts=True)


METRICS = (
    Metric(
        name="clip_score",
        about="how well the picture fits its prompt, by CLIP",
        range="0 to 100, usually 15 to 35",
        better="higher",
        needs=f"`{CLIP_L.repo}` (1.7 GB), or another CLIP with `clip.path` or `clip.repo`",
        paper="[Hessel et al. 2021](https://arxiv.org/abs/2104.08718)",
        places={"clip": CLIP_L},
        open=_opener("clip", clip_score),
        check=_checker("clip"),
    ),
    Metric(
        name="pickscore",
        about="which pictures of a prompt people prefer, by PickScore v1",
        range="no limits, usually 17 to 24",
        better="higher",
        needs=f"`{PICKSCORE.repo}` (3.9 GB)",
        paper="[Kirstain et al. 2023](https://arxiv.org/abs/2305.01569)",
        places={"pickscore": PICKSCORE},
        open=_opener("pickscore", pickscore),
        check=_checker("pickscore"),
    ),
    Metric(
        name="hpsv21",
        about="which pictures of a prompt people prefer, by HPS v2.1",
        range="-1 to 1, usually 0.2 to 0.35",
        better="higher",
        needs="`hpsv21.path=DIR`: its weights in transformers' layout (3.9 GB); they are published as a pickle",
        paper="[Wu et al. 2023](https://arxiv.org/abs/2306.09341)",
        places={"hpsv21": HPS},
        open=_opener("hpsv21", hpsv21),
        check=_checker("hpsv21"),
    ),
)
