//! CLIP text encoders: `CLIPTextModel` and `CLIPTextModelWithProjection`.

use mixbit_mil::{DType, Function, Literal, ValueId, Weights, identifier};
use serde_json::Value;

use super::clip::{self, Layers};
use super::fields::{Fields, MAX_EXTENT, MAX_LAYERS, as_count, short};
use super::layers::{Activation, Bias, Net, int};
use super::{ArchError, GraphOptions, io};

/// The maximum number of tokens, which limits the size of the causal mask.
const MAX_TOKENS: usize = 2048;
/// The mask value of later tokens. It is exact in `fp16` and makes their probability 0.
const MASKED: f64 = -1e4;

/// The configuration of a CLIP text encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Channels of the hidden states.
    pub hidden_size: usize,
    /// Channels inside the feed-forward layers.
    pub intermediate_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Attention heads of every layer.
    pub num_attention_heads: usize,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// The activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// The token of the pooled output.
    pub pooling: Pooling,
    /// Channels of the projected pooled output, if the class has a projection.
    pub projection_dim: Option<usize>,
}

/// The token whose hidden state becomes the pooled output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The first token with the highest id. Configurations with `eos_token_id` 2 use this rule.
    HighestId,
    /// The first token with this id.
    First(i32),
}

/// The outputs of a text encoder's graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outputs {
    /// Number of final layers that the hidden states skip; 0 selects the last layer.
    pub skipped_layers: usize,
    /// True if the final layer norm applies to the hidden states. The output is `last_hidden_state` with the
    /// norm and `hidden_embeds` without it.
    pub final_norm: bool,
    /// True if the graph has the output `pooled_outputs`. Without it, skipped layers are not built.
    pub pooled: bool,
}

impl Outputs {
    /// Stable Diffusion 1 and 2: the last layer, normalized.
    pub const LAST: Outputs = Outputs { skipped_layers: 0, final_norm: true, pooled: true };
    /// Stable Diffusion XL: the penultimate layer, not normalized.
    pub const PENULTIMATE: Outputs = Outputs { skipped_layers: 1, final_norm: false, pooled: true };

    /// The name of the output with the hidden states.
    pub fn hidden_name(self) -> &'static str {
        if self.final_norm { io::LAST_HIDDEN_STATE } else { io::HIDDEN_EMBEDS }
    }
}

impl Config {
    /// Reads the `config.json` of a `CLIPTextModel`.
    ///
    /// # Errors
    /// [`ArchError::Config`] with the field that is malformed or not supported.
    pub fn from_json(config: &Value) -> Result<Self, ArchError> {
        let mut fields = Self::fields(config)?;
        fields.ignore(&["projection_dim"]);
        Self::read(fields, None)
    }

    /// Reads the `config.json` of a `CLIPTextModelWithProjection`.
    ///
    /// # Errors
    /// As [`from_json`](Self::from_json).
    pub fn with_projection(config: &Value) -> Result<Self, ArchError> {
        let mut fields = Self::fields(config)?;
        let projection_dim = fields.count("projection_dim", 512, MAX_EXTENT)?;
        Self::read(fields, Some(projection_dim))
    }

    /// Channels of the pooled output.
    pub fn pooled_channels(&self) -> usize {
        self.projection_dim.unwrap_or(self.hidden_size)
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

    /// The text encoder's fields. A configuration of a whole CLIP holds them in `text_config`, where
    /// transformers looks for them too.
    fn fields(config: &Value) -> Result<Fields<'_>, ArchError> {
        match (config["model_type"].as_str(), &config["text_config"]) {
            (Some("clip"), text) if text.is_object() => Fields::of(text),
            _ => Fields::of(config),
        }
    }

