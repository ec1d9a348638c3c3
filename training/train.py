"""Trains the built-in model on the generated pool, on a CPU, resuming from the last checkpoint.

The schedule runs over a budget of minutes, not of steps, so that a busy machine ends with a finished model too; the
time spent is part of the checkpoint. Step `n` draws its batch from `(seed, n)` only, so a resumed run repeats none.
The low-resolution input is made inside the loop by one of several anti-aliased kernels, as Pillow shrinks a picture.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from model import SCALE, Compact, export

HERE = Path(__file__).parent
PATCH = 128
"""Side of a high-resolution patch, in pixels."""
REACH = 3
"""Radius of the widest kernel, in low-resolution pixels."""
MARGIN = REACH * SCALE - SCALE // 2
"""Pixels that the widest kernel reads beyond a patch: low-resolution pixel 0 is centred between pixels 0 and 1."""
SQUARED_FROM = 0.7
"""Share of the time after which absolute error gives way to squared error, which is what PSNR measures."""
SINGLE_FROM = 0.9
"""Share of the time after which bfloat16 gives way to single precision."""


def taps(kind: str) -> Tensor:
    """Returns the weights with which an exact halving reads `2 * REACH * SCALE` pixels, their sum 1."""
    x = (np.arange(2 * REACH * SCALE) + 0.5) / SCALE - REACH
    a = np.abs(x)
    near, far = 1.5 * a**3 - 2.5 * a**2 + 1, -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2
    weights = {
        "box": a < 0.5,
        "bilinear": np.clip(1 - a, 0, None),
        "bicubic": np.where(a < 1, near, np.where(a < 2, far, 0)),
        "lanczos": np.where(a < 3, np.sinc(x) * np.sinc(x / 3), 0),
    }[kind].astype(np.float32)
    return torch.from_numpy(weights / weights.sum())


KERNELS = torch.stack([taps(kind) for kind in ("bicubic", "lanczos", "bilinear", "box")])
CHANCES = (0.7, 0.1, 0.1, 0.1)


def halve(patches: Tensor, kernels: Tensor) -> Tensor:
    """Shrinks [b, 3, h, w] by two, each patch with its row of `kernels` [b, taps]; only pixels fully inside remain."""
    b, c, _, _ = patches.shape
    rows = kernels.repeat_interleave(c, 0)[:, None, :, None]
    planes = patches.reshape(1, b * c, *patches.shape[2:])
    planes = functional.conv2d(planes, rows, stride=(SCALE, 1), groups=b * c)
    planes = functional.conv2d(planes, rows.transpose(2, 3), stride=(1, SCALE), groups=b * c)
    return planes.reshape(b, c, *planes.shape[2:])


def batch(pool: NDArray[np.uint8], seed: int, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Draws the inputs [size, 3, PATCH / 2, PATCH / 2] and targets [size, 3, PATCH, PATCH] of one step, in 0..1."""
    rng = np.random.default_rng((seed, step))
    side = PATCH + 2 * MARGIN
    cuts = []
    for _ in range(size):
        scene = pool[rng.integers(len(pool))]
        y, x = rng.integers(0, scene.shape[0] - side + 1, size=2)
        cut = np.rot90(scene[y : y + side, x : x + side], int(rng.integers(4)))
        cuts.append(cut[:, ::-1] if rng.integers(2) else cut)
    patches = torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).float() / 255

    kernels = KERNELS[torch.from_numpy(rng.choice(len(KERNELS), size=size, p=CHANCES))]
    low = halve(patches, kernels).clamp(0, 1)
    eight_bit = torch.from_numpy(rng.uniform(size=size) < 0.8)[:, None, None, None]
    low = torch.where(eight_bit, (low * 255).round() / 255, low)
    return low, patches[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def learning_rate(step: int, progress: float, peak: float) -> float:
    """Rises over the first 200 steps, and falls along a cosine to a thousandth of `peak` as `progress` nears 1."""
    return peak * min(1, (step + 1) / 200) * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pool", type=Path, default=HERE / "runs" / "pool.npy")
    parser.add_argument("--checkpoint", type=Path, default=HERE / "runs" / "checkpoint.pt")
    parser.add_argument("--output", type=Path, default=HERE / "../crates/weights/builtin/tessera-2x.safetensors")
    parser.add_argument("--minutes", type=float, default=40, help="budget over all runs (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--peak", type=float, default=3e-3, help="highest learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=500, help="steps between checkpoints (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    pool = np.load(options.pool, mmap_mode="r")
    network = Compact().to(memory_format=torch.channels_last)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.Adam(network.parameters(), betas=(0.9, 0.99))
    step, seconds = 0, 0.0
    if options.checkpoint.exists():
        state = torch.load(options.checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, seconds = state["average"], state["step"], state["seconds"]

    began = time.monotonic() - seconds
    budget = 60 * options.minutes
    squared = 0.0
    while seconds < budget:
        progress = seconds / budget
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress, options.peak)
        low, high = batch(pool, options.seed, step, options.batch)
        with torch.autocast("cpu", torch.bfloat16, enabled=progress < SINGLE_FROM):
            made = network(low.contiguous(memory_format=torch.channels_last))
        error = made.float() - high
        loss = error.abs().mean() if progress < SQUARED_FROM else 10 * error.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

        decay = min(0.999, (step + 1) / (step + 10))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay)
        step += 1
        seconds = time.monotonic() - began
        squared += error.detach().square().mean().item()
        if step % 100 == 0:
            psnr = -10 * math.log10(squared / 100)
            print(f"step {step}  {psnr:.2f} dB on the pool  {seconds / 60:.1f} min", flush=True)
            squared = 0.0
        if step % options.save_every == 0 or seconds >= budget:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
            partial = options.checkpoint.with_suffix(".partial")
            torch.save({**state, "step": step, "seconds": seconds}, partial)
            partial.replace(options.checkpoint)
            export(average, options.output)


if __name__ == "__main__":
    main()
