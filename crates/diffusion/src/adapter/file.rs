//! The layers of an adapter's file: its tensors, gathered by the module that they change.

use std::collections::BTreeMap;

use mixbit_mil::{WeightRef, Weights};
use serde_json::Value;

use super::change::{Change, Factors, Operand, extent, floats};
use super::error::AdapterError;

/// A part of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Down,
    Up,
    Mid,
    Alpha,
    /// The magnitudes of DoRA, as LyCORIS and kohya have them.
    Magnitude,
    /// The magnitudes of DoRA, as PEFT has them: one for each output.
    PeftMagnitude,
    Hadamard1A,
    Hadamard1B,
    Hadamard1Core,
    Hadamard2A,
    Hadamard2B,
    Hadamard2Core,
    Kronecker1,
    Kronecker1A,
    Kronecker1B,
    Kronecker2,
    Kronecker2A,
    Kronecker2B,
    Kronecker2Core,
    Difference,
    BiasDifference,
}

/// The ends of tensors' names. Of several that fit, the first counts.
static ENDS: &[(&str, Part)] = &[
    // kohya, LyCORIS, OneTrainer.
    (".lora_down.weight", Part::Down),
    (".lora_up.weight", Part::Up),
    (".lora_mid.weight", Part::Mid),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::Magnitude),
    (".hada_w1_a", Part::Hadamard1A),
    (".hada_w1_b", Part::Hadamard1B),
    (".hada_t1", Part::Hadamard1Core),
    (".hada_w2_a", Part::Hadamard2A),
    (".hada_w2_b", Part::Hadamard2B),
    (".hada_t2", Part::Hadamard2Core),
    (".lokr_w1", Part::Kronecker1),
    (".lokr_w1_a", Part::Kronecker1A),
    (".lokr_w1_b", Part::Kronecker1B),
    (".lokr_w2", Part::Kronecker2),
    (".lokr_w2_a", Part::Kronecker2A),
    (".lokr_w2_b", Part::Kronecker2B),
    (".lokr_t2", Part::Kronecker2Core),
    (".diff", Part::Difference),
    (".diff_b", Part::BiasDifference),
    (".w_norm", Part::Difference),
    (".b_norm", Part::BiasDifference),
    // diffusers before PEFT.
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    ("_lora.alpha", Part::Alpha),
];

/// PEFT's parts, which the adapter's name may follow.
static PEFT: &[(&str, Part)] =
    &[(".lora_A.", Part::Down), (".lora_B.", Part::Up), (".lora_magnitude_vector", Part::PeftMagnitude)];

/// Marks of kinds of adapters that are not supported.
static UNSUPPORTED: &[(&str, &str)] = &[
    (".boft_", "BOFT"),
    (".oft_blocks", "OFT"),
    (".oft_diag", "OFT"),
    (".oft_R", "OFT"),
    (".oft_r.", "OFT"),
    (".on_input", "IA3"),
    (".ia3_l", "IA3"),
    (".a1.weight", "GLoRA"),
    (".vera_lambda", "VeRA"),
    (".lora_embedding_", "token embedding"),
    (".diff_multipliers", "T-LoRA"),
];

/// A layer of an adapter.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// The module's name in the file.
    pub(super) name: String,
    /// The change of its weight.
    pub(super) weight: Option<Change>,
    /// The change of its bias.
    pub(super) bias: Option<WeightRef>,
    /// The factor of the weight's change: `alpha / rank`.
    pub(super) scale: f32,
    /// The magnitudes of DoRA.
    pub(super) magnitude: Option<Magnitude>,
}

/// The magnitudes of DoRA.
#[derive(Clone, Debug)]
pub(super) struct Magnitude {
    pub(super) values: WeightRef,
    /// True if there is one for each input channel, not for each output channel.
    pub(super) by_input: bool,
}

/// The layers of a file, and the names of tensors that belong to none.
pub(super) type Layers = (Vec<Layer>, Vec<String>);

