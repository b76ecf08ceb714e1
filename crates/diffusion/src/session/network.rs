//! A network's graph at one size, with what it takes to compile it.

use std::sync::Arc;

use mixbit_engine::{Backend, MemoryBudget, Options, Signature, Tensor};
use mixbit_mil::{Constant, Def, Function, TensorType};

use super::error::GenerateError;
use super::precision::Precision;
use crate::arch::{GraphOptions, io};
use crate::model::Network;

/// The identity of a compiled network: equal keys compute the same.
///
/// A [`Network`] is equal to its clones alone, so it stands for the role, the component and the overlay of
/// weights.
#[derive(Clone)]
pub(super) struct NetworkKey {
    pub(super) network: Network,
    pub(super) section: Section,
    pub(super) graph: GraphOptions,
    pub(super) precision: Precision,
    pub(super) backend: Arc<dyn Backend>,
}

/// The part of a graph that a compiled network covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Section {
    /// The whole graph.
    Whole,
    /// Everything up to the value of this name.
    Before(String),
    /// Everything after the value of this name, which is its input.
    After(String),
}

impl PartialEq for NetworkKey {
    fn eq(&self, other: &Self) -> bool {
        self.network == other.network
            && self.section == other.section
            && self.graph == other.graph
            && self.precision == other.precision
            && Arc::ptr_eq(&self.backend, &other.backend)
    }
}

/// A network's graph at one size, with what it takes to compile it.
pub(super) struct PlannedNetwork {
    pub(super) key: NetworkKey,
    graph: Function,
    options: Options,
}

impl PlannedNetwork {
    /// Builds the graph of a key. `planned_runs` is the number of runs for which packing its weights is to
    /// pay.
    ///
    /// # Errors
    /// If its graph can't be built.
    pub(super) fn new(
        key: NetworkKey,
        planned_runs: usize,
        budget: &MemoryBudget,
    ) -> Result<Self, GenerateError> {
        let graph = key.network.graph(&key.graph)?;
        let options = Options {
            arithmetic: key.precision.arithmetic(),
            full_precision: key.network.full_precision().clone(),
            constant_inputs: [io::ENCODER_HIDDEN_STATES.to_string()].into(),
            planned_runs,
            budget: budget.clone(),
        };
        Ok(PlannedNetwork { key, graph, options })
    }

    /// A section of the same network, for `planned_runs` runs.
    pub(super) fn section(&self, section: Section, graph: Function, planned_runs: usize) -> Self {
        PlannedNetwork {
            key: NetworkKey { section, ..self.key.clone() },
            graph,
            options: Options { planned_runs, ..self.options.clone() },
        }
    }

    /// The folder that the network comes from.
    pub(super) fn component(&self) -> &str {
        self.key.network.component()
    }

    /// The graph that is run.
    pub(super) fn graph(&self) -> &Function {
        &self.graph
    }

    /// The number of runs that the network is planned for.
    pub(super) fn planned_runs(&self) -> usize {
        self.options.planned_runs
    }

    /// Compiles the graph.
    ///
    /// # Errors
    /// If the backend can't run it.
    pub(super) fn compile(&self) -> Result<mixbit_engine::Model, mixbit_engine::Error> {
        self.key.backend.compile(&self.graph, &self.options)
    }

    /// Bytes that a run takes for intermediate results.
    ///
    /// # Errors
    /// If the graph can't be run, or needs more memory than there is.
    pub(super) fn arena_bytes(&self) -> Result<usize, mixbit_engine::Error> {
        self.key.backend.arena_bytes(&self.graph, &self.options)
    }

    /// Bytes of the weights, as they are stored.
    pub(super) fn weight_bytes(&self) -> usize {
        self.weights().filter_map(|weight| weight.ty().byte_len()).sum()
    }

    /// Gives the pages of mapped weights back to the system.
    pub(super) fn release_weights(&self) {
        self.weights().for_each(|weight| weight.release());
    }

    fn weights(&self) -> impl Iterator<Item = &mixbit_mil::WeightRef> {
        self.graph.values().iter().filter_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) => Some(weight),
            _ => None,
        })
    }

    /// The inputs, in the graph's order.
    pub(super) fn inputs(&self) -> Vec<Signature> {
        let signature = |&id| {
            let value = self.graph.value(id);
            Signature { name: value.name.clone(), ty: value.ty.clone() }
        };
        self.graph.inputs().iter().map(signature).collect()
    }

    /// True if the network has an output of this name.
    pub(super) fn has_output(&self, output: &str) -> bool {
        self.position(output).is_some()
    }

    /// One of the outputs among the results of a run.
    ///
    /// # Errors
    /// If there is no such output of floats.
    pub(super) fn output<'r>(
        &self,
        results: &'r [Tensor],
        output: &'static str,
    ) -> Result<&'r [f32], GenerateError> {
        let found = self.position(output).and_then(|index| results[index].as_f32());
        found.ok_or_else(|| self.no_output(output))
    }

    /// The declared type of an output.
    ///
    /// # Errors
    /// If there is no such output.
    pub(super) fn output_type(&self, output: &'static str) -> Result<&TensorType, GenerateError> {
        let id = self.position(output).map(|index| self.graph.outputs()[index]);
        let id = id.ok_or_else(|| self.no_output(output))?;
        Ok(&self.graph.value(id).ty)
    }

    fn no_output(&self, output: &'static str) -> GenerateError {
        GenerateError::Output { network: self.component().to_string(), output }
    }

    fn position(&self, output: &str) -> Option<usize> {
        self.graph.outputs().iter().position(|&id| self.graph.value(id).name == output)
    }

    /// The error of a backend, with the network's name.
    pub(super) fn error(&self, source: mixbit_engine::Error) -> GenerateError {
        match source {
            mixbit_engine::Error::Cancelled => GenerateError::Cancelled,
            source => GenerateError::Engine { network: self.component().to_string(), source },
        }
    }

    /// Refuses results that are not finite, and names a weight that is not finite either.
    ///
    /// # Errors
    /// [`GenerateError::NotFinite`].
    pub(super) fn check_finite(&self, values: &[f32]) -> Result<(), GenerateError> {
        if values.iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        Err(GenerateError::NotFinite {
            network: self.component().to_string(),
            weight: Network::not_finite_weight(&self.graph),
        })
    }
}

/// A tensor of floats.
///
/// # Errors
/// A number of values other than the shape's.
pub(super) fn tensor(shape: &[usize], values: Vec<f32>) -> Result<Tensor, GenerateError> {
    Tensor::from_f32(shape, values).map_err(GenerateError::Tensor)
}

/// A tensor of whole numbers if an input is declared so, else of floats. Tools differ in the type of token
/// ids and timesteps.
///
/// # Errors
/// A number of values other than the shape's.
pub(super) fn as_declared(
    shape: &[usize],
    values: Vec<f32>,
    declared: &Signature,
) -> Result<Tensor, GenerateError> {
    if !declared.ty.dtype.is_int() {
        return tensor(shape, values);
    }
    let values = values.into_iter().map(|value| value.round() as i32).collect();
    Tensor::from_i32(shape, values).map_err(GenerateError::Tensor)
}
