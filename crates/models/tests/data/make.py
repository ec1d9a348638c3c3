"""Writes `diffusers.json`: networks of diffusers at tiny sizes, what their tensors are called, and what they compute.

Made with diffusers 0.42.1 and PyTorch 2.15.0 (`python make.py PATH_OF_synthetic_weights.py`). All weights and inputs are
computed from their names, so that the tests can make them too.
"""

import importlib.util
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

spec = importlib.util.spec_from_file_location("synthetic_weights", sys.argv[1])
synthetic = importlib.util.module_from_spec(spec)
spec.loader.exec_module(synthetic)

SD1 = dict(
    sample_size=8, block_out_channels=(32, 64), layers_per_block=2, cross_attention_dim=32, attention_head_dim=8,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
)
SDXL = dict(
    sample_size=8, block_out_channels=(32, 64, 64), layers_per_block=2, cross_attention_dim=80,
    attention_head_dim=(2, 4, 4), transformer_layers_per_block=(1, 1, 2), use_linear_projection=True,
    addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=48 + 6 * 256,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
# As distilled ones: a middle of one residual block, and none at all.
SSD = {**SDXL, "mid_block_type": "UNetMidBlock2D"}
KOALA = {**SDXL, "mid_block_type": None, "layers_per_block": 1}


def given(name, *shape):
    return torch.from_numpy(synthetic.tensor(f"{name}.bias", shape)).reshape(shape) * 50


def shapes(network):
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def numbers(tensor):
    return [round(x, 7) for x in tensor.flatten().tolist()]


def unet(settings):
    network = UNet2DConditionModel(**settings).eval()
    synthetic.fill(network)
    arguments = dict(timestep=torch.tensor([500]), encoder_hidden_states=given("context", 1, 5, network.config.cross_attention_dim))
    if "addition_embed_type" in settings:
        sizes = torch.tensor([[64.0, 48.0, 0.0, 0.0, 64.0, 48.0]])
        arguments["added_cond_kwargs"] = {"text_embeds": given("pooled", 1, 48), "time_ids": sizes}
    return {"config": dict(network.config), "shapes": shapes(network),
            "output": numbers(network(given("x", 1, 4, 8, 6), **arguments).sample)}


def vae():
    network = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=2, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()
    synthetic.fill(network)
    pictures = given("pictures", 1, 3, 8, 12) / 2 + 0.5
    return {"config": dict(network.config), "shapes": shapes(network),
            "latent": numbers(network.encode(pictures * 2 - 1).latent_dist.mean),
            "picture": numbers(network.decode(given("latent", 1, 4, 4, 3)).sample)}


with torch.no_grad():
    networks = {name: unet(settings) for name, settings in [("sd1", SD1), ("sdxl", SDXL), ("ssd", SSD), ("koala", KOALA)]}
    networks["vae"] = vae()
    control = ControlNetModel.from_unet(UNet2DConditionModel(**SD1))
    networks["control"] = {"shapes": shapes(control)}
text = json.dumps(networks, separators=(",", ":"), default=str)
(Path(__file__).parent / "diffusers.json").write_text(text.replace('},"', '},\n"') + "\n")
