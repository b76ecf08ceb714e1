//! Tests of the networks' structure. `tests/networks.rs` tests their results.

mod configs;
mod refusals;
mod structure;

use std::collections::BTreeMap;

use mixbit_mil::{Bytes, DType, Function, TensorType, WeightError, WeightRef, Weights, verify};
use serde_json::Value;

use super::*;

/// Weights of zeros with the given names and shapes.
struct Zeros(BTreeMap<String, Vec<usize>>);

impl Weights for Zeros {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        let ty = TensorType::new(DType::F32, self.0.get(name)?.clone());
        let bytes = Bytes::new(vec![0u8; ty.byte_len()?]);
        WeightRef::new(name, ty, bytes).ok()
    }
}

/// The graph to build of a class.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Text(text_encoder::Outputs),
    Unet,
    ControlNet,
    Decoder,
    Encoder,
    SafetyChecker,
}

/// Builds and verifies the given part of `class`.
fn build(
    class: &str,
    part: Part,
    config: &Value,
    weights: &dyn Weights,
    options: &GraphOptions,
) -> Result<Function, ArchError> {
    let function = match (lookup(class)?.config(config)?, part) {
        (Config::TextEncoder(config), Part::Text(outputs)) => {
            text_encoder::build(&config, weights, options, outputs)
        }
        (Config::Unet(config), Part::Unet) => unet::build(&config, weights, options),
        (Config::ControlNet(config), Part::ControlNet) => unet::control::build(&config, weights, options),
        (Config::Vae(config), Part::Decoder) => vae::build_decoder(&config, weights, options),
        (Config::Vae(config), Part::Encoder) => vae::build_encoder(&config, weights, options),
        (Config::SafetyChecker(config), Part::SafetyChecker) => {
            safety_checker::build(&config, weights, options, [8 * options.height, 8 * options.width])
        }
        (config, part) => panic!("{class} has no {part:?}: {config:?}"),
    }?;
    verify(&function)?;
    Ok(function)
}

/// The tensors that a part needs.
fn tensors(class: &str, part: Part, config: &Value, options: &GraphOptions) -> BTreeMap<String, Vec<usize>> {
    required_tensors(|weights| build(class, part, config, weights, options)).unwrap()
}

/// Builds a part over zeros of the required shapes.
fn build_over_zeros(class: &str, part: Part, config: &Value, options: &GraphOptions) -> Function {
    let weights = Zeros(tensors(class, part, config, options));
    build(class, part, config, &weights, options).unwrap()
}

/// The number of occurrences of each op.
fn histogram(function: &Function) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for op in function.ops() {
        *counts.entry(op.def.name).or_insert(0) += 1;
    }
    counts
}

/// The names and shapes of the inputs, or outputs, of a function.
fn signature(function: &Function, values: &[mixbit_mil::ValueId]) -> Vec<(String, DType, Vec<usize>)> {
    let one = |&id: &mixbit_mil::ValueId| {
        let value = function.value(id);
        (value.name.clone(), value.ty.dtype, value.ty.shape.clone())
    };
    values.iter().map(one).collect()
}
