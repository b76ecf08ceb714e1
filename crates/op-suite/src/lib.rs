//! The op suite: cases for every op of the MIL table, as data, which any backend runs against the reference.
//!
//! - `f32`: every [`Case`] against [`Reference`](mixbit_engine::Reference), with the same NaN and infinities.
//! - `f16`: in declared arithmetic, within one unit in the last place of half precision.
//! - `not finite`: NaN and infinities in every operand. Where the reference has NaN, so has the backend.
//! - `compressed`: constants that stay compressed, against the same decoded: the same bits, and the memory of
//!   their bits.
//! - `misfit`: inputs that don't fit are refused by name, and the model stays usable.
//! - `chain`: chains of ops that [`fuse`](mixbit_engine::fuse::fuse) makes one
//!   [`Node`](mixbit_engine::fuse::Node) of, and chains that look like them.
//!
//! ```
//! use mixbit_engine::Reference;
//! use mixbit_op_suite::{Exceptions, run};
//!
//! let report = run(&Reference, &Exceptions { only: Some("softmax".to_string()), ..Exceptions::default() });
//! assert!(report.is_passed(), "{report}");
//! ```
//!
//! For tests only: a dependency of tests, without a version.
#![forbid(unsafe_code)]

mod case;
mod cases;
mod chains;
mod check;
mod compressed;
mod misfits;
mod report;

use mixbit_engine::{Arithmetic, Backend};
use mixbit_mil::DType;

pub use case::{Case, Inputs};
pub use cases::cases;
pub use chains::{Chain, Expect, chains};
pub use report::{Exception, Exceptions, Report};

use case::Values;
use check::check;
use report::Collector;

/// Runs the suite on a backend.
pub fn run(backend: &dyn Backend, exceptions: &Exceptions) -> Report {
    run_alike(&[backend], exceptions)
}

/// Runs the suite on backends that must give the same bits, such as one with several numbers of threads.
pub fn run_alike(backends: &[&dyn Backend], exceptions: &Exceptions) -> Report {
    let mut collector = Collector::new(exceptions);
    let cases = cases();
    for case in &cases {
        collector.case("f32", &case.label, || check(case, DType::F32, backends, exceptions));
    }
    for case in cases.iter().filter(|case| case.runs_in_half()) {
        collector.case("f16", &case.label, || check(case, DType::F16, backends, exceptions));
    }
    for case in cases.iter().filter(|case| case.has_floats() && case.poisoned) {
        for (label, poisoned) in poisoned(case) {
            collector.case("not finite", &label, || check(&poisoned, DType::F32, &backends[..1], exceptions));
        }
    }
    compressed::run(backends, exceptions, &mut collector);
    misfits::run(backends, &mut collector);
    chains::run(backends, &mut collector);
    collector.report()
}

/// The case with NaN and the infinities as the middle, the first and the last element of each operand in
/// turn.
fn poisoned(case: &Case) -> Vec<(String, Case)> {
    let mut all = Vec::new();
    for operand in 0..case.operands.len() {
        let Values::Floats(values) = &case.operands[operand].values else { continue };
        let places = [values.len() / 2, 0, values.len().saturating_sub(1)];
        for (at, value) in places.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
            let Some(poisoned) = case.with_value(operand, at, value) else { continue };
            all.push((format!("{} with {value} at {at} of operand {operand}", case.label), poisoned));
        }
    }
    all
}

/// The arithmetic in which cases of an element type are run.
fn arithmetic(element: DType) -> Arithmetic {
    if element == DType::F16 { Arithmetic::AsDeclared } else { Arithmetic::F32 }
}
