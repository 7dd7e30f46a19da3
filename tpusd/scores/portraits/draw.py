"""Draws a portrait: flat shapes on a flat background, 128x128. Knows nothing of captions or training.

Lengths are in pixels of the finished picture, from the middle of the face; y grows downwards. Everything is drawn
three times as large and averaged down.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from tpusd.scores.portraits.world import Portrait, draw_portrait

SIZE = 128
OVERSAMPLING = 3
HELD_OUT_SEED = 1 << 32  # pictures of held-out combinations are drawn from seeds of their own

Color = tuple[int, int, int]
Colors = dict[str, Color]
Point = tuple[float, float]

HAIR: Colors = {
    "black": (38, 34, 44), "brown": (126, 72, 34), "blond": (244, 206, 98), "red": (214, 84, 28),
    "white": (236, 236, 240), "blue": (52, 108, 222),
}  # fmt: skip
SKIN: Colors = {
    "pale": (255, 224, 204),
    "tanned": (234, 178, 128),
    "brown": (172, 112, 74),
    "dark": (94, 58, 46),
}
EYES: Colors = {
    "blue": (46, 132, 240),
    "green": (44, 168, 74),
    "brown": (122, 68, 30),
    "purple": (160, 70, 220),
}
CLOTHES: Colors = {
    "red": (206, 38, 48), "orange": (246, 134, 30), "yellow": (250, 212, 40), "green": (40, 148, 70),
    "blue": (40, 82, 200), "purple": (128, 58, 176), "white": (246, 246, 246), "black": (42, 42, 50),
}  # fmt: skip
BACKGROUND: Colors = {
    "red": (226, 92, 88), "orange": (250, 172, 96), "yellow": (252, 232, 128), "green": (138, 206, 122),
    "teal": (72, 186, 182), "blue": (112, 164, 240), "purple": (176, 132, 224), "pink": (250, 172, 206),
    "gray": (182, 184, 190),
}  # fmt: skip
WHITE, INK, FRAME = (255, 255, 255), (36, 28, 36), (30, 30, 40)
LIPS, MOUTH, TEARS = (220, 52, 78), (192, 50, 60), (116, 204, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pose:
    """What differs between two drawings of the same attributes; captions never speak of it."""

    x: float  # middle of the face
    y: float
    scale: float
    width: float  # half the face's
    height: float
    eye_distance: float  # half of it
    gaze: tuple[float, float]
    shade: float  # of the background, -1..1
    parting: float  # -1 left .. 1 right


def draw_pose(rng: np.random.Generator) -> Pose:
    """A random pose."""
    u = rng.uniform
    return Pose(
        x=64 + u(-2.5, 2.5), y=66 + u(-2, 2), scale=u(1.08, 1.15), width=u(24.5, 26.5), height=u(28, 30),
        eye_distance=u(10.5, 11.5), gaze=(u(-1.2, 1.2), u(-0.8, 0.8)), shade=u(-1, 1),
        parting=float(rng.choice((-1, 1))),
    )  # fmt: skip


def make_picture(index: int, *, seed: int, held_out: bool = False) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """((128,128,3) uint8, labels (attributes,) int32). Picture i of seed s is always the same."""
    rng = np.random.default_rng([index, seed + (HELD_OUT_SEED if held_out else 0)])
    portrait = draw_portrait(rng, held_out=held_out)
    return draw(portrait, draw_pose(rng)), portrait.labels


def draw(portrait: Portrait, pose: Pose, oversampling: int = OVERSAMPLING) -> NDArray[np.uint8]:
    """(128,128,3) uint8."""
    ground = _mix(BACKGROUND[portrait.background], WHITE if pose.shade > 0 else INK, abs(pose.shade) * 0.06)
    canvas = _Canvas(pose, oversampling, ground)
    hair = HAIR[portrait.hair_color]
    skin = SKIN[portrait.skin]
    _back_hair(canvas, portrait, pose, hair)
    _body(canvas, portrait, skin)
    _head(canvas, portrait, pose, skin)
    _beard(canvas, portrait, pose, hair)
    _eyes(canvas, portrait, pose, hair, skin)
    _mouth(canvas, portrait)
    if portrait.beard == "moustache":
        for side in (-1, 1):
            canvas.polygon([(0, 9.5), (side * 6, 9.5), (side * 16, 15), (side * 8, 16.5), (0, 14)], hair)
    if portrait.expression == "sad":
        _tears(canvas, pose)
    _front_hair(canvas, portrait, pose, hair)
    _hat(canvas, portrait, pose)
    _glasses(canvas, portrait, pose)
    return canvas.pixels()


class _Canvas:
    """Pillow's drawing calls in face coordinates."""

    def __init__(self, pose: Pose, oversampling: int, background: Color):
        self.pose, self.oversampling = pose, oversampling
        self.image = Image.new("RGB", (SIZE * oversampling,) * 2, background)
        self.pen = ImageDraw.Draw(self.image)

    def _at(self, x: float, y: float) -> Point:
        p = self.pose
        return ((p.x + x * p.scale) * self.oversampling, (p.y + y * p.scale) * self.oversampling)

    def _box(self, x: float, y: float, rx: float, ry: float) -> list[float]:
        return [*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)]

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Color) -> None:
        self.pen.ellipse(self._box(x, y, rx, ry), fill=color)

    def ring(self, x: float, y: float, rx: float, ry: float, color: Color, width: float) -> None:
        self.pen.ellipse(self._box(x, y, rx, ry), outline=color, width=round(width * self.oversampling))

    def chord(self, x: float, y: float, rx: float, ry: float, start: float, end: float, color: Color) -> None:
        self.pen.chord(self._box(x, y, rx, ry), start, end, fill=color)

    def arc(
        self, x: float, y: float, rx: float, ry: float, start: float, end: float, color: Color, width: float
    ) -> None:
        self.pen.arc(self._box(x, y, rx, ry), start, end, fill=color, width=round(width * self.oversampling))

    def box(self, x0: float, y0: float, x1: float, y1: float, color: Color, radius: float = 0.0) -> None:
        self.pen.rounded_rectangle([*self._at(x0, y0), *self._at(x1, y1)], radius * self.oversampling, fill=color)

    def frame(self, x0: float, y0: float, x1: float, y1: float, color: Color, width: float, radius: float) -> None:
        self.pen.rounded_rectangle(
            [*self._at(x0, y0), *self._at(x1, y1)],
            radius * self.oversampling,
            outline=color,
            width=round(width * self.oversampling),
        )

    def polygon(self, points: list[Point], color: Color) -> None:
        self.pen.polygon([self._at(*point) for point in points], fill=color)

    def line(self, points: list[Point], color: Color, width: float) -> None:
        self.pen.line(
            [self._at(*point) for point in points], fill=color, width=round(width * self.oversampling), joint="curve"
        )

    def pixels(self) -> NDArray[np.uint8]:
        return np.asarray(self.image.reduce(self.oversampling))


