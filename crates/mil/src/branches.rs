//! Low-rank branches beside layers: `y = W x` becomes `y = W x + up (down x)`, and `W` stays as it is stored.

use std::collections::HashSet;

use crate::ops::lookup;
use crate::{Arg, Constant, Def, Error, Function, Op, OpDef, TensorType, ValueId, WeightRef};

/// The factors of a branch.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Rank by the elements of one output channel's weights, a matrix.
    pub down: WeightRef,
    /// Output channels by rank, a matrix.
    pub up: WeightRef,
}

/// Adds branches to `conv` and `linear` ops. `branch` gives that of a weight, or `None`.
///
/// ```text
/// y = conv(weight = w, x = x)       base = conv(weight = w, x = x)
///                                   mid = conv(weight = down, x = x)
///                             ->    change = conv(weight = up, x = mid)
///                                   y = add(x = base, y = change)
/// ```
///
/// # Errors
/// [`Error`] if a branch does not fit its weight, or a weight with one is an operand of another op.
pub fn with_branches(
    function: &Function,
    branch: impl Fn(&WeightRef) -> Option<Branch>,
) -> Result<Function, Error> {
    let mut out = function.clone();
    let mut writer = Writer { names: out.values.iter().map(|value| value.name.clone()).collect() };
    for op in std::mem::take(&mut out.ops) {
        let found = op.args.iter().flat_map(Arg::values).find_map(|&id| match &out.value(id).def {
            Def::Const(Constant::Weight(weight)) => Some((id, branch(weight)?)),
            _ => None,
        });
        match found {
            Some((weight, branch)) => writer.branch(&mut out, op, weight, &branch)?,
            None => out.ops.push(op),
        }
    }
    Ok(out)
}

/// The shapes of a branch's factors as weights of the layer's op; `None` if they don't fit it.
fn shapes(branch: &Branch, weight: &TensorType) -> Option<[Vec<usize>; 2]> {
    let (&out, rest) = weight.shape.split_first()?;
    let &[rank, columns] = &branch.down.ty().shape[..] else { return None };
    if branch.up.ty().shape != [out, rank] || rest.iter().product::<usize>() != columns {
        return None;
    }
    let ones = vec![1; rest.len().saturating_sub(1)];
    Some([[&[rank], rest].concat(), [&[out, rank], &ones[..]].concat()])
}

/// An op with two inputs bound, without results yet.
fn bound(kind: &'static OpDef, inputs: [(&str, ValueId); 2]) -> Op {
    let mut args = vec![Arg::Absent; kind.params.len()];
    for (input, id) in inputs {
        kind.param_index(input).into_iter().for_each(|at| args[at] = Arg::One(id));
    }
    Op { def: kind, args, outputs: Vec::new() }
}

/// A writer of values under names of their own.
struct Writer {
    names: HashSet<String>,
}

impl Writer {
    /// Adds a layer's op with a branch.
    fn branch(
        &mut self,
        out: &mut Function,
        mut op: Op,
        weight: ValueId,
        branch: &Branch,
    ) -> Result<(), Error> {
        let (kind, view) = (op.def, out.view(&op));
        let is_layer = matches!(kind.name, "conv" | "linear") && view.weight() == Some(weight);
        if !is_layer || (kind.name == "conv" && view.int("groups")? != 1) {
            return Err(view.invalid("a low-rank branch can't be added to it".to_string()));
        }
        let ty = out.value(weight).ty.clone();
        let [down, up] =
            shapes(branch, &ty).ok_or_else(|| view.invalid("its branch has another shape".to_string()))?;
        let result = op.outputs[0];
        let (name, result_ty) = (out.value(result).name.clone(), out.value(result).ty.clone());
        let mut factor = |factor: &WeightRef, shape: Vec<usize>, part: &str| -> Result<ValueId, Error> {
            let factor = factor.reshape(shape).map_err(Error::Weight)?.cast(ty.dtype);
            let (ty, def) = (factor.ty().clone(), Def::Const(Constant::Weight(factor)));
            Ok(self.value(out, &format!("{name}_{part}"), ty, def))
        };
        let (down, up) = (factor(&branch.down, down, "down")?, factor(&branch.up, up, "up")?);
        // The branch has the layer's geometry and no bias.
        let mut args = op.args.clone();
        kind.param_index("bias").into_iter().for_each(|at| args[at] = Arg::Absent);
        kind.param_index("weight").into_iter().for_each(|at| args[at] = Arg::One(down));
        let own = self.value(out, &format!("{name}_base"), result_ty, Def::Result);
        op.outputs[0] = own;
        out.ops.push(op);
        let mid = self.op(out, Op { def: kind, args, outputs: Vec::new() }, &format!("{name}_mid"))?;
        let last = bound(kind, [("x", mid), ("weight", up)]);
        let change = self.op(out, last, &format!("{name}_change"))?;
        let sum = lookup("add").ok_or_else(|| Error::UnknownOp("add".to_string()))?;
        out.ops.push(Op { outputs: vec![result], ..bound(sum, [("x", own), ("y", change)]) });
        Ok(())
    }

