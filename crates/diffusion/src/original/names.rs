//! The names of the original layouts (CompVis' `ldm`, Stability's `sgm`, OpenCLIP) for those of diffusers and
//! transformers.
//!
//! A map is made from a network's configuration, module by module. diffusers counts blocks by level and
//! layer, `ldm` one after another.

use crate::arch::unet::{Config as UnetConfig, Middle, control};
use crate::arch::vae;

/// Renamed parts of a module: diffusers' name and the original one.
type Parts = &'static [(&'static str, &'static str)];

/// A residual block of the UNet.
const UNET_RESNET: Parts = &[
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
];

/// A residual block of the autoencoder.
const VAE_RESNET: Parts = &[("conv_shortcut", "nin_shortcut")];

/// The autoencoder's attention, a convolution of 1x1 for each linear layer.
const VAE_ATTENTION: Parts =
    &[("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")];

/// A layer of OpenCLIP's text encoder.
const OPEN_CLIP_LAYER: Parts = &[
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
];

/// The projections whose rows OpenCLIP stacks in `in_proj_weight` and `in_proj_bias`, in order.
const STACKED: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// The place of a tensor in a file of an original layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The tensor's name, without its network's prefix.
    pub name: String,
    /// What of it is meant.
    pub view: View,
}

/// A part or a form of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The tensor itself.
    Whole,
    /// One of several equal parts along the first axis.
    Rows {
        /// The part.
        part: usize,
        /// The number of parts.
        of: usize,
    },
    /// The matrix with its axes exchanged.
    Transposed,
}

/// A module of diffusers, its original name, and the parts of it that are renamed too.
struct Module {
    diffusers: String,
    original: String,
    parts: Parts,
}

/// The original names of a network's tensors.
pub struct Names {
    modules: Vec<Module>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Modules,
    OpenClip,
}

impl Names {
    fn of_modules() -> Self {
        Names { modules: Vec::new(), kind: Kind::Modules }
    }

    fn add(&mut self, diffusers: impl Into<String>, original: impl Into<String>) {
        self.add_with(diffusers, original, &[]);
    }

    fn add_with(&mut self, diffusers: impl Into<String>, original: impl Into<String>, parts: Parts) {
        self.modules.push(Module { diffusers: diffusers.into(), original: original.into(), parts });
    }

    /// The names of a UNet.
    pub fn unet(config: &UnetConfig) -> Self {
        let mut names = Names::of_modules();
        names.add_embeddings();
        names.add_down_blocks(config);
        names.add_middle(config);
        let mut index = 0;
        for (level, stage) in config.up.iter().enumerate() {
            for layer in 0..stage.layers {
                let (block, original) = (format!("up_blocks.{level}"), format!("output_blocks.{index}"));
                names.add_with(format!("{block}.resnets.{layer}"), format!("{original}.0"), UNET_RESNET);
                if stage.attention.is_some() {
                    names.add(format!("{block}.attentions.{layer}"), format!("{original}.1"));
                }
                if layer + 1 == stage.layers && level + 1 < config.up.len() {
                    let at = if stage.attention.is_some() { 2 } else { 1 };
                    names.add(format!("{block}.upsamplers.0.conv"), format!("{original}.{at}.conv"));
                }
                index += 1;
            }
        }
        names.add("conv_norm_out", "out.0");
        names.add("conv_out", "out.2");
        names
    }

    /// The names of a ControlNet.
    pub fn controlnet(config: &control::Config) -> Self {
        let mut names = Names::of_modules();
        names.add_embeddings();
        let skips = names.add_down_blocks(&config.unet);
        names.add_middle(&config.unet);
        // Convolutions alternate with activations, which have no tensors.
        let blocks = 2 * (config.conditioning_embedding_out_channels.len() - 1);
        names.add("controlnet_cond_embedding.conv_in", "input_hint_block.0");
        for block in 0..blocks {
            let original = format!("input_hint_block.{}", 2 * (block + 1));
            names.add(format!("controlnet_cond_embedding.blocks.{block}"), original);
        }
        names.add("controlnet_cond_embedding.conv_out", format!("input_hint_block.{}", 2 * (blocks + 1)));
        for skip in 0..skips {
            names.add(format!("controlnet_down_blocks.{skip}"), format!("zero_convs.{skip}.0"));
        }
        names.add("controlnet_mid_block", "middle_block_out.0");
        names
    }

    /// The names of an autoencoder.
    pub fn vae(config: &vae::Config) -> Self {
        let mut names = Names::of_modules();
        for module in ["encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"] {
            names.add(module, module);
        }
        let levels = config.block_out_channels.len();
        for half in ["encoder", "decoder"] {
            names.add(format!("{half}.conv_norm_out"), format!("{half}.norm_out"));
            for (index, original) in [(0, "block_1"), (1, "block_2")] {
                let module = format!("{half}.mid_block.resnets.{index}");
                names.add_with(module, format!("{half}.mid.{original}"), VAE_RESNET);
            }
            let attention = format!("{half}.mid_block.attentions.0");
            names.add_with(attention, format!("{half}.mid.attn_1"), VAE_ATTENTION);
        }
        for level in 0..levels {
            let (down, up) = (format!("encoder.down.{level}"), format!("decoder.up.{}", levels - 1 - level));
            for layer in 0..config.layers_per_block {
                let module = format!("encoder.down_blocks.{level}.resnets.{layer}");
                names.add_with(module, format!("{down}.block.{layer}"), VAE_RESNET);
            }
            for layer in 0..=config.layers_per_block {
                let module = format!("decoder.up_blocks.{level}.resnets.{layer}");
                names.add_with(module, format!("{up}.block.{layer}"), VAE_RESNET);
            }
            let sampler = format!("encoder.down_blocks.{level}.downsamplers.0.conv");
            names.add(sampler, format!("{down}.downsample.conv"));
            names.add(format!("decoder.up_blocks.{level}.upsamplers.0.conv"), format!("{up}.upsample.conv"));
        }
        names.add("quant_conv", "quant_conv");
        names.add("post_quant_conv", "post_quant_conv");
        names
    }

