"""Writes `networks.json` beside this script: networks made and recognised by the reference, for `tests/it/networks.rs`.

Made with spandrel 0.4.2, PyTorch 2.15.0 and Python 3.11 (`python networks.py`). For each network it holds the names and
shapes of its state dict, and what the reference's registry says of that state dict. The values are of no account.
"""

import json
from pathlib import Path

from spandrel import MAIN_REGISTRY
from spandrel.architectures.ATD import ATD
from spandrel.architectures.DAT import DAT
from spandrel.architectures.HAT import HAT
from spandrel.architectures.MoSR import MoSR
from spandrel.architectures.OmniSR import OmniSR
from spandrel.architectures.PLKSR import PLKSR, RealPLKSR
from spandrel.architectures.RCAN import RCAN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR

SWIN = dict(img_size=16, embed_dim=12, depths=[2], num_heads=[2], window_size=4, mlp_ratio=2.0)
ATD_SIZES = dict(depths=[2, 3], num_heads=[2, 2], window_size=4, num_tokens=6, reducted_dim=4, mlp_ratio=1.5)
RCAN_SIZES = dict(n_resgroups=2, n_resblocks=1, n_feats=8, reduction=2)

NETWORKS = {
    "rcan_x4": RCAN(scale=4, **RCAN_SIZES),
    "rcan_x3_no_mean": RCAN(scale=3, norm=False, **RCAN_SIZES),
    "rcan_x2_unshuffle": RCAN(scale=2, unshuffle_mod=True, norm=False, **RCAN_SIZES),
    "rcan_x1_unshuffle_grey": RCAN(scale=1, unshuffle_mod=True, norm=False, n_colors=1, **RCAN_SIZES),
    "mosr_ps": MoSR(n_block=2, dim=8, upscale=2, upsampler="ps"),
    "mosr_gps": MoSR(n_block=1, dim=8, upscale=3, upsampler="gps", kernel_size=5, expansion_ratio=2.0),
    "mosr_dys": MoSR(n_block=1, dim=8, upscale=4, upsampler="dys", conv_ratio=0.5),
    "atd_x4": ATD(img_size=16, embed_dim=12, upsampler="pixelshuffle", upscale=4, **ATD_SIZES),
    "atd_light_x2": ATD(img_size=16, embed_dim=48, category_size=128, upsampler="pixelshuffledirect", upscale=2, **ATD_SIZES),
    "atd_3conv_no_norm": ATD(
        img_size=16, embed_dim=12, upsampler="nearest+conv", upscale=4, resi_connection="3conv", norm=False,
        qkv_bias=False, patch_norm=False, convffn_kernel_size=7, **ATD_SIZES,
    ),
    "atd_x1": ATD(img_size=16, embed_dim=12, upsampler="", upscale=1, **ATD_SIZES),
    "swinir_grey_x1": SwinIR(in_chans=1, upsampler="", upscale=1, **SWIN),
    "swinir_alpha_x8": SwinIR(in_chans=4, upsampler="nearest+conv", upscale=8, **SWIN),
    "hat_x3": HAT(
        img_size=16, embed_dim=12, depths=[1], num_heads=[3], window_size=7, compress_ratio=5, squeeze_factor=4,
        overlap_ratio=0.25, mlp_ratio=1.5, qkv_bias=False, upscale=3, upsampler="pixelshuffle", num_feat=8,
    ),
    "omnisr_x2_bare": OmniSR(num_feat=16, res_num=1, block_num=2, bias=False, pe=False, up_scale=2),
    "omnisr_x3_window_4": OmniSR(num_feat=80, res_num=1, block_num=1, window_size=4, up_scale=3),
    "dat_x3_3conv": DAT(
        img_size=64, embed_dim=32, split_size=[2, 8], depth=[1, 2], num_heads=[2, 4], expansion_factor=1.5,
        qkv_bias=False, upscale=3, upsampler="pixelshuffledirect", resi_connection="3conv",
    ),
    "realplksr_x3_dysample": RealPLKSR(dim=16, n_blocks=1, upscaling_factor=3, kernel_size=5, dysample=True),
    "realplksr_x1_dysample": RealPLKSR(dim=16, n_blocks=1, upscaling_factor=1, kernel_size=5, dysample=True, layer_norm=True),
    "plksr_x1_ccm": PLKSR(dim=16, n_blocks=1, upscaling_factor=1, kernel_size=5, ccm_type="CCM", use_ea=False),
    "plksr_x2_iccm": PLKSR(dim=8, n_blocks=1, upscaling_factor=2, kernel_size=3, ccm_type="ICCM", split_ratio=0.5),
    "span_x1": SPAN(num_in_ch=3, num_out_ch=3, feature_channels=4, upscale=1),
}


def entry(name, network):
    state = network.state_dict()
    tensors = [[key, list(value.shape)] for key, value in state.items()]
    found = MAIN_REGISTRY.load(state)
    return {
        "name": name,
        "tensors": tensors,
        "expect": {
            "architecture": found.architecture.id,
            "scale": found.scale,
            "input_channels": found.input_channels,
            "output_channels": found.output_channels,
            "size_requirements": {
                "minimum": found.size_requirements.minimum,
                "multiple_of": found.size_requirements.multiple_of,
                "square": found.size_requirements.square,
            },
            "parameters": sum(parameter.numel() for parameter in found.model.parameters()),
            # Only this version says that there is no unshuffle.
            "tags": [tag for tag in found.tags if tag != "1unshuf"],
            "hyperparameters": {key: value for key, value in found.model.hyperparameters.items() if not callable(value)},
        },
    }


lines = [json.dumps(entry(name, network), separators=(",", ":")) for name, network in NETWORKS.items()]
Path(__file__).with_suffix(".json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
