//! Reductions.

use mixbit_kernels::ReduceOp;
use mixbit_mil::OpView;

use super::{Binding, around, axes, maximum, minimum, neighbours, offsets, walks};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::{Operands, numbers};
use crate::{Data, Error, Tensor};

type Fold = fn(&mut dyn Iterator<Item = f64>) -> f64;

macro_rules! reduction {
    ($name:literal, $fold:expr, $kernel:expr) => {
        Binding {
            op: $name,
            reference: |op| reduce(op, $fold),
            lower: |op, plan| lower(op, plan, $kernel, |op| reduce(op, $fold)),
        }
    };
}

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "reduce_argmax", reference: argmax, lower: |op, plan| plan.by_reference(op, argmax) },
    Binding { op: "reduce_argmin", reference: argmin, lower: |op, plan| plan.by_reference(op, argmin) },
    reduction!("reduce_l2_norm", |values| values.map(|x| x * x).sum::<f64>().sqrt(), None),
    reduction!("reduce_max", |values| values.fold(f64::NEG_INFINITY, maximum), Some(ReduceOp::Max)),
    reduction!("reduce_mean", mean, Some(ReduceOp::Mean)),
    reduction!("reduce_min", |values| values.fold(f64::INFINITY, minimum), Some(ReduceOp::Min)),
    reduction!("reduce_prod", |values| values.product(), None),
    reduction!("reduce_sum", |values| values.sum(), Some(ReduceOp::Sum)),
    reduction!("reduce_sum_square", |values| values.map(|x| x * x).sum(), None),
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

fn lower(
    op: &OpView,
    plan: &mut Lowering,
    kernel: Option<ReduceOp>,
    reference: fn(&Operands) -> Result<Vec<Tensor>, Error>,
) -> Result<(), Error> {
    let (x, axes) = (op.ty("x")?, axes(op)?);
    let (Some(kernel), Some(shape), true) = (kernel, neighbours(&x.shape, &axes), holds_floats(x.dtype))
    else {
        return plan.by_reference(op, reference);
    };
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::reduce(kernel, &shape, io.floats[0], io.out[0]);
        Ok(())
    })
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
