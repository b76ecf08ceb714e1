//! What a checkpoint says of its training: what the UNet predicts, and over which noise.

use std::collections::BTreeMap;
use std::fmt;

use mixbit_mil::{DType, Weights};
use serde_json::{Value, json};

use super::structure::Tensors;

/// The tensor whose spread tells the two Stable Diffusion 2 models apart, and the spread above which the UNet
/// predicts v. ComfyUI tells them by it.
const TELLING: (&str, f32) = ("output_blocks.11.1.transformer_blocks.0.norm1.bias", 0.09);

/// What a UNet was trained to predict, and how that is known.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Training {
    /// By its name in [`PREDICTION_TYPES`](crate::scheduler::PREDICTION_TYPES), if the file says it.
    pub prediction_type: Option<&'static str>,
    /// True if the last timestep is noise alone: zero terminal signal-to-noise ratio (arXiv 2305.08891).
    pub zero_terminal_snr: bool,
    /// The noise of models that are trained over sigmas (arXiv 2206.00364).
    pub edm: Option<Edm>,
    /// What says so.
    pub source: Option<&'static str>,
}

/// The noise of a model that is trained over sigmas.
#[derive(Clone, Debug, PartialEq)]
pub struct Edm {
    /// The standard deviation of the latents.
    pub sigma_data: f64,
    /// The most noise.
    pub sigma_max: f64,
    /// The least noise.
    pub sigma_min: f64,
    /// Mean and standard deviation of each latent channel, where latents are normalized by them.
    pub moments: Option<[Vec<f32>; 2]>,
}

const KEYS: &str = "marker keys";
const METADATA: &str = "metadata";
const YAML: &str = "the .yaml beside it";
const WEIGHTS: &str = "its weights";

/// The key under which [`Training`] finds what the `.yaml` beside a `.ckpt` says of the prediction.
pub const PARAMETERIZATION: &str = "parameterization";

impl Training {
    /// What the file says: marker keys first, then metadata, then for Stable Diffusion 2 its weights.
    pub(super) fn of(
        file: &dyn Weights,
        metadata: &BTreeMap<String, String>,
        unet: &Tensors,
        is_second: bool,
    ) -> Training {
        let from = |training: Training, source| Training { source: Some(source), ..training };
        if let Some(training) = of_keys(file) {
            return from(training, KEYS);
        }
        if let Some(training) = of_metadata(metadata) {
            return from(training, METADATA);
        }
        if let Some("v") = metadata.get(PARAMETERIZATION).map(String::as_str) {
            return from(Training { prediction_type: Some("v_prediction"), ..Training::default() }, YAML);
        }
        match is_second.then(|| spread(unet)).flatten() {
            Some(spread) => {
                let prediction = if spread > TELLING.1 { "v_prediction" } else { "epsilon" };
                from(Training { prediction_type: Some(prediction), ..Training::default() }, WEIGHTS)
            }
            None => Training::default(),
        }
    }

    /// A scheduler's configuration for this training.
    pub(super) fn scheduler(&self, own: Value) -> Value {
        let mut scheduler = own;
        if let Some(edm) = &self.edm {
            return edm.scheduler(self.prediction_type.unwrap_or("epsilon"));
        }
        if let (Value::Object(fields), Some(prediction)) = (&mut scheduler, self.prediction_type) {
            fields.insert("prediction_type".to_string(), prediction.into());
        }
        if let (Value::Object(fields), true) = (&mut scheduler, self.zero_terminal_snr) {
            fields.insert("rescale_betas_zero_snr".to_string(), true.into());
        }
        scheduler
    }
}

impl Edm {
    /// The scheduler that diffusers has for models of this kind: Playground's if latents are normalized,
    /// else CosXL's.
    fn scheduler(&self, prediction_type: &str) -> Value {
        let own = json!({
            "num_train_timesteps": 1000,
            "prediction_type": prediction_type,
            "rho": 7.0,
            "sigma_data": self.sigma_data,
            "sigma_max": self.sigma_max,
            "sigma_min": self.sigma_min,
        });
        let added = match self.moments {
            Some(_) => json!({
                "_class_name": "EDMDPMSolverMultistepScheduler",
                "algorithm_type": "dpmsolver++",
                "euler_at_final": false,
                "final_sigmas_type": "zero",
                "lower_order_final": true,
                "solver_order": 2,
                "solver_type": "midpoint",
            }),
            None => json!({"_class_name": "EDMEulerScheduler", "sigma_schedule": "exponential"}),
        };
        let fields = [added, own].into_iter().filter_map(|value| value.as_object().cloned()).flatten();
        Value::Object(fields.collect())
    }
}

