#!/usr/bin/env python3
"""Times the networks of latent diffusion beside PyTorch, at full size, in one run, and prints a Markdown table for each call.

PyTorch runs the networks of the packages `diffusers` and `transformers`, in f32 and in bf16 with channels last. Their weights
are computed from the names of the tensors in a checkpoint, rounded to f16 and written to files, as most checkpoints are published;
both sides load these. Calls are timed from outside, in turn, as `side_by_side.py` does it. It judges nothing.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from side_by_side import OURS, Command, Contender, compare, table
from works import picture, signal, synthetic

HERE = Path(__file__).resolve().parent
PEERS = ("torch-f32", "torch-bf16-cl")
TIMESTEP = 500
START, END, TOKENS = 49406, 49407, 77

SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
CALLS: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "sd1 unet 1x64x64": ("sd1", "unet", (1, 64, 64)),
    "sd1 unet 2x64x64": ("sd1", "unet", (2, 64, 64)),
    "vae encode 1x512x512": ("vae", "vae-encode", (1, 512, 512)),
    "vae decode 1x64x64": ("vae", "vae-decode", (1, 64, 64)),
    "text 77": ("text", "text", (1, 1, 1)),
    "sdxl unet 1x64x64": ("sdxl", "unet", (1, 64, 64)),
}
"""Each call's network, what `tessera-bench` calls it, and the batch, height and width of what goes in."""
DEFAULT = tuple(name for name in CALLS if not name.startswith("sdxl"))


def make(network: str) -> Any:
    """Makes a network, on whatever numbers are in memory."""
    import diffusers
    import torch
    import transformers

    with torch.device("meta"):
        match network:
            case "sd1" | "sdxl":
                made = diffusers.UNet2DConditionModel(**(SD1 if network == "sd1" else SDXL))
            case "vae":
                made = diffusers.AutoencoderKL(**VAE)
            case "text":
                # The sizes of CLIP ViT-L/14.
                sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
                config = transformers.CLIPTextConfig(**sizes, num_attention_heads=12, projection_dim=768)
                made = transformers.CLIPTextModel(config)
    return made.eval()


RES = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0"}
RES |= {"conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
WHOLE = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
WHOLE |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
WHOLE |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}


def unet_name(name: str, names: set[str]) -> str:
    """Returns what a checkpoint calls a tensor of a UNet in `diffusers`."""
    layer, _, part = name.rpartition(".")
    if layer in WHOLE:
        return f"{WHOLE[layer]}.{part}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", layer):
        kind, i, rest = found.groups()
        where = f"middle_block.{1 if kind == 'attentions' else 2 * int(i)}"
    elif found := re.fullmatch(r"down_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", layer):
        level, kind, i, rest = found.groups()
        if kind == "downsamplers":
            return f"input_blocks.{3 * int(level) + 3}.0.op.{part}"
        where = f"input_blocks.{3 * int(level) + int(i) + 1}.{int(kind == 'attentions')}"
    elif found := re.fullmatch(r"up_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", layer):
        level, kind, i, rest = found.groups()
        if kind == "upsamplers":
            attends = f"up_blocks.{level}.attentions.0.norm.weight" in names
            return f"output_blocks.{3 * int(level) + 2}.{1 + attends}.conv.{part}"
        where = f"output_blocks.{3 * int(level) + int(i)}.{int(kind == 'attentions')}"
    else:
        raise KeyError(name)
    return f"{where}.{RES.get(rest, rest)}.{part}"


def vae_name(name: str, _: set[str]) -> str:
    """Returns what a checkpoint calls a tensor of a VAE in `diffusers`."""
    levels = len(VAE["block_out_channels"])
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
    name = name.replace("conv_norm_out", "norm_out").replace("attn_1.group_norm", "attn_1.norm")
    name = name.replace("to_out.0", "proj_out")
    return re.sub(r"attn_1\.to_([qkv])", r"attn_1.\1", name)


def text_name(name: str, _: set[str]) -> str:
    """Returns what a checkpoint calls a tensor of a text encoder in `transformers`."""
    return name if name.startswith("text_model.") else f"text_model.{name}"


NAMES: dict[str, Callable[[str, set[str]], str]] = {"vae": vae_name, "text": text_name}


def names(network: str, state: dict[str, Any]) -> dict[str, str]:
    """Returns the names in a checkpoint by those of the state of a network."""
    name = NAMES.get(network, unet_name)
    return {key: name(key, set(state)) for key, value in state.items() if value.is_floating_point()}


def save(network: str, path: Path) -> None:
    """Writes the weights of a network. It has a process of its own: what that holds is nobody's peak."""
    import torch
    from safetensors.torch import save_file

    state = make(network).state_dict()
    tensors = {}
    for key, name in names(network, state).items():
        shape = tuple(state[key].shape)
        # A checkpoint has a VAE's projections as convolutions.
        shape += (1, 1) if network == "vae" and "attn_1" in name and len(shape) == 2 else ()
        tensors[name] = torch.from_numpy(synthetic(name, shape)).half()
    save_file(tensors, path)


