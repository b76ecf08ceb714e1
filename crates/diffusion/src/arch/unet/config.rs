//! The configuration of a UNet.

use serde_json::Value;

use super::super::ArchError;
use super::super::fields::{Fields, MAX_EXTENT, MAX_LAYERS, as_count, as_flag, as_list, as_whole, short};
use super::super::layers::Activation;
use super::super::text_encoder::Outputs;

/// Limit on the number of levels. No image can be halved that often.
const MAX_LEVELS: usize = 16;

/// The configuration of a `UNet2DConditionModel`, resolved per block.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the latent image that the model was trained on.
    pub sample_size: Option<[usize; 2]>,
    /// Channels of `sample`: the latent, plus the mask and the masked latent for inpainting.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// The down blocks, finest first.
    pub down: Vec<Stage>,
    /// The mid block.
    pub middle: Middle,
    /// The up blocks, coarsest first.
    pub up: Vec<Stage>,
    /// Channels of `encoder_hidden_states`, if any block attends to it.
    pub text_channels: Option<usize>,
    /// Output channels of the projection of `encoder_hidden_states`, if there is one.
    pub text_projection: Option<usize>,
    /// True if the sample is first mapped from 0..1 to -1..1.
    pub center_input_sample: bool,
    /// The timestep's embedding.
    pub time: TimeEmbedding,
    /// The kind of `class_labels`, for models that take it.
    pub class_labels: Option<ClassLabels>,
    /// True if the class embedding is concatenated to the time embedding instead of added.
    pub class_embeddings_concat: bool,
    /// The additional embedding that is added to the time embedding.
    pub addition: Option<Addition>,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// The epsilon of the residual blocks' norms.
    pub norm_eps: f64,
    /// The activation of the residual blocks and of the time embedding.
    pub act_fn: Activation,
    /// True if the time embedding scales and shifts in the residual blocks.
    pub scale_shift: bool,
    /// The divisor of the residual sums in the mid block.
    pub mid_block_scale_factor: f64,
    /// Zero padding of downsampling convolutions. 0 pads only the bottom and right edges.
    pub downsample_padding: usize,
    /// True if `proj_in` and `proj_out` of each transformer are linear layers instead of 1x1 convolutions.
    pub use_linear_projection: bool,
    /// True if attention probabilities must be computed in `fp32` because the scores overflow `fp16`.
    pub upcast_attention: bool,
    /// The kernel size of the first convolution.
    pub conv_in_kernel: usize,
    /// The kernel size of the last convolution.
    pub conv_out_kernel: usize,
}

/// A down block or an up block: the layers of one level.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Output channels.
    pub channels: usize,
    /// Residual blocks.
    pub layers: usize,
    /// The attention after each residual block, if the level has attention.
    pub attention: Option<Attention>,
}

/// The transformers of one level.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Attention heads. Their number divides the level's channels.
    pub heads: usize,
    /// Transformer blocks after each residual block.
    pub depths: Vec<usize>,
    /// Channels of the prompt embeddings.
    pub cross_attention_dim: usize,
    /// True if the first attention of each block attends to the prompt embeddings, not to the image.
    pub only_cross_attention: bool,
}

/// The mid block, between the down blocks and the up blocks.
#[derive(Clone, Debug, PartialEq)]
pub enum Middle {
    /// Nothing.
    None,
    /// One residual block.
    Residual,
    /// A transformer between two residual blocks.
    Attention(Attention),
}

/// The embedding of the timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct TimeEmbedding {
    /// Channels of the sinusoid.
    pub sinusoid: usize,
    /// Channels of the embedding.
    pub channels: usize,
    /// True if the checkpoint provides the sinusoid's frequencies.
    pub fourier: bool,
    /// True if cosines come before sines.
    pub flip_sin_to_cos: bool,
    /// The shift subtracted from half the channels in the frequency formula. Unused with `fourier`.
    pub freq_shift: f64,
    /// The activation after the embedding's last layer.
    pub post_act: Option<Activation>,
    /// The activation of the sum of all embeddings.
    pub sum_act: Option<Activation>,
    /// Channels of `timestep_cond`, for models distilled with guidance (LCM).
    pub condition: Option<usize>,
}

