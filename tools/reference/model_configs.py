"""The configurations of the tiny checkpoints that `models.py` writes, and their input shapes."""

import torch

TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 32,
    "bos_token_id": 126,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
"""CLIP's own end token is the last of its vocabulary, as here; `eos_token_id` 2 is the mistake that published files have."""

TEXT_ENCODERS = {
    "text-sd15": {"config": {}},
    "text-sd15-names4": {"config": {}, "names": 4},
    "text-new-eos": {"config": {"eos_token_id": 127, "pad_token_id": 127}},
    "text-sd21": {
        "config": {
            "hidden_act": "gelu", "hidden_size": 48, "num_attention_heads": 3, "num_hidden_layers": 4,
            "intermediate_size": 96, "pad_token_id": 0,
        },
    },
    "text-sdxl-2": {
        "projection": True,
        "config": {
            "hidden_act": "gelu", "hidden_size": 48, "num_attention_heads": 3, "projection_dim": 40,
            "layer_norm_eps": 1e-4,
        },
    },
    "text-sdxl-2-names4": {
        "projection": True, "names": 4,
        "config": {"hidden_act": "gelu", "hidden_size": 48, "num_attention_heads": 3, "eos_token_id": 127},
    },
}

UNET = {
    "sample_size": 16,
    "norm_num_groups": 4,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
"""Stable Diffusion 1's kinds of blocks at two levels; `attention_head_dim` is the number of heads there."""

# Batch, latent height and width, tokens, one timestep per image.
UNET_CASES = ((1, 16, 16, 77, [999]), (2, 8, 12, 77, [1, 500.5]), (1, 9, 13, 5, [37]))
FULL_CASES = (
    (1, 16, 16, 77, [999]), (2, 16, 24, 77, [500.5, 500.5]), (1, 24, 8, 77, [0]), (2, 9, 13, 77, [981, 1]),
    (1, 12, 20, 154, [261]),
)

FOUR_LEVELS = {
    "norm_num_groups": 32,
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
SDXL = {
    "norm_num_groups": 32,
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 8),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 40,
    "cross_attention_dim": 80,
}
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def unet(note, config, **more):
    return {"note": note, "config": config, **more}


UNETS = {
    "unet-sd15": unet("Stable Diffusion 1", {**FOUR_LEVELS, "attention_head_dim": 8}, cases=FULL_CASES),
    "unet-sd21": unet(
        "Stable Diffusion 2: linear projections, heads per level, upcast attention",
        {
            **FOUR_LEVELS, "attention_head_dim": (2, 4, 8, 8), "use_linear_projection": True,
            "upcast_attention": True, "cross_attention_dim": 48,
        },
        cases=FULL_CASES,
    ),
    "unet-sdxl": unet("Stable Diffusion XL base", SDXL, time_ids=6, cases=FULL_CASES),
    "unet-refiner": unet(
        "Stable Diffusion XL refiner: five time ids",
        {
            **SDXL, **FOUR_LEVELS,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "attention_head_dim": (2, 4, 8, 8), "transformer_layers_per_block": 2, "cross_attention_dim": 48,
            "norm_num_groups": 16, "block_out_channels": (16, 16, 32, 32),
            "projection_class_embeddings_input_dim": 5 * 8 + 48,
        },
        time_ids=5, cases=FULL_CASES,
    ),
    "unet-inpaint": unet("9 channels, in shards", {"in_channels": 9}, save={"max_shard_size": "50KB"}),
    "unet-no-mid": unet(
        "no middle block; layers per block as a list",
        {**CROSS, "mid_block_type": None, "layers_per_block": (1, 2)},
    ),
    "unet-plain-mid": unet("UNetMidBlock2D, which the library makes with one layer", {"mid_block_type": "UNetMidBlock2D"}),
    "unet-lcm": unet("time_cond_proj_dim, stored as bf16", {"time_cond_proj_dim": 24}, dtype="bf16"),
    "unet-f32": unet("stored as f32; two layers per block", {"layers_per_block": 2}, dtype="f32"),
    "unet-variant": unet("the fp16 variant's file name", {}, save={"variant": "fp16"}),
    "unet-only-cross": unet(
        "only_cross_attention per level, and in the middle",
        {**CROSS, "only_cross_attention": (True, False), "mid_block_only_cross_attention": True},
    ),
    "unet-only-cross-flag": unet("only_cross_attention as a flag", {**CROSS, "only_cross_attention": True}),
    "unet-scale-shift": unet(
        "scale_shift resnets, other group count and epsilon",
        {
            "resnet_time_scale_shift": "scale_shift", "norm_num_groups": 3, "norm_eps": 1e-3,
            "block_out_channels": (12, 24), "attention_head_dim": 3,
        },
    ),
    "unet-skip-time-act": unet(
        "resnet_skip_time_act and resnet_out_scale_factor, which these blocks take no notice of",
        {"resnet_skip_time_act": True, "resnet_out_scale_factor": 1.5},
    ),
    "unet-class-embedding": unet(
        "num_class_embeds", {"num_class_embeds": 10}, labels=lambda draws, batch: draws.integers(0, 10, batch)
    ),
    "unet-class-timestep": unet(
        "class_embed_type timestep",
        {"class_embed_type": "timestep"},
        labels=lambda draws, batch: torch.tensor([20.0, 350.5])[:batch],
    ),
    "unet-class-identity": unet(
        "class_embed_type identity", {"class_embed_type": "identity"}, labels=lambda draws, batch: draws(batch, 32)
    ),
    "unet-class-projection": unet(
        "class_embed_type projection",
        {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 20},
        labels=lambda draws, batch: draws(batch, 20),
    ),
    "unet-class-simple": unet(
        "class_embed_type simple_projection, joined to the time embedding",
        {
            "class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 20,
            "class_embeddings_concat": True,
        },
        labels=lambda draws, batch: draws(batch, 20),
    ),
    "unet-embedding-options": unet(
        "sine before cosine, frequency shift, centred input, embedding size and activations",
        {
            "flip_sin_to_cos": False, "freq_shift": 1, "center_input_sample": True, "time_embedding_dim": 48,
            "time_embedding_act_fn": "gelu", "timestep_post_act": "mish",
        },
    ),
    "unet-fourier": unet("time_embedding_type fourier", {"time_embedding_type": "fourier"}),
    "unet-kernels": unet(
        "other kernels, padding, activation and output scale; dropout is for training",
        {
            "conv_in_kernel": 5, "conv_out_kernel": 1, "downsample_padding": 0, "dropout": 0.3, "act_fn": "gelu",
            "mid_block_scale_factor": 1.5, "out_channels": 8,
        },
    ),
    "unet-mish": unet("mish", {"act_fn": "mish"}),
    "unet-text-proj": unet(
        "encoder_hid_dim_type text_proj", {"encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"}, text_dim=20
    ),
    "unet-add-text": unet(
        "addition_embed_type text",
        {"addition_embed_type": "text", "addition_embed_type_num_heads": 4, "encoder_hid_dim": None},
    ),
    "unet-depths": unet(
        "transformer layers per block, their reverse for the upper half, cross-attention sizes per level",
        {
            **CROSS, "layers_per_block": 2, "transformer_layers_per_block": ((1, 2), (2, 1)),
            "reverse_transformer_layers_per_block": ((1, 2, 1), (2, 1, 1)), "cross_attention_dim": 32,
        },
    ),
    "unet-heads-list": unet(
        "heads per level, one level without attention, attention sizes that are not powers of two",
        {**CROSS, "attention_head_dim": (1, 4), "block_out_channels": (8, 24), "use_linear_projection": True},
    ),
    "unet-three": unet(
        "three levels, attention only in the deepest",
        {
            "block_out_channels": (8, 16, 24), "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        },
        cases=((1, 16, 16, 77, [999]), (2, 10, 14, 77, [3, 3]), (1, 11, 8, 20, [77.25])),
    ),
}

CONTROLNET_CASES = ((1, 16, 16, 77, [999]), (2, 8, 12, 77, [500.5, 1]))

CONTROLNETS = {
    "controlnet": {
        "note": "Stable Diffusion 1's ControlNet",
        "config": {},
        "own": {"conditioning_embedding_out_channels": (4, 4, 8, 8)},
    },
    "controlnet-sdxl": {
        "note": "XL's ControlNet, with linear projections, text_time embeddings and a grey conditioning image",
        "config": {
            "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 88,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "use_linear_projection": True, "transformer_layers_per_block": (1, 2), "attention_head_dim": (2, 4),
        },
        "own": {"conditioning_embedding_out_channels": (4, 4, 8, 8), "conditioning_channels": 1},
        "time_ids": 6,
    },
}
"""A UNet's configuration, and what a ControlNet has besides."""

AUTOENCODER = {
    "norm_num_groups": 8,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 32,
}
SHAPES = {"latents": ((1, 16, 16), (2, 8, 12), (1, 7, 5)), "images": ((1, 32, 32), (2, 16, 24), (1, 18, 10))}

AUTOENCODERS = {
    "vae-sd": {"note": "two levels", "config": {"norm_num_groups": 32, "block_out_channels": (32, 32)}, **SHAPES},
    "vae-sd-four": {
        "note": "four levels, factor 8",
        "config": {
            "block_out_channels": (16, 16, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2,
        },
        "latents": ((1, 4, 6), (2, 3, 2)), "images": ((1, 32, 48), (2, 24, 16)),
    },
    "vae-no-quant": {
        "note": "no quantization convolutions, shift factor, 8 latent channels",
        "config": {
            "use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 8, "shift_factor": 0.0609,
            "scaling_factor": 0.3611, "force_upcast": False,
        },
        **SHAPES,
    },
    "vae-no-attention": {
        "note": "no attention in the middle; group count 8; latent mean and deviation",
        "config": {
            "mid_block_add_attention": False, "norm_num_groups": 4, "block_out_channels": (12, 24),
            "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.1, 0.9, 1.0, 1.2],
        },
        **SHAPES,
    },
    "vae-f32": {
        "note": "stored as f32; one level; 1 image channel; gelu",
        "config": {
            "block_out_channels": (16,), "down_block_types": ("DownEncoderBlock2D",),
            "up_block_types": ("UpDecoderBlock2D",), "in_channels": 1, "out_channels": 1, "act_fn": "gelu",
        },
        "dtype": "f32", "latents": ((1, 8, 8), (2, 5, 9)), "images": ((1, 8, 8), (2, 5, 9)),
    },
}

SAFETY_CHECKER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 30,
    "patch_size": 14,
}
"""CLIP's image encoder; two patches don't fill the image."""

SAFETY_CHECKERS = {
    "safety-checker": {"note": "as transformers 5 saves it", "config": {}, "projection_dim": 24},
    "safety-checker-names4": {
        "note": "tensor names and vision_config_dict of transformers 4; gelu, other sizes",
        "config": {
            "hidden_act": "gelu", "hidden_size": 48, "num_attention_heads": 3, "image_size": 32, "patch_size": 16,
            "layer_norm_eps": 1e-4,
        },
        "projection_dim": 40, "names": 4,
    },
}
