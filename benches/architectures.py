#!/usr/bin/env python3
"""Times every architecture beside PyTorch, in one run, on the same synthetic weights, and prints one Markdown table.

PyTorch runs the networks of the package `spandrel`, in f32, at sizes in which models are published. Their weights are
computed from the names of their tensors and written to a file, which both sides load. Passes are timed from outside, in turn, as
`side_by_side.py` does it; costs are told for each megapixel of input. It judges nothing.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from side_by_side import Command, Contender, compare, psnr
from works import synthetic

HERE = Path(__file__).resolve().parent


SWIN = {"img_size": 64, "window_size": 8, "mlp_ratio": 2, "upscale": 4}
DAT = {"split_size": [8, 32], "expansion_factor": 2, "upscale": 4}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ESRGAN x4 (64nf 23nb)": ("ESRGAN", {}),
    "Compact x4 (64nf 16nc)": ("Compact", {"num_feat": 64, "num_conv": 16, "upscale": 4}),
    "SPAN x4 (48nf)": ("SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 48, "upscale": 4}),
    "RealPLKSR x4 (64dim 28nb)": ("PLKSR.RealPLKSR", {}),
    "RealPLKSR x4 (64dim 28nb DySample)": ("PLKSR.RealPLKSR", {"dysample": True, "layer_norm": True}),
    "MoSR x4 (64dim 24nb)": ("MoSR", {}),
    "RCAN x4 (64nf 10x20)": ("RCAN", {"scale": 4}),
    "OmniSR x4 (64nf 5nr)": (
        "OmniSR",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 64,
            "block_num": 1,
            "pe": True,
            "window_size": 8,
            "res_num": 5,
            "up_scale": 4,
            "bias": True,
        },
    ),
    "SwinIR-light x4 (60dim)": (
        "SwinIR",
        SWIN | {"depths": [6] * 4, "embed_dim": 60, "num_heads": [6] * 4, "upsampler": "pixelshuffledirect"},
    ),
    "SwinIR-M x4 (180dim)": (
        "SwinIR",
        SWIN | {"depths": [6] * 6, "embed_dim": 180, "num_heads": [6] * 6, "upsampler": "nearest+conv"},
    ),
    "DAT-light x4 (60dim)": (
        "DAT",
        DAT | {"embed_dim": 60, "depth": [18], "num_heads": [6], "upsampler": "pixelshuffledirect"},
    ),
    "DAT-2 x4 (180dim)": ("DAT", DAT | {"embed_dim": 180, "depth": [6] * 6, "num_heads": [6] * 6}),
    "HAT x4 (180dim)": (
        "HAT",
        {
            "window_size": 16,
            "compress_ratio": 3,
            "squeeze_factor": 30,
            "overlap_ratio": 0.5,
            "depths": [6] * 6,
            "embed_dim": 180,
            "num_heads": [6] * 6,
            "mlp_ratio": 2,
            "upsampler": "pixelshuffle",
            "upscale": 4,
        },
    ),
    "ATD-light x4 (48dim)": (
        "ATD",
        {
            "embed_dim": 48,
            "depths": [6] * 4,
            "num_heads": [4] * 4,
            "window_size": 16,
            "category_size": 128,
            "num_tokens": 64,
            "reducted_dim": 8,
            "convffn_kernel_size": 7,
            "mlp_ratio": 1,
            "upscale": 4,
            "upsampler": "pixelshuffledirect",
        },
    ),
}
"""Each network's module and class in `spandrel.architectures`, and its sizes: those of published models."""


def make(name: str) -> Any:
    """Makes a network, with random weights."""
    where, sizes = NETWORKS[name]
    module, _, kind = where.partition(".")
    architecture = importlib.import_module(f"spandrel.architectures.{module}")
    return getattr(architecture, kind or module)(**sizes).eval()


def side(name: str) -> int:
    """Returns the side of the picture that a network is timed on, in pixels: enough work, but no minutes of it."""
    return 128 if any(word in name for word in ("Compact", "SPAN", "light", "OmniSR", "PLKSR", "MoSR")) else 64


def weights(network: Any) -> dict[str, Any]:
    """Returns the synthetic state of a network: what was trained; what follows from its sizes stays as it is."""
    import torch

    trained = {name for name, _ in network.named_parameters()}
    state = {}
    for name, value in network.state_dict().items():
        if name in trained:
            state[name] = torch.from_numpy(synthetic(name, tuple(value.shape)))
        elif name.endswith("running_var"):
            state[name] = 1 + 5 * torch.from_numpy(synthetic(name, tuple(value.shape)))
        elif name.endswith("running_mean"):
            state[name] = torch.from_numpy(synthetic(name, tuple(value.shape)))
        else:
            state[name] = value
    return state


