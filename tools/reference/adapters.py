"""Adapters for the tiny pipelines of `pipelines.py`, and weights merged by the libraries that make them.

LyCORIS' families are made with its modules and merged by their forward pass, on the identity: its merge of LoHa and
LoKr multiplies by `alpha / rank` twice. PEFT's and diffusers' are merged by themselves. `fixtures/adapters` holds one
file for each adapter, and `expected.safetensors` the changed tensors of each as `<adapter>/<component>/<tensor>`.
"""

import json

import common
import torch
from common import FIXTURES, area, meta, representable, write_cases
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

SEED = 19
PACKAGES = ["torch", "diffusers", "transformers", "peft", "lycoris-lora", "safetensors"]
FOLDER = area("adapters")

# Linear layers, projections that are 1x1 convolutions in SD 1, 3x3 convolutions, embeddings of time.
UNET = [
    "{attn}.transformer_blocks.0.attn1.to_q", "{attn}.transformer_blocks.0.attn2.to_k",
    "{attn}.transformer_blocks.0.attn1.to_out.0", "{attn}.transformer_blocks.0.ff.net.0.proj", "{attn}.proj_in",
    "{block}.resnets.0.conv1", "{block}.resnets.0.time_emb_proj", "time_embedding.linear_1", "conv_in", "conv_out",
]
PLACES = {
    "sd15": {"attn": "down_blocks.0.attentions.0", "block": "down_blocks.0"},
    "sdxl": {"attn": "down_blocks.1.attentions.0", "block": "down_blocks.1"},
}
TEXT = ["text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.0.self_attn.out_proj",
        "text_model.encoder.layers.0.mlp.fc1"]
CLASSES = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}


def network(model, component):
    cls = CLASSES[component]
    return cls.from_pretrained(FIXTURES / "pipelines" / model / component, torch_dtype=torch.float32).eval()


def module(net, name):
    """A module; transformers 5 leaves `text_model.` out."""
    for candidate in (name, name.removeprefix("text_model.")):
        try:
            return candidate, net.get_submodule(candidate)
        except AttributeError:
            continue
    raise KeyError(name)


def fill(lyco, scale):
    """Random numbers that float16 holds, in every part."""
    for name, parameter in lyco.named_parameters():
        if name.startswith("org_"):
            continue
        if name == "dora_scale":
            parameter.data = representable(parameter.data * (1 + 0.2 * torch.rand_like(parameter)))
        else:
            parameter.data = representable(torch.randn_like(parameter) * scale)


