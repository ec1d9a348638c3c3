"""What is timed: two networks and single operations, each a list of steps over named values, on synthetic weights.

`peers.py` makes a program of each of these lists for every peer, so that all of them compute the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

FEATURES = 64
GROWTH = 32  # channels that each convolution of a dense block adds
BLOCKS = 23
CONVOLUTIONS = 16  # in the middle of Compact
GROUPS = 32
UNIT = np.float32(86.60254)  # makes a synthetic bias a number of variance 1

CONVOLUTION_OPS = (  # inputs, outputs, side: those of RRDBNet, and of Stable Diffusion 1.5 and its VAE
    (64, 32, 128),
    (96, 32, 128),
    (128, 32, 128),
    (160, 32, 128),
    (192, 64, 128),
    (64, 64, 256),
    (320, 320, 64),
    (640, 640, 32),
    (1280, 1280, 16),
    (512, 512, 64),
    (128, 128, 512),
)


@dataclass(frozen=True)
class Step:
    """Computes the value `output` from the values `inputs`; `facts` are its sizes, factors and weight names."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    facts: tuple = ()


@dataclass(frozen=True)
class Work:
    """A list of steps that ends in the value `out`."""

    name: str
    steps: tuple[Step, ...]
    inputs: dict[str, Array]
    weights: dict[str, tuple[int, ...]]
    flop: float
    axes: tuple[int, ...] = ()  # the order of the output's axes in a file, where it is another

    def weight(self, name: str) -> Array:
        """Returns the values of a weight."""
        return synthetic(name, self.weights[name])


def synthetic(name: str, shape: tuple[int, ...]) -> Array:
    """Returns a tensor made of its name alone, by the rule of `weights::synthetic`."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(key) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    u = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)
    if len(shape) >= 2:
        scale, centre = math.sqrt(3.0 / math.prod(shape[1:])), 0.0
    elif name.endswith("weight"):
        scale, centre = 0.1, 1.0
    else:
        scale, centre = 0.02, 0.0
    values = (np.float32(2) * u - np.float32(1)) * np.float32(scale) + np.float32(centre)
    return values.reshape(shape)


class Builder:
    """Collects the steps of a work."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.flop = 0.0

    def step(self, kind: str, *inputs: str, facts: tuple = (), output: str = "") -> str:
        output = output or f"v{len(self.steps)}"
        self.steps.append(Step(kind, inputs, output, facts))
        return output

    def conv(self, x: str, name: str, inputs: int, outputs: int, pixels: int, output: str = "") -> str:
        """A convolution of 3 x 3 with a border of zeros, over so many pixels."""
        self.weights |= {f"{name}weight": (outputs, inputs, 3, 3), f"{name}bias": (outputs,)}
        self.flop += 18.0 * inputs * outputs * pixels
        return self.step("conv", x, facts=(f"{name}weight", f"{name}bias"), output=output)

    def done(self, name: str, **inputs: Array) -> Work:
        return Work(name, tuple(self.steps), inputs, self.weights, self.flop)


def picture(h: int, w: int) -> Array:
    """Returns a tile of values from 0 to 1, [1, 3, h, w]."""
    return synthetic("input.", (1, 3, h, w)) * np.float32(0.5) + np.float32(0.5)


def signal(name: str, *shape: int) -> Array:
    """Returns values of variance 1."""
    return (synthetic(name, (math.prod(shape),)) * UNIT).reshape(shape)


def rrdb(h: int, w: int) -> Work:
    """RRDBNet x4 of Real-ESRGAN."""
    b, area = Builder(), h * w

    def dense(x: str, name: str) -> str:
        values = [x]
        for k in range(1, 6):
            joined = b.step("concat", *values) if k > 1 else x
            inputs, outputs = FEATURES + GROWTH * (k - 1), GROWTH if k < 5 else FEATURES
            y = b.conv(joined, f"{name}.conv{k}.", inputs, outputs, area)
            values.append(b.step("lrelu", y) if k < 5 else y)
        return b.step("scaled_add", values[-1], x)

    first = b.conv("x", "conv_first.", 3, FEATURES, area)
    y = first
    for i in range(BLOCKS):
        block = y
        for r in (1, 2, 3):
            y = dense(y, f"body.{i}.rdb{r}")
        y = b.step("scaled_add", y, block)
    y = b.step("add", b.conv(y, "conv_body.", FEATURES, FEATURES, area), first)
    for up, grown in ((1, 4), (2, 16)):
        y = b.step("enlarge", y, facts=(2,))
        y = b.step("lrelu", b.conv(y, f"conv_up{up}.", FEATURES, FEATURES, area * grown))
    y = b.step("lrelu", b.conv(y, "conv_hr.", FEATURES, FEATURES, area * 16))
    b.conv(y, "conv_last.", FEATURES, 3, area * 16, output="out")
    return b.done(f"rrdb {h}x{w}", x=picture(h, w))