/// Gathers a file's layers. `metadata` is what it says of itself.
///
/// # Errors
/// [`AdapterError::NoAdapter`], [`AdapterError::Unsupported`], [`AdapterError::Malformed`].
pub(super) fn layers(
    weights: &dyn Weights,
    metadata: &BTreeMap<String, String>,
) -> Result<Layers, AdapterError> {
    let mut modules: BTreeMap<String, BTreeMap<Part, WeightRef>> = BTreeMap::new();
    let mut others = Vec::new();
    for name in weights.names() {
        if let Some((_, kind)) = UNSUPPORTED.iter().find(|(mark, _)| name.contains(mark)) {
            return Err(AdapterError::Unsupported { kind, tensor: name.to_string() });
        }
        match (split(name), weights.get(name)) {
            (Some((module, part)), Some(weight)) => {
                modules.entry(module.to_string()).or_default().insert(part, weight);
            }
            _ => others.push(name.to_string()),
        }
    }
    if modules.is_empty() {
        return Err(AdapterError::NoAdapter { first: others.into_iter().next() });
    }
    let alphas = PeftAlphas::of(metadata);
    let mut layers = Vec::new();
    for (module, parts) in modules {
        match layer(&module, &parts, &alphas)? {
            Some(layer) => layers.push(layer),
            None => others.push(module),
        }
    }
    Ok((layers, others))
}

/// The module and the part of a tensor's name.
fn split(name: &str) -> Option<(&str, Part)> {
    if let Some((at, part)) = PEFT.iter().find_map(|(mark, part)| Some((name.find(mark)?, *part))) {
        return Some((&name[..at], part));
    }
    ENDS.iter().find_map(|(end, part)| Some((name.strip_suffix(end)?, *part)))
}

/// A layer of its parts; `None` if they are none by themselves, such as an `alpha` alone.
fn layer(
    name: &str,
    parts: &BTreeMap<Part, WeightRef>,
    alphas: &PeftAlphas,
) -> Result<Option<Layer>, AdapterError> {
    let malformed = |what: String| AdapterError::Malformed { layer: name.to_string(), what };
    let integers = |weight: &&WeightRef| !weight.ty().dtype.is_float();
    if parts.values().any(|weight| integers(&weight)) {
        return Err(malformed("its numbers are integers".to_string()));
    }
    let weight = change(parts).map_err(malformed)?;
    let bias = parts.get(&Part::BiasDifference).cloned();
    if weight.is_none() && bias.is_none() {
        return Ok(None);
    }
    let rank = match &weight {
        Some(weight) => weight.extent().map_err(malformed)?.0,
        None => None,
    };
    let alpha = match parts.get(&Part::Alpha) {
        Some(alpha) => floats(alpha)?.first().copied(),
        None => None,
    };
    let scale = match (alpha, rank) {
        (Some(alpha), Some(rank)) => alpha / rank.max(1) as f32,
        (None, Some(rank)) => alphas.scale(name, rank),
        (_, None) => 1.0,
    };
    if !scale.is_finite() {
        return Err(malformed(format!("its alpha is {}", alpha.unwrap_or(f32::NAN))));
    }
    let magnitude = match (parts.get(&Part::Magnitude), parts.get(&Part::PeftMagnitude)) {
        (Some(values), _) => {
            let shape = &values.ty().shape;
            let by_input = shape.len() > 1 && shape[0] == 1 && shape[1] > 1;
            Some(Magnitude { values: values.clone(), by_input })
        }
        (None, Some(values)) => Some(Magnitude { values: values.clone(), by_input: false }),
        (None, None) => None,
    };
    Ok(Some(Layer { name: name.to_string(), weight, bias, scale, magnitude }))
}

