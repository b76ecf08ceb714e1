"""The tiny models of `pipelines.py`, and the calls of their pipelines."""

CORPUS = (
    "a photo of an astronaut riding a horse on mars a large red circle at the left and a small blue square at the right "
    "on a white background green yellow triangle cat dog blurry ugly low quality text"
)

MERGES = 90
"""Merges of the tiny vocabulary: some words of the corpus become one token, some stay in pieces."""

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 16,
    "pad_token_id": 1,
}
UNET = {
    "sample_size": 8,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
AUTOENCODER = {
    "norm_num_groups": 4,
    "block_out_channels": (8, 8, 8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 64,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PNDM = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_spacing": "leading"}
V_PREDICTION = {
    "_class_name": "DDIMScheduler", **BETAS, "prediction_type": "v_prediction", "clip_sample": False,
    "set_alpha_to_one": False,
}

SCHEDULERS = {
    "ddim": {"_class_name": "DDIMScheduler", "clip_sample": False},
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False},
    "pndm": {"_class_name": "PNDMScheduler"},
    "lms": {"_class_name": "LMSDiscreteScheduler"},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler-trailing": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"},
    "euler-ancestral": {"_class_name": "EulerAncestralDiscreteScheduler"},
    "heun": {"_class_name": "HeunDiscreteScheduler"},
    "dpmpp-2m": {"_class_name": "DPMSolverMultistepScheduler"},
    "dpmpp-2m-karras": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    "dpmpp-2m-sde-karras": {
        "_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++",
    },
    "dpmpp-2s": {"_class_name": "DPMSolverSinglestepScheduler"},
    "unipc": {"_class_name": "UniPCMultistepScheduler"},
    "lcm": {"_class_name": "LCMScheduler"},
}

PROMPT = "a large red circle at the left and a small blue square at the right on a white background"
NEGATIVE = "blurry, ugly, low quality text"


def case(name, size=(64, 64), scheduler=None, decode=False, embeddings=False, image=False, **arguments):
    """A call; `size` is height and width."""
    arguments = {"prompt": PROMPT, "num_inference_steps": 5, "guidance_scale": 7.5, **arguments}
    return {
        "name": name, "size": size, "scheduler": scheduler, "decode": decode, "embeddings": embeddings, "image": image,
        "arguments": arguments,
    }


def each_scheduler(*names):
    """The model under other schedulers."""
    return [case(f"scheduler-{n}", scheduler=SCHEDULERS[n], negative_prompt=NEGATIVE, guidance_scale=4.0) for n in names]


COMMON = [
    case("default", decode=True, embeddings=True),
    case("negative", negative_prompt=NEGATIVE, embeddings=True),
    case("no-guidance", guidance_scale=1.0),
    case("empty-prompt", prompt=""),
    case("empty-negative", negative_prompt=""),
    case("weak-guidance", guidance_scale=0.5),
    case("guidance-1.5", guidance_scale=1.5, prompt="a cat", num_inference_steps=3),
    case("tall", size=(96, 64), negative_prompt=NEGATIVE, decode=True),
    case("wide-odd", size=(72, 104), num_inference_steps=3),
    case("two-images", num_images_per_prompt=2, negative_prompt=NEGATIVE),
    case("rescale", guidance_rescale=0.7, negative_prompt=NEGATIVE),
    case("rescale-two", guidance_rescale=0.7, num_images_per_prompt=2, size=(64, 80)),
    case("long-prompt", prompt=" ".join(["a photo of an astronaut"] * 40), num_inference_steps=2),
    case("one-step", num_inference_steps=1),
    case("six-steps", num_inference_steps=6, prompt="an astronaut riding a horse on mars"),
]

XL_UNET = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
}

