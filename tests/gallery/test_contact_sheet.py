from types import SimpleNamespace

import numpy as np
from PIL import Image

from tpusd.gallery.contact_sheet import sheet_labels
from tpusd.gallery.drawing import encode_sheet
from tpusd.gallery.grid import contact_sheet


def sheet(labels, size=(64, 48), **options):
    return contact_sheet([(label, Image.new("RGB", size, "red")) for label in labels], **options)


def test_sheet_has_a_cell_for_every_picture_and_labels_below():
    made = sheet(["one", "two", "three"], columns=2)
    assert made.width == 12 + 2 * 268 and made.height > 2 * (192 + 17)
    pixels = np.asarray(made)
    assert (pixels == (255, 0, 0)).all(-1).sum() == 3 * 256 * 192
    assert (pixels.sum(-1) < 200).sum() > 20  # letters


def test_sheet_wraps_long_labels_and_takes_any_text():
    for label in ("word " * 100, "W" * 300, "日本\n\0\u202e🦊", ""):
        made = sheet([label] * 5, columns=4, note="5 of 99 images")
        assert made.width == 12 + 4 * 268 and made.height < 2 * 308 + 60
        encode_sheet(made)


def test_sheet_shrinks_large_pictures_and_keeps_their_shape():
    made = sheet(["a"], size=(1024, 512), columns=8)
    assert (np.asarray(made) == (255, 0, 0)).all(-1).sum() == 256 * 128


def test_only_the_first_picture_of_a_row_carries_the_prompt():
    records = [SimpleNamespace(row=row, copy=copy, prompt="a") for row, copy in ((0, 0), (0, 1), (1, 0))]
    assert sheet_labels(records) == ["a", "copy 1", "a"]
