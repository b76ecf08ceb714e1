//! The op suite: for every op of the MIL table, cases that both backends must agree on.
//!
//! - `f32`: the CPU backend against the reference, relative error 1e-5, the same NaN and infinities, and the same bits with 1, 2 and 3 threads.
//! - `f16`, in declared arithmetic: within one unit in the last place of half precision.
//! - NaN and infinities in every operand: what is NaN in the reference is NaN on the CPU.
//! - `compressed`: constants that stay compressed, against the same decoded.
//! - `hostile`: inputs that don't fit.
//! - `oracle`: the reference against PyTorch and coremltools.

mod activation;
mod binary;
mod case;
mod compressed;
mod constexpr;
mod convolution;
mod hostile;
mod large;
mod linear;
mod normalization;
mod oracle;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

use mixbit_engine::{Arithmetic, Backend, Data, Error, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::DType;
use mixbit_testkit::{ErrorStats, Failures};

use case::{Case, Feeds};

/// Every case: by family as in the op table, then those that are large.
fn cases() -> Vec<Case> {
    let families: [fn() -> Vec<Case>; 11] = [
        activation::cases,
        binary::cases,
        constexpr::cases,
        convolution::cases,
        linear::cases,
        normalization::cases,
        reduction::cases,
        scatter_gather::cases,
        shape::cases,
        unary::cases,
        large::cases,
    ];
    families.iter().flat_map(|family| family()).collect()
}

/// CPU backends with 1, 2 and 3 threads.
fn cpus() -> [Cpu; 3] {
    [1, 2, 3].map(|threads| Cpu::new(Some(threads)).expect("threads start"))
}

fn run(
    backend: &dyn Backend,
    function: &mixbit_mil::Function,
    arithmetic: Arithmetic,
    feeds: &Feeds,
) -> Result<Vec<Tensor>, Error> {
    let feeds: Vec<(&str, &Tensor)> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    backend.compile(function, &Options { arithmetic, ..Options::default() })?.run(&feeds)
}

/// Whether two results hold the same bits.
fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a.data(), b.data()) {
        (Data::Float(a), Data::Float(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => a == b,
    }
}

/// The largest error of a result, relative to its largest value.
const TOLERANCE: f64 = 1e-5;

fn compare(actual: &Tensor, expected: &Tensor, element: DType) -> Result<(), String> {
    if actual.shape() != expected.shape() {
        return Err(format!("shape {:?} for {:?}", actual.shape(), expected.shape()));
    }
    let (a, e) = match (actual.data(), expected.data()) {
        (Data::Int(a), Data::Int(e)) if a == e => return Ok(()),
        (Data::Int(a), Data::Int(e)) => return Err(format!("{a:?} for {e:?}")),
        (Data::Float(a), Data::Float(e)) => (a, e),
        _ => return Err("floats for integers or the reverse".to_string()),
    };
    let stats = ErrorStats::compare(a, e);
    if element != DType::F16 {
        return stats.within(TOLERANCE);
    }
    let peak = e.iter().filter(|e| e.is_finite()).fold(0.0, |peak, e| e.abs().max(peak));
    // One unit in the last place: 2^-10 of the value between powers of two, 2^-24 among subnormals.
    let allowed = |e: f32| f64::from(e.abs()) / 1024.0 + 2f64.powi(-24) + TOLERANCE * f64::from(peak);
    let far = |(a, e): (&f32, &f32)| (f64::from(*a) - f64::from(*e)).abs() > allowed(*e);
    match stats.bad > 0 || a.iter().zip(e).any(far) {
        true => Err(format!("{stats}, further than one f16 step")),
        false => Ok(()),
    }
}

/// Runs a case in one element type on the reference and on the CPU.
fn check(case: &Case, element: DType, arithmetic: Arithmetic, cpus: &[Cpu]) -> Result<(), String> {
    let (function, feeds) = case.function(element).map_err(|error| error.to_string())?;
    let expected =
        run(&Reference, &function, arithmetic, &feeds).map_err(|error| format!("reference: {error}"))?;
    if let Some(known) = &case.expected {
        check_known(&expected, known, element)?;
    }
    let mut first: Option<Vec<Tensor>> = None;
    for cpu in cpus {
        let actual = run(cpu, &function, arithmetic, &feeds).map_err(|error| format!("cpu: {error}"))?;
        if actual.len() != expected.len() {
            return Err(format!("{} results for {}", actual.len(), expected.len()));
        }
        match &first {
            None => {
                for (actual, expected) in actual.iter().zip(&expected) {
                    compare(actual, expected, element)?;
                }
                first = Some(actual);
            }
            Some(first) if !first.iter().zip(&actual).all(|(a, b)| same_bits(a, b)) => {
                return Err(format!("{} threads give other bits than 1", cpu.threads()));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Compares the reference with results known from elsewhere.
fn check_known(found: &[Tensor], known: &[Vec<f64>], element: DType) -> Result<(), String> {
    if found.len() != known.len() {
        return Err(format!("{} results for {}", found.len(), known.len()));
    }
    let limit = if element == DType::F16 { 2e-3 } else { 1e-6 };
    for (found, known) in found.iter().zip(known) {
        let found: Vec<f64> = match found.data() {
            Data::Float(values) => values.iter().map(|&x| x.into()).collect(),
            Data::Int(values) => values.iter().map(|&x| x.into()).collect(),
        };
        if found.len() != known.len() {
            return Err(format!("{} elements for {}", found.len(), known.len()));
        }
        ErrorStats::compare(&found, known).within(limit).map_err(|error| format!("reference: {error}"))?;
    }
    Ok(())
}

#[test]
fn every_op_of_the_table_has_cases() {
    let cases = cases();
    let without: Vec<&str> = mixbit_mil::ops::OPS
        .iter()
        .flat_map(|family| family.iter())
        .map(|def| def.name)
        .filter(|name| cases.iter().all(|case| case.op != *name))
        .collect();
    assert!(without.is_empty(), "ops without a case: {without:?}");
}

#[test]
fn cpu_equals_the_reference_in_f32() {
    let cpus = cpus();
    let mut failures = Failures::new("ops in f32");
    for case in cases() {
        failures.case(&case.label, || check(&case, DType::F32, Arithmetic::F32, &cpus));
    }
    failures.finish();
}

#[test]
fn cpu_equals_the_reference_in_declared_f16() {
    let cpus = cpus();
    let mut failures = Failures::new("ops in f16");
    for case in cases().iter().filter(|case| case.runs_in_half()) {
        failures.case(&case.label, || check(case, DType::F16, Arithmetic::AsDeclared, &cpus[1..]));
    }
    failures.finish();
}

/// The first, the middle and the last element of each operand become NaN and the infinities in turn.
#[test]
fn nan_and_infinities_reach_the_result() {
    let cpus = cpus();
    let mut failures = Failures::new("ops on NaN and infinities");
    for case in cases().iter().filter(|case| case.has_floats() && case.poisoned) {
        for operand in 0..case.operands.len() {
            let case::Values::Floats(values) = &case.operands[operand].values else { continue };
            let places = [values.len() / 2, 0, values.len().saturating_sub(1)];
            for (at, value) in places.into_iter().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY]) {
                let Some(poisoned) = case.with_value(operand, at, value) else { continue };
                failures.case(&format!("{value} at {at} of operand {operand}: {}", case.label), || {
                    check(&poisoned, DType::F32, Arithmetic::F32, &cpus[1..2])
                });
            }
        }
    }
    failures.finish();
}
