//! The scheduler of a model's files.

use serde_json::{Map, Value, json};

use super::{ModelError, ModelFiles, pipeline};
use crate::scheduler::{
    SCHEDULERS, SchedulerConfig, SchedulerEntry, SchedulerError, TimestepSpacing, Training, names_where,
};

/// The fields that Stable Diffusion's models need and old configurations lack. diffusers' pipelines set the
/// first two, whatever the file says.
const NEEDED: [(&str, NeededValue); 6] = [
    ("clip_sample", NeededValue::Bool(false)),
    ("steps_offset", NeededValue::Number(1.0)),
    ("set_alpha_to_one", NeededValue::Bool(false)),
    ("beta_start", NeededValue::Number(0.00085)),
    ("beta_end", NeededValue::Number(0.012)),
    ("beta_schedule", NeededValue::Text("scaled_linear")),
];

/// The number of leading fields of [`NEEDED`] that diffusers' pipelines set.
const CORRECTED: usize = 2;

#[derive(Clone, Copy)]
enum NeededValue {
    Bool(bool),
    Number(f64),
    Text(&'static str),
}

impl NeededValue {
    fn json(self) -> Value {
        match self {
            NeededValue::Bool(value) => json!(value),
            NeededValue::Number(value) if value.fract() == 0.0 => json!(value as u64),
            NeededValue::Number(value) => json!(value),
            NeededValue::Text(value) => json!(value),
        }
    }
}

/// The scheduler of a model's files. It is read when a request needs it, because a request may take another.
#[derive(Clone, Debug)]
pub struct ModelScheduler {
    file: Value,
    /// The names of fields that replace those of the file, or are added to it.
    corrected: Vec<&'static str>,
}

impl ModelScheduler {
    /// The scheduler of a parsed `scheduler_config.json`.
    pub fn new(file: Value) -> Self {
        ModelScheduler { file, corrected: Vec::new() }
    }

    /// The scheduler of a model. As in diffusers, the class is that of `model_index.json`, and the pipelines
    /// of Stable Diffusion 1 and 2 correct old configurations.
    ///
    /// # Errors
    /// [`ModelError::File`] if the file is absent or malformed.
    pub fn from_files(files: &dyn ModelFiles) -> Result<Self, ModelError> {
        let mut scheduler =
            ModelScheduler::new(files.json("scheduler", "scheduler_config.json").map_err(ModelError::File)?);
        let Value::Object(values) = &mut scheduler.file else { return Ok(scheduler) };
        if let Some(class) = files.component("scheduler").filter(|class| class.ends_with("Scheduler")) {
            values.insert("_class_name".to_string(), class.into());
        }
        if pipeline::corrects_schedulers(files.class()) {
            for (name, value) in &NEEDED[..CORRECTED] {
                if values.get(*name) != Some(&value.json()) {
                    values.insert(name.to_string(), value.json());
                    scheduler.corrected.push(name);
                }
            }
        }
        Ok(scheduler)
    }

    /// Overrides the prediction type, by its name in
    /// [`PREDICTION_TYPES`](crate::scheduler::PREDICTION_TYPES).
    pub fn set_prediction_type(&mut self, name: &str) {
        if let Value::Object(values) = &mut self.file {
            values.insert("prediction_type".to_string(), name.into());
        }
    }

    /// The file, with the class and the values that count.
    pub fn file(&self) -> &Value {
        &self.file
    }

    /// The model's own scheduler.
    ///
    /// # Errors
    /// A class that mixbit does not have, or a value that it does not support.
    pub fn config(&self) -> Result<SchedulerConfig, SchedulerError> {
        // A field of another class changes nothing.
        let (file, added) = match self.entry() {
            Some(entry) if entry.training == Training::Diffusion => self.completed(&NEEDED[..1]),
            _ => (self.file.clone(), Vec::new()),
        };
        let mut config = SchedulerConfig::from_json(&file)?;
        self.note_assumed(&mut config, &added);
        Ok(config)
    }

    /// The scheduler of a name for this model. Absent fields take the values that Stable Diffusion needs, and
    /// a note says so.
    ///
    /// # Errors
    /// An unknown name, a scheduler for models of another training, or a value that it does not support.
    pub fn with_scheduler(&self, name: &str) -> Result<SchedulerConfig, SchedulerError> {
        let (file, added) = self.completed(&NEEDED);
        let mut config = SchedulerConfig::from_json_with(&file, name)?;
        let (own, chosen) = (self.entry(), config.entry());
        if let Some(own) = own.filter(|own| own.training != chosen.training) {
            if matches!(own.training, Training::Flow | Training::Edm) {
                return Err(SchedulerError::OtherTraining {
                    class: own.class,
                    training: own.training.name(),
                    name: chosen.name,
                    fitting: names_where(|entry| entry.training == own.training),
                });
            }
            config.note(format!(
                "`{}` is for models trained with {}, and this model's scheduler is {}",
                chosen.name,
                chosen.training.name(),
                own.class
            ));
        }
        self.note_assumed(&mut config, &added);
        Ok(config)
    }

