//! From ops to steps: calls of kernels on buffers.

use std::ops::Range;
use std::sync::Arc;

use mixbit_engine::fuse::Node;
use mixbit_engine::{Arithmetic, Data, Error, MemoryBudget, Options, Tensor, evaluate, stored_bytes};
use mixbit_kernels::{AttentionShape, ConvShape, Partition, Precision};
use mixbit_mil::{Constant, DType, Def, Function, OpView, ValueId, WeightRef};

use crate::packing::Packing;
use crate::weight::{ConvKernel, LinearKernel, Weight, stays_compressed};

/// The place of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the arena.
    Buffer(usize),
    /// Among the plan's constants.
    Const(usize),
}

/// Memory of one value, under all its shapes.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub(super) is_float: bool,
    pub(super) len: usize,
}

type Run = Box<dyn Fn(&mut Io) -> Result<(), Error> + Send + Sync>;
type Prepare = Box<dyn Fn() + Send + Sync>;

/// The name of a step, for people.
pub(crate) struct Label {
    /// The op, or the chain of ops.
    kind: String,
    /// The kind and the result.
    text: String,
}

impl Label {
    /// The name of the step that runs a node.
    pub(crate) fn of_node(node: &Node, function: &Function, output: ValueId) -> Self {
        let kind = node.kind(function);
        Label { text: format!("{kind} {}", function.value(output).name), kind }
    }
}

impl From<&OpView<'_>> for Label {
    fn from(op: &OpView) -> Self {
        Label { kind: op.kind().to_string(), text: op.label() }
    }
}

/// One call of a kernel.
pub(super) struct Step {
    pub(super) label: Label,
    pub(super) reads: Vec<Place>,
    pub(super) read_floats: Vec<bool>,
    pub(super) writes: Vec<usize>,
    pub(super) write_types: Vec<DType>,
    pub(super) multiply_adds: u64,
    /// Packs the step's weights before its first run, if they stay packed. It is not cancelled: weights that
    /// are packed in part would stay so.
    pub(super) prepare: Prepare,
    pub(super) run: Run,
}

impl Step {
    /// The op, or the chain of ops.
    pub(super) fn kind(&self) -> &str {
        &self.label.kind
    }

    /// The kind and the result.
    pub(super) fn label(&self) -> &str {
        &self.label.text
    }

    pub(super) fn read_buffers(&self) -> impl Iterator<Item = usize> {
        self.typed_reads().map(|(buffer, _)| buffer)
    }

    pub(super) fn typed_reads(&self) -> impl Iterator<Item = (usize, bool)> {
        self.reads.iter().zip(&self.read_floats).filter_map(|(place, &is_float)| match place {
            Place::Buffer(buffer) => Some((*buffer, is_float)),
            Place::Const(_) => None,
        })
    }

    pub(super) fn write_buffers(&self) -> Vec<(usize, bool)> {
        self.writes.iter().copied().zip(self.write_types.iter().map(|&dtype| dtype.is_float())).collect()
    }
}

/// The operands and results of a step: floats and integers, each in the order of the step's lists.
#[derive(Default)]
pub(crate) struct Io<'a> {
    pub(crate) floats: Vec<&'a [f32]>,
    pub(crate) ints: Vec<&'a [i32]>,
    pub(crate) out: Vec<&'a mut [f32]>,
    pub(crate) int_out: Vec<&'a mut [i32]>,
}

/// The place of an input.
pub(super) struct Input {
    pub(super) buffer: usize,
    /// True if it is one of [`Options::constant_inputs`].
    pub(super) is_constant: bool,
}

/// The inputs that a value depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Dependence {
    /// No input.
    Constant,
    /// Constant inputs.
    ConstantInputs,
    /// Other inputs too.
    Varying,
}

/// A lowered function.
pub(super) struct Plan {
    pub(super) buffers: Vec<Buffer>,
    pub(super) constants: Vec<Data>,
    pub(super) steps: Vec<Step>,
    pub(super) inputs: Vec<Input>,
    pub(super) outputs: Vec<(Place, Vec<usize>)>,
    /// Bytes of all constants as they are stored, mapped or held.
    pub(super) weight_bytes: usize,
    /// Bytes of the weights and constants that are held as copies, not in a memory map.
    pub(super) held_bytes: usize,
}

