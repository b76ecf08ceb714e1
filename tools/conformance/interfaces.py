"""The inputs and outputs that Apple's converter gives each part of a model, from its configuration.

Batch is 2 for UNets, or 1 with --unet-batch-one; the latents' size is `size`, the image's eight times that.
"""

from package import Feature

TOKENS = 77


def text_encoder(config, is_xl, has_projection):
    states = "hidden_embeds" if is_xl else "last_hidden_state"
    pooled = config["projection_dim"] if has_projection else config["hidden_size"]
    inputs = [Feature("input_ids", "fp32", (1, TOKENS))]
    return inputs, [
        Feature(states, "fp32", (1, TOKENS, config["hidden_size"])),
        Feature("pooled_outputs", "fp32", (1, pooled)),
    ]


def conditioning(config, pooled, batch, size):
    """The inputs that UNets and ControlNets share. `pooled` is the width of the pooled text embedding."""
    inputs = [
        Feature("sample", "fp16", (batch, config["in_channels"], *size)),
        Feature("timestep", "fp16", (batch,)),
        Feature("encoder_hidden_states", "fp16", (batch, config["cross_attention_dim"], 1, TOKENS)),
    ]
    if config.get("addition_embed_type") == "text_time":
        sizes = (config["projection_class_embeddings_input_dim"] - pooled) // config["addition_time_embed_dim"]
        inputs += [Feature("time_ids", "fp16", (batch, sizes)), Feature("text_embeds", "fp16", (batch, pooled))]
    return inputs


def residuals(config, dtype, batch, size):
    """A ControlNet's outputs: of the first convolution, each block's layers and downsamplers, and the middle."""
    height, width = size
    channels = config["block_out_channels"]
    shapes = [(channels[0], height, width)]
    for index, count in enumerate(channels):
        shapes += [(count, height, width)] * config["layers_per_block"]
        if index + 1 < len(channels):
            height, width = -(-height // 2), -(-width // 2)
            shapes.append((count, height, width))
    shapes.append((channels[-1], height, width))
    return [Feature(f"additional_residual_{index}", dtype, (batch, *shape)) for index, shape in enumerate(shapes)]


def unet(config, pooled, batch, size, takes_residuals):
    inputs = conditioning(config, pooled, batch, size)
    inputs += residuals(config, "fp16", batch, size) if takes_residuals else []
    return inputs, [Feature("noise_pred", "fp32", (batch, config["out_channels"], *size))]


def controlnet(config, pooled, batch, size):
    image = Feature("controlnet_cond", "fp16", (batch, config["conditioning_channels"], *image_size(size)))
    return [*conditioning(config, pooled, batch, size), image], residuals(config, "fp32", batch, size)


def vae_decoder(config, size, dtype):
    inputs = [Feature("z", dtype, (1, config["latent_channels"], *size))]
    return inputs, [Feature("image", "fp32", (1, 3, *image_size(size)))]


def vae_encoder(config, size, dtype):
    inputs = [Feature("x", dtype, (1, 3, *image_size(size)))]
    return inputs, [Feature("latent", "fp32", (1, 2 * config["latent_channels"], *size))]


def safety_checker(config, size):
    vision = config.get("vision_config_dict") or config["vision_config"]
    pixels = (1, vision.get("num_channels", 3), vision["image_size"], vision["image_size"])
    images = (1, *image_size(size), 3)
    inputs = [Feature("clip_input", "fp16", pixels), Feature("images", "fp16", images), Feature("adjustment", "fp16", (1,))]
    return inputs, [
        Feature("filtered_images", "fp32", images),
        Feature("has_nsfw_concepts", "fp32", (1, 1, 1, 1)),
        Feature("concept_scores", "fp32", (1, 17)),
    ]


def image_size(size):
    return tuple(8 * extent for extent in size)