def _mix(a: Color, b: Color, share: float) -> Color:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _back_hair(canvas: _Canvas, portrait: Portrait, pose: Pose, hair: Color) -> None:
    w, h = pose.width, pose.height
    match portrait.hair_style:
        case "bob":
            canvas.box(-w - 8, -h - 3, w + 8, 25, hair, 20)
            canvas.box(-w - 8, 0, w + 8, 25, hair, 6)
        case "long":
            canvas.ellipse(0, -6, w + 9, h + 2, hair)
            canvas.box(-w - 9, -6, w + 9, 52, hair, 8)
        case "curly":
            for k in range(13):
                angle = math.radians(148 + k * 244 / 12)
                canvas.ellipse((w + 8) * math.cos(angle), -5 + (h + 3) * math.sin(angle), 11.5, 11.5, hair)
        case "pigtails":
            for side in (-1, 1):
                canvas.ellipse(side * (w + 12), 17, 9, 17, hair)
                canvas.ellipse(side * (w + 7), -1, 5, 5, LIPS)
            canvas.ellipse(0, -5, w + 4, h + 2, hair)
        case "spiky":
            canvas.ellipse(0, -5, w + 3, h + 2, hair)
            for k in range(9):
                angle = math.radians(180 + k * 180 / 8)
                x, y = math.cos(angle), math.sin(angle)
                canvas.polygon(
                    [
                        ((w + 15) * x, -5 + (h + 15) * y),
                        (w * x - 9 * y, -5 + h * y + 9 * x),
                        (w * x + 9 * y, -5 + h * y - 9 * x),
                    ],
                    hair,
                )
        case "short":
            canvas.ellipse(0, -7, w + 4, h - 1, hair)


