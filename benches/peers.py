#!/usr/bin/env python3
"""Runs one of `works.py` on another program: `peers.py PEER WORK N [--out FILE] [--threads T]`.

It makes N passes after one to warm up, and writes the last output as raw f32. It prints nothing: what a pass costs is
for `side_by_side.py` to find out, from outside, as it does for `tessera-bench`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from works import GROUPS, Array, Work, work

Run = Callable[[], Any]  # one pass
LRELU = 0.2
RESIDUAL = 0.2


def torch_run(job: Work, kind: str, threads: int) -> tuple[Run, Callable[[Any], Array]]:
    """PyTorch, in f32 or in bf16 with channels last."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)

    def place(array: Array) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if kind == "f32":
            return tensor
        tensor = tensor.bfloat16()
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    weights = {name: place(job.weight(name)) for name in job.weights}
    # Attention's inputs are not pictures.
    inputs = {k: place(v) if k == "x" else torch.from_numpy(v).to(place(v).dtype) for k, v in job.inputs.items()}

    def halves(x: torch.Tensor, weight: str, bias: str) -> torch.Tensor:
        a, gate = F.linear(x, weights[weight], weights[bias]).chunk(2, -1)
        return a * F.gelu(gate)

    kinds: dict[str, Callable[..., torch.Tensor]] = {
        "conv": lambda x, weight, bias: F.conv2d(x, weights[weight], weights[bias], padding=1),
        "lrelu": lambda x: F.leaky_relu(x, LRELU, inplace=True),
        "prelu": lambda x, weight: F.prelu(x, weights[weight]),
        "concat": lambda *xs: torch.cat(xs, 1),
        "scaled_add": lambda x, y: x * RESIDUAL + y,
        "add": lambda x, y: x + y,
        "enlarge": lambda x, factor: F.interpolate(x, scale_factor=factor, mode="nearest"),
        "shuffle": F.pixel_shuffle,
        "attention": F.scaled_dot_product_attention,
        "geglu": halves,
        "norm_silu": lambda x, weight, bias: F.silu(F.group_norm(x, GROUPS, weights[weight], weights[bias])),
    }
    last_use = {name: i for i, step in enumerate(job.steps) for name in step.inputs}

    def run() -> torch.Tensor:
        values = dict(inputs)
        for i, step in enumerate(job.steps):
            values[step.output] = kinds[step.kind](*(values[name] for name in step.inputs), *step.facts)
            for name in set(step.inputs):
                if last_use[name] == i:
                    del values[name]
        return values["out"]

    return run, lambda out: out.float().contiguous().numpy()


def write_onnx(job: Work, path: Path) -> None:
    """Writes the work as an ONNX model."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants = {name: job.weight(name) for name in job.weights}

    def node(kind: str, inputs: list[str], output: str, **facts: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], **facts))
        return output

    def constant(name: str, *values: float, integers: bool = False) -> str:
        constants[name] = np.array(values, np.int64 if integers else np.float32)
        return name

    for step in job.steps:
        x, y, facts = step.inputs[0], step.output, step.facts
        match step.kind:
            case "conv":
                node("Conv", [x, *facts], y, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
            case "lrelu":
                node("LeakyRelu", [x], y, alpha=LRELU)
            case "prelu":
                constants[facts[0]] = constants[facts[0]].reshape(-1, 1, 1)
                node("PRelu", [x, facts[0]], y)
            case "concat":
                node("Concat", list(step.inputs), y, axis=1)
            case "scaled_add":
                scaled = node("Mul", [x, constant("residual", RESIDUAL)], f"{y}.scaled")
                node("Add", [scaled, step.inputs[1]], y)
            case "add":
                node("Add", list(step.inputs), y)
            case "enlarge":
                scales = constant(f"{y}.scales", 1, 1, facts[0], facts[0])
                how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
                node("Resize", [x, "", scales], y, **how)
            case "shuffle":
                node("DepthToSpace", [x], y, blocksize=facts[0], mode="CRD")
            case "attention":
                q, k, v = step.inputs
                scale = constant("scale", 1 / math.sqrt(job.inputs[q].shape[-1]))
                scores = node("MatMul", [q, node("Transpose", [k], "k.t", perm=[0, 1, 3, 2])], "scores")
                node("MatMul", [node("Softmax", [node("Mul", [scores, scale], "scaled")], "shares", axis=-1), v], y)
            case "geglu":
                weight, bias = facts
                constants[weight] = np.ascontiguousarray(constants[weight].T)
                node("Add", [node("MatMul", [x, weight], "product"), bias], "sums")
                nodes.append(helper.make_node("Split", ["sums"], ["a", "gate"], axis=-1, num_outputs=2))
                node("Mul", ["a", node("Gelu", ["gate"], "gelu")], y)
            case "norm_silu":
                normed = node("GroupNormalization", [x, *facts], "normed", num_groups=GROUPS)
                node("Mul", [normed, node("Sigmoid", [normed], "sigmoid")], y)
            case other:
                raise NotImplementedError(other)
    inputs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in job.inputs.items()]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "work", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    model.ir_version = 10
    onnx.save(model, path)


def onnxruntime_run(job: Work, path: Path, threads: int) -> Run:
    """onnxruntime in f32."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, dict(job.inputs))[0]


