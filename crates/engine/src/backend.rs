//! The interface of backends: [`Backend`] compiles a function, [`Executable`] is its compiled form, [`Model`]
//! runs it.

use std::collections::BTreeSet;
use std::time::Duration;

use mixbit_mil::{Function, TensorType};

use crate::{Cancel, Data, Error, MemoryBudget, Tensor};

/// The arithmetic of floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Every float is an `f32`, whatever the graph declares.
    #[default]
    F32,
    /// As [`F32`](Self::F32), with the factors of convolutions, linear layers, matrix products and attention
    /// rounded to bfloat16. Sums are `f32`. The reference backend computes as for [`F32`](Self::F32).
    Bf16,
    /// As [`F32`](Self::F32), but convolutions and linear layers with constant weights multiply eight-bit
    /// integers. Other products, and layers whose weight is one of [`Options::full_precision`], are computed
    /// in the backend's fastest precision of floats ([`Backend::fastest`]). The reference backend computes as
    /// for [`F32`](Self::F32).
    Int8,
    /// The result of every op whose declared type is `fp16` is rounded to half precision, as a Core ML device
    /// does.
    AsDeclared,
}

/// The options of a compilation.
#[derive(Clone, Debug)]
pub struct Options {
    /// The arithmetic of floats.
    pub arithmetic: Arithmetic,
    /// Names of weights whose layers [`Arithmetic::Int8`] does not quantize.
    pub full_precision: BTreeSet<String>,
    /// Names of inputs that are often the same from run to run. Values that depend on these inputs alone are
    /// kept, in memory of their own, and computed again when an input changes.
    pub constant_inputs: BTreeSet<String>,
    /// The expected number of runs. A backend may prepare weights at some cost in time and memory if they are
    /// many; results are the same.
    pub planned_runs: usize,
    /// The memory that this model and others may take.
    pub budget: MemoryBudget,
}

impl Default for Options {
    /// One run in `f32`, without a limit on memory.
    fn default() -> Self {
        Options {
            arithmetic: Arithmetic::default(),
            full_precision: BTreeSet::new(),
            constant_inputs: BTreeSet::new(),
            planned_runs: 1,
            budget: MemoryBudget::unlimited(),
        }
    }
}

/// A device that runs functions, or a way to run them.
///
/// A backend is written against the public interface of this crate alone: [`compile`](Self::compile) turns a
/// function into an [`Executable`] and wraps it in a [`Model`], which checks inputs before it hands them on.
/// An op that is not worth a kernel can run by its definition ([`evaluate`](crate::evaluate)).
pub trait Backend: Send + Sync {
    /// The name, for messages and menus.
    fn name(&self) -> &'static str;

    /// Prepares a function to be run many times. Weights are referred to, not copied.
    ///
    /// # Errors
    /// If the function is not valid, or has an op or a size that the backend does not run.
    fn compile(&self, function: &Function, options: &Options) -> Result<Model, Error>;

    /// Bytes that a run of a function takes for intermediate results: [`Model::arena_bytes`] without a model.
    ///
    /// # Errors
    /// As [`compile`](Self::compile).
    fn arena_bytes(&self, function: &Function, options: &Options) -> Result<usize, Error> {
        Ok(self.compile(function, options)?.arena_bytes())
    }

    /// The bytes of the device's memory that are free, if known: a base for a [`MemoryBudget`].
    fn available_memory(&self) -> Option<u64> {
        None
    }

    /// The fastest arithmetic on this device that keeps the quality of images: [`Arithmetic::F32`] by
    /// default.
    fn fastest(&self) -> Arithmetic {
        Arithmetic::F32
    }
}

/// The name and type of a function's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// The value's name.
    pub name: String,
    /// The declared type.
    pub ty: TensorType,
}

/// The time of all steps of one kind, in all runs of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// The op, or the chain of ops.
    pub kind: String,
    /// The steps of this kind in the last run.
    pub steps: usize,
    /// The time.
    pub time: Duration,
    /// The multiply-adds of convolutions and products in that time ([`mixbit_mil::multiply_adds`]).
    pub multiply_adds: u64,
}

/// One step of a model's last run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracedStep {
    /// The op and its result.
    pub label: String,
    /// The op, or the chain of ops.
    pub kind: String,
    /// Its multiply-adds, as [`mixbit_mil::multiply_adds`] counts them.
    pub multiply_adds: u64,
    /// The start, from the beginning of the run.
    pub start: Duration,
    /// The duration.
    pub duration: Duration,
}

/// A function that is ready to run.
pub struct Model {
    inputs: Vec<Signature>,
    outputs: Vec<Signature>,
    executable: Box<dyn Executable>,
}

/// A backend's compiled form of a function.
pub trait Executable: Send {
    /// Runs the function and hands each output to `output`, with its position in the function, as soon as it
    /// is ready.
    ///
    /// The inputs are in the function's order, with the declared shapes and floats or integers as declared:
    /// [`Model`] has checked them. The run ends early once `cancel` is raised, within an op if the op takes
    /// long; the next run must not be affected by it.
    ///
    /// # Errors
    /// [`Error::Cancelled`], [`Error::Memory`], [`Error::Index`], or a failure of the device.
    fn run(
        &mut self,
        inputs: &[&Tensor],
        cancel: &Cancel,
        output: &mut dyn FnMut(usize, Tensor),
    ) -> Result<(), Error>;

    /// Bytes that a run takes for intermediate results.
    fn arena_bytes(&self) -> usize;

    /// Gives the memory of intermediate results back until the next run.
    fn release_arena(&mut self) {}

    /// Bytes of constants, mapped or held.
    fn weight_bytes(&self) -> usize;