    fn value(&mut self, out: &mut Function, name: &str, ty: TensorType, def: Def) -> ValueId {
        let numbered = (1..).map(|count| format!("{name}_{count}"));
        let free = std::iter::once(name.to_string()).chain(numbered).find(|name| !self.names.contains(name));
        let name = free.unwrap_or_default();
        self.names.insert(name.clone());
        out.add_value(name, ty, def)
    }

    fn op(&mut self, out: &mut Function, mut op: Op, name: &str) -> Result<ValueId, Error> {
        let types = op.def.infer(&out.view(&op))?;
        for ty in types {
            let id = self.value(out, name, ty, Def::Result);
            op.outputs.push(id);
        }
        let result = op.outputs.first().copied();
        out.ops.push(op);
        result.ok_or_else(|| Error::Graph(format!("`{name}` has no result")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, Bytes, DType, Opset, verify};

    fn zeros(name: &str, shape: &[usize]) -> WeightRef {
        let ty = TensorType::new(DType::F16, shape);
        WeightRef::new(name, ty.clone(), Bytes::new(vec![0; ty.byte_len().unwrap()])).unwrap()
    }

    /// A convolution and a linear layer, both with the weight `w`.
    fn function() -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [1, 4, 8, 8])).unwrap();
        let kernel = b.weight(zeros("kernel", &[6, 4, 3, 3]));
        let conv = b.op("conv").arg("x", x).arg("weight", kernel).arg("strides", [2, 2]);
        let y = conv.arg("pad_type", "custom").arg("pad", [1; 4]).named("y").add().unwrap();
        let matrix = b.weight(zeros("matrix", &[5, 4]));
        let z = b.op("linear").arg("x", y).arg("weight", matrix).named("z").add().unwrap();
        b.finish(&[z]).unwrap()
    }

    fn branch_of(name: &'static str, columns: usize, rows: usize) -> impl Fn(&WeightRef) -> Option<Branch> {
        move |weight| {
            let branch = Branch { down: zeros("d", &[2, columns]), up: zeros("u", &[rows, 2]) };
            (weight.name() == name).then_some(branch)
        }
    }

    #[test]
    fn a_branch_has_the_geometry_of_its_layer() {
        let before = function();
        for (name, columns, rows, mid) in
            [("kernel", 36, 6, vec![1, 2, 4, 4]), ("matrix", 4, 5, vec![1, 6, 4, 2])]
        {
            let after = with_branches(&before, branch_of(name, columns, rows)).unwrap();
            verify(&after).unwrap();
            assert_eq!(after.ops().len(), before.ops().len() + 3);
            assert_eq!(after.value(after.outputs()[0]).ty, before.value(before.outputs()[0]).ty);
            let found = after.values().iter().find(|value| value.name.ends_with("_mid")).unwrap();
            assert_eq!(found.ty.shape, mid);
        }
    }

    #[test]
    fn a_branch_of_another_shape_is_refused() {
        let error = with_branches(&function(), branch_of("kernel", 35, 6)).unwrap_err().to_string();
        assert!(error.contains("another shape"), "{error}");
    }
}
