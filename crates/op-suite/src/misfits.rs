//! Runs with inputs that don't fit: each is refused by name, and the model stays usable.

use mixbit_engine::{Backend, Error, Model, Options, Tensor};
use mixbit_mil::{Builder, DType, Opset, TensorType};

use crate::report::Collector;

/// The inputs of a run.
type Inputs = Vec<(&'static str, Tensor)>;

/// gather(x, ids) for x of `fp32[3, 2]` and ids of `int32[4]`.
fn model(backend: &dyn Backend) -> Model {
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F32, [3, 2])).unwrap();
    let ids = b.input("ids", TensorType::new(DType::I32, [4])).unwrap();
    let y = b.op("gather").arg("x", x).arg("indices", ids).named("y").add().unwrap();
    let function = b.finish(&[y]).unwrap();
    backend.compile(&function, &Options::default()).unwrap()
}

fn floats(shape: &[usize]) -> Tensor {
    Tensor::from_f32(shape, vec![0.5; shape.iter().product()]).unwrap()
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_i32(&[values.len()], values.to_vec()).unwrap()
}

/// Inputs that don't fit, and the parts of the message about them.
fn misfits() -> Vec<(Inputs, &'static [&'static str])> {
    let (x, ids) = (floats(&[3, 2]), ints(&[0, 1, 2, -1]));
    vec![
        (vec![], &["`x`", "not given"]),
        (vec![("x", x.clone())], &["`ids`", "not given"]),
        (vec![("X", x.clone()), ("ids", ids.clone())], &["no input `X`", "x, ids"]),
        (vec![("x", x.clone()), ("ids", ids.clone()), ("y", x.clone())], &["no input `y`"]),
        (vec![("x", floats(&[2, 3])), ("ids", ids.clone())], &["`x`", "3, 2", "[2, 3]"]),
        (vec![("x", floats(&[6])), ("ids", ids.clone())], &["`x`", "3, 2", "[6]"]),
        (vec![("x", floats(&[])), ("ids", ids.clone())], &["`x`", "3, 2", "[]"]),
        (vec![("x", x.clone()), ("ids", ints(&[0, 1]))], &["`ids`", "4", "[2]"]),
        (vec![("x", x.clone()), ("ids", floats(&[4]))], &["`ids`", "int32", "floats"]),
        (vec![("x", ints(&[1; 6]).reshaped(&[3, 2]).unwrap()), ("ids", ids)], &["`x`", "fp32", "integers"]),
        (vec![("x", x.clone()), ("ids", ints(&[0, 3, 0, 0]))], &["gather", "index 3", "extent 3"]),
        (vec![("x", x.clone()), ("ids", ints(&[0, -4, 0, 0]))], &["gather", "index -4", "extent 3"]),
        (vec![("x", x), ("ids", ints(&[i32::MIN, i32::MAX, 0, 0]))], &["gather", "-2147483648"]),
    ]
}

/// Runs the part of the suite.
pub(crate) fn run(backends: &[&dyn Backend], collector: &mut Collector) {
    for (index, (inputs, fragments)) in misfits().into_iter().enumerate() {
        for backend in backends {
            collector.case("misfit", &format!("gather {index}"), || check(*backend, &inputs, fragments));
        }
    }
    for backend in backends {
        collector.case("misfit", "an input given twice", || check_repeated(*backend));
    }
}

fn check(backend: &dyn Backend, inputs: &Inputs, fragments: &[&str]) -> Result<(), String> {
    let mut model = model(backend);
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let message = match model.run(&inputs) {
        Ok(_) => return Err("it ran".to_string()),
        Err(error) => error.to_string(),
    };
    if let Some(missing) = fragments.iter().find(|fragment| !message.contains(**fragment)) {
        return Err(format!("`{message}` does not say `{missing}`"));
    }
    let (x, ids) = (floats(&[3, 2]), ints(&[0, 1, 2, -1]));
    let good = model.run(&[("x", &x), ("ids", &ids)]).map_err(|error| error.to_string())?;
    if good[0].as_f32() == Some(&[0.5; 8]) { Ok(()) } else { Err(format!("{good:?}")) }
}

fn check_repeated(backend: &dyn Backend) -> Result<(), String> {
    let (x, other, ids) = (floats(&[3, 2]), floats(&[3, 2]), ints(&[0, 1, 2, -1]));
    match model(backend).run(&[("x", &x), ("ids", &ids), ("x", &other)]) {
        Err(Error::InputRepeated { name }) if name == "x" => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
