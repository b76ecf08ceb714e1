//! The reader of `scheduler_config.json`.
//!
//! Every class declares its fields, with defaults and accepted values, as a table of [`Field`]s next to its
//! code. One reader validates a configuration against that table, so a constructor only looks values up.
//!
//! A field is honoured, refused by name, or ignored. Names that start with an underscore are ignored. Fields
//! of other classes are ignored: diffusers keeps them in the file when one class replaces another. Unknown
//! fields are ignored if their value is `null` or `false`, which usually means a new option is off.

use serde_json::{Map, Value};

use super::error::SchedulerError;
use super::field::{Field, Kind, integer, is_off, number};
use super::names::{Choice, NamedScheduler, names_where, scheduler_of_name};
use super::words::{Prediction, SigmaSchedule, TimestepSpacing, Word};
use super::{SCHEDULERS, SchedulerEntry};

/// Fields of diffusers' other scheduler classes and of early versions. The classes here ignore them, as
/// diffusers does.
const FOREIGN_FIELDS: &[&str] = &["tensor_format", "timestep_values"];

/// The field of early versions that `prediction_type` replaced: true for the noise, false for the sample.
const PREDICT_EPSILON: &str = "predict_epsilon";

/// A validated scheduler configuration: a class and the values of its fields.
///
/// Fields of other classes in the file are kept for [`SchedulerConfig::with_scheduler`].
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    entry: &'static SchedulerEntry,
    values: Map<String, Value>,
    notes: Vec<String>,
}

impl SchedulerConfig {
    /// The defaults of a class, with the entry's presets.
    pub fn new(entry: &'static SchedulerEntry) -> SchedulerConfig {
        let mut config = SchedulerConfig { entry, values: Map::new(), notes: Vec::new() };
        config.apply_presets();
        config
    }

    /// The configuration of a parsed `scheduler_config.json`.
    ///
    /// # Errors
    ///
    /// An unknown `_class_name`, an unknown field, or a refused value; the error names it.
    pub fn from_json(json: &Value) -> Result<SchedulerConfig, SchedulerError> {
        let values = json.as_object().ok_or(SchedulerError::NotAnObject)?;
        let class = values.get("_class_name").and_then(Value::as_str).ok_or(SchedulerError::NoClass)?;
        let entry = SCHEDULERS.iter().find(|entry| entry.class == class).ok_or_else(|| {
            SchedulerError::UnknownClass { class: class.to_owned(), known: names_where(|_| true) }
        })?;
        let config = SchedulerConfig { entry, values: modern(values, entry.class)?, notes: Vec::new() };
        config.validate()?;
        Ok(config)
    }

    /// The configuration of a parsed `scheduler_config.json` of any class for the scheduler of a name, as
    /// [`with_scheduler`](Self::with_scheduler). What the file's own class would refuse does not matter.
    ///
    /// # Errors
    ///
    /// Those of [`with_scheduler`](Self::with_scheduler).
    pub fn from_json_with(json: &Value, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        let values = json.as_object().ok_or(SchedulerError::NotAnObject)?;
        SchedulerConfig::switched(values, scheduler_of_name(name)?)
    }

