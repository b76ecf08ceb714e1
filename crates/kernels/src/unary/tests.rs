use super::*;
use crate::testing::{Tolerance, check, check_cases, random};

/// `erfc` by its continued fraction (far) or its series (near), to 1e-14.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return 1.0 - sum * std::f64::consts::FRAC_2_SQRT_PI;
    }
    let mut fraction = 0.0;
    for n in (1..200).rev() {
        fraction = f64::from(n) / 2.0 / (x + fraction);
    }
    (-x * x).exp() / (x + fraction) / std::f64::consts::PI.sqrt()
}

fn erf(x: f64) -> f64 {
    if x.abs() < 1e-5 { x * std::f64::consts::FRAC_2_SQRT_PI } else { 1.0 - erfc(x) }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    op: UnaryOp,
    oracle: fn(f64) -> f64,
    /// The range that inputs are spread over.
    range: (f32, f32),
    tolerance: Tolerance,
}

const EXACT: Tolerance = Tolerance::OfEach(6.0e-8);
const CLOSE: Tolerance = Tolerance::OfEach(3.0e-7);
/// Where tails are exponentials of a product whose own rounding decides: an ulp at the range's upper end, 12.
const ABSOLUTE: Tolerance = Tolerance::Absolute(1.0e-6);

fn case(op: UnaryOp, oracle: fn(f64) -> f64, range: (f32, f32), tolerance: Tolerance) -> Case {
    Case { op, oracle, range, tolerance }
}

fn cases() -> Vec<Case> {
    use UnaryOp::*;
    vec![
        case(Abs, f64::abs, (-9.0, 9.0), EXACT),
        case(Neg, |x| -x, (-9.0, 9.0), EXACT),
        case(Sign, |x| if x == 0.0 { 0.0 } else { x.signum() }, (-2.0, 2.0), EXACT),
        case(Ceil, f64::ceil, (-9.0, 9.0), EXACT),
        case(Floor, f64::floor, (-9.0, 9.0), EXACT),
        case(Round, f64::round_ties_even, (-9.0, 9.0), EXACT),
        case(Square, |x| x * x, (-9.0, 9.0), EXACT),
        case(Sqrt, f64::sqrt, (0.0, 900.0), EXACT),
        case(Rsqrt { epsilon: 0.5 }, |x| 1.0 / (x + 0.5).sqrt(), (0.0, 90.0), CLOSE),
        case(Inverse { epsilon: 0.5 }, |x| 1.0 / (x + 0.5), (0.0, 90.0), CLOSE),
        case(Exp, f64::exp, (-87.0, 88.0), CLOSE),
        case(Exp2, f64::exp2, (-125.0, 127.0), CLOSE),
        case(Log { epsilon: 0.0 }, f64::ln, (1e-3, 900.0), CLOSE),
        case(Sin, f64::sin, (-1000.0, 1000.0), EXACT),
        case(Cos, f64::cos, (-1000.0, 1000.0), EXACT),
        case(Tanh, f64::tanh, (-12.0, 12.0), CLOSE),
        case(Erf, erf, (-6.0, 6.0), CLOSE),
        case(Sigmoid, |x| 1.0 / (1.0 + (-x).exp()), (-87.0, 87.0), CLOSE),
        case(Silu, |x| x / (1.0 + (-x).exp()), (-80.0, 87.0), CLOSE),
        case(Relu, |x| x.max(0.0), (-9.0, 9.0), EXACT),
        case(Clip { low: -1.0, high: 2.0 }, |x| x.clamp(-1.0, 2.0), (-9.0, 9.0), EXACT),
        case(Gelu, |x| x * 0.5 * erfc(-x / std::f64::consts::SQRT_2), (-5.0, 12.0), CLOSE),
        case(Gelu, |x| x * 0.5 * erfc(-x / std::f64::consts::SQRT_2), (-12.0, 0.0), ABSOLUTE),
        case(GeluTanh, gelu_tanh, (-12.0, 12.0), ABSOLUTE),
        case(
            Swish { slope: 1.702 },
            |x| x / (1.0 + (-f64::from(1.702_f32) * x).exp()),
            (-12.0, 12.0),
            ABSOLUTE,
        ),
    ]
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
    0.5 * x * (1.0 + inner.tanh())
}

/// Inputs over a range, dense near zero, with both ends, both zeros and a vector's remainder.
fn inputs(range: (f32, f32), len: usize) -> Vec<f32> {
    let (low, high) = range;
    let spread = |x: f32| low + (x + 1.0) / 2.0 * (high - low);
    let mut inputs: Vec<f32> = random(1, len)
        .into_iter()
        .enumerate()
        .map(|(index, x)| if index % 4 == 0 { spread(x) * 1e-2 } else { spread(x) })
        .map(|x| x.clamp(low, high))
        .collect();
    for (place, value) in inputs.iter_mut().zip([low, high, 0.0_f32.max(low), -(0.0_f32.max(low))]) {
        *place = value.clamp(low, high);
    }
    inputs
}

