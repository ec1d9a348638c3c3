"""Records what the reference makes of small networks whose weights are computed from the names of their tensors.

Writes `cases.json` and a file of tensors for each case, in the form of the cases in `../pixels` (`op` is `sr_model`). Made on a
CPU with the versions that stand in `made_with`: `python make.py`.

Tolerances: 5e-5 of the largest number, as there. Each network is computed with f64 numbers as well, and the script fails unless
the recorded f32 numbers are ten times closer to these than the tolerance: so much room has another f32 program, which sums in
another order.

ATD sorts pixels by the token of its dictionary that they are most like. Where two tokens are nearly as good, programs may differ,
and a pixel in another place changes who attends to whom. So of several pictures the one is recorded whose closest decision is the
clearest, and the script fails unless the better token leads by a hundred times what f32 and f64 differ by. Which of two
pixels of one category comes first the reference leaves open (`stable=False`), and what PyTorch answers depends on its version and
the processor. Here they keep the order that they come in, which is one of the answers allowed.
"""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from spandrel import MAIN_REGISTRY
from spandrel.__helpers.size_req import pad_tensor
from spandrel.architectures.ATD import ATD
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.PLKSR import RealPLKSR
from spandrel.architectures.RCAN import RCAN

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "benches"))
from works import synthetic  # noqa: E402

RELATIVE_TOLERANCE = 5e-5
ROOM = 10
LEAD = 100
PICTURES = 20
SMALL = 4096
"""Structural tensors of at most so many bytes are recorded; larger ones follow from the sizes, and nobody reads their values."""

RCAN_SIZES = {"n_resgroups": 2, "n_resblocks": 2, "n_feats": 16, "reduction": 4}
ATD_SIZES = {"img_size": 16, "embed_dim": 12, "num_heads": [2, 2], "window_size": 4, "reducted_dim": 4, "mlp_ratio": 1.5}

CASES: dict[str, tuple[torch.nn.Module, tuple[int, int]]] = {
    "rcan_x2": (RCAN(scale=2, **RCAN_SIZES), (21, 17)),
    "rcan_x3_no_norm": (RCAN(scale=3, norm=False, **RCAN_SIZES), (14, 19)),
    "rcan_x2_unshuffle": (RCAN(scale=2, unshuffle_mod=True, norm=False, **RCAN_SIZES), (23, 29)),
    "rcan_x1_unshuffle_grey": (RCAN(scale=1, unshuffle_mod=True, norm=False, n_colors=1, **RCAN_SIZES), (33, 26)),
    "mosr_ps_x2": (MoSR(n_block=2, dim=16, upscale=2, upsampler="ps"), (19, 24)),
    "mosr_gps_x3": (MoSR(n_block=1, dim=8, upscale=3, upsampler="gps", kernel_size=5, expansion_ratio=2.0), (17, 13)),
    "mosr_dys_x4": (MoSR(n_block=1, dim=8, upscale=4, upsampler="dys", conv_ratio=0.5), (15, 16)),
    "realplksr_x1_dysample": (
        RealPLKSR(dim=16, n_blocks=2, upscaling_factor=1, kernel_size=7, dysample=True, layer_norm=True),
        (27, 22),
    ),
    # 40 x 8 pixels when they are padded: two and a half categories of 128.
    "atd_light_x2": (
        ATD(
            img_size=16, embed_dim=48, depths=[2, 2], num_heads=[4, 4], window_size=8, category_size=128, num_tokens=16,
            reducted_dim=4, mlp_ratio=1, upsampler="pixelshuffledirect", upscale=2,
        ),
        (37, 6),
    ),
    # 20 x 16: one category and a quarter.
    "atd_x4_3conv": (
        ATD(depths=[3, 2], num_tokens=6, upsampler="pixelshuffle", upscale=4, resi_connection="3conv", **ATD_SIZES),
        (17, 13),
    ),
    # 16 x 12: less than one.
    "atd_x4_nearest_bare": (
        ATD(
            depths=[2, 1], num_tokens=5, upsampler="nearest+conv", upscale=4, norm=False, qkv_bias=False, patch_norm=False,
            convffn_kernel_size=7, **ATD_SIZES,
        ),
        (15, 11),
    ),
    # 32 x 24: three.
    "atd_x1": (ATD(depths=[2, 3], num_tokens=6, upsampler="", upscale=1, **ATD_SIZES), (30, 22)),
}  # fmt: skip
"""Each network, and the height and width of its picture."""


