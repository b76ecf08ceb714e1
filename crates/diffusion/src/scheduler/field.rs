//! The fields of scheduler classes: names, defaults and accepted values.

use serde_json::Value;

use super::error::SchedulerError;
use super::words::{Prediction, TimestepSpacing, Word};

/// The upper limit of training timesteps and of inference steps; published models have 1000 timesteps.
const MAX_TIMESTEPS: i64 = 100_000;

/// A field of a scheduler class: its diffusers name, default and accepted values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// The name in `scheduler_config.json`.
    pub name: &'static str,
    /// The default and the accepted values.
    pub kind: Kind,
}

/// The default and the accepted values of a [`Field`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// `true` or `false`; `null` is `false`.
    Bool(bool),
    /// An integer in a range.
    Integer {
        /// The default.
        default: i64,
        /// The smallest accepted value.
        min: i64,
        /// The largest accepted value.
        max: i64,
    },
    /// A finite number, or the default.
    Number(f64),
    /// A finite number or `null`, the default.
    OptionalNumber,
    /// A list of numbers or `null`, the default.
    Numbers,
    /// One of a set of words.
    Choice {
        /// The default.
        default: &'static str,
        /// The accepted words.
        options: &'static [&'static str],
        /// diffusers' aliases of words.
        aliases: &'static [(&'static str, &'static str)],
    },
    /// `false` or `null`; an unsupported feature is refused by name when on.
    Off,
    /// No effect: its feature is refused, or the class does not read it.
    Inert,
}

/// Builds a [`Field`].
pub(super) const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind }
}

/// A boolean [`Field`].
pub(super) const fn flag(name: &'static str, default: bool) -> Field {
    field(name, Kind::Bool(default))
}

/// A [`Field`] of words without aliases.
pub(super) const fn choice(
    name: &'static str,
    default: &'static str,
    options: &'static [&'static str],
) -> Field {
    field(name, Kind::Choice { default, options, aliases: &[] })
}

/// `solver_order`, from 1 to `max`.
pub(super) const fn solver_order(max: i64) -> Field {
    field("solver_order", Kind::Integer { default: 2, min: 1, max })
}

/// `prediction_type` for classes with all three types.
pub(super) const PREDICTION: [Field; 1] = [choice("prediction_type", "epsilon", Prediction::WORDS)];

/// The training betas, with the class's own defaults and schedules.
pub(super) const fn betas(
    start: f64,
    end: f64,
    schedule: &'static str,
    schedules: &'static [&'static str],
) -> [Field; 5] {
    [
        field("num_train_timesteps", Kind::Integer { default: 1000, min: 1, max: MAX_TIMESTEPS }),
        field("beta_start", Kind::Number(start)),
        field("beta_end", Kind::Number(end)),
        choice("beta_schedule", schedule, schedules),
        field("trained_betas", Kind::Numbers),
    ]
}

/// The beta schedules of most classes.
pub(super) const BETA_SCHEDULES: &[&str] = &["linear", "scaled_linear", "squaredcos_cap_v2"];

/// The betas of most classes.
pub(super) const BETAS: [Field; 5] = betas(0.0001, 0.02, "linear", BETA_SCHEDULES);

/// `timestep_spacing` and `steps_offset`, with the class's own default spacing.
pub(super) const fn spacing(default: &'static str) -> [Field; 2] {
    [
        choice("timestep_spacing", default, TimestepSpacing::WORDS),
        field("steps_offset", Kind::Integer { default: 0, min: 0, max: MAX_TIMESTEPS }),
    ]
}

/// The three sigma schedules of every sigma-based class.
pub(super) const SIGMAS: [Field; 3] =
    [flag("use_karras_sigmas", false), flag("use_exponential_sigmas", false), flag("use_beta_sigmas", false)];

/// The last sigma.
pub(super) const FINAL_SIGMA: [Field; 1] = [choice("final_sigmas_type", "zero", &["zero", "sigma_min"])];

/// Clipping of the predicted sample, with the class's own default.
pub(super) const fn clip(default: bool) -> [Field; 2] {
    [flag("clip_sample", default), field("clip_sample_range", Kind::Number(1.0))]
}

/// Dynamic thresholding of the predicted sample.
pub(super) const THRESHOLDING: [Field; 3] = [
    flag("thresholding", false),
    field("dynamic_thresholding_ratio", Kind::Number(0.995)),
    field("sample_max_value", Kind::Number(1.0)),
];

/// Rescaling to zero terminal SNR.
pub(super) const RESCALE_BETAS: [Field; 1] = [flag("rescale_betas_zero_snr", false)];

/// The flow-matching and learned-variance options of the DPM-Solver family. No Stable Diffusion 1, 2 or XL
/// model uses them.
pub(super) const FLOW: [Field; 4] = [
    field("use_flow_sigmas", Kind::Off),
    field("flow_shift", Kind::Inert),
    field("use_dynamic_shifting", Kind::Off),
    field("time_shift_type", Kind::Inert),
];

impl Field {
    /// Checks a value against the field's accepted values.
    pub(super) fn check(&self, value: &Value, class: &'static str) -> Result<(), SchedulerError> {
        let refuse = |reason: String| {
            Err(SchedulerError::BadValue { field: self.name, value: value.to_string(), class, reason })
        };
        match self.kind {
            Kind::Bool(_) if !(value.is_boolean() || value.is_null()) => {
                refuse("is not true or false".into())
            }
            Kind::Integer { min, max, .. } if !integer(value).is_some_and(|v| (min..=max).contains(&v)) => {
                refuse(format!("is not an integer from {min} to {max}"))
            }
            Kind::Number(default) if !number(value).is_some_and(|v| v.is_finite() || v == default) => {
                refuse("is not a finite number".into())
            }
            Kind::OptionalNumber if !value.is_null() && !number(value).is_some_and(f64::is_finite) => {
                refuse("is neither a finite number nor null".into())
            }
            Kind::Numbers
                if !value.is_null()
                    && !value.as_array().is_some_and(|list| list.iter().all(|v| number(v).is_some())) =>
            {
                refuse("is neither a list of numbers nor null".into())
            }
            Kind::Choice { options, aliases, .. } => {
                let known = value
                    .as_str()
                    .is_some_and(|w| options.contains(&w) || aliases.iter().any(|(alias, _)| *alias == w));
                if known { Ok(()) } else { refuse(format!("is not one of {}", options.join(", "))) }
            }
            Kind::Off if !is_off(value) => refuse("is not supported".into()),
            _ => Ok(()),
        }
    }
}

pub(super) fn is_off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// An integer; accepts the floats that some tools write.
pub(super) fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|v| v.fract() == 0.0).map(|v| v as i64))
}

/// A number. Python writes infinities, which JSON lacks; readers pass them on as strings.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(word) => match word.as_str() {
            "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
            "Infinity" | "inf" => Some(f64::INFINITY),
            _ => None,
        },
        _ => value.as_f64(),
    }
}
