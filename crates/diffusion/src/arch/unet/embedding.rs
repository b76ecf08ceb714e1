//! The time embedding: one vector for the timestep and the other conditions of the residual blocks.

use mixbit_mil::{DType, ValueId, identifier};

use super::super::heads::Heads;
use super::super::layers::{Activation, Bias, Net, int};
use super::super::{ArchError, AttentionImplementation, GraphOptions, io};
use super::{Addition, ClassLabels, Config};

/// The longest period of the sinusoids, in timesteps over 2π.
const MAX_PERIOD: f64 = 10000.0;

/// The sum of all embeddings (batch, channels, 1, 1), before the final activation with `act_fn`.
pub(super) fn build(
    net: &mut Net,
    config: &Config,
    options: &GraphOptions,
    timestep: ValueId,
    text: Option<ValueId>,
) -> Result<ValueId, ArchError> {
    let time = &config.time;
    let batch = options.batch;
    let mut x = time_sinusoid(net, config, timestep, "time_proj")?;
    x = column(net, x, "time_proj")?;
    if let Some(channels) = time.condition {
        let condition = net.input(io::TIMESTEP_COND, options.dtype, &[batch, channels])?;
        let condition = column(net, condition, "timestep_cond")?;
        let condition = net.project(condition, "time_embedding.cond_proj", time.sinusoid, Bias::No)?;
        x = net.sum(x, condition, "time_proj_conditioned")?;
    }
    x = two_layers(net, "time_embedding", x, time.channels, config.act_fn)?;
    if let Some(activation) = time.post_act {
        x = net.activate(x, activation, "time_embedding_post_act")?;
    }
    if let Some(class) = class_embedding(net, config, options)? {
        x = match config.class_embeddings_concat {
            true => net.concat(&[x, class], 1, "time_and_class")?,
            false => net.sum(x, class, "time_and_class")?,
        };
    }
    let added = match config.addition {
        Some(Addition::Text { heads }) => Some(pooled_text(net, config, text, heads)?),
        Some(Addition::TextTime { sinusoid, channels }) => {
            Some(text_time(net, config, options, sinusoid, channels)?)
        }
        None => None,
    };
    if let Some(added) = added {
        x = net.sum(x, added, "time_and_addition")?;
    }
    match time.sum_act {
        Some(activation) => net.activate(x, activation, "time_embed_act"),
        None => Ok(x),
    }
}

/// The prompt embeddings, projected to the channels of the attention if the model has a projection.
pub(super) fn project_text(
    net: &mut Net,
    config: &Config,
    text: Option<ValueId>,
) -> Result<Option<ValueId>, ArchError> {
    match (text, config.text_projection) {
        (Some(text), Some(channels)) => net.project(text, "encoder_hid_proj", channels, Bias::Yes).map(Some),
        (text, _) => Ok(text),
    }
}

/// Sines and cosines of timesteps (n): (n, channels).
fn time_sinusoid(net: &mut Net, config: &Config, numbers: ValueId, id: &str) -> Result<ValueId, ArchError> {
    let time = &config.time;
    if !time.fourier {
        return sinusoid(net, config, numbers, time.sinusoid, id);
    }
    let half = time.sinusoid / 2;
    let table = net.float_weight("time_proj.weight", &[half])?.reshape([1, half])?.cast(DType::F32);
    let table = net.add_weight(table);
    let turns = multiply(net, numbers, table, &format!("{id}_turns"))?;
    let phase = net.op("mul").arg("x", turns).arg("y", std::f64::consts::TAU);
    let phase = phase.named(&format!("{id}_phase")).add()?;
    sines(net, phase, time.flip_sin_to_cos, id)
}

/// Sines and cosines (n, channels) of numbers (n), at frequencies that fall from 1 to about 1/10000.
fn sinusoid(
    net: &mut Net,
    config: &Config,
    numbers: ValueId,
    channels: usize,
    id: &str,
) -> Result<ValueId, ArchError> {
    let half = channels / 2;
    let table = net.floats(DType::F32, &[1, half], &frequencies(half, config.time.freq_shift))?;
    let phase = multiply(net, numbers, table, &format!("{id}_phase"))?;
    sines(net, phase, config.time.flip_sin_to_cos, id)
}

