//! ControlNets: `ControlNetModel`, a UNet's down blocks and mid block with a control image as extra input.

use mixbit_mil::{Function, ValueId, Weights, identifier};
use serde_json::{Map, Value};

use super::super::fields::{Fields, MAX_EXTENT, MAX_LAYERS};
use super::super::layers::Conv;
use super::super::{ArchError, GraphOptions, io};
use super::{Activation, Unet};

/// Number of resolutions of the control image, from pixels to latents.
const SIZES: usize = 4;
/// Image pixels along each side of a latent pixel.
const SCALE: usize = 1 << (SIZES - 1);

/// The configuration of a ControlNet.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The UNet of the down blocks and the mid block. Its up blocks are not used.
    pub unet: super::Config,
    /// Channels of the control image.
    pub conditioning_channels: usize,
    /// Channels at each resolution of the control image, finest first. Each is half the previous one.
    pub conditioning_embedding_out_channels: Vec<usize>,
}

impl Config {
    /// Reads the `config.json` of a `ControlNetModel`.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn from_json(config: &Value) -> Result<Self, ArchError> {
        let mut own = Fields::of(config)?;
        own.only("controlnet_conditioning_channel_order", "rgb")?;
        own.only("global_pool_conditions", "false")?;
        let conditioning_channels = own.count("conditioning_channels", 3, MAX_EXTENT)?;
        let name = "conditioning_embedding_out_channels";
        let channels = own.counts(name, &[16, 32, 96, 256], MAX_EXTENT)?;
        if channels.len() != SIZES {
            let what =
                format!("has {} sizes; {SIZES} bring an image to the size of its latents", channels.len());
            return Err(ArchError::config(name, what));
        }
        Ok(Config {
            unet: super::Config::from_json(&down_blocks_alone(config)?)?,
            conditioning_channels,
            conditioning_embedding_out_channels: channels,
        })
    }
}

/// The configuration of a UNet with the same down blocks.
fn down_blocks_alone(config: &Value) -> Result<Value, ArchError> {
    const OWN: [&str; 5] = [
        "conditioning_channels",
        "conditioning_embedding_out_channels",
        "controlnet_conditioning_channel_order",
        "global_pool_conditions",
        "up_block_types",
    ];
    let fields = config.as_object().into_iter().flatten();
    let mut fields: Map<String, Value> = fields
        .filter(|(name, _)| !OWN.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let levels = match fields.get("down_block_types") {
        Some(Value::Array(types)) if (1..=MAX_LAYERS).contains(&types.len()) => types.len(),
        Some(_) => return Err(ArchError::config("down_block_types", "must be a list of block types")),
        None => 4,
    };
    fields.insert("up_block_types".to_string(), vec!["UpBlock2D"; levels].into());
    Ok(Value::Object(fields))
}

/// The name of a residual, as an output of a ControlNet and as an input of a UNet.
pub(super) fn residual_name(index: usize) -> String {
    format!("additional_residual_{index}")
}

/// Builds the ControlNet.
///
/// The inputs are the UNet's and `controlnet_cond` (batch, conditioning_channels, 8 height, 8 width), 0 to 1.
/// The outputs are `additional_residual_0`..., `fp32`: one for each skip connection of the UNet and one for
/// its mid block.
///
/// # Errors
/// A missing or misshapen tensor, or options that don't fit the configuration.
pub fn build(config: &Config, weights: &dyn Weights, options: &GraphOptions) -> Result<Function, ArchError> {
    let (mut unet, sample) = Unet::begin(&config.unet, weights, options)?;
    let [height, width] = options.size(SCALE)?;
    let shape = [options.batch, config.conditioning_channels, height, width];
    let image = unet.net.input(io::CONTROLNET_COND, options.dtype, &shape)?;
    let hint = unet.embed_image(image, &config.conditioning_embedding_out_channels)?;
    let (x, skips) = unet.down_blocks(sample, Some(hint))?;
    let middle = unet.mid_block(x)?;
    let mut residuals = Vec::with_capacity(skips.len() + 1);
    for (index, skip) in skips.into_iter().enumerate() {
        residuals.push(unet.residual_output(skip, &format!("controlnet_down_blocks.{index}"), index)?);
    }
    residuals.push(unet.residual_output(middle, "controlnet_mid_block", residuals.len())?);
    unet.net.finish(&residuals)
}

impl Unet<'_> {
    /// The control image's features at the size of the latents, with the channels of the first level.
    fn embed_image(&mut self, image: ValueId, channels: &[usize]) -> Result<ValueId, ArchError> {
        const PATH: &str = "controlnet_cond_embedding";
        let mut x = self.embed_layer(image, &format!("{PATH}.conv_in"), channels[0], 1)?;
        for (size, pair) in channels.windows(2).enumerate() {
            x = self.embed_layer(x, &format!("{PATH}.blocks.{}", 2 * size), pair[0], 1)?;
            x = self.embed_layer(x, &format!("{PATH}.blocks.{}", 2 * size + 1), pair[1], 2)?;
        }
        let first = self.config.down[0].channels;
        self.net.conv(x, &format!("{PATH}.conv_out"), Conv::same(first, 3))
    }

    fn embed_layer(
        &mut self,
        x: ValueId,
        path: &str,
        out: usize,
        stride: usize,
    ) -> Result<ValueId, ArchError> {
        let x = self.net.conv(x, path, Conv { stride, ..Conv::same(out, 3) })?;
        self.net.activate(x, Activation::Silu, &format!("{}_act", identifier(path)))
    }

    fn residual_output(&mut self, x: ValueId, path: &str, index: usize) -> Result<ValueId, ArchError> {
        let name = residual_name(index);
        let result = self.net.result_name(&name);
        let residual = self.net.conv_named(x, path, Conv::same(self.net.channels(x), 1), &result)?;
        self.net.output(residual, &name)
    }
}
