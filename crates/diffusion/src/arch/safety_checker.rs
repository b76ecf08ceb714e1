//! Stable Diffusion's safety checker, `StableDiffusionSafetyChecker`: CLIP's image encoder and the cosine
//! similarity of its embedding to those of unwanted concepts.
//!
//! As in Apple's converter and unlike diffusers, scores are not rounded to three digits before the
//! comparison, and the caller chooses the adjustment.

use mixbit_mil::{DType, Function, ValueId, Weights, identifier};
use serde_json::{Value, json};

use super::clip::{self, Layers};
use super::fields::{Fields, MAX_EXTENT, MAX_LAYERS};
use super::layers::{Activation, Bias, Net, int};
use super::{ArchError, GraphOptions, io};

/// Special-care concepts, which raise the scores of all other concepts.
pub const SPECIAL_CARE_CONCEPTS: usize = 3;
/// Concepts that can flag an image.
pub const CONCEPTS: usize = 17;

/// The offset of every concept's score if a special-care concept matches.
const SPECIAL_CARE: f64 = 0.01;
/// The smallest divisor in normalization, as in PyTorch's `normalize`.
const LEAST_NORM: f64 = 1e-12;
/// The maximum number of positions, which limits the size of the attention scores.
const MAX_POSITIONS: usize = 1 << 14;

/// The configuration of a safety checker.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Height and width of the encoded image.
    pub image_size: usize,
    /// Height and width of a patch. An incomplete patch at the edge is ignored.
    pub patch_size: usize,
    /// Channels of the image.
    pub num_channels: usize,
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads of every layer.
    pub num_attention_heads: usize,
    /// The activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Channels of the embeddings.
    pub projection_dim: usize,
}

impl Config {
    /// Reads a CLIP `config.json`: its `vision_config`, or `vision_config_dict` in old files.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn from_json(config: &Value) -> Result<Self, ArchError> {
        let mut fields = Fields::of(config)?;
        fields.only("model_type", "clip")?;
        fields.ignore(clip::UNRELATED);
        fields.ignore(&["text_config", "text_config_dict", "logit_scale_init_value"]);
        let projection_dim = fields.count("projection_dim", 512, MAX_EXTENT)?;
        let vision = fields.optional("vision_config");
        // In transformers, `vision_config_dict` replaces `vision_config` as a whole.
        let vision = fields.optional("vision_config_dict").or(vision);
        fields.finish()?;
        Self::read(vision.unwrap_or(&json!({})), projection_dim).map_err(|error| match error {
            ArchError::Config { field, what } => ArchError::config(&format!("vision_config.{field}"), what),
            error => error,
        })
    }

    fn read(vision: &Value, projection_dim: usize) -> Result<Self, ArchError> {
        let mut fields = Fields::of(vision)?;
        fields.only("model_type", "clip_vision_model")?;
        fields.ignore(clip::UNRELATED);
        fields.ignore(&["projection_dim"]);
        let config = Config {
            image_size: fields.count("image_size", 224, MAX_EXTENT)?,
            patch_size: fields.count("patch_size", 32, MAX_EXTENT)?,
            num_channels: fields.count("num_channels", 3, MAX_EXTENT)?,
            hidden_size: fields.count("hidden_size", 768, MAX_EXTENT)?,
            intermediate_size: fields.count("intermediate_size", 3072, MAX_EXTENT)?,
            num_hidden_layers: fields.count("num_hidden_layers", 12, MAX_LAYERS)?,
            num_attention_heads: fields.count("num_attention_heads", 12, MAX_EXTENT)?,
            hidden_act: clip::activation(fields.text("hidden_act", "quick_gelu")?)?,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            projection_dim,
        };
        fields.finish()?;
        config.layers().check()?;
        if !(2..=MAX_POSITIONS).contains(&config.positions()) {
            let what = format!(
                "patches of {} don't cut an image of {} into 1 to {}",
                config.patch_size,
                config.image_size,
                MAX_POSITIONS - 1
            );
            return Err(ArchError::config("patch_size", what));
        }
        Ok(config)
    }

    /// The number of positions: the class token and the patches.
    fn positions(&self) -> usize {
        (self.image_size / self.patch_size).pow(2) + 1
    }

    fn layers(&self) -> Layers {
        Layers {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            heads: self.num_attention_heads,
            activation: self.hidden_act,
            epsilon: self.layer_norm_eps,
        }
    }
}

