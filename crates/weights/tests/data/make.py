"""Writes the small PyTorch files beside this script, which `tests/it/checkpoints.rs` reads.

Made with PyTorch 2.15.0 and Python 3.11 (`python make.py`); the values are 0, 1, 2, ... so that the tests can tell
where each one came from.
"""

import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent


def numbers(*shape, dtype=torch.float32):
    return torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)


def save(name, content, new_format=True):
    torch.save(content, HERE / name, _use_new_zipfile_serialization=new_format)


def compact(prefix=""):
    """The tensors of the smallest 2x Compact network: 4 features, no middle convolution."""
    tensors = OrderedDict()
    tensors["body.0.weight"] = numbers(4, 3, 3, 3)
    tensors["body.0.bias"] = numbers(4)
    tensors["body.1.weight"] = numbers(4)
    tensors["body.2.weight"] = numbers(12, 4, 3, 3)
    tensors["body.2.bias"] = numbers(12)
    return OrderedDict((prefix + name, tensor) for name, tensor in tensors.items())


class Malicious:
    def __reduce__(self):
        return os.system, ("echo this must never be executed",)


module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.PReLU(4))
with torch.no_grad():
    for parameter in module.parameters():
        parameter.copy_(numbers(*parameter.shape))

save("zip.pth", compact())
save("name_of_21_characters.pth", compact())  # it becomes part of the names in the archive
save("legacy.pth", compact(), new_format=False)
save("params_ema.pth", {"params": {"body.0.weight": numbers(1)}, "params_ema": compact("module.")})
save("training.pth", {"epoch": 3, "lr": 0.5, "state_dict": {"netG." + k: v for k, v in compact().items()}})
save("only_entry.pth", {"weights": compact()})
save("inversion.pt", {"string_to_token": {"*": 265}, "string_to_param": {"*": numbers(2, 64)}, "name": "x", "step": 9})
save("module.pth", module.state_dict())  # an ordered dictionary with attributes
save("parameters.pth", dict(module.named_parameters()))
save("types.pth", {
    "f64": numbers(2, dtype=torch.float64), "f32": numbers(2), "f16": numbers(2, dtype=torch.float16),
    "bf16": numbers(2, dtype=torch.bfloat16), "i64": -numbers(2, dtype=torch.int64), "i32": -numbers(2, dtype=torch.int32),
    "i16": -numbers(2, dtype=torch.int16), "i8": -numbers(2, dtype=torch.int8), "u8": numbers(2, dtype=torch.uint8),
    "bool": numbers(2, dtype=torch.bool), "single": torch.tensor(7.0), "empty": torch.zeros(0, 3), "steps": 12,
})
base = numbers(4, 6)
views = {"base": base, "transposed": base.T, "window": base[1:3, 2:5], "every_second": base[:, ::2], "last": base[3]}
save("views.pth", views)
save("views_legacy.pth", views, new_format=False)
save("repeated.pth", {"weight": torch.zeros(1).expand(1000, 1000)})
# As PyTorch Lightning saves Stable Diffusion: a class names the entries of its callbacks.
lightning = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
lightning.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": lightning.__name__})
sys.modules.update({"pytorch_lightning": types.ModuleType("x"), "pytorch_lightning.callbacks": types.ModuleType("x"),
                    lightning.__name__: lightning})
save("stable_diffusion.ckpt", {
    "epoch": 4, "global_step": 470000, "pytorch-lightning_version": "1.4.2", "lr_schedulers": [],
    "callbacks": {lightning.ModelCheckpoint: {"monitor": "val/loss", "best_model_score": numbers(1)[0], "dirpath": "x"}},
    "state_dict": {
        "model.diffusion_model.out.2.weight": numbers(4, 8, 3, 3).half(), "model.diffusion_model.out.2.bias": numbers(4).half(),
        "first_stage_model.quant_conv.bias": numbers(8).half(), "model_ema.decay": torch.tensor(0.9999),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": numbers(1, 77, dtype=torch.int64),
    },
})
save("malicious.pth", {"state_dict": Malicious()})
save("malicious_legacy.pth", {"state_dict": Malicious()}, new_format=False)
save("tensor.pth", numbers(3))