/// The kind of `class_labels`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassLabels {
    /// A class number or noise level, below this count.
    Index(usize),
    /// A number, embedded in the same way as a timestep.
    Timestep,
    /// An embedding, added unchanged.
    Identity,
    /// A vector with this number of channels, projected by two layers.
    Projection(usize),
    /// A vector with this number of channels, projected by one layer.
    SimpleProjection(usize),
}

/// An additional embedding that is added to the time embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addition {
    /// The prompt embeddings, pooled by attention.
    Text {
        /// Heads of the pooling attention.
        heads: usize,
    },
    /// `text_embeds` and the sinusoids of `time_ids`: Stable Diffusion XL.
    TextTime {
        /// Channels of the sinusoid of each entry of `time_ids`.
        sinusoid: usize,
        /// Channels of `text_embeds` and all sinusoids together.
        channels: usize,
    },
}

impl Config {
    /// Reads the `config.json` of a `UNet2DConditionModel`.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn from_json(config: &Value) -> Result<Self, ArchError> {
        let mut fields = Fields::of(config)?;
        // Except for `dropout`, these fields only affect block types that are rejected below.
        fields.ignore(&[
            "dropout",
            "resnet_skip_time_act",
            "resnet_out_scale_factor",
            "cross_attention_norm",
        ]);
        fields.ignore(&["mid_block_only_cross_attention"]);
        fields.only("dual_cross_attention", "false")?;
        fields.only("attention_type", "default")?;
        let channels = fields.counts("block_out_channels", &[320, 640, 1280, 1280], MAX_EXTENT)?;
        if channels.len() > MAX_LEVELS {
            let what = format!("has {} levels, more than {MAX_LEVELS}", channels.len());
            return Err(ArchError::config("block_out_channels", what));
        }
        let levels = Levels::read(&mut fields, &channels)?;
        let middle = levels.middle(fields.raw("mid_block_type"))?;
        let (down, up) = (levels.down()?, levels.up()?);
        let class_labels = class_labels(&mut fields)?;
        let addition = addition(&mut fields)?;
        let attended = attended(&down, &middle, &up)?;
        let (text_channels, text_projection) = text(&mut fields, attended, addition, levels.cross[0])?;
        let config = Config {
            sample_size: sample_size(&mut fields)?,
            in_channels: fields.count("in_channels", 4, MAX_EXTENT)?,
            out_channels: fields.count("out_channels", 4, MAX_EXTENT)?,
            down,
            middle,
            up,
            text_channels,
            text_projection,
            center_input_sample: fields.flag("center_input_sample", false)?,
            time: time_embedding(&mut fields, channels[0])?,
            class_labels,
            class_embeddings_concat: fields.flag("class_embeddings_concat", false)?,
            addition,
            norm_num_groups: fields.count("norm_num_groups", 32, MAX_EXTENT)?,
            norm_eps: fields.positive("norm_eps", 1e-5)?,
            act_fn: Activation::diffusers("act_fn", fields.text("act_fn", "silu")?)?,
            scale_shift: scale_shift(&mut fields)?,
            mid_block_scale_factor: fields.positive("mid_block_scale_factor", 1.0)?,
            downsample_padding: downsample_padding(&mut fields)?,
            use_linear_projection: fields.flag("use_linear_projection", false)?,
            upcast_attention: fields.flag("upcast_attention", false)?,
            conv_in_kernel: odd(&mut fields, "conv_in_kernel")?,
            conv_out_kernel: odd(&mut fields, "conv_out_kernel")?,
        };
        fields.finish()?;
        config.check(&channels)?;
        Ok(config)
    }

    /// True if the UNet takes the image's sizes (`time_ids`), as in Stable Diffusion XL.
    pub fn takes_sizes(&self) -> bool {
        matches!(self.addition, Some(Addition::TextTime { .. }))
    }

    /// The outputs of the text encoders that the UNet attends to. Networks that take sizes are trained on the
    /// penultimate layer.
    pub fn text_outputs(&self) -> Outputs {
        if self.takes_sizes() { Outputs::PENULTIMATE } else { Outputs::LAST }
    }

    /// Length of `time_ids` per sample if `text_embeds` has `text_embed_channels` channels. `None` for models
    /// without `time_ids`.
    ///
    /// # Errors
    /// [`ArchError::Config`] if the length is not a whole number above 0.
    pub fn time_id_count(&self, text_embed_channels: usize) -> Result<Option<usize>, ArchError> {
        let Some(Addition::TextTime { sinusoid, channels }) = self.addition else { return Ok(None) };
        let rest = channels.checked_sub(text_embed_channels).filter(|rest| rest.is_multiple_of(sinusoid));
        match rest.map(|rest| rest / sinusoid).filter(|&count| count > 0) {
            Some(count) => Ok(Some(count)),
            None => {
                let what = format!(
                    "{channels} channels can't hold text_embeds of {text_embed_channels} and sinusoids of {sinusoid}"
                );
                Err(ArchError::config("projection_class_embeddings_input_dim", what))
            }
        }
    }

    fn check(&self, channels: &[usize]) -> Result<(), ArchError> {
        self.check_freq_shift()?;
        let groups = self.norm_num_groups;
        if let Some(level) = channels.iter().find(|channels| !channels.is_multiple_of(groups)) {
            let what = format!("{groups} groups don't divide {level} channels");
            return Err(ArchError::config("norm_num_groups", what));
        }
        if self.class_embeddings_concat && self.class_labels.is_some() && self.addition.is_some() {
            let what = "is not supported together with addition_embed_type";
            return Err(ArchError::config("class_embeddings_concat", what));
        }
        Ok(())
    }
}