def forward_weight(layer, lyco):
    """The weight that the forward pass applies: of a linear layer on the identity, of a convolution on impulses."""
    if isinstance(layer, torch.nn.Linear):
        eye = torch.eye(layer.in_features)
        return (lyco(eye) - lyco(torch.zeros(1, layer.in_features))).T
    out, channels, height, width = layer.weight.shape
    # An impulse in the middle of an input that is large enough for every place of the kernel.
    size = 2 * max(height, width) + 1
    stride, padding = layer.stride, layer.padding
    lyco_args = getattr(lyco, "kw_dict", None)
    weight = torch.empty_like(layer.weight)
    assert stride == (1, 1), lyco_args
    silent = lyco(torch.zeros(1, channels, size, size))
    for channel in range(channels):
        image = torch.zeros(1, channels, size, size)
        image[0, channel, size // 2, size // 2] = 1
        answer = (lyco(image) - silent)[0]
        for y in range(height):
            for x in range(width):
                at = size // 2 + padding[0] - y, size // 2 + padding[1] - x
                weight[:, channel, y, x] = answer[:, at[0], at[1]]
    return weight


def half(tensors):
    return {name: tensor.detach().half().contiguous().clone() for name, tensor in tensors.items()}


def lycoris(model, make, modules, prefix, naming=None, alpha=1.5):
    """An adapter of LyCORIS' modules with kohya's names, and the merged tensors."""
    tensors, merged = {}, {}
    for component, names in modules.items():
        net = network(model, component)
        for name in names:
            own, layer = module(net, name)
            lyco = make(f"x_{own}".replace(".", "_"), layer, alpha)
            fill(lyco, 0.3)
            lyco.eval()
            key = prefix[component] + (naming(name) if naming else name).replace(".", "_")
            if isinstance(lyco, FullModule):
                # Its own form of a state holds for modules that have taken over the layer's weight.
                state = {"diff": lyco.weight, "diff_b": lyco.bias}
            else:
                state = lyco.custom_state_dict()
            if not state:
                state = {k: v for k, v in lyco.state_dict().items() if not k.startswith("org_")}
            tensors.update({f"{key}.{part}": value for part, value in state.items() if value is not None})
            if isinstance(lyco, (FullModule, NormModule)):
                weight, bias = lyco.get_merged_weight()
                merged[f"{component}/{own}.weight"] = weight
                if bias is not None:
                    merged[f"{component}/{own}.bias"] = bias
            else:
                merged[f"{component}/{own}.weight"] = forward_weight(layer, lyco)
    return half(tensors), {name: value.detach().float() for name, value in merged.items()}


def unet_modules(model):
    return {"unet": [name.format(**PLACES[model]) for name in UNET]}


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
XL = {**KOHYA, "text_encoder": "lora_te1_"}


def sgm(model):
    """Stability's names for the modules of a UNet, from the table that `single_files.py` wrote."""
    table = json.loads((FIXTURES / "checkpoints" / "names.json").read_text())[model]["unet"]["names"]
    def name(module):
        place = table[module + ".weight"]
        return (place if isinstance(place, str) else place[0]).removesuffix(".weight")
    return name


def dora(on_out):
    return lambda name, layer, alpha: LoConModule(
        name, layer, 1.0, 3, alpha, weight_decompose=True, wd_on_out=on_out)


def lyco_cases():
    locon = lambda name, layer, alpha: LoConModule(name, layer, 1.0, 3, alpha)
    with_text = lambda model: {**unet_modules(model), "text_encoder": TEXT,
                               **({"text_encoder_2": TEXT} if model == "sdxl" else {})}
    convs = lambda model: {"unet": [f"{PLACES[model]['block']}.resnets.0.conv1", "conv_in"]}
    yield "kohya-sd15", "sd15", locon, with_text("sd15"), KOHYA, None
    yield "kohya-sdxl", "sdxl", locon, with_text("sdxl"), XL, None
    yield "sgm-sdxl", "sdxl", locon, unet_modules("sdxl"), KOHYA, sgm("sdxl")
    tucker = lambda name, layer, alpha: LoConModule(name, layer, 1.0, 3, alpha, use_tucker=True)
    yield "locon-tucker", "sd15", tucker, convs("sd15"), KOHYA, None
    loha = lambda name, layer, alpha: LohaModule(name, layer, 1.0, 2, alpha)
    yield "loha", "sdxl", loha, unet_modules("sdxl"), {"unet": "lycoris_"}, None
    loha_tucker = lambda name, layer, alpha: LohaModule(name, layer, 1.0, 2, alpha, use_tucker=True)
    yield "loha-tucker", "sd15", loha_tucker, convs("sd15"), KOHYA, None
    lokr = lambda name, layer, alpha: LokrModule(name, layer, 1.0, 2, alpha, factor=2)
    yield "lokr", "sdxl", lokr, with_text("sdxl"), XL, None
    both = lambda name, layer, alpha: LokrModule(name, layer, 1.0, 1, alpha, factor=4, decompose_both=True)
    yield "lokr-both", "sd15", both, unet_modules("sd15"), KOHYA, None
    lokr_tucker = lambda name, layer, alpha: LokrModule(name, layer, 1.0, 1, alpha, factor=2, use_tucker=True)
    yield "lokr-tucker", "sd15", lokr_tucker, convs("sd15"), KOHYA, None
    lokr_full = lambda name, layer, alpha: LokrModule(name, layer, 1.0, 2, alpha, factor=2, full_matrix=True)
    yield "lokr-full", "sd15", lokr_full, unet_modules("sd15"), KOHYA, None
    yield "dora-outputs", "sd15", dora(True), unet_modules("sd15"), KOHYA, None
    yield "dora-inputs", "sdxl", dora(False), unet_modules("sdxl"), KOHYA, None
    doha = lambda name, layer, alpha: LohaModule(name, layer, 1.0, 2, alpha, weight_decompose=True)
    yield "dora-loha", "sd15", doha, unet_modules("sd15"), KOHYA, None
    full = lambda name, layer, alpha: FullModule(name, layer, 1.0)
    yield "full", "sd15", full, unet_modules("sd15"), KOHYA, None
    norm = lambda name, layer, alpha: NormModule(name, layer, 1.0)
    norms = {"unet": ["down_blocks.0.resnets.0.norm1", "down_blocks.0.attentions.0.transformer_blocks.0.norm1"]}
    yield "norm", "sd15", norm, norms, KOHYA, None


def peft_adapter(model, component, names, prefix, **options):
    """An adapter of PEFT, merged by PEFT. Names are diffusers', or PEFT's own without a prefix."""
    net = network(model, component)
    own = [module(net, name)[0] for name in names]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    config = LoraConfig(r=3, target_modules=own, init_lora_weights=False, **options)
    wrapped = get_peft_model(net, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_magnitude" in name:
            parameter.data = representable(parameter.data * (1 + 0.2 * torch.rand_like(parameter)))
        elif "lora_" in name:
            parameter.data = representable(torch.randn_like(parameter) * 0.3)
    state = get_peft_model_state_dict(wrapped)
    if prefix is not None:
        state = {prefix + name.removeprefix("base_model.model."): value for name, value in state.items()}
    merged = wrapped.merge_and_unload().state_dict()
    changed = {f"{component}/{name}": value.float() for name, value in merged.items()
               if not torch.equal(value, before[name])}
    return half(state), changed


def peft_cases():
    names = unet_modules("sdxl")["unet"]
    unet, unet_merged = peft_adapter("sdxl", "unet", names, "unet.", lora_alpha=3)
    first, first_merged = peft_adapter("sdxl", "text_encoder", TEXT, "text_encoder.", lora_alpha=3)
    second, second_merged = peft_adapter("sdxl", "text_encoder_2", TEXT, "text_encoder_2.", lora_alpha=3)
    yield "peft", "sdxl", {**unet, **first, **second}, {**unet_merged, **first_merged, **second_merged}, {}
    names = unet_modules("sd15")["unet"]
    state, merged = peft_adapter("sd15", "unet", names, "unet.", lora_alpha=5, use_rslora=True)
    about = {"unet.r": 3, "unet.lora_alpha": 5, "unet.use_rslora": True}
    yield "peft-metadata", "sd15", state, merged, {"lora_adapter_metadata": json.dumps(about)}
    state, merged = peft_adapter("sd15", "unet", names, None, lora_alpha=3)
    state = {name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): value
             for name, value in state.items()}
    yield "peft-default", "sd15", state, merged, {}
    linear = [name for name in names if not name.endswith(("conv1", "conv_in", "conv_out", "proj_in"))]
    state, merged = peft_adapter("sd15", "unet", linear, "unet.", lora_alpha=3, use_dora=True)
    yield "peft-dora", "sd15", state, merged, {}
    # diffusers' attention processors.
    attention = [name for name in names if name.rsplit(".", 1)[-1] in ("to_q", "to_k", "0")]
    state, merged = peft_adapter("sd15", "unet", attention, "", lora_alpha=3)
    old = {}
    for name, value in state.items():
        layer, part, _ = name.rsplit(".", 2)
        layer = layer.removesuffix(".0")
        parent, leaf = layer.rsplit(".", 1)
        old[f"{parent}.processor.{leaf}_lora.{'down' if part == 'lora_A' else 'up'}.weight"] = value
    yield "old-diffusers", "sd15", old, merged, {}


def main():
    torch.manual_seed(SEED)
    cases, expected = [], {}
    made = [(name, model, *lycoris(model, make, modules, prefix, naming), {})
            for name, model, make, modules, prefix, naming in lyco_cases()]
    for name, model, tensors, merged, metadata in [*made, *peft_cases()]:
        path = FOLDER / f"{name}.safetensors"
        save_file({key: tensors[key] for key in sorted(tensors)}, str(path), metadata or None)
        path.chmod(0o644)
        expected.update({f"{name}/{key}": value for key, value in merged.items()})
        cases.append({"name": name, "model": model, "tensors": len(tensors), "changed": sorted(merged)})
        print(name, model, len(tensors), len(merged), path.stat().st_size)
    common.write_tensors(FOLDER / "expected.safetensors", half(expected))
    write_cases(FOLDER, meta("adapters.py", SEED, *PACKAGES), cases)


if __name__ == "__main__":
    main()
