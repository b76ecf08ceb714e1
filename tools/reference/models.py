"""Tiny random checkpoints of every architecture, with inputs and outputs. See fixtures/README.md for the format."""

import json
import shutil
import warnings

import common
import torch
from common import representable, write_cases, write_tensors
from safetensors.torch import load_file, save_file

import diffusers
import model_configs as configs
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from transformers import CLIPConfig, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
diffusers.utils.logging.set_verbosity_error()
logging.disable_progress_bar()

SEED = 20261123
TYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


class Draws:
    """Seeded normals, exact in both f16 and bf16."""

    def __init__(self, name):
        offset = sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**31
        self.generator = torch.Generator().manual_seed(SEED + offset)

    def __call__(self, *shape, scale=1.0):
        values = torch.randn(*shape, generator=self.generator) * scale
        return representable(representable(values, torch.bfloat16))

    def integers(self, low, high, *shape):
        return torch.randint(low, high, shape, generator=self.generator)


def randomize(model, draws, dtype):
    """Weights that keep activations near 1, and norms and biases that no test can mistake for 1 and 0."""
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if "embedding" in name and "position" in name or "token_embedding" in name:
                values = draws(*weight.shape, scale=0.5)
            elif weight.dim() >= 2:
                values = draws(*weight.shape, scale=0.9 / weight[0].numel() ** 0.5)
            elif name.endswith("weight"):
                values = 1.0 + draws(*weight.shape, scale=0.2)
            else:
                values = draws(*weight.shape, scale=0.1)
            weight.copy_(representable(values, dtype))
    return model.eval()


def save(model, name, dtype, **options):
    """`save_pretrained` in the element type; the model itself stays f32."""
    folder = common.area("models") / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, safe_serialization=True, **options)
    model.to(torch.float32)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


class Area:
    """Collects cases, one tensor file per checkpoint."""

    def __init__(self):
        self.cases = []

    def add(self, model, kind, name, inputs, outputs, tensors, **more):
        entry = {"key": f"{model}/{name}", "dir": model, "kind": kind, "tensors": f"{model}.safetensors"}
        for role, values in (("inputs", inputs), ("outputs", outputs)):
            entry[role] = {part: f"{name}/{role}/{part}" for part in values}
            for part, value in values.items():
                key = f"{name}/{role}/{part}"
                assert torch.isfinite(value.float()).all() and key not in tensors, f"{model}/{key}"
                tensors[key] = value
        self.cases.append({**entry, **more})

    def write(self, model, tensors):
        write_tensors(common.area("models") / f"{model}.safetensors", tensors)


def text_ids(draws, config, rows, length):
    """Rows of a start token, words, an end token, and padding with the end token or with 0."""
    end = config["vocab_size"] - 1
    ids = draws.integers(3, config["vocab_size"] - 2, len(rows), length)
    ids[:, 0] = config["bos_token_id"]
    for row, (words, pad) in enumerate(rows):
        ids[row, words + 1 :] = end if pad == "end" else 0
        ids[row, words + 1] = end
    return ids.to(torch.int32)


TEXTS = {
    "b1-77": (77, ((7, "end"),)),
    "b2-77": (77, ((5, "zero"), (75, "end"))),
    "b2-16": (16, ((0, "end"), (6, "zero"))),
}
"""Length, and per row the number of words and the padding."""


def text_encoders(area):
    for name, entry in configs.TEXT_ENCODERS.items():
        config = {**configs.TEXT, **entry["config"]}
        draws = Draws(name)
        kind = CLIPTextModelWithProjection if entry.get("projection") else CLIPTextModel
        model = randomize(kind(CLIPTextConfig(**config)), draws, TYPES["f16"])
        model.set_attn_implementation("eager")
        folder = save(model, name, TYPES["f16"])
        if entry.get("names") == 4:
            rename_to_4(folder, model)
        tensors = {}
        for label, (length, rows) in TEXTS.items():
            ids = text_ids(draws, config, rows, length)
            with torch.no_grad():
                result = model(input_ids=ids.long(), output_hidden_states=True)
            outputs = {
                "last_hidden_state": result.last_hidden_state,
                "penultimate_hidden_state": result.hidden_states[-2],
                "first_hidden_state": result.hidden_states[0],
            }
            if entry.get("projection"):
                outputs["text_embeds"] = result.text_embeds
            else:
                outputs["pooler_output"] = result.pooler_output
            area.add(name, "text-encoder", label, {"input_ids": ids}, outputs, tensors)
        area.write(name, tensors)


