"""Draws a synthetic fundus photograph; `python -m resnet_lab.data.fundus FILE.png` draws one of each grade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator, default_rng

from resnet_lab.files import write_atomically

Color = np.ndarray | tuple[float, ...]

GRADES = ("no DR", "mild", "moderate", "severe", "proliferative")
EYES = ("left", "right")
DRAWING_VERSION = 1  # raise it when the same arguments give other pictures

# Mean counts by grade, after the International Clinical Diabetic Retinopathy scale (Wilkinson et al. 2003)
LESIONS = {
    "microaneurysms": (0, 6, 11, 18, 14),
    "hemorrhages": (0, 0, 4, 16, 10),
    "exudates": (0, 0, 9, 16, 12),
    "cotton_wool": (0, 0, 0.4, 3, 2),
    "beads": (0, 0, 0, 14, 6),
    "tufts": (0, 0, 0, 0, 3),
    "preretinal": (0, 0, 0, 0, 1.5),
    "scars": (0, 0, 0, 0, 12),
}
SEVERITY_SPREAD = 0.45  # standard deviation in grades, as between two graders

PIGMENTS = np.array([(0.86, 0.46, 0.10), (0.86, 0.50, 0.34), (0.76, 0.27, 0.06), (0.66, 0.35, 0.14)])
VESSEL, BLOOD = np.array((0.75, 0.48, 0.48)), np.array((0.62, 0.32, 0.32))  # transmission by channel
YELLOW, WHITE, PALE = (1.0, 0.92, 0.40), (1.0, 0.95, 0.82), (0.95, 0.80, 0.55)
DISC, DISC_RADIUS = np.array((0.64, -0.04)), 0.16  # in radii of the field, relative to the fovea
FINE, SHIFT = 2, 4  # masks have twice the image's size; cv2 uses coordinates in 1/16 pixel


def draw_fundus(grade: int, eye: str, patient: int, seed: int, size: int) -> np.ndarray:
    """Draw one photograph, uint8 RGB of shape (size, size * 4 // 3, 3), as a function of its arguments alone.

    Pigment and vessels depend on the patient; exposure, focus, dust and framing on the photograph. `grade`
    changes only the lesions; their severity varies so that neighboring grades overlap.
    """
    number = EYES.index(eye)
    # numpy pads short seeds with zeros, so two streams must not differ only by a trailing 0
    person, photo = default_rng((seed, patient, 9)), default_rng((seed, patient, number, 1))
    field, view = _frame(photo, size, size * 4 // 3, mirrored=eye == "left")
    pigment = person.dirichlet((0.8,) * len(PIGMENTS)) @ PIGMENTS
    image = _retina(person, pigment, view, (size, size * 4 // 3))
    veins = _draw_vessels(person, image, pigment, view)
    _draw_lesions(default_rng((seed, patient, number, 2)), grade, image, pigment, view, veins)
    return _expose(photo, image, field, view)


def _frame(rng: Generator, height: int, width: int, mirrored: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the camera's round field (x, y, radius in pixels) and the (2, 3) map from the retina to pixels.

    On the retina the fovea is the origin, the field's radius is 1, and the optic disc is on the right.
    """
    radius = height * rng.uniform(0.46, 0.54)  # above 0.5 the frame cuts the field off
    center = np.array((width, height)) / 2 + height * rng.normal(0, (0.02, 0.01))
    angle, zoom = rng.normal(0, 0.06), radius * rng.uniform(0.95, 1.05)
    turn = np.array(((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))
    linear = zoom * turn @ np.diag((-1.0 if mirrored else 1.0, 1.0))
    fovea = center + linear @ rng.normal((-0.08, 0.0), 0.05)
    return np.array((*center, radius)), np.column_stack((linear, fovea))


def _scale(view: np.ndarray) -> float:
    """Return pixels per unit of the retina."""
    return float(np.hypot(*view[:, 0]))


def _fixed(pixels: np.ndarray) -> Any:
    """Convert lengths or positions in pixels to cv2's fixed-point numbers on a fine mask, as nested lists."""
    return np.round(pixels * FINE * 2**SHIFT).astype(int).tolist()


def _places(points: np.ndarray, view: np.ndarray) -> Any:
    """Convert points of the retina (..., 2) to cv2's fixed-point numbers."""
    return _fixed(points @ view[:, :2].T + view[:, 2] + 0.5)


def _empty(image: np.ndarray) -> np.ndarray:
    """Return an empty fine mask over `image`."""
    return np.zeros((image.shape[1] * FINE, image.shape[2] * FINE), np.uint8)


def _planes(color: Color) -> np.ndarray:
    """Return a color (3,) in a shape that broadcasts over images (3, H, W)."""
    return np.asarray(color, np.float32)[:, None, None]


def _paint(image: np.ndarray, mask: np.ndarray, color: Color, blur: float = 0) -> None:
    """Blend `color` into `image` (3, H, W) inside the fine `mask`, edges softened by `blur` pixels."""
    cover = cv2.resize(mask, image.shape[:0:-1], interpolation=cv2.INTER_AREA)
    if blur > 0:
        cover = cv2.GaussianBlur(cover, (0, 0), blur)
    x, y, width, height = cv2.boundingRect(cover)
    patch = image[:, y : y + height, x : x + width]
    patch += cover[y : y + height, x : x + width] / np.float32(255) * (_planes(color) - patch)


def _ellipse(mask: np.ndarray, center: Any, axes: Any, angle: float, end: float, value: float) -> None:
    """Draw a filled ellipse, or its lower half with `end` 180; center and axes in fixed-point numbers."""
    cv2.ellipse(mask, center, axes, angle, 0, end, value, -1, cv2.LINE_AA, SHIFT)


def _spots(rng: Generator, mask: np.ndarray, view: np.ndarray, centers: np.ndarray, radii: tuple[float, float]) -> None:
    """Draw ellipses of random shape and opacity on `mask`, their long half axes between two `radii`."""
    n = len(centers)
    axes = rng.uniform(*radii, (n, 1)) * np.column_stack((np.ones(n), rng.uniform(0.6, 1, n)))
    angles, opacity = rng.uniform(0, 180, n), rng.uniform(130, 255, n)
    for spot in zip(_places(centers, view), _fixed(axes * _scale(view)), angles, opacity, strict=True):
        _ellipse(mask, *spot[:3], 360, spot[3])


def _scattered(rng: Generator, count: int, inner: float, outer: float) -> np.ndarray:
    """Draw points (count, 2) uniformly in the ring between two radii around the fovea."""
    radius, angle = np.sqrt(rng.uniform(inner**2, outer**2, count)), rng.uniform(0, 2 * np.pi, count)
    return np.column_stack((radius * np.cos(angle), radius * np.sin(angle)))


def _hill(image: np.ndarray, center: np.ndarray, width: float) -> np.ndarray:
    """Return a Gaussian of height 1 around a pixel (x, y) of `image`, float32 (H, W)."""
    away = (np.arange(n) - at for n, at in zip(image.shape[:0:-1], center, strict=True))
    columns, rows = (np.exp(-((pixels / width) ** 2) / 2).astype(np.float32) for pixels in away)
    return np.outer(rows, columns)


def _clouds(rng: Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Return smooth noise (H, W) of about unit variance, `cells` cells high."""
    grid = rng.standard_normal((cells, cells * 4 // 3), np.float32)
    return cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _retina(rng: Generator, pigment: np.ndarray, view: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Draw pigment with choroidal texture, macula, drusen and optic disc, float32 (3, H, W)."""
    image: np.ndarray = np.tile(_planes(pigment), (1, *shape))
    coarse, fine = rng.uniform(0.01, 0.04, 2).astype(np.float32)
    image *= 1 + coarse * _clouds(rng, shape, 8) + fine * _clouds(rng, shape, 30)
    image *= 1 - rng.uniform(0.25, 0.45) * _hill(image, view[:, 2], 0.15 * _scale(view))
    glow = _hill(image, view[:, :2] @ DISC + view[:, 2], 0.25 * _scale(view))
    image += glow * _planes(rng.uniform(0.05, 0.2) * np.array((1, 0.75, 0.4)))
    # drusen come with age, not with diabetes: with them, yellow spots alone do not reveal the grade
    drusen = _empty(image)
    _spots(rng, drusen, view, _scattered(rng, rng.poisson(rng.exponential(3)), 0.05, 0.5), (0.012, 0.025))
    _paint(image, drusen, PALE, 0.006 * _scale(view))
    for share, color in ((1.0, (1.0, 0.80, 0.48)), (rng.uniform(0.4, 0.6), (1.0, 0.95, 0.76))):
        disc = _empty(image)
        axes = _fixed(share * DISC_RADIUS * _scale(view) * np.array((0.88, 1)))
        _ellipse(disc, _places(DISC, view), axes, 0, 360, 255)
        _paint(image, disc, color, 0.01 * _scale(view))
    return image


def _walks(
    rng: Generator, starts: np.ndarray, headings: np.ndarray, lengths: np.ndarray, bends: np.ndarray
) -> np.ndarray:
    """Draw wavering paths (n, 13, 2) from `starts` (n, 2) that turn by `bends` (radians), mostly early on."""
    steps = np.linspace(0, 1, 12)
    turns = bends[:, None] * (2 * steps - steps**2) + rng.normal(0, 0.09, (len(starts), 12)).cumsum(axis=1)
    angles = headings[:, None] + turns
    moves = lengths[:, None, None] / 12 * np.stack((np.cos(angles), np.sin(angles)), axis=-1)
    return np.concatenate((starts[:, None], starts[:, None] + moves.cumsum(axis=1)), axis=1)


def _branches(rng: Generator, parents: np.ndarray, count: int, length: float) -> np.ndarray:
    """Draw `count` side branches on each of the `parents` (n, 13, 2), as paths (n * count, 13, 2)."""
    rows, step = np.arange(len(parents))[:, None], rng.integers(2, 12, (len(parents), count))
    starts = parents[rows, step].reshape(-1, 2)
    ahead = parents[rows, step + 1].reshape(-1, 2) - starts
    turn = rng.choice((-1, 1), len(starts)) * rng.uniform(0.4, 1.0, len(starts))
    headings = np.arctan2(ahead[:, 1], ahead[:, 0]) + turn
    return _walks(rng, starts, headings, length * rng.uniform(0.4, 1.2, len(starts)), -0.5 * turn)


def _strokes(mask: np.ndarray, view: np.ndarray, paths: np.ndarray, width: float, value: float) -> None:
    """Draw paths (n, 13, 2) that taper from `width` (in units of the retina) to half of it."""
    fixed = np.array(_places(paths, view), np.int32)
    for first in (0, 4, 8):
        pixels = width * (1 - first / 16) * _scale(view) * FINE
        thickness = max(1, round(pixels))
        opacity = value * min(1.0, pixels / thickness)  # thinner than a pixel: paler
        lines = list(fixed[:, first : first + 5])
        cv2.polylines(mask, lines, False, opacity, thickness, cv2.LINE_AA, SHIFT)


def _draw_vessels(rng: Generator, image: np.ndarray, pigment: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Draw four arcades from the disc, each an artery and a wider, darker vein; return the veins (4, 13, 2)."""
    # the two temporal arcades bend around the macula, the two nasal ones leave the field
    headings = np.radians((-105, 105, -50, 50)) + rng.normal(0, 0.1, (2, 4))
    bends = np.radians((-85, 85, 25, -25)) + rng.normal(0, 0.12, (2, 4))
    lengths = np.array((1.75, 1.75, 0.9, 0.9)) * rng.uniform(0.9, 1.1, (2, 4))
    mask = _empty(image)
    for kind, (width, value) in enumerate(((0.019, 170), (0.029, 230))):
        starts = DISC + rng.normal(0, 0.015, (4, 2))
        trunks = _walks(rng, starts, headings[kind], lengths[kind], bends[kind])
        branches = _branches(rng, trunks, 4, 0.6)
        twigs = _branches(rng, branches, 2, 0.35)
        for paths, share in ((twigs, 0.25), (branches, 0.45), (trunks, 1.0)):
            _strokes(mask, view, paths, share * width, value)
    _paint(image, mask, pigment * VESSEL, 0.004 * _scale(view))
    return trunks


def _draw_lesions(
    rng: Generator, grade: int, image: np.ndarray, pigment: np.ndarray, view: np.ndarray, veins: np.ndarray
) -> None:
    """Draw the lesions of a grade, from the deepest layer of the retina to the blood in front of it."""
    severity = np.clip(rng.normal(grade, SEVERITY_SPREAD), 0, len(GRADES) - 1)
    means = {kind: np.interp(severity, range(len(GRADES)), by_grade) for kind, by_grade in LESIONS.items()}
    count = {kind: rng.poisson(mean * rng.gamma(3, 1 / 3)) for kind, mean in means.items()}
    pale, white, yellow, blood = (_empty(image) for _ in range(4))
    _spots(rng, pale, view, _scattered(rng, count["scars"], 0.65, 0.95), (0.03, 0.05))
    _spots(rng, white, view, _scattered(rng, count["cotton_wool"], 0.3, 0.8), (0.05, 0.08))
    # hard exudates form rings around leaking vessels
    foci = _scattered(rng, 1 + count["exudates"] // 10, 0.2, 0.6)
    rings = rng.choice(foci, count["exudates"]) + _scattered(rng, count["exudates"], 0.06, 0.16)
    _spots(rng, yellow, view, rings, (0.014, 0.03))
    _spots(rng, blood, view, _scattered(rng, count["microaneurysms"], 0.1, 0.85), (0.018, 0.028))
    _spots(rng, blood, view, _scattered(rng, count["hemorrhages"], 0.2, 0.9), (0.03, 0.065))
    _spots(rng, blood, view, rng.choice(veins[:2].reshape(-1, 2), count["beads"]), (0.02, 0.035))
    _draw_tufts(rng, blood, view, count["tufts"])
    _draw_pools(rng, blood, view, count["preretinal"])
    for mask, color, blur in ((pale, PALE, 0.01), (white, WHITE, 0.018), (yellow, YELLOW, 0)):
        _paint(image, mask, color, blur * _scale(view))
    _paint(image, blood, pigment * BLOOD)


def _draw_tufts(rng: Generator, mask: np.ndarray, view: np.ndarray, count: int) -> None:
    """Draw new vessels: fine and tortuous, on the disc or along the arcades."""
    for focus in np.where(rng.random((count, 1)) < 0.4, DISC, _scattered(rng, count, 0.4, 0.75)):
        starts, headings = focus + rng.normal(0, 0.03, (14, 2)), rng.uniform(0, 2 * np.pi, 14)
        paths = _walks(rng, starts, headings, rng.uniform(0.15, 0.35, 14), rng.uniform(-5, 5, 14))
        _strokes(mask, view, paths, 0.009, 255)


def _draw_pools(rng: Generator, mask: np.ndarray, view: np.ndarray, count: int) -> None:
    """Draw preretinal hemorrhages: boat-shaped, level at the top, because the blood sinks."""
    for center in _places(_scattered(rng, count, 0.3, 0.6), view):
        axes = _fixed(rng.uniform((0.14, 0.08), (0.28, 0.2)) * _scale(view))
        _ellipse(mask, center, axes, rng.uniform(-8, 8), 180, 245)


def _expose(rng: Generator, image: np.ndarray, field: np.ndarray, view: np.ndarray) -> np.ndarray:
    """Add the camera's effects: light, glare, dust, black border, focus, grain; return uint8 (H, W, 3)."""
    center, radius = field[:2], field[2]
    light = 0.35 + 0.65 * _hill(image, rng.normal(center, 0.2 * radius), rng.uniform(0.7, 1.2) * radius)
    image *= light * _planes(rng.lognormal(0, 0.2) * rng.lognormal(0, 0.06, 3))
    glare, angle = rng.exponential(0.08), rng.uniform(0, 2 * np.pi)
    rim = center + radius * np.array((np.cos(angle), np.sin(angle)))
    image += _hill(image, rim, 0.3 * radius) * _planes(glare * np.array((1, 0.85, 0.7)))
    dust, border = _empty(image), ~_empty(image)
    _spots(rng, dust, view, _scattered(rng, rng.poisson(2), 0, 1), (0.01, 0.03))
    _paint(image, dust // 2, (0.25, 0.22, 0.20), 0.012 * radius)
    _ellipse(border, _fixed(center + 0.5), _fixed(np.full(2, radius)), 0, 360, 0)
    _paint(image, border, (0, 0, 0))
    focus, grain = radius * rng.uniform(0.003, 0.012), rng.uniform(0.005, 0.015)
    photograph: np.ndarray = cv2.GaussianBlur(np.moveaxis(image, 0, -1).copy(), (0, 0), focus)
    photograph += grain * rng.standard_normal(photograph.shape, np.float32)
    return (photograph.clip(0, 1) * 255).astype(np.uint8)


def write_grades(file: Path) -> None:
    """Write a picture of one photograph per grade side by side, with captions, for the README."""
    columns = []
    for grade, name in enumerate(GRADES):
        image = draw_fundus(grade, EYES[grade % 2], patient=grade, seed=1, size=192)
        caption = np.full((28, image.shape[1], 3), 255, np.uint8)
        cv2.putText(caption, f"{grade} {name}", (8, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        columns.append(np.vstack((image, caption)))
    _, encoded = cv2.imencode(".png", np.hstack(columns)[..., ::-1])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, encoded.tobytes())


if __name__ == "__main__":
    write_grades(Path(sys.argv[1]))