def _body(canvas: _Canvas, portrait: Portrait, skin: Color) -> None:
    cloth = CLOTHES[portrait.clothes_color]
    half = 45 if portrait.person == "man" else 38
    neck = 12 if portrait.person == "man" else 8.5
    canvas.box(-half, 36, half, 100, cloth, 17)
    if portrait.clothes_pattern == "striped":
        stripe = INK if portrait.clothes_color in ("white", "yellow", "orange") else WHITE
        for y in (41.5, 51.5):
            canvas.box(-half + (4 if y < 45 else 0), y - 2.3, half - (4 if y < 45 else 0), y + 2.3, stripe)
    canvas.ellipse(0, 36, neck + 5, 7, _mix(cloth, INK, 0.25))
    canvas.ellipse(0, 34.5, neck + 2, 5.5, skin)
    canvas.box(-neck, 20, neck, 36, skin)
    canvas.chord(0, 24, neck + 6, 12, 0, 180, _mix(skin, INK, 0.18))


def _head(canvas: _Canvas, portrait: Portrait, pose: Pose, skin: Color) -> None:
    w, h = pose.width, pose.height
    for side in (-1, 1):
        canvas.ellipse(side * w, 1, 4.5, 6.5, skin)
    canvas.ellipse(0, 0, w, h, skin)
    if portrait.person == "man":
        canvas.box(-w + 2.5, -2, w - 2.5, h, skin, 15)
    else:
        for side in (-1, 1):
            canvas.ellipse(side * 16, 11, 5, 3.5, _mix(skin, (240, 80, 90), 0.4))
    canvas.line([(-0.5, 2), (2, 8), (-1.5, 8.5)], _mix(skin, INK, 0.3), 1.5)


def _beard(canvas: _Canvas, portrait: Portrait, pose: Pose, hair: Color) -> None:
    """A full beard leaves skin around the mouth, so that the expression shows whatever the colour of the hair."""
    if portrait.beard != "full":
        return
    w, h = pose.width, pose.height
    skin = SKIN[portrait.skin]
    canvas.chord(0, 4, w + 0.5, h + 4, 0, 180, hair)
    canvas.chord(0, 3.5, w - 6, 7.5, 0, 180, skin)
    canvas.ellipse(0, 19, 14.5, 9.5, skin)


def _eyes(canvas: _Canvas, portrait: Portrait, pose: Pose, hair: Color, skin: Color) -> None:
    brow = _mix(hair, INK, 0.35)
    thick = 3.2 if portrait.person == "man" else 2.2
    tilt = {"sad": -3.4, "serious": 2.8}.get(portrait.expression, 0.0)
    lift = {"surprised": -4.0, "serious": 1.5}.get(portrait.expression, 0.0)
    wide = portrait.expression == "surprised"
    for side in (-1, 1):
        x = side * pose.eye_distance
        canvas.ellipse(x, -3, 8 if wide else 7.6, 8 if wide else 6.8, WHITE)
        if portrait.person == "woman":
            canvas.arc(x, -3, 8, 8.4 if wide else 7.4, 190, 350, INK, 1.8)
            canvas.line([(x + side * 6.4, -6.5), (x + side * 9.6, -9.5)], INK, 1.6)
        gx, gy = pose.gaze
        canvas.ellipse(x + gx, -3 + gy, 5.3, 5.3, EYES[portrait.eye_color])
        canvas.ellipse(x + gx, -3 + gy, 2.2, 2.2, INK)
        canvas.ellipse(x + gx + 1.6, -4.8 + gy, 1.2, 1.2, WHITE)
        if portrait.expression == "serious":
            canvas.chord(x, -3, 8, 7.2, 200, 340, _mix(skin, INK, 0.12))  # half-closed lids
        middle = -13.5 + lift
        canvas.line(
            [(x - side * 6, middle + tilt), (x, middle - 1 - abs(tilt) / 4), (x + side * 6, middle - tilt)], brow, thick
        )


def _mouth(canvas: _Canvas, portrait: Portrait) -> None:
    color = LIPS if portrait.person == "woman" else MOUTH
    inside = _mix(color, INK, 0.65)
    match portrait.expression:
        case "smiling":
            canvas.chord(0, 14, 13, 11.5, 0, 180, color)
            canvas.chord(0, 14.8, 10.8, 8.6, 0, 180, inside)
            canvas.box(-10, 14, 10, 18, WHITE, 1)
        case "serious":
            canvas.line([(-9.5, 18), (9.5, 18)], color, 3.8)
        case "sad":
            canvas.arc(0, 26.5, 10.5, 10, 202, 338, color, 3.8)
        case "surprised":
            canvas.ellipse(0, 19.5, 7.2, 7.8, color)
            canvas.ellipse(0, 19.5, 4.7, 5.3, inside)