    /// The names of OpenCLIP's text encoder.
    pub fn open_clip() -> Self {
        Names { modules: Vec::new(), kind: Kind::OpenClip }
    }

    /// The original place of a tensor of diffusers or transformers; `None` if the layout has no such tensor.
    pub fn place(&self, tensor: &str) -> Option<Place> {
        match self.kind {
            Kind::OpenClip => open_clip_place(tensor),
            Kind::Modules => {
                let name = self.original_of(tensor)?;
                Some(Place { name, view: View::Whole })
            }
        }
    }

    /// The original name of a tensor or a module of diffusers.
    pub fn original_of(&self, name: &str) -> Option<String> {
        // A module comes before one that contains it.
        self.modules.iter().find_map(|module| {
            let rest = inside(name, &module.diffusers)?;
            Some(format!("{}{}", module.original, renamed(rest, module.parts, |part| (part.0, part.1))))
        })
    }

    /// The name of diffusers for an original tensor or module.
    pub fn diffusers_of(&self, name: &str) -> Option<String> {
        self.modules.iter().find_map(|module| {
            let rest = inside(name, &module.original)?;
            Some(format!("{}{}", module.diffusers, renamed(rest, module.parts, |part| (part.1, part.0))))
        })
    }

    fn add_embeddings(&mut self) {
        for (diffusers, original) in [
            ("conv_in", "input_blocks.0.0"),
            ("time_embedding.linear_1", "time_embed.0"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("time_embedding.cond_proj", "time_embed.cond_proj"),
            ("add_embedding.linear_1", "label_emb.0.0"),
            ("add_embedding.linear_2", "label_emb.0.2"),
            ("class_embedding", "label_emb"),
        ] {
            self.add(diffusers, original);
        }
    }

    /// Adds the down blocks. Returns the number of their outputs, the first convolution's among them.
    fn add_down_blocks(&mut self, config: &UnetConfig) -> usize {
        let mut index = 1;
        for (level, stage) in config.down.iter().enumerate() {
            let block = format!("down_blocks.{level}");
            for layer in 0..stage.layers {
                let original = format!("input_blocks.{index}");
                self.add_with(format!("{block}.resnets.{layer}"), format!("{original}.0"), UNET_RESNET);
                if stage.attention.is_some() {
                    self.add(format!("{block}.attentions.{layer}"), format!("{original}.1"));
                }
                index += 1;
            }
            if level + 1 < config.down.len() {
                self.add(format!("{block}.downsamplers.0.conv"), format!("input_blocks.{index}.0.op"));
                index += 1;
            }
        }
        index
    }

    fn add_middle(&mut self, config: &UnetConfig) {
        if config.middle != Middle::None {
            self.add_with("mid_block.resnets.0", "middle_block.0", UNET_RESNET);
        }
        if let Middle::Attention(_) = config.middle {
            self.add("mid_block.attentions.0", "middle_block.1");
            self.add_with("mid_block.resnets.1", "middle_block.2", UNET_RESNET);
        }
    }
}

/// The rest of a name after a module's, with its dot; empty for the module itself.
fn inside<'n>(name: &'n str, module: &str) -> Option<&'n str> {
    name.strip_prefix(module).filter(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The rest of a name with the part that it begins with renamed.
fn renamed(
    rest: &str,
    parts: Parts,
    direction: impl Fn(&(&'static str, &'static str)) -> (&'static str, &'static str),
) -> String {
    let Some(name) = rest.strip_prefix('.') else { return rest.to_string() };
    let found = parts.iter().map(direction).find_map(|(from, to)| Some((to, inside(name, from)?)));
    match found {
        Some((to, rest)) => format!(".{to}{rest}"),
        None => rest.to_string(),
    }
}

fn open_clip_place(tensor: &str) -> Option<Place> {
    let whole = |name: &str| Some(Place { name: name.to_string(), view: View::Whole });
    if tensor == "text_projection.weight" {
        return Some(Place { name: "text_projection".to_string(), view: View::Transposed });
    }
    let name = tensor.strip_prefix("text_model.").unwrap_or(tensor);
    match name {
        "embeddings.token_embedding.weight" => return whole("token_embedding.weight"),
        "embeddings.position_embedding.weight" => return whole("positional_embedding"),
        _ => {}
    }
    if let Some(rest) = inside(name, "final_layer_norm") {
        return whole(&format!("ln_final{rest}"));
    }
    let (layer, part) = name.strip_prefix("encoder.layers.")?.split_once('.')?;
    let block = format!("transformer.resblocks.{layer}");
    if let Some((projection, kind)) = part.strip_prefix("self_attn.").and_then(|rest| rest.split_once('.'))
        && let Some(index) = STACKED.iter().position(|stacked| *stacked == projection)
    {
        let view = View::Rows { part: index, of: STACKED.len() };
        return Some(Place { name: format!("{block}.attn.in_proj_{kind}"), view });
    }
    let renamed = renamed(&format!(".{part}"), OPEN_CLIP_LAYER, |part| (part.0, part.1));
    whole(&format!("{block}{renamed}"))
}
