//! Vector functions that rten-vecmath lacks, or has with less accuracy than images need.

use rten_simd::ops::{BitOps, FloatOps, IntOps, NumOps};
use rten_simd::{Isa, Simd};

/// Below this, `exp` is subnormal.
const EXP_LOWEST: f32 = -87.3;

/// `2^whole` for an integer, if the result is normal.
#[inline(always)]
fn power_of_two<I: Isa>(isa: I, whole: I::F32) -> I::F32 {
    let (ops, ints) = (isa.f32(), isa.i32());
    ints.shift_left::<23>(ints.add(ops.to_int_trunc(whole), ints.splat(127))).reinterpret_cast()
}

/// `exp(x)` for `x <= 0`, valid up to 88. Zero where the result would be subnormal; NaN stays NaN.
///
/// Relative error at most 1.5e-7: `2^round(x / ln 2)` times a degree-6 polynomial on the remainder.
#[inline(always)]
pub(crate) fn exp_nonpositive<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    let exponent = ops.round_ties_even(ops.mul(x, ops.splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts; products of the first, which has few bits, are exact.
    let rest = ops.mul_add(exponent, ops.splat(-0.693_359_4), x);
    let rest = ops.mul_add(exponent, ops.splat(2.121_944_4e-4), rest);
    let mut poly = ops.splat(0.001_393_368_8);
    for coefficient in [0.008_363_205, 0.041_666_463, 0.166_665_76, 0.5, 1.0, 1.0] {
        poly = ops.mul_add(poly, rest, ops.splat(coefficient));
    }
    let result = ops.mul(poly, power_of_two(isa, exponent));
    ops.select(ops.zero(), result, ops.lt(x, ops.splat(EXP_LOWEST)))
}

/// `exp(t * t) * erfc(t)` for `t >= 0`, by a polynomial in `(t - 2) / (t + 2)` over `1 + 2 t`.
#[inline(always)]
fn scaled_erfc<I: Isa>(isa: I, t: I::F32) -> I::F32 {
    let ops = isa.f32();
    let two = ops.splat(2.0);
    let u = ops.div(ops.sub(t, two), ops.add(t, two));
    let mut poly = ops.splat(-4.143_926_2e-4);
    for coefficient in [
        -0.001_250_883,
        0.001_319_598,
        0.008_649_69,
        -0.008_059_267,
        -0.054_209_273,
        0.164_054_97,
        -0.166_030_97,
        -0.092_763_96,
        1.276_978_4,
    ] {
        poly = ops.mul_add(poly, u, ops.splat(coefficient));
    }
    ops.div(poly, ops.mul_add(two, t, ops.one()))
}

/// `erfc(t)` for `t >= 0`, given `t` and its square as a rounded value and the rounding error.
#[inline(always)]
fn erfc_nonnegative<I: Isa>(isa: I, t: I::F32, square: I::F32, error: I::F32) -> I::F32 {
    let ops = isa.f32();
    let decay = exp_nonpositive(isa, ops.neg(square));
    let decay = ops.mul(decay, ops.sub(ops.one(), error));
    let result = ops.mul(decay, scaled_erfc(isa, t));
    // For large `t`, the decay is zero, and a quotient of infinities would be NaN.
    ops.select(ops.zero(), result, ops.gt(t, ops.splat(12.0)))
}

/// `x * x`, rounded, and the rounding error, whether or not the CPU has fused multiply-adds.
#[inline(always)]
fn square_with_error<I: Isa>(isa: I, x: I::F32) -> (I::F32, I::F32) {
    let (ops, ints) = (isa.f32(), isa.i32());
    let square = ops.mul(x, x);
    // Products of halves of twelve bits are exact (Dekker, 1971).
    let bits: I::I32 = x.reinterpret_cast();
    let high: I::F32 = ints.and(bits, ints.splat(!0xfff)).reinterpret_cast();
    let low = ops.sub(x, high);
    let error = ops.sub(ops.mul(high, high), square);
    let error = ops.add(error, ops.mul(ops.mul(high, low), ops.splat(2.0)));
    let error = ops.add(error, ops.mul(low, low));
    // Where the square overflows, the error is irrelevant.
    (square, ops.select(error, ops.zero(), ops.lt(square, ops.splat(1e30))))
}

/// `x * Phi(x)`, the exact GELU, with `Phi` the normal distribution function.
///
/// Both tails come from `erfc`, so the result keeps its relative accuracy for negative `x` too.
#[inline(always)]
pub(crate) fn gelu<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    let half = ops.splat(0.5);
    let t = ops.mul(ops.abs(x), ops.splat(std::f32::consts::FRAC_1_SQRT_2));
    // The square of x / sqrt(2) from x itself: halving is exact, the rounded quotient is not.
    let (square, error) = square_with_error(isa, x);
    let tail = ops.mul(half, erfc_nonnegative(isa, t, ops.mul(square, half), ops.mul(error, half)));
    let phi = ops.select(tail, ops.sub(ops.one(), tail), ops.lt(x, ops.zero()));
    ops.mul(x, phi)
}

