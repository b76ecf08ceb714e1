//! The difference of two backends, at every intermediate value of a run.

use std::collections::BTreeSet;

use mixbit_mil::{Function, ValueId};

use crate::tensor::numbers;
use crate::{Backend, Error, Options, Tensor};

/// The difference between the results of one op on two backends.
#[derive(Clone, Debug, PartialEq)]
pub struct OpDifference {
    /// The op that makes the value, as messages call it.
    pub op: String,
    /// The value's name.
    pub value: String,
    /// The greatest difference of two finite elements, relative to the greatest finite element of the
    /// expected value. Absolute if all of these are zero.
    pub relative: f64,
    /// Elements that are not finite on one side only, or not the same infinity.
    pub not_finite: usize,
    /// Elements of the actual value that are NaN.
    pub nan: usize,
    /// The least and the greatest finite element of the expected and of the actual value.
    pub ranges: [(f64, f64); 2],
}

/// Runs a function on two backends and compares the results of its ops, in the order of the ops.
///
/// `chosen` picks the values by name. A chosen value becomes an output, so a chain around it is not fused. To
/// test a fused chain, choose its result.
///
/// # Errors
/// Those of compiling and running the function.
pub fn compare(
    function: &Function,
    [expected, actual]: [&dyn Backend; 2],
    options: &Options,
    inputs: &[(&str, &Tensor)],
    chosen: impl Fn(&str) -> bool,
) -> Result<Vec<OpDifference>, Error> {
    let function = mixbit_mil::constexpr::decoded(function)?;
    let made = function.ops().iter().flat_map(|op| {
        let label = function.view(op).label();
        op.outputs.iter().map(move |&id| (id, label.clone()))
    });
    let chosen: Vec<(ValueId, String)> = made.filter(|(id, _)| chosen(&function.value(*id).name)).collect();
    let outputs: BTreeSet<ValueId> = chosen.iter().map(|(id, _)| *id).collect();
    let outputs: Vec<ValueId> = outputs.into_iter().collect();
    let probed = function.with_outputs(&outputs);
    let expected = expected.compile(&probed, options)?.run(inputs)?;
    let actual = actual.compile(&probed, options)?.run(inputs)?;
    let difference = |(id, op): (ValueId, String)| {
        let at = outputs.binary_search(&id).ok()?;
        let value = function.value(id).name.clone();
        Some(difference(op, value, &numbers(&expected[at]), &numbers(&actual[at])))
    };
    Ok(chosen.into_iter().filter_map(difference).collect())
}

fn difference(op: String, value: String, expected: &[f64], actual: &[f64]) -> OpDifference {
    let (mut greatest, mut peak, mut not_finite) = (0.0f64, 0.0f64, 0);
    for (&e, &a) in expected.iter().zip(actual) {
        if e.is_finite() {
            peak = peak.max(e.abs());
        }
        match e.is_finite() && a.is_finite() {
            true => greatest = greatest.max((e - a).abs()),
            false => not_finite += usize::from(e != a && !(e.is_nan() && a.is_nan())),
        }
    }
    OpDifference {
        op,
        value,
        relative: if peak > 0.0 { greatest / peak } else { greatest },
        not_finite,
        nan: actual.iter().filter(|x| x.is_nan()).count(),
        ranges: [range(expected), range(actual)],
    }
}

/// The least and the greatest finite number; infinite if there is none.
fn range(values: &[f64]) -> (f64, f64) {
    let finite = values.iter().filter(|x| x.is_finite());
    finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &x| (low.min(x), high.max(x)))
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Builder, DType, Opset, TensorType};

    use super::*;
    use crate::{Model, Reference};

    fn function(second: &str) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [3])).unwrap();
        let mut value = x;
        for (op, name) in [("exp", "a"), (second, "b"), ("sqrt", "c")] {
            value = b.op(op).arg("x", value).named(name).add().unwrap();
        }
        b.finish(&[value]).unwrap()
    }

    /// A backend with one wrong op: it squares where it should take the absolute value.
    struct Wrong;

    impl Backend for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }

        fn compile(&self, probed: &Function, options: &Options) -> Result<Model, Error> {
            let outputs: Vec<ValueId> = probed.outputs().to_vec();
            Reference.compile(&function("square").with_outputs(&outputs), options)
        }
    }

    #[test]
    fn the_first_op_that_differs_is_found() {
        let x = Tensor::from_f32(&[3], vec![0.0, 1.0, 2.0]).unwrap();
        let options = Options::default();
        let found =
            compare(&function("abs"), [&Reference, &Wrong], &options, &[("x", &x)], |_| true).unwrap();
        let values: Vec<(&str, bool)> =
            found.iter().map(|found| (found.value.as_str(), found.relative > 1e-3)).collect();
        assert_eq!(values, [("a", false), ("b", true), ("c", true)]);
        let e = 1f64.exp();
        assert_eq!(found[1].op, "abs `b`");
        assert!((found[1].relative - (e * e - 1.0)).abs() < 1e-5, "{:?}", found[1]);
    }

    #[test]
    fn elements_that_are_not_finite_on_one_side_are_counted() {
        let found = difference(
            String::new(),
            String::new(),
            &[1.0, f64::NAN, f64::INFINITY, 4.0],
            &[f64::NAN, f64::NAN, f64::NEG_INFINITY, 3.0],
        );
        assert_eq!((found.not_finite, found.nan, found.relative), (2, 2, 0.25));
        assert_eq!(found.ranges, [(1.0, 4.0), (3.0, 3.0)]);
    }
}
