use super::*;

#[test]
fn every_half_value_widens_exactly_and_narrows_back() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let bfloats: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let mut wide = vec![0.0; halves.len()];
    let mut narrow = vec![f16::ZERO; halves.len()];
    f16_to_f32(&halves, &mut wide);
    f32_to_f16(&wide, &mut narrow);
    for ((half, wide), narrow) in halves.iter().zip(&wide).zip(&narrow) {
        if half.is_nan() {
            assert!(wide.is_nan() && narrow.is_nan(), "{:#06x}", half.to_bits());
        } else {
            assert_eq!(f64::from(*wide), half.to_f64(), "{:#06x}", half.to_bits());
            assert_eq!(narrow.to_bits(), half.to_bits());
        }
    }
    let mut narrow = vec![bf16::ZERO; bfloats.len()];
    bf16_to_f32(&bfloats, &mut wide);
    f32_to_bf16(&wide, &mut narrow);
    for ((bfloat, wide), narrow) in bfloats.iter().zip(&wide).zip(&narrow) {
        if bfloat.is_nan() {
            assert!(wide.is_nan() && narrow.is_nan(), "{:#06x}", bfloat.to_bits());
        } else {
            assert_eq!(f64::from(*wide), bfloat.to_f64(), "{:#06x}", bfloat.to_bits());
            assert_eq!(narrow.to_bits(), bfloat.to_bits());
        }
    }
}

#[test]
fn narrowing_rounds_to_nearest_even() {
    // Between neighbours of both formats: the midpoint and its neighbours on both sides.
    let mut values = vec![f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, 65519.0, 65520.0, 1e-8, -1e-8, 3e-39];
    for bits in (0..0x7f80_0000_u32).step_by(0x5_3c1d) {
        for low in [0x7fff, 0x8000, 0x8001, 0x0fff, 0x1000, 0x1001] {
            let value = f32::from_bits((bits & 0xffff_0000) | low);
            values.extend([value, -value, f32::from_bits((bits & 0xffff_e000) | 0x1000)]);
        }
    }
    let mut halves = vec![f16::ZERO; values.len()];
    let mut bfloats = vec![bf16::ZERO; values.len()];
    f32_to_f16(&values, &mut halves);
    f32_to_bf16(&values, &mut bfloats);
    for ((value, half), bfloat) in values.iter().zip(&halves).zip(&bfloats) {
        if value.is_nan() {
            assert!(half.is_nan() && bfloat.is_nan());
            continue;
        }
        // half's scalar conversions by constants, which use no CPU feature.
        assert_eq!(half.to_bits(), f16::from_f32_const(*value).to_bits(), "{value:e}");
        assert_eq!(bfloat.to_bits(), bf16::from_f32_const(*value).to_bits(), "{value:e}");
    }
}