PIPELINES = {
    "sd15": {
        "pipeline": "StableDiffusionPipeline",
        "layout": "vocab.json",
        "pad": {"tokenizer": "<|endoftext|>"},
        "text": {"text_encoder": {}},
        "unet": {},
        "vae": {},
        "scheduler": PNDM,
        "options": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        "load": {"safety_checker": None},
        "cases": [*COMMON, *each_scheduler(*SCHEDULERS)],
    },
    "sd21": {
        "pipeline": "StableDiffusionPipeline",
        "layout": "vocab.json",
        "pad": {"tokenizer": "!"},
        "text": {"text_encoder": {"hidden_act": "gelu", "num_hidden_layers": 2}},
        "unet": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
        "vae": {},
        "scheduler": V_PREDICTION,
        "options": {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False},
        "load": {"safety_checker": None},
        "cases": [
            *COMMON,
            *each_scheduler("pndm", "euler", "euler-ancestral", "heun", "lms", "dpmpp-2m-karras", "unipc", "dpmpp-2s"),
            case(
                "zero-snr", guidance_rescale=0.7,
                scheduler={
                    "_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing",
                },
            ),
        ],
    },
    "sdxl": {
        "pipeline": "StableDiffusionXLPipeline",
        "layout": "tokenizer.json",
        "pad": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
        "text": {
            "text_encoder": {},
            "text_encoder_2": {
                "hidden_act": "gelu", "hidden_size": 24, "num_attention_heads": 3, "projection_dim": 20,
                "eos_token_id": "end",
            },
        },
        "projected": ("text_encoder_2",),
        "unet": {**XL_UNET, "cross_attention_dim": 40, "projection_class_embeddings_input_dim": 6 * 8 + 20},
        "vae": {"scaling_factor": 0.13025},
        "scheduler": EULER,
        "options": {"add_watermarker": False, "force_zeros_for_empty_prompt": True},
        "load": {"add_watermarker": False},
        "cases": [
            *COMMON,
            *each_scheduler("ddim", "pndm", "euler-ancestral", "dpmpp-2m-karras", "dpmpp-2m-sde-karras", "unipc", "heun"),
            case(
                "sizes-and-crops", size=(64, 96), original_size=(512, 768), crops_coords_top_left=(8, 16),
                target_size=(128, 192),
            ),
            case(
                "negative-sizes", original_size=(512, 768), target_size=(128, 192),
                negative_original_size=(256, 256), negative_crops_coords_top_left=(4, 0),
                negative_target_size=(64, 64), negative_prompt=NEGATIVE,
            ),
            case("second-prompts", prompt_2="a cat", negative_prompt="a dog", negative_prompt_2=NEGATIVE),
        ],
    },
    "sdxl-no-zeros": {
        "pipeline": "StableDiffusionXLPipeline",
        "layout": "vocab.json",
        "pad": {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"},
        "text": {"text_encoder": {"eos_token_id": "end"}, "text_encoder_2": {"hidden_act": "gelu"}},
        "projected": ("text_encoder_2",),
        "unet": {**XL_UNET, "cross_attention_dim": 32, "projection_class_embeddings_input_dim": 6 * 8 + 16},
        "vae": {
            "scaling_factor": 0.13025, "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.1, 0.9, 1.0, 1.2],
        },
        "scheduler": EULER,
        "options": {"add_watermarker": False, "force_zeros_for_empty_prompt": False},
        "load": {"add_watermarker": False},
        "cases": [case("default", embeddings=True, decode=True), case("negative", negative_prompt=NEGATIVE)],
    },
    "refiner": {
        "pipeline": "StableDiffusionXLImg2ImgPipeline",
        "layout": "vocab.json",
        "pad": {"tokenizer_2": "!"},
        "text": {"text_encoder_2": {"hidden_act": "gelu"}},
        "projected": ("text_encoder_2",),
        "absent": ("text_encoder", "tokenizer"),
        "unet": {**XL_UNET, "projection_class_embeddings_input_dim": 5 * 8 + 16},
        "vae": {"scaling_factor": 0.13025},
        "scheduler": EULER,
        "options": {
            "add_watermarker": False, "force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True,
        },
        "load": {"add_watermarker": False},
        "cases": [
            case("end-of-base", image=True, num_inference_steps=10, denoising_start=0.6, embeddings=True, decode=True),
            case("negative", image=True, num_inference_steps=10, denoising_start=0.6, negative_prompt=NEGATIVE),
            case("strength", image=True, num_inference_steps=6, strength=0.5),
            case(
                "scores", image=True, num_inference_steps=6, strength=0.7, aesthetic_score=7.0,
                negative_aesthetic_score=1.0, size=(64, 96), num_images_per_prompt=2,
            ),
        ],
    },
}
