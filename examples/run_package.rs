//! Runs a Core ML package on zeros, and prints its outputs:
//! `cargo run -p mixbit-examples --example run_package -- MODEL.mlpackage`.
#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;

use mixbit_engine::{Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::coreml;

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args().nth(1).ok_or("the path of the package is missing")?);
    let model = coreml::read(&path)?;
    let function = model.program.functions.first().ok_or("the package has no function")?;
    let mut inputs = Vec::new();
    for &id in function.inputs() {
        let input = function.value(id);
        let zeros = vec![0.0; input.ty.shape.iter().product()];
        inputs.push((input.name.as_str(), Tensor::from_f32(&input.ty.shape, zeros)?));
    }
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, tensor)| (*name, tensor)).collect();

    let mut compiled = Cpu::new(None)?.compile(function, &Options::default())?;
    for (id, output) in function.outputs().iter().zip(compiled.run(&inputs)?) {
        let values = output.as_f32().unwrap_or_default();
        let first = &values[..values.len().min(4)];
        println!("{}: {:?}, begins with {first:?}", function.value(*id).name, output.shape());
    }
    Ok(())
}
