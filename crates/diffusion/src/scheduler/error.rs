//! Errors of scheduler configurations.

/// The reason for refusing a scheduler configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration is not a JSON object.
    #[error("the scheduler configuration is not a JSON object")]
    NotAnObject,
    /// The configuration has no `_class_name`.
    #[error("the scheduler configuration has no `_class_name`")]
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
    /// A value that the class does not accept, or that mixbit does not support.
    #[error("the scheduler field `{field}` = {value} of {class} {reason}")]
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