def rename_to_4(folder, model):
    """Gives the file the tensor names of transformers 4, and checks that transformers 5 reads it as the same model."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    renamed = {n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": w for n, w in weights.items()}
    renamed["text_model.embeddings.position_ids"] = torch.arange(configs.TEXT["max_position_embeddings"])[None]
    save_file(renamed, str(file), metadata={"format": "pt"})
    file.chmod(0o644)
    again = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again[name]), name


def unets(area):
    for name, entry in configs.UNETS.items():
        draws = Draws(name)
        dtype = TYPES[entry.get("dtype", "f16")]
        model = randomize(UNet2DConditionModel(**{**configs.UNET, **entry["config"]}), draws, dtype)
        save(model, name, dtype, **entry.get("save", {}))
        tensors = {}
        for case in entry.get("cases", configs.UNET_CASES):
            label, inputs = unet_inputs(draws, model.config, entry, case)
            arguments = unet_arguments(inputs)
            with torch.no_grad():
                sample = model(**arguments).sample
            stored = {n: small(n, values) for n, values in inputs.items()}
            area.add(name, "unet", label, stored, {"sample": sample}, tensors, note=entry["note"])
        area.write(name, tensors)


def controlnets(area):
    """ControlNets, and the output of the UNet of the same configuration with their residuals."""
    for name, entry in configs.CONTROLNETS.items():
        draws = Draws(name)
        config = {**configs.UNET, **entry["config"]}
        unet = randomize(UNet2DConditionModel(**config), draws, TYPES["f16"])
        own = {key: value for key, value in config.items() if key not in ("sample_size", "up_block_types")}
        model = randomize(ControlNetModel(**own, **entry["own"]), draws, TYPES["f16"])
        save(model, name, TYPES["f16"])
        save(unet, f"{name}-unet", TYPES["f16"])
        tensors, unet_tensors = {}, {}
        for case in entry.get("cases", configs.CONTROLNET_CASES):
            label, inputs = unet_inputs(draws, unet.config, entry, case)
            batch, _, height, width = inputs["sample"].shape
            condition = draws(batch, model.config.conditioning_channels, 8 * height, 8 * width).abs().clamp(0, 1)
            arguments = unet_arguments(inputs)
            with torch.no_grad():
                down, middle = model(**arguments, controlnet_cond=condition, return_dict=False)
                controls = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
                sample = unet(**arguments, **controls).sample
            residuals = {f"additional_residual_{index}": value for index, value in enumerate([*down, middle])}
            stored = {n: small(n, values) for n, values in inputs.items()}
            given = {**stored, "controlnet_cond": small("controlnet_cond", condition)}
            area.add(name, "controlnet", label, given, residuals, tensors, note=entry["note"])
            area.add(f"{name}-unet", "unet", label, {**stored, **residuals}, {"sample": sample}, unet_tensors, note=entry["note"])
        area.write(name, tensors)
        area.write(f"{name}-unet", unet_tensors)


def small(name, values):
    """The input in the smallest type that holds it exactly."""
    if values.dtype.is_floating_point and torch.equal(representable(values), values):
        return values.to(torch.float16)
    return values.to(torch.int32) if not values.dtype.is_floating_point else values


def unet_inputs(draws, config, entry, case):
    batch, height, width, length, timesteps = case
    text = entry.get("text_dim") or config.cross_attention_dim
    inputs = {
        "sample": draws(batch, config.in_channels, height, width),
        "timesteps": torch.tensor(timesteps, dtype=torch.float32),
        "encoder_hidden_states": draws(batch, length, text),
    }
    if config.addition_embed_type == "text_time":
        ids = config.addition_time_embed_dim
        count = entry["time_ids"]
        pooled = config.projection_class_embeddings_input_dim - count * ids
        inputs["text_embeds"] = draws(batch, pooled)
        rows = torch.tensor([[1024, 768, 0, 16, 640, 512], [512, 1024, 32, 0, 1024, 1024]], dtype=torch.float32)
        if count == 5:
            rows = torch.tensor([[1024, 768, 0, 16, 6.0], [512, 1024, 32, 0, 2.5]], dtype=torch.float32)
        inputs["time_ids"] = rows[:batch]
    if config.time_cond_proj_dim:
        inputs["timestep_cond"] = draws(batch, config.time_cond_proj_dim)
    if entry.get("labels"):
        inputs["class_labels"] = entry["labels"](draws, batch)
    label = f"b{batch}-{height}x{width}-t{'+'.join(f'{t:g}' for t in timesteps)}" + ("" if length == 77 else f"-c{length}")
    return label, inputs


def unet_arguments(inputs):
    """The arguments of a UNet's or a ControlNet's call."""
    arguments = {
        "sample": inputs["sample"],
        "timestep": inputs["timesteps"],
        "encoder_hidden_states": inputs["encoder_hidden_states"],
    }
    added = {n: inputs[n] for n in ("text_embeds", "time_ids") if n in inputs}
    if added:
        arguments["added_cond_kwargs"] = added
    return arguments | {n: inputs[n] for n in ("timestep_cond", "class_labels") if n in inputs}


def autoencoders(area):
    for name, entry in configs.AUTOENCODERS.items():
        draws = Draws(name)
        dtype = TYPES[entry.get("dtype", "f16")]
        model = randomize(AutoencoderKL(**{**configs.AUTOENCODER, **entry["config"]}), draws, dtype)
        save(model, name, dtype)
        tensors = {}
        for batch, height, width in entry["latents"]:
            latents = draws(batch, model.config.latent_channels, height, width)
            with torch.no_grad():
                image = model.decode(latents).sample
            label = f"decode-b{batch}-{height}x{width}"
            inputs = {"z": latents.to(torch.float16)}
            area.add(name, "vae-decoder", label, inputs, {"image": image}, tensors, note=entry["note"])
        for batch, height, width in entry["images"]:
            image = draws(batch, model.config.in_channels, height, width, scale=0.5).clamp(-1, 1)
            with torch.no_grad():
                posterior = model.encode(image).latent_dist
            outputs = {"mean": posterior.mean, "logvar": posterior.logvar, "moments": posterior.parameters}
            label = f"encode-b{batch}-{height}x{width}"
            inputs = {"image": image.to(torch.float16)}
            area.add(name, "vae-encoder", label, inputs, outputs, tensors, note=entry["note"])
        area.write(name, tensors)


IMAGES = ("clear", "careful", "unwanted")
"""What each of three images is: clear of everything, unwanted only as it asks for special care, unwanted in any case."""
ADJUSTMENT = 0.25
"""More than any image lacks of asking for special care."""


def safety_checkers(area):
    for name, entry in configs.SAFETY_CHECKERS.items():
        draws = Draws(name)
        vision = {**configs.SAFETY_CHECKER, **entry["config"]}
        config = CLIPConfig(vision_config=vision, projection_dim=entry["projection_dim"])
        model = randomize(StableDiffusionSafetyChecker(config), draws, TYPES["f16"])
        model.set_attn_implementation("eager")
        pixels = draws(8, 3, vision["image_size"], vision["image_size"], scale=2.0)
        pixels = pixels[set_thresholds(model, pixels)]
        folder = save(model, name, TYPES["f16"])
        if entry.get("names") == 4:
            safety_checker_to_4(folder, model)
        images = draws(len(IMAGES), 4, 6, 3, scale=0.5).clamp(-1, 1)
        tensors = {}
        runs = {image: ([row], 0.0) for row, image in enumerate(IMAGES)}
        runs |= {"batch": ([0, 1, 2], 0.0), "adjusted": ([0, 1, 2], ADJUSTMENT)}
        for label, (rows, adjustment) in runs.items():
            inputs = {"clip_input": pixels[rows], "images": images[rows], "adjustment": torch.tensor([adjustment])}
            outputs = judge(model, inputs, label)
            stored = {part: small(part, values) for part, values in inputs.items()}
            area.add(name, "safety-checker", label, stored, outputs, tensors, note=entry["note"])
        area.write(name, tensors)


def likeness(model, pixels):
    """The images' cosines to the concepts that ask for special care, and to all others."""
    with torch.no_grad():
        embeds = model.visual_projection(model.vision_model(pixels)[1])
        return cosine_distance(embeds, model.special_care_embeds), cosine_distance(embeds, model.concept_embeds)


