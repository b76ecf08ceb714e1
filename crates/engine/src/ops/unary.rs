//! Element-wise ops of one input.

use mixbit_mil::DType;

use super::{Definition, Operands, maximum, minimum};
use crate::{Data, Error, Tensor};

macro_rules! unary {
    ($name:literal, $definition:expr) => {
        Definition { op: $name, eval: |op| map(op, |op| Ok(Box::new($definition(op)?))) }
    };
}

type Scalar = Box<dyn Fn(f64) -> f64>;

/// A definition without parameters.
fn plain(f: fn(f64) -> f64) -> impl Fn(&Operands) -> Result<Scalar, Error> {
    move |_| Ok(Box::new(f))
}

/// A definition that adds `epsilon` first.
fn after_epsilon(f: fn(f64) -> f64) -> impl Fn(&Operands) -> Result<Scalar, Error> {
    move |op| {
        let epsilon = op.view.float("epsilon")?;
        Ok(Box::new(move |x| f(x + epsilon)))
    }
}

pub(super) static DEFINITIONS: &[Definition] = &[
    unary!("abs", plain(f64::abs)),
    Definition { op: "cast", eval: cast },
    unary!("ceil", plain(f64::ceil)),
    unary!("clip", clip),
    unary!("cos", plain(f64::cos)),
    unary!("erf", plain(erf)),
    unary!("exp", plain(f64::exp)),
    unary!("exp2", plain(f64::exp2)),
    unary!("floor", plain(f64::floor)),
    Definition { op: "identity", eval: |op| Ok(vec![op.tensor("x")?]) },
    unary!("inverse", after_epsilon(f64::recip)),
    unary!("log", after_epsilon(f64::ln)),
    Definition { op: "logical_not", eval: logical_not },
    unary!("round", plain(f64::round_ties_even)),
    unary!("rsqrt", after_epsilon(|x| x.sqrt().recip())),
    unary!("sign", plain(|x| if x == 0.0 { 0.0 } else { x.signum() })),
    unary!("sin", plain(f64::sin)),
    unary!("sqrt", plain(f64::sqrt)),
    unary!("square", plain(|x| x * x)),
    unary!("tanh", plain(f64::tanh)),
];

/// Applies a definition, in f64, to every element; integers stay integers.
pub(super) fn map(
    op: &Operands,
    definition: impl Fn(&Operands) -> Result<Scalar, Error>,
) -> Result<Vec<Tensor>, Error> {
    let f = definition(op)?;
    let data = match op.tensor("x")?.data() {
        Data::Float(values) => Data::Float(values.iter().map(|&x| f(x.into()) as f32).collect()),
        Data::Int(values) => Data::Int(values.iter().map(|&x| f(x.into()) as i32).collect()),
    };
    op.result(data)
}

fn clip(op: &Operands) -> Result<Scalar, Error> {
    let (low, high) = (op.view.float("alpha")?, op.view.float("beta")?);
    Ok(Box::new(move |x| maximum(minimum(x, high), low)))
}

/// The error function, by its Taylor series near 0 and by numerical continued fraction further out.
pub(super) fn erf(x: f64) -> f64 {
    let magnitude = x.abs();
    let value = if magnitude < 3.0 {
        // 2/sqrt(pi) * sum of (-1)^n x^(2n+1) / (n! (2n+1)).
        let (mut term, mut sum) = (magnitude, magnitude);
        for n in 1..120 {
            let n = f64::from(n);
            term *= -magnitude * magnitude / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        // erfc(x) = exp(-x^2)/sqrt(pi) / (x + 1/2/(x + 1/(x + 3/2/(x + ...)))).
        let fraction = (1..80).rev().fold(magnitude, |tail, n| magnitude + f64::from(n) / 2.0 / tail);
        1.0 - (-magnitude * magnitude).exp() / (std::f64::consts::PI.sqrt() * fraction)
    };
    value.copysign(x)
}

fn logical_not(op: &Operands) -> Result<Vec<Tensor>, Error> {
    map(op, |_| Ok(Box::new(|x| f64::from(x == 0.0))))
}

fn cast(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let to = op.out(0).dtype;
    let data = match (op.tensor("x")?.data(), to.is_float()) {
        (Data::Float(values), true) => Data::Float(values.clone()),
        (Data::Int(values), true) => Data::Float(values.iter().map(|&x| x as f32).collect()),
        (Data::Float(values), false) => Data::Int(values.iter().map(|&x| narrow(f64::from(x), to)).collect()),
        (Data::Int(values), false) => Data::Int(values.iter().map(|&x| narrow(f64::from(x), to)).collect()),
    };
    op.result(data)
}

/// Truncates towards zero and stays within the type.
fn narrow(x: f64, to: DType) -> i32 {
    let (low, high) = match to {
        DType::Bool => return i32::from(x != 0.0),
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U16 => (0.0, 65535.0),
        DType::U32 => (0.0, f64::from(i32::MAX)),
        _ => (f64::from(i32::MIN), f64::from(i32::MAX)),
    };
    x.trunc().clamp(low, high) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_right() {
        let known = [
            (0.0, 0.0),
            (0.5, 0.5204998778130465),
            (1.0, 0.8427007929497149),
            (2.9, 0.9999589021219005),
            (3.1, 0.9999883513426328),
            (-2.0, -0.9953222650189527),
        ];
        for (x, expected) in known {
            assert!((erf(x) - expected).abs() < 1e-12, "{x}: {}", erf(x));
        }
    }
}