def load(network: str, path: Path, kind: str) -> Any:
    """Loads the weights of a network, each as soon as it is read: a mapped file would count as memory."""
    import torch

    dtype = torch.bfloat16 if kind == "bf16-cl" else torch.float32
    made = make(network)
    state = made.state_dict()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for key, name in names(network, state).items():
            first, end = header[name]["data_offsets"]
            file.seek(8 + length + first)
            numbers = np.fromfile(file, np.float16, (end - first) // 2)
            tensor = torch.from_numpy(numbers).to(dtype).reshape(state[key].shape)
            is_picture = kind == "bf16-cl" and tensor.dim() == 4
            state[key] = tensor.contiguous(memory_format=torch.channels_last) if is_picture else tensor
    made.load_state_dict(state, assign=True)
    for name, buffer in made.named_buffers():  # what no file holds
        if buffer.is_meta and name.endswith("position_ids"):
            made.get_submodule(name.rpartition(".")[0]).position_ids = torch.arange(TOKENS)[None]
    return made


def run(call: str, kind: str, passes: int, out: Path, threads: int, path: Path) -> None:
    """Calls a network of PyTorch so many times, and writes its last output."""
    import torch

    torch.set_num_threads(threads)
    network, what, (b, h, w) = CALLS[call]
    made = load(network, path, kind)

    def place(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if kind == "f32":
            return tensor
        tensor = tensor.bfloat16()
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    match what:
        case "unet":
            x, context = signal("x.", b, 4, h, w), signal("context.", b, TOKENS, made.config.cross_attention_dim)
            inputs = {"sample": place(x), "timestep": TIMESTEP, "encoder_hidden_states": place(context)}
            if network == "sdxl":
                # What the network is told beside the text is behind the embedding of sizes: that of zeros, cut off again.
                y = place(signal("y.", b, SDXL["projection_class_embeddings_input_dim"]))
                made.add_time_proj.forward = lambda _: y[:, 1280:].reshape(-1)
                inputs["added_cond_kwargs"] = {"text_embeds": y[:, :1280], "time_ids": torch.zeros(b, 6)}
            call_once = lambda: made(**inputs).sample  # noqa: E731
        case "vae-encode":
            x = place(np.broadcast_to(picture(h, w), (b, 3, h, w)).copy() * np.float32(2) - np.float32(1))
            call_once = lambda: made.encode(x).latent_dist.parameters  # noqa: E731
        case "vae-decode":
            x = place(signal("x.", b, 4, h, w))
            call_once = lambda: made.decode(x).sample  # noqa: E731
        case "text":
            ids = torch.tensor([[START] + [END] * (TOKENS - 1)])
            call_once = lambda: made(input_ids=ids).last_hidden_state  # noqa: E731
    y = None
    with torch.inference_mode():
        for _ in range(passes + 1):
            y = None  # not held beside the next
            y = call_once()
    y.float().contiguous().numpy().tofile(out)


def our_command(binary: Path, call: str, path: Path, precision: str, threads: int) -> Command:
    """Returns the command line of `tessera-bench` for a call."""
    _, what, (b, h, w) = CALLS[call]
    how = ["--model", str(path), "--batch", str(b), "--precision", precision, "--threads", str(threads)]
    return lambda passes, out: [str(binary), what, str(h), str(w), str(passes), str(out), *how]


def peer_command(call: str, peer: str, path: Path, threads: int) -> Command:
    """Returns PyTorch's command line for a call."""
    kind = peer.removeprefix("torch-")
    how = [sys.executable, str(HERE / "diffusion.py"), "--run", call, "--kind", kind, "--weights", str(path)]
    return lambda passes, out: [*how, "--threads", str(threads), "--passes", str(passes), "--output", str(out)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which of: {', '.join(CALLS)}; all but SDXL's by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--calls", type=int, default=1, help="calls that are timed in a round, behind the first (1)")
    parser.add_argument("--peers", default=",".join(PEERS), help="both by default")
    parser.add_argument("--folder", type=Path, help="a folder where weights are kept between runs")
    parser.add_argument("--ours", type=Path, default=HERE.parent / "target/release/tessera-bench")
    for hidden in ("--run", "--kind", "--save", "--weights", "--output"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--passes", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, options.kind, options.passes, Path(options.output), options.threads, Path(options.weights))
        return
    if options.save:
        save(options.save, Path(options.weights))
        return
    if unknown := set(options.names) - set(CALLS):
        parser.error(f"no call is named {', '.join(sorted(unknown))}; there are {', '.join(CALLS)}")

    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "diffusers", "transformers"))
    print(f"Median (least-most) of {options.rounds} rounds, {options.threads} thread(s); {packages}.\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for call in options.names or DEFAULT:
            network = CALLS[call][0]
            path = (options.folder or Path(folder)) / f"{network}.safetensors"
            if not path.exists():
                how = ["--save", network, "--weights", str(path)]
                subprocess.run([sys.executable, str(HERE / "diffusion.py"), *how], check=True)
            how = (path, options.threads)
            contenders = {
                f"tessera {precision}": Contender(our_command(options.ours, call, path, precision, options.threads))
                for precision in OURS
            }
            contenders |= {peer: Contender(peer_command(call, peer, *how)) for peer in options.peers.split(",") if peer}
            for contender in contenders.values():
                contender.passes = options.calls
            outputs = compare(contenders, options.rounds, 0.0, options.threads, Path(folder))
            print(table(call, None, contenders, outputs), flush=True)


if __name__ == "__main__":
    main()
