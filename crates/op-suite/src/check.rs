//! One function on several backends.

use mixbit_engine::{Backend, Data, Error, Options, Reference, Tensor};
use mixbit_mil::{DType, Function};
use mixbit_testkit::ErrorStats;

use crate::arithmetic;
use crate::case::{Case, Inputs};
use crate::report::Exceptions;

/// Compiles a function and runs it once.
pub(crate) fn run(
    backend: &dyn Backend,
    function: &Function,
    options: &Options,
    inputs: &Inputs,
) -> Result<Vec<Tensor>, String> {
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let run = || -> Result<Vec<Tensor>, Error> { backend.compile(function, options)?.run(&inputs) };
    run().map_err(|error| format!("{}: {error}", backend.name()))
}

/// Runs a case in one element type: the first backend against the reference, the others against the first.
pub(crate) fn check(
    case: &Case,
    element: DType,
    backends: &[&dyn Backend],
    exceptions: &Exceptions,
) -> Result<(), String> {
    let (function, inputs) = case.function(element).map_err(|error| error.to_string())?;
    let options = Options { arithmetic: arithmetic(element), ..Options::default() };
    let expected = run(&Reference, &function, &options, &inputs)?;
    if let Some(shapes) = &case.expected_shapes {
        let found: Vec<&[usize]> = expected.iter().map(Tensor::shape).collect();
        if found != *shapes {
            return Err(format!("reference: shapes {found:?} for {shapes:?}"));
        }
    }
    if let Some(known) = &case.expected {
        check_known(&expected, known, element)?;
    }
    let mut first: Option<Vec<Tensor>> = None;
    for (index, backend) in backends.iter().enumerate() {
        let actual = run(*backend, &function, &options, &inputs)?;
        if actual.len() != expected.len() {
            return Err(format!("{} results for {}", actual.len(), expected.len()));
        }
        match &first {
            None => {
                for (actual, expected) in actual.iter().zip(&expected) {
                    compare(actual, expected, element, exceptions)?;
                }
                first = Some(actual);
            }
            Some(first) if !have_same_bits(first, &actual) => {
                return Err(format!("backend {index} gives other bits than the first"));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// True if two lists of results hold the same bits.
pub(crate) fn have_same_bits(a: &[Tensor], b: &[Tensor]) -> bool {
    let same = |(a, b): (&Tensor, &Tensor)| match (a.data(), b.data()) {
        (Data::Float(a), Data::Float(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => a == b,
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Compares a result with the reference's.
pub(crate) fn compare(
    actual: &Tensor,
    expected: &Tensor,
    element: DType,
    exceptions: &Exceptions,
) -> Result<(), String> {
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
        return stats.within(exceptions.tolerance);
    }
    let peak = e.iter().filter(|e| e.is_finite()).fold(0.0, |peak, e| e.abs().max(peak));
    // One unit in the last place: 2^-10 of the value between powers of two, 2^-24 among subnormals.
    let allowed =
        |e: f32| f64::from(e.abs()) / 1024.0 + 2f64.powi(-24) + exceptions.tolerance * f64::from(peak);
    let far = |(a, e): (&f32, &f32)| (f64::from(*a) - f64::from(*e)).abs() > allowed(*e);
    match stats.bad > 0 || a.iter().zip(e).any(far) {
        true => Err(format!("{stats}, further than one f16 step")),
        false => Ok(()),
    }
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