impl Config {
    /// Rejects a shift that makes the frequencies' divisor (half the channels minus the shift) zero or less.
    fn check_freq_shift(&self) -> Result<(), ArchError> {
        let narrowest = match self.addition {
            Some(Addition::TextTime { sinusoid, .. }) => sinusoid.min(self.time.sinusoid),
            _ => self.time.sinusoid,
        };
        let shift = self.time.freq_shift;
        if (0.0..(narrowest / 2) as f64).contains(&shift) {
            return Ok(());
        }
        let what = format!("{shift:?} is not from 0 to below half of {narrowest} channels of a sinusoid");
        Err(ArchError::config("freq_shift", what))
    }
}

/// The fields with one entry per level, finest first.
struct Levels {
    channels: Vec<usize>,
    down_attends: Vec<bool>,
    up_attends: Vec<bool>,
    layers: Vec<usize>,
    heads: Vec<usize>,
    cross: Vec<usize>,
    only_cross: Vec<bool>,
    depths: Vec<Depth>,
    /// The depths of the up blocks, coarsest first.
    up_depths: Vec<Depth>,
}

/// Transformer blocks after each residual block of a level; 0 leaves only the transformer's projections.
#[derive(Clone)]
enum Depth {
    All(usize),
    Each(Vec<usize>),
}

impl Depth {
    fn read(name: &'static str, value: &Value) -> Result<Self, ArchError> {
        match value {
            Value::Array(_) => {
                let each = as_list(name, value)?.iter().map(|value| as_whole(name, value, 0, MAX_LAYERS));
                each.collect::<Result<_, _>>().map(Depth::Each)
            }
            value => as_whole(name, value, 0, MAX_LAYERS).map(Depth::All),
        }
    }

    fn resolve(&self, layers: usize) -> Result<Vec<usize>, ArchError> {
        match self {
            Depth::All(depth) => Ok(vec![*depth; layers]),
            Depth::Each(depths) if depths.len() >= layers => Ok(depths[..layers].to_vec()),
            Depth::Each(depths) => {
                let what = format!("has {} entries for a level with {layers} layers", depths.len());
                Err(ArchError::config("transformer_layers_per_block", what))
            }
        }
    }
}