/// The change of a weight; `None` if no part of one is there.
fn change(parts: &BTreeMap<Part, WeightRef>) -> Result<Option<Change>, String> {
    let get = |part: Part| parts.get(&part).cloned();
    let pair = |left, right, core: Option<WeightRef>, by_rank: bool| match (get(left), get(right)) {
        (Some(left), Some(right)) => {
            Ok(Some(Factors { left, right, by_rank: by_rank && core.is_some(), core }))
        }
        (None, None) => Ok(None),
        _ => Err("one of its two factors is missing".to_string()),
    };
    if let Some(factors) = pair(Part::Up, Part::Down, get(Part::Mid), false)? {
        return Ok(Some(Change::LowRank(factors)));
    }
    let one = pair(Part::Hadamard1A, Part::Hadamard1B, get(Part::Hadamard1Core), true)?;
    let other = pair(Part::Hadamard2A, Part::Hadamard2B, get(Part::Hadamard2Core), true)?;
    match (one, other) {
        (Some(one), Some(other)) => return Ok(Some(Change::Hadamard(one, other))),
        (None, None) => {}
        _ => return Err("one of the two products of LoHa is missing".to_string()),
    }
    let operand = |whole, left, right, core| match get(whole) {
        Some(whole) => Ok(Some(Operand::Full(whole))),
        None => Ok::<_, String>(pair(left, right, core, true)?.map(Operand::Product)),
    };
    let one = operand(Part::Kronecker1, Part::Kronecker1A, Part::Kronecker1B, None)?;
    let core = get(Part::Kronecker2Core);
    let other = operand(Part::Kronecker2, Part::Kronecker2A, Part::Kronecker2B, core)?;
    match (one, other) {
        (Some(one), Some(other)) => return Ok(Some(Change::Kronecker(one, other))),
        (None, None) => {}
        _ => return Err("one of the two operands of LoKr is missing".to_string()),
    }
    Ok(get(Part::Difference).map(Change::Full))
}

impl Layer {
    /// The number of input channels that its weight has.
    pub(super) fn inputs(&self) -> Option<usize> {
        match self.weight.as_ref()? {
            Change::LowRank(Factors { right, .. }) => right.ty().shape.get(1).copied(),
            Change::Full(weight) => Some(extent(weight)[1]),
            other => Some(other.extent().ok()?.1[1]),
        }
    }
}

/// What diffusers and PEFT write of the scales of their adapters, apart from the tensors.
struct PeftAlphas {
    fields: Value,
}

impl PeftAlphas {
    /// `metadata` has it as `lora_adapter_metadata`, or PEFT's configuration as `adapter_config`.
    fn of(metadata: &BTreeMap<String, String>) -> Self {
        let read = |key: &str| serde_json::from_str(metadata.get(key)?).ok();
        let fields = ["lora_adapter_metadata", super::PEFT_CONFIG].into_iter().find_map(read);
        PeftAlphas { fields: fields.unwrap_or(Value::Null) }
    }

    /// The factor of a layer without `alpha`.
    fn scale(&self, module: &str, rank: usize) -> f32 {
        let Value::Object(fields) = &self.fields else { return 1.0 };
        // diffusers puts the component before each name.
        let components = ["unet.", "text_encoder_2.", "text_encoder."];
        let own = components.into_iter().find(|prefix| module.starts_with(prefix)).unwrap_or("");
        let field = |name: &str| fields.get(&format!("{own}{name}")).or_else(|| fields.get(name));
        let inside = &module[own.len()..];
        let pattern = field("alpha_pattern").and_then(Value::as_object).and_then(|patterns| {
            let fits = |name: &str| inside == name || inside.ends_with(&format!(".{name}"));
            patterns.iter().find(|(name, _)| fits(name)).map(|(_, alpha)| alpha)
        });
        let alpha = pattern.or_else(|| field("lora_alpha")).and_then(Value::as_f64);
        let is_rs = field("use_rslora").and_then(Value::as_bool).unwrap_or(false);
        let rank = if is_rs { (rank as f64).sqrt() } else { rank as f64 };
        alpha.map_or(1.0, |alpha| (alpha / rank.max(1.0)) as f32)
    }
}
