"""Writes the seed corpora of the fuzz targets, without randomness, with safetensors 0.8.0 and NumPy 2.4.6."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save

CORPUS = Path(__file__).parent / "corpus"
ROOT = Path(__file__).parents[1]


def write(name: str, data: bytes) -> None:
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def safetensors_file(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def saved_by_numpy(save_function, *arrays, **named) -> bytes:
    buffer = io.BytesIO()
    save_function(buffer, *arrays, **named)
    return buffer.getvalue()


tensors = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([7, -8])}
write("safetensors/two-types", save(tensors, metadata={"format": "pt"}))
write("safetensors/empty-and-scalar", save({"e": np.zeros((0, 4), np.float32), "s": np.array(1.5, np.float32)}))
write("safetensors/hole", safetensors_file(b'{"t":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', bytes(3)))
write("safetensors/ten-gigabyte-header", struct.pack("<Q", 10**10) + b"{}")

# PyTorch files of every form, GGUF, and weights with their scales.
CHECKPOINTS = ROOT / "fixtures/checkpoints"
for name in ("types.pt", "types-legacy.pt", "views.pt", "views-legacy.pt", "lightning.ckpt", "embedding-original.pt", "protocol-5.pt"):
    write(f"pickle/{name}", (CHECKPOINTS / name).read_bytes())
write("pickle/os-system", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.")
write("gguf/types", (CHECKPOINTS / "types.gguf").read_bytes())
write("gguf/many", b"GGUF\x03\0\0\0" + b"\xff" * 16)
scaled = {
    "x.weight": np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int8),
    "x.weight_scale": np.array([[1, 2], [3, 4]], np.float32),
    "x.input_scale": np.array(1, np.float32),
    "x.comfy_quant": np.frombuffer(b'{"format": "int8_blockwise"}', np.uint8),
}
layers = json.dumps({"format_version": "1.0", "layers": {"x": {"format": "int8_blockwise"}}})
write("scales/blocks", save(scaled, metadata={"_quantization_metadata": layers}))
rows = {"x.weight": scaled["x.weight"], "x.scale_weight": np.array([1, 2], np.float16), "scaled_fp8": np.zeros(0, np.float16)}
write("scales/rows", save(rows))
header = b'{"x.weight":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},"x.scale_weight":{"dtype":"F32","shape":[],"data_offsets":[2,6]}}'
write("scales/fp8", safetensors_file(header, b"\x38\x7e" + struct.pack("<f", 2)))

write("npz/two-arrays", saved_by_numpy(np.savez, **tensors))
write("npz/compressed", saved_by_numpy(np.savez_compressed, **tensors))
write("npz/one-array", saved_by_numpy(np.save, tensors["a"]))

write(
    "model_index/pipeline",
    b'{"_class_name":"StableDiffusionPipeline","unet":["diffusers","UNet2DConditionModel"],'
    b'"safety_checker":[null,null],"requires_safety_checker":false}',
)
write(
    "model_index/shards",
    b'{"metadata":{"total_size":4},"weight_map":{"w":"diffusion_pytorch_model-00001-of-00001.safetensors"}}',
)

# Small packages in every kind of encoding, compiled models, and the weight file that one of the packages has.
COREML = ROOT / "fixtures/coreml"
MODEL = "Data/com.apple.CoreML"
for name in ("ios16_linear_uint8", "ios16_palette2", "ios16_sparse", "ios18_linear_uint4_blocks16", "ios18_palette4_groups8_scaled"):
    write(f"coreml_specification/{name}", (COREML / f"encodings/{name}.mlpackage/{MODEL}/model.mlmodel").read_bytes())
write("coreml_specification/pipeline", (COREML / f"pipeline.mlpackage/{MODEL}/model.mlmodel").read_bytes())
package = COREML / "encodings/ios18_palette4_groups8_scaled.mlpackage"
write("coreml_weights/palette4_groups8_scaled", (package / MODEL / "weights/weight.bin").read_bytes())
for path in sorted((COREML / "compiled").glob("**/model.mil")):
    write(f"mil_text/{path.relative_to(COREML / 'compiled').parts[0].removesuffix('.mlmodelc')}", path.read_bytes())

# Not committed: copies of configurations elsewhere in the repository, without white space.
configs = {}
for folder in ("fixtures", "models"):
    for path in sorted((ROOT / folder).glob("**/*config.json")):
        if path.name in ("config.json", "scheduler_config.json"):
            configs["-".join(path.relative_to(ROOT).parts[:-1])] = json.loads(path.read_text())
for case in json.loads((ROOT / "fixtures/schedulers/cases.json").read_text())["cases"]:
    configs.setdefault(f"scheduler-{case['class']}", case["config"])
configs["scheduler-infinity"] = {"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": float("-inf")}
for name, config in configs.items():
    write(f"config/{name}", json.dumps(config, separators=(",", ":")).encode())

# Compiled models' data, recipes, the texts of a tokenizer, and generation parameters.
for path in sorted((COREML / "compiled").glob("*.mlmodelc/coremldata.bin")):
    write(f"coreml_compiled/{path.parent.stem}-data", path.read_bytes())
write("coreml_compiled/metadata", (COREML / "compiled/test_linear.mlmodelc/metadata.json").read_bytes())
write("coreml_compiled/manifest", b'{"fileFormatVersion":"1.0.0","itemInfoEntries":{"A":{"path":"m"}},"rootModelIdentifier":"A"}')
write(
    "recipe/bits",
    b'{"model_version":"m","baselines":{},"recipes":{"recipe_4.50_bit_mixedpalette":{"a":4,"b":2}},"cumulative_2":{"a":30.5}}',
)
names = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
for model in ("sd15", "sd21", "sdxl"):
    folder = ROOT / "fixtures/pipelines" / model / "tokenizer"
    texts = [(folder / name).read_text() if (folder / name).exists() else "" for name in names]
    write(f"tokenizer/{model}", "\0".join([*texts, "a red circle"]).encode())
write(
    "parameters/picture",
    b"a cat, (on:1.2) a mat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model: \"a, b\"",
)


# Pictures of one pixel with the parameters in each kind of text, and an Exif comment; a journal.
def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*texts: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(4)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(texts) + pixels + chunk(b"IEND", b"")


text = b"a cat\nSteps: 2, Seed: 1, Size: 1x1"
write("picture/latin1", png(chunk(b"tEXt", b"parameters\0" + text)))
write("picture/compressed", png(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(text))))
write("picture/utf8", png(chunk(b"iTXt", b"parameters\0\0\0\0\0" + text)))
write("picture/utf8-compressed", png(chunk(b"iTXt", b"parameters\0\1\0\0\0" + zlib.compress(text))))
comment = b"UNICODE\0" + text.decode().encode("utf-16-be")
tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIII", 1, 0x8769, 4, 1, 26, 0)
tiff += struct.pack(">HHHIII", 1, 0x9286, 7, len(comment), 44, 0) + comment
exif = b"Exif\0\0" + tiff
write("picture/jpeg", b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + b"\xff\xd9")
write(
    "journal/two-measurements",
    b'{"measured":"estimate of palette-4 on 1 states","options":{"steps":"2"}}\n'
    b'{"key":{"isolated":{"layer":"a","scheme":"palette-4"}},"distortion":[[0.25,1.0,2.0]]}\n'
    b'{"key":{"verified":{"network":"00000000000000ff"}},"distortion":[[0.5,1.0,2.0]]}\n',
)
write("journal/cut", b'{"measured":"m"}\n{"key":{"int8":{"layer":"a"}},"distortion":[]}\n{"key":{"in')
