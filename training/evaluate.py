"""Measures the built-in models against Pillow's bicubic and Lanczos on the photographs that scikit-image carries.

Each photograph is cropped to whole multiples of the scale, shrunk by Pillow's anti-aliased bicubic to eight bits, enlarged
again three ways, and compared on BT.601 studio-range luma, without a border of 2 * scale pixels. Models make bytes as the
program does, dropping the fraction. With `--program` it is the program that enlarges, through its command line.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.metrics import structural_similarity

from model import SCALES, load, name, path

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "page.png",
    "retina.jpg",
    "rocket.jpg",
    "text.png",
)
SHEET = {"astronaut": (180, 60), "chelsea": (130, 80), "coffee": (250, 120), "page": (80, 8), "motorcycle_left": (300, 180)}
"""The photographs of the contact sheet, and where each is cut, from its left and top, in its own pixels."""
CUT = 176
"""The sides of these cuts, in pixels."""


def photograph(file: str, scale: int) -> Image.Image:
    """Opens a picture of scikit-image's own wheel, as RGB with sides that are multiples of `scale`."""
    with Image.open(Path(skimage.__file__).parent / "data" / file) as opened:
        picture = opened.convert("RGB")
    return picture.crop((0, 0, picture.width // scale * scale, picture.height // scale * scale))


def shrink(picture: Image.Image, scale: int) -> Image.Image:
    """Makes the input of a picture."""
    return picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.BICUBIC)


@torch.inference_mode()
def by_network(scale: int, source: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """Runs the network over whole pictures."""
    network = load(scale, source)

    def enlarge(picture: Image.Image) -> Image.Image:
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
        made = network(pixels)[0].clamp(0, 1).mul(255).byte()
        return Image.fromarray(made.permute(1, 2, 0).numpy())

    return [enlarge(picture) for picture in pictures]


def by_program(scale: int, program: Path, pictures: list[Image.Image]) -> list[Image.Image]:
    """Runs the program over a folder of pictures."""
    with tempfile.TemporaryDirectory() as folder:
        (small := Path(folder) / "small").mkdir()
        for index, picture in enumerate(pictures):
            picture.save(small / f"{index}.png")
        large = Path(folder) / "large"
        command = [program, "upscale", small, "-o", f"{large}/", "--scale", str(scale)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [Image.open(large / f"{index}.png").convert("RGB") for index in range(len(pictures))]


def luma(picture: Image.Image, border: int) -> NDArray[np.float64]:
    """Returns BT.601 luma in 16..235, without the border that no method can know."""
    y: NDArray[np.float64] = np.asarray(picture, np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    return y[border:-border, border:-border]


def score(made: Image.Image, truth: Image.Image, border: int) -> tuple[float, float]:
    """Returns the PSNR in dB and the SSIM of two pictures' luma."""
    a, b = luma(made, border), luma(truth, border)
    psnr = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    ssim = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(psnr), float(ssim)


def row(title: str, scores: NDArray[np.float64]) -> str:
    """Formats one line of the table from [method, (PSNR, SSIM)]."""
    cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in scores]
    return f"| {title} | {' | '.join(cells)} | {scores[2, 0] - scores[1, 0]:+.2f} dB |"


def evaluate(scale: int, options: argparse.Namespace) -> tuple[float, dict[str, dict[str, Image.Image]]]:
    """Prints the table of one model; returns the least gain in dB, and all pictures by photograph and method."""
    truths = {Path(file).stem: photograph(file, scale) for file in PHOTOGRAPHS}
    inputs = [shrink(truth, scale) for truth in truths.values()]
    if options.program:
        made = by_program(scale, options.program, inputs)
    else:
        made = by_network(scale, options.folder / f"{name(scale)}.safetensors" if options.folder else path(scale), inputs)
    print(f"| photograph | bicubic | Lanczos | {name(scale)} | gain over Lanczos |\n|---|---|---|---|---|")
    table, all_made = [], {}
    for (title, truth), small, ours in zip(truths.items(), inputs, made, strict=True):
        methods = {
            "bicubic": small.resize(truth.size, Image.Resampling.BICUBIC),
            "lanczos": small.resize(truth.size, Image.Resampling.LANCZOS),
            name(scale): ours,
        }
        scores = np.array([score(picture, truth, 2 * scale) for picture in methods.values()])
        table.append(scores)
        print(row(title, scores), flush=True)
        all_made[title] = {"truth": truth, "input": small, **methods}
    print(row("**mean**", np.mean(table, axis=0)))
    least = min(scores[2, 0] - scores[1, 0] for scores in table)
    print(f"\nPSNR in dB / SSIM. Smallest gain over Lanczos: {least:+.2f} dB.\n", flush=True)
    return least, all_made


def contact_sheet(made: dict[int, dict[str, dict[str, Image.Image]]]) -> Image.Image:
    """Draws a row for each cut: at each scale the input with its pixels repeated, Lanczos and ours; and the truth."""
    columns = [(scale, method) for scale in made for method in ("input", "lanczos", name(scale))] + [(SCALES[0], "truth")]
    titles = {"input": "input", "lanczos": "Lanczos", "truth": "the photograph"}
    gap, head = 8, 28
    sheet = Image.new("RGB", ((CUT + gap) * len(columns) + gap, (CUT + gap) * len(SHEET) + head), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (scale, method) in enumerate(columns):
        left = gap + column * (CUT + gap)
        title = titles.get(method, method) + (f", {scale}x smaller" if method == "input" else "")
        draw.text((left, 6), title, fill="black", font=ImageFont.load_default(15))
        for line, (title, (x, y)) in enumerate(SHEET.items()):
            picture = made[scale][title][method]
            if method == "input":
                picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
            sheet.paste(picture.crop((x, y, x + CUT, y + CUT)), (left, head + line * (CUT + gap)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=int, choices=SCALES, help="only the model of this scale (default: all)")
    parser.add_argument("--program", type=Path, help="the `tessera` that enlarges, instead of PyTorch")
    parser.add_argument("--folder", type=Path, help="where the weights are (default: those the program is built with)")
    parser.add_argument("--pictures", type=Path, help="folder to save truth and results in, to be looked at")
    parser.add_argument("--sheet", type=Path, help="file to save the contact sheet in")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    least, made = 1e9, {}
    for scale in [options.scale] if options.scale else SCALES:
        gain, made[scale] = evaluate(scale, options)
        least = min(least, gain)
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for title, methods in made[scale].items():
                for method, picture in methods.items():
                    picture.save(options.pictures / f"{title}-{scale}x-{method}.png")
    if options.sheet and set(made) == set(SCALES):
        contact_sheet(made).save(options.sheet, quality=90)
    raise SystemExit(int(least <= 0))


if __name__ == "__main__":
    main()