    /// The same configuration for another scheduler, like diffusers' `from_config`. Fields that both classes
    /// have carry over; the others take the new class's defaults.
    ///
    /// [`scheduler_of_name`] finds the scheduler, and the sigma schedule or spacing that the name asks for.
    ///
    /// # Errors
    ///
    /// An unknown name, a sigma schedule that the class does not have, or a value that the new class refuses.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        SchedulerConfig::switched(&self.values, scheduler_of_name(name)?)
    }

    fn switched(
        values: &Map<String, Value>,
        named: NamedScheduler,
    ) -> Result<SchedulerConfig, SchedulerError> {
        let entry = named.entry;
        let mut config = SchedulerConfig { entry, values: modern(values, entry.class)?, notes: Vec::new() };
        config.apply_presets();
        match named.variant.map(|variant| &variant.choice) {
            None => {}
            Some(Choice::Sigmas(schedule)) => config.set_sigmas(*schedule)?,
            Some(Choice::Spacing(spacing)) => config.set_timestep_spacing(*spacing)?,
        }
        config.validate()?;
        Ok(config)
    }

    /// Assumptions beyond the model's files, as sentences for people.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Adds a note.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// The configuration's row of the scheduler table.
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

    /// The timestep spacing; `None` for a class that has no choice.
    ///
    /// # Errors
    /// A spacing that the class does not have.
    pub fn spacing(&self) -> Result<Option<TimestepSpacing>, SchedulerError> {
        self.reads("timestep_spacing").then(|| self.timestep_spacing()).transpose()
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
    /// If the configuration enables two.
    pub fn sigmas(&self) -> Result<SigmaSchedule, SchedulerError> {
        let mut chosen = SigmaSchedule::Trained;
        for schedule in SigmaSchedule::ALL {
            let Some(field) = schedule.field().filter(|field| self.enabled(field)) else { continue };
            if chosen != SigmaSchedule::Trained {
                let reason = format!("excludes `{}`", chosen.field().unwrap_or_default());
                return Err(self.bad_value(field, reason));
            }
            chosen = schedule;
        }
        Ok(chosen)
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

    /// The number of training timesteps.
    pub fn training_steps(&self) -> usize {
        self.integer("num_train_timesteps")
    }

    /// Overrides the prediction type, by its name in [`PREDICTION_TYPES`](super::PREDICTION_TYPES). A class
    /// that lacks it refuses when it is built: another may take its place before.
    pub fn set_prediction_type(&mut self, name: &str) {
        self.values.insert("prediction_type".to_owned(), name.into());
    }

    /// The prediction type by diffusers' name: `epsilon`, `v_prediction` or `sample`.
    pub fn prediction_type(&self) -> &str {
        self.choice("prediction_type")
    }

    /// [`prediction_type`](Self::prediction_type), or `None` for a class that has only one.
    pub fn chosen_prediction_type(&self) -> Option<&str> {
        self.has("prediction_type").then(|| self.prediction_type())
    }

    /// The prediction type.
    ///
    /// # Errors
    ///
    /// As [`word`](Self::word).
    pub(super) fn prediction(&self) -> Result<Prediction, SchedulerError> {
        self.word("prediction_type")
    }

    /// The spacing of timesteps; even for a class that has no choice.
    ///
    /// # Errors
    ///
    /// As [`word`](Self::word).
    pub(super) fn timestep_spacing(&self) -> Result<TimestepSpacing, SchedulerError> {
        if self.has("timestep_spacing") {
            self.word("timestep_spacing")
        } else {
            Ok(TimestepSpacing::Linspace)
        }
    }

    /// True if the last sigma is the smallest of training instead of zero.
    pub(super) fn ends_at_sigma_min(&self) -> bool {
        self.has("final_sigmas_type") && self.choice("final_sigmas_type") == "sigma_min"
    }

    /// True if the class has this boolean field and it is on.
    pub(super) fn enabled(&self, name: &str) -> bool {
        self.has(name) && self.bool(name)
    }

    /// True if the class has this field and reads it.
    pub(crate) fn reads(&self, name: &str) -> bool {
        self.declared(name).is_some_and(|field| !matches!(field.kind, Kind::Inert))
    }

    /// True if the class has timestep spacings and takes this one.
    pub(crate) fn spacing_is(&self, spacing: TimestepSpacing) -> bool {
        self.reads("timestep_spacing") && self.timestep_spacing() == Ok(spacing)
    }

    /// True if the class has this field.
    pub(super) fn has(&self, name: &str) -> bool {
        self.declared(name).is_some()
    }

    /// A boolean field of the class.
    pub(super) fn bool(&self, name: &str) -> bool {
        match (self.value(name), self.kind(name)) {
            (Some(value), Kind::Bool(_)) => value.as_bool().unwrap_or(false),
            (None, Kind::Bool(default)) => default,
            (_, kind) => unreachable!("`{name}` is {kind:?}"),
        }
    }

    /// An integer field of the class. The declared ranges exclude negative values.
    pub(super) fn integer(&self, name: &str) -> usize {
        let Kind::Integer { default, .. } = self.kind(name) else {
            unreachable!("`{name}` is not an integer")
        };
        self.value(name).and_then(integer).unwrap_or(default) as usize
    }

    /// A number field of the class.
    pub(super) fn number(&self, name: &str) -> f64 {
        let Kind::Number(default) = self.kind(name) else { unreachable!("`{name}` is not a number") };
        self.value(name).and_then(number).unwrap_or(default)
    }

    /// A number field of the class that must lie between 0 and 1.
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

    /// A number field of the class that may be `null`.
    pub(super) fn optional_number(&self, name: &str) -> Option<f64> {
        self.value(name).and_then(number)
    }

    /// A list field of the class; `None` for `null`.
    pub(super) fn numbers(&self, name: &str) -> Option<Vec<f64>> {
        let list = self.value(name)?.as_array()?;
        Some(list.iter().filter_map(number).collect())
    }

    /// A word field of the class, with aliases resolved.
    pub(super) fn choice(&self, name: &str) -> &str {
        let Kind::Choice { default, aliases, .. } = self.kind(name) else {
            unreachable!("`{name}` is no choice")
        };
        let word = self.value(name).and_then(Value::as_str).unwrap_or(default);
        aliases.iter().find(|(alias, _)| *alias == word).map_or(word, |(_, meaning)| meaning)
    }

    /// A word field of the class as an enum variant.
    ///
    /// # Errors
    ///
    /// If the enum has no such word.
    pub(super) fn word<W: Word>(&self, name: &'static str) -> Result<W, SchedulerError> {
        let word = self.choice(name);
        let known = W::ALL.iter().find(|known| known.word() == word);
        known.copied().ok_or_else(|| self.bad_value(name, "is not supported"))
    }

    /// The error for a value that is refused only in combination with other fields.
    pub(super) fn bad_value(&self, name: &'static str, reason: impl Into<String>) -> SchedulerError {
        let value = self.value(name).map_or_else(|| "its default".to_owned(), Value::to_string);
        SchedulerError::BadValue { field: name, value, class: self.entry.class, reason: reason.into() }
    }

    /// The error for a refused number of steps.
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

    /// Checks the values of the class's fields. Unknown fields are refused in a file of the class itself; in
    /// another class's they are that one's.
    pub(super) fn validate(&self) -> Result<(), SchedulerError> {
        let class = self.entry.class;
        let is_own = self.values.get("_class_name").and_then(Value::as_str).is_none_or(|own| own == class);
        for (name, value) in self.values.iter().filter(|(name, _)| !name.starts_with('_')) {
            if let Some(field) = self.declared(name) {
                field.check(value, class)?;
            } else if is_own
                && !(is_off(value)
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

/// The values with the fields of early versions replaced.
fn modern(values: &Map<String, Value>, class: &'static str) -> Result<Map<String, Value>, SchedulerError> {
    let mut values = values.clone();
    let Some(old) = values.remove(PREDICT_EPSILON) else { return Ok(values) };
    let prediction = match old {
        Value::Null => return Ok(values),
        Value::Bool(true) => Prediction::Epsilon,
        Value::Bool(false) => Prediction::Original,
        _ => {
            let (value, reason) = (old.to_string(), "is not true or false".to_owned());
            return Err(SchedulerError::BadValue { field: PREDICT_EPSILON, value, class, reason });
        }
    };
    values.entry("prediction_type").or_insert_with(|| prediction.word().into());
    Ok(values)
}
