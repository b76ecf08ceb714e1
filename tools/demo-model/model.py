"""The demo model's parts: the configurations of its UNet and text encoders, and how a prompt becomes conditioning."""

from __future__ import annotations

import pathlib

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from scenes import SIDE
from tokenizer import LENGTH, WordTokenizer

TEXT_WIDTH = 128
TIME_IDS = (float(SIDE), float(SIDE), 0.0, 0.0, float(SIDE), float(SIDE))
UNET = dict(
    sample_size=SIDE // 8,
    in_channels=4,
    out_channels=4,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(64, 96, 96),
    layers_per_block=1,
    transformer_layers_per_block=(1, 1, 1),
    # As in the published configurations, this is the number of heads.
    attention_head_dim=(2, 3, 3),
    cross_attention_dim=2 * TEXT_WIDTH,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=16,
    projection_class_embeddings_input_dim=6 * 16 + TEXT_WIDTH,
    norm_num_groups=32,
)
SCHEDULER = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    timestep_spacing="trailing",
    steps_offset=1,
)


def text_config(tokenizer: WordTokenizer, encoder: int) -> CLIPTextConfig:
    """The configuration of text encoder 0 or 1. Both hand the UNet their last but one layer's output, as SDXL's do."""
    return CLIPTextConfig(
        vocab_size=tokenizer.size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=TEXT_WIDTH,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu" if encoder == 0 else "gelu",
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pads[encoder],
    )


def build(tokenizer: WordTokenizer) -> dict[str, torch.nn.Module]:
    """Fresh modules by their names in the pipeline."""
    modules = {
        "text_encoder": CLIPTextModel(text_config(tokenizer, 0)),
        "text_encoder_2": CLIPTextModelWithProjection(text_config(tokenizer, 1)),
        "unet": UNet2DConditionModel(**UNET),
    }
    for name in ("text_encoder", "text_encoder_2"):
        for key, value in modules[name].named_parameters():
            if key.endswith("token_embedding.weight"):
                torch.nn.init.normal_(value, std=0.5)
            elif key.endswith("position_embedding.weight"):
                torch.nn.init.normal_(value, std=0.1)
    return modules


def load(modules: dict[str, torch.nn.Module], exported: pathlib.Path) -> None:
    """Takes the weights of an exported model."""
    for name, module in modules.items():
        module.load_state_dict(type(module).from_pretrained(exported / name).float().state_dict())


def condition(modules: dict[str, torch.nn.Module], ids: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [n, 77] of both tokenizers to hidden states [n, 77, 2 * TEXT_WIDTH] and pooled embeddings [n, TEXT_WIDTH]."""
    first = modules["text_encoder"](ids[0], output_hidden_states=True)
    second = modules["text_encoder_2"](ids[1], output_hidden_states=True)
    return torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1), second.text_embeds


def alphas_cumprod() -> torch.Tensor:
    """The noise schedule of SCHEDULER, shape [1000]."""
    count = SCHEDULER["num_train_timesteps"]
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, count, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()