/// Numbers (n) times frequencies (1, half), always in `fp32`. At timestep 1000 a phase in `fp16` is off by up
/// to a quarter of a radian.
fn multiply(net: &mut Net, numbers: ValueId, table: ValueId, name: &str) -> Result<ValueId, ArchError> {
    let numbers = match net.dtype() {
        DType::F32 => numbers,
        _ => net.cast(numbers, DType::F32, &format!("{name}_fp32"))?,
    };
    let numbers =
        net.op("expand_dims").arg("x", numbers).arg("axes", [1]).named(&format!("{name}_column")).add()?;
    Ok(net.op("mul").arg("x", numbers).arg("y", table).named(name).add()?)
}

/// Sines, then cosines, of phases (n, half), in the compute type. `flip` puts the cosines first.
fn sines(net: &mut Net, phase: ValueId, flip: bool, id: &str) -> Result<ValueId, ArchError> {
    let name = |part: &str| format!("{id}_{part}");
    let half = net.channels(phase);
    let sine = net.op("sin").arg("x", phase).named(&name("sin")).add()?;
    let cosine = net.op("cos").arg("x", phase).named(&name("cos")).add()?;
    let mut x = net.concat(&[sine, cosine], -1, &name("sin_cos"))?;
    if flip {
        let rows = int(net.shape(x)[0])?;
        let (half, channels) = (int(half)?, int(2 * half)?);
        let op = net.op("slice_by_index").arg("x", x).arg("begin", [0, half]).arg("end", [rows, channels]);
        let cosine = op.arg("end_mask", [true, true]).named(&name("second")).add()?;
        let op = net.op("slice_by_index").arg("x", x).arg("begin", [0, 0]).arg("end", [rows, half]);
        let sine = op.arg("end_mask", [true, false]).named(&name("first")).add()?;
        x = net.concat(&[cosine, sine], -1, &name("cos_sin"))?;
    }
    match net.dtype() {
        DType::F32 => Ok(x),
        dtype => net.cast(x, dtype, &name("cast")),
    }
}

/// `exp(-ln(10000) i / (half - shift))`, with PyTorch's roundings to `fp32`.
fn frequencies(half: usize, shift: f64) -> Vec<f64> {
    let factor = -(MAX_PERIOD.ln()) as f32;
    let divisor = (half as f64 - shift) as f32;
    (0..half).map(|index| f64::from(factor * index as f32 / divisor).exp()).collect()
}

/// A matrix (batch, channels) as (batch, channels, 1, 1).
fn column(net: &mut Net, x: ValueId, id: &str) -> Result<ValueId, ArchError> {
    let x = net.op("expand_dims").arg("x", x).arg("axes", [-1]).named(&format!("{id}_expanded")).add()?;
    Ok(net.op("expand_dims").arg("x", x).arg("axes", [-1]).named(&format!("{id}_image")).add()?)
}

/// `TimestepEmbedding`: two linear layers with an activation between them.
fn two_layers(
    net: &mut Net,
    path: &str,
    x: ValueId,
    out: usize,
    activation: Activation,
) -> Result<ValueId, ArchError> {
    let x = net.project(x, &format!("{path}.linear_1"), out, Bias::Yes)?;
    let x = net.activate(x, activation, &format!("{}_act", identifier(path)))?;
    net.project(x, &format!("{path}.linear_2"), out, Bias::Yes)
}

/// The embedding of `class_labels`, (batch, channels, 1, 1).
fn class_embedding(
    net: &mut Net,
    config: &Config,
    options: &GraphOptions,
) -> Result<Option<ValueId>, ArchError> {
    const PATH: &str = "class_embedding";
    let Some(labels) = config.class_labels else { return Ok(None) };
    let (batch, out) = (options.batch, config.time.channels);
    let mut input = |dtype, shape: &[usize]| net.input(io::CLASS_LABELS, dtype, shape);
    let embedding = match labels {
        ClassLabels::Index(classes) => {
            let numbers = input(DType::F32, &[batch])?;
            let numbers = net.cast(numbers, DType::I32, "class_numbers")?;
            let table = net.weight(&format!("{PATH}.weight"), &[classes, out])?;
            let table = net.add_weight(table);
            let op =
                net.op("gather").arg("x", table).arg("indices", numbers).arg("axis", 0).arg("batch_dims", 0);
            let rows = op.named(PATH).add()?;
            column(net, rows, PATH)?
        }
        ClassLabels::Timestep => {
            let numbers = input(options.dtype, &[batch])?;
            let x = time_sinusoid(net, config, numbers, "class_proj")?;
            let x = column(net, x, "class_proj")?;
            two_layers(net, PATH, x, out, config.act_fn)?
        }
        ClassLabels::Identity => {
            let x = input(options.dtype, &[batch, out])?;
            column(net, x, PATH)?
        }
        ClassLabels::Projection(channels) => {
            let x = input(options.dtype, &[batch, channels])?;
            let x = column(net, x, PATH)?;
            two_layers(net, PATH, x, out, Activation::Silu)?
        }
        ClassLabels::SimpleProjection(channels) => {
            let x = input(options.dtype, &[batch, channels])?;
            let x = column(net, x, PATH)?;
            net.project(x, PATH, out, Bias::Yes)?
        }
    };
    Ok(Some(embedding))
}

