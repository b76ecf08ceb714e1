"""The original layouts' names for the tiny models of `pipelines.py`, judged by diffusers' own converters.

The names are proposed here, diffusers' single-file converters are run over a file that has them, and every tensor
must come back equal under diffusers' name. `fixtures/checkpoints/names.json` holds, for each model, where each tensor
of a component goes: the original name and, if it is not the tensor itself, how.
"""

import json
import re

import common
import torch
from common import FIXTURES, area, meta, write_json
from safetensors.torch import load_file

from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as judge
from transformers import CLIPTextModel, CLIPTextModelWithProjection

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}
EMBEDDINGS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(name, config):
    """The name in ldm's UNet: blocks are counted one after another, samplers among them."""
    for module, original in EMBEDDINGS.items():
        if name.startswith(module + "."):
            return original + name[len(module):]
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])

    def resnet(rest):
        part, leaf = rest.split(".", 1)
        return f"{RESNET[part]}.{leaf}"

    if match := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", name):
        kind, index, rest = match.groups()
        place = {"resnets": 2 * int(index), "attentions": 1}[kind]
        return f"middle_block.{place}." + (resnet(rest) if kind == "resnets" else rest)
    direction, level, kind, index, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.*)", name).groups()
    level, index = int(level), int(index)
    if direction == "down":
        number = 1 + level * (layers + 1) + index
        if kind == "downsamplers":
            return f"input_blocks.{1 + level * (layers + 1) + layers}.0.op." + rest.removeprefix("conv.")
        block = f"input_blocks.{number}"
    else:
        number = level * (layers + 1) + index
        if kind == "upsamplers":
            attends = config["up_block_types"][level] == "CrossAttnUpBlock2D"
            return f"output_blocks.{level * (layers + 1) + layers}.{1 + attends}.{rest}"
        block = f"output_blocks.{number}"
    assert level < levels
    return f"{block}.0.{resnet(rest)}" if kind == "resnets" else f"{block}.1.{rest}"


def vae_name(name, config):
    """The name in ldm's autoencoder, whose up blocks are counted from the finest."""
    levels = len(config["block_out_channels"])
    name = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"resnets\.(\d)", r"block.\1", name).replace("conv_shortcut", "nin_shortcut")
    name = name.replace("downsamplers.0.", "downsample.").replace("upsamplers.0.", "upsample.")
    name = name.replace("conv_norm_out", "norm_out").replace("mid_block.attentions.0", "mid.attn_1")
    for part, original in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        name = re.sub(rf"attn_1\.{re.escape(part)}\.", f"attn_1.{original}.", name)
    return name


def open_clip_name(name):
    """The name in OpenCLIP, and the part of it that is meant."""
    if name == "text_projection.weight":
        return "text_projection", "transposed"
    name = name.removeprefix("text_model.")
    fixed = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    if name in fixed:
        return fixed[name], None
    name = name.replace("final_layer_norm", "ln_final").replace("encoder.layers.", "transformer.resblocks.")
    for part, original in {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}.items():
        name = name.replace(part, original)
    if match := re.match(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
        return f"{match[1]}.attn.in_proj_{match[3]}", "rows " + str("qkv".index(match[2]))
    return name.replace("self_attn", "attn"), None


def layout(tensors, names):
    """The tensors of a component in the original layout."""
    parts, result = {}, {}
    for name, (original, how) in names.items():
        tensor = tensors[name]
        if how and how.startswith("rows"):
            parts.setdefault(original, {})[int(how.split()[1])] = tensor
        elif how == "transposed":
            result[original] = tensor.T.contiguous()
        elif how == "1x1":
            result[original] = tensor[:, :, None, None]
        else:
            result[original] = tensor
    for original, rows in parts.items():
        result[original] = torch.cat([rows[index] for index in range(3)])
    return result


def check(component, tensors, converted):
    """Every tensor of the component has come back from diffusers' converter, equal."""
    for name, tensor in tensors.items():
        if name.endswith("position_ids"):
            continue
        back = converted.get(name, converted.get("text_model." + name, converted.get(name.removeprefix("text_model."))))
        assert back is not None, f"{component}: diffusers does not give {name}"
        assert back.shape == tensor.shape and torch.equal(back, tensor), f"{component}: {name} differs"


PREFIXES = {
    "sd15": {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.transformer."},
    "sd21": {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "unet": "model.diffusion_model.", "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "refiner": {"unet": "model.diffusion_model.", "vae": "first_stage_model.", "text_encoder_2": "conditioner.embedders.0.model."},
}


def component_names(component, prefix, config, tensors):
    """For each tensor the original name and how it is stored there."""
    names = {}
    for name, tensor in sorted(tensors.items()):
        if component == "unet":
            names[name] = (unet_name(name, config), None)
        elif component == "vae":
            original = vae_name(name, config)
            is_conv = "attn_1" in original and original.endswith("weight") and tensor.dim() == 2
            names[name] = (original, "1x1" if is_conv else None)
        elif prefix.endswith(".model."):
            names[name] = open_clip_name(name)
        else:
            names[name] = (name if name.startswith("text_model.") else f"text_model.{name}", None)
    return names


def judged(component, prefix, config, path, tensors, original):
    """What diffusers' converter makes of the component's tensors in the original layout."""
    checkpoint = {prefix + name: tensor.clone() for name, tensor in original.items()}
    if component == "unet":
        return judge.convert_ldm_unet_checkpoint(checkpoint, config)
    if component == "vae":
        return judge.convert_ldm_vae_checkpoint(checkpoint, config)
    if not prefix.endswith(".model."):
        return judge.convert_ldm_clip_checkpoint(checkpoint, remove_prefix=prefix)
    kind = CLIPTextModelWithProjection if "text_projection.weight" in tensors else CLIPTextModel
    return judge.convert_open_clip_checkpoint(kind.from_pretrained(path), checkpoint, prefix=prefix)


def main():
    tables = {}
    for model, prefixes in PREFIXES.items():
        tables[model] = {}
        for component, prefix in prefixes.items():
            path = FIXTURES / "pipelines" / model / component
            config = json.loads((path / "config.json").read_text())
            if component == "unet":
                config = dict(UNet2DConditionModel.from_pretrained(path).config)
            if component == "vae":
                config = dict(AutoencoderKL.from_pretrained(path).config)
            tensors = load_file(next(path.glob("*.safetensors")))
            names = component_names(component, prefix, config, tensors)
            converted = judged(component, prefix, config, path, tensors, layout(tensors, names))
            check(f"{model}/{component}", tensors, converted)
            rows = {name: [original] if how is None else [original, how] for name, (original, how) in names.items()}
            tables[model][component] = {"prefix": prefix, "names": rows}
    record = meta("single_files.py", None, "diffusers", "transformers", "torch", "safetensors")
    lines = [f'"meta": {json.dumps(record)}']
    for model, components in tables.items():
        rows = ",\n ".join(f'"{component}": {json.dumps(table)}' for component, table in components.items())
        lines.append(f'"{model}": {{\n {rows}\n}}')
    (area("checkpoints") / "names.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
