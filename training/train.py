"""Trains a built-in model on the generated pool, on a CPU, resuming from the last checkpoint.

The schedule runs over a budget of the processor's minutes, not of steps, so that a slow machine ends with a finished
model too; the time spent is part of the checkpoint. Step `n` draws its batch from `(seed, n)` only, so that a resumed
run repeats none.
The low-resolution input is made inside the loop by one of several anti-aliased kernels, as Pillow shrinks a picture.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model import SCALES, Compact, export, name, path

HERE = Path(__file__).parent
Floats = NDArray[np.float64]
PATCH = 48
"""Side of a low-resolution patch, in pixels."""
REACH = 3
"""Radius of the widest kernel, in low-resolution pixels."""
SQUARED_FROM = 0.7
"""Share of the time after which absolute error gives way to squared error, which is what PSNR measures."""
SINGLE_FROM = 0.9
"""Share of the time after which bfloat16 gives way to single precision."""


def cubic(a: float) -> Callable[[Floats], Floats]:
    """Returns Keys's cubic kernel with parameter `a`."""

    def kernel(x: Floats) -> Floats:
        near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    return kernel


KERNELS: dict[str, Callable[[Floats], Floats]] = {
    "bicubic": cubic(-0.5),
    "sharp bicubic": cubic(-0.75),
    "hermite": lambda x: np.where(x < 1, 2 * x**3 - 3 * x**2 + 1, 0),
    "lanczos": lambda x: np.where(x < REACH, np.sinc(x) * np.sinc(x / REACH), 0),
    "bilinear": lambda x: np.clip(1 - x, 0, None),
    "gauss": lambda x: np.exp(-0.5 * (x / 0.5) ** 2) * (x < 2),
    "box": lambda x: (x < 0.5).astype(np.float64),
}
"""Anti-aliased kernels over the distance from the middle, in low-resolution pixels."""
CHANCES = {
    "bicubic": 0.6,
    "sharp bicubic": 0.05,
    "hermite": 0.05,
    "lanczos": 0.1,
    "bilinear": 0.1,
    "gauss": 0.05,
    "box": 0.05,
}
"""How often each of them shrinks a patch."""


def taps(scale: int) -> Tensor:
    """Returns the weights, [kernel, taps], with which each kernel shrinks exactly `scale` times; each row's sum is 1."""
    x = np.abs((np.arange(2 * REACH * scale) + 0.5) / scale - REACH)
    rows = np.stack([KERNELS[kind](x) for kind in CHANCES])
    return torch.from_numpy((rows / rows.sum(1, keepdims=True)).astype(np.float32))


def shrink(patches: Tensor, kernels: Tensor, scale: int) -> Tensor:
    """Shrinks [b, 3, h, w], each patch with its row of `kernels` [b, taps]; only pixels fully inside remain."""
    b, c, _, _ = patches.shape
    rows = kernels.repeat_interleave(c, 0)[:, None, :, None]
    planes = patches.reshape(1, b * c, *patches.shape[2:])
    planes = functional.conv2d(planes, rows, stride=(scale, 1), groups=b * c)
    planes = functional.conv2d(planes, rows.transpose(2, 3), stride=(1, scale), groups=b * c)
    return planes.reshape(b, c, *planes.shape[2:])


def batch(pool: NDArray[np.uint8], scale: int, seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Draws inputs [size, 3, PATCH, PATCH] and targets [size, 3, scale * PATCH, scale * PATCH] of a step, in 0..1."""
    rng = np.random.default_rng((seed, step))
    kernels = taps(scale)
    # Low-resolution pixel 0 is centred among the first `scale` pixels, of which the widest kernel reads around so many.
    margin = REACH * scale - scale // 2
    side = PATCH * scale + 2 * margin
    cuts = []
    for _ in range(size):
        scene = pool[rng.integers(len(pool))]
        y, x = rng.integers(0, scene.shape[0] - side + 1, size=2)
        cut = np.rot90(scene[y : y + side, x : x + side], int(rng.integers(4)))
        cuts.append(cut[:, ::-1] if rng.integers(2) else cut)
    patches = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255

    chosen = rng.choice(len(CHANCES), size=size, p=list(CHANCES.values()))
    low = shrink(patches, kernels[torch.from_numpy(chosen)], scale).clamp(0, 1)
    eight_bit = torch.from_numpy(rng.uniform(size=size) < 0.8)[:, None, None, None]
    low = torch.where(eight_bit, (low * 255).round() / 255, low)
    return low, patches[..., margin:-margin, margin:-margin]


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Rises over the first 200 steps, and falls along a cosine to a thousandth of `peak` as `progress` nears 1."""
    return peak * min(1, (step + 1) / 200) * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=int, choices=SCALES, required=True, help="how many times the model enlarges")
    parser.add_argument("--pool", type=Path, default=HERE / "runs" / "pool.npy")
    parser.add_argument("--checkpoint", type=Path, help="(default: runs/tessera-SCALEx.pt)")
    parser.add_argument("--output", type=Path, help="(default: the file that the program is built with)")
    parser.add_argument("--minutes", type=float, default=45, help="processor time over all runs (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=1.5e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    options = parser.parse_args()
    scale = options.scale
    checkpoint = options.checkpoint or HERE / "runs" / f"{name(scale)}.pt"
    output = options.output or path(scale)

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pool = np.load(options.pool, mmap_mode="r")
    network = Compact(scale).to(memory_format=torch.channels_last)
    average = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, seconds = state["average"], state["step"], state["seconds"]

    began = time.process_time() - seconds
    budget = 60 * options.minutes
    squared = 0.0
    while seconds < budget:
        progress = seconds / budget
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, options.peak)
        low, high = batch(pool, scale, options.seed, step, options.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=progress < SINGLE_FROM):
            made = network(low.contiguous(memory_format=torch.channels_last))
        error = made.float() - high
        loss = error.abs().mean() if progress < SQUARED_FROM else 10 * error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

        decay = min(0.999, (step + 1) / (step + 10))
        for key, value in network.state_dict().items():
            average[key].lerp_(value, 1 - decay)
        step += 1
        seconds = time.process_time() - began
        squared += error.detach().square().mean().item()
        if step % 100 == 0:
            psnr = -10 * math.log10(squared / 100)
            print(f"step {step}  {psnr:.2f} dB on the pool  {seconds / 60:.1f} min", flush=True)
            squared = 0.0
        if step % options.save_every == 0 or seconds >= budget:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            partial = checkpoint.with_suffix(".partial")
            torch.save({**state, "step": step, "seconds": seconds}, partial)
            partial.replace(checkpoint)
            export(scale, average, output)


if __name__ == "__main__":
    main()
