"""Renders the training pool: dead leaves, line art, text, gradients and gratings, drawn from a seed alone.

Each scene is drawn without anti-aliasing on a large canvas and then shrunk by a random factor at a random sub-pixel
offset, so that its edges carry the whole range of anti-aliased profiles that a camera or a scanner leaves.
Scene `i` depends on `(seed, i)` only. No photograph is read. The one font is Pillow's built-in Aileron (CC0).
"""

from __future__ import annotations

import argparse
import math
import string
from functools import partial
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Rng = np.random.Generator
Floats = NDArray[np.float32]

CANVAS = 1024
"""Side of the canvas a scene is drawn on, in pixels."""
SIDE = 384
"""Side of a finished scene, in pixels."""

RESAMPLERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """Draws a length whose every octave is equally likely."""
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def colour(rng: Rng, saturation: float) -> Floats:
    """Draws an RGB colour in 0..255: any brightness, chroma of the given spread."""
    return np.clip(255 * (rng.uniform() + saturation * rng.normal(size=3)), 0, 255).astype(np.float32)


def cloud(rng: Rng) -> Floats:
    """Draws a canvas of 1/f^p noise in 0..1: foliage at a low p, smoke at a high one, fur where it is stretched."""
    fy = np.fft.fftfreq(CANVAS)[:, None]
    fx = np.fft.rfftfreq(CANVAS)[None, :]
    angle, stretch = rng.uniform(0, math.pi), log_uniform(rng, 1, 6)
    across = (math.cos(angle) * fx + math.sin(angle) * fy) * stretch
    frequency = np.hypot(across, math.cos(angle) * fy - math.sin(angle) * fx)
    frequency[0, 0] = 1
    spectrum = np.fft.rfft2(rng.normal(size=(CANVAS, CANVAS))) * frequency ** -rng.uniform(0.4, 2.0)
    spectrum[0, 0] = 0
    field = np.fft.irfft2(spectrum, s=(CANVAS, CANVAS))
    return np.asarray(np.clip(0.5 + field / (5 * field.std()), 0, 1), np.float32)


