//! The denoising UNet: `UNet2DConditionModel`.
//!
//! Images are (batch, channels, height, width), token sequences (batch, channels, 1, tokens) and vectors
//! (batch, channels, 1, 1). Every linear layer is a 1x1 convolution, as in Apple's rewrite for the Neural
//! Engine.

mod attention;
mod config;
pub mod control;
mod embedding;

use mixbit_mil::{Function, ValueId, Weights, identifier};

pub use config::{Addition, Attention, ClassLabels, Config, Middle, Stage, TimeEmbedding};

use super::layers::{Activation, Conv, Groups, Net};
use super::resnet::{self, Time};
use super::{ArchError, GraphOptions, io};

/// Builds the UNet.
///
/// | input | shape | for models with |
/// |---|---|---|
/// | `sample` | (batch, in_channels, height, width) | |
/// | `timestep` | (batch) | |
/// | `encoder_hidden_states` | (batch, text_channels, 1, tokens) | text |
/// | `time_ids`, `text_embeds` | (batch, time_ids), (batch, remaining channels) | `text_time` embeddings |
/// | `timestep_cond` | (batch, channels) | `time_cond_proj_dim` |
/// | `class_labels` | (batch) or (batch, channels) | class embeddings |
/// | `additional_residual_0`... | as the residuals of [`control::build`] | `options.control_residuals` |
///
/// Inputs have the type `options.dtype`, except class numbers, which are `fp32`. The output `noise_pred`
/// (batch, out_channels, height, width) is `fp32`. Timestep sinusoids are always computed in `fp32`.
///
/// # Errors
/// A missing or misshapen tensor, or options that don't fit the configuration.
pub fn build(config: &Config, weights: &dyn Weights, options: &GraphOptions) -> Result<Function, ArchError> {
    let (mut unet, sample) = Unet::begin(config, weights, options)?;
    let (mut x, mut skips) = unet.down_blocks(sample, None)?;
    x = unet.mid_block(x)?;
    if options.control_residuals {
        x = unet.add_residuals(&mut skips, x)?;
    }
    let noise = unet.up_blocks(x, skips)?;
    let noise = unet.net.output(noise, io::NOISE_PRED)?;
    unet.net.finish(&[noise])
}

/// A UNet under construction.
struct Unet<'w> {
    net: Net<'w>,
    config: &'w Config,
    options: &'w GraphOptions,
    /// The sum of all embeddings, activated.
    time: ValueId,
    /// The prompt embeddings, projected.
    text: Option<ValueId>,
}

impl<'w> Unet<'w> {
    /// Adds the inputs and the embeddings. Returns the UNet and the sample.
    fn begin(
        config: &'w Config,
        weights: &'w dyn Weights,
        options: &'w GraphOptions,
    ) -> Result<(Self, ValueId), ArchError> {
        let [height, width] = options.size(1)?;
        let mut net = Net::new(weights, options)?;
        let sample =
            net.input(io::SAMPLE, options.dtype, &[options.batch, config.in_channels, height, width])?;
        let timestep = net.input(io::TIMESTEP, options.dtype, &[options.batch])?;
        let text = match config.text_channels {
            Some(channels) => {
                let shape = [options.batch, channels, 1, options.tokens];
                Some(net.input(io::ENCODER_HIDDEN_STATES, options.dtype, &shape)?)
            }
            None => None,
        };
        let time = embedding::build(&mut net, config, options, timestep, text)?;
        let text = embedding::project_text(&mut net, config, text)?;
        let time = net.activate(time, config.act_fn, "time_embedding_act")?;
        Ok((Unet { net, config, options, time, text }, sample))
    }

    /// The down blocks. Returns the coarsest features and the skip connections. `hint` is added after
    /// `conv_in`.
    fn down_blocks(
        &mut self,
        sample: ValueId,
        hint: Option<ValueId>,
    ) -> Result<(ValueId, Vec<ValueId>), ArchError> {
        let config = self.config;
        let mut x = self.center(sample)?;
        x = self.net.conv(x, "conv_in", Conv::same(config.down[0].channels, config.conv_in_kernel))?;
        if let Some(hint) = hint {
            x = self.net.sum(x, hint, "conv_in_with_condition")?;
        }
        let mut skips = vec![x];
        for (level, stage) in config.down.iter().enumerate() {
            let path = format!("down_blocks.{level}");
            for layer in 0..stage.layers {
                x = self.layer(&path, layer, stage, x)?;
                skips.push(x);
            }
            if level + 1 < config.down.len() {
                let path = format!("{path}.downsamplers.0.conv");
                x = self.net.downsample(x, &path, config.downsample_padding)?;
                skips.push(x);
            }
        }
        Ok((x, skips))
    }

