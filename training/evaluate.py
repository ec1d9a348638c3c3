"""Measures the built-in model against Pillow's bicubic and Lanczos on the photographs that scikit-image carries.

Each photograph is cropped to even sides and halved by Pillow's anti-aliased bicubic to eight bits, enlarged again three
ways to eight bits (rounded to nearest), and compared on BT.601 studio-range luma, without a border of 2 * scale pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import structural_similarity

from model import SCALE, Compact, load

HERE = Path(__file__).parent
BORDER = 2 * SCALE
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


def photograph(name: str) -> Image.Image:
    """Opens a picture of scikit-image's own wheel, as RGB with even sides."""
    with Image.open(Path(skimage.__file__).parent / "data" / name) as file:
        picture = file.convert("RGB")
    return picture.crop((0, 0, picture.width // SCALE * SCALE, picture.height // SCALE * SCALE))


@torch.inference_mode()
def enlarge(network: Compact, picture: Image.Image) -> Image.Image:
    """Runs the network over a whole picture."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    made = network(pixels)[0].clamp(0, 1).mul(255).round().byte()
    return Image.fromarray(made.permute(1, 2, 0).numpy())


def luma(picture: Image.Image) -> NDArray[np.float64]:
    """Returns BT.601 luma in 16..235, without the border that no method can know."""
    y: NDArray[np.float64] = np.asarray(picture, np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16
    return y[BORDER:-BORDER, BORDER:-BORDER]


def score(made: Image.Image, truth: Image.Image) -> tuple[float, float]:
    """Returns the PSNR in dB and the SSIM of two pictures' luma."""
    a, b = luma(made), luma(truth)
    psnr = 10 * np.log10(255**2 / np.mean((a - b) ** 2))
    ssim = structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(psnr), float(ssim)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=HERE / "../crates/weights/builtin/tessera-2x.safetensors")
    parser.add_argument("--pictures", type=Path, help="folder to save truth and results in, to be looked at")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    network = load(options.model)
    print("| photograph | bicubic | Lanczos | tessera-2x | gain over Lanczos |")
    print("|---|---|---|---|---|")
    table = []
    for name in PHOTOGRAPHS:
        truth = photograph(name)
        small = truth.resize((truth.width // SCALE, truth.height // SCALE), Image.Resampling.BICUBIC)
        made = {
            "bicubic": small.resize(truth.size, Image.Resampling.BICUBIC),
            "lanczos": small.resize(truth.size, Image.Resampling.LANCZOS),
            "tessera-2x": enlarge(network, small),
        }
        scores = np.array([score(picture, truth) for picture in made.values()])
        table.append(scores)
        print(row(Path(name).stem, scores), flush=True)
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            for method, picture in {"truth": truth, **made}.items():
                picture.save(options.pictures / f"{Path(name).stem}-{method}.png")
    print(row("**mean**", np.mean(table, axis=0)))
    worst = min(scores[2, 0] - scores[1, 0] for scores in table)
    print(f"\nPSNR in dB / SSIM. Smallest gain over Lanczos: {worst:+.2f} dB.")
    raise SystemExit(int(worst <= 0))


def row(name: str, scores: NDArray[np.float64]) -> str:
    """Formats one line of the table from [method, (PSNR, SSIM)]."""
    cells = [f"{psnr:.2f} / {ssim:.4f}" for psnr, ssim in scores]
    return f"| {name} | {' | '.join(cells)} | {scores[2, 0] - scores[1, 0]:+.2f} dB |"


if __name__ == "__main__":
    main()
