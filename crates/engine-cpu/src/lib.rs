//! The CPU backend: fuses chains of ops, plans memory by liveness, calls the kernels.
//!
//! ```
//! use mixbit_engine::{Backend, Options, Tensor};
//! use mixbit_engine_cpu::Cpu;
//! use mixbit_mil::{Builder, DType, Opset, TensorType};
//!
//! let mut b = Builder::new("main", Opset::Ios16);
//! let x = b.input("x", TensorType::new(DType::F32, [2, 3]))?;
//! let y = b.op("softmax").arg("x", x).arg("axis", -1).named("y").add()?;
//! let function = b.finish(&[y])?;
//!
//! let mut model = Cpu::new(None)?.compile(&function, &Options::default())?;
//! let x = Tensor::from_f32(&[2, 3], vec![0.0; 6])?;
//! let y = model.run(&[("x", &x)])?.remove(0);
//! assert!((y.as_f32().unwrap()[0] - 1.0 / 3.0).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod encoded;
mod lower;
mod memory;
mod ops;
mod packing;
mod plan;
mod weight;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use mixbit_engine::fuse::{Declined, Fused, fuse};
use mixbit_engine::{
    Arithmetic, Backend, Cancel, Data, Error, Executable, MemoryBudget, Model, Options, Reservation, Tensor,
    Timing, TracedStep,
};
use mixbit_kernels::{OutOfMemory, Precision, ThreadPool, with_memory};
use mixbit_mil::{DType, Function};

use lower::lower;
pub use memory::available_memory;
use memory::{Arenas, Regions, needed};
use packing::Packing;
use plan::{Io, Place, Plan, PlanBuilder, Step};

/// The memory of a machine that does not say how much it has left.
const USUAL_MEMORY: u64 = 1 << 32;

/// Runs functions on the CPU, with the kernels of this machine.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<ThreadPool>,
    /// The machine's memory, for models without a budget of their own.
    budget: MemoryBudget,
}

impl Cpu {
    /// A backend with the given number of threads; `None`: one for each logical CPU.
    ///
    /// # Errors
    /// [`Error::Threads`] if they can't be started.
    pub fn new(threads: Option<usize>) -> Result<Self, Error> {
        let pool = ThreadPool::new(threads).map_err(|error| Error::Threads(error.to_string()))?;
        let budget = MemoryBudget::new(available_memory().unwrap_or(USUAL_MEMORY));
        Ok(Cpu { pool: Arc::new(pool), budget })
    }

