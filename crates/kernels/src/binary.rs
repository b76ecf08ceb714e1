//! Element-wise functions of two operands, with broadcasting.

use rten_simd::{Isa, SimdOp};

use crate::isa;
use crate::pool::{GRAIN, for_each_chunk_mut};
use crate::strided::{Axis, Walk, offsets};

/// A function of two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinaryOp {
    /// `x + y`.
    Add,
    /// `x - y`.
    Sub,
    /// `x * y`.
    Mul,
    /// `x / y`: MIL's `real_div`.
    Div,
    /// `floor(x / y)`.
    FloorDiv,
    /// `x - floor(x / y) * y`, with the divisor's sign.
    Mod,
    /// `x` to the power of `y`.
    Pow,
    /// The maximum; NaN if either is.
    Maximum,
    /// The minimum; NaN if either is.
    Minimum,
}

impl BinaryOp {
    #[inline(always)]
    fn apply(self, x: f32, y: f32) -> f32 {
        match self {
            Self::Add => x + y,
            Self::Sub => x - y,
            Self::Mul => x * y,
            Self::Div => x / y,
            Self::FloorDiv => (x / y).floor(),
            Self::Mod => {
                let rest = x % y;
                if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
            }
            Self::Pow => {
                if y == 2.0 {
                    x * x
                } else {
                    x.powf(y)
                }
            }
            Self::Maximum => {
                if x > y || x.is_nan() {
                    x
                } else {
                    y
                }
            }
            Self::Minimum => {
                if x < y || x.is_nan() {
                    x
                } else {
                    y
                }
            }
        }
    }
}

/// An operand: a slice with one stride for each axis of the output, zero where it is broadcast
/// ([`crate::broadcast_strides`]).
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Elements between neighbours along each axis.
    pub strides: &'a [usize],
}

/// Applies `op` to two operands, walked over `shape`, into the row-major `out`.
///
/// # Panics
///
/// When an operand reaches beyond its slice, ranks differ or exceed [`crate::MAX_RANK`], or `out`'s length is
/// not the shape's.
pub fn binary(op: BinaryOp, x: Strided<'_, f32>, y: Strided<'_, f32>, shape: &[usize], out: &mut [f32]) {
    assert_eq!(out.len(), shape.iter().product::<usize>(), "output length differs from the shape's");
    if out.is_empty() {
        return;
    }
    let walk = Walk::new(shape, [x.strides, y.strides]);
    walk.check_extent(0, x.data.len());
    walk.check_extent(1, y.data.len());
    let (outer, inner) = walk.split_inner();
    // Cut at row boundaries, or within rows if they are long.
    let chunk_len = if inner.len >= GRAIN { GRAIN } else { (GRAIN / inner.len) * inner.len };
    for_each_chunk_mut(out, chunk_len, |task, mut chunk| {
        let mut position = task * chunk_len;
        while !chunk.is_empty() {
            let column = position % inner.len;
            let [x_start, y_start] = offsets(outer, position / inner.len);
            let count = (inner.len - column).min(chunk.len());
            let (row, rest) = chunk.split_at_mut(count);
            let x = Row::new(&x.data[x_start..], inner.strides[0], column, count);
            let y = Row::new(&y.data[y_start..], inner.strides[1], column, count);
            isa::dispatch(Apply { op, x, y, out: row });
            position += count;
            chunk = rest;
        }
    });
}

/// `acc = op(acc, y)` for operands of one shape.
///
/// # Panics
///
/// When the lengths differ.
pub fn binary_in_place(op: BinaryOp, acc: &mut [f32], y: &[f32]) {
    assert_eq!(acc.len(), y.len(), "operand lengths differ");
    for_each_chunk_mut(acc, GRAIN, |index, chunk| {
        let start = index * GRAIN;
        isa::dispatch(InPlace { op, y: &y[start..start + chunk.len()], acc: chunk });
    });
}

