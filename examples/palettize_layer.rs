//! Palettizes one layer with 16 values, and prints its size and error:
//! `cargo run -p mixbit-examples --example palettize_layer`.
#![forbid(unsafe_code)]

use std::error::Error;

use mixbit_compress::Scheme;
use mixbit_mil::{Bytes, DType, TensorType, WeightRef};

fn main() -> Result<(), Box<dyn Error>> {
    let values: Vec<f32> = (0..64 * 64).map(|index| (index as f32).sin()).collect();
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let ty = TensorType::new(DType::F32, [64, 64]);
    let weight = WeightRef::new("layer.weight", ty, Bytes::new(bytes))?;

    let scheme: Scheme = "palette-4".parse()?;
    let small = scheme.encode(&weight, None)?;
    let decoded = small.cast(DType::F32);
    let decoded = decoded.read()?;
    let decoded = decoded.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let error: f32 = decoded.zip(&values).map(|(found, value)| (found - value).powi(2)).sum();
    println!(
        "{scheme}: {} bytes instead of {}, mean squared error {:.6}",
        small.stored_len(),
        weight.stored_len(),
        error / values.len() as f32
    );
    Ok(())
}