/// Builds the checker.
///
/// Inputs:
/// - `clip_input` (batch, num_channels, image_size, image_size), normalized for CLIP;
/// - `images` (batch, height, width, 3) with height and width from `size`;
/// - `adjustment` (1), which is added to the scores of the special-care concepts.
///
/// Outputs, all `fp32`:
/// - `filtered_images`: `images`, with zeros for flagged images;
/// - `has_nsfw_concepts` (batch, 1, 1, 1): 1 for flagged images;
/// - `concept_scores` (batch, 17): any score above 0 flags the image.
///
/// Uses `batch`, `dtype` and `opset` of `options`. Scores are always computed in `fp32`, because small
/// differences decide. Tensor names begin with `vision_model.vision_model.`, or with `vision_model.` in files
/// by transformers 5.
///
/// # Errors
/// A missing or misshapen tensor, or a size out of range.
pub fn build(
    config: &Config,
    weights: &dyn Weights,
    options: &GraphOptions,
    size: [usize; 2],
) -> Result<Function, ArchError> {
    for (option, extent) in [("batch", options.batch), ("height", size[0]), ("width", size[1])] {
        if !(1..=MAX_EXTENT).contains(&extent) {
            let what = format!("must be 1 to {MAX_EXTENT}, not {extent}");
            return Err(ArchError::Option { option, what });
        }
    }
    let mut net = Net::new(weights, options)?;
    let (batch, dtype, side) = (options.batch, options.dtype, config.image_size);
    let pixels = net.input(io::CLIP_INPUT, dtype, &[batch, config.num_channels, side, side])?;
    let images = net.input(io::IMAGES, dtype, &[batch, size[0], size[1], 3])?;
    let adjustment = net.input(io::ADJUSTMENT, dtype, &[1])?;

    let embedding = encode(&mut net, config, pixels)?;
    let scores = scores(&mut net, config, embedding, adjustment)?;
    let flagged = any_above_zero(&mut net, scores, "concept")?;
    let per_image = [int(batch)?, 1, 1, 1];
    let has = net.cast(flagged, DType::F32, "has_concepts")?;
    let has = net.reshape(has, &per_image, io::HAS_NSFW_CONCEPTS)?;
    let clear = net.op("logical_not").arg("x", flagged).named("is_clear").add()?;
    let clear = net.cast(clear, dtype, "clear")?;
    let clear = net.reshape(clear, &per_image, "clear_images")?;
    let name = net.result_name(io::FILTERED_IMAGES);
    let filtered = net.op("mul").arg("x", images).arg("y", clear).named(&name).add()?;
    let filtered = net.output(filtered, io::FILTERED_IMAGES)?;
    net.finish(&[filtered, has, scores])
}

/// The image's embedding (batch, projection_dim).
fn encode(net: &mut Net, config: &Config, pixels: ValueId) -> Result<ValueId, ArchError> {
    let bare = net.has_weight("vision_model.embeddings.class_embedding");
    let prefix = if bare { "vision_model" } else { "vision_model.vision_model" };
    let (batch, hidden) = (net.shape(pixels)[0], config.hidden_size);
    let embeddings = format!("{prefix}.embeddings");
    let id = identifier(&embeddings);
    let patches = net.patches(pixels, &format!("{embeddings}.patch_embedding"), hidden, config.patch_size)?;
    let flat = net.reshape(patches, &[int(batch)?, int(hidden)?, -1], &format!("{id}_flat"))?;
    let patches = net.transpose(flat, &[0, 2, 1], &format!("{id}_patches"))?;
    let class = net.weight(&format!("{embeddings}.class_embedding"), &[hidden])?;
    let class = net.add_weight(class.reshape([1, 1, hidden])?);
    // Needed for one image too: coremltools can't read back a weight inside a list argument.
    let class = net.op("tile").arg("x", class).arg("reps", [int(batch)?, 1, 1]);
    let class = class.named(&format!("{id}_classes")).add()?;
    let tokens = net.concat(&[class, patches], 1, &format!("{id}_tokens"))?;
    let positions =
        net.weight(&format!("{embeddings}.position_embedding.weight"), &[config.positions(), hidden])?;
    let positions = net.add_weight(positions.reshape([1, config.positions(), hidden])?);
    let x = net.sum(tokens, positions, &id)?;

    let norm = |net: &mut Net, x, module: &str| {
        let path = format!("{prefix}.{module}");
        net.layer_norm(x, &path, -1, config.layer_norm_eps, &identifier(&path))
    };
    // The name is misspelt in every checkpoint.
    let mut x = norm(net, x, "pre_layrnorm")?;
    for index in 0..config.num_hidden_layers {
        let path = format!("{prefix}.encoder.layers.{index}");
        x = config.layers().build(net, &path, x, None, &identifier(&path))?;
    }
    let op = net.op("slice_by_index").arg("x", x).arg("begin", [0, 0, 0]);
    let op = op.arg("end", [int(batch)?, 1, int(hidden)?]).arg("end_mask", [true, false, true]);
    let class = op.arg("squeeze_mask", [false, true, false]).named("class_state").add()?;
    let pooled = norm(net, class, "post_layernorm")?;
    net.linear(pooled, "visual_projection", config.projection_dim, Bias::No, "image_embeds")
}

