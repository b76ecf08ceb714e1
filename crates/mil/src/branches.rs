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