def fill(case: str, network: torch.nn.Module) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Gives a network its weights. Returns the list of its tensors, and those of them that are not synthetic."""
    trained = {name for name, _ in network.named_parameters()}
    state, listed, structural = network.state_dict(), [], {}
    for name, value in state.items():
        # Beyond both ends of what they are clamped to.
        if case == "atd_x4_3conv" and name.endswith("attn_atd.scale"):
            value, kind = torch.linspace(-0.5, 1.5, len(value)), "structural"
        elif case == "atd_x4_3conv" and name == "layers.1.residual_group.layers.0.attn_aca.logit_scale":
            value, kind = torch.full((1, 1), 5.0), "structural"
        elif name in trained and not name.startswith(("sub_mean", "add_mean")):
            value, kind = torch.from_numpy(synthetic(name, tuple(value.shape))), "synthetic"
        else:
            kind = "structural"
        state[name] = value
        listed.append([name, list(value.shape), kind])
        if kind == "structural":
            structural[name] = value
    network.load_state_dict(state)
    return listed, structural


def picture(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """Returns bytes [h, w, c]: soft waves, an edge and some noise."""
    dice = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    layers = []
    for _ in range(channels):
        (fy, fx), phase = dice.uniform(-0.5, 0.5, 2), dice.uniform(0, 2 * np.pi)
        layers.append(0.5 + 0.25 * np.sin(fy * y + fx * x + phase) + 0.15 * (x + y > (height + width) / 2))
    values = np.stack(layers, 2) + dice.normal(0, 0.04, (height, width, channels))
    return np.clip(values * 255, 0, 255).astype(np.uint8)


def stable_sort(x: torch.Tensor, dim: int, stable: bool) -> Any:
    """Sorts as `torch.sort` does, but equal values never change places."""
    del stable
    return SORT(x, dim=dim, stable=True)


SORT = torch.sort
torch.sort = stable_sort


class Decisions:
    """Listens to what an ATD network decides about pixels."""

    def __init__(self, network: torch.nn.Module) -> None:
        self.similarities: list[torch.Tensor] = []
        for name, module in network.named_modules():
            if name.endswith("attn_aca"):
                module.register_forward_pre_hook(lambda _, inputs: self.similarities.append(inputs[1].double()))

    def lead(self, exact: Decisions) -> float:
        """Returns by how many times what the two programs differ by the best token leads, where that is closest."""
        leads = []
        for ours, other in zip(self.similarities, exact.similarities, strict=True):
            best = other.topk(2, dim=-1).values
            leads.append(((best[..., 0] - best[..., 1]).min() / (ours - other).abs().max()).item())
        return min(leads, default=np.inf)


def run(network: torch.nn.Module, requirements: Any, pixels: np.ndarray, dtype: torch.dtype, scale: int) -> Any:
    """Computes a picture with numbers of a type. Returns [c, h, w], unclamped, and what was decided."""
    network = deepcopy(network).to(dtype)
    decisions = Decisions(network)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float().div(255).to(dtype)
    _, x = pad_tensor(x, requirements)
    with torch.inference_mode():
        y = network(x.clone())[0]
    height, width, _ = pixels.shape
    return y[:, : height * scale, : width * scale].double().numpy(), decisions


def record(case: str, network: torch.nn.Module, size: tuple[int, int]) -> dict[str, Any]:
    """Writes the tensors of a case and returns what `cases.json` says of it."""
    network = network.eval()
    listed, structural = fill(case, network)
    found = MAIN_REGISTRY.load(network.state_dict())
    network, requirements = found.model.eval(), found.size_requirements

    def attempt(seed: int) -> Any:
        pixels = picture(*size, found.input_channels, seed)
        raw, ours = run(network, requirements, pixels, torch.float32, found.scale)
        exact, other = run(network, requirements, pixels, torch.float64, found.scale)
        return ours.lead(other), np.abs(raw - exact).max(), pixels, raw.astype(np.float32)

    attempts = [attempt(seed) for seed in range(PICTURES if found.architecture.id == "ATD" else 1)]
    lead, off, pixels, raw = max(attempts, key=lambda attempt: attempt[0])
    tolerance = float(f"{RELATIVE_TOLERANCE * np.abs(raw).max():.1e}")
    leads = "" if lead == np.inf else f"; tokens lead by {lead:.0f} times what they are off by"
    print(f"{case}: f32 is off by {off:.1e} of {tolerance:.1e}{leads}", flush=True)
    if off * ROOM > tolerance or lead < LEAD:
        raise SystemExit(f"{case} is too close")

    tensors = {"in.image": pixels, "out.raw": raw}
    inputs = {"image": told("in.image", pixels, "in: HWC bytes (divide by 255); out: CHW float")}
    for name, value in structural.items():
        array = value.numpy()
        if array.nbytes <= SMALL:
            tensors[f"in.structural.{name}"] = np.ascontiguousarray(array)
            inputs[f"structural.{name}"] = told(f"in.structural.{name}", array, "")
    save_file(tensors, HERE / f"{case}.safetensors")
    needs = {key: getattr(requirements, key) for key in ("minimum", "multiple_of", "square")}
    return {
        "name": case,
        "op": "sr_model",
        "params": {},
        "file": f"{case}.safetensors",
        "inputs": inputs,
        "outputs": {"raw": told("out.raw", raw, "CHW float, before the clamp to 0..1, padding removed")},
        "tolerance": {
            "raw": {
                "max_abs": tolerance,
                "reason": f"{RELATIVE_TOLERANCE:.0e} of the largest value; f32 itself is off by {off:.1e}",
            }
        },
        "expect": {
            "architecture": found.architecture.id,
            "scale": found.scale,
            "input_channels": found.input_channels,
            "output_channels": found.output_channels,
            "size_requirements": needs,
            "hyperparameters": {key: value for key, value in network.hyperparameters.items() if not callable(value)},
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "tags": found.tags,
        },
        "weights": {"rule": "weights::synthetic; 'structural' = not random, recorded where small", "tensors": listed},
    }


def told(name: str, array: np.ndarray, layout: str) -> dict[str, Any]:
    return {"tensor": name, "shape": list(array.shape), "dtype": str(array.dtype), "layout": layout}


def main() -> None:
    lines = [json.dumps(record(case, *how), separators=(",", ":")) for case, how in CASES.items()]
    head = {
        "format": 1,
        "set": "architectures",
        "conventions": "as in ../pixels/cases.json",
        "made_with": {package: version(package) for package in ("torch", "spandrel", "numpy")},
    }
    told_head = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    (HERE / "cases.json").write_text("{\n" + told_head + '"cases": [\n' + ",\n".join(lines) + "\n]\n}\n")


if __name__ == "__main__":
    main()
