//! Element-wise functions of one operand.

use rten_simd::ops::{BitOps, FloatOps, NumOps};
use rten_simd::{Isa, SimdOp, SimdUnaryOp};
use rten_vecmath::{Exp, Sigmoid, Silu, Tanh};

use crate::isa::{self, map_in_place};
use crate::math;
use crate::pool::{GRAIN, for_each_chunk_mut};

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UnaryOp {
    /// `|x|`.
    Abs,
    /// `-x`.
    Neg,
    /// -1, 0 or 1; NaN stays NaN.
    Sign,
    /// Rounding up.
    Ceil,
    /// Rounding down.
    Floor,
    /// Rounding to the nearest integer, ties to even.
    Round,
    /// `x * x`.
    Square,
    /// Square root.
    Sqrt,
    /// `1 / sqrt(x + epsilon)`.
    Rsqrt {
        /// Added to the operand.
        epsilon: f32,
    },
    /// `1 / (x + epsilon)`.
    Inverse {
        /// Added to the operand.
        epsilon: f32,
    },
    /// `e^x`.
    Exp,
    /// `2^x`.
    Exp2,
    /// `ln(x + epsilon)`.
    Log {
        /// Added to the operand.
        epsilon: f32,
    },
    /// Sine of radians.
    Sin,
    /// Cosine of radians.
    Cos,
    /// Hyperbolic tangent.
    Tanh,
    /// The error function.
    Erf,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `x * sigmoid(x)`.
    Silu,
    /// `max(x, 0)`.
    Relu,
    /// `max(min(x, high), low)`.
    Clip {
        /// The least result.
        low: f32,
        /// The greatest result.
        high: f32,
    },
    /// `x * Phi(x)` with the normal distribution function: MIL's mode `EXACT`.
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`: MIL's mode `TANH_APPROXIMATION`.
    GeluTanh,
    /// `x * sigmoid(slope * x)`: with a slope of 1.702, MIL's GELU in mode `SIGMOID_APPROXIMATION` and CLIP's
    /// `quick_gelu`.
    Swish {
        /// Multiplies the operand of the sigmoid.
        slope: f32,
    },
}

/// Maps a vector expression over a slice in place.
macro_rules! vectors {
    ($isa:ident, $data:ident, $x:ident => $body:expr) => {
        map_in_place(
            $isa,
            $data,
            #[inline(always)]
            |$x| $body,
        )
    };
}

/// Applies `op` to each element of `input` into `out`.
///
/// # Panics
///
/// When the lengths differ.
pub fn unary(op: UnaryOp, input: &[f32], out: &mut [f32]) {
    assert_eq!(input.len(), out.len(), "input and output lengths differ");
    for_each_chunk_mut(out, GRAIN, |index, chunk| {
        let start = index * GRAIN;
        chunk.copy_from_slice(&input[start..start + chunk.len()]);
        isa::dispatch(Apply(op, chunk));
    });
}

/// Applies `op` to each element of `data` in place.
pub fn unary_in_place(op: UnaryOp, data: &mut [f32]) {
    for_each_chunk_mut(data, GRAIN, |_, chunk| isa::dispatch(Apply(op, chunk)));
}

/// [`unary_in_place`] of a short slice, on the calling thread.
pub(crate) fn unary_on_this_thread(op: UnaryOp, data: &mut [f32]) {
    isa::dispatch(Apply(op, data));
}

/// [`unary_on_this_thread`] for results that are rounded to bfloat16 or bytes afterwards. Faster
/// approximations, where there are some, have an error of at most 2.3e-6, or 1e-5 of the result.
pub(crate) fn coarse_on_this_thread(op: UnaryOp, data: &mut [f32]) {
    struct Coarse<'a>(UnaryOp, &'a mut [f32]);
    impl SimdOp for Coarse<'_> {
        type Output = ();

        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) {
            let data = self.1;
            match self.0 {
                UnaryOp::Gelu => vectors!(isa, data, x => math::coarse_gelu(isa, x)),
                UnaryOp::Silu => vectors!(isa, data, x => math::coarse_swish(isa, x, 1.0)),
                UnaryOp::Swish { slope } => vectors!(isa, data, x => math::coarse_swish(isa, x, slope)),
                op => Apply(op, data).eval(isa),
            }
        }
    }
    isa::dispatch(Coarse(op, data));
}

/// `out = value * gelu(gate)`, the gated linear unit of the transformer blocks' feed-forward layers.
///
/// `input` holds `rows` rows of `2 * width`: first the values, then the gates. `out` is `[rows, width]`.
///
/// # Panics
///
/// When `out` is not half as long as `input`, or not whole rows.
pub fn geglu(input: &[f32], width: usize, out: &mut [f32]) {
    assert_eq!(input.len(), 2 * out.len(), "the output is half as long as the input");
    if out.is_empty() {
        return;
    }
    assert!(out.len().is_multiple_of(width), "the output is not whole rows of {width}");
    let rows = crate::pool::rows_per_task(width);
    for_each_chunk_mut(out, rows * width, |task, chunk| {
        for (index, out) in chunk.chunks_exact_mut(width).enumerate() {
            let row = &input[(task * rows + index) * 2 * width..][..2 * width];
            out.copy_from_slice(&row[width..]);
            isa::dispatch(Apply(UnaryOp::Gelu, out));
            isa::dispatch(Multiply(out, &row[..width]));
        }
    });
}

/// Multiplies one slice by another.
struct Multiply<'a>(&'a mut [f32], &'a [f32]);

impl SimdOp for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for (x, y) in self.0.iter_mut().zip(self.1) {
            *x *= y;
        }
    }
}

/// A function applied to a slice in place.
struct Apply<'a>(UnaryOp, &'a mut [f32]);

/// Maps a scalar expression over a slice in place; the compiler vectorises it where it can.
macro_rules! scalars {
    ($data:ident, $x:ident => $body:expr) => {
        for value in $data {
            let $x = *value;
            *value = $body;
        }
    };
}

impl SimdOp for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let ops = isa.f32();
        let data = self.1;
        match self.0 {
            UnaryOp::Abs => scalars!(data, x => x.abs()),
            UnaryOp::Neg => scalars!(data, x => -x),
            UnaryOp::Sign => {
                scalars!(data, x => if x > 0.0 { 1.0 } else if x < 0.0 { -1.0 } else { x * 0.0 })
            }
            UnaryOp::Ceil => scalars!(data, x => x.ceil()),
            UnaryOp::Floor => scalars!(data, x => x.floor()),
            UnaryOp::Round => scalars!(data, x => x.round_ties_even()),
            UnaryOp::Square => scalars!(data, x => x * x),
            UnaryOp::Sqrt => scalars!(data, x => x.sqrt()),
            UnaryOp::Rsqrt { epsilon } => scalars!(data, x => 1.0 / (x + epsilon).sqrt()),
            UnaryOp::Inverse { epsilon } => scalars!(data, x => 1.0 / (x + epsilon)),
            UnaryOp::Exp => vectors!(isa, data, x => Exp {}.eval(isa, x)),
            UnaryOp::Exp2 => scalars!(data, x => x.exp2()),
            UnaryOp::Log { epsilon } => scalars!(data, x => (x + epsilon).ln()),
            // Timestep embeddings have few elements and angles up to a thousand, where range reduction in f32
            // loses digits.
            UnaryOp::Sin => scalars!(data, x => f64::from(x).sin() as f32),
            UnaryOp::Cos => scalars!(data, x => f64::from(x).cos() as f32),
            UnaryOp::Tanh => vectors!(isa, data, x => Tanh {}.eval(isa, x)),
            UnaryOp::Erf => vectors!(isa, data, x => math::erf(isa, x)),
            UnaryOp::Sigmoid => vectors!(isa, data, x => Sigmoid {}.eval(isa, x)),
            UnaryOp::Silu => vectors!(isa, data, x => Silu {}.eval(isa, x)),
            UnaryOp::Relu => scalars!(data, x => if x < 0.0 { 0.0 } else { x }),
            UnaryOp::Clip { low, high } => {
                scalars!(data, x => if x < low { low } else if x > high { high } else { x });
            }
            UnaryOp::Gelu => vectors!(isa, data, x => math::gelu(isa, x)),
            UnaryOp::GeluTanh => {
                // (1 + tanh(y)) / 2 = sigmoid(2 y), which keeps its accuracy in the negative tail.
                let (cubic, double) = (
                    ops.splat(0.044_715),
                    ops.splat(std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::SQRT_2),
                );
                vectors!(isa, data, x => {
                    let y = ops.mul(ops.mul_add(ops.mul(ops.mul(x, x), x), cubic, x), double);
                    ops.div(x, ops.add(ops.one(), Exp {}.eval(isa, ops.neg(y))))
                });
            }
            UnaryOp::Swish { slope } => {
                let slope = ops.splat(-slope);
                vectors!(isa, data, x => {
                    ops.div(x, ops.add(ops.one(), Exp {}.eval(isa, ops.mul(x, slope))))
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
