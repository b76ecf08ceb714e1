//! Reading `scheduler_config.json`.
//!
//! Every class declares its fields, with their defaults and what they may be, as a table of [`Field`]s next to its
//! code. One reader validates a configuration against that table, so that a constructor only looks values up.
//!
//! A field is honoured, refused by name, or ignored. Ignored are: names that start with an underscore, fields that
//! only other classes have (diffusers keeps them in the file when a class is exchanged for another), and fields that
//! no class is known to have but whose value is `null` or `false`, which is how a new option is switched off.

use serde_json::{Map, Value};

use super::sigmas::SigmaSchedule;
use super::spacing::TimestepSpacing;
use super::{SCHEDULERS, Scheduler, SchedulerEntry, StepInput};
use crate::random::TorchSource;

/// Most training timesteps and inference steps that are accepted; the published models have 1000.
const MAX_TIMESTEPS: i64 = 100_000;

/// Fields of diffusers' other scheduler classes and of early versions, which the classes here ignore as diffusers
/// does.
const FOREIGN_FIELDS: &[&str] =
    &["noise_sampler_seed", "rho", "sigma_data", "sigma_schedule", "tensor_format", "timestep_values"];

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration is not a JSON object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// The configuration has no `_class_name`.
    #[error("the scheduler configuration has no `_class_name`")]
    NoClass,
    /// The class or command-line name is not in the table.
    #[error("unknown scheduler `{name}`; the known ones are {known}")]
    UnknownScheduler {
        /// The name that was asked for.
        name: String,
        /// The known names of that kind, separated by commas.
        known: String,
    },
    /// A field that no class is known to have.
    #[error("the scheduler field `{field}` = {value} is not known for {class}")]
    UnknownField {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// The class.
        class: &'static str,
    },
    /// An override of a field that the chosen class does not have.
    #[error("the scheduler {class} has no `{field}`")]
    NoSuchOption {
        /// The field.
        field: &'static str,
        /// The class.
        class: &'static str,
    },
    /// A value that the class does not take, or that mixbit does not support.
    #[error("the scheduler field `{field}` = {value} of {class} {reason}")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The class.
        class: &'static str,
        /// What is wrong, e.g. "is not a number".
        reason: String,
    },
    /// A number of steps that the configuration cannot give.
    #[error("{class} cannot run {steps} steps: {reason}")]
    BadSteps {
        /// The number that was asked for.
        steps: usize,
        /// The class.
        class: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// A field of a scheduler class: its diffusers name, its default and what it may be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    /// The name in `scheduler_config.json`.
    pub name: &'static str,
    /// The default and the accepted values.
    pub kind: Kind,
}

/// The default of a [`Field`] and what it may be.
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
        /// Words that diffusers takes for another one.
        aliases: &'static [(&'static str, &'static str)],
    },
    /// `false` or `null`: a feature that is refused by name when it is on.
    Off,
    /// Without effect, because the feature that it belongs to is refused, or because the class does not read it.
    Inert,
}

/// A [`Field`] in short.
pub(super) const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind }
}

/// An on/off [`Field`].
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

/// `prediction_type` of the classes that have all three.
pub(super) const PREDICTION: [Field; 1] =
    [choice("prediction_type", "epsilon", &["epsilon", "v_prediction", "sample"])];

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

/// The beta schedules that most classes have.
pub(super) const BETA_SCHEDULES: &[&str] = &["linear", "scaled_linear", "squaredcos_cap_v2"];

/// The betas of most classes.
pub(super) const BETAS: [Field; 5] = betas(0.0001, 0.02, "linear", BETA_SCHEDULES);

/// `timestep_spacing` and `steps_offset`, with the class's own default spacing.
pub(super) const fn spacing(default: &'static str) -> [Field; 2] {
    [
        choice("timestep_spacing", default, &["linspace", "leading", "trailing"]),
        field("steps_offset", Kind::Integer { default: 0, min: 0, max: MAX_TIMESTEPS }),
    ]
}

/// The three sigma schedules that every class with sigmas has.
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

/// The flow-matching and learned-variance options of the DPM-Solver family, none of which a Stable Diffusion 1, 2 or
/// XL model uses.
pub(super) const FLOW: [Field; 4] = [
    field("use_flow_sigmas", Kind::Off),
    field("flow_shift", Kind::Inert),
    field("use_dynamic_shifting", Kind::Off),
    field("time_shift_type", Kind::Inert),
];

/// A validated scheduler configuration: a class and the values of its fields.
///
/// It keeps the fields of the file that only other classes have, for [`SchedulerConfig::with_scheduler`].
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    entry: &'static SchedulerEntry,
    values: Map<String, Value>,
}

impl SchedulerConfig {
    /// The defaults of a class, with what the entry presets.
    pub fn new(entry: &'static SchedulerEntry) -> SchedulerConfig {
        let mut config = SchedulerConfig { entry, values: Map::new() };
        config.apply_presets();
        config
    }