def _tears(canvas: _Canvas, pose: Pose) -> None:
    for side in (-1, 1):
        x = side * (pose.eye_distance + 2)
        canvas.polygon([(x, 4.5), (x - 3, 11.5), (x + 3, 11.5)], TEARS)
        canvas.ellipse(x, 12, 3.4, 3.6, TEARS)


def _front_hair(canvas: _Canvas, portrait: Portrait, pose: Pose, hair: Color) -> None:
    w, h, p = pose.width, pose.height, pose.parting
    match portrait.hair_style:
        case "short":
            canvas.chord(0, -1, w + 1.5, h + 3, 214, 326, hair)
            for side in (-1, 1):
                canvas.polygon(
                    [(side * (w + 2), -20), (side * (w - 5), -18), (side * (w - 2), -2), (side * (w + 2), -3)], hair
                )
        case "bob":
            canvas.chord(0, -1, w + 2, h + 3, 212, 328, hair)
            for side in (-1, 1):
                canvas.polygon(
                    [(side * (w + 2), -20), (side * (w - 8), -18), (side * (w - 1), 8), (side * (w + 4), 12)], hair
                )
        case "long" | "pigtails":
            canvas.polygon(
                [(p * 9, -h - 2), (-p * 22, -h + 6), (-p * (w + 2), -2), (-p * (w - 3), -6), (-p * 8, -15)], hair
            )
            canvas.polygon(
                [(p * 9, -h - 2), (p * 20, -h + 7), (p * (w + 2), -2), (p * (w - 2), -8), (p * 17, -17)], hair
            )
            canvas.chord(0, -1, w + 1, h + 2.5, 222, 318, hair)
        case "curly":
            for k in range(6):
                x = -20 + 8 * k
                canvas.ellipse(x, -h + 5 + 0.016 * x * x, 8, 7, hair)
        case "spiky":
            canvas.chord(0, -1, w + 1, h + 3, 216, 324, hair)
            for k in range(5):
                x = -18 + 9 * k
                canvas.polygon([(x - 6, -21), (x + 6, -21), (x + 1.5 * p, -10.5)], hair)


def _hat(canvas: _Canvas, portrait: Portrait, pose: Pose) -> None:
    w, h = pose.width, pose.height
    color = CLOTHES[portrait.hat_color]
    dark = _mix(color, INK, 0.3)
    match portrait.hat:
        case "beanie":
            canvas.ellipse(0, -h - 17, 6, 6, _mix(color, WHITE, 0.5) if portrait.hat_color != "white" else dark)
            canvas.chord(0, -19, w + 4, h - 3, 180, 360, color)
            canvas.box(-w - 5, -25, w + 5, -17, dark, 4)
        case "cap":
            canvas.chord(0, -19, w + 3, h - 7, 180, 360, color)
            canvas.polygon([(-w + 2, -23), (w + 19, -22), (w + 23, -16), (w + 10, -15.5), (-w + 2, -16.5)], dark)
            canvas.ellipse(0, -19 - h + 7, 2.4, 2, dark)
        case "top hat":
            canvas.polygon([(-w + 5, -22), (-w + 1, -54), (w - 1, -54), (w - 5, -22)], color)
            canvas.box(-w + 4.5, -31, w - 4.5, -23, INK if portrait.hat_color != "purple" else WHITE)
            canvas.box(-w - 11, -23, w + 11, -17.5, color, 2.7)


def _glasses(canvas: _Canvas, portrait: Portrait, pose: Pose) -> None:
    if portrait.glasses == "none":
        return
    for side in (-1, 1):
        x = side * pose.eye_distance
        canvas.line([(side * 20, -4), (side * (pose.width + 1), -6)], FRAME, 2.2)
        match portrait.glasses:
            case "round":
                canvas.ring(x, -3, 10.6, 10.6, FRAME, 2.3)
            case "square":
                canvas.frame(x - 10.3, -11.5, x + 10.3, 6, FRAME, 2.3, 1.5)
            case "sunglasses":
                canvas.box(x - 10.5, -10.5, x + 10.5, -2, FRAME, 2)
                canvas.chord(x, -4, 10.5, 10.5, 0, 180, FRAME)
                canvas.line([(x - 5, -2), (x + 1, -8)], (120, 124, 150), 2)
    canvas.line([(-2, -4.5), (2, -4.5)], FRAME, 2.3)