impl Plan {
    /// The inputs that each buffer depends on.
    fn dependences(&self) -> Vec<Dependence> {
        let mut dependences = vec![Dependence::Constant; self.buffers.len()];
        for input in &self.inputs {
            dependences[input.buffer] =
                if input.is_constant { Dependence::ConstantInputs } else { Dependence::Varying };
        }
        for step in &self.steps {
            let reads = step.read_buffers().map(|buffer| dependences[buffer]);
            let dependence = reads.max().unwrap_or(Dependence::Constant);
            step.writes.iter().for_each(|&buffer| dependences[buffer] = dependence);
        }
        dependences
    }

    /// For each step, whether its results are kept from run to run while the constant inputs are the same.
    pub(super) fn constant_steps(&self) -> Vec<bool> {
        let dependences = self.dependences();
        let is_constant = |&buffer: &usize| dependences[buffer] == Dependence::ConstantInputs;
        self.steps.iter().map(|step| step.writes.iter().any(is_constant)).collect()
    }

    /// The steps during which each buffer must keep its content, counted from 1; 0 is before the first.
    /// Constant inputs, and values of theirs that other steps need, must keep it always. Outputs are handed
    /// out after the step that makes them.
    pub(super) fn lifetimes(&self) -> Vec<Range<usize>> {
        let dependences = self.dependences();
        let end = self.steps.len() + 1;
        let mut lifetimes: Vec<Option<Range<usize>>> = vec![None; self.buffers.len()];
        let mut touch = |buffer: usize, times: Range<usize>| {
            let lifetime = lifetimes[buffer].get_or_insert(times.clone());
            *lifetime = lifetime.start.min(times.start)..lifetime.end.max(times.end);
        };
        for input in &self.inputs {
            touch(input.buffer, if input.is_constant { 0..end + 1 } else { 0..1 });
        }
        for (time, step) in (1..).zip(&self.steps) {
            let varies = step.writes.iter().any(|&buffer| dependences[buffer] == Dependence::Varying);
            for buffer in step.read_buffers() {
                let is_kept = varies && dependences[buffer] == Dependence::ConstantInputs;
                touch(buffer, if is_kept { 0..end + 1 } else { time..time + 1 });
            }
            step.writes.iter().for_each(|&buffer| touch(buffer, time..time + 1));
        }
        for (place, _) in &self.outputs {
            let Place::Buffer(buffer) = *place else { continue };
            if dependences[buffer] == Dependence::ConstantInputs {
                touch(buffer, 0..end + 1);
            }
        }
        lifetimes.into_iter().map(|lifetime| lifetime.unwrap_or(0..0)).collect()
    }

    /// The positions of the outputs that are ready before the first step, and after each.
    pub(super) fn outputs_by_step(&self) -> Vec<Vec<usize>> {
        let mut ready = vec![Vec::new(); self.steps.len() + 1];
        for (index, (place, _)) in self.outputs.iter().enumerate() {
            let made = match place {
                Place::Buffer(buffer) => self.steps.iter().position(|step| step.writes.contains(buffer)),
                Place::Const(_) => None,
            };
            ready[made.map_or(0, |step| step + 1)].push(index);
        }
        ready
    }
}

/// A plan under construction.
pub(crate) struct PlanBuilder<'f> {
    function: &'f Function,
    options: &'f Options,
    packing: Packing,
    shared: Arc<Function>,
    places: Vec<Option<Place>>,
    /// Values that lie in one buffer.
    joint: Vec<[ValueId; 3]>,
    plan: Plan,
}

impl<'f> PlanBuilder<'f> {
    pub(super) fn new(function: &'f Function, options: &'f Options, budget: &MemoryBudget) -> Self {
        let packing = Packing::of(options.planned_runs, budget);
        let plan = Plan {
            buffers: Vec::new(),
            constants: Vec::new(),
            steps: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            weight_bytes: 0,
            held_bytes: 0,
        };
        let places = vec![None; function.values().len()];
        let mut builder = PlanBuilder {
            function,
            options,
            packing,
            shared: Arc::new(function.clone()),
            places,
            joint: Vec::new(),
            plan,
        };
        for &id in function.inputs() {
            let is_constant = options.constant_inputs.contains(&function.value(id).name);
            let buffer = builder.make(id);
            builder.plan.inputs.push(Input { buffer, is_constant });
        }
        builder
    }

