import numpy as np
import pytest
from PIL import Image

from tpusd.gallery.grid import labelled_grid

COLORS = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}


def grid(rows, size=(200, 100), **options):
    pictures = [[None if color is None else Image.new("RGB", size, color) for color in row] for row in rows]
    return np.asarray(
        labelled_grid(
            pictures,
            column_labels=[f"column {i}" for i in range(len(rows[0]))],
            row_labels=[f"row {i}" for i in range(len(rows))],
            **options,
        )
    )


def box(pixels, color):
    """(left, top, right, bottom) of a colour, and whether it fills that box."""
    where = (pixels == COLORS[color]).all(-1)
    y, x = np.nonzero(where)
    return (x.min(), y.min(), x.max() + 1, y.max() + 1), where.sum() == (np.ptp(x) + 1) * (np.ptp(y) + 1)


def test_pictures_stand_in_their_rows_and_columns():
    pixels = grid([["red", "lime"], [None, "blue"]])
    (red, whole), (lime, _), (blue, _) = (box(pixels, color) for color in COLORS)
    assert whole and (red[2] - red[0], red[3] - red[1]) == (200, 100)
    assert lime[1] == red[1] and lime[0] == red[2] + 6  # beside
    assert blue[0] == lime[0] and blue[1] == lime[3] + 6  # below
    missing = pixels[blue[1] + 1 : blue[3] - 1, red[0] + 1 : red[2] - 1]
    assert (missing == 255).all()


def test_labels_stand_beside_and_above_and_titles_and_note_around_them():
    bare = grid([["red"]])
    told = grid([["red"]], column_title="guidance_scale", row_title="sampler", note="a prompt " * 20)
    for pixels in (bare, told):
        (left, top, right, bottom), _ = box(pixels, "red")
        dark = pixels.max(-1) < 120
        assert dark[:top, left:right].any() and dark[top:bottom, :left].any()
        assert not dark[top:bottom, left:right].any()  # no letter on a picture
    (_, top, _, bottom), _ = box(told, "red")
    assert told.shape[0] - bottom > bare.shape[0] - box(bare, "red")[0][3] and top > box(bare, "red")[0][1]


@pytest.mark.parametrize(
    ("size", "shown"), [((1024, 512), (256, 128)), ((40, 24), (120, 72)), ((128, 128), (128, 128))]
)
def test_large_pictures_shrink_and_small_ones_grow_in_whole_steps(size, shown):
    (left, top, right, bottom), whole = box(grid([["red"]], size=size), "red")
    assert whole and (right - left, bottom - top) == shown


def test_any_text_fits_its_label():
    for text in ("W" * 400, "word " * 90, "日本 \u202e 🦊\n\0", ""):
        made = labelled_grid(
            [[Image.new("RGB", (128, 128), "red")]], column_labels=[text], row_labels=[text], column_title=text[:30]
        )
        assert made.width < 500 and made.height < 300
