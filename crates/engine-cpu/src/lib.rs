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
mod fuse;
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
use mixbit_engine::{
    Arithmetic, Backend, Cancel, Data, Error, Executable, Model, Options, Tensor, Timing, TracedStep,
};
use mixbit_kernels::{Precision, ThreadPool};
use mixbit_mil::{DType, Function};

use memory::{Arenas, Regions};
use plan::{Io, Place, Plan, PlanBuilder, Step};

/// Runs functions on the CPU, with the kernels of this machine.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<ThreadPool>,
}

impl Cpu {
    /// A backend with the given number of threads; `None`: one for each logical CPU.
    ///
    /// # Errors
    /// [`Error::Threads`] if they can't be started.
    pub fn new(threads: Option<usize>) -> Result<Self, Error> {
        Ok(Cpu {
            pool: Arc::new(ThreadPool::new(threads).map_err(|error| Error::Threads(error.to_string()))?),
        })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The rate of multiply-adds in registers on all threads, in operations per second: measured, in about a quarter of a
    /// second. A multiplication and an addition are two operations. `None` where the CPU has no instruction for it, or
    /// [`mixbit_kernels::peak`] does not know it.
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
        let Planned { plan, regions, declined } =
            plan(&function, PlanBuilder::new(&function, options), options)?;
        let run = CpuRun {
            pool: self.pool.clone(),
            arenas: None,
            options: options.clone(),
            times: vec![StepTimes::default(); plan.steps.len()],
            constant_steps: plan.constant_steps(),
            holds_constants: false,
            declined,
            regions,
            plan,
        };
        Ok(Model::new(&function, Box::new(run)))
    }

    fn arena_bytes(&self, function: &Function, options: &Options) -> Result<usize, Error> {
        let function = simplified(function)?;
        let planned = plan(&function, PlanBuilder::new(&function, options), options)?;
        Ok(planned.regions.bytes())
    }

    /// [`Arithmetic::Bf16`] where the CPU multiplies bfloat16 faster than `f32`.
    fn fastest(&self) -> Arithmetic {
        if Precision::fastest() == Precision::Bf16 { Arithmetic::Bf16 } else { Arithmetic::F32 }
    }
}

/// A function that is verified, without what is not used and with compressed constants that know their encoding.
fn simplified(function: &Function) -> Result<Function, Error> {
    mixbit_mil::verify(function)?;
    Ok(mixbit_mil::passes::DEAD_CODE.run(&mixbit_mil::constexpr::decoded(function)?))
}

/// A lowered function whose arenas are planned, and fit in the memory that is left.
struct Planned {
    plan: Plan,
    regions: Regions,
    declined: Vec<fuse::Declined>,
}

fn plan(function: &Function, mut builder: PlanBuilder, options: &Options) -> Result<Planned, Error> {
    // A fused step rounds only its last result; declared arithmetic rounds every one.
    let fused = match options.arithmetic {
        Arithmetic::F32 | Arithmetic::Bf16 | Arithmetic::Int8 => fuse::nodes(function),
        Arithmetic::AsDeclared => fuse::single_ops(function),
    };
    for node in &fused.nodes {
        let first = builder.steps();
        node.lower(&mut builder)?;
        builder.count_rest(first, node.multiply_adds(function));
    }
    let plan = builder.finish()?;
    let regions = Regions::plan(&plan.buffers, &plan.lifetimes());
    Arenas::check(&regions)?;
    Ok(Planned { plan, regions, declined: fused.declined })
}

/// A compiled function and its memory.
struct CpuRun {
    pool: Arc<ThreadPool>,
    plan: Plan,
    regions: Regions,
    /// Taken by the first run.
    arenas: Option<Arenas>,
    options: Options,
    times: Vec<StepTimes>,
    /// The steps that depend on constant inputs alone.
    constant_steps: Vec<bool>,
    /// Whether the arena holds their results for the inputs that it holds.
    holds_constants: bool,
    declined: Vec<fuse::Declined>,
}

/// When a step ran.
#[derive(Clone, Debug, Default)]
struct StepTimes {
    /// How often.
    runs: u32,
    /// How long, in all runs.
    sum: Duration,
    /// When in the last run, from its beginning, and for how long.
    last: Option<(Duration, Duration)>,
}

impl StepTimes {
    /// Counts a run.
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
        let CpuRun { pool, plan, regions, arenas, options, times, constant_steps, holds_constants, .. } =
            self;
        let Arenas { floats, ints } = match arenas {
            Some(arenas) => arenas,
            None => arenas.insert(Arenas::new(regions)?),
        };
        // Nothing is held until this run has come to its end: a cancelled one leaves any content in the arena.
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
        let ready = plan.outputs_by_step();
        for &index in &ready[0] {
            output(index, copied(plan, index, regions, floats, ints)?);
        }
        for (index, step) in plan.steps.iter().enumerate() {
            cancel.check()?;
            if is_held && constant_steps[index] {
                times[index].last = None;
            } else {
                let begin = Instant::now();
                let mut io = regions.borrow(step, &plan.constants, floats, ints);
                pool.install(|| (step.prepare)());
                let result = pool.install_until(cancel.flag(), || (step.run)(&mut io));
                cancel.check()?;
                result?;
                if options.arithmetic == Arithmetic::AsDeclared {
                    round_results(step, &mut io);
                }
                times[index].add(begin.duration_since(start), begin.elapsed());
            }
            for &index in &ready[index + 1] {
                output(index, copied(plan, index, regions, floats, ints)?);
            }
        }
        *holds_constants = true;
        if !options.packs_every_run {
            plan.packing.count_run();
        }
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
        self.plan.weight_bytes + self.plan.packing.bytes()
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
                label: step.label.clone(),
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
            let _ = writeln!(text, "{}: {reads} -> {writes}", step.label);
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

/// Copies an input to its place, and says whether it was there already, bit for bit.
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
    fn dense_weights_stay_packed_after_several_runs() {
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
            let options = Options { arithmetic, ..Options::default() };
            let mut model = cpu.compile(&function, &options).unwrap();
            let mut lean =
                cpu.compile(&function, &Options { packs_every_run: true, ..options.clone() }).unwrap();
            let [mut packed, mut stored] = [Vec::new(), Vec::new()];
            for _ in 0..6 {
                assert_eq!(model.run(&[("x", &x)]).unwrap(), lean.run(&[("x", &x)]).unwrap());
                packed.push(model.weight_bytes());
                stored.push(lean.weight_bytes());
            }
            assert!(
                packed[0] == packed[3] && packed[3] < packed[4] && packed[4] == packed[5],
                "{arithmetic:?}: {packed:?}"
            );
            assert!(stored.iter().all(|bytes| *bytes == packed[0]), "{arithmetic:?}: {stored:?}");
        }
    }

    #[test]
    fn what_depends_on_constant_inputs_alone_is_kept() {
        let mut b = Builder::new("main", Opset::Ios16);
        let [x, s] = ["x", "s"].map(|name| b.input(name, TensorType::new(DType::F32, [3])).unwrap());
        // Two steps that are steady, the first needed by the second only; one of both; and results of all kinds.
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