/// [`gelu`] with an absolute error of at most 2.3e-6, for results that are rounded to eight bits: a third of
/// the work.
///
/// `Phi(x) - 1/2` is `x` times a polynomial in its square, fitted up to 5, and 1/2 from there on.
#[inline(always)]
pub(crate) fn coarse_gelu<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    let (low, high) = (ops.splat(-5.0), ops.splat(5.0));
    // In this order, NaN stays NaN.
    let x = ops.select(low, x, ops.lt(x, low));
    let near = ops.select(high, x, ops.gt(x, high));
    let square = ops.mul_add(ops.mul(near, near), ops.splat(0.08), ops.splat(-1.0));
    let mut poly = ops.splat(-0.001_044_689_9);
    for coefficient in [
        0.003_173_613,
        -0.004_008_235,
        0.005_156_042,
        -0.010_063_27,
        0.016_880_099,
        -0.023_661_945,
        0.031_365_093,
        -0.040_386_636,
        0.051_524_61,
        -0.070_298_44,
        0.141_363_75,
    ] {
        poly = ops.mul_add(poly, square, ops.splat(coefficient));
    }
    ops.mul(x, ops.mul_add(near, poly, ops.splat(0.5)))
}

/// `x / (1 + exp(-slope * x))` with a relative error of at most 1e-5, for results that are rounded to eight
/// bits.
#[inline(always)]
pub(crate) fn coarse_swish<I: Isa>(isa: I, x: I::F32, slope: f32) -> I::F32 {
    let ops = isa.f32();
    let (low, high) = (ops.splat(-126.0), ops.splat(126.0));
    let power = ops.mul(x, ops.splat(-slope * std::f32::consts::LOG2_E));
    // In this order, NaN stays NaN.
    let near = ops.select(low, power, ops.lt(power, low));
    let whole = ops.round_ties_even(near);
    let rest = ops.sub(near, whole);
    let mut poly = ops.splat(0.009_570_101);
    for coefficient in [0.055_917_86, 0.240_247_44, 0.693_121_8, 0.999_999_3] {
        poly = ops.mul_add(poly, rest, ops.splat(coefficient));
    }
    let result = ops.div(x, ops.mul_add(poly, power_of_two(isa, whole), ops.one()));
    ops.select(ops.zero(), result, ops.gt(power, high))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<I: Isa>(isa: I, x: I::F32) -> I::F32 {
    let ops = isa.f32();
    let t = ops.abs(x);
    let (square, error) = square_with_error(isa, x);
    let far = ops.sub(ops.one(), erfc_nonnegative(isa, t, square, error));
    let far = ops.select(ops.neg(far), far, ops.lt(x, ops.zero()));
    let mut poly = ops.splat(-5.654_106e-4);
    for coefficient in
        [0.004_923_277_5, -0.026_716_385, 0.112_803_645, -0.376_123_5, std::f32::consts::FRAC_2_SQRT_PI]
    {
        poly = ops.mul_add(poly, square, ops.splat(coefficient));
    }
    ops.select(ops.mul(x, poly), far, ops.lt(t, ops.one()))
}
