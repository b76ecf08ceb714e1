//! The tensors a network needs, found by building it over placeholder weights.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mixbit_mil::{Bytes, DType, Function, TensorType, WeightError, WeightRef, Weights};

use super::{ArchError, Config, GraphOptions, safety_checker, text_encoder, unet, vae};

/// The largest placeholder tensor, several times larger than any published one.
const MAX_BYTES: usize = 1 << 29;

/// The names and shapes of the checkpoint tensors that `build` requires.
///
/// `build` runs once, over placeholder weights that have every tensor. The placeholders are zeros, which take
/// no memory until they are read. Names follow diffusers, and transformers before version 5.
///
/// # Errors
/// Those of `build`.
pub fn required_tensors(
    build: impl FnOnce(&dyn Weights) -> Result<Function, ArchError>,
) -> Result<BTreeMap<String, Vec<usize>>, ArchError> {
    let recorder = Recorder::default();
    build(&recorder)?;
    Ok(recorder.state.into_inner().unwrap_or_else(PoisonError::into_inner).shapes)
}

impl Config {
    /// The names and shapes of the checkpoint tensors of a network with this configuration. `pooled` is the
    /// number of channels of the UNet's pooled prompt embeddings.
    ///
    /// # Errors
    /// The fields of the configuration don't fit each other.
    pub fn tensors(&self, pooled: usize) -> Result<BTreeMap<String, Vec<usize>>, ArchError> {
        let mut options = GraphOptions::default();
        match self {
            Config::TextEncoder(config) => {
                options.tokens = config.max_position_embeddings.min(options.tokens);
                required_tensors(|weights| {
                    text_encoder::build(config, weights, &options, text_encoder::Outputs::LAST)
                })
            }
            Config::Unet(config) => {
                options.time_ids = config.time_id_count(pooled)?.unwrap_or_default();
                required_tensors(|weights| unet::build(config, weights, &options))
            }
            Config::ControlNet(config) => {
                options.time_ids = config.unet.time_id_count(pooled)?.unwrap_or_default();
                required_tensors(|weights| unet::control::build(config, weights, &options))
            }
            Config::Vae(config) => {
                let mut tensors = required_tensors(|weights| vae::build_encoder(config, weights, &options))?;
                tensors.extend(required_tensors(|weights| vae::build_decoder(config, weights, &options))?);
                Ok(tensors)
            }
            Config::SafetyChecker(config) => {
                required_tensors(|weights| safety_checker::build(config, weights, &options, [512, 512]))
            }
        }
    }
}

/// Placeholder weights that record every required tensor.
#[derive(Default)]
struct Recorder {
    state: Mutex<State>,
}

struct State {
    zeros: Bytes,
    shapes: BTreeMap<String, Vec<usize>>,
}

impl Default for State {
    fn default() -> Self {
        State { zeros: Bytes::new(Vec::new()), shapes: BTreeMap::new() }
    }
}

impl Weights for Recorder {
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }

    /// Returns `None`: optional look-ups only try other spellings of required names.
    fn get(&self, _: &str) -> Option<WeightRef> {
        None
    }

    fn require(&self, name: &str, shape: &[usize]) -> Result<WeightRef, WeightError> {
        let ty = TensorType::new(DType::F16, shape);
        let Some(len) = ty.byte_len().filter(|&len| len <= MAX_BYTES) else {
            let what = format!("shape {shape:?} is larger than any tensor");
            return Err(WeightError::View { name: name.to_string(), what });
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.zeros.len() < len {
            state.zeros = Bytes::new(vec![0u8; len.next_power_of_two()]);
        }
        let bytes = state.zeros.slice(0..len).unwrap_or_else(|| state.zeros.clone());
        state.shapes.insert(name.to_string(), shape.to_vec());
        WeightRef::new(name, ty, bytes)
    }
}
