//! Attention weights: exponentials of score tiles while they are in registers.

use rten_simd::Isa;
use rten_simd::ops::{BitOps, NumOps};

use super::microkernel::{Microkernel, TILE_VECTORS, Tile};
use crate::math::exp_nonpositive;

/// One value for each query of a panel.
pub(crate) type PerQuery<I> = [<I as Isa>::F32; TILE_VECTORS];

/// Turns tiles of scores into weights.
pub(crate) trait Weigh<I: Isa> {
    /// True if [`weigh`](Self::weigh) writes packed `words` instead of `weights`.
    const WRITES_WORDS: bool;

    /// Writes `exp(score - reference)`, a row for each key. A NaN score that its packed weight would hide
    /// makes that query's value of `seen` NaN.
    fn weigh<const MR: usize>(
        isa: I,
        scores: &Tile<I, MR>,
        reference: &PerQuery<I>,
        seen: &mut PerQuery<I>,
        words: &mut [u32],
        weights: &mut [f32],
    );
}

/// A computation that multiplies panels and weighs scores, generic over how either is done.
pub(crate) trait WeighOp {
    /// Runs with the micro-kernel `K` and the exponentials `W`.
    fn eval<I: Isa, K: Microkernel<I>, W: Weigh<I>>(self, isa: I);
}

/// `f32` weights. Scores are natural logarithms, or binary ones if `BINARY`.
pub(crate) struct Exponentials<const BINARY: bool>;

impl<I: Isa, const BINARY: bool> Weigh<I> for Exponentials<BINARY> {
    const WRITES_WORDS: bool = false;

    #[inline(always)]
    fn weigh<const MR: usize>(
        isa: I,
        scores: &Tile<I, MR>,
        reference: &PerQuery<I>,
        _seen: &mut PerQuery<I>,
        _words: &mut [u32],
        weights: &mut [f32],
    ) {
        let ops = isa.f32();
        for (scores, row) in scores.iter().zip(weights.chunks_exact_mut(TILE_VECTORS * ops.len())) {
            let vectors = scores.iter().zip(reference).zip(row.chunks_exact_mut(ops.len()));
            for ((score, reference), place) in vectors {
                let mut power = ops.sub(*score, *reference);
                if BINARY {
                    power = ops.mul(power, ops.splat(std::f32::consts::LN_2));
                }
                ops.store(exp_nonpositive(isa, power), place);
            }
        }
    }
}