    /// The budget of a model: its own, or the machine's memory if it has none.
    fn budget<'b>(&'b self, options: &'b Options) -> &'b MemoryBudget {
        if options.budget.is_unlimited() { &self.budget } else { &options.budget }
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The measured peak of multiply-adds in registers on all threads, in operations per second; a
    /// multiplication and an addition are two. Takes about a quarter of a second. `None` if the CPU has no
    /// instruction for it, or [`mixbit_kernels::peak`] does not know it.
    pub fn peak(&self, arithmetic: Arithmetic) -> Option<f64> {
        let precision = match arithmetic {
            Arithmetic::F32 | Arithmetic::AsDeclared => Precision::F32,
            Arithmetic::Bf16 => Precision::Bf16,
            Arithmetic::Int8 => Precision::Int8,
        };
        mixbit_kernels::peak::measure(precision, &self.pool)
    }
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn compile(&self, function: &Function, options: &Options) -> Result<Model, Error> {
        let function = simplified(function)?;
        let budget = self.budget(options);
        let Planned { plan, regions, declined } = plan(&function, options, budget)?;
        let held = reserve(plan.held_bytes, budget)?;
        let run = CpuRun {
            pool: self.pool.clone(),
            _held: held,
            budget: budget.clone(),
            arenas: None,
            arithmetic: options.arithmetic,
            times: vec![StepTimes::default(); plan.steps.len()],
            constant_steps: plan.constant_steps(),
            ready_outputs: plan.outputs_by_step(),
            holds_constants: false,
            declined,
            regions,
            plan,
        };
        Ok(Model::new(&function, Box::new(run)))
    }

    fn arena_bytes(&self, function: &Function, options: &Options) -> Result<usize, Error> {
        let function = simplified(function)?;
        let planned = plan(&function, options, self.budget(options))?;
        Ok(planned.regions.bytes())
    }

    fn available_memory(&self) -> Option<u64> {
        available_memory()
    }

    /// [`Arithmetic::Bf16`] where the CPU multiplies bfloat16 faster than `f32`.
    fn fastest(&self) -> Arithmetic {
        if Precision::fastest() == Precision::Bf16 { Arithmetic::Bf16 } else { Arithmetic::F32 }
    }
}

/// Memory that a model holds as long as it lives.
fn reserve(bytes: usize, budget: &MemoryBudget) -> Result<Reservation, Error> {
    let needed = || Error::Memory { needed: budget.used().saturating_add(bytes as u64) as f64 / 1e9 };
    budget.reserve(bytes as u64).ok_or_else(needed)
}

/// A verified function without dead code, whose compressed constants are weights that know their encoding.
fn simplified(function: &Function) -> Result<Function, Error> {
    mixbit_mil::verify(function)?;
    Ok(mixbit_mil::passes::DEAD_CODE.run(&mixbit_mil::constexpr::decoded(function)?))
}

/// A lowered function whose arenas are planned and fit into memory.
struct Planned {
    plan: Plan,
    regions: Regions,
    declined: Vec<Declined>,
}

/// Plans a function: with packed weights if it is to run often, and without if those leave too little memory
/// for a run.
fn plan(function: &Function, options: &Options, budget: &MemoryBudget) -> Result<Planned, Error> {
    match plan_once(function, options, budget) {
        Err(Error::Memory { .. }) if Packing::pays(options.planned_runs) => {
            plan_once(function, &Options { planned_runs: 1, ..options.clone() }, budget)
        }
        planned => planned,
    }
}

fn plan_once(function: &Function, options: &Options, budget: &MemoryBudget) -> Result<Planned, Error> {
    let mut builder = PlanBuilder::new(function, options, budget);
    // A fused step rounds only its last result; declared arithmetic rounds every one.
    let fused = match options.arithmetic {
        Arithmetic::F32 | Arithmetic::Bf16 | Arithmetic::Int8 => fuse(function),
        Arithmetic::AsDeclared => Fused::single_ops(function),
    };
    for node in &fused.nodes {
        let first = builder.steps();
        lower(node, &mut builder)?;
        builder.count_rest(first, node.multiply_adds(function));
    }
    let plan = builder.finish()?;
    let regions = Regions::plan(&plan.buffers, &plan.lifetimes());
    Arenas::new(&regions, budget)?;
    Ok(Planned { plan, regions, declined: fused.declined })
}

/// A compiled function and its memory.
struct CpuRun {
    pool: Arc<ThreadPool>,
    plan: Plan,
    regions: Regions,
    budget: MemoryBudget,
    /// For the constants that are held as copies.
    _held: Reservation,
    /// Taken by the first run.
    arenas: Option<Arenas>,
    arithmetic: Arithmetic,
    times: Vec<StepTimes>,
    /// The steps that depend on constant inputs alone.
    constant_steps: Vec<bool>,
    /// The positions of the outputs that are ready before the first step, and after each.
    ready_outputs: Vec<Vec<usize>>,
    /// True if the arena holds the results of these steps for the inputs that it holds.
    holds_constants: bool,
    declined: Vec<Declined>,
}

/// The times of a step.
#[derive(Clone, Debug, Default)]
struct StepTimes {
    /// The number of runs.
    runs: u32,
    /// The duration of all runs.
    sum: Duration,
    /// The start in the last run, from its beginning, and the duration.
    last: Option<(Duration, Duration)>,
}

impl StepTimes {
    /// Adds a run.
    fn add(&mut self, start: Duration, duration: Duration) {
        let (runs, sum) = (self.runs + 1, self.sum + duration);
        *self = StepTimes { runs, sum, last: Some((start, duration)) };
    }
}

impl Executable for CpuRun {
    fn run(
        &mut self,
        inputs: &[&Tensor],
        cancel: &Cancel,
        output: &mut dyn FnMut(usize, Tensor),
    ) -> Result<(), Error> {
        let CpuRun {
            pool,
            plan,
            regions,
            budget,
            arenas,
            arithmetic,
            times,
            constant_steps,
            ready_outputs,
            holds_constants,
            ..
        } = self;
        let Arenas { floats, ints } = match arenas {
            Some(arenas) => arenas,
            None => arenas.insert(Arenas::new(regions, budget)?),
        };
        // Nothing is held until this run has come to its end: a cancelled one leaves any content in the
        // arena.
        let mut is_held = std::mem::take(holds_constants);
        for (input, tensor) in plan.inputs.iter().zip(inputs) {
            let range = regions.ranges[input.buffer].clone();
            let is_same = match tensor.data() {
                Data::Float(values) => put(values, &mut floats[range]),
                Data::Int(values) => put(values, &mut ints[range]),
            };
            is_held &= is_same || !input.is_constant;
        }
        let start = Instant::now();
        for &index in &ready_outputs[0] {
            output(index, copied(plan, index, regions, floats, ints)?);
        }
        for (index, step) in plan.steps.iter().enumerate() {
            cancel.check()?;
            if is_held && constant_steps[index] {
                times[index].last = None;
            } else {
                let begin = Instant::now();
                let mut io = regions.borrow(step, &plan.constants, floats, ints);
                let result = with_memory(|| {
                    pool.install(|| (step.prepare)());
                    pool.install_until(cancel.flag(), || (step.run)(&mut io))
                });
                cancel.check()?;
                result.map_err(|OutOfMemory { bytes }| Error::Memory {
                    needed: needed(bytes as u64, budget) as f64 / 1e9,
                })??;
                if *arithmetic == Arithmetic::AsDeclared {
                    round_results(step, &mut io);
                }
                times[index].add(begin.duration_since(start), begin.elapsed());
            }
            for &index in &ready_outputs[index + 1] {
                output(index, copied(plan, index, regions, floats, ints)?);
            }
        }
        *holds_constants = true;
        Ok(())
    }

