//! A function with its edges: the maker and the users of each value.

use mixbit_mil::{Arg, Constant, DType, Def, Function, OpView, ValueId};

use crate::Tensor;

/// A function with its edges.
pub(super) struct Graph<'f> {
    function: &'f Function,
    makers: Vec<Option<usize>>,
    /// The ops that use each value, once for each use. The position after the last op uses the outputs.
    users: Vec<Vec<usize>>,
}

impl<'f> Graph<'f> {
    pub(super) fn new(function: &'f Function) -> Self {
        let mut makers = vec![None; function.values().len()];
        let mut users = vec![Vec::new(); function.values().len()];
        for (index, op) in function.ops().iter().enumerate() {
            op.outputs.iter().for_each(|id| makers[id.index()] = Some(index));
            op.args.iter().flat_map(Arg::values).for_each(|id| users[id.index()].push(index));
        }
        function.outputs().iter().for_each(|id| users[id.index()].push(function.ops().len()));
        Graph { function, makers, users }
    }

    /// An op by its position.
    pub(super) fn view(&self, index: usize) -> OpView<'f> {
        self.function.view(&self.function.ops()[index])
    }

    /// The first value that an op makes.
    pub(super) fn output(&self, index: usize) -> ValueId {
        self.function.ops()[index].outputs[0]
    }

    pub(super) fn shape(&self, id: ValueId) -> &'f [usize] {
        &self.function.value(id).ty.shape
    }

    pub(super) fn dtype(&self, id: ValueId) -> DType {
        self.function.value(id).ty.dtype
    }

    /// True if a user is an op, not the end of the function.
    pub(super) fn is_op(&self, user: usize) -> bool {
        user < self.function.ops().len()
    }

    /// The op of type `kind` that makes a value.
    pub(super) fn maker(&self, id: ValueId, kind: &str) -> Option<usize> {
        self.makers[id.index()].filter(|&index| self.function.ops()[index].def.name == kind)
    }

    /// The op of type `kind` that makes a value which one op alone uses.
    pub(super) fn own_maker(&self, id: ValueId, kind: &str) -> Option<usize> {
        self.maker(id, kind).filter(|&index| self.only_user(index).is_some())
    }

    /// The op of type `kind` that makes the value bound to an input of an op, if it has such an input.
    pub(super) fn maker_of(&self, op: usize, input: &str, kind: &str) -> Option<usize> {
        let view = self.view(op);
        let has_input = view.op().def.params.iter().any(|param| param.name == input);
        self.maker(has_input.then(|| view.get(input)).flatten()?, kind)
    }

    /// The ops that use the first value that an op makes.
    pub(super) fn users(&self, op: usize) -> &[usize] {
        &self.users[self.output(op).index()]
    }

    /// The op that alone uses the result of an op, once.
    pub(super) fn only_user(&self, op: usize) -> Option<usize> {
        match *self.users(op) {
            [user] if self.is_op(user) => Some(user),
            _ => None,
        }
    }

    /// The op of type `kind` that alone uses the result of an op.
    pub(super) fn only_user_of(&self, op: usize, kind: &str) -> Option<usize> {
        self.only_user(op).filter(|&user| self.function.ops()[user].def.name == kind)
    }

    /// True if only the given ops use the values that they make, except those of the last.
    pub(super) fn is_closed(&self, ops: &[usize], last: usize) -> bool {
        ops.iter().filter(|&&op| op != last).all(|&op| {
            let outputs = &self.function.ops()[op].outputs;
            outputs.iter().flat_map(|id| &self.users[id.index()]).all(|user| ops.contains(user))
        })
    }

    /// The elements of a constant of floats.
    pub(super) fn constant(&self, id: ValueId) -> Option<Vec<f32>> {
        match &self.function.value(id).def {
            Def::Const(constant @ (Constant::Literal(_) | Constant::Weight(_))) => {
                Tensor::of_constant(constant).ok()?.into_f32()
            }
            _ => None,
        }
    }

    /// The constant of one float that is bound to one of two inputs, and the value that is bound to the
    /// other.
    pub(super) fn scalar_and_value(&self, op: usize) -> Option<(f32, ValueId)> {
        let view = self.view(op);
        let (x, y) = (view.get("x")?, view.get("y")?);
        let scalar = |id: ValueId| match self.shape(id).iter().product::<usize>() {
            1 => self.constant(id).and_then(|values| values.first().copied()),
            _ => None,
        };
        scalar(y).map(|scalar| (scalar, x)).or_else(|| scalar(x).map(|scalar| (scalar, y)))
    }

    /// True if a value is a constant.
    pub(super) fn is_constant(&self, id: ValueId) -> bool {
        matches!(self.function.value(id).def, Def::Const(_))
    }
}