    fn read(mut fields: Fields, projection_dim: Option<usize>) -> Result<Self, ArchError> {
        fields.only("model_type", "clip_text_model")?;
        fields.ignore(clip::UNRELATED);
        let config = Config {
            vocab_size: fields.count("vocab_size", 49408, MAX_EXTENT)?,
            hidden_size: fields.count("hidden_size", 512, MAX_EXTENT)?,
            intermediate_size: fields.count("intermediate_size", 2048, MAX_EXTENT)?,
            num_hidden_layers: fields.count("num_hidden_layers", 12, MAX_LAYERS)?,
            num_attention_heads: fields.count("num_attention_heads", 8, MAX_EXTENT)?,
            max_position_embeddings: fields.count("max_position_embeddings", 77, MAX_EXTENT)?,
            hidden_act: clip::activation(fields.text("hidden_act", "quick_gelu")?)?,
            layer_norm_eps: fields.positive("layer_norm_eps", 1e-5)?,
            pooling: pooling(fields.raw("eos_token_id"))?,
            projection_dim,
        };
        fields.finish()?;
        config.layers().check()?;
        Ok(config)
    }
}

fn pooling(eos_token_id: Option<&Value>) -> Result<Pooling, ArchError> {
    let Some(value) = eos_token_id else { return Ok(Pooling::First(49407)) };
    let id = match value {
        Value::Array(ids) if ids.len() == 1 => &ids[0],
        Value::Array(_) => {
            let what = format!("{} is not supported; supported: one id", short(value));
            return Err(ArchError::config("eos_token_id", what));
        }
        id => id,
    };
    match as_count("eos_token_id", id, i32::MAX as usize)? {
        2 if !value.is_array() => Ok(Pooling::HighestId),
        id => Ok(Pooling::First(int(id)?)),
    }
}

/// Builds the encoder.
///
/// The input is `input_ids` (batch, tokens), `fp32` as in Core ML. The outputs are the hidden states (batch,
/// tokens, hidden_size) and optionally `pooled_outputs` (batch, hidden_size or projection_dim), both `fp32`.
///
/// Uses `batch`, `tokens`, `dtype` and `opset` of `options`. The prefix `text_model.` of tensor names is
/// optional.
///
/// # Errors
/// A missing or misshapen tensor, or options that don't fit the configuration.
pub fn build(
    config: &Config,
    weights: &dyn Weights,
    options: &GraphOptions,
    outputs: Outputs,
) -> Result<Function, ArchError> {
    check(config, options, outputs)?;
    let mut net = Net::new(weights, options)?;
    let bare = "embeddings.token_embedding.weight";
    let prefix = if net.has_weight(bare) { "" } else { "text_model." };
    let ids = net.input(io::INPUT_IDS, DType::F32, &[options.batch, options.tokens])?;
    let ids = net.cast(ids, DType::I32, "token_ids")?;
    let mut x = embed(&mut net, config, &format!("{prefix}embeddings"), ids, options.tokens)?;
    let mask = causal_mask(&mut net, options.tokens)?;

    let hidden_layer = config.num_hidden_layers - outputs.skipped_layers;
    let layers = if outputs.pooled { config.num_hidden_layers } else { hidden_layer };
    let hidden_name = net.result_name(outputs.hidden_name());
    let mut hidden = x;
    for index in 0..layers {
        let path = format!("{prefix}encoder.layers.{index}");
        let is_output = index + 1 == hidden_layer && !outputs.final_norm;
        let name = if is_output { hidden_name.clone() } else { identifier(&path) };
        x = config.layers().build(&mut net, &path, x, Some(mask), &name)?;
        if index + 1 == hidden_layer {
            hidden = x;
        }
    }

    let norm = format!("{prefix}final_layer_norm");
    let epsilon = config.layer_norm_eps;
    if outputs.final_norm {
        hidden = net.layer_norm(hidden, &norm, -1, epsilon, &hidden_name)?;
    }
    let mut results = vec![net.output(hidden, outputs.hidden_name())?];
    if outputs.pooled {
        let last = match (outputs.final_norm, outputs.skipped_layers) {
            (true, 0) => hidden,
            _ => net.layer_norm(x, &norm, -1, epsilon, &identifier(&norm))?,
        };
        let pooled = pool(&mut net, config, last, ids)?;
        results.push(net.output(pooled, io::POOLED_OUTPUTS)?);
    }
    net.finish(&results)
}