def lead(cosines):
    """The margin of each row over all others."""
    rows = torch.arange(len(cosines))
    return cosines - torch.stack([cosines[rows != row].amax(0) for row in rows])


def set_thresholds(model, pixels):
    """Finds images among `pixels`, and thresholds at which they are as `IMAGES` names them, well away from the digits
    that diffusers rounds. Returns their rows."""
    special, concepts = likeness(model, pixels)
    leads = lead(special), lead(concepts)
    careful = int(leads[0].amax(1).argmax())
    unwanted = int(leads[1].amax(1).index_fill(0, torch.tensor(careful), -1).argmax())
    clear = next(row for row in range(len(pixels)) if row not in (careful, unwanted))
    asks, nearly, surely = leads[0][careful].argmax(), leads[1][careful].argmax(), leads[1][unwanted].argmax()
    gaps = leads[0][careful, asks], leads[1][careful, nearly], leads[1][unwanted, surely]
    assert min(gaps) > 0.02, gaps
    thresholds = special.amax(0) + 0.05, concepts.amax(0) + 0.05
    thresholds[0][asks] = special[careful, asks] - gaps[0] / 2
    thresholds[1][nearly] = concepts[careful, nearly] + 0.005
    thresholds[1][surely] = concepts[unwanted, surely] - gaps[2] / 2
    with torch.no_grad():
        model.special_care_embeds_weights.copy_(representable(thresholds[0]))
        model.concept_embeds_weights.copy_(representable(thresholds[1]))
    return [clear, careful, unwanted]