    /// Adds a ControlNet's residuals, which are inputs, to the skip connections and the mid block's result.
    fn add_residuals(&mut self, skips: &mut [ValueId], middle: ValueId) -> Result<ValueId, ArchError> {
        let mut add = |index: usize, x: ValueId| {
            let name = control::residual_name(index);
            let shape = self.net.shape(x).to_vec();
            let residual = self.net.input(&name, self.options.dtype, &shape)?;
            self.net.sum(x, residual, &format!("with_{name}"))
        };
        for (index, skip) in skips.iter_mut().enumerate() {
            *skip = add(index, *skip)?;
        }
        add(skips.len(), middle)
    }

    /// The up blocks, from the coarsest features to the predicted noise.
    fn up_blocks(&mut self, mut x: ValueId, mut skips: Vec<ValueId>) -> Result<ValueId, ArchError> {
        let config = self.config;
        let halvings = config.down.len() - 1;
        let uneven =
            [self.options.height, self.options.width].iter().any(|extent| extent % (1 << halvings) != 0);
        for (level, stage) in config.up.iter().enumerate() {
            let path = format!("up_blocks.{level}");
            for layer in 0..stage.layers {
                let skip = skips.pop().ok_or_else(unbalanced)?;
                let name = format!("{}_resnets_{layer}_joined", identifier(&path));
                x = self.net.concat(&[x, skip], 1, &name)?;
                x = self.layer(&path, layer, stage, x)?;
            }
            if level + 1 < config.up.len() {
                let next = *skips.last().ok_or_else(unbalanced)?;
                let size = [self.net.shape(next)[2], self.net.shape(next)[3]];
                let path = format!("{path}.upsamplers.0");
                x = self.net.upsample(x, uneven.then_some(size), &identifier(&path))?;
                x = self.net.conv(x, &format!("{path}.conv"), Conv::same(stage.channels, 3))?;
            }
        }
        x = self.net.group_norm(x, "conv_norm_out", self.groups())?;
        x = self.net.activate(x, config.act_fn, "conv_act")?;
        let name = self.net.result_name(io::NOISE_PRED);
        self.net.conv_named(x, "conv_out", Conv::same(config.out_channels, config.conv_out_kernel), &name)
    }

    fn groups(&self) -> Groups {
        Groups { count: self.config.norm_num_groups, epsilon: self.config.norm_eps }
    }

    fn center(&mut self, sample: ValueId) -> Result<ValueId, ArchError> {
        if !self.config.center_input_sample {
            return Ok(sample);
        }
        let doubled = self.net.op("mul").arg("x", sample).arg("y", 2.0).named("sample_doubled").add()?;
        Ok(self.net.op("sub").arg("x", doubled).arg("y", 1.0).named("sample_centered").add()?)
    }

    /// A residual block, followed by a transformer if the level has attention.
    fn layer(&mut self, path: &str, layer: usize, stage: &Stage, x: ValueId) -> Result<ValueId, ArchError> {
        let x = self.residual(&format!("{path}.resnets.{layer}"), x, stage.channels, 1.0)?;
        match &stage.attention {
            Some(attention) => {
                let depth = attention.depths[layer];
                self.transformer(&format!("{path}.attentions.{layer}"), x, attention, depth)
            }
            None => Ok(x),
        }
    }

    fn residual(&mut self, path: &str, x: ValueId, out: usize, scale: f64) -> Result<ValueId, ArchError> {
        let block = resnet::Block { out, groups: self.groups(), activation: self.config.act_fn, scale };
        let time = Time { embedding: self.time, scale_shift: self.config.scale_shift };
        resnet::build(&mut self.net, path, x, &block, Some(time))
    }

    fn mid_block(&mut self, x: ValueId) -> Result<ValueId, ArchError> {
        let scale = self.config.mid_block_scale_factor;
        let channels = self.net.channels(x);
        match &self.config.middle {
            Middle::None => Ok(x),
            Middle::Residual => self.residual("mid_block.resnets.0", x, channels, scale),
            Middle::Attention(attention) => {
                let x = self.residual("mid_block.resnets.0", x, channels, scale)?;
                let x = self.transformer("mid_block.attentions.0", x, attention, attention.depths[0])?;
                self.residual("mid_block.resnets.1", x, channels, scale)
            }
        }
    }
}

fn unbalanced() -> ArchError {
    ArchError::config("layers_per_block", "the up blocks have more layers than the down blocks")
}