fn check(config: &Config, options: &GraphOptions, outputs: Outputs) -> Result<(), ArchError> {
    let most = config.max_position_embeddings.min(MAX_TOKENS);
    if !(1..=most).contains(&options.tokens) {
        let what = format!("this text encoder takes 1 to {most} tokens, not {}", options.tokens);
        return Err(ArchError::Option { option: "tokens", what });
    }
    if !(1..=MAX_EXTENT).contains(&options.batch) {
        let what = format!("must be 1 to {MAX_EXTENT}, not {}", options.batch);
        return Err(ArchError::Option { option: "batch", what });
    }
    if outputs.skipped_layers >= config.num_hidden_layers {
        let what = format!("can't skip {} of {} layers", outputs.skipped_layers, config.num_hidden_layers);
        return Err(ArchError::Option { option: "skipped_layers", what });
    }
    Ok(())
}

fn embed(
    net: &mut Net,
    config: &Config,
    path: &str,
    ids: ValueId,
    tokens: usize,
) -> Result<ValueId, ArchError> {
    let table =
        net.weight(&format!("{path}.token_embedding.weight"), &[config.vocab_size, config.hidden_size])?;
    let table = net.add_weight(table);
    let op = net.op("gather").arg("x", table).arg("indices", ids).arg("axis", 0).arg("batch_dims", 0);
    let embedded = op.named(&identifier(&format!("{path}.token_embedding"))).add()?;
    let position_name = format!("{path}.position_embedding.weight");
    let positions = net.weight(&position_name, &[config.max_position_embeddings, config.hidden_size])?;
    let positions =
        if tokens == config.max_position_embeddings { positions } else { positions.slice(0, 0, tokens)? };
    let positions = net.add_weight(positions.reshape([1, tokens, config.hidden_size])?);
    net.sum(embedded, positions, &identifier(path))
}

/// The causal mask [1, 1, tokens, tokens]: [`MASKED`] at later tokens, otherwise 0.
fn causal_mask(net: &mut Net, tokens: usize) -> Result<ValueId, ArchError> {
    let mut mask = vec![0.0; tokens * tokens];
    for row in 0..tokens {
        mask[row * tokens + row + 1..(row + 1) * tokens].fill(MASKED);
    }
    net.floats(net.dtype(), &[1, 1, tokens, tokens], &mask)
}

/// The end-of-text token's hidden state (batch, channels), projected if the class has a projection.
fn pool(net: &mut Net, config: &Config, states: ValueId, ids: ValueId) -> Result<ValueId, ArchError> {
    let scores = match config.pooling {
        Pooling::HighestId => ids,
        Pooling::First(id) => {
            let matches = net.op("equal").arg("x", ids).arg("y", id).named("is_eos").add()?;
            net.cast(matches, DType::I32, "eos_score")?
        }
    };
    let position = net.op("reduce_argmax").arg("x", scores).arg("axis", -1).arg("keep_dims", false);
    let position = position.named("eos_position").add()?;
    let batch = net.shape(states)[0];
    let rows: Vec<i32> = (0..int(batch)?).collect();
    let rows = net.literal(Literal::ints(&rows));
    let indices =
        net.op("stack").arg("values", [rows, position]).arg("axis", 1).named("eos_indices").add()?;
    let pooled_name = net.result_name(io::POOLED_OUTPUTS);
    let name = if config.projection_dim.is_some() { "eos_state" } else { pooled_name.as_str() };
    let op = net.op("gather_nd").arg("x", states).arg("indices", indices).arg("batch_dims", 0);
    let pooled = op.named(name).add()?;
    match config.projection_dim {
        Some(out) => net.linear(pooled, "text_projection", out, Bias::No, &pooled_name),
        None => Ok(pooled),
    }
}
