//! Reductions.

use super::{Definition, Operands, maximum, minimum, walks};
use crate::geometry::{around, axes, offsets};
use crate::tensor::numbers;
use crate::{Data, Error, Tensor};

type Fold = fn(&mut dyn Iterator<Item = f64>) -> f64;

macro_rules! reduction {
    ($name:literal, $fold:expr) => {
        Definition { op: $name, eval: |op| reduce(op, $fold) }
    };
}

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "reduce_argmax", eval: argmax },
    Definition { op: "reduce_argmin", eval: argmin },
    reduction!("reduce_l2_norm", |values| values.map(|x| x * x).sum::<f64>().sqrt()),
    reduction!("reduce_max", |values| values.fold(f64::NEG_INFINITY, maximum)),
    reduction!("reduce_mean", mean),
    reduction!("reduce_min", |values| values.fold(f64::INFINITY, minimum)),
    reduction!("reduce_prod", |values| values.product()),
    reduction!("reduce_sum", |values| values.sum()),
    reduction!("reduce_sum_square", |values| values.map(|x| x * x).sum()),
];

fn mean(values: &mut dyn Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), x| (sum + x, count + 1.0));
    sum / count
}

fn reduce(op: &Operands, fold: Fold) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (shape, axes, x) = (x.shape().to_vec(), axes(&op.view)?, numbers(&x));
    let [inside, outside] = walks(&shape, &axes);
    let reduced = offsets(&outside.0, &outside.1, 0)
        .into_iter()
        .map(|start| fold(&mut offsets(&inside.0, &inside.1, start).into_iter().map(|at| x[at])));
    op.number_result(reduced)
}

fn argmax(op: &Operands) -> Result<Vec<Tensor>, Error> {
    first_best(op, |x, best| x > best)
}

fn argmin(op: &Operands) -> Result<Vec<Tensor>, Error> {
    first_best(op, |x, best| x < best)
}

fn first_best(op: &Operands, better: fn(f64, f64) -> bool) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let [outer, axis, inner] = around(x.shape(), op.view.axis(op.view.int("axis")?, x.shape().len())?);
    let x = numbers(&x);
    let starts = (0..outer).flat_map(|o| (0..inner).map(move |i| o * axis * inner + i));
    let best = starts.map(|start| {
        let at = |index: usize| x[start + index * inner];
        (1..axis).fold(0, |best, index| if better(at(index), at(best)) { index } else { best }) as i32
    });
    op.result(Data::Int(best.collect()))
}
