//! Errors of scheduler configurations.

/// The reason for refusing a scheduler configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration is not a JSON object.
    #[error("scheduler_config.json is not a JSON object: download it again")]
    NotAnObject,
    /// The configuration has no `_class_name`.
    #[error("scheduler_config.json does not name the scheduler (`_class_name`): take another (--scheduler)")]
    NoClass,
    /// The requested name is not in the table.
    #[error("unknown scheduler `{name}`{}; the known ones are {known}", suggestion(*nearest))]
    UnknownScheduler {
        /// The requested name.
        name: String,
        /// The known name that is written most like it.
        nearest: Option<&'static str>,
        /// The known names, separated by commas.
        known: String,
    },
    /// The name of a schedule without a scheduler.
    #[error(
        "`{name}` is no scheduler by itself, but a schedule that follows the name of one, as in dpmpp-2m-{variant}"
    )]
    VariantAlone {
        /// The requested name.
        name: String,
        /// The schedule's own name.
        variant: &'static str,
    },
    /// The class in a model's files is not in the table.
    #[error(
        "the model's scheduler {class} is not among those that mixbit has; draw with another (--scheduler): \
         {known}"
    )]
    UnknownClass {
        /// The class.
        class: String,
        /// The known names, separated by commas.
        known: String,
    },
    /// A scheduler for models that are trained in another way.
    #[error(
        "the model is trained with {training} (its scheduler is {class}), which `{name}` does not follow; take \
         one of {fitting}"
    )]
    OtherTraining {
        /// The model's own class.
        class: &'static str,
        /// Its training.
        training: &'static str,
        /// The requested scheduler.
        name: &'static str,
        /// The names that fit, separated by commas.
        fitting: String,
    },
    /// A field that belongs to no known class.
    #[error("the scheduler setting `{field}` = {value} is not known for {class}")]
    UnknownField {
        /// The field.
        field: String,
        /// Its value.
        value: String,
        /// The class.
        class: &'static str,
    },
    /// An override of a field that the chosen class does not have.
    #[error("the scheduler {class} has no {}", choice(field))]
    NoSuchOption {
        /// The field.
        field: &'static str,
        /// The class.
        class: &'static str,
    },
    /// A value that the class does not accept, or that mixbit does not support.
    #[error("the scheduler setting `{field}` = {value} of {class} {reason}")]
    BadValue {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// The class.
        class: &'static str,
        /// The reason, e.g. "is not a number".
        reason: String,
    },
    /// A number of steps that the configuration cannot run.
    #[error("{class} cannot run {steps} steps: {reason}")]
    BadSteps {
        /// The requested number.
        steps: usize,
        /// The class.
        class: &'static str,
        /// The reason.
        reason: String,
    },
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!(", nearest to `{name}`")).unwrap_or_default()
}

/// A field as users of the command know it.
fn choice(field: &str) -> String {
    match field {
        "timestep_spacing" => "choice of timesteps (--timestep-spacing, -trailing)".to_string(),
        "use_karras_sigmas" => "schedule of Karras (-karras)".to_string(),
        "use_exponential_sigmas" => "exponential schedule (-exponential)".to_string(),
        "use_beta_sigmas" => "beta schedule (-beta)".to_string(),
        "use_lu_lambdas" => "schedule of Lu (-lu)".to_string(),
        field => format!("setting `{field}`"),
    }
}