    /// The configuration of a parsed `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// An unknown `_class_name`, an unknown field, or a value that is refused; each by name.
    pub fn from_json(json: &Value) -> Result<SchedulerConfig, SchedulerError> {
        let values = json.as_object().ok_or(SchedulerError::NotAnObject)?;
        let class = values.get("_class_name").and_then(Value::as_str).ok_or(SchedulerError::NoClass)?;
        let entry = SCHEDULERS.iter().find(|entry| entry.class == class).ok_or_else(|| {
            SchedulerError::UnknownScheduler { name: class.to_owned(), known: known(|entry| entry.class) }
        })?;
        let config = SchedulerConfig { entry, values: values.clone() };
        config.validate()?;
        Ok(config)
    }

    /// The same configuration under another scheduler, as diffusers' `from_config`: fields that both classes have
    /// carry over, the others take the new class's defaults.
    ///
    /// `name` is a name or alias of [`SCHEDULERS`], or a diffusers class name, and may end in `-karras`,
    /// `-exponential`, `-beta` or `-lu` to choose the sigma schedule too.
    ///
    /// # Errors
    ///
    /// An unknown name, a sigma schedule that the class does not have, or a value that the new class refuses.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        let unknown =
            || SchedulerError::UnknownScheduler { name: name.to_owned(), known: known(|entry| entry.name) };
        let (entry, sigmas) = match find(name) {
            Some(entry) => (entry, None),
            None => {
                let (base, suffix) = name.rsplit_once('-').ok_or_else(unknown)?;
                let sigmas = SigmaSchedule::parse(suffix).ok_or_else(unknown)?;
                (find(base).ok_or_else(unknown)?, Some(sigmas))
            }
        };
        let mut config = SchedulerConfig { entry, values: self.values.clone() };
        config.apply_presets();
        if let Some(sigmas) = sigmas {
            config.set_sigmas(sigmas)?;
        }
        config.validate()?;
        Ok(config)
    }

    /// The row of the table that this is a configuration of.
    pub fn entry(&self) -> &'static SchedulerEntry {
        self.entry
    }

    /// Overrides the timestep spacing.
    ///
    /// # Errors
    ///
    /// If the class has no spacing.
    pub fn set_timestep_spacing(&mut self, spacing: TimestepSpacing) -> Result<(), SchedulerError> {
        self.set("timestep_spacing", spacing.name().into())
    }

    /// Overrides the sigma schedule.
    ///
    /// # Errors
    ///
    /// If the class does not have the schedule.
    pub fn set_sigmas(&mut self, sigmas: SigmaSchedule) -> Result<(), SchedulerError> {
        for other in SigmaSchedule::ALL {
            if let Some(name) = other.field()
                && (other == sigmas || self.has(name))
            {
                self.set(name, (other == sigmas).into())?;
            }
        }
        Ok(())
    }

    /// The sigma schedule.
    ///
    /// # Errors
    ///
    /// If the configuration turns on two.
    pub fn sigmas(&self) -> Result<SigmaSchedule, SchedulerError> {
        SigmaSchedule::of(self)
    }

    /// Overrides one field.
    ///
    /// # Errors
    ///
    /// If the class does not have the field, or refuses the value.
    pub fn set(&mut self, name: &'static str, value: Value) -> Result<(), SchedulerError> {
        let class = self.entry.class;
        let field = self.declared(name).ok_or(SchedulerError::NoSuchOption { field: name, class })?;
        field.check(&value, class)?;
        self.values.insert(name.to_owned(), value);
        Ok(())
    }

    /// The scheduler for a number of inference steps.
    ///
    /// # Errors
    ///
    /// A number of steps, or a combination of fields, that the class cannot run; found by a trial on two numbers where
    /// no rule names it.
    pub fn build(&self, steps: usize) -> Result<Box<dyn Scheduler>, SchedulerError> {
        let train = self.training_steps();
        if steps == 0 || steps > train {
            return Err(self.bad_steps(steps, format!("it must be from 1 to {train}, the steps of training")));
        }
        if !stays_finite((self.entry.build)(self, steps)?) {
            return Err(self.bad_steps(steps, "this noise schedule leads to numbers that are not finite"));
        }
        (self.entry.build)(self, steps)
    }

    /// The timesteps that the model was trained on.
    pub fn training_steps(&self) -> usize {
        self.integer("num_train_timesteps")
    }

    /// What the model predicts, by diffusers' name: `epsilon`, `v_prediction` or `sample`.
    pub fn prediction_type(&self) -> &str {
        self.choice("prediction_type")
    }

    /// Whether the class has a field.
    pub(super) fn has(&self, name: &str) -> bool {
        self.declared(name).is_some()
    }

    /// An on/off field of the class.
    pub(super) fn bool(&self, name: &str) -> bool {
        match (self.value(name), self.kind(name)) {
            (Some(value), Kind::Bool(_)) => value.as_bool().unwrap_or(false),
            (None, Kind::Bool(default)) => default,
            (_, kind) => unreachable!("`{name}` is {kind:?}"),
        }
    }

    /// An integer field of the class. The declared ranges leave out negative values.
    pub(super) fn integer(&self, name: &str) -> usize {
        let Kind::Integer { default, .. } = self.kind(name) else {
            unreachable!("`{name}` is not an integer")
        };
        self.value(name).and_then(integer).unwrap_or(default) as usize
    }

    /// A number of the class.
    pub(super) fn number(&self, name: &str) -> f64 {
        let Kind::Number(default) = self.kind(name) else { unreachable!("`{name}` is not a number") };
        self.value(name).and_then(number).unwrap_or(default)
    }

    /// A number of the class that must be from 0 to 1.
    ///
    /// # Errors
    ///
    /// If it is not.
    pub(super) fn fraction(&self, name: &'static str) -> Result<f64, SchedulerError> {
        match self.number(name) {
            fraction if (0.0..=1.0).contains(&fraction) => Ok(fraction),
            _ => Err(self.bad_value(name, "is not from 0 to 1")),
        }
    }

    /// A number of the class that may be `null`.
    pub(super) fn optional_number(&self, name: &str) -> Option<f64> {
        self.value(name).and_then(number)
    }

    /// A list of numbers of the class; `None` for `null`.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        let list = self.value(name)?.as_array()?;
        Some(list.iter().filter_map(number).collect())
    }

    /// A word of the class, after aliases.
    pub(super) fn choice(&self, name: &str) -> &str {
        let Kind::Choice { default, aliases, .. } = self.kind(name) else {
            unreachable!("`{name}` is no choice")
        };
        let word = self.value(name).and_then(Value::as_str).unwrap_or(default);
        aliases.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, meaning)| meaning)
    }

    /// The error for a value that is refused only in combination with others.
    pub(super) fn bad_value(&self, name: &'static str, reason: impl Into<String>) -> SchedulerError {
        let value = self.value(name).map_or_else(|| "its default".to_owned(), Value::to_string);
        SchedulerError::BadValue { field: name, value, class: self.entry.class, reason: reason.into() }
    }

    /// The error for a number of steps that is refused.
    pub(super) fn bad_steps(&self, steps: usize, reason: impl Into<String>) -> SchedulerError {
        SchedulerError::BadSteps { steps, class: self.entry.class, reason: reason.into() }
    }

    fn apply_presets(&mut self) {
        for &(name, value) in self.entry.presets {
            self.values.insert(name.to_owned(), value.into());
        }
    }

    fn declared(&self, name: &str) -> Option<Field> {
        self.entry.fields().find(|field| field.name == name)
    }

    fn kind(&self, name: &str) -> Kind {
        self.declared(name).unwrap_or_else(|| unreachable!("{} declares no `{name}`", self.entry.class)).kind
    }

    fn value(&self, name: &str) -> Option<&Value> {
        debug_assert!(self.has(name), "{} declares no `{name}`", self.entry.class);
        self.values.get(name)
    }

    fn validate(&self) -> Result<(), SchedulerError> {
        let class = self.entry.class;
        for (name, value) in self.values.iter().filter(|(name, _)| !name.starts_with('_')) {
            if let Some(field) = self.declared(name) {
                field.check(value, class)?;
            } else if !(is_off(value)
                || FOREIGN_FIELDS.contains(&name.as_str())
                || SCHEDULERS.iter().flat_map(SchedulerEntry::fields).any(|field| field.name == name))
            {
                let (field, value) = (name.clone(), value.to_string());
                return Err(SchedulerError::UnknownField { field, value, class });
            }
        }
        Ok(())
    }
}