def compact(h: int, w: int) -> Work:
    """SRVGGNetCompact x4 of Real-ESRGAN."""
    b, area, y = Builder(), h * w, "x"
    for k in range(CONVOLUTIONS + 1):
        y = b.conv(y, f"body.{2 * k}.", FEATURES if k else 3, FEATURES, area)
        b.weights[f"body.{2 * k + 1}.weight"] = (FEATURES,)
        y = b.step("prelu", y, facts=(f"body.{2 * k + 1}.weight",))
    y = b.conv(y, f"body.{2 * CONVOLUTIONS + 2}.", FEATURES, 3 * 4 * 4, area)
    y = b.step("shuffle", y, facts=(4,))
    b.step("add", y, b.step("enlarge", "x", facts=(4,)), output="out")
    return b.done(f"compact {h}x{w}", x=picture(h, w))


def convolution(inputs: int, outputs: int, side: int) -> Work:
    """One convolution of 3 x 3."""
    b = Builder()
    b.conv("x", "", inputs, outputs, side * side, output="out")
    return b.done(f"conv3x3 {inputs}->{outputs} @{side}", x=signal("x.", 1, inputs, side, side))


def attention() -> Work:
    """Attention of the largest level of Stable Diffusion 1.5 at 512 x 512."""
    heads, tokens, channels = 8, 4096, 40
    b = Builder()
    b.flop = 4.0 * heads * tokens * tokens * channels
    b.step("attention", "q", "k", "v", output="out")
    rows = {name: signal(f"{name}.", 1, tokens, heads, channels) for name in "qkv"}  # as linear layers give them
    inputs = {name: np.ascontiguousarray(values.transpose(0, 2, 1, 3)) for name, values in rows.items()}
    return replace(b.done("attention 8x4096x40", **inputs), axes=(0, 2, 1, 3))


def geglu() -> Work:
    """The widening half of a transformer block's network: `a * gelu(g)` of one linear layer's halves."""
    b = Builder()
    b.weights = {"weight": (2560, 320), "bias": (2560,)}
    b.flop = 2.0 * 4096 * 320 * 2560
    b.step("geglu", "x", facts=("weight", "bias"), output="out")
    return b.done("linear 320->2560 GEGLU @4096", x=signal("x.", 1, 4096, 320))


def norm() -> Work:
    """Group norm and SiLU before a convolution."""
    b = Builder()
    b.weights = {"norm.weight": (320,), "norm.bias": (320,)}
    b.flop = 10.0 * 320 * 64 * 64
    b.step("norm_silu", "x", facts=("norm.weight", "norm.bias"), output="out")
    return b.done("groupnorm32+silu 320@64", x=signal("x.", 1, 320, 64, 64))


def ops() -> tuple[str, ...]:
    """Returns the names of the single operations."""
    convolutions = (f"conv3x3 {i}->{o} @{side}" for i, o, side in CONVOLUTION_OPS)
    return (*convolutions, "attention 8x4096x40", "linear 320->2560 GEGLU @4096", "groupnorm32+silu 320@64")


def work(name: str) -> Work:
    """Returns what goes by this name: `rrdb HxW`, `compact HxW` or one of `ops()`."""
    kind, _, rest = name.partition(" ")
    if kind in ("rrdb", "compact"):
        h, w = (int(side) for side in rest.split("x"))
        return (rrdb if kind == "rrdb" else compact)(h, w)
    if name not in ops():
        raise SystemExit(f"`{name}` is neither `rrdb HxW` nor `compact HxW` nor one of: {', '.join(ops())}")
    if kind == "conv3x3":
        return convolution(*CONVOLUTION_OPS[ops().index(name)])
    return {"attention": attention, "linear": geglu, "groupnorm32+silu": norm}[kind]()