/// The scores of the concepts (batch, 17), `fp32`.
fn scores(
    net: &mut Net,
    config: &Config,
    embedding: ValueId,
    adjustment: ValueId,
) -> Result<ValueId, ArchError> {
    let embedding = widened(net, embedding, "image_embeds_fp32")?;
    let embedding = normalized(net, embedding, "image_embeds_normalized")?;
    let adjustment = widened(net, adjustment, "adjustment_fp32")?;
    let mut excess = |name: &str, count: usize, result: &str| {
        let concepts = net.float_weight(name, &[count, config.projection_dim])?.cast(DType::F32);
        let concepts = net.add_weight(concepts);
        let concepts = normalized(net, concepts, &format!("{name}_normalized"))?;
        let thresholds = net.float_weight(&format!("{name}_weights"), &[count])?.cast(DType::F32);
        let thresholds = net.add_weight(thresholds);
        let cosines = net.matmul(embedding, concepts, [false, true], &format!("{name}_cosines"))?;
        Ok::<_, ArchError>(net.op("sub").arg("x", cosines).arg("y", thresholds).named(result).add()?)
    };
    let special = excess("special_care_embeds", SPECIAL_CARE_CONCEPTS, "special_excess")?;
    let concepts = excess("concept_embeds", CONCEPTS, "concept_excess")?;
    let special = net.sum(special, adjustment, "special_scores")?;
    let care = any_above_zero(net, special, "special")?;
    let care = net.cast(care, DType::F32, "special_care")?;
    let care = net.op("mul").arg("x", care).arg("y", SPECIAL_CARE).named("special_adjustment").add()?;
    net.sum(concepts, care, io::CONCEPT_SCORES)
}

/// Rows divided by their L2 norms.
fn normalized(net: &mut Net, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
    let part = |part: &str| format!("{name}_{part}");
    let norm = net.op("reduce_l2_norm").arg("x", x).arg("axes", [1]).arg("keep_dims", true);
    let norm = norm.named(&part("norm")).add()?;
    let norm = net.op("maximum").arg("x", norm).arg("y", LEAST_NORM).named(&part("divisor")).add()?;
    Ok(net.op("real_div").arg("x", x).arg("y", norm).named(name).add()?)
}

/// The rows that have a value above 0, as booleans (batch, 1).
fn any_above_zero(net: &mut Net, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
    let part = |part: &str| format!("{name}_{part}");
    let above = net.op("greater").arg("x", x).arg("y", 0.0).named(&part("is_above")).add()?;
    let above = net.cast(above, DType::F32, &part("above"))?;
    let count = net.op("reduce_sum").arg("x", above).arg("axes", [1]).arg("keep_dims", true);
    let count = count.named(&part("count")).add()?;
    Ok(net.op("greater").arg("x", count).arg("y", 0.0).named(&part("is_any")).add()?)
}

fn widened(net: &mut Net, x: ValueId, name: &str) -> Result<ValueId, ArchError> {
    if net.dtype() == DType::F32 { Ok(x) } else { net.cast(x, DType::F32, name) }
}
