//! The image autoencoder: `AutoencoderKL`.

use mixbit_mil::{Function, ValueId, Weights, identifier};
use serde_json::Value;

use super::fields::{Fields, MAX_EXTENT, MAX_LAYERS};
use super::layers::{Activation, Bias, Conv, Groups, Net};
use super::{ArchError, GraphOptions, io, resnet};

/// The epsilon of every group norm of the autoencoder; diffusers has no field for it.
const NORM_EPSILON: f64 = 1e-6;

/// The configuration of an autoencoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Channels of the encoder's image.
    pub in_channels: usize,
    /// Channels of the decoder's image.
    pub out_channels: usize,
    /// Channels of the latent image.
    pub latent_channels: usize,
    /// Channels at each level, finest first. Each level but the last halves the size.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks at each level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// The activation of the residual blocks.
    pub act_fn: Activation,
    /// True if the mid blocks have attention.
    pub mid_block_add_attention: bool,
    /// True if a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// True if a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// The factor of the UNet's latents: `(z - shift_factor) * scaling_factor`.
    pub scaling_factor: f64,
    /// The shift subtracted from latents before scaling.
    pub shift_factor: Option<f64>,
    /// The mean of each latent channel, for checkpoints that normalize by channel.
    pub latents_mean: Option<Vec<f64>>,
    /// The standard deviation of each latent channel.
    pub latents_std: Option<Vec<f64>>,
    /// True if this autoencoder overflows in `fp16`.
    pub force_upcast: bool,
}

impl Config {
    /// Reads the `config.json` of an `AutoencoderKL`.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn from_json(config: &Value) -> Result<Self, ArchError> {
        let mut fields = Fields::of(config)?;
        fields.ignore(&["sample_size"]);
        let block_out_channels = fields.counts("block_out_channels", &[64], MAX_EXTENT)?;
        for (name, supported) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            let types = fields.names(name, &[supported], block_out_channels.len())?;
            if let Some(other) = types.iter().find(|&&kind| kind != supported) {
                let what = format!("\"{other}\" is not supported; supported: {supported}");
                return Err(ArchError::config(name, what));
            }
        }
        let latent_channels = fields.count("latent_channels", 4, MAX_EXTENT)?;
        let config = Config {
            in_channels: fields.count("in_channels", 3, MAX_EXTENT)?,
            out_channels: fields.count("out_channels", 3, MAX_EXTENT)?,
            latent_channels,
            layers_per_block: fields.count("layers_per_block", 1, MAX_LAYERS)?,
            norm_num_groups: fields.count("norm_num_groups", 32, MAX_EXTENT)?,
            act_fn: Activation::diffusers("act_fn", fields.text("act_fn", "silu")?)?,
            mid_block_add_attention: fields.flag("mid_block_add_attention", true)?,
            use_quant_conv: fields.flag("use_quant_conv", true)?,
            use_post_quant_conv: fields.flag("use_post_quant_conv", true)?,
            scaling_factor: fields.positive("scaling_factor", 0.18215)?,
            shift_factor: fields.optional_float("shift_factor")?,
            latents_mean: fields.optional_floats("latents_mean", latent_channels)?,
            latents_std: fields.optional_floats("latents_std", latent_channels)?,
            force_upcast: fields.flag("force_upcast", true)?,
            block_out_channels,
        };
        fields.finish()?;
        if let Some(channels) =
            config.block_out_channels.iter().find(|channels| !channels.is_multiple_of(config.norm_num_groups))
        {
            let what = format!("{} groups don't divide {channels} channels", config.norm_num_groups);
            return Err(ArchError::config("norm_num_groups", what));
        }
        if config.block_out_channels.len() > 16 {
            return Err(ArchError::config("block_out_channels", "has more than 16 levels"));
        }
        Ok(config)
    }

    /// Image pixels per latent pixel, along each side.
    pub fn scale(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn groups(&self) -> Groups {
        Groups { count: self.norm_num_groups, epsilon: NORM_EPSILON }
    }

    /// The channels of the coarsest level.
    fn coarsest(&self) -> usize {
        self.block_out_channels.last().copied().unwrap_or(0)
    }
}

/// Builds the decoder.
///
/// The input is `z` (batch, latent_channels, height, width), already divided by the scaling factor. The
/// output is `image` (batch, out_channels, height * scale, width * scale), `fp32`, about -1 to 1.
///
/// Uses `batch`, `height`, `width`, `dtype` and `opset` of `options`.
///
/// # Errors
/// A missing or misshapen tensor, or sizes that are out of range.
pub fn build_decoder(
    config: &Config,
    weights: &dyn Weights,
    options: &GraphOptions,
) -> Result<Function, ArchError> {
    let size = options.size(1)?;
    let mut net = Net::new(weights, options)?;
    let mut x =
        net.input(io::Z, options.dtype, &[options.batch, config.latent_channels, size[0], size[1]])?;
    if config.use_post_quant_conv {
        x = net.conv(x, "post_quant_conv", Conv::same(config.latent_channels, 1))?;
    }
    x = net.conv(x, "decoder.conv_in", Conv::same(config.coarsest(), 3))?;
    x = middle(&mut net, config, "decoder.mid_block", x)?;
    let levels = config.block_out_channels.len();
    for (level, &channels) in config.block_out_channels.iter().rev().enumerate() {
        let path = format!("decoder.up_blocks.{level}");
        for layer in 0..config.layers_per_block + 1 {
            x = residual(&mut net, config, &format!("{path}.resnets.{layer}"), x, channels)?;
        }
        if level + 1 < levels {
            let path = format!("{path}.upsamplers.0");
            x = net.upsample(x, None, &identifier(&path))?;
            x = net.conv(x, &format!("{path}.conv"), Conv::same(channels, 3))?;
        }
    }
    let name = net.result_name(io::IMAGE);
    x = head(&mut net, config, "decoder", x, config.out_channels, &name)?;
    let image = net.output(x, io::IMAGE)?;
    net.finish(&[image])
}

