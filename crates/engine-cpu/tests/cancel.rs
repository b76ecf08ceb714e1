//! Cancelled runs, and the runs after them.

use std::time::{Duration, Instant};

use half::f16;
use mixbit_engine::{Arithmetic, Backend, Cancel, Error, Model, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_mil::{Builder, Bytes, DType, Function, Opset, TensorType, ValueId, WeightRef};

const ROWS: usize = 40;
const WIDTH: usize = 96;

fn weight(b: &mut Builder, name: &str, shape: [usize; 2]) -> ValueId {
    let values: Vec<f16> = (0..shape[0] * shape[1]).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
    let bytes = Bytes::new(bytemuck::allocation::pod_collect_to_vec::<f16, u8>(&values));
    let weight = WeightRef::new(name, TensorType::new(DType::F16, shape), bytes).unwrap();
    b.weight(weight.cast(DType::F32))
}

/// `text` through two layers, `x` through three, and a sum: outputs `early` of the first, `late` of the last.
fn function() -> Function {
    let mut b = Builder::new("main", Opset::Ios16);
    let [x, text] =
        ["x", "text"].map(|name| b.input(name, TensorType::new(DType::F32, [ROWS, WIDTH])).unwrap());
    let mut layer = |value: ValueId, name: &str| {
        let weight = weight(&mut b, &format!("{name}.weight"), [WIDTH, WIDTH]);
        let made = b.op("linear").arg("x", value).arg("weight", weight).named(name).add().unwrap();
        b.op("tanh").arg("x", made).named(&format!("{name}_tanh")).add().unwrap()
    };
    let early = layer(text, "text_0");
    let keys = layer(early, "text_1");
    let one = layer(x, "x_0");
    let two = layer(one, "x_1");
    let sum = b.op("add").arg("x", two).arg("y", keys).named("sum").add().unwrap();
    let late = b.op("square").arg("x", sum).named("late").add().unwrap();
    b.finish(&[early, late]).unwrap()
}

fn tensor(seed: f32) -> Tensor {
    let values = (0..ROWS * WIDTH).map(|i| (i as f32 * 0.11 + seed).cos()).collect();
    Tensor::from_f32(&[ROWS, WIDTH], values).unwrap()
}

fn backends() -> Vec<Box<dyn Backend>> {
    let cpu = |threads| Box::new(Cpu::new(Some(threads)).unwrap());
    vec![cpu(1), cpu(3), Box::new(Reference)]
}

/// Runs until the first output is handed out.
fn cancelled_halfway(model: &mut Model, inputs: &[(&str, &Tensor)]) {
    let cancel = Cancel::new();
    let mut handed = Vec::new();
    let result = model.run_with(inputs, &cancel, &mut |index, _| {
        handed.push(index);
        cancel.cancel();
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(handed, [0]);
}

#[test]
fn a_cancelled_model_runs_as_if_it_had_not_been() {
    let function = function();
    let [a, b] = [tensor(0.0), tensor(1.0)];
    for backend in backends() {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16, Arithmetic::Int8] {
            let constant_inputs = ["text".to_string()].into();
            let options = Options { arithmetic, constant_inputs, ..Options::default() };
            let mut model = backend.compile(&function, &options).unwrap();
            let fresh = |inputs: &[(&str, &Tensor)]| {
                backend.compile(&function, &Options { arithmetic, ..Options::default() }).unwrap().run(inputs)
            };
            // Runs enough that weights would be packed in a cancelled one, and that what is kept is there or
            // not.
            for (round, text) in [&a, &a, &a, &a, &b, &b, &a].into_iter().enumerate() {
                let x = tensor(round as f32);
                let inputs = [("x", &x), ("text", text)];
                cancelled_halfway(&mut model, &[("x", &b), ("text", text)]);
                assert_eq!(model.run(&inputs).unwrap(), fresh(&inputs).unwrap(), "{arithmetic:?} {round}");
                cancelled_halfway(&mut model, &inputs);
            }
        }
    }
}

#[test]
fn a_raised_request_runs_nothing() {
    for backend in backends() {
        let mut model = backend.compile(&function(), &Options::default()).unwrap();
        let cancel = Cancel::new();
        cancel.clone().cancel();
        assert!(cancel.is_cancelled());
        let x = tensor(0.0);
        assert!(matches!(model.run_until(&[("x", &x), ("text", &x)], &cancel), Err(Error::Cancelled)));
        assert!(model.trace().is_empty());
    }
}

#[test]
fn an_op_is_cancelled_before_its_end() {
    let size = 1200;
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F32, [size, size])).unwrap();
    let y = b.op("matmul").arg("x", x).arg("y", x).named("y").add().unwrap();
    let function = b.finish(&[y]).unwrap();
    let values = (0..size * size).map(|i| (i as f32 * 0.013).sin()).collect();
    let x = Tensor::from_f32(&[size, size], values).unwrap();
    for threads in [1, 2] {
        let mut model = Cpu::new(Some(threads)).unwrap().compile(&function, &Options::default()).unwrap();
        let expected = model.run(&[("x", &x)]).unwrap();
        let begin = Instant::now();
        model.run(&[("x", &x)]).unwrap();
        let whole = begin.elapsed();
        // Other work on the machine may delay a run, but not every time.
        let stopped_early = (0..20).any(|_| {
            let cancel = Cancel::new();
            let begin = Instant::now();
            let result = std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(2));
                    cancel.cancel();
                });
                model.run_until(&[("x", &x)], &cancel)
            });
            assert!(matches!(result, Err(Error::Cancelled)) || result.unwrap() == expected);
            begin.elapsed() < whole / 2
        });
        assert!(stopped_early, "{threads} threads: no run ended in half of {whole:?}");
        assert_eq!(model.run(&[("x", &x)]).unwrap(), expected);
    }
}
