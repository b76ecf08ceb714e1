use super::*;
use crate::isa::forced::{self, Level};
use crate::testing::{check_cases, random};

const FORMATS: [Format; 5] =
    [Format::Single, Format::Rounded, Format::Pairs, Format::Integers, Format::Quads];

/// The elements that a lane's words stand for, without scale and offset.
fn decode(format: Format, side: PackedSide, words: &[u32]) -> Vec<f32> {
    let offset = if side == PackedSide::Right { simd::INT8_OFFSET } else { 0 };
    let mut values = Vec::new();
    for word in words {
        match format {
            Format::Single | Format::Rounded | Format::Integers => values.push(f32::from_bits(*word)),
            Format::Pairs => values.extend([f32::from_bits(word << 16), f32::from_bits(word & 0xffff_0000)]),
            // With an offset, bytes have no sign.
            Format::Quads if offset > 0 => {
                values.extend(word.to_le_bytes().map(|byte| (i32::from(byte) - offset) as f32));
            }
            Format::Quads => values.extend(word.to_le_bytes().map(|byte| f32::from(byte as i8))),
        }
    }
    values
}

/// What a format keeps of a lane.
fn expected(format: Format, run: &[f32]) -> (Vec<f32>, f32) {
    let largest = run.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    match format {
        Format::Single => (run.to_vec(), 1.0),
        Format::Rounded | Format::Pairs => {
            (run.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(), 1.0)
        }
        Format::Integers | Format::Quads if largest == 0.0 => (vec![0.0; run.len()], 0.0),
        Format::Integers | Format::Quads => {
            (run.iter().map(|x| (x * (127.0 / largest)).round_ties_even()).collect(), largest / 127.0)
        }
    }
}

#[test]
fn lanes_and_rows_hold_what_the_format_says() {
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
                    if format == Format::Quads && scale.start != -simd::INT8_OFFSET * sum as i32 {
                        return Err(format!("lane {lane}: starts at {}, sum {sum}", scale.start));
                    }
                }
            }
        }
        Ok(())
    });
}

#[test]
fn what_is_not_finite_stays_so() {
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