/// Builds the encoder.
///
/// The input is `x` (batch, in_channels, height * scale, width * scale), -1 to 1. The output is `latent`
/// (batch, 2 * latent_channels, height, width), `fp32`: the means, then the log variances.
///
/// Uses `batch`, `height` and `width` (of the latent), `dtype` and `opset` of `options`.
///
/// # Errors
/// A missing or misshapen tensor, or sizes that are out of range.
pub fn build_encoder(
    config: &Config,
    weights: &dyn Weights,
    options: &GraphOptions,
) -> Result<Function, ArchError> {
    let size = options.size(config.scale())?;
    let mut net = Net::new(weights, options)?;
    let mut x = net.input(io::X, options.dtype, &[options.batch, config.in_channels, size[0], size[1]])?;
    let finest = config.block_out_channels[0];
    x = net.conv(x, "encoder.conv_in", Conv::same(finest, 3))?;
    let levels = config.block_out_channels.len();
    for (level, &channels) in config.block_out_channels.iter().enumerate() {
        let path = format!("encoder.down_blocks.{level}");
        for layer in 0..config.layers_per_block {
            x = residual(&mut net, config, &format!("{path}.resnets.{layer}"), x, channels)?;
        }
        if level + 1 < levels {
            x = net.downsample(x, &format!("{path}.downsamplers.0.conv"), 0)?;
        }
    }
    x = middle(&mut net, config, "encoder.mid_block", x)?;
    let moments = 2 * config.latent_channels;
    let name = net.result_name(io::LATENT);
    if config.use_quant_conv {
        x = head(&mut net, config, "encoder", x, moments, "encoder_conv_out")?;
        x = net.conv_named(x, "quant_conv", Conv::same(moments, 1), &name)?;
    } else {
        x = head(&mut net, config, "encoder", x, moments, &name)?;
    }
    let latent = net.output(x, io::LATENT)?;
    net.finish(&[latent])
}

fn residual(
    net: &mut Net,
    config: &Config,
    path: &str,
    x: ValueId,
    channels: usize,
) -> Result<ValueId, ArchError> {
    let block =
        resnet::Block { out: channels, groups: config.groups(), activation: config.act_fn, scale: 1.0 };
    resnet::build(net, path, x, &block, None)
}

fn middle(net: &mut Net, config: &Config, path: &str, x: ValueId) -> Result<ValueId, ArchError> {
    let channels = config.coarsest();
    let x = residual(net, config, &format!("{path}.resnets.0"), x, channels)?;
    let x = match config.mid_block_add_attention {
        true => attention(net, config, &format!("{path}.attentions.0"), x)?,
        false => x,
    };
    residual(net, config, &format!("{path}.resnets.1"), x, channels)
}

/// The names of the attention's projections, now and before diffusers 0.15.
const PROJECTIONS: [[&str; 2]; 4] =
    [["to_q", "query"], ["to_k", "key"], ["to_v", "value"], ["to_out.0", "proj_attn"]];

/// Single-head attention over all pixels, added to its input.
fn attention(net: &mut Net, config: &Config, path: &str, x: ValueId) -> Result<ValueId, ArchError> {
    let &[batch, channels, height, width] = net.shape(x) else { return Ok(x) };
    let id = identifier(path);
    let project = |net: &mut Net, x: ValueId, [name, old]: [&str; 2]| {
        let is_old = net.has_weight(&format!("{path}.{old}.weight"));
        let path = format!("{path}.{}", if is_old { old } else { name });
        net.linear(x, &path, channels, Bias::Yes, &identifier(&path))
    };
    let pixels = net.group_norm_flat(x, &format!("{path}.group_norm"), config.groups())?;
    let pixels = net.transpose(pixels, &[0, 2, 1], &format!("{id}_pixels"))?;
    let query = project(net, pixels, PROJECTIONS[0])?;
    let key = project(net, pixels, PROJECTIONS[1])?;
    let value = project(net, pixels, PROJECTIONS[2])?;
    let attended = net.sequence_attention([query, key, value], 1, None, &id)?;
    let attended = project(net, attended, PROJECTIONS[3])?;
    let image = net.transpose(attended, &[0, 2, 1], &format!("{id}_channels"))?;
    let shape = super::layers::ints(&[batch, channels, height, width])?;
    let image = net.reshape(image, &shape, &format!("{id}_image"))?;
    net.sum(image, x, &id)
}

/// The final norm, activation and convolution. As in diffusers, the activation is always SiLU, not `act_fn`.
fn head(
    net: &mut Net,
    config: &Config,
    path: &str,
    x: ValueId,
    out: usize,
    name: &str,
) -> Result<ValueId, ArchError> {
    let x = net.group_norm(x, &format!("{path}.conv_norm_out"), config.groups())?;
    let x = net.activate(x, Activation::Silu, &format!("{path}_conv_act"))?;
    net.conv_named(x, &format!("{path}.conv_out"), Conv::same(out, 3), name)
}
