//! Compares every random source with its library: the values in `fixtures/rng/`, bit for bit.
//!
//! Only NumPy's and CUDA's values depend on the platform's `ln` and `sin`, in f64. With glibc they match the
//! fixture bit for bit too.

use std::collections::BTreeMap;

use half::f16;
use mixbit_diffusion::random::{NoiseSource, NumpySource, random_source};
use mixbit_testkit::{Array, Failures, Fixture};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

/// The values of one call with their bit patterns, in the width of the library's own type.
type Call = Vec<(u64, f64)>;

#[test]
fn values_are_the_libraries_own() {
    let fixture = Fixture::open("rng");
    let arrays = fixture.arrays("values.safetensors");
    let cases = fixture.json("cases.json");
    let kept = cases["kept"].as_u64().unwrap() as usize;
    let mut failures = Failures::new("random sources");
    for case in cases["cases"].as_array().unwrap() {
        failures.case(case["key"].as_str().unwrap(), || check(case, &arrays, kept));
    }
    failures.finish();
}

/// Draws the case's calls, then compares each call's stored values and checksum.
fn check(case: &Value, arrays: &BTreeMap<String, Array>, kept: usize) -> Result<(), Error> {
    let counts = case["calls"].as_array().unwrap().iter().map(|count| count.as_u64().unwrap() as usize);
    let calls = draw(case["generator"].as_str().unwrap(), seed(case), counts)?;
    for (index, call) in calls.iter().enumerate() {
        let stored = &arrays[&format!("{}/{index}", case["key"].as_str().unwrap())].values;
        let ends = match call.len() > 2 * kept {
            true => [&call[..kept], &call[call.len() - kept..]].concat(),
            false => call.clone(),
        };
        assert_eq!(ends.len(), stored.len());
        if let Some(at) = ends.iter().zip(stored).position(|((_, value), stored)| value != stored) {
            let (value, expected) = (ends[at].1, stored[at]);
            return Err(format!("call {index}: {value:e} for {expected:e}, the {at}th stored value").into());
        }
        let sum = call.iter().fold(0_u64, |sum, (bits, _)| sum.wrapping_add(*bits));
        let expected = case["bits_sum"][index].as_str().unwrap();
        if sum.to_string() != expected {
            return Err(format!("call {index}: the bits add up to {sum}, not {expected}").into());
        }
    }
    Ok(())
}

fn seed(case: &Value) -> u64 {
    case["seed"].as_str().unwrap().parse().unwrap()
}

/// The calls of one stream, one after another.
fn draw(generator: &str, seed: u64, counts: impl Iterator<Item = usize>) -> Result<Vec<Call>, Error> {
    if generator == "numpy" {
        // NumPy's own type is f64.
        let mut source = NumpySource::new(u32::try_from(seed)?);
        let mut normal = || source.next_normal();
        let call = |count| (0..count).map(|_| normal()).map(|x| (x.to_bits(), x)).collect();
        return Ok(counts.map(call).collect());
    }
    // PyTorch draws f16 in f32; only a last block of fewer than 16 elements differs.
    let (name, half) = match generator.strip_suffix("-f16") {
        Some(name) => (name, true),
        None => (generator, false),
    };
    let mut source = random_source(name)?.seeded(seed)?;
    let bits = |x: f32| match half {
        true => (f16::from_f32(x).to_bits().into(), f16::from_f32(x).to_f64()),
        false => (x.to_bits().into(), x.into()),
    };
    let call = |count| {
        let mut noise = vec![0.0; count];
        source.fill(&mut noise);
        noise.into_iter().map(bits).collect()
    };
    Ok(counts.map(call).collect())
}

#[test]
fn numpys_normals_are_rounded_to_f32() {
    let (mut wide, mut narrow) = (NumpySource::new(93), NumpySource::new(93));
    let mut noise = [0.0; 7];
    narrow.fill(&mut noise[..2]);
    narrow.fill(&mut noise[2..]);
    assert_eq!(noise, [(); 7].map(|()| wide.next_normal() as f32));
}

/// The values that other projects print for a GPU and for Apple's sample. They have seven digits, the
/// accuracy of a GPU's own `ln` and `sin`.
#[test]
fn values_are_those_that_others_publish() {
    let cases = Fixture::open("rng").json("cases.json");
    let mut failures = Failures::new("published values");
    for row in cases["published"].as_array().unwrap() {
        failures.case(row["source"].as_str().unwrap(), || {
            let [call, from] = ["call", "from"].map(|field| row[field].as_u64().unwrap() as usize);
            let calls = draw(row["generator"].as_str().unwrap(), seed(row), [call].into_iter())?;
            for (value, (_, found)) in row["values"].as_array().unwrap().iter().zip(&calls[0][from..]) {
                if (found - value.as_f64().unwrap()).abs() > 1e-6 {
                    return Err(Error::from(format!("{found} for {value}")));
                }
            }
            Ok(())
        });
    }
    failures.finish();
}