    pub(super) fn finish(mut self) -> Result<Plan, Error> {
        for &id in self.function.outputs() {
            let place = self.place(id)?;
            self.plan.outputs.push((place, self.function.value(id).ty.shape.clone()));
        }
        Ok(self.plan)
    }

    /// The function that is lowered.
    pub(crate) fn function(&self) -> &'f Function {
        self.function
    }

    /// The function that is lowered, to keep.
    pub(crate) fn shared(&self) -> Arc<Function> {
        self.shared.clone()
    }

    /// The shape of a value.
    pub(crate) fn shape(&self, id: ValueId) -> &'f [usize] {
        &self.function.value(id).ty.shape
    }

    fn make(&mut self, id: ValueId) -> usize {
        let ty = &self.function.value(id).ty;
        let buffer = self.take_buffer(ty.dtype.is_float(), ty.count());
        self.places[id.index()] = Some(Place::Buffer(buffer));
        buffer
    }

    fn take_buffer(&mut self, is_float: bool, len: usize) -> usize {
        self.plan.buffers.push(Buffer { is_float, len });
        self.plan.buffers.len() - 1
    }

    /// Adds a step that decodes a large constant. Each use has its own, so that the arena is free in between.
    fn decode(&mut self, weight: &WeightRef) -> Result<Place, Error> {
        let buffer = self.take_buffer(true, weight.ty().count());
        let label = Label { kind: "decode".to_string(), text: format!("decode `{}`", weight.name()) };
        let dtype = weight.ty().dtype;
        let weight = Weight::new(weight)?;
        self.plan.weight_bytes += weight.bytes();
        let run = move |io: &mut Io| {
            weight.slice(&mut None)?.widen(io.out[0]);
            Ok(())
        };
        self.push_step(label, &[], vec![buffer], vec![dtype], Box::new(run))?;
        Ok(Place::Buffer(buffer))
    }

    fn place(&mut self, id: ValueId) -> Result<Place, Error> {
        if let Some(place) = self.places[id.index()] {
            return Ok(place);
        }
        let value = self.function.value(id);
        let Def::Const(constant) = &value.def else {
            return Err(
                mixbit_mil::Error::Graph(format!("`{}` is used before it is made", value.name)).into()
            );
        };
        if let Constant::Weight(weight) = constant
            && stays_compressed(weight)
        {
            return self.decode(weight);
        }
        let data = Tensor::of_constant(constant)?;
        let place = Place::Const(self.plan.constants.len());
        let bytes = match data.data() {
            Data::Float(values) => size_of_val(&**values),
            Data::Int(values) => size_of_val(&**values),
        };
        self.plan.weight_bytes += bytes;
        self.plan.held_bytes += bytes;
        self.plan.constants.push(data.data().clone());
        self.places[id.index()] = Some(place);
        Ok(place)
    }

    /// A constant as a weight that stays as stored; `None` if the value is computed.
    fn weight(&self, id: ValueId) -> Result<Option<Weight>, Error> {
        match &self.function.value(id).def {
            Def::Const(Constant::Weight(weight)) => Weight::new(weight).map(Some),
            Def::Const(constant @ Constant::Literal(_)) => {
                Ok(Weight::of_tensor(Tensor::of_constant(constant)?))
            }
            _ => Ok(None),
        }
    }

    /// The way in which threads share an attention. Layers with packed weights leave their rows to threads by
    /// image.
    pub(crate) fn partition(&self, shape: &AttentionShape) -> Partition {
        match self.packing {
            Packing::Within(_) => Partition::Images,
            Packing::EveryRun => Partition::of(shape),
        }
    }

    /// The precision of products without a constant weight.
    pub(crate) fn precision(&self) -> Precision {
        precision(self.options, None)
    }

    /// The precision of products with a constant weight.
    fn weight_precision(&self, id: ValueId) -> Precision {
        match &self.function.value(id).def {
            Def::Const(Constant::Weight(weight)) => precision(self.options, Some(weight.name())),
            _ => precision(self.options, Some(&self.function.value(id).name)),
        }
    }

    /// The constant weight of a convolution; `None` if it is computed. The outputs of a `gated` one are
    /// values, then gates.
    pub(crate) fn conv_kernel(
        &mut self,
        id: ValueId,
        gated: bool,
        shape: &ConvShape,
    ) -> Result<Option<ConvKernel>, Error> {
        let Some(weight) = self.weight(id)? else { return Ok(None) };
        let kernel = ConvKernel::new(weight, gated, shape, self.weight_precision(id), &self.packing);
        self.plan.weight_bytes += kernel.bytes();
        self.plan.held_bytes += kernel.held_bytes();
        Ok(Some(kernel))
    }

    /// The constant weights `[outs, depth]` of linear layers that multiply the same rows; `None` if one is
    /// computed, or their precisions differ. The outputs of a `gated` layer are values, then gates.
    pub(crate) fn linear_kernel(
        &mut self,
        ids: &[ValueId],
        gated: bool,
        size: [usize; 2],
        rows: usize,
    ) -> Result<Option<LinearKernel>, Error> {
        let precisions: Vec<Precision> = ids.iter().map(|&id| self.weight_precision(id)).collect();
        let weights = ids.iter().map(|&id| self.weight(id)).collect::<Result<Option<Vec<_>>, _>>()?;
        let (Some(weights), Some(&precision)) = (weights, precisions.first()) else { return Ok(None) };
        if precisions.iter().any(|other| *other != precision) {
            return Ok(None);
        }
        let kernel = LinearKernel::new(weights, gated, size, rows, precision, &self.packing);
        self.plan.weight_bytes += kernel.bytes();
        self.plan.held_bytes += kernel.held_bytes();
        Ok(Some(kernel))
    }

    /// A constant table whose rows are looked up; `None` if it is computed or holds no floats.
    pub(crate) fn table(&mut self, id: ValueId) -> Option<Weight> {
        let table = self.weight(id).ok().flatten()?;
        self.plan.weight_bytes += table.bytes();
        self.plan.held_bytes += table.held_bytes();
        Some(table)
    }

    /// The floats of a constant, widened and held: those of a bias or a norm, one for each channel. An error
    /// if the value is computed.
    pub(crate) fn constant_floats(&mut self, id: ValueId) -> Result<Vec<f32>, Error> {
        let value = self.function.value(id);
        let Def::Const(constant) = &value.def else {
            return Err(mixbit_mil::Error::Graph(format!("`{}` must be a constant", value.name)).into());
        };
        let floats = Tensor::of_constant(constant)?.into_f32();
        let floats = floats.ok_or_else(|| Error::ElementType { ty: value.ty.clone() })?;
        self.plan.weight_bytes += size_of_val(&*floats);
        self.plan.held_bytes += size_of_val(&*floats);
        Ok(floats)
    }

    /// Makes `to` the same memory as `from`, under another shape.
    pub(crate) fn alias(&mut self, from: ValueId, to: ValueId) -> Result<(), Error> {
        self.places[to.index()] = Some(self.place(from)?);
        Ok(())
    }

    /// Adds a step that reads `reads` and writes `writes`.
    pub(crate) fn step(
        &mut self,
        label: impl Into<Label>,
        reads: &[ValueId],
        writes: &[ValueId],
        run: impl Fn(&mut Io) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let buffers = writes.iter().map(|&id| self.make(id)).collect();
        let types = writes.iter().map(|id| self.function.value(*id).ty.dtype).collect();
        self.push_step(label.into(), reads, buffers, types, Box::new(run))
    }

    /// Adds a step that makes `writes`, all floats of one size, in one buffer, one after the other. A step
    /// that reads the first reads them all: see [`are_joint`](Self::are_joint).
    pub(crate) fn step_of_one_buffer(
        &mut self,
        label: Label,
        reads: &[ValueId],
        writes: &[ValueId; 3],
        run: impl Fn(&mut Io) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let len = writes.iter().map(|&id| self.function.value(id).ty.count()).sum();
        let buffer = self.take_buffer(true, len);
        writes.iter().for_each(|id| self.places[id.index()] = Some(Place::Buffer(buffer)));
        self.joint.push(*writes);
        self.push_step(label, reads, vec![buffer], vec![DType::F32], Box::new(run))
    }

    fn push_step(
        &mut self,
        label: Label,
        reads: &[ValueId],
        writes: Vec<usize>,
        write_types: Vec<DType>,
        run: Run,
    ) -> Result<(), Error> {
        let places = reads.iter().map(|&id| self.place(id)).collect::<Result<Vec<_>, _>>()?;
        let read_floats = reads.iter().map(|&id| self.function.value(id).ty.dtype.is_float()).collect();
        let step = Step {
            label,
            reads: places,
            read_floats,
            writes,
            write_types,
            multiply_adds: 0,
            prepare: Box::new(|| ()),
            run,
        };
        self.plan.steps.push(step);
        Ok(())
    }

    /// True if values were made by [`step_of_one_buffer`](Self::step_of_one_buffer).
    pub(crate) fn are_joint(&self, values: &[ValueId; 3]) -> bool {
        self.joint.contains(values)
    }

    /// Sets the packing of the last step's weights.
    pub(crate) fn prepare(&mut self, prepare: impl Fn() + Send + Sync + 'static) {
        if let Some(step) = self.plan.steps.last_mut() {
            step.prepare = Box::new(prepare);
        }
    }

    /// The number of steps so far.
    pub(super) fn steps(&self) -> usize {
        self.plan.steps.len()
    }

    /// Counts multiply-adds as the last step's.
    pub(super) fn count(&mut self, multiply_adds: u64) {
        if let Some(step) = self.plan.steps.last_mut() {
            step.multiply_adds += multiply_adds;
        }
    }

    /// Counts the rest of a node's multiply-adds, which the steps from `first` on have not counted, as the
    /// last step's.
    pub(super) fn count_rest(&mut self, first: usize, multiply_adds: u64) {
        let counted: u64 = self.plan.steps[first..].iter().map(|step| step.multiply_adds).sum();
        self.count(multiply_adds.saturating_sub(counted));
    }

    /// Adds a step that runs an op by its naive definition: for ops on a few integers, whose speed does not
    /// matter.
    pub(crate) fn by_definition(&mut self, op: &OpView) -> Result<(), Error> {
        let is_computed = |id: &ValueId| !matches!(self.function.value(*id).def, Def::Const(_));
        let mut reads: Vec<ValueId> = op.op().args.iter().flat_map(|arg| arg.values()).copied().collect();
        for id in &reads {
            if let Def::Const(constant) = &self.function.value(*id).def {
                self.plan.weight_bytes += stored_bytes(constant);
            }
        }
        reads.retain(is_computed);
        reads.sort_unstable();
        reads.dedup();
        let (function, node, bound) = (self.shared.clone(), op.op().clone(), reads.clone());
        self.step(op, &reads, &op.op().outputs, move |io| {
            let view = function.view(&node);
            let lookup = |id: ValueId| gather_operand(&function, &bound, id, io);
            let results = evaluate(&view, &lookup)?;
            let (mut floats, mut ints) = (io.out.iter_mut(), io.int_out.iter_mut());
            for result in results {
                match result.data() {
                    Data::Float(values) => {
                        floats.next().into_iter().for_each(|out| out.copy_from_slice(values))
                    }
                    Data::Int(values) => ints.next().into_iter().for_each(|out| out.copy_from_slice(values)),
                }
            }
            Ok(())
        })
    }
}

/// The precision of products with a constant weight of a name, or without one.
fn precision(options: &Options, weight: Option<&str>) -> Precision {
    match (options.arithmetic, weight) {
        (Arithmetic::F32 | Arithmetic::AsDeclared, _) => Precision::F32,
        (Arithmetic::Bf16, _) => Precision::Bf16,
        (Arithmetic::Int8, Some(name)) if !options.full_precision.contains(name) => Precision::Int8,
        (Arithmetic::Int8, _) => Precision::fastest(),
    }
}

/// The tensor bound to `id` among a step's reads, which are `bound` in order.
fn gather_operand(function: &Function, bound: &[ValueId], id: ValueId, io: &Io) -> Option<Tensor> {
    let is_float = |id: ValueId| function.value(id).ty.dtype.is_float();
    let position = bound.iter().position(|&other| other == id)?;
    let before = bound[..position].iter().filter(|&&other| is_float(other) == is_float(id)).count();
    let data = match is_float(id) {
        true => Data::Float(io.floats[before].to_vec()),
        false => Data::Int(io.ints[before].to_vec()),
    };
    Tensor::new(&function.value(id).ty.shape, data).ok()
}
