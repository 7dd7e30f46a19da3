"""How colorful a picture is, by its pixels alone."""

from tpusd.scores.base import Metric, Picture, Plain


def colorfulness(picture: Picture) -> float:
    """The metric M(3) of Hasler and Süsstrunk (2003), on red, green and blue of 0..255.

    With rg = R - G and yb = (R + G) / 2 - B: the root of their variances' sum, and 0.3 times the root of the sum of
    their squared means. 0 is gray; 109 was the average of the pictures that people called extremely colorful.
    """
    import numpy as np

    red, green, blue = np.moveaxis(np.asarray(picture.image.convert("RGB"), np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


METRICS = (
    Metric(
        name="colorfulness",
        about="how colorful the picture is, by its pixels alone",
        range="0 (gray) to about 110 and more (extremely colorful)",
        limits=(0, None),
        better=None,
        paper="[Hasler and Süsstrunk 2003](https://doi.org/10.1117/12.477378)",
        open=lambda places: Plain(colorfulness),
    ),
)
