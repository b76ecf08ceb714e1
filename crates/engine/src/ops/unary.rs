//! Element-wise ops of one input.

use mixbit_kernels::UnaryOp;
use mixbit_mil::{DType, OpView};

use super::{Binding, maximum, minimum};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Data, Error, Tensor};

macro_rules! unary {
    ($name:literal, $definition:expr, $kernel:expr) => {
        Binding {
            op: $name,
            reference: |op| map(op, |op| Ok(Box::new($definition(op)?))),
            lower: |op, plan| lower(op, plan, $kernel(op)?),
        }
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

fn kernel(op: UnaryOp) -> impl Fn(&OpView) -> Result<UnaryOp, Error> {
    move |_| Ok(op)
}

fn epsilon(op: &OpView) -> Result<f32, Error> {
    Ok(op.float("epsilon")? as f32)
}

pub(super) static BINDINGS: &[Binding] = &[
    unary!("abs", plain(f64::abs), kernel(UnaryOp::Abs)),
    Binding { op: "cast", reference: cast, lower: lower_cast },
    unary!("ceil", plain(f64::ceil), kernel(UnaryOp::Ceil)),
    unary!("clip", clip, |op: &OpView| Ok::<_, Error>(UnaryOp::Clip {
        low: op.float("alpha")? as f32,
        high: op.float("beta")? as f32
    })),
    unary!("cos", plain(f64::cos), kernel(UnaryOp::Cos)),
    unary!("erf", plain(erf), kernel(UnaryOp::Erf)),
    unary!("exp", plain(f64::exp), kernel(UnaryOp::Exp)),
    unary!("exp2", plain(f64::exp2), kernel(UnaryOp::Exp2)),
    unary!("floor", plain(f64::floor), kernel(UnaryOp::Floor)),
    Binding { op: "identity", reference: |op| Ok(vec![op.tensor("x")?]), lower: alias },
    unary!("inverse", after_epsilon(f64::recip), |op| Ok::<_, Error>(UnaryOp::Inverse {
        epsilon: epsilon(op)?
    })),
    unary!("log", after_epsilon(f64::ln), |op| Ok::<_, Error>(UnaryOp::Log { epsilon: epsilon(op)? })),
    Binding {
        op: "logical_not",
        reference: logical_not,
        lower: |op, plan| plan.by_reference(op, logical_not),
    },
    unary!("round", plain(f64::round_ties_even), kernel(UnaryOp::Round)),
    unary!("rsqrt", after_epsilon(|x| x.sqrt().recip()), |op| Ok::<_, Error>(UnaryOp::Rsqrt {
        epsilon: epsilon(op)?
    })),
    unary!("sign", plain(|x| if x == 0.0 { 0.0 } else { x.signum() }), kernel(UnaryOp::Sign)),
    unary!("sin", plain(f64::sin), kernel(UnaryOp::Sin)),
    unary!("sqrt", plain(f64::sqrt), kernel(UnaryOp::Sqrt)),
    unary!("square", plain(|x| x * x), kernel(UnaryOp::Square)),
    unary!("tanh", plain(f64::tanh), kernel(UnaryOp::Tanh)),
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

/// Adds a step that applies a kernel to every element; integers take the naive way.
pub(super) fn lower(op: &OpView, plan: &mut Lowering, kernel: UnaryOp) -> Result<(), Error> {
    if !holds_floats(op.ty("x")?.dtype) {
        let reference = super::binding(op.kind()).map(|binding| binding.reference);
        return reference.map_or(Ok(()), |reference| plan.by_reference(op, reference));
    }
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::unary(kernel, io.floats[0], io.out[0]);
        Ok(())
    })
}

/// The result is the input, under the result's shape.
pub(super) fn alias(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    plan.alias(op.value("x")?, op.op().outputs[0])
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
    let data = match (op.tensor("x")?.data(), holds_floats(to)) {
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

fn lower_cast(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let out = op.op().outputs[0];
    let (from, to) = (op.ty("x")?.dtype, plan.function().value(out).ty.dtype);
    if from == to || (from == DType::F16 && to == DType::F32) {
        return alias(op, plan);
    }
    if holds_floats(from) && holds_floats(to) {
        return plan.step(op.label(), &[op.value("x")?], &[out], |io| {
            io.out[0].copy_from_slice(io.floats[0]);
            Ok(())
        });
    }
    plan.by_reference(op, cast)
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