    fn arena_bytes(&self) -> usize {
        self.regions.bytes()
    }

    fn release_arena(&mut self) {
        self.arenas = None;
        self.holds_constants = false;
    }

    fn weight_bytes(&self) -> usize {
        self.plan.weight_bytes
    }

    fn profile(&self) -> Vec<Timing> {
        let mut kinds: BTreeMap<&str, Timing> = BTreeMap::new();
        for (step, times) in self.plan.steps.iter().zip(&self.times) {
            let kind = step.kind();
            let timing = kinds.entry(kind).or_insert_with(|| Timing {
                kind: kind.to_string(),
                steps: 0,
                time: Duration::ZERO,
                multiply_adds: 0,
            });
            timing.steps += usize::from(times.last.is_some());
            timing.time += times.sum;
            timing.multiply_adds += u64::from(times.runs) * step.multiply_adds;
        }
        kinds.into_values().collect()
    }

    fn trace(&self) -> Vec<TracedStep> {
        let traced = |(step, times): (&Step, &StepTimes)| {
            times.last.map(|(start, duration)| TracedStep {
                label: step.label().to_string(),
                kind: step.kind().to_string(),
                multiply_adds: step.multiply_adds,
                start,
                duration,
            })
        };
        self.plan.steps.iter().zip(&self.times).filter_map(traced).collect()
    }

