"""Writes `lycoris.json`: layers changed by every method of LyCORIS, with the tensors that its files hold for them.

Made with LyCORIS 4.1.3 and PyTorch 2.15.0 (`python lycoris.py`, from another folder than this one).
"""

import json
import sys
from pathlib import Path

sys.path = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

import torch
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

torch.manual_seed(7)


LAYERS = {
    "linear": lambda: torch.nn.Linear(6, 8),
    "conv": lambda: torch.nn.Conv2d(6, 8, 3, padding=1),
    "square": lambda: torch.nn.Linear(16, 16),
}


def record(tensor):
    return {"shape": list(tensor.shape), "values": [float(f"{x:.9g}") for x in tensor.detach().flatten().tolist()]}


# Each with its options, its rank and the layers that it changes. What lengths DoRA gives to outputs, and what a constraint of OFT
# is, differ from the reference.
METHODS = {
    "lora": (LoConModule, {}, 2, ["linear", "conv"]),
    "lora_tucker": (LoConModule, {"use_tucker": True}, 2, ["conv"]),
    "lora_dora_in": (LoConModule, {"weight_decompose": True, "wd_on_out": False}, 2, ["linear", "conv"]),
    "loha": (LohaModule, {}, 2, ["linear", "conv"]),
    "loha_tucker": (LohaModule, {"use_tucker": True}, 2, ["conv"]),
    "lokr": (LokrModule, {"factor": 2}, 1, ["linear", "conv"]),
    "lokr_both": (LokrModule, {"factor": 4, "decompose_both": True}, 1, ["square"]),
    "lokr_tucker": (LokrModule, {"factor": 2, "use_tucker": True}, 1, ["conv"]),
    "lokr_full": (LokrModule, {"factor": 2, "full_matrix": True}, 2, ["linear", "conv"]),
    "glora": (GLoRAModule, {}, 2, ["linear", "conv"]),
    "oft": (DiagOFTModule, {}, 2, ["linear", "conv"]),
    "boft": (ButterflyOFTModule, {}, 2, ["linear", "conv"]),
    "boft_rescaled": (ButterflyOFTModule, {"rescaled": True}, 2, ["linear", "conv"]),
}

cases = []
for name, (method, options, rank, kinds) in METHODS.items():
    for kind in kinds:
        layer = LAYERS[kind]()
        # This version merges LoHa and LoKr with the square of alpha/rank.
        alpha = rank if method in (LohaModule, LokrModule) else 1.5
        module = method("lora_unet_middle_block_1_proj_in", layer, 1.0, rank, alpha, **options)
        with torch.no_grad():
            for key, parameter in module.named_parameters():
                if not key.startswith("org_module") and key != "dora_scale":
                    parameter.copy_(torch.randn_like(parameter) * 0.4)
            if hasattr(module, "dora_scale") and getattr(module, "wd", False):
                module.dora_scale.mul_(1 + 0.2 * torch.randn_like(module.dora_scale))
            weight = layer.weight.detach().clone()
            merged = module.get_merged_weight(1.0, weight.shape)[0]
            state = module.custom_state_dict() or module.state_dict()
            tensors = {key: record(value.float()) for key, value in state.items() if "org_module" not in key}
            cases.append({"name": f"{name} {kind}", "weight": record(weight), "tensors": tensors, "merged": record(merged)})
(Path(__file__).parent / "lycoris.json").write_text(json.dumps(cases).replace('{"name"', '\n{"name"') + "\n")
