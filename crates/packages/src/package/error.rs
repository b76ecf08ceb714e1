//! Errors of conversion.

use mixbit_diffusion::model::{ModelError, ModelFiles};
use thiserror::Error;

/// A model that can't be converted as asked.
#[derive(Debug, Error)]
pub enum PlanError {
    /// A model that can't be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A part that the model does not have.
    #[error("the model has no {part} to convert; it has {present}")]
    NoPart {
        /// The part.
        part: String,
        /// Its parts.
        present: String,
    },
    /// A component of a class that its place in the model does not allow.
    #[error("`{component}` can't be a {class}: that class has another place in a model")]
    Class {
        /// The component.
        component: String,
        /// Its class.
        class: String,
    },
    /// A network of another model that does not work with the model's own.
    #[error("{option} can't be used with this model: {what}")]
    Misfit {
        /// The option that names the network.
        option: &'static str,
        /// The difference.
        what: String,
    },
    /// A network that can't be cut in two.
    #[error("{component} is too small to be cut in two: leave out --chunk-unet")]
    Chunks {
        /// The component.
        component: String,
    },
}

impl PlanError {
    /// The error for a component of another class than its place has.
    pub(super) fn wrong_class(files: &dyn ModelFiles, component: &str) -> Self {
        let class = files.component(component).unwrap_or_default().to_string();
        PlanError::Class { component: component.to_string(), class }
    }
}

/// A package that can't be written.
#[derive(Debug, Error)]
pub enum PackageError {
    /// A network that can't be built.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A graph that breaks a rule of MIL: a defect of mixbit.
    #[error("{package}: the graph is not valid, a defect of mixbit: {source}")]
    Graph {
        /// The package's name.
        package: String,
        /// The rule.
        source: mixbit_mil::Error,
    },
    /// Files that can't be written.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}