    /// The row of the model's own class.
    fn entry(&self) -> Option<&'static SchedulerEntry> {
        let class = self.file["_class_name"].as_str()?;
        SCHEDULERS.iter().find(|entry| entry.class == class)
    }

    /// The file with absent fields added, and their names.
    fn completed(&self, needed: &[(&'static str, NeededValue)]) -> (Value, Vec<&'static str>) {
        let Value::Object(values) = &self.file else { return (self.file.clone(), Vec::new()) };
        let has_betas = ["beta_start", "beta_end", "beta_schedule", "trained_betas"]
            .iter()
            .any(|name| values.get(*name).is_some_and(|value| !value.is_null()));
        let is_given = |name: &str| values.contains_key(name) || (name.starts_with("beta") && has_betas);
        let absent: Vec<_> = needed.iter().filter(|(name, _)| !is_given(name)).collect();
        let mut completed: Map<String, Value> = values.clone();
        completed.extend(absent.iter().map(|(name, value)| (name.to_string(), value.json())));
        (Value::Object(completed), absent.into_iter().map(|(name, _)| *name).collect())
    }

    /// Notes the fields that the files lack or that were corrected, if they change this scheduler's result.
    fn note_assumed(&self, config: &mut SchedulerConfig, added: &[&'static str]) {
        let counts = |name: &str| match name {
            "steps_offset" => config.spacing_is(TimestepSpacing::Leading) && config.reads(name),
            name => config.reads(name),
        };
        let assumed = NEEDED.iter().filter(|(name, _)| added.contains(name) || self.corrected.contains(name));
        let assumed: Vec<String> = assumed
            .filter(|(name, _)| counts(name))
            .map(|(name, value)| format!("`{name}` = {}", value.json()))
            .collect();
        if !assumed.is_empty() {
            let scheduler = config.entry().name;
            config.note(format!(
                "`{scheduler}` takes {}, as Stable Diffusion needs: the model's scheduler_config.json does not \
                 say so",
                assumed.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduler(file: Value) -> ModelScheduler {
        ModelScheduler::new(file)
    }

    #[test]
    fn what_stable_diffusion_needs_is_added_and_said() {
        let pndm = scheduler(json!({
            "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "skip_prk_steps": true,
        }));
        let own = pndm.config().unwrap();
        assert!(own.notes().is_empty(), "{:?}", own.notes());
        let ddim = pndm.with_scheduler("ddim").unwrap();
        let [note] = ddim.notes() else { panic!("{:?}", ddim.notes()) };
        for part in ["`ddim`", "`clip_sample` = false", "`steps_offset` = 1", "`set_alpha_to_one` = false"] {
            assert!(note.contains(part) && !note.contains("beta"), "{note}");
        }
        assert_eq!(ddim.build(4).unwrap().timesteps(), [751.0, 501.0, 251.0, 1.0]);
        // Euler's spacing makes no use of an offset.
        assert!(pndm.with_scheduler("euler").unwrap().notes().is_empty());
    }

    #[test]
    fn what_the_model_says_is_kept() {
        let file = json!({
            "_class_name": "PNDMScheduler", "clip_sample": true, "steps_offset": 0, "set_alpha_to_one": true,
            "beta_start": 0.0001});
        let ddim = scheduler(file).with_scheduler("ddim").unwrap();
        assert!(ddim.notes().is_empty(), "{:?}", ddim.notes());
        assert_eq!(ddim.build(4).unwrap().timesteps(), [750.0, 500.0, 250.0, 0.0]);
    }

    #[test]
    fn a_scheduler_without_betas_is_replaced_by_one_with_those_of_stable_diffusion() {
        let bare = scheduler(json!({"_class_name": "LCMScheduler"}));
        let euler = bare.with_scheduler("euler").unwrap();
        assert!(euler.notes()[0].contains("`beta_schedule` = \"scaled_linear\""), "{:?}", euler.notes());
        let sigma = euler.build(10).unwrap().init_noise_sigma();
        assert!((sigma - 14.61).abs() < 0.01, "{sigma}");
    }

    #[test]
    fn other_trainings_are_not_mixed_up() {
        let flow = scheduler(json!({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}));
        assert!(flow.config().is_ok() && flow.with_scheduler("flow-euler").is_ok());
        let error = flow.with_scheduler("euler").unwrap_err().to_string();
        assert!(error.contains("flow matching") && error.contains("flow-euler"), "{error}");
        let edm = scheduler(json!({"_class_name": "EDMDPMSolverMultistepScheduler"}));
        let error = edm.with_scheduler("dpmpp-2m").unwrap_err().to_string();
        assert!(error.contains("edm-euler, edm-dpmpp-2m"), "{error}");
        let usual = scheduler(json!({"_class_name": "EulerDiscreteScheduler"}));
        let flow = usual.with_scheduler("flow-euler").unwrap();
        assert!(flow.notes()[0].contains("flow matching"), "{:?}", flow.notes());
        assert!(scheduler(json!({"_class_name": "Magic"})).with_scheduler("euler").is_ok());
        assert!(scheduler(json!([])).with_scheduler("euler").is_err());
    }
}