    fn describe(&self) -> String {
        let mut text = format!("{} steps, {} bytes of arena\n", self.plan.steps.len(), self.arena_bytes());
        for step in &self.plan.steps {
            let ranges = |buffers: Vec<usize>| {
                let one = |buffer: &usize| format!("{:?}", self.regions.ranges[*buffer]);
                buffers.iter().map(one).collect::<Vec<_>>().join(" ")
            };
            let (reads, writes) = (ranges(step.read_buffers().collect()), ranges(step.writes.clone()));
            let _ = writeln!(text, "{}: {reads} -> {writes}", step.label());
        }
        for declined in &self.declined {
            let _ = writeln!(text, "not fused: {}: {}: {}", declined.op, declined.rule, declined.reason);
        }
        text
    }
}

/// A copy of an output.
fn copied(
    plan: &Plan,
    index: usize,
    regions: &Regions,
    floats: &[f32],
    ints: &[i32],
) -> Result<Tensor, Error> {
    let (place, shape) = &plan.outputs[index];
    let data = match *place {
        Place::Const(index) => plan.constants[index].clone(),
        Place::Buffer(buffer) => match plan.buffers[buffer].is_float {
            true => Data::Float(floats[regions.ranges[buffer].clone()].to_vec()),
            false => Data::Int(ints[regions.ranges[buffer].clone()].to_vec()),
        },
    };
    Tensor::new(shape, data)
}

/// Copies an input to its place; `true` if the place held it already, bit for bit.
fn put<T: bytemuck::Pod>(values: &[T], place: &mut [T]) -> bool {
    let is_same = bytemuck::cast_slice::<T, u32>(values) == bytemuck::cast_slice::<T, u32>(place);
    place.copy_from_slice(values);
    is_same
}

fn round_results(step: &Step, io: &mut Io) {
    let half = step.write_types.iter().filter(|dtype| dtype.is_float()).map(|&dtype| dtype == DType::F16);
    for (out, half) in io.out.iter_mut().zip(half) {
        if half {
            out.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Builder, Opset, TensorType};

    use super::*;

    /// `relu(x + x)` of a vector.
    fn doubled(len: usize) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [len])).unwrap();
        let sum = b.op("add").arg("x", x).arg("y", x).add().unwrap();
        let relu = b.op("relu").arg("x", sum).named("relu").add().unwrap();
        b.finish(&[relu]).unwrap()
    }

    #[test]
    fn an_arena_is_taken_by_a_run_and_can_be_given_back() {
        let (cpu, options, function) = (Cpu::new(Some(1)).unwrap(), Options::default(), doubled(3));
        let mut model = cpu.compile(&function, &options).unwrap();
        assert!(model.arena_bytes() >= 3 * size_of::<f32>());
        assert_eq!(cpu.arena_bytes(&function, &options).unwrap(), model.arena_bytes());
        let x = Tensor::from_f32(&[3], vec![-1.0, 0.5, 2.0]).unwrap();
        for _ in 0..2 {
            let results = model.run(&[("x", &x)]).unwrap();
            assert_eq!(results[0].as_f32().unwrap(), [0.0, 1.0, 4.0]);
            model.release_arena();
        }
    }

    #[test]
    fn dense_weights_stay_packed_for_many_runs() {
        let (rows, depth, outs) = (5, 33, 21);
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [rows, depth])).unwrap();
        let weight = |count: usize| (0..count).map(|i| f16::from_f32((i as f32).sin())).collect::<Vec<_>>();
        let bytes = mixbit_mil::Bytes::new(bytemuck::allocation::pod_collect_to_vec::<f16, u8>(&weight(
            outs * depth,
        )));
        let weight =
            mixbit_mil::WeightRef::new("w", TensorType::new(DType::F16, [outs, depth]), bytes).unwrap();
        let weight = b.weight(weight.cast(DType::F32));
        let y = b.op("linear").arg("x", x).arg("weight", weight).named("y").add().unwrap();
        let function = b.finish(&[y]).unwrap();
        let values = (0..rows * depth).map(|i| (i as f32).cos()).collect();
        let x = Tensor::from_f32(&[rows, depth], values).unwrap();
        let cpu = Cpu::new(Some(1)).unwrap();
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
            let planned = |planned_runs, budget: &MemoryBudget| {
                let options =
                    Options { arithmetic, planned_runs, budget: budget.clone(), ..Options::default() };
                cpu.compile(&function, &options).unwrap()
            };
            let [wide, narrow] = [1 << 20, 10_000].map(MemoryBudget::new);
            let mut packed = planned(5, &wide);
            // Planned for few runs; without enough memory.
            let mut stored = [planned(4, &wide), planned(5, &narrow)];
            for _ in 0..6 {
                let expected = packed.run(&[("x", &x)]).unwrap();
                for model in &mut stored {
                    assert_eq!(model.run(&[("x", &x)]).unwrap(), expected);
                }
            }
            assert_eq!(stored[0].weight_bytes(), 2 * outs * depth, "{arithmetic:?}");
            assert_eq!(stored[1].weight_bytes(), 2 * outs * depth, "{arithmetic:?}");
            assert!(packed.weight_bytes() > 3 * outs * depth, "{arithmetic:?}");
            let optional = packed.weight_bytes() - stored[0].weight_bytes();
            assert_eq!(wide.used_optionally(), optional as u64, "{arithmetic:?}");
            drop(packed);
            assert_eq!(wide.used_optionally(), 0);
        }
    }

    #[test]
    fn values_that_depend_on_constant_inputs_alone_are_kept() {
        let mut b = Builder::new("main", Opset::Ios16);
        let [x, s] = ["x", "s"].map(|name| b.input(name, TensorType::new(DType::F32, [3])).unwrap());
        // Two steps that are steady, the first needed by the second only; one of both; and results of all
        // kinds.
        let twice = b.op("add").arg("x", s).arg("y", s).named("twice").add().unwrap();
        let root = b.op("sqrt").arg("x", twice).named("root").add().unwrap();
        let sum = b.op("add").arg("x", x).arg("y", root).named("sum").add().unwrap();
        let last = b.op("relu").arg("x", sum).named("last").add().unwrap();
        let function = b.finish(&[last, root]).unwrap();
        let constant_inputs = ["s".to_string()].into();
        let options = Options { constant_inputs, ..Options::default() };
        let cpu = Cpu::new(Some(1)).unwrap();
        let mut model = cpu.compile(&function, &options).unwrap();
        let mut plain = cpu.compile(&function, &Options::default()).unwrap();
        let mut check = |release: bool, x: [f32; 3], s: [f32; 3], steps: usize| {
            if release {
                model.release_arena();
            }
            let [x, s] = [x, s].map(|values| Tensor::from_f32(&[3], values.to_vec()).unwrap());
            let inputs = [("x", &x), ("s", &s)];
            assert_eq!(model.run(&inputs).unwrap(), plain.run(&inputs).unwrap());
            assert_eq!(model.trace().len(), steps);
        };
        let (a, b) = ([1.0, 2.0, 3.0], [0.5, 2.0, 8.0]);
        check(false, a, b, 4);
        check(false, b, b, 2);
        check(false, a, b, 2);
        check(false, a, a, 4);
        check(false, a, b, 4);
        check(true, a, b, 4);
        check(false, b, b, 2);
    }

    #[test]
    fn a_profile_counts_all_runs_and_a_trace_the_last() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [2, 3])).unwrap();
        let y = b.input("y", TensorType::new(DType::F32, [3, 5])).unwrap();
        let product = b.op("matmul").arg("x", x).arg("y", y).named("product").add().unwrap();
        let relu = b.op("relu").arg("x", product).named("relu").add().unwrap();
        let function = b.finish(&[relu]).unwrap();
        let mut model = Cpu::new(Some(1)).unwrap().compile(&function, &Options::default()).unwrap();
        assert!(model.trace().is_empty());
        let [x, y] = [[2, 3], [3, 5]]
            .map(|[rows, columns]| Tensor::from_f32(&[rows, columns], vec![1.0; rows * columns]).unwrap());
        for _ in 0..3 {
            model.run(&[("x", &x), ("y", &y)]).unwrap();
        }
        let mut counted: Vec<_> = model
            .profile()
            .into_iter()
            .map(|timing| (timing.kind, timing.steps, timing.multiply_adds))
            .collect();
        counted.sort();
        assert_eq!(counted, [("matmul".to_string(), 1, 3 * 30), ("relu".to_string(), 1, 0)]);
        let trace = model.trace();
        let steps: Vec<_> = trace.iter().map(|step| (step.kind.as_str(), step.multiply_adds)).collect();
        assert_eq!(steps, [("matmul", 30), ("relu", 0)]);
        assert!(trace[0].label.contains("product"));
        assert!(trace[0].start + trace[0].duration <= trace[1].start);
    }

    #[test]
    fn an_arena_that_does_not_fit_is_refused_before_it_is_taken() {
        let (cpu, options, function) = (Cpu::new(Some(1)).unwrap(), Options::default(), doubled(1 << 45));
        assert!(matches!(cpu.compile(&function, &options), Err(Error::Memory { .. })));
        assert!(matches!(cpu.arena_bytes(&function, &options), Err(Error::Memory { .. })));
    }
}
