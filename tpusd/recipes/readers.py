"""A picture file -> its recipe: asks one reader after the other.

A reader is a file of its own and a place in READERS; it knows one program's way to write a recipe into a picture.
"""

from pathlib import Path
from typing import Protocol

from tpusd.errors import UserError, show_path
from tpusd.recipes.a1111 import read_a1111
from tpusd.recipes.base import PictureTexts, Recipe
from tpusd.recipes.comfyui import read_comfyui
from tpusd.recipes.own import read_own
from tpusd.recipes.texts import read_texts


class Reader(Protocol):
    """Reads one program's recipe. Returns None if the texts hold no such recipe; raises UserError if it is unusable."""

    def __call__(self, texts: PictureTexts, /) -> Recipe | None: ...


READERS: tuple[Reader, ...] = (read_own, read_a1111, read_comfyui)  # the first that answers counts


def read_recipe(path: Path) -> Recipe:
    """The recipe in a picture. Raises UserError if the picture has no recipe, or an invalid one."""
    texts = read_texts(path)
    try:
        recipes = (reader(texts) for reader in READERS)
        recipe = next((recipe for recipe in recipes if recipe is not None), None)
    except UserError as error:
        raise UserError(f"{show_path(path)}: {error}") from None
    if recipe is None:
        raise UserError(
            f"{show_path(path)}: carries no recipe; some programs drop it when they copy or shrink a picture"
        )
    return recipe
