//! A network of a pipeline, with memory only while it is at work.

use mixbit_engine::{Backend, Cancel, Options, Signature, Tensor, Timing, TracedStep};
use mixbit_mil::{Constant, Def, Function, TensorType};

use super::{PipelineError, Precision, Request, engine_error};
use crate::arch::GraphOptions;
use crate::model::Network;

/// The text that a network attends to: the same in all steps.
const TEXT: &str = "encoder_hidden_states";

/// A network at one size.
///
/// It is compiled when it first runs. Between runs it can [`rest`](Self::rest), which gives back what the next run gets
/// again at the cost of page faults, or be [`release`](Self::release)d altogether.
pub(super) struct Stage<'m> {
    network: &'m Network,
    backend: &'m dyn Backend,
    graph: Function,
    options: Options,
    cancel: Cancel,
    model: Option<mixbit_engine::Model>,
    is_at_rest: bool,
    /// The time of models that were released.
    spent: Vec<Timing>,
    /// The last run of a model that was released.
    trace: Vec<TracedStep>,
}

impl<'m> Stage<'m> {
    /// A network that is not compiled yet.
    ///
    /// # Errors
    /// If its graph can't be built.
    pub(super) fn new(
        network: &'m Network,
        backend: &'m dyn Backend,
        size: &GraphOptions,
        request: &Request,
        precision: Precision,
    ) -> Result<Self, PipelineError> {
        let graph = network.graph(size)?;
        let options = Options {
            arithmetic: precision.arithmetic(),
            full_precision: network.full_precision().clone(),
            constant_inputs: [TEXT.to_string()].into(),
            packs_every_run: request.reduce_memory,
        };
        let cancel = request.stop.clone().map(Cancel::from).unwrap_or_default();
        Ok(Self::of_graph(network, backend, graph, options, cancel))
    }

    fn of_graph(
        network: &'m Network,
        backend: &'m dyn Backend,
        graph: Function,
        options: Options,
        cancel: Cancel,
    ) -> Self {
        let (spent, trace) = (Vec::new(), Vec::new());
        Stage { network, backend, graph, options, cancel, model: None, is_at_rest: true, spent, trace }
    }

    /// A part of the graph by itself, to be run in the same way.
    pub(super) fn of_part(&self, graph: Function) -> Self {
        Self::of_graph(self.network, self.backend, graph, self.options.clone(), self.cancel.clone())
    }

    /// The network.
    pub(super) fn network(&self) -> &'m Network {
        self.network
    }

    /// The graph that is run.
    pub(super) fn graph(&self) -> &Function {
        &self.graph
    }

    /// Bytes that a run takes for intermediate results.
    ///
    /// # Errors
    /// If the graph can't be run, or needs more memory than the machine has left.
    pub(super) fn arena_bytes(&self) -> Result<usize, PipelineError> {
        let planned = self.backend.arena_bytes(&self.graph, &self.options);
        planned.map_err(|source| engine_error(self.network, source))
    }

    /// The inputs, in the graph's order.
    pub(super) fn inputs(&self) -> Vec<Signature> {
        let signature = |&id| {
            let value = self.graph.value(id);
            Signature { name: value.name.clone(), ty: value.ty.clone() }
        };
        self.graph.inputs().iter().map(signature).collect()
    }

    /// Compiles the network, unless it is.
    pub(super) fn load(&mut self) -> Result<&mut mixbit_engine::Model, PipelineError> {
        match &mut self.model {
            Some(model) => Ok(model),
            empty => {
                let compiled = self.backend.compile(&self.graph, &self.options);
                Ok(empty.insert(compiled.map_err(|source| engine_error(self.network, source))?))
            }
        }
    }

    /// Runs the network; its results lie as [`output`](Self::output) says.
    pub(super) fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, PipelineError> {
        self.is_at_rest = false;
        let (network, cancel) = (self.network, self.cancel.clone());
        self.load()?.run_until(inputs, &cancel).map_err(|source| engine_error(network, source))
    }

    /// Whether the network has an output of this name.
    pub(super) fn has_output(&self, output: &str) -> bool {
        self.position(output).is_some()
    }

    /// One of the outputs among the results of a run.
    pub(super) fn output<'r>(
        &self,
        results: &'r [Tensor],
        output: &'static str,
    ) -> Result<&'r [f32], PipelineError> {
        let found = self.position(output).and_then(|index| results[index].as_f32());
        found.ok_or_else(|| self.no_output(output))
    }

    /// The declared type of an output.
    pub(super) fn output_type(&self, output: &'static str) -> Result<&TensorType, PipelineError> {
        let id = self.position(output).map(|index| self.graph.outputs()[index]);
        let id = id.ok_or_else(|| self.no_output(output))?;
        Ok(&self.graph.value(id).ty)
    }

    fn no_output(&self, output: &'static str) -> PipelineError {
        PipelineError::Output { network: self.network.component().to_string(), output }
    }

    fn position(&self, output: &str) -> Option<usize> {
        self.graph.outputs().iter().position(|&id| self.graph.value(id).name == output)
    }

    /// Gives the memory of intermediate results and the pages of mapped weights back.
    pub(super) fn rest(&mut self) {
        if self.is_at_rest {
            return;
        }
        self.is_at_rest = true;
        if let Some(model) = &mut self.model {
            model.release_arena();
        }
        for value in self.graph.values() {
            if let Def::Const(Constant::Weight(weight)) = &value.def {
                weight.release();
            }
        }
    }

    /// Gives all memory back; the next run compiles the network again.
    pub(super) fn release(&mut self) {
        if let Some(model) = self.model.take() {
            self.spent = sum(self.spent.drain(..).chain(model.profile()), usize::max);
            self.trace = model.trace();
        }
        self.rest();
    }

    /// Where the time of all runs went.
    pub(super) fn profile(&self) -> Vec<Timing> {
        let running = self.model.iter().flat_map(mixbit_engine::Model::profile);
        sum(self.spent.iter().cloned().chain(running), usize::max)
    }

    /// The steps of the last run.
    pub(super) fn trace(&self) -> Vec<TracedStep> {
        match &self.model {
            Some(model) => model.trace(),
            None => self.trace.clone(),
        }
    }
}

/// Timings with those of one kind together, the longest first; `steps` says how many steps two of them are.
pub(super) fn sum(
    timings: impl IntoIterator<Item = Timing>,
    steps: fn(usize, usize) -> usize,
) -> Vec<Timing> {
    let mut sums: Vec<Timing> = Vec::new();
    for timing in timings {
        match sums.iter_mut().find(|sum| sum.kind == timing.kind) {
            Some(sum) => {
                sum.time += timing.time;
                sum.multiply_adds += timing.multiply_adds;
                sum.steps = steps(sum.steps, timing.steps);
            }
            None => sums.push(timing),
        }
    }
    sums.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.kind.cmp(&b.kind)));
    sums
}