def judge(model, inputs, label):
    """diffusers' filtered images and judgement, and their scores; diffusers itself has no adjustment."""
    special, concepts = likeness(model, inputs["clip_input"])
    care = (special - model.special_care_embeds_weights + inputs["adjustment"] > 0).any(1, keepdim=True)
    scores = concepts - model.concept_embeds_weights + 0.01 * care
    flagged = (scores > 0).any(1)
    filtered = torch.where(flagged[:, None, None, None], 0.0, inputs["images"])
    if label != "adjusted":
        images, judged = model(clip_input=inputs["clip_input"], images=inputs["images"].clone())
        assert judged == flagged.tolist() and torch.equal(images, filtered), label
        names = IMAGES if label == "batch" else (label,)
        assert judged == [name != "clear" for name in names], (label, scores.amax(1))
        assert care[:, 0].tolist() == [name == "careful" for name in names], label
    else:
        assert care.all() and flagged.tolist() == [False, True, True], (care, scores)
    return {
        "filtered_images": filtered,
        "has_nsfw_concepts": flagged.float()[:, None, None, None],
        "concept_scores": scores,
    }


def safety_checker_to_4(folder, model):
    """Gives the files the tensor names and the configuration of transformers 4."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    vision = lambda name: f"vision_model.{name}" if name.startswith("vision_model.") else name
    renamed = {vision(name): weight for name, weight in weights.items()}
    positions = len(model.vision_model.embeddings.position_embedding.weight)
    renamed["vision_model.vision_model.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(renamed, str(file), metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vision_config_dict"] = config["vision_config"]
    config["vision_config"] = {"model_type": "clip_vision_model", "hidden_size": 1024}
    common.write_json(folder / "config.json", config, indent=2)
    assert CLIPConfig.from_pretrained(folder).vision_config.to_dict() == model.config.vision_config.to_dict()
    for path in (file, folder / "config.json"):
        path.chmod(0o644)


def main():
    shutil.rmtree(common.area("models"))
    area = Area()
    text_encoders(area)
    unets(area)
    controlnets(area)
    autoencoders(area)
    safety_checkers(area)
    record = common.meta("models.py", SEED, "torch", "diffusers", "transformers")
    write_cases(common.area("models"), record, area.cases)
    print(f"{len(area.cases)} cases")


if __name__ == "__main__":
    main()