const DOWN: [&str; 2] = ["DownBlock2D", "CrossAttnDownBlock2D"];
const UP: [&str; 2] = ["UpBlock2D", "CrossAttnUpBlock2D"];

impl Levels {
    fn read(fields: &mut Fields, channels: &[usize]) -> Result<Self, ArchError> {
        let count = channels.len();
        let down_default = [DOWN[1], DOWN[1], DOWN[1], DOWN[0]];
        let up_default = [UP[0], UP[1], UP[1], UP[1]];
        let down_attends = attends(fields, "down_block_types", &down_default, DOWN, count)?;
        let up_attends = attends(fields, "up_block_types", &up_default, UP, count)?;
        let extent = |name: &'static str, value: &Value| as_count(name, value, MAX_EXTENT);
        // diffusers calls the number of heads `attention_head_dim` for compatibility with old files.
        let head_field = match fields.optional("num_attention_heads") {
            Some(_) => "num_attention_heads",
            None => "attention_head_dim",
        };
        fields.ignore(&["attention_head_dim"]);
        let depths = fields.levels("transformer_layers_per_block", Depth::All(1), count, Depth::read)?;
        let up_depths = match fields.optional("reverse_transformer_layers_per_block") {
            Some(_) => {
                fields.levels("reverse_transformer_layers_per_block", Depth::All(1), count, Depth::read)?
            }
            None if depths.iter().any(|depth| matches!(depth, Depth::Each(_))) => {
                let what = "is a list of lists; reverse_transformer_layers_per_block must be there too";
                return Err(ArchError::config("transformer_layers_per_block", what));
            }
            None => depths.iter().rev().cloned().collect(),
        };
        Ok(Levels {
            channels: channels.to_vec(),
            down_attends,
            up_attends,
            layers: fields
                .levels("layers_per_block", 2, count, |name, value| as_count(name, value, MAX_LAYERS))?,
            heads: fields.levels(head_field, 8, count, extent)?,
            cross: fields.levels("cross_attention_dim", 1280, count, extent)?,
            only_cross: fields.levels("only_cross_attention", false, count, as_flag)?,
            depths,
            up_depths,
        })
    }

    fn down(&self) -> Result<Vec<Stage>, ArchError> {
        let stage = |level: usize| {
            self.stage(level, self.down_attends[level], self.layers[level], &self.depths[level])
        };
        (0..self.channels.len()).map(stage).collect()
    }

    fn up(&self) -> Result<Vec<Stage>, ArchError> {
        let stage = |(at, level): (usize, usize)| {
            self.stage(level, self.up_attends[at], self.layers[level] + 1, &self.up_depths[at])
        };
        (0..self.channels.len()).rev().enumerate().map(stage).collect()
    }

    fn stage(&self, level: usize, attends: bool, layers: usize, depth: &Depth) -> Result<Stage, ArchError> {
        let attention = match attends {
            true => Some(self.attention(level, depth.resolve(layers)?, self.only_cross[level])?),
            false => None,
        };
        Ok(Stage { channels: self.channels[level], layers, attention })
    }

    fn attention(
        &self,
        level: usize,
        depths: Vec<usize>,
        only_cross_attention: bool,
    ) -> Result<Attention, ArchError> {
        let (heads, channels) = (self.heads[level], self.channels[level]);
        if !channels.is_multiple_of(heads) {
            let what = format!("{heads} heads don't divide {channels} channels");
            return Err(ArchError::config("attention_head_dim", what));
        }
        Ok(Attention { heads, depths, cross_attention_dim: self.cross[level], only_cross_attention })
    }

    fn middle(&self, kind: Option<&Value>) -> Result<Middle, ArchError> {
        let last = self.channels.len() - 1;
        match kind {
            Some(Value::Null) => Ok(Middle::None),
            Some(Value::String(kind)) if kind == "UNetMidBlock2D" => Ok(Middle::Residual),
            Some(other) if other.as_str() != Some("UNetMidBlock2DCrossAttn") => {
                let what = format!(
                    "{} is not supported; supported: UNetMidBlock2DCrossAttn, UNetMidBlock2D, null",
                    short(other)
                );
                Err(ArchError::config("mid_block_type", what))
            }
            // diffusers does not pass `only_cross_attention` to this block.
            _ => Ok(Middle::Attention(self.attention(last, self.depths[last].resolve(1)?, false)?)),
        }
    }
}

