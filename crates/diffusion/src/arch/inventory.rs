//! What tensors a network needs, found by building it over weights that are not there.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mixbit_mil::{Bytes, DType, Function, TensorType, WeightError, WeightRef, Weights};

use super::{ArchError, Config, GraphOptions, safety_checker, text_encoder, unet, vae};

/// The largest tensor that is stood in for; several times any published one.
const MAX_BYTES: usize = 1 << 29;

/// The names and shapes of every checkpoint tensor that `build` asks for.
///
/// `build` is run once, over weights that have any tensor it asks for, of zeros that take no memory until
/// they are read. Names are those that diffusers, and transformers before version 5, give.
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
    /// The names and shapes of every checkpoint tensor of a network of this configuration. `pooled` is the
    /// width of the pooled text that a UNet takes.
    ///
    /// # Errors
    /// If the fields of the configuration don't fit each other.
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

/// Weights that have every tensor, and remember which were asked for.
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

    /// Nothing: what is looked up without need is another spelling of a required name.
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
