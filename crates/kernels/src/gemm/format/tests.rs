use super::*;
use crate::isa::forced::{self, Level};
use crate::testing::{check_cases, random};

const FORMATS: [Format; 5] =
    [Format::F32, Format::EmulatedBf16, Format::Bf16x2, Format::EmulatedI8, Format::I8x4];

/// The elements in a lane's words, without scale and zero point.
fn decode(format: Format, side: PackedSide, words: &[u32]) -> Vec<f32> {
    let offset = if side == PackedSide::Right { simd::INT8_OFFSET } else { 0 };
    let mut values = Vec::new();
    for word in words {
        match format {
            Format::F32 | Format::EmulatedBf16 | Format::EmulatedI8 => values.push(f32::from_bits(*word)),
            Format::Bf16x2 => values.extend([f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]),
            // With a zero point, bytes are unsigned.
            Format::I8x4 if offset > 0 => {
                values.extend(word.to_le_bytes().map(|byte| (i32::from(byte) - offset) as f32));
            }
            Format::I8x4 => values.extend(word.to_le_bytes().map(|byte| f32::from(byte as i8))),
        }
    }
    values
}

/// A lane's values after encoding.
fn expected(format: Format, run: &[f32]) -> (Vec<f32>, f32) {
    let largest = run.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    match format {
        Format::F32 => (run.to_vec(), 1.0),
        Format::EmulatedBf16 | Format::Bf16x2 => {
            (run.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(), 1.0)
        }
        Format::EmulatedI8 | Format::I8x4 if largest == 0.0 => (vec![0.0; run.len()], 0.0),
        Format::EmulatedI8 | Format::I8x4 => {
            (run.iter().map(|x| (x * (127.0 / largest)).round_ties_even()).collect(), largest / 127.0)
        }
    }
}

#[test]
fn lanes_and_rows_follow_the_format() {
    let mut cases = Vec::new();
    for level in Level::available() {
        for format in FORMATS {
            for side in [PackedSide::Left, PackedSide::Right] {
                for depth in [1, 2, 3, 4, 5, 63, 64, 257] {
                    cases.push((level, format, side, depth));
                }
            }
        }
    }
    check_cases(&cases, |&(level, format, side, depth)| {
        for width in [2, 6, 8, 12, 16, 32] {
            let lanes: Vec<Vec<f32>> = (0..width)
                .map(|lane| random(lane as u64 + 1, depth).iter().map(|x| x * lane as f32).collect())
                .collect();
            let mut rows = vec![0.0; depth * width];
            for (lane, run) in lanes.iter().enumerate() {
                run.iter().enumerate().for_each(|(k, x)| rows[k * width + lane] = *x);
            }
            let mut panel = vec![7; format.panel_len(depth, width)];
            forced::with(level, || encode_rows(format, side, &rows, width, &mut panel));
            let count = format.words(depth);
            for (lane, run) in lanes.iter().enumerate() {
                let mut words = vec![7; count];
                let scale = forced::with(level, || encode_lane(format, side, run, &mut words));
                let (values, expected_scale) = expected(format, run);
                let decoded = decode(format, side, &words);
                if decoded[..depth] != values {
                    return Err(format!("lane {lane}: {:?}, expected {values:?}", &decoded[..depth]));
                }
                if decoded[depth..].iter().any(|x| *x != 0.0) {
                    return Err(format!("lane {lane}: {:?} behind the depth", &decoded[depth..]));
                }
                let column: Vec<u32> = (0..count).map(|k| panel[k * width + lane]).collect();
                if column != words {
                    return Err(format!("lane {lane}: rows {column:x?}, lane {words:x?}"));
                }
                if format.is_scaled() {
                    let behind = [panel[count * width + lane], panel[(count + 1) * width + lane]];
                    if scale.scale != expected_scale || behind != [scale.scale.to_bits(), scale.start as u32]
                    {
                        return Err(format!("lane {lane}: {scale:?} and {behind:x?}, not {expected_scale}"));
                    }
                    let sum: f32 = values.iter().sum();
                    if format == Format::I8x4 && scale.start != -simd::INT8_OFFSET * sum as i32 {
                        return Err(format!("lane {lane}: starts at {}, sum {sum}", scale.start));
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn values_that_are_not_finite_stay_so() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for format in FORMATS {
            let run = [1.0, bad, 2.0];
            let mut words = vec![0; format.words(3)];
            let lane = encode_lane(format, PackedSide::Left, &run, &mut words);
            let value = decode(format, PackedSide::Left, &words)[1] * lane.scale;
            assert!(!value.is_finite() || lane.scale.is_infinite(), "{format:?} of {bad}: {value}");
            assert_eq!(value.is_nan() && !format.is_scaled(), bad.is_nan() && !format.is_scaled());
        }
    }
}
