//! A backend outside the engine: it runs every function on the reference, counts the ops, and passes the op
//! suite.
//!
//! `cargo run -p mixbit-examples --example backend` prints the counts; the exit code is 1 if the suite fails.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use mixbit_engine::{Backend, Cancel, Error, Executable, Model, Options, Reference, Tensor};
use mixbit_mil::Function;
use mixbit_op_suite::{Exceptions, run};

/// The number of runs of each op.
type Counts = Arc<Mutex<BTreeMap<&'static str, u64>>>;

/// Runs functions on the reference and counts their ops.
#[derive(Default)]
struct Counting {
    counts: Counts,
}

impl Backend for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn compile(&self, function: &Function, options: &Options) -> Result<Model, Error> {
        // The reference checks the function and the options.
        let model = Reference.compile(function, options)?;
        let ops = function.ops().iter().map(|op| op.def.name).collect();
        Ok(Model::new(function, Box::new(CountingRun { model, ops, counts: self.counts.clone() })))
    }
}

/// A compiled function.
struct CountingRun {
    model: Model,
    ops: Vec<&'static str>,
    counts: Counts,
}

impl Executable for CountingRun {
    fn run(
        &mut self,
        inputs: &[&Tensor],
        cancel: &Cancel,
        output: &mut dyn FnMut(usize, Tensor),
    ) -> Result<(), Error> {
        let names: Vec<String> = self.model.inputs().iter().map(|input| input.name.clone()).collect();
        let inputs: Vec<(&str, &Tensor)> =
            names.iter().map(String::as_str).zip(inputs.iter().copied()).collect();
        self.model.run_with(&inputs, cancel, output)?;
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        self.ops.iter().for_each(|op| *counts.entry(op).or_default() += 1);
        Ok(())
    }

    fn arena_bytes(&self) -> usize {
        self.model.arena_bytes()
    }

    fn release_arena(&mut self) {
        self.model.release_arena();
    }

    fn weight_bytes(&self) -> usize {
        self.model.weight_bytes()
    }

    fn describe(&self) -> String {
        self.model.describe()
    }
}

fn main() -> ExitCode {
    let backend = Counting::default();
    let report = run(&backend, &Exceptions::default());
    let counts = backend.counts.lock().unwrap_or_else(PoisonError::into_inner);
    for (op, count) in &*counts {
        println!("{count:>6} {op}");
    }
    println!("{report}");
    if report.is_passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
