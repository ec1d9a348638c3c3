"""The network, and the file that Tessera loads: SRVGGNetCompact with the tensor names of its published checkpoints."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

LAYOUTS = {2: (24, 8), 4: (32, 16)}
"""The features and the middle convolutions of the model of each scale."""
SCALES = tuple(LAYOUTS)

HALF_STEP = 0.5 / 255
"""Half a step of eight bits, which exported weights add to every sample.

The reference makes bytes of samples by dropping the fraction, and so does Tessera. Half a step more turns that into
rounding to nearest: without it every picture would come out half a step too dark.
"""


def name(scale: int) -> str:
    """Returns the name of the model of `scale`."""
    return f"tessera-{scale}x"


def path(scale: int) -> Path:
    """Returns the file from which the program takes the model of `scale`."""
    return Path(__file__).parent / f"../crates/weights/builtin/{name(scale)}.safetensors"


class Compact(nn.Module):
    """Convolutions at the input's resolution, then one pixel shuffle added to the input enlarged by repetition."""

    def __init__(self, scale: int) -> None:
        super().__init__()
        features, middle = LAYOUTS[scale]
        self.scale = scale
        layers: list[nn.Module] = [nn.Conv2d(3, features, 3, padding=1), nn.PReLU(features)]
        for _ in range(middle):
            layers += [nn.Conv2d(features, features, 3, padding=1), nn.PReLU(features)]
        layers.append(nn.Conv2d(features, 3 * scale * scale, 3, padding=1))
        self.body = nn.Sequential(*layers)
        # A row of plain convolutions this long learns only if each keeps the size of its input (He et al. 2015), and if the
        # last says little at first.
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, a=0.25)
                nn.init.zeros_(layer.bias)
        layers[-1].weight.data.mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [b, 3, h, w] to [b, 3, scale * h, scale * w], values around 0..1 and not clamped."""
        detail = functional.pixel_shuffle(self.body(x), self.scale)
        return detail + functional.interpolate(x, scale_factor=self.scale, mode="nearest")


def export(scale: int, weights: dict[str, Tensor], target: Path) -> None:
    """Writes `weights` as half-precision safetensors, with [`HALF_STEP`] added, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    last = f"body.{2 * LAYOUTS[scale][1] + 2}.bias"
    raised = {key: value + HALF_STEP if key == last else value for key, value in weights.items()}
    metadata = {
        "name": name(scale),
        "version": "2",
        "licence": "Apache-2.0",
        "trained on": "generated pictures only",
    }
    save_file({key: value.half().contiguous() for key, value in raised.items()}, partial, metadata)
    partial.chmod(0o644)
    partial.replace(target)


def load(scale: int, source: Path) -> Compact:
    """Reads an exported file into a single-precision network, ready to infer."""
    with safe_open(source, "pt") as file:
        weights = {key: file.get_tensor(key).float() for key in file.keys()}
    network = Compact(scale)
    network.load_state_dict(weights)
    return network.eval()
