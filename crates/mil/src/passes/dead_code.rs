use crate::{Arg, Function, Op, ValueId};

pub(super) fn run(function: &Function) -> Function {
    let mut live = vec![false; function.values.len()];
    for &id in function.inputs.iter().chain(&function.outputs) {
        live[id.index()] = true;
    }
    let mut keep = vec![false; function.ops.len()];
    for (index, op) in function.ops.iter().enumerate().rev() {
        if op.outputs.iter().any(|id| live[id.index()]) {
            keep[index] = true;
            for id in op.outputs.iter().chain(op.args.iter().flat_map(Arg::values)) {
                live[id.index()] = true;
            }
        }
    }
    let mut renumbered = vec![ValueId(0); function.values.len()];
    let mut out = Function::new(&function.name, function.opset);
    for (index, value) in function.values.iter().enumerate().filter(|(index, _)| live[*index]) {
        renumbered[index] = out.add_value(value.name.clone(), value.ty.clone(), value.def.clone());
    }
    let map = |ids: &[ValueId]| ids.iter().map(|id| renumbered[id.index()]).collect::<Vec<_>>();
    let map_arg = |arg: &Arg| match arg {
        Arg::Absent => Arg::Absent,
        Arg::One(id) => Arg::One(renumbered[id.index()]),
        Arg::Many(ids) => Arg::Many(map(ids)),
    };
    out.inputs = map(&function.inputs);
    out.outputs = map(&function.outputs);
    out.ops = function
        .ops
        .iter()
        .zip(keep)
        .filter(|(_, keep)| *keep)
        .map(|(op, _)| Op {
            def: op.def,
            args: op.args.iter().map(map_arg).collect(),
            outputs: map(&op.outputs),
        })
        .collect();
    out
}

#[cfg(test)]
mod tests {
    use super::super::DEAD_CODE;
    use crate::{Builder, DType, Opset, TensorType, verify};

    #[test]
    fn unused_ops_go() {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        b.input("unused", TensorType::new(DType::F32, [3])).unwrap();
        let dead = b.op("add").arg("x", x).arg("y", 7.0).add().unwrap();
        let y = b.op("mul").arg("x", x).arg("y", 2.0).add().unwrap();
        b.op("exp").arg("x", dead).add().unwrap();
        let function = DEAD_CODE.run(&b.finish(&[y]).unwrap());
        verify(&function).unwrap();
        let expected = "\
program(1.0)
{
    func main<ios16>(tensor<fp32, [2]> x, tensor<fp32, [3]> unused) {
            tensor<fp32, []> const_1 = const()[name = tensor<string, []>(\"const_1\"), val = tensor<fp32, []>(0x1p+1)];
            tensor<fp32, [2]> mul = mul(x = x, y = const_1)[name = tensor<string, []>(\"mul\")];
        } -> (mul);
}
";
        assert_eq!(crate::Program::new(function).to_string(), expected);
    }
}
