"""Pixels -> PNG bytes that carry their recipe, and contact sheets. Knows nothing of runs or directories."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from tpusd import __version__

COMPRESS_LEVEL = 1  # at 512x512: 24 ms; level 6 takes 41 ms and saves 11 %
MAX_CHUNK_BYTES = 1 << 20  # readers refuse longer text chunks
MAX_TEXT_CHARS = 80_000  # of a prompt: JSON may take 6 bytes for a character, and there are two prompts
# How A1111 and its readers call the samplers; others go by their own name.
A1111_NAMES = {
    "pndm": "PLMS",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "deis": "DEIS",
    "lcm": "LCM",
}


def encode_png(pixels: np.ndarray, recipe: Mapping[str, Any]) -> bytes:
    """uint8 (H, W, 3) -> PNG with two text chunks: `parameters` as A1111 writes it, and `tpusd`, the recipe as JSON."""
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, (pixels.dtype, pixels.shape)
    info = PngImagePlugin.PngInfo()
    _add_text(info, "parameters", parameters_text(recipe))
    info.add_itxt("tpusd", _fitting(recipe))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=COMPRESS_LEVEL, pnginfo=info)
    return buffer.getvalue()


def parameters_text(recipe: Mapping[str, Any]) -> str:
    """The text that A1111, Civitai and others read: prompt, negative prompt, then one line of settings."""
    settings = {
        "Steps": recipe["num_inference_steps"],
        "Sampler": A1111_NAMES.get(recipe["sampler"], recipe["sampler"]),
        "CFG scale": f"{recipe['guidance_scale']:g}",
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model": recipe["model"],
        "RNG": "JAX",
        "Version": f"tpusd {__version__}",
    }
    schedules = {"use_karras_sigmas": "Karras", "use_exponential_sigmas": "Exponential", "use_beta_sigmas": "Beta"}
    for option, name in schedules.items():
        if recipe.get("sampler_settings", {}).get(option):
            settings["Schedule type"] = name
    lines = [_cut(recipe["prompt"])]
    if recipe["negative_prompt"]:
        lines.append(f"Negative prompt: {_cut(recipe['negative_prompt'])}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
    return "\n".join(line.replace("\0", "") for line in lines)


def contact_sheet(
    entries: Iterable[tuple[str, Image.Image]], *, columns: int, note: str = "", cell: int = 192
) -> Image.Image:
    """Labelled thumbnails in rows of `columns`; `cell`: pixels of a thumbnail's longer side. `note` stands at the foot.

    An empty label leaves the room under its thumbnail free. Entries are taken one at a time and not kept.
    """
    font = _font(13)
    thumbnails: list[tuple[list[str], Image.Image]] = []
    for label, image in entries:
        image = image.convert("RGB")
        # Small pictures are enlarged in whole steps, so that their pixels stay what they are.
        factor = max(1, cell // max(image.size))
        if factor > 1:
            image = image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
        thumbnails.append((_wrap(label, font, cell), image))
    columns = max(1, min(columns, len(thumbnails)))
    gap, line_height = 12, 17
    rows = [thumbnails[i : i + columns] for i in range(0, len(thumbnails), columns)]
    heights = [
        max(image.height for _, image in row) + 6 + line_height * max(len(lines) for lines, _ in row) for row in rows
    ]
    note_lines = _wrap(note, font, columns * (cell + gap) - gap, max_lines=3)
    size = (gap + columns * (cell + gap), gap + sum(height + gap for height in heights) + line_height * len(note_lines))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        image_height = max(image.height for _, image in row)
        for column, (lines, image) in enumerate(row):
            left = gap + column * (cell + gap)
            sheet.paste(image, (left + (cell - image.width) // 2, top + image_height - image.height))
            for number, line in enumerate(lines):
                draw.text((left, top + image_height + 4 + number * line_height), line, fill="#222222", font=font)
        top += height + gap
    for number, line in enumerate(note_lines):
        draw.text((gap, top - gap // 2 + number * line_height), line, fill="#666666", font=font)
    return sheet


def encode_sheet(sheet: Image.Image) -> bytes:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def _add_text(info: PngImagePlugin.PngInfo, key: str, text: str) -> None:
    """tEXt holds Latin-1 alone; everything else goes into iTXt."""
    try:
        text.encode("latin-1")
        info.add_text(key, text)
    except UnicodeEncodeError:
        info.add_itxt(key, text)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _cut(text: str) -> str:
    return text[:MAX_TEXT_CHARS]


def _fitting(recipe: Mapping[str, Any]) -> str:
    """The recipe as JSON; without its further columns where those would make it too long to be read back."""
    own = {name: _cut(value) if isinstance(value, str) else value for name, value in recipe.items()}
    text = json.dumps(own, ensure_ascii=False)
    if len(text.encode()) < MAX_CHUNK_BYTES:
        return text
    return json.dumps({name: value for name, value in own.items() if name != "extra"}, ensure_ascii=False)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # Pillow's own, so that sheets look the same everywhere


def _wrap(text: str, font: Any, width: int, max_lines: int = 4) -> list[str]:
    """Lines of at most `width` pixels; what does not fit ends in an ellipsis. Control characters become spaces."""
    lines = [""]
    for word in "".join(c if c.isprintable() else " " for c in text[:400]).split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append(word)
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:  # a word wider than a line
            cut = max(1, int(len(lines[-1]) * width / font.getlength(lines[-1])) - 1)
            lines[-1:] = [lines[-1][:cut], lines[-1][cut:]]
    lines = lines[1:]
    if len(lines) > max_lines:
        lines = [*lines[: max_lines - 1], lines[max_lines - 1][:-3].rstrip() + "..."]
    return lines


def sheet_labels(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A prompt under the first picture of its row; the others show their copy."""
    labels, last = [], None
    for record in records:
        first = record["row"] != last
        labels.append(record["prompt"] if first else f"copy {record['copy']}")
        last = record["row"]
    return labels