/// For each level, whether its block type has attention.
fn attends<'v>(
    fields: &mut Fields<'v>,
    name: &'static str,
    default: &[&'v str],
    [plain, attending]: [&str; 2],
    count: usize,
) -> Result<Vec<bool>, ArchError> {
    let read = |kind: &&str| match *kind {
        kind if kind == plain => Ok(false),
        kind if kind == attending => Ok(true),
        other => {
            let what = format!("\"{other}\" is not supported; supported: {plain}, {attending}");
            Err(ArchError::config(name, what))
        }
    };
    fields.names(name, default, count)?.iter().map(read).collect()
}

/// The number of prompt embedding channels, which all attention layers must share.
fn attended(down: &[Stage], middle: &Middle, up: &[Stage]) -> Result<Option<usize>, ArchError> {
    let stages = down.iter().chain(up).filter_map(|stage| stage.attention.as_ref());
    let middle = match middle {
        Middle::Attention(attention) => Some(attention),
        Middle::Residual | Middle::None => None,
    };
    let mut dims = stages.chain(middle).map(|attention| attention.cross_attention_dim);
    let Some(first) = dims.next() else { return Ok(None) };
    match dims.find(|&dim| dim != first) {
        Some(other) => {
            let what =
                format!("levels that attend to texts of {first} and of {other} channels are not supported");
            Err(ArchError::config("cross_attention_dim", what))
        }
        None => Ok(Some(first)),
    }
}

/// Channels of the prompt embeddings and of their projection.
fn text(
    fields: &mut Fields,
    attended: Option<usize>,
    addition: Option<Addition>,
    cross_attention_dim: usize,
) -> Result<(Option<usize>, Option<usize>), ArchError> {
    fields.only("encoder_hid_dim_type", "text_proj")?;
    let has_type = fields.optional("encoder_hid_dim_type").is_some();
    let hidden = fields.optional_extent("encoder_hid_dim")?;
    let pools = matches!(addition, Some(Addition::Text { .. }));
    match hidden {
        Some(hidden) => Ok((Some(hidden), Some(cross_attention_dim))),
        None if has_type => {
            Err(ArchError::config("encoder_hid_dim", "must be there if encoder_hid_dim_type is"))
        }
        None if pools => Ok((Some(cross_attention_dim), None)),
        None => Ok((attended, None)),
    }
}

fn time_embedding(fields: &mut Fields, first: usize) -> Result<TimeEmbedding, ArchError> {
    let width = fields.optional_extent("time_embedding_dim")?;
    let (fourier, sinusoid, channels, field) = match fields.text("time_embedding_type", "positional")? {
        "positional" => (false, first, width.unwrap_or(4 * first), "block_out_channels"),
        "fourier" => {
            let channels = width.unwrap_or(2 * first);
            (true, channels, channels, "time_embedding_dim")
        }
        other => {
            let what = format!("\"{other}\" is not supported; supported: positional, fourier");
            return Err(ArchError::config("time_embedding_type", what));
        }
    };
    if !sinusoid.is_multiple_of(2) {
        let what = format!("the timestep's sinusoid would have {sinusoid} channels; it needs an even number");
        return Err(ArchError::config(field, what));
    }
    let mut activation = |name: &'static str| {
        fields.optional_text(name)?.map(|value| Activation::diffusers(name, value)).transpose()
    };
    let (post_act, sum_act) = (activation("timestep_post_act")?, activation("time_embedding_act_fn")?);
    Ok(TimeEmbedding {
        sinusoid,
        channels,
        fourier,
        flip_sin_to_cos: fields.flag("flip_sin_to_cos", true)?,
        freq_shift: fields.float("freq_shift", 0.0)?,
        post_act,
        sum_act,
        condition: fields.optional_extent("time_cond_proj_dim")?,
    })
}

