//! mixbit as a contender.

use std::fs;
use std::time::Instant;

use anyhow::{Context, bail};
use mixbit_app::source;
use mixbit_engine::{Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;

use super::inputs;
use super::options::{Arguments, Precision, name_of};

/// Runs a network of mixbit step by step, until standard input says `quit`.
///
/// # Errors
/// If the network can't be run, or a request is unknown.
pub(super) fn serve(arguments: &Arguments, precision: Precision) -> anyhow::Result<()> {
    let model = source::load(Some(&arguments.model), &Default::default())?.model;
    let (network, output) = arguments.part.of(&model)?;
    let graph = inputs::graph(arguments, &model)?;
    let inputs = inputs::read(arguments, &graph)?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let options = Options {
        arithmetic: precision.arithmetic(),
        full_precision: network.full_precision().clone(),
        constant_inputs: arguments
            .keep_text
            .then(|| "encoder_hidden_states".to_string())
            .into_iter()
            .collect(),
        planned_runs: usize::MAX,
        ..Options::default()
    };
    let mut compiled = Cpu::new(arguments.threads)?.compile(&graph, &options)?;
    let output =
        compiled.output_index(output).with_context(|| format!("the network has no output `{output}`"))?;
    println!("ready mixbit {}", env!("CARGO_PKG_VERSION"));
    let mut result = None;
    for line in std::io::stdin().lines() {
        match line?.trim() {
            "step" => {
                let begin = Instant::now();
                let mut results = compiled.run(&inputs)?;
                println!("{}", begin.elapsed().as_secs_f64());
                result = Some(results.swap_remove(output));
            }
            "save" => {
                let result = result.as_ref().context("no step was taken")?;
                fs::write(
                    arguments.output_path(&name_of(precision)),
                    npy(result.as_f32().unwrap_or_default()),
                )?;
                println!("saved");
            }
            "quit" => return Ok(()),
            other => bail!("{other:?} is not a request"),
        }
    }
    Ok(())
}

/// A NumPy file of a vector.
fn npy(values: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    // The whole head is a multiple of 64 bytes and ends with a line feed.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((length as u16).to_le_bytes());
    file.extend(format!("{header:<width$}\n", width = length - 1).bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_read_back_from_numpy_files() -> Result<(), Box<dyn std::error::Error>> {
        for count in [0, 3, 1000] {
            let values: Vec<f32> = (0..count).map(|index| index as f32 - 0.5).collect();
            let read = mixbit_formats::npy::parse_npy("values", mixbit_mil::Bytes::new(npy(&values)))?;
            assert_eq!(read.ty().shape, [count]);
            assert_eq!(inputs::floats(&read.read()?), values);
        }
        Ok(())
    }
}
