//! Configurations of published networks and of packages by Apple's converter.

use serde_json::{Value, json};

/// A tiny text encoder, one of the networks converted with Apple's converter.
pub(super) fn text_encoder(act: &str, eos: u32, hidden: u32) -> Value {
    json!({
        "vocab_size": 1000, "hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 77, "hidden_act": act, "eos_token_id": eos,
        "projection_dim": 48, "model_type": "clip_text_model", "architectures": ["CLIPTextModel"],
        "id2label": { "0": "LABEL_0" }, "transformers_version": "4.44.2"
    })
}

pub(super) fn vae() -> Value {
    json!({
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "block_out_channels": [32, 32, 64, 64], "layers_per_block": 2, "sample_size": 128
    })
}

pub(super) fn safety_checker() -> Value {
    json!({
        "model_type": "clip", "projection_dim": 48, "text_config": { "hidden_size": 7 }, "logit_scale_init_value": 2.6592,
        "vision_config": {
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
            "image_size": 56, "patch_size": 14, "model_type": "clip_vision_model", "hidden_act": "quick_gelu"
        }
    })
}

/// The published safety checker: CLIP ViT-L/14.
pub(super) fn published_safety_checker() -> Value {
    json!({
        "architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": 768,
        "text_config_dict": { "hidden_size": 768 },
        "vision_config": { "hidden_size": 1, "patch_size": 32, "projection_dim": 512 },
        "vision_config_dict": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14
        }
    })
}

pub(super) fn unet_sd15() -> Value {
    json!({ "sample_size": 16, "block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 48, "attention_head_dim": 4 })
}

pub(super) fn unet_sdxl() -> Value {
    json!({
        "sample_size": 16, "block_out_channels": [32, 64, 96], "layers_per_block": 2, "cross_attention_dim": 64,
        "attention_head_dim": [1, 2, 3], "use_linear_projection": true, "transformer_layers_per_block": [1, 2, 3],
        "addition_embed_type": "text_time", "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 144,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    })
}

/// A published network, with its numbers of tensors and parameters in PyTorch.
pub(super) struct Published {
    pub(super) name: &'static str,
    pub(super) class: &'static str,
    pub(super) config: Value,
    pub(super) time_ids: usize,
    pub(super) tensors: usize,
    pub(super) parameters: usize,
}

pub(super) fn published() -> Vec<Published> {
    const UNET: &str = "UNet2DConditionModel";
    const TEXT: &str = "CLIPTextModel";
    let unet = |name, config, time_ids, tensors, parameters| Published {
        name,
        class: UNET,
        config,
        time_ids,
        tensors,
        parameters,
    };
    let text = |name, class, config, tensors, parameters| Published {
        name,
        class,
        config,
        time_ids: 6,
        tensors,
        parameters,
    };
    let sd15 = json!({ "sample_size": 64, "attention_head_dim": 8, "cross_attention_dim": 768 });
    let sd21 = json!({
        "sample_size": 96, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
        "use_linear_projection": true, "upcast_attention": true, "num_attention_heads": null
    });
    let sdxl = json!({
        "sample_size": 128, "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 2048, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "upcast_attention": null
    });
    let refiner = json!({
        "sample_size": 128, "block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 1280, "transformer_layers_per_block": 4, "use_linear_projection": true,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2560
    });
    let clip = |hidden: usize, heads: usize, layers: usize, act: &str| {
        json!({
            "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_attention_heads": heads,
            "num_hidden_layers": layers, "hidden_act": act, "projection_dim": hidden, "eos_token_id": 2
        })
    };
    vec![
        unet("Stable Diffusion 1.5", sd15, 6, 686, 859_520_964),
        unet("Stable Diffusion 2.1", sd21, 6, 686, 865_910_724),
        unet("Stable Diffusion XL", sdxl, 6, 1680, 2_567_463_684),
        unet("Stable Diffusion XL refiner", refiner, 5, 1220, 2_259_526_660),
        text("CLIP ViT-L", TEXT, clip(768, 12, 12, "quick_gelu"), 196, 123_060_480),
        text("OpenCLIP ViT-H", TEXT, clip(1024, 16, 23, "gelu"), 372, 340_387_840),
        text(
            "OpenCLIP ViT-bigG",
            "CLIPTextModelWithProjection",
            clip(1280, 20, 32, "gelu"),
            517,
            694_659_840,
        ),
    ]
}

/// The autoencoder of every published Stable Diffusion up to XL.
pub(super) fn published_vae() -> Value {
    json!({
        "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
        "down_block_types": vec!["DownEncoderBlock2D"; 4], "up_block_types": vec!["UpDecoderBlock2D"; 4],
        "scaling_factor": 0.13025, "force_upcast": true, "latents_mean": null, "latents_std": null
    })
}