impl fmt::Display for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if let Some(edm) = &self.edm {
            parts.push(format!("EDM noise of {} to {}", edm.sigma_min, edm.sigma_max));
        }
        match (self.prediction_type, self.zero_terminal_snr) {
            (Some(prediction), zero) => {
                let name = match prediction {
                    "v_prediction" => "v-prediction",
                    "sample" => "sample prediction",
                    other => other,
                };
                parts.push(format!("{name}{}", if zero { " with zero-terminal SNR" } else { "" }));
            }
            (None, true) => parts.push("zero-terminal SNR".to_string()),
            (None, false) => {}
        }
        f.write_str(&parts.join(", "))?;
        match self.source {
            Some(source) if !parts.is_empty() => write!(f, " ({source})"),
            _ => Ok(()),
        }
    }
}

/// What the marker keys of Stable Diffusion XL's fine-tunes say. Their presence counts, and of sigmas and
/// moments their values.
fn of_keys(file: &dyn Weights) -> Option<Training> {
    let one = |name: &str| floats(file, name).and_then(|values| values.first().copied());
    let both = |names: [&str; 2]| Some([floats(file, names[0])?, floats(file, names[1])?]);
    if let Some(moments) = both(["edm_mean", "edm_std"]) {
        let edm = Edm { sigma_data: 0.5, sigma_max: 80.0, sigma_min: 0.002, moments: Some(moments) };
        return Some(Training { edm: Some(edm), ..Training::default() });
    }
    if let Some(sigma_max) = one("edm_vpred.sigma_max") {
        let sigma_min = one("edm_vpred.sigma_min").unwrap_or(0.002);
        let [sigma_max, sigma_min] = [sigma_max, sigma_min].map(shortest);
        let edm = Edm { sigma_data: 1.0, sigma_max, sigma_min, moments: None };
        return Some(Training {
            prediction_type: Some("v_prediction"),
            edm: Some(edm),
            ..Training::default()
        });
    }
    let [predicts_v, zero_terminal_snr] = ["v_pred", "ztsnr"].map(|name| file.get(name).is_some());
    (predicts_v || zero_terminal_snr).then(|| Training {
        prediction_type: predicts_v.then_some("v_prediction"),
        zero_terminal_snr,
        ..Training::default()
    })
}

/// What `modelspec` and kohya's trainers write.
fn of_metadata(metadata: &BTreeMap<String, String>) -> Option<Training> {
    let text = |name: &str| metadata.get(name).map(|value| value.to_ascii_lowercase());
    let is_true = |name: &str| text(name).is_some_and(|value| value == "true" || value == "1");
    let key = ["modelspec.predict_key", "modelspec.prediction_type"].iter().find_map(|name| text(name));
    let prediction_type = match key.as_deref() {
        Some("v" | "v_prediction" | "v-prediction" | "vpred") => Some("v_prediction"),
        Some("epsilon" | "eps" | "noise") => Some("epsilon"),
        Some("x0" | "sample") => Some("sample"),
        _ if is_true("ss_v_parameterization") => Some("v_prediction"),
        _ => text("modelspec.architecture")
            .filter(|architecture| architecture.ends_with("-v"))
            .map(|_| "v_prediction"),
    };
    let zero_terminal_snr = is_true("ss_zero_terminal_snr");
    (prediction_type.is_some() || zero_terminal_snr).then(|| Training {
        prediction_type,
        zero_terminal_snr,
        ..Training::default()
    })
}

/// The standard deviation of the tensor that tells.
fn spread(unet: &Tensors) -> Option<f32> {
    let values = floats(unet.weights, &unet.full_name(TELLING.0))?;
    let count = values.len().max(1) as f32;
    let mean = values.iter().sum::<f32>() / count;
    Some((values.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / count).sqrt())
}

/// A small tensor's elements.
pub(super) fn floats(file: &dyn Weights, name: &str) -> Option<Vec<f32>> {
    /// The most elements of a tensor that says something of the model.
    const MOST: usize = 1 << 16;
    let weight = file.get(name).filter(|weight| weight.ty().checked_count().is_some_and(|it| it <= MOST))?;
    let weight = weight.cast(DType::F32);
    let bytes = weight.read().ok()?;
    Some(
        bytes
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect(),
    )
}

/// The shortest decimal number that is this one in single precision.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