impl Field {
    /// Checks a value against what the field may be.
    fn check(&self, value: &Value, class: &'static str) -> Result<(), SchedulerError> {
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

fn is_off(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(false))
}

/// An integer, also as the float that some tools write.
fn integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().filter(|v| v.fract() == 0.0).map(|v| v as i64))
}

/// A number. Python writes infinities, which JSON has not; readers pass them on as strings.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::String(word) => match word.as_str() {
            "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
            "Infinity" | "inf" => Some(f64::INFINITY),
            _ => None,
        },
        _ => value.as_f64(),
    }
}

/// Runs a scheduler on two numbers, to see an infinite coefficient before a model has run for minutes.
fn stays_finite(mut scheduler: Box<dyn Scheduler>) -> bool {
    let mut noise = TorchSource::new(0);
    let mut sample = [1.0, -0.5].map(|x| x * scheduler.init_noise_sigma()).to_vec();
    (0..scheduler.timesteps().len()).all(|index| {
        let scaled = scheduler.scale_model_input(&sample, index);
        let model_output: Vec<f32> = scaled.iter().map(|x| 0.5 * x + 0.125).collect();
        let input = StepInput { index, model_output: &model_output, sample: &sample, images: 1 };
        sample = scheduler.step(input, &mut noise).previous;
        scaled.iter().chain(&sample).all(|x| x.is_finite())
    })
}

fn find(name: &str) -> Option<&'static SchedulerEntry> {
    SCHEDULERS.iter().find(|entry| entry.name == name || entry.class == name || entry.aliases.contains(&name))
}

fn known(name: impl Fn(&SchedulerEntry) -> &'static str) -> String {
    let mut names: Vec<&str> = SCHEDULERS.iter().map(name).collect();
    names.dedup();
    names.join(", ")
}