fn class_labels(fields: &mut Fields) -> Result<Option<ClassLabels>, ArchError> {
    let classes = fields.optional_extent("num_class_embeds")?;
    let channels = fields.optional_extent("projection_class_embeddings_input_dim")?;
    let needs = || {
        ArchError::config(
            "projection_class_embeddings_input_dim",
            "must be there if class_embed_type is a projection",
        )
    };
    Ok(match fields.optional_text("class_embed_type")? {
        None => classes.map(ClassLabels::Index),
        Some("timestep") => Some(ClassLabels::Timestep),
        Some("identity") => Some(ClassLabels::Identity),
        Some("projection") => Some(ClassLabels::Projection(channels.ok_or_else(needs)?)),
        Some("simple_projection") => Some(ClassLabels::SimpleProjection(channels.ok_or_else(needs)?)),
        Some(other) => {
            let supported = "timestep, identity, projection, simple_projection, null";
            let what = format!("\"{other}\" is not supported; supported: {supported}");
            return Err(ArchError::config("class_embed_type", what));
        }
    })
}

fn addition(fields: &mut Fields) -> Result<Option<Addition>, ArchError> {
    let sinusoid = fields.optional_extent("addition_time_embed_dim")?;
    let channels = fields.optional_extent("projection_class_embeddings_input_dim")?;
    let heads = fields.count("addition_embed_type_num_heads", 64, MAX_EXTENT)?;
    let needs = |field| ArchError::config(field, "must be there if addition_embed_type is \"text_time\"");
    match fields.optional_text("addition_embed_type")? {
        None => Ok(None),
        Some("text") => Ok(Some(Addition::Text { heads })),
        Some("text_time") => {
            let sinusoid = sinusoid.ok_or_else(|| needs("addition_time_embed_dim"))?;
            if !sinusoid.is_multiple_of(2) {
                let what = format!("{sinusoid} is odd; a sinusoid needs an even number of channels");
                return Err(ArchError::config("addition_time_embed_dim", what));
            }
            let channels = channels.ok_or_else(|| needs("projection_class_embeddings_input_dim"))?;
            Ok(Some(Addition::TextTime { sinusoid, channels }))
        }
        Some(other) => {
            let what = format!("\"{other}\" is not supported; supported: text_time, text, null");
            Err(ArchError::config("addition_embed_type", what))
        }
    }
}

fn scale_shift(fields: &mut Fields) -> Result<bool, ArchError> {
    match fields.text("resnet_time_scale_shift", "default")? {
        "default" => Ok(false),
        "scale_shift" => Ok(true),
        other => {
            let what = format!("\"{other}\" is not supported; supported: default, scale_shift");
            Err(ArchError::config("resnet_time_scale_shift", what))
        }
    }
}

fn downsample_padding(fields: &mut Fields) -> Result<usize, ArchError> {
    match fields.raw("downsample_padding") {
        None => Ok(1),
        Some(value) => match value.as_u64() {
            Some(padding @ (0 | 1)) => Ok(padding as usize),
            _ => {
                let what = format!("{} is not supported; supported: 0, 1", short(value));
                Err(ArchError::config("downsample_padding", what))
            }
        },
    }
}

fn odd(fields: &mut Fields, name: &'static str) -> Result<usize, ArchError> {
    match fields.count(name, 3, 31)? {
        even if even.is_multiple_of(2) => {
            Err(ArchError::config(name, format!("{even} is not supported; supported: odd sizes")))
        }
        size => Ok(size),
    }
}

fn sample_size(fields: &mut Fields) -> Result<Option<[usize; 2]>, ArchError> {
    const NAME: &str = "sample_size";
    let extent = |value: &Value| as_count(NAME, value, MAX_EXTENT);
    match fields.optional(NAME) {
        None => Ok(None),
        Some(Value::Array(sides)) if sides.len() == 2 => Ok(Some([extent(&sides[0])?, extent(&sides[1])?])),
        Some(side) => extent(side).map(|side| Some([side; 2])),
    }
}