def save(name: str, path: Path) -> None:
    """Writes the weights of a network. It has a process of its own: what that holds is nobody's peak."""
    from safetensors.torch import save_file

    state = weights(make(name))
    save_file({key: value.contiguous().clone() for key, value in state.items()}, path)


def run(name: str, passes: int, out: Path, threads: int, path: Path) -> None:
    """Runs a network of `spandrel` so many times, and writes its last output."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    # ATD sorts pixels by categories, with many equal ones, and asks for no order among these: which tokens meet would be
    # another matter of chance in each program.
    sort = torch.sort
    torch.sort = lambda x, dim=-1, descending=False, stable=False: sort(x, dim=dim, descending=descending, stable=True)
    network = make(name)
    network.load_state_dict(load_file(path))
    pixels = side(name)
    x = torch.from_numpy(synthetic("input.", (1, 3, pixels, pixels)) * np.float32(0.5) + np.float32(0.5))
    with torch.inference_mode():
        for _ in range(passes + 1):
            y = network(x.clone())
    y.contiguous().numpy().astype(np.float32).tofile(out)


def our_command(binary: Path, path: Path, pixels: int, threads: int) -> Command:
    """Returns our command line for a network's file."""
    how = ["--model", str(path), "--precision", "exact", "--threads", str(threads)]
    return lambda passes, out: [str(binary), "model", str(pixels), str(pixels), str(passes), str(out), *how]


def peer_command(name: str, path: Path, threads: int) -> Command:
    """Returns PyTorch's command line for a network's file."""
    how = [sys.executable, str(HERE / "architectures.py"), "--run", name, "--weights", str(path)]
    return lambda passes, out: [*how, "--threads", str(threads), "--passes", str(passes), "--output", str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="only networks whose name has one of these words; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--span", type=float, default=3.0, help="CPU seconds of passes in a round (3)")
    parser.add_argument("--ours", type=Path, default=HERE.parent / "target/release/tessera-bench")
    for hidden in ("--run", "--save", "--weights", "--output"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.passes, Path(options.output), options.threads, Path(options.weights))
        return

    if options.save:
        save(options.save, Path(options.weights))
        return

    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "spandrel"))
    print(f"Median (least-most) of {options.rounds} rounds, {options.threads} thread(s), f32; {packages}.\n")
    head = ["network", "tile", "ours, CPU ms/MP", "PyTorch, CPU ms/MP", "ours is x times faster", "PSNR dB"]
    head += ["ours, peak MiB", "PyTorch, peak MiB"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name in NETWORKS:
        if options.names and not any(word.lower() in name.lower() for word in options.names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            path, pixels = Path(folder) / "model.safetensors", side(name)
            how = ["--save", name, "--weights", str(path)]
            subprocess.run([sys.executable, str(HERE / "architectures.py"), *how], check=True)
            contenders = {
                "ours": Contender(our_command(options.ours, path, pixels, options.threads)),
                "torch": Contender(peer_command(name, path, options.threads)),
            }
            outputs = compare(contenders, options.rounds, options.span, options.threads, Path(folder))
        print(row(name, pixels, contenders, outputs), flush=True)


def row(name: str, pixels: int, contenders: dict[str, Contender], outputs: dict[str, np.ndarray]) -> str:
    """Returns a line of the table."""
    megapixels = pixels * pixels / 1e6

    def spread(values: list[float], digits: int) -> str:
        return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"

    def cost(of: str) -> str:
        found = contenders.get(of)
        return spread([1e3 * cpu_s / megapixels for cpu_s in found.cpu_s], 0) if found else "failed"

    def peak(of: str) -> str:
        return f"{contenders[of].peak_bytes / 2**20:.0f}" if of in contenders else "-"

    both = len(contenders) == 2
    ratios = [b / a for a, b in zip(contenders["ours"].cpu_s, contenders["torch"].cpu_s, strict=True)] if both else []
    cells = [name, f"{pixels}x{pixels}", cost("ours"), cost("torch"), spread(ratios, 2) if both else "-"]
    cells += [psnr(outputs["ours"], outputs["torch"]) if both else "-", peak("ours"), peak("torch")]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