/// An operand along the innermost axis.
#[derive(Clone, Copy)]
enum Row<'a> {
    Slice(&'a [f32]),
    Same(f32),
    Strided(&'a [f32], usize),
}

impl<'a> Row<'a> {
    fn new(data: &'a [f32], stride: usize, column: usize, count: usize) -> Self {
        match stride {
            0 => Self::Same(data[0]),
            1 => Self::Slice(&data[column..column + count]),
            _ => Self::Strided(&data[column * stride..], stride),
        }
    }
}

struct Apply<'a> {
    op: BinaryOp,
    x: Row<'a>,
    y: Row<'a>,
    out: &'a mut [f32],
}

/// Runs `$body` with `$op` as a constant, so that its loop does not branch on the function.
macro_rules! for_constant_op {
    ($value:expr, $op:ident => $body:expr) => {
        match $value {
            BinaryOp::Add => {
                const $op: BinaryOp = BinaryOp::Add;
                $body
            }
            BinaryOp::Sub => {
                const $op: BinaryOp = BinaryOp::Sub;
                $body
            }
            BinaryOp::Mul => {
                const $op: BinaryOp = BinaryOp::Mul;
                $body
            }
            BinaryOp::Div => {
                const $op: BinaryOp = BinaryOp::Div;
                $body
            }
            BinaryOp::FloorDiv => {
                const $op: BinaryOp = BinaryOp::FloorDiv;
                $body
            }
            BinaryOp::Mod => {
                const $op: BinaryOp = BinaryOp::Mod;
                $body
            }
            BinaryOp::Pow => {
                const $op: BinaryOp = BinaryOp::Pow;
                $body
            }
            BinaryOp::Maximum => {
                const $op: BinaryOp = BinaryOp::Maximum;
                $body
            }
            BinaryOp::Minimum => {
                const $op: BinaryOp = BinaryOp::Minimum;
                $body
            }
        }
    };
}

impl SimdOp for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let out = self.out;
        for_constant_op!(self.op, OP => match (self.x, self.y) {
            (Row::Slice(x), Row::Slice(y)) => {
                for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
                    *out = OP.apply(*x, *y);
                }
            }
            (Row::Slice(x), Row::Same(y)) => {
                for (out, x) in out.iter_mut().zip(x) {
                    *out = OP.apply(*x, y);
                }
            }
            (Row::Same(x), Row::Slice(y)) => {
                for (out, y) in out.iter_mut().zip(y) {
                    *out = OP.apply(x, *y);
                }
            }
            (x, y) => {
                let at = |row: Row<'_>, index: usize| match row {
                    Row::Slice(data) => data[index],
                    Row::Same(value) => value,
                    Row::Strided(data, stride) => data[index * stride],
                };
                for (index, out) in out.iter_mut().enumerate() {
                    *out = OP.apply(at(x, index), at(y, index));
                }
            }
        });
    }
}

struct InPlace<'a> {
    op: BinaryOp,
    acc: &'a mut [f32],
    y: &'a [f32],
}

impl SimdOp for InPlace<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        for_constant_op!(self.op, OP => {
            for (acc, y) in self.acc.iter_mut().zip(self.y) {
                *acc = OP.apply(*acc, *y);
            }
        });
    }
}

/// `out = condition ? x : y`, walked over `shape` into the row-major `out`.
///
/// # Panics
///
/// As [`binary`].
pub fn select<T: Copy + Send + Sync>(
    condition: Strided<'_, bool>,
    x: Strided<'_, T>,
    y: Strided<'_, T>,
    shape: &[usize],
    out: &mut [T],
) {
    assert_eq!(out.len(), shape.iter().product::<usize>(), "output length differs from the shape's");
    if out.is_empty() {
        return;
    }
    let walk = Walk::new(shape, [condition.strides, x.strides, y.strides]);
    walk.check_extent(0, condition.data.len());
    walk.check_extent(1, x.data.len());
    walk.check_extent(2, y.data.len());
    let axes: &[Axis<3>] = walk.axes();
    for_each_chunk_mut(out, GRAIN, |task, chunk| {
        for (index, out) in chunk.iter_mut().enumerate() {
            let [c, x_at, y_at] = offsets(axes, task * GRAIN + index);
            *out = if condition.data[c] { x.data[x_at] } else { y.data[y_at] };
        }
    });
}

#[cfg(test)]
mod tests;
