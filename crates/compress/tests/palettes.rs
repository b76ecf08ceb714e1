//! Palettes beside coremltools' (`tools/reference/palettes.py`): never worse, at every width.

use half::f16;
use mixbit_compress::{Histogram, Palette, Width};
use mixbit_testkit::{Failures, Fixture};
use serde_json::Value;

#[test]
fn palettes_are_never_worse_than_coremltools() {
    let fixture = Fixture::open("palettes");
    let arrays = fixture.arrays("tensors.safetensors");
    let document: Value = fixture.json("cases.json");
    let mut failures = Failures::new("palettes against coremltools");
    for case in document["cases"].as_array().unwrap() {
        let (tensor, bits) = (case["tensor"].as_str().unwrap(), case["bits"].as_u64().unwrap());
        let theirs = case["error"].as_f64().unwrap();
        let values: Vec<f16> = arrays[tensor].f32s().into_iter().map(f16::from_f32).collect();
        let palette = Palette::fit(&Histogram::new(&values).unwrap(), Width::of_bits(bits as u32).unwrap());
        let errors = values.iter().map(|&value| {
            let entry = palette.lut()[usize::from(palette.index(value))];
            (entry.to_f64() - value.to_f64()).powi(2)
        });
        let ours = errors.sum::<f64>() / values.len() as f64;
        failures.case(&format!("{tensor} at {bits} bits"), || {
            // Both round entries to f16 after clustering, which may fall out either way by less than this.
            if ours <= theirs * (1.0 + 1e-6) { Ok(()) } else { Err(format!("{ours:e} against {theirs:e}")) }
        });
    }
    failures.finish();
}
