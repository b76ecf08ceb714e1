//! The CPU backend: fuses, plans memory, calls the kernels.

mod encoded;
mod fuse;
mod lowering;
mod memory;
mod weight;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use kernels::ThreadPool;
use mil::{DType, Function};

pub(crate) use lowering::{Io, Lowering};
use weight::{ConvKernel, LinearKernel, Weight};

use crate::backend::Executable;
use crate::{Arithmetic, Backend, Data, Error, Model, Options, Tensor, Timing};
use lowering::{Place, Step};
use memory::{Counted, Regions};

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
}

impl Backend for Cpu {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn compile(&self, function: &Function, options: &Options) -> Result<Model, Error> {
        mil::verify(function)?;
        let function = mil::passes::DEAD_CODE.run(&mil::constexpr::decoded(function)?);
        let mut lowering = Lowering::new(&function);
        // A fused step rounds only its last result; declared arithmetic rounds every one.
        let fused = match options.arithmetic {
            Arithmetic::Wide => fuse::nodes(&function),
            Arithmetic::Declared => fuse::single_ops(&function),
        };
        for node in &fused.nodes {
            node.lower(&mut lowering)?;
        }
        let plan = lowering.finish()?;
        let regions = Regions::plan(&plan.buffers, &plan.lifetimes());
        let run = CpuRun {
            pool: self.pool.clone(),
            floats: Counted::zeros(regions.floats)?,
            ints: Counted::zeros(regions.ints)?,
            options: options.clone(),
            times: vec![Duration::ZERO; plan.steps.len()],
            declined: fused.declined,
            regions,
            plan,
        };
        Ok(Model::new(&function, Box::new(run)))
    }
}

/// A compiled function and its memory.
struct CpuRun {
    pool: Arc<ThreadPool>,
    plan: lowering::Plan,
    regions: Regions,
    floats: Counted<f32>,
    ints: Counted<i32>,
    options: Options,
    /// The time that each step took in all runs.
    times: Vec<Duration>,
    declined: Vec<fuse::Declined>,
}

impl Executable for CpuRun {
    fn run(&mut self, inputs: &[&Tensor]) -> Result<Vec<Tensor>, Error> {
        for (place, tensor) in self.plan.inputs.iter().zip(inputs) {
            let Place::Buffer(buffer) = *place else { continue };
            let range = self.regions.ranges[buffer].clone();
            match tensor.data() {
                Data::Float(values) => self.floats[range].copy_from_slice(values),
                Data::Int(values) => self.ints[range].copy_from_slice(values),
            }
        }
        let CpuRun { pool, plan, regions, floats, ints, options, times, .. } = self;
        pool.install(|| {
            for (step, time) in plan.steps.iter().zip(times) {
                options.check_stop()?;
                let begin = Instant::now();
                let mut io = regions.borrow(step, &plan.constants, floats, ints);
                (step.run)(&mut io)?;
                if options.arithmetic == Arithmetic::Declared {
                    round_results(step, &mut io);
                }
                *time += begin.elapsed();
            }
            Ok::<(), Error>(())
        })?;
        let output = |(place, shape): &(Place, Vec<usize>)| {
            let data = match *place {
                Place::Const(index) => self.plan.constants[index].clone(),
                Place::Buffer(buffer) => match self.plan.buffers[buffer].is_float {
                    true => Data::Float(self.floats[self.regions.ranges[buffer].clone()].to_vec()),
                    false => Data::Int(self.ints[self.regions.ranges[buffer].clone()].to_vec()),
                },
            };
            Tensor::new(shape, data)
        };
        self.plan.outputs.iter().map(output).collect()
    }

    fn arena_bytes(&self) -> usize {
        size_of_val(&*self.floats) + size_of_val(&*self.ints)
    }

    fn weight_bytes(&self) -> usize {
        self.plan.weight_bytes
    }

    fn profile(&self) -> Vec<Timing> {
        let mut kinds: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
        for (step, time) in self.plan.steps.iter().zip(&self.times) {
            let kind = step.label.split(' ').next().unwrap_or_default();
            let (steps, sum) = kinds.entry(kind).or_default();
            *steps += 1;
            *sum += *time;
        }
        let timing = |(kind, (steps, time)): (&str, _)| Timing { kind: kind.to_string(), steps, time };
        kinds.into_iter().map(timing).collect()
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

fn round_results(step: &Step, io: &mut Io) {
    let half = step.write_types.iter().filter(|dtype| dtype.is_float()).map(|&dtype| dtype == DType::F16);
    for (out, half) in io.out.iter_mut().zip(half) {
        if half {
            out.iter_mut().for_each(|value| *value = f16::from_f32(*value).to_f32());
        }
    }
}
