//! Einsum of two operands.

use mixbit_mil::ops::Equation;

use super::Operands;
use crate::geometry::{offsets, strides};
use crate::tensor::numbers;
use crate::{Error, Tensor};

/// The sum of products over the labels that the result lacks.
pub(super) fn einsum(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let text = op.view.str("equation")?;
    let equation = Equation::parse(&text).ok_or_else(|| op.view.invalid("can't read the equation"))?;
    let operands = op.list("values")?;
    let extents: Vec<(char, usize)> = equation
        .inputs
        .iter()
        .zip(&operands)
        .flat_map(|(labels, tensor)| labels.iter().copied().zip(tensor.shape().iter().copied()))
        .collect();
    let extent =
        |label: &char| extents.iter().find(|(known, _)| known == label).map_or(1, |&(_, extent)| extent);
    let mut summed: Vec<char> = equation.inputs.concat();
    summed.retain(|label| !equation.output.contains(label));
    summed.sort_unstable();
    summed.dedup();
    let walk = |labels: &[char], operand: usize| -> Vec<usize> {
        let own = strides(operands[operand].shape());
        let stride = |label: &char| {
            equation.inputs[operand].iter().position(|other| other == label).map_or(0, |axis| own[axis])
        };
        let shape: Vec<usize> = labels.iter().map(extent).collect();
        offsets(&shape, &labels.iter().map(stride).collect::<Vec<_>>(), 0)
    };
    let (x, y) = (numbers(&operands[0]), numbers(&operands[1]));
    let (x_inner, y_inner) = (walk(&summed, 0), walk(&summed, 1));
    let outer = walk(&equation.output, 0).into_iter().zip(walk(&equation.output, 1));
    let dot = |(x_at, y_at): (usize, usize)| {
        let products = x_inner.iter().zip(&y_inner).map(|(i, j)| x[x_at + i] * y[y_at + j]);
        products.sum()
    };
    op.number_result(outer.map(dot))
}
