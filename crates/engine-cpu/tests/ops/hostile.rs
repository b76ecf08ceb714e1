//! Runs with inputs that don't fit: each is refused with the name of what is wrong, and the model stays usable.

use mixbit_engine::{Arithmetic, Backend, Error, Model, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::{Builder, DType, Opset, TensorType};
use mixbit_testkit::Failures;

/// What a run is given.
type Inputs = Vec<(&'static str, Tensor)>;

/// gather(x, ids) for x of `fp32[3, 2]` and ids of `int32[4]`.
fn model(backend: &dyn Backend) -> Model {
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F32, [3, 2])).unwrap();
    let ids = b.input("ids", TensorType::new(DType::I32, [4])).unwrap();
    let y = b.op("gather").arg("x", x).arg("indices", ids).named("y").add().unwrap();
    let function = b.finish(&[y]).unwrap();
    backend.compile(&function, &Options { arithmetic: Arithmetic::F32, ..Options::default() }).unwrap()
}

fn floats(shape: &[usize]) -> Tensor {
    Tensor::from_f32(shape, vec![0.5; shape.iter().product()]).unwrap()
}

fn ints(values: &[i32]) -> Tensor {
    Tensor::from_i32(&[values.len()], values.to_vec()).unwrap()
}

/// Inputs that don't fit, and what the message must name.
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

#[test]
fn inputs_that_do_not_fit_are_refused_by_name() {
    let mut failures = Failures::new("misfits");
    let cpu = Cpu::new(Some(2)).unwrap();
    for backend in [&Reference as &dyn Backend, &cpu] {
        for (index, (feeds, fragments)) in misfits().into_iter().enumerate() {
            failures.case(&format!("{} {index}", backend.name()), || {
                let mut model = model(backend);
                let feeds: Vec<(&str, &Tensor)> =
                    feeds.iter().map(|(name, tensor)| (*name, tensor)).collect();
                let message = match model.run(&feeds) {
                    Ok(_) => return Err("it ran".to_string()),
                    Err(error) => error.to_string(),
                };
                if let Some(missing) = fragments.iter().find(|fragment| !message.contains(**fragment)) {
                    return Err(format!("`{message}` does not say `{missing}`"));
                }
                let (x, ids) = (floats(&[3, 2]), ints(&[0, 1, 2, -1]));
                let good = model.run(&[("x", &x), ("ids", &ids)]).map_err(|error| error.to_string())?;
                if good[0].as_f32() == Some(&[0.5; 8]) { Ok(()) } else { Err(format!("{good:?}")) }
            });
        }
    }
    failures.finish();
}

#[test]
fn an_input_given_twice_is_refused() {
    let (x, other, ids) = (floats(&[3, 2]), floats(&[3, 2]), ints(&[0, 1, 2, -1]));
    let error = model(&Reference).run(&[("x", &x), ("ids", &ids), ("x", &other)]).unwrap_err();
    assert!(matches!(&error, Error::InputRepeated { name } if name == "x"), "{error}");
}

#[test]
fn tensors_have_as_many_elements_as_their_shape() {
    assert!(matches!(Tensor::from_f32(&[2, 3], vec![0.0; 5]), Err(Error::Elements { found: 5, .. })));
    assert!(matches!(Tensor::from_i32(&[usize::MAX, 2], vec![0]), Err(Error::Elements { .. })));
    assert!(matches!(floats(&[4]).reshaped(&[3]), Err(Error::Elements { .. })));
    assert!(floats(&[0, 5]).reshaped(&[0]).is_ok());
}
