//! The CPU and the reference, compared op by op.

use mixbit_engine::{Options, Reference, Tensor, compare};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::{Builder, DType, Function, Opset, TensorType};

fn function(second: &str) -> Function {
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F32, [3])).unwrap();
    let mut value = x;
    for (op, name) in [("exp", "a"), (second, "b"), ("sqrt", "c")] {
        value = b.op(op).arg("x", value).named(name).add().unwrap();
    }
    b.finish(&[value]).unwrap()
}

#[test]
fn backends_that_agree_differ_nowhere() {
    let cpu = Cpu::new(Some(1)).unwrap();
    let x = Tensor::from_f32(&[3], vec![f32::NAN, -1.0, 200.0]).unwrap();
    let options = Options::default();
    let found =
        compare(&function("square"), [&Reference, &cpu], &options, &[("x", &x)], |name| name != "b").unwrap();
    assert_eq!(found.iter().map(|found| found.value.as_str()).collect::<Vec<_>>(), ["a", "c"]);
    for found in found {
        assert!(found.relative < 1e-6 && found.not_finite == 0 && found.nan == 1, "{found:?}");
    }
}