/// Stable Diffusion XL's embedding of `text_embeds` and `time_ids`.
fn text_time(
    net: &mut Net,
    config: &Config,
    options: &GraphOptions,
    channels_each: usize,
    channels: usize,
) -> Result<ValueId, ArchError> {
    let (batch, count) = (options.batch, options.time_ids);
    let text_channels = count.checked_mul(channels_each).and_then(|taken| channels.checked_sub(taken));
    let Some(text_channels) = text_channels.filter(|&text| text > 0 && count > 0) else {
        let what =
            format!("{count} sinusoids of {channels_each} leave nothing of {channels} channels for the text");
        return Err(ArchError::Option { option: "time_ids", what });
    };
    let ids = net.input(io::TIME_IDS, options.dtype, &[batch, count])?;
    let text = net.input(io::TEXT_EMBEDS, options.dtype, &[batch, text_channels])?;
    let numbers = net.reshape(ids, &[int(batch * count)?], "time_ids_flat")?;
    let sinusoids = sinusoid(net, config, numbers, channels_each, "add_time_proj")?;
    let sinusoids = net.reshape(sinusoids, &[int(batch)?, -1], "add_time_proj_joined")?;
    let x = net.concat(&[text, sinusoids], -1, "text_and_time")?;
    let x = column(net, x, "text_and_time")?;
    two_layers(net, "add_embedding", x, config.time.channels, Activation::Silu)
}

/// `TextTimeEmbedding`: the prompt embeddings, pooled by attention with their mean as the query.
fn pooled_text(
    net: &mut Net,
    config: &Config,
    text: Option<ValueId>,
    heads: usize,
) -> Result<ValueId, ArchError> {
    const EPSILON: f64 = 1e-5;
    let field = "addition_embed_type";
    let text = text.ok_or_else(|| ArchError::config(field, "\"text\" needs a model with text"))?;
    let channels = net.channels(text);
    if !channels.is_multiple_of(heads) {
        let what = format!("{heads} heads don't divide {channels} channels");
        return Err(ArchError::config("addition_embed_type_num_heads", what));
    }
    let states = net.layer_norm(text, "add_embedding.norm1", 1, EPSILON, "add_embedding_norm1")?;
    let mean = net.op("reduce_mean").arg("x", states).arg("axes", [3]).arg("keep_dims", true);
    let mean = mean.named("add_embedding_mean").add()?;
    let position = net.weight("add_embedding.pool.positional_embedding", &[1, channels])?;
    let position = net.add_weight(position.reshape([1, channels, 1, 1])?);
    let class = net.sum(mean, position, "add_embedding_class")?;
    let states = net.concat(&[class, states], 3, "add_embedding_states")?;
    let query = net.project(class, "add_embedding.pool.q_proj", channels, Bias::Yes)?;
    let key = net.project(states, "add_embedding.pool.k_proj", channels, Bias::Yes)?;
    let value = net.project(states, "add_embedding.pool.v_proj", channels, Bias::Yes)?;
    let heads = Heads { count: heads, upcast: true };
    let implementation = AttentionImplementation::Original;
    let pooled = heads.attend(net, implementation, [query, key, value], "add_embedding_pool")?;
    let x = net.project(pooled, "add_embedding.proj", config.time.channels, Bias::Yes)?;
    net.layer_norm(x, "add_embedding.norm2", 1, EPSILON, "add_embedding_norm2")
}
