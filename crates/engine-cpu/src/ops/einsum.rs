//! Einsum of two operands.

use mixbit_engine::Error;
use mixbit_engine::geometry::{offsets, strides};
use mixbit_kernels::{Epilogue, Mat, MatMut, Operand};
use mixbit_mil::OpView;
use mixbit_mil::ops::Equation;

use crate::plan::PlanBuilder;

/// An axis of the computation: its extent and its strides in x, y and the result, 0 where they lack it.
#[derive(Clone, Copy)]
struct Axis {
    extent: usize,
    strides: [usize; 3],
}

impl Axis {
    const NONE: Axis = Axis { extent: 1, strides: [0; 3] };

    /// This axis and the next inner one as one, if both are contiguous in every operand.
    fn merged(self, inner: Axis) -> Option<Axis> {
        let fits = (0..3).all(|operand| self.strides[operand] == inner.strides[operand] * inner.extent);
        fits.then_some(Axis { extent: self.extent * inner.extent, strides: inner.strides })
    }
}

/// An equation as matrix products: `rows` are of x, `columns` of y, and one product for each place of
/// `outer`.
struct MatrixForm {
    rows: Axis,
    columns: Axis,
    depth: Axis,
    outer: Vec<Axis>,
}

impl MatrixForm {
    /// `None` for an equation that is no matrix product, or whose summed axes are not contiguous.
    fn new(equation: &Equation, x: &[usize], y: &[usize]) -> Option<Self> {
        let labels = [&equation.inputs[0], &equation.inputs[1], &equation.output];
        let extent = |label: char| {
            let of = |labels: &[char], shape: &[usize]| {
                labels.iter().position(|&l| l == label).map(|at| shape[at])
            };
            of(labels[0], x).or_else(|| of(labels[1], y)).unwrap_or(1)
        };
        let out: Vec<usize> = equation.output.iter().map(|&label| extent(label)).collect();
        let all = [strides(x), strides(y), strides(&out)];
        let axis = |label: char| {
            let stride = |operand: usize| {
                let at = labels[operand].iter().position(|&other| other == label);
                at.map_or(0, |at| all[operand][at].unsigned_abs())
            };
            Axis { extent: extent(label), strides: [0, 1, 2].map(stride) }
        };
        let has = |operand: usize, label: char| labels[operand].contains(&label);
        // Adjacent axes are merged in the order of the result, or of x for summed ones.
        let group = |order: &[char], wanted: &dyn Fn(char) -> bool| {
            let mut group: Vec<Axis> = Vec::new();
            for axis in order.iter().filter(|&&label| wanted(label)).map(|&label| axis(label)) {
                match group.last().and_then(|last| last.merged(axis)) {
                    Some(merged) => group.last_mut().into_iter().for_each(|last| *last = merged),
                    None => group.push(axis),
                }
            }
            group
        };
        if labels[1].iter().any(|&label| !has(0, label) && !has(2, label)) {
            return None;
        }
        let summed = group(labels[0], &|label| !has(2, label));
        let (mut rows, mut columns) = (
            group(labels[2], &|label| has(0, label) && !has(1, label)),
            group(labels[2], &|label| !has(0, label) && has(1, label)),
        );
        let depth = match summed[..] {
            [] => Axis::NONE,
            // A label of x alone would be summed before the product.
            [depth] if labels[0].iter().all(|&label| has(2, label) || has(1, label)) => depth,
            _ => return None,
        };
        // The largest axis becomes the matrix's, the others are walked over.
        let largest = |group: &mut Vec<Axis>| {
            let at = (0..group.len()).max_by_key(|&at| group[at].extent);
            at.map_or(Axis::NONE, |at| group.remove(at))
        };
        let (row, column) = (largest(&mut rows), largest(&mut columns));
        let mut outer = group(labels[2], &|label| has(0, label) && has(1, label));
        outer.extend(rows.into_iter().chain(columns));
        let form = MatrixForm { rows: row, columns: column, depth, outer };
        (form.rows.extent * form.columns.extent * form.depth.extent > 1).then_some(form)
    }

    /// The same with the operands exchanged, if that makes the result's rows lie further apart than its
    /// columns.
    fn row_major(self) -> (Self, bool) {
        if self.columns.extent == 1 || self.rows.strides[2] >= self.columns.strides[2] {
            return (self, false);
        }
        let swap = |axis: Axis| Axis { strides: [axis.strides[1], axis.strides[0], axis.strides[2]], ..axis };
        let form = MatrixForm {
            rows: swap(self.columns),
            columns: swap(self.rows),
            depth: swap(self.depth),
            outer: self.outer.into_iter().map(swap).collect(),
        };
        (form, true)
    }

    /// The first offsets of each product's left side, right side and result.
    fn starts(&self) -> Vec<[usize; 3]> {
        let shape: Vec<usize> = self.outer.iter().map(|axis| axis.extent).collect();
        let walk = |operand: usize| {
            let strides: Vec<isize> = self.outer.iter().map(|axis| axis.strides[operand] as isize).collect();
            offsets(&shape, &strides, 0)
        };
        let (left, right, out) = (walk(0), walk(1), walk(2));
        (0..out.len()).map(|at| [left[at], right[at], out[at]]).collect()
    }
}

/// Adds matrix products if the equation is one, as both of Apple's SPLIT_EINSUM attention are.
pub(super) fn lower(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let &[x, y] = op.arg("values").values() else { return plan.by_definition(op) };
    let out = plan.shape(op.op().outputs[0]);
    let equation = Equation::parse(&op.str("equation")?);
    let form = equation.and_then(|equation| MatrixForm::new(&equation, plan.shape(x), plan.shape(y)));
    let is_float = plan.function().value(x).ty.dtype.is_float();
    let (Some(form), true, false) = (form, is_float, out.contains(&0)) else {
        return plan.by_definition(op);
    };
    let (form, swapped) = form.row_major();
    let starts = form.starts();
    let MatrixForm { rows, columns, depth, .. } = form;
    let reads = if swapped { [y, x] } else { [x, y] };
    let precision = plan.precision();
    plan.step(op, &reads, &op.op().outputs, move |io| {
        for &[left, right, out] in &starts {
            let left = Mat::with_strides(
                &io.floats[0][left..],
                rows.extent,
                depth.extent,
                rows.strides[0],
                depth.strides[0],
            );
            let right = Mat::with_strides(
                &io.floats[1][right..],
                depth.extent,
                columns.extent,
                depth.strides[1],
                columns.strides[1],
            );
            let out = MatMut::with_strides(
                &mut io.out[0][out..],
                rows.extent,
                columns.extent,
                rows.strides[2].max(1),
                columns.strides[2].max(1),
            );
            mixbit_kernels::gemm(
                out,
                Operand::from(left),
                Operand::from(right),
                precision,
                &Epilogue::default(),
            );
        }
        Ok(())
    })
}