def pattern(rng: Rng, kind: str, side: int) -> Floats:
    """Draws a square of a regular pattern, [side, side] in 0..1."""
    axis = np.arange(side, dtype=np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    across = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    along = math.cos(angle) * axis[:, None] - math.sin(angle) * axis[None, :]
    turn = 2 * math.pi / log_uniform(rng, 4, 80)
    phase = rng.uniform(0, 2 * math.pi)
    mix: NDArray[Any]
    match kind:
        case "gradient":
            mix = 0.5 + across / (2 * side)
        case "waves":
            mix = 0.5 + 0.5 * np.sin(turn * across + phase)
        case "stripes":
            mix = np.sin(turn * across + phase) > rng.uniform(-0.7, 0.7)
        case "checks":
            mix = np.sin(turn * across + phase) * np.sin(turn * along) > 0
        case _:  # rings
            cy, cx = rng.uniform(0, side, size=2)
            radius = np.hypot(axis[None, :] - cx, axis[:, None] - cy)
            mix = 0.5 + 0.5 * np.cos(radius**2 * math.pi / (side * log_uniform(rng, 3, 40)) + phase)
    return mix.astype(np.float32)


PATTERNS = {"flat": 0.3, "gradient": 0.2, "cloud": 0.3, "waves": 0.08, "stripes": 0.05, "checks": 0.03, "rings": 0.04}
"""How often a surface carries each pattern."""


def texture(rng: Rng, side: int, clouds: list[Floats], saturation: float) -> Image.Image:
    """Paints a square of two colours mixed by a random pattern."""
    first, second = colour(rng, saturation), colour(rng, saturation)
    if rng.uniform() < 0.7:  # most surfaces vary little
        second = first + (second - first) * rng.uniform(0, 0.5)
    kind = str(rng.choice(list(PATTERNS), p=list(PATTERNS.values())))
    if kind == "flat":
        return Image.new("RGB", (side, side), tuple(int(c) for c in first))
    if kind == "cloud":
        y, x = rng.integers(0, CANVAS - side + 1, size=2)
        mix = clouds[rng.integers(len(clouds))][y : y + side, x : x + side]
    else:
        mix = pattern(rng, kind, side)
    pixels = first + (second - first) * mix[..., None]
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def outline(rng: Rng, radius: float) -> list[tuple[float, float]]:
    """Draws a closed outline of at most `radius` about the middle of its square: ellipse, blob, star or polygon."""
    kind = rng.choice(["ellipse", "blob", "star", "polygon"], p=[0.3, 0.25, 0.1, 0.35])
    corners = int(rng.integers(3, 9))
    if kind == "polygon":
        angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
        if rng.uniform() < 0.5:
            angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        length = np.ones(corners)
    elif kind == "star":
        angles = np.linspace(0, 2 * math.pi, 2 * corners, endpoint=False)
        length = np.where(np.arange(2 * corners) % 2, rng.uniform(0.2, 0.8), 1.0)
    else:
        angles = np.linspace(0, 2 * math.pi, int(np.clip(2 * radius, 16, 200)), endpoint=False)
        length = np.ones(len(angles))
        if kind == "blob":
            for wave in range(2, 8):
                length += rng.normal() / wave * np.cos(wave * angles + rng.uniform(0, 2 * math.pi)) * 0.4
            length = np.clip(length / np.abs(length).max(), 0.1, 1)
    x, y = length * np.cos(angles), length * np.sin(angles) * rng.uniform(0.15, 1)
    tilt = rng.uniform(0, 2 * math.pi)
    px = radius * (1 + x * math.cos(tilt) - y * math.sin(tilt))
    py = radius * (1 + x * math.sin(tilt) + y * math.cos(tilt))
    return list(zip(px.tolist(), py.tolist(), strict=True))


def curve(rng: Rng, radius: float) -> list[tuple[float, float]]:
    """Draws a straight line or a cubic Bezier curve across its square."""
    ends = rng.uniform(0, 2 * radius, size=(4, 2))
    if rng.uniform() < 0.5:
        return [tuple(ends[0]), tuple(ends[3])]
    t = np.linspace(0, 1, 48)[:, None]
    points = (1 - t) ** 3 * ends[0] + 3 * t * (1 - t) ** 2 * ends[1] + 3 * t**2 * (1 - t) * ends[2] + t**3 * ends[3]
    return [tuple(p) for p in points]


def stencil(rng: Rng, radius: float, ink: float) -> Image.Image:
    """Draws a mask of side `2 * radius`: with probability `ink` strokes or text, otherwise a filled outline."""
    side = max(2, round(2 * radius))
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if rng.uniform() >= ink:
        draw.polygon(outline(rng, radius), fill=255)
    elif rng.uniform() < 0.5 or side < 24:
        for _ in range(int(rng.integers(1, 5))):
            draw.line(curve(rng, radius), fill=255, width=round(log_uniform(rng, 1, 14)), joint="curve")
    else:
        size = log_uniform(rng, 10, max(11, side / 3))
        letters = rng.choice(list(string.ascii_letters + string.digits + string.punctuation + "   "), size=240)
        columns = max(1, int(side / (0.55 * size)))
        lines = ["".join(letters[i : i + columns]) for i in range(0, len(letters), columns)]
        text = "\n".join(lines[: int(rng.integers(1, 9))])
        draw.multiline_text((0, 0), text, fill=255, font=ImageFont.load_default(size))
        if rng.uniform() < 0.4:
            mask = mask.rotate(rng.uniform(-180, 180), Image.Resampling.BILINEAR)
    if rng.uniform() < 0.2:  # out of focus
        mask = mask.filter(ImageFilter.GaussianBlur(log_uniform(rng, 0.7, 12)))
    return mask


def radii(rng: Rng) -> NDArray[np.float64]:
    """Draws radii that fall off with the third power, as the sizes of things in pictures do, to cover the canvas."""
    smallest, largest = log_uniform(rng, 3, 40), log_uniform(rng, 80, 500)
    mean_area = 2 * smallest**2 * math.log(largest / smallest)
    count = int(min(5000, log_uniform(rng, 0.5, 6) * CANVAS**2 / mean_area))
    drawn = smallest / np.sqrt(1 - (1 - (smallest / largest) ** 2) * rng.uniform(size=count))
    return np.sort(drawn)[::-1] if rng.uniform() < 0.5 else drawn  # half of the time small things are in front


def draw_canvas(rng: Rng) -> Image.Image:
    """Draws one scene at full size: a page of line art and text, or textured leaves over leaves."""
    saturation = rng.uniform(0, 0.25)
    clouds = [cloud(rng) for _ in range(2)]
    if rng.uniform() < 0.15:
        ink = 0.8
        canvas = Image.new("RGB", (CANVAS, CANVAS), tuple(int(c) for c in colour(rng, saturation / 2)))
        sizes = rng.uniform(20, 300, size=int(log_uniform(rng, 20, 100)))
    else:
        ink = rng.uniform(0, 0.2)
        canvas = texture(rng, CANVAS, clouds, saturation)
        sizes = radii(rng)
    # Depth of field: what lies behind this leaf is out of focus.
    focus = int(rng.integers(len(sizes))) if rng.uniform() < 0.4 else -1
    for index, radius in enumerate(sizes):
        if index == focus:
            canvas = canvas.filter(ImageFilter.GaussianBlur(log_uniform(rng, 1, 16)))
        mask = stencil(rng, float(radius), ink)
        x, y = (int(v) for v in rng.uniform(-radius, CANVAS - radius, size=2))
        canvas.paste(texture(rng, mask.width, clouds, saturation), (x, y), mask)
    return canvas


def scene(seed: int, index: int) -> NDArray[np.uint8]:
    """Draws scene `index` of the pool, [SIDE, SIDE, 3]."""
    rng = np.random.default_rng((seed, index))
    canvas = draw_canvas(rng)
    span = SIDE * rng.uniform(1.5, CANVAS / SIDE)
    x, y = rng.uniform(0, CANVAS - span, size=2)
    picture = canvas.resize((SIDE, SIDE), RESAMPLERS[rng.integers(4)], box=(x, y, x + span, y + span))
    if rng.uniform() < 0.3:  # a soft lens
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    pixels = np.asarray(picture, np.float64)
    if rng.uniform() < 0.4:  # a sensor's grain
        grain = rng.normal(size=pixels.shape) if rng.uniform() < 0.5 else rng.normal(size=(SIDE, SIDE, 1))
        pixels = pixels + rng.uniform(0, 5) * grain
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "runs" / "pool.npy")
    parser.add_argument("--scenes", type=int, default=1000, help="how many scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()

    options.output.parent.mkdir(parents=True, exist_ok=True)
    partial_path = options.output.with_suffix(".partial")
    pool = np.lib.format.open_memmap(partial_path, "w+", np.uint8, (options.scenes, SIDE, SIDE, 3))
    with Pool(options.processes) as workers:
        for index, pixels in enumerate(workers.imap(partial(scene, options.seed), range(options.scenes))):
            pool[index] = pixels
            if (index + 1) % 50 == 0:
                print(f"{index + 1} of {options.scenes} scenes", flush=True)
    pool.flush()
    partial_path.replace(options.output)


if __name__ == "__main__":
    main()
