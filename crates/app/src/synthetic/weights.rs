//! Seeded random tensors that keep a network's activations finite.

use std::io::{self, Write};

use half::f16;
use mixbit_mil::DType;
use rayon::prelude::*;

/// Values that are made and written at a time.
const BLOCK: usize = 1 << 20;

/// Values that one thread makes at a time.
const CHUNK: usize = 1 << 12;

/// The last convolution of a UNet is made this much smaller, so that the prediction stays below the noise and
/// the loop converges at any guidance scale that people use.
const OUTPUT: (&str, f32) = ("conv_out.weight", 0.1);

/// The distribution of a tensor's values.
#[derive(Debug, PartialEq)]
pub(super) enum Fill {
    /// All the same.
    Constant(f32),
    /// About normal, with a standard deviation; the value at an index depends on `key` and the index alone.
    Normal { key: u64, deviation: f32 },
}

impl Fill {
    /// Matrices and kernels keep the variance of what they are given, norms scale by 1, biases are 0.
    pub(super) fn of(seed: u64, name: &str, shape: &[usize]) -> Fill {
        if shape.len() < 2 {
            return Fill::Constant(if name.ends_with(".bias") { 0.0 } else { 1.0 });
        }
        let fan_in: usize = shape[1..].iter().product();
        let gain = if name == OUTPUT.0 { OUTPUT.1 } else { 1.0 };
        // FNV-1a, from an offset that the seed chooses.
        let key =
            name.bytes().fold(mix(seed), |key, byte| (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        Fill::Normal { key, deviation: gain / (fan_in as f32).sqrt() }
    }

    fn value(&self, index: usize) -> f32 {
        match *self {
            Fill::Constant(value) => value,
            Fill::Normal { key, deviation } => standard(key, index) * deviation,
        }
    }
}

/// SplitMix64's output function.
fn mix(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

/// The sum of four uniform numbers, with mean 0 and deviation 1: close to normal, never beyond 3.5, and much
/// cheaper.
fn standard(key: u64, index: usize) -> f32 {
    const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
    const MEAN: i32 = 2 * 0xffff;
    // The variance of one of 2^16 whole numbers is (2^32 - 1) / 12.
    const DEVIATION: f32 = 37837.227;
    let bits = mix(key.wrapping_add((index as u64).wrapping_mul(GOLDEN)));
    let part = |shift: u32| ((bits >> shift) & 0xffff) as i32;
    (part(0) + part(16) + part(32) + part(48) - MEAN) as f32 / DEVIATION
}

/// Writes `count` values as `dtype`, which is `fp16` or `fp32`.
///
/// # Errors
/// The writer's, or [`io::ErrorKind::Unsupported`] for another type.
pub(super) fn write(writer: &mut dyn Write, dtype: DType, fill: &Fill, count: usize) -> io::Result<()> {
    let encode: fn(&Fill, usize, &mut [u8]) = match dtype {
        DType::F16 => encode_f16,
        DType::F32 => encode_f32,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    mixbit_compress::start_threads().map_err(io::Error::other)?;
    let size = dtype.bits() / 8;
    let mut bytes = vec![0; BLOCK.min(count) * size];
    for first in (0..count).step_by(BLOCK) {
        let bytes = &mut bytes[..BLOCK.min(count - first) * size];
        let chunks = bytes.par_chunks_mut(CHUNK * size).enumerate();
        chunks.for_each(|(chunk, bytes)| encode(fill, first + chunk * CHUNK, bytes));
        writer.write_all(bytes)?;
    }
    Ok(())
}

fn encode_f32(fill: &Fill, first: usize, bytes: &mut [u8]) {
    for (index, bytes) in bytes.chunks_exact_mut(4).enumerate() {
        bytes.copy_from_slice(&fill.value(first + index).to_le_bytes());
    }
}

fn encode_f16(fill: &Fill, first: usize, bytes: &mut [u8]) {
    for (index, bytes) in bytes.chunks_exact_mut(2).enumerate() {
        bytes.copy_from_slice(&f16::from_f32(fill.value(first + index)).to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(fill: &Fill, count: usize) -> Vec<f32> {
        let mut bytes = Vec::new();
        write(&mut bytes, DType::F32, fill, count).unwrap();
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn normals_have_their_moments() {
        let fill = Fill::of(7, "a.weight", &[1, 4]);
        let values: Vec<f64> = values(&fill, 1_000_000).into_iter().map(f64::from).collect();
        let moment = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
        // A sum of four uniform numbers has a fourth moment of 2.7 deviations^4; a normal one has 3.
        for (power, expected, tolerance) in
            [(1, 0.0, 0.002), (2, 0.25, 0.001), (3, 0.0, 0.002), (4, 2.7 / 16.0, 0.002)]
        {
            let found = moment(power);
            assert!((found - expected).abs() < tolerance, "moment {power}: {found}, expected {expected}");
        }
    }

    #[test]
    fn a_value_depends_on_seed_name_and_index_alone() {
        let fill = Fill::of(7, "a.weight", &[8, 16]);
        let count = BLOCK + CHUNK + 3;
        let all = values(&fill, count);
        assert_eq!(all.len(), count);
        for index in [0, CHUNK - 1, CHUNK, BLOCK - 1, BLOCK, count - 1] {
            assert_eq!(all[index], fill.value(index), "index {index}");
        }
        assert_eq!(values(&fill, 5), all[..5]);
        for other in [Fill::of(8, "a.weight", &[8, 16]), Fill::of(7, "b.weight", &[8, 16])] {
            assert_ne!(values(&other, 5), all[..5]);
        }
    }

    #[test]
    fn halves_are_the_rounded_floats() {
        let fill = Fill::of(0, "a.weight", &[4, 3]);
        let mut bytes = Vec::new();
        write(&mut bytes, DType::F16, &fill, 10_000).unwrap();
        let halves = bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]));
        assert!(halves.eq(values(&fill, 10_000).into_iter().map(f16::from_f32)));
    }

    #[test]
    fn vectors_are_constant_and_outputs_small() {
        assert_eq!(Fill::of(0, "norm.weight", &[4]), Fill::Constant(1.0));
        assert_eq!(Fill::of(0, "norm.bias", &[4]), Fill::Constant(0.0));
        let deviation = |name| match Fill::of(0, name, &[4, 25, 2, 2]) {
            Fill::Normal { deviation, .. } => deviation,
            Fill::Constant(_) => panic!("{name} is constant"),
        };
        assert_eq!(deviation("conv_in.weight"), 0.1);
        assert_eq!(deviation("conv_out.weight"), 0.01);
    }

    #[test]
    fn other_types_are_refused() {
        let error = write(&mut Vec::new(), DType::I8, &Fill::Constant(0.0), 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
    }
}
