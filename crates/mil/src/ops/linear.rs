//! Matrix products, einsum and attention.

use super::{Default, OpDef, Param, Work, bools, broadcast, float, number, string};
use crate::{DType, Error, OpView, Opset, TensorType};

pub(super) static OPS: &[OpDef] = &[
    OpDef::new(
        "einsum",
        &[number("values").variadic(), string("equation")],
        einsum,
        Work::Products(einsum_products),
    ),
    // x weight^T + bias over the last axis of x; weight is [out, in].
    OpDef::new(
        "linear",
        &[float("x"), float("weight"), float("bias").constant().optional()],
        linear,
        Work::Products(weight_products),
    )
    .weight("weight"),
    OpDef::new(
        "matmul",
        &[
            number("x"),
            number("y"),
            bools("transpose_x").default(Default::Bool(false)),
            bools("transpose_y").default(Default::Bool(false)),
        ],
        matmul,
        Work::Products(matmul_products),
    ),
    // softmax(query key^T / sqrt(channels) + attn_mask) value over [..., tokens, channels]. Where a mask of
    // truth values is false, the key is hidden; a query that sees no key gives zeros.
    OpDef::new(
        "scaled_dot_product_attention",
        &[
            float("query"),
            float("key"),
            float("value"),
            Param::new("attn_mask", &[DType::F16, DType::F32, DType::Bool]).optional(),
        ],
        attention,
        Work::Products(attention_products),
    )
    .since(Opset::Ios18),
];

fn linear(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, weight) = (op.ty("x")?, op.ty("weight")?);
    let (&[out, into], Some((&last, outer))) = (&weight.shape[..], x.shape.split_last()) else {
        return Err(op.invalid(format!("x {x} and weight {weight} don't fit")));
    };
    let bias_fits = op.get("bias").is_none() || op.ty("bias")?.shape == [out];
    if last != into || !bias_fits {
        return Err(op.invalid(format!("x {x}, weight {weight} and bias don't fit")));
    }
    Ok(vec![TensorType::new(x.dtype, [outer, &[out]].concat())])
}

fn matmul(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (x, y) = (op.ty("x")?, op.ty("y")?);
    if x.rank() < 2 || y.rank() < 2 {
        return Err(op.invalid(format!("x {x} and y {y} must have at least rank 2")));
    }
    let matrix = |shape: &[usize], transposed: bool| {
        let (rows, columns) = (shape[shape.len() - 2], shape[shape.len() - 1]);
        if transposed { (columns, rows) } else { (rows, columns) }
    };
    let (rows, inner) = matrix(&x.shape, op.bool("transpose_x")?);
    let (inner_y, columns) = matrix(&y.shape, op.bool("transpose_y")?);
    if inner != inner_y {
        return Err(op.invalid(format!("x {x} and y {y} don't fit: {inner} against {inner_y}")));
    }
    let mut shape = broadcast(op, &x.shape[..x.rank() - 2], &y.shape[..y.rank() - 2])?;
    shape.extend([rows, columns]);
    Ok(vec![TensorType::new(x.dtype, shape)])
}

fn attention(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let (query, key, value) = (op.ty("query")?, op.ty("key")?, op.ty("value")?);
    let rank = query.rank();
    let misfit = || op.invalid(format!("query {query}, key {key} and value {value} don't fit"));
    if rank < 3 || key.rank() != rank || value.rank() != rank {
        return Err(misfit());
    }
    let channels_fit = query.shape[rank - 1] == key.shape[rank - 1];
    let tokens_fit = key.shape[rank - 2] == value.shape[rank - 2] && key.shape[rank - 2] > 0;
    let batches_fit = key.shape[..rank - 2] == query.shape[..rank - 2]
        && value.shape[..rank - 2] == query.shape[..rank - 2];
    if !(channels_fit && tokens_fit && batches_fit) {
        return Err(misfit());
    }
    if op.get("attn_mask").is_some() {
        let mask = op.ty("attn_mask")?;
        let scores = [&query.shape[..rank - 1], &key.shape[rank - 2..rank - 1]].concat();
        if broadcast(op, &mask.shape, &scores)? != scores {
            return Err(op.invalid(format!("mask {mask} does not fit scores {scores:?}")));
        }
    }
    let mut shape = query.shape.clone();
    shape[rank - 1] = value.shape[rank - 1];
    Ok(vec![TensorType::new(query.dtype, shape)])
}

/// A two-operand einsum equation: the axis labels of its operands and of its result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Equation {
    /// The labels of the operands' axes.
    pub inputs: [Vec<char>; 2],
    /// The labels of the result's axes.
    pub output: Vec<char>,
}

impl Equation {
    /// Parses an equation such as `bkhc,bchq->bkhq`; `None` if it is not of two operands with distinct
    /// lower-case labels, or the result names a label that no operand has.
    pub fn parse(text: &str) -> Option<Self> {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let (inputs, output) = compact.split_once("->")?;
        let (x, y) = inputs.split_once(',')?;
        let labels = |text: &str| -> Option<Vec<char>> {
            let labels: Vec<char> = text.chars().collect();
            let distinct = labels.iter().enumerate().all(|(at, label)| !labels[..at].contains(label));
            (distinct && labels.iter().all(char::is_ascii_lowercase)).then_some(labels)
        };
        let (x, y, output) = (labels(x)?, labels(y)?, labels(output)?);
        let known = output.iter().all(|label| x.contains(label) || y.contains(label));
        known.then_some(Equation { inputs: [x, y], output })
    }
}

