"""The network, and the file that Tessera loads: SRVGGNetCompact with the tensor names of its published checkpoints."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

SCALE = 2
FEATURES = 24
MIDDLE = 8

METADATA = {
    "name": "tessera-2x",
    "version": "1",
    "licence": "Apache-2.0",
    "trained on": "generated pictures only",
}


class Compact(nn.Module):
    """Convolutions at the input's resolution, then one pixel shuffle added to the input enlarged by repetition."""

    def __init__(self, features: int = FEATURES, middle: int = MIDDLE, scale: int = SCALE) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(middle):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale * scale, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, 3, h, w] to [b, 3, scale * h, scale * w], values around 0..1 and not clamped."""
        detail = functional.pixel_shuffle(self.body(x), self.scale)
        return detail + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


def export(weights: dict[str, Tensor], path: Path) -> None:
    """Writes `weights` as half-precision safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({name: value.half().contiguous() for name, value in weights.items()}, partial, METADATA)
    partial.chmod(0o644)
    partial.replace(path)


def load(path: Path) -> Compact:
    """Reads an exported file into a single-precision network, ready to infer."""
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}
    network = Compact()
    network.load_state_dict(weights)
    return network.eval()