#[test]
fn every_function_is_accurate() {
    check_cases(&cases(), |case| {
        for len in [1, 15, 16, 17, 4099, 40_000] {
            let input = inputs(case.range, len);
            let expected: Vec<f64> = input.iter().map(|x| (case.oracle)(f64::from(*x))).collect();
            check(&expected, case.tolerance, |out| unary(case.op, &input, out))
                .map_err(|message| format!("length {len}: {message}"))?;
            check(&expected, case.tolerance, |out| {
                out.copy_from_slice(&input);
                unary_in_place(case.op, out);
            })?;
        }
        Ok(())
    });
}

#[test]
fn nan_stays_nan_and_infinity_saturates() {
    check_cases(&cases(), |case| {
        let mut out = [f32::NAN; 3];
        unary_in_place(case.op, &mut out);
        if out.iter().all(|x| x.is_nan()) { Ok(()) } else { Err(format!("{out:?}")) }
    });
    let limits = [
        (UnaryOp::Exp, f32::NEG_INFINITY, 0.0),
        (UnaryOp::Exp, f32::INFINITY, f32::INFINITY),
        (UnaryOp::Erf, f32::INFINITY, 1.0),
        (UnaryOp::Erf, f32::NEG_INFINITY, -1.0),
        (UnaryOp::Erf, 1e30, 1.0),
        (UnaryOp::Tanh, f32::NEG_INFINITY, -1.0),
        (UnaryOp::Sigmoid, f32::NEG_INFINITY, 0.0),
        (UnaryOp::Sigmoid, f32::INFINITY, 1.0),
        (UnaryOp::Silu, f32::INFINITY, f32::INFINITY),
        (UnaryOp::Silu, f32::MIN, 0.0),
        (UnaryOp::Gelu, 1e30, 1e30),
        (UnaryOp::Gelu, -1e30, 0.0),
        (UnaryOp::Gelu, f32::INFINITY, f32::INFINITY),
        (UnaryOp::GeluTanh, 1e30, 1e30),
        (UnaryOp::GeluTanh, -1e30, 0.0),
        (UnaryOp::Swish { slope: 1.702 }, -1e30, 0.0),
    ];
    check_cases(&limits, |&(op, input, expected)| {
        let mut out = [input];
        unary_in_place(op, &mut out);
        if out[0] == expected { Ok(()) } else { Err(format!("{out:?}")) }
    });
}

#[test]
fn geglu_multiplies_by_the_gate() {
    check_cases(&[(1, 1), (3, 15), (2, 17), (40, 1280), (1, 40_000)], |&(rows, width)| {
        let input: Vec<f32> = random(1, rows * 2 * width).into_iter().map(|x| x * 4.0).collect();
        let expected: Vec<f64> = (0..rows * width)
            .map(|index| {
                let row = &input[index / width * 2 * width..];
                let (value, gate) = (f64::from(row[index % width]), f64::from(row[width + index % width]));
                value * gate * 0.5 * erfc(-gate / std::f64::consts::SQRT_2)
            })
            .collect();
        // The gate's tolerance and one more rounding.
        check(&expected, Tolerance::OfEach(3.6e-7), |out| geglu(&input, width, out))
    });
}

#[test]
fn a_coarse_gelu_is_close_to_the_exact_one() {
    let inputs: Vec<f32> = (-12_000..12_000).map(|i| i as f32 / 1000.0).collect();
    let exact = |x: f64| x * 0.5 * erfc(-x / std::f64::consts::SQRT_2);
    let expected: Vec<f64> = inputs.iter().map(|x| exact(f64::from(*x))).collect();
    check(&expected, Tolerance::Absolute(2.4e-6), |out| {
        out.copy_from_slice(&inputs);
        coarse_on_this_thread(UnaryOp::Gelu, out);
    })
    .unwrap();
    let mut far = [-1e30, 1e30, f32::INFINITY, f32::NAN];
    coarse_on_this_thread(UnaryOp::Gelu, &mut far);
    assert!(far[0].abs() < 2.4e-6 && far[1..3] == [1e30, f32::INFINITY] && far[3].is_nan(), "{far:?}");
}

#[test]
fn a_coarse_swish_is_close_to_the_exact_one() {
    let inputs: Vec<f32> = (-50_000..50_000).map(|i| i as f32 / 1000.0).collect();
    for (op, slope) in [(UnaryOp::Silu, 1.0), (UnaryOp::Swish { slope: 1.702 }, 1.702_f32)] {
        let exact = |x: f64| x / (1.0 + (-f64::from(slope) * x).exp());
        let expected: Vec<f64> = inputs.iter().map(|x| exact(f64::from(*x))).collect();
        check(&expected, Tolerance::OfEach(1e-5), |out| {
            out.copy_from_slice(&inputs);
            coarse_on_this_thread(op, out);
        })
        .unwrap();
        let mut far = [-1e30, f32::NEG_INFINITY, 1e30, f32::INFINITY, f32::NAN];
        coarse_on_this_thread(op, &mut far);
        assert!(far[..4] == [0.0, 0.0, 1e30, f32::INFINITY] && far[4].is_nan(), "{far:?}");
    }
}
