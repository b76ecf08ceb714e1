//! The executable rules of a valid function.

use std::collections::HashSet;

use crate::builder::is_identifier;
use crate::constexpr;
use crate::{Def, Error, Function};

/// Checks every rule of a function: names, order, arguments, types.
///
/// - Names are identifiers, and unique among the values that are used.
/// - Every value is defined once, before it is used.
/// - Arguments fit their declarations, and recorded types are the inferred ones.
/// - Operands of constexpr ops are constants or results of others.
/// - Inputs and outputs exist; no output is named twice.
///
/// Tests run it after every build and pass.
///
/// # Errors
/// The first broken rule, with the op or value.
pub fn verify(function: &Function) -> Result<(), Error> {
    let mut made = vec![false; function.values.len()];
    for (index, value) in function.values.iter().enumerate() {
        if let Def::Const(constant) = &value.def {
            if constant.ty() != &value.ty {
                return Err(Error::Graph(format!("constant `{}` is recorded as {}", value.name, value.ty)));
            }
            made[index] = true;
        }
    }
    for &id in &function.inputs {
        let value = &function.values[id.index()];
        if !matches!(value.def, Def::Input) || std::mem::replace(&mut made[id.index()], true) {
            return Err(Error::Graph(format!("`{}` is not an input, or is one twice", value.name)));
        }
    }
    let mut used: HashSet<_> = function.inputs.iter().copied().collect();
    for op in &function.ops {
        let view = function.view(op);
        if op.args.len() != op.def.params.len() {
            return Err(view.invalid("has not one argument for each parameter"));
        }
        for &id in op.args.iter().flat_map(|arg| arg.values()) {
            if !made[id.index()] {
                let name = &function.value(id).name;
                return Err(view.invalid(format!("uses `{name}` before it is made")));
            }
            used.insert(id);
        }
        let types = op.def.infer(&view)?;
        if types.len() != op.outputs.len() {
            return Err(view.invalid(format!("has {} results, not {}", op.outputs.len(), types.len())));
        }
        for (&id, ty) in op.outputs.iter().zip(&types) {
            let value = function.value(id);
            if !matches!(value.def, Def::Result) || std::mem::replace(&mut made[id.index()], true) {
                return Err(view.invalid(format!("makes `{}` a second time", value.name)));
            }
            if &value.ty != ty {
                return Err(
                    view.invalid(format!("`{}` is recorded as {}, inferred as {ty}", value.name, value.ty))
                );
            }
            used.insert(id);
        }
    }
    constexpr::check_operands(function)?;
    verify_outputs(function, &made)?;
    verify_names(function, &used)
}

fn verify_outputs(function: &Function, made: &[bool]) -> Result<(), Error> {
    let mut seen = HashSet::new();
    for &id in &function.outputs {
        let name = &function.value(id).name;
        if !made[id.index()] {
            return Err(Error::Graph(format!("output `{name}` is not made by any op")));
        }
        if !seen.insert(id) {
            return Err(Error::Graph(format!("output `{name}` is named twice")));
        }
    }
    Ok(())
}

fn verify_names(function: &Function, used: &HashSet<crate::ValueId>) -> Result<(), Error> {
    let mut names = HashSet::new();
    for &id in used {
        let name = &function.value(id).name;
        if !is_identifier(name) {
            return Err(Error::Graph(format!("`{name}` is not an identifier")));
        }
        if !names.insert(name) {
            return Err(Error::Graph(format!("two values are named `{name}`")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Builder, DType, Opset, TensorType};

    fn chain() -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F32, [2])).unwrap();
        let y = b.op("relu").arg("x", x).add().unwrap();
        let z = b.op("exp").arg("x", y).add().unwrap();
        b.finish(&[z]).unwrap()
    }

    #[test]
    fn every_broken_rule_is_found() {
        type Break = fn(&mut Function);
        let cases: [(&str, Break); 8] = [
            ("order", |f| f.ops.swap(0, 1)),
            ("a name twice", |f| f.values[1].name = "x".into()),
            ("not an identifier", |f| f.values[1].name = "a.b".into()),
            ("a wrong type", |f| f.values[2].ty.shape = vec![3]),
            ("an op twice", |f| f.ops.push(f.ops[1].clone())),
            ("an output that nothing makes", |f| f.ops.truncate(1)),
            ("an output twice", |f| f.outputs.push(f.outputs[0])),
            ("a missing argument", |f| f.ops[0].args.clear()),
        ];
        verify(&chain()).unwrap();
        for (name, break_rule) in cases {
            let mut function = chain();
            break_rule(&mut function);
            assert!(verify(&function).is_err(), "{name} was not found");
        }
    }
}