def openvino_run(job: Work, path: Path, kind: str, threads: int) -> Run:
    """OpenVINO in f32 or bf16, one request at a time."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": kind, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda: request.infer(dict(job.inputs))[0]


def write_ncnn(job: Work, param: Path, weights: Path) -> None:
    """Writes the work as a pair of ncnn's files, in which a value that several layers take is split."""
    uses = Counter(name for step in job.steps for name in step.inputs)
    # ncnn does not fuse by itself: a convolution takes over the activation behind it.
    activated = {step.inputs[0]: step.output for step in job.steps if step.kind == "lrelu"}
    taken: Counter[str] = Counter()
    lines: list[str] = []
    blobs = 0

    def layer(kind: str, inputs: list[str], outputs: list[str], *settings: str) -> None:
        nonlocal blobs
        counts = f"{len(inputs)} {len(outputs)}"
        lines.append(" ".join([kind, f"layer{len(lines)}", counts, *inputs, *outputs, *settings]))
        blobs += len(outputs)

    def made(name: str) -> None:
        if uses[name] > 1:
            layer("Split", [name], [f"{name}.{i}" for i in range(uses[name])])

    def take(name: str) -> str:
        taken[name] += 1
        return name if uses[name] == 1 else f"{name}.{taken[name] - 1}"

    with weights.open("wb") as file:
        layer("Input", [], ["x"])
        made("x")
        for step in job.steps:
            if step.kind == "lrelu":
                continue
            inputs = [take(name) for name in step.inputs]
            output = activated.get(step.output, step.output)
            match step.kind:
                case "conv":
                    weight, bias = (job.weight(name) for name in step.facts)
                    sizes = f"0={len(bias)} 1=3 4=1 5=1 6={weight.size}"
                    activation = [f"9=2 -23310=1,{LRELU}"] if step.output in activated else []
                    layer("Convolution", inputs, [output], sizes, *activation)
                    file.write(bytes(4) + weight.tobytes() + bias.tobytes())  # the first four say: as f32
                case "prelu":
                    slopes = job.weight(step.facts[0])
                    layer("PReLU", inputs, [output], f"0={slopes.size}")
                    file.write(slopes.tobytes())
                case "concat":
                    layer("Concat", inputs, [output], "0=0")
                case "scaled_add":
                    layer("Eltwise", inputs, [output], f"0=1 -23301=2,{RESIDUAL},1.0")
                case "add":
                    layer("BinaryOp", inputs, [output], "0=0")
                case "enlarge":
                    layer("Interp", inputs, [output], f"0=1 1={step.facts[0]}.0 2={step.facts[0]}.0")
                case "shuffle":
                    layer("PixelShuffle", inputs, [output], f"0={step.facts[0]}")
                case other:
                    raise SystemExit(f"ncnn has no `{other}` here")
            made(output)
    param.write_text(f"7767517\n{len(lines)} {blobs}\n" + "\n".join(lines) + "\n")


def ncnn_run(job: Work, param: Path, weights: Path, kind: str, threads: int) -> Run:
    """ncnn in f32, or with numbers kept as bf16."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    net.opt.use_bf16_storage = kind == "bf16"
    for name in ("use_fp16_storage", "use_fp16_packed", "use_fp16_arithmetic"):
        setattr(net.opt, name, False)
    net.load_param(str(param))
    net.load_model(str(weights))
    picture = job.inputs["x"][0]

    def run() -> Array:
        extractor = net.create_extractor()
        extractor.input("x", ncnn.Mat(picture).clone())
        return np.array(extractor.extract("out")[1])

    return run


def program(peer: str, job: Work, threads: int, folder: Path) -> tuple[Run, Callable[[Any], Array]]:
    """Returns a pass of the work on a peer, and what makes an array of its output. Models are kept in `folder`."""
    family, _, kind = peer.partition("-")
    if family == "torch":
        return torch_run(job, kind, threads)
    model = folder / job.name.replace(" ", "_").replace("->", "_").replace("@", "")
    if family == "ncnn":
        param, weights = model.with_suffix(".param"), model.with_suffix(".bin")
        if not param.exists():
            write_ncnn(job, param, weights)
        return ncnn_run(job, param, weights, kind, threads), np.asarray
    path = model.with_suffix(".onnx")
    if not path.exists():
        write_onnx(job, path)
    if family == "onnxruntime":
        return onnxruntime_run(job, path, threads), np.asarray
    return openvino_run(job, path, kind, threads), np.asarray


PEERS = (
    "torch-f32",
    "torch-bf16-cl",
    "openvino-f32",
    "openvino-bf16",
    "onnxruntime-f32",
    "ncnn-f32",
    "ncnn-bf16",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("work", help="such as `rrdb 64x64`")
    parser.add_argument("passes", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--models", type=Path, help="a folder where models are kept between runs")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = arguments.models or Path(folder)
        job = work(arguments.work)
        run, to_array = program(arguments.peer, job, arguments.threads, models)
        out = run()
        for _ in range(arguments.passes):
            out = None  # not held beside the next
            out = run()
        if arguments.out:
            output = to_array(out).astype(np.float32)
            np.ascontiguousarray(output.transpose(job.axes) if job.axes else output).tofile(arguments.out)


if __name__ == "__main__":
    main()
