"""Writes fixtures/checkpoints: PyTorch files, GGUF files and scaled fp8, with the tensors that mixbit must read."""

import collections
import json
import sys
import types

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from common import area, meta, write_cases, write_tensors

SEED = 19
FOLDER = area("checkpoints")
expected = {}
cases = []


def case(file, tensors, metadata=None, form="PyTorch"):
    """A case: a file and the tensors that it holds. 8-bit floats are expected as f16."""
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        expected[f"{file}/{name}"] = tensor.half() if tensor.dtype in FLOAT8 else tensor
    cases.append({"file": file, "format": form, "tensors": sorted(tensors), "metadata": metadata or {}})


FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
DTYPES = [
    torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
]  # fmt: skip


def of_dtype(dtype):
    values = torch.arange(6, dtype=torch.float32).reshape(2, 3) - (0 if str(dtype).startswith("torch.uint") else 2)
    return (values > 0) if dtype == torch.bool else values.to(dtype)


def torch_files():
    types_ = {str(dtype).removeprefix("torch."): of_dtype(dtype) for dtype in DTYPES}
    torch.save(types_, FOLDER / "types.pt")
    case("types.pt", types_)
    legacy = {name: tensor for name, tensor in types_.items() if "uint" not in name[:5] or name == "uint8"}
    legacy = {name: tensor for name, tensor in legacy.items() if not name.startswith("float8")}
    torch.save(legacy, FOLDER / "types-legacy.pt", _use_new_zipfile_serialization=False)
    case("types-legacy.pt", legacy)

    base = torch.arange(24, dtype=torch.float32)
    grid = base.reshape(2, 3, 4)
    views = {
        "whole": base,
        "row": base[5:9],
        "transposed": grid.permute(2, 0, 1),
        "channels_last": torch.arange(48.0).reshape(1, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "every_second": base[1::2],
        "column": grid[:, :, 1],
        "expanded": base[:3].reshape(3, 1).expand(3, 4),
        "position_ids": torch.arange(7).expand((1, -1)),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "fp8_transposed": torch.arange(6.0).reshape(2, 3).to(torch.float8_e4m3fn).t(),
    }
    torch.save(views, FOLDER / "views.pt")
    case("views.pt", views)
    legacy = {name: tensor for name, tensor in views.items() if not name.startswith("fp8")}
    torch.save(legacy, FOLDER / "views-legacy.pt", _use_new_zipfile_serialization=False)
    case("views-legacy.pt", legacy)
    # PyTorch itself can't read what it writes in protocol 0.
    for protocol in (1, 3, 4, 5):
        name = f"protocol-{protocol}.pt"
        torch.save({"w": base, "größe": base[:2]}, FOLDER / name, pickle_protocol=protocol)
        case(name, {"w": base, "größe": base[:2]})

    lightning_file(base)
    module = torch.nn.Linear(3, 2)
    module.weight.data = torch.arange(6.0).reshape(2, 3)
    module.bias.data = torch.tensor([1.0, -1.0])
    state = torch.nn.Sequential(collections.OrderedDict(proj=module)).state_dict()
    torch.save(state, FOLDER / "pytorch_model.bin")
    case("pytorch_model.bin", state)
    # A model that was saved whole.
    torch.save(torch.nn.Sequential(collections.OrderedDict(proj=module)), FOLDER / "module.pth")
    case("module.pth", state)
    torch.save(base.reshape(4, 6).clone(), FOLDER / "alone.pt")
    case("alone.pt", {"tensor": base.reshape(4, 6)})


def lightning_file(base):
    """A checkpoint as PyTorch Lightning leaves it: classes that are not installed, NumPy's scalars and arrays."""

    class Stub(dict):
        pass

    def stub(module, name):
        parent = ""
        for part in module.split("."):
            parent = f"{parent}.{part}".strip(".")
            sys.modules.setdefault(parent, types.ModuleType(parent))
        made = type(name, (Stub,), {"__module__": module})
        setattr(sys.modules[module], name, made)
        return made

    checkpoint = stub("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    attributes = stub("pytorch_lightning.utilities.parsing", "AttributeDict")
    progress = checkpoint()
    progress.best = np.float64(0.25)
    from omegaconf import OmegaConf
    import argparse
    import pathlib

    state = {"model.diffusion_model.w": base.reshape(4, 6), "model_ema.num_updates": torch.tensor(3)}
    optimizer = {"state": {0: {"step": 1, "exp_avg": base.clone()}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {
        "epoch": 3,
        "global_step": 875000,
        "pytorch-lightning_version": "1.4.2",
        "learning_rate": 0.5,
        "state_dict": collections.OrderedDict(state),
        "callbacks": {checkpoint: {"best_model_score": torch.tensor(0.5), "scores": np.arange(4.0), "at": np.int64(7)}},
        "progress": progress,
        "optimizer_states": [optimizer],
        "lr_schedulers": [{"_step_count": 1, "base_lrs": [1e-4]}],
        "hyper_parameters": attributes(a=1, b={1, 2}, c=frozenset([3]), d=b"bytes", e=1 << 80, f=-(1 << 40)),
        "options": argparse.Namespace(path=pathlib.PurePosixPath("/tmp"), dtype=torch.float16, device=torch.device("cpu")),
        "config": OmegaConf.create({"model": {"base_learning_rate": 1e-4, "names": ["a", None]}}),
        "nothing": None,
        "counts": collections.defaultdict(int, {"a": 1}),
    }
    metadata = {"epoch": "3", "global_step": "875000", "pytorch-lightning_version": "1.4.2", "learning_rate": "0.5"}
    for name, zipped in (("lightning.ckpt", True), ("lightning-legacy.ckpt", False)):
        torch.save(content, FOLDER / name, _use_new_zipfile_serialization=zipped)
        case(name, state, metadata)


def embeddings():
    token = torch.arange(8.0).reshape(2, 4)
    # Textual inversion's own code keeps its vectors in a ParameterDict.
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(token)})
    for name, params in (("embedding-original.pt", parameters), ("embedding-webui.pt", {"*": token})):
        content = {
            "string_to_token": {"*": torch.tensor(265)},
            "string_to_param": params,
            "name": "style",
            "step": 500,
            "sd_checkpoint": None,
        }
        torch.save(content, FOLDER / name)
        tensors = {"string_to_token.*": torch.tensor(265), "string_to_param.*": token}
        case(name, tensors, {"name": "style", "step": "500"})
    torch.save({"<cat>": token[0]}, FOLDER / "learned_embeds.bin")
    case("learned_embeds.bin", {"<cat>": token[0]})
    torch.save({"clip_l": token, "clip_g": token * 2}, FOLDER / "embedding-xl.pt")
    case("embedding-xl.pt", {"clip_l": token, "clip_g": token * 2})


def gguf_file():
    """Every type that GGUF has, quantized by the `gguf` package or, for K-quants, random blocks of sane scales."""
    kinds = gguf.GGMLQuantizationType
    random = np.random.default_rng(SEED)
    tensors = {}
    writer = gguf.GGUFWriter(FOLDER / "types.gguf", "sd1")
    writer.add_uint32("test.number", 7)
    writer.add_float32("test.float", 0.5)
    writer.add_bool("test.truth", True)
    writer.add_array("test.texts", ["a", "bc"])
    writer.add_array("test.numbers", [1, 2, 3])
    values = random.standard_normal((3, 64)).astype(np.float32)
    for kind in (kinds.F32, kinds.F16, kinds.BF16, kinds.Q4_0, kinds.Q4_1, kinds.Q5_0, kinds.Q5_1, kinds.Q8_0):
        data = gguf.quants.quantize(values, kind)
        writer.add_tensor(kind.name, data, raw_dtype=kind)
        if kind == kinds.F16:
            tensors[kind.name] = torch.from_numpy(data)
        else:
            tensors[kind.name] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy())
    tensors["BF16"] = tensors["BF16"].bfloat16()
    # The places of the half-precision scales in a block.
    for kind, scales in (
        (kinds.Q2_K, [80, 82]), (kinds.Q3_K, [108]), (kinds.Q4_K, [0, 2]), (kinds.Q5_K, [0, 2]), (kinds.Q6_K, [208]),
    ):  # fmt: skip
        size = gguf.GGML_QUANT_SIZES[kind][1]
        blocks = random.integers(0, 256, (2, size), dtype=np.uint8)
        for at in scales:
            halves = random.uniform(-0.1, 0.1, (2, 1)).astype(np.float16)
            blocks[:, at : at + 2] = halves.view(np.uint8)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
        tensors[kind.name] = torch.from_numpy(gguf.quants.dequantize(blocks, kind).copy())
    for dtype in (np.int8, np.int16, np.int32, np.int64, np.float64):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        writer.add_tensor(array.dtype.name, array)
        tensors[array.dtype.name] = torch.from_numpy(array)
    # A 3x3 convolution, whose rows of three are no whole blocks: ComfyUI-GGUF stores them under another shape.
    convolution = random.standard_normal((32, 1, 3, 3)).astype(np.float32)
    data = gguf.quants.quantize(convolution.reshape(9, 32), kinds.Q8_0)
    writer.add_tensor("conv", data, raw_dtype=kinds.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.conv", [32, 1, 3, 3])
    tensors["conv"] = torch.from_numpy(gguf.quants.dequantize(data, kinds.Q8_0).reshape(32, 1, 3, 3).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = {"general.architecture": "sd1", "test.number": "7", "test.float": "0.5", "test.truth": "true"}
    case("types.gguf", tensors, metadata, "GGUF")


def scaled_files():
    """fp8 with scales, as ComfyUI and ModelOpt store it: the weight is the product."""
    weight = torch.randn(4, 8)
    e4m3 = torch.float8_e4m3fn

    def quantized(scale):
        whole = scale.repeat_interleave(4 // scale.shape[0], 0).repeat_interleave(8 // scale.shape[1], 1)
        narrow = (weight / whole).to(e4m3)
        return narrow, narrow.float() * whole

    peak = weight.abs().max().reshape(1, 1) / 448
    narrow, wide = quantized(peak)
    bias = torch.arange(4.0)
    tensors = {"x.weight": narrow, "x.bias": bias, "scaled_fp8": torch.empty(0, dtype=e4m3)}
    tensors |= {"x.scale_weight": peak.reshape(()), "x.scale_input": torch.tensor(1.0)}
    save_file(tensors, FOLDER / "fp8-comfy.safetensors")
    case("fp8-comfy.safetensors", {"x.weight": wide, "x.bias": bias}, form="safetensors")

    rows = weight.abs().amax(1, keepdim=True) / 448
    narrow, wide = quantized(rows)
    note = json.dumps({"format": "float8_e4m3fn_rowwise"}).encode()
    tensors = {"x.weight": narrow, "x.weight_scale": rows, "x.comfy_quant": torch.tensor(list(note), dtype=torch.uint8)}
    header = {"_quantization_metadata": json.dumps({"layers": {"x": {"format": "float8_e4m3fn_rowwise"}}})}
    save_file(tensors, FOLDER / "fp8-rows.safetensors", metadata=header)
    case("fp8-rows.safetensors", {"x.weight": wide}, header, form="safetensors")

    blocks = weight.reshape(2, 2, 2, 4).abs().amax((1, 3)) / 448
    narrow, wide = quantized(blocks)
    save_file({"x.weight": narrow, "x.weight_scale": blocks}, FOLDER / "fp8-blocks.safetensors")
    case("fp8-blocks.safetensors", {"x.weight": wide}, form="safetensors")


torch.manual_seed(SEED)
torch_files()
scaled_files()
gguf_file()
embeddings()
packages = ["torch", "numpy", "safetensors", "omegaconf", "gguf"]
write_cases(FOLDER, meta("checkpoints.py", SEED, *packages), cases)
write_tensors(FOLDER / "expected.safetensors", expected)