    /// The steps of a run as text.
    fn describe(&self) -> String;

    /// The time by kind of step.
    fn profile(&self) -> Vec<Timing> {
        Vec::new()
    }

    /// The steps of the last run, in order.
    fn trace(&self) -> Vec<TracedStep> {
        Vec::new()
    }
}

impl Model {
    /// A compiled function, with the names and types of the inputs and outputs of the function that it was
    /// compiled from.
    pub fn new(function: &Function, executable: Box<dyn Executable>) -> Self {
        let signature = |ids: &[mixbit_mil::ValueId]| {
            let one = |&id: &mixbit_mil::ValueId| Signature {
                name: function.value(id).name.clone(),
                ty: function.value(id).ty.clone(),
            };
            ids.iter().map(one).collect()
        };
        Model { inputs: signature(function.inputs()), outputs: signature(function.outputs()), executable }
    }

    /// The inputs, in the function's order.
    pub fn inputs(&self) -> &[Signature] {
        &self.inputs
    }

    /// The outputs, in the order in which [`run`](Self::run) gives them.
    pub fn outputs(&self) -> &[Signature] {
        &self.outputs
    }

    /// The position of an output among the results of [`run`](Self::run).
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|output| output.name == name)
    }

    /// Bytes that a run takes for intermediate results. The first run takes them; they are kept for the next
    /// ones.
    pub fn arena_bytes(&self) -> usize {
        self.executable.arena_bytes()
    }

    /// Gives the memory of intermediate results back; the next run takes it again.
    pub fn release_arena(&mut self) {
        self.executable.release_arena();
    }

    /// Bytes of the constants: compressed or as stored, in a memory map or as a copy, and packed if the model
    /// keeps a packed copy.
    pub fn weight_bytes(&self) -> usize {
        self.executable.weight_bytes()
    }

    /// The steps of a run, as text for people.
    pub fn describe(&self) -> String {
        self.executable.describe()
    }

    /// The time of all runs by kind of step, the longest first; empty for a backend that does not measure it.
    pub fn profile(&self) -> Vec<Timing> {
        let mut timings = self.executable.profile();
        timings.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.kind.cmp(&b.kind)));
        timings
    }

    /// The steps of the last run, in order; empty before it, and for a backend that does not measure them.
    pub fn trace(&self) -> Vec<TracedStep> {
        self.executable.trace()
    }

    /// Runs the function on named inputs and gives all outputs.
    ///
    /// # Errors
    /// If an input is missing, unknown, given twice or has another type, or an index inside a tensor is out
    /// of range.
    pub fn run(&mut self, inputs: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, Error> {
        self.run_until(inputs, &Cancel::new())
    }

    /// Runs as [`run`](Self::run) does, until `cancel` is raised. A cancelled model can run again.
    ///
    /// # Errors
    /// As [`run`](Self::run), and [`Error::Cancelled`].
    pub fn run_until(&mut self, inputs: &[(&str, &Tensor)], cancel: &Cancel) -> Result<Vec<Tensor>, Error> {
        let mut outputs: Vec<Option<Tensor>> = vec![None; self.outputs.len()];
        self.run_with(inputs, cancel, &mut |index, tensor| outputs[index] = Some(tensor))?;
        let all = outputs.into_iter().zip(&self.outputs);
        all.map(|(tensor, output)| tensor.ok_or_else(|| Error::OutputMissing { name: output.name.clone() }))
            .collect()
    }

    /// Runs as [`run_until`](Self::run_until) does, and hands each output, with its position in
    /// [`outputs`](Self::outputs), to `output` as soon as it is ready. The model keeps no copy, so a function
    /// of many outputs takes no memory for all of them at once.
    ///
    /// # Errors
    /// As [`run_until`](Self::run_until). Outputs may have been handed out before.
    pub fn run_with(
        &mut self,
        inputs: &[(&str, &Tensor)],
        cancel: &Cancel,
        output: &mut dyn FnMut(usize, Tensor),
    ) -> Result<(), Error> {
        let ordered = self.ordered(inputs)?;
        self.executable.run(&ordered, cancel, output)
    }

    /// The inputs in the function's order, checked.
    fn ordered<'t>(&self, inputs: &[(&str, &'t Tensor)]) -> Result<Vec<&'t Tensor>, Error> {
        if let Some((name, _)) =
            inputs.iter().find(|(name, _)| self.inputs.iter().all(|input| input.name != *name))
        {
            let known: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            return Err(Error::InputUnknown { name: name.to_string(), known: known.join(", ") });
        }
        let repeated = |(at, (name, _)): &(usize, &(&str, &Tensor))| {
            inputs[..*at].iter().any(|(other, _)| other == name)
        };
        if let Some((_, (name, _))) = inputs.iter().enumerate().find(repeated) {
            return Err(Error::InputRepeated { name: name.to_string() });
        }
        let ordered = self.inputs.iter().map(|input| {
            let given = inputs.iter().find(|(name, _)| input.name == *name);
            let (_, tensor) = given
                .ok_or_else(|| Error::InputMissing { name: input.name.clone(), ty: input.ty.clone() })?;
            let (is_float, kind) = match tensor.data() {
                Data::Float(_) => (true, "floats"),
                Data::Int(_) => (false, "integers"),
            };
            if tensor.shape() != input.ty.shape || is_float != input.ty.dtype.is_float() {
                return Err(Error::InputType {
                    name: input.name.clone(),
                    expected: input.ty.clone(),
                    found: tensor.shape().to_vec(),
                    kind,
                });
            }
            Ok(*tensor)
        });
        ordered.collect()
    }
}