fn einsum(op: &OpView) -> Result<Vec<TensorType>, Error> {
    let text = op.str("equation")?;
    let equation =
        Equation::parse(&text).ok_or_else(|| op.invalid(format!("can't read equation `{text}`")))?;
    let &[x, y] = op.arg("values").values() else {
        return Err(op.invalid("`values` must be two tensors"));
    };
    let operands = [&op.function().value(x).ty, &op.function().value(y).ty];
    let mut extents: Vec<(char, usize)> = Vec::new();
    for (labels, ty) in equation.inputs.iter().zip(operands) {
        if labels.len() != ty.rank() {
            return Err(op.invalid(format!("equation `{text}` does not fit {ty}")));
        }
        for (&label, &extent) in labels.iter().zip(&ty.shape) {
            match extents.iter().find(|(known, _)| *known == label) {
                Some(&(_, known)) if known != extent => {
                    return Err(
                        op.invalid(format!("axis `{label}` of `{text}` is both {known} and {extent}"))
                    );
                }
                Some(_) => {}
                None => extents.push((label, extent)),
            }
        }
    }
    let extent =
        |label: &char| extents.iter().find(|(known, _)| known == label).map_or(1, |&(_, extent)| extent);
    Ok(vec![TensorType::new(operands[0].dtype, equation.output.iter().map(extent).collect::<Vec<_>>())])
}

fn output_count(op: &OpView) -> u64 {
    op.op().outputs.first().map_or(0, |&id| op.function().value(id).ty.count() as u64)
}

/// The shape of an input; empty if it is not bound.
fn extents<'a>(op: &OpView<'a>, input: &str) -> &'a [usize] {
    op.get(input).map_or(&[], |id| &op.function().value(id).ty.shape)
}

/// The multiply-adds of a layer: one row of the weight for each output.
pub(super) fn weight_products(op: &OpView) -> u64 {
    output_count(op) * extents(op, "weight").iter().skip(1).product::<usize>() as u64
}

fn matmul_products(op: &OpView) -> u64 {
    let shape = extents(op, "x");
    let back = if op.bool("transpose_x").unwrap_or(false) { 2 } else { 1 };
    let depth = shape.len().checked_sub(back).map_or(0, |axis| shape[axis]);
    output_count(op) * depth as u64
}

/// The multiply-adds of the scores, and the same number for the weighted values.
fn attention_products(op: &OpView) -> u64 {
    let (query, key) = (extents(op, "query"), extents(op, "key"));
    let [batch @ .., tokens, width] = query else { return 0 };
    let keys = key.len().checked_sub(2).map_or(0, |axis| key[axis]);
    let batch: usize = batch.iter().product();
    2 * (batch * tokens * keys * width) as u64
}

fn einsum_products(op: &OpView) -> u64 {
    let equation = op.str("equation").ok().and_then(|text| Equation::parse(&text));
    let (Some(equation), [x, y]) = (equation, op.arg("values").values()) else { return 0 };
    let extents = [x, y].map(|id| &op.function().value(*id).ty.shape);
    let labels = equation.inputs.iter().zip(extents).flat_map(|(labels, shape)| labels.iter().zip(shape));
    let mut summed: Vec<_> = labels.filter(|(label, _)| !equation.output.contains(label)).collect();
    summed.sort();
    summed.dedup();
    output_count(op) * summed.into_iter().map(|(_, extent)| *extent as u64).product::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, multiply_adds};

    #[test]
    fn equations_parse() {
        let equation = Equation::parse("bkhc, bchq -> bkhq").unwrap();
        assert_eq!(equation.output, ['b', 'k', 'h', 'q']);
        for bad in ["", "ab,bc", "ab->ab", "aa,ab->ab", "ab,bc->ad", "a1,1b->ab", "...a,ab->b"] {
            assert_eq!(Equation::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn work_is_that_of_the_products() {
        let mut b = Builder::new("main", Opset::Ios18);
        let input = |b: &mut Builder, name: &str, shape: &[usize]| {
            b.input(name, TensorType::new(DType::F32, shape)).unwrap()
        };
        let x = input(&mut b, "x", &[2, 6, 5, 7]);
        let w = input(&mut b, "w", &[4, 3, 3, 3]);
        let conv =
            b.op("conv").arg("x", x).arg("weight", w).arg("pad_type", "same").arg("groups", 2).add().unwrap();
        let (p, q) = (input(&mut b, "p", &[2, 5, 3]), input(&mut b, "q", &[2, 5, 4]));
        let matmul = b.op("matmul").arg("x", p).arg("y", q).arg("transpose_x", true).add().unwrap();
        let (s, t) = (input(&mut b, "s", &[2, 8, 3, 5]), input(&mut b, "t", &[2, 5, 3, 9]));
        let einsum = b.op("einsum").arg("values", [s, t]).arg("equation", "bkhc,bchq->bkhq").add().unwrap();
        let (k, v) = (input(&mut b, "k", &[1, 2, 7, 8]), input(&mut b, "v", &[1, 2, 11, 8]));
        let attention =
            b.op("scaled_dot_product_attention").arg("query", k).arg("key", v).arg("value", v).add().unwrap();
        let function = b.finish(&[conv, matmul, einsum, attention]).unwrap();
        let work: Vec<u64> = function.ops().iter().map(|op| multiply_adds(&function.view(op))).collect();
        assert_eq!(work, [2 * 4 * 35 * 27, 2 * 3 * 4 * 5, 2 * 8 * 3 * 9 * 5, 2 * 2 * 7 * 11 * 8]);
    }
}
