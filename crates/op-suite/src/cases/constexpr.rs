//! Compressed constants, decoded by hand. `formats` proves packages of Apple's own making.

use mixbit_mil::DType;

use crate::case::{Case, case};

/// The little-endian bytes of half-precision values.
fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect()
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("constexpr_affine_dequantize")
            .bytes("quantized_data", DType::U8, &[2, 3], &[0, 1, 2, 10, 20, 255])
            .bytes("zero_point", DType::U8, &[2], &[1, 10])
            .bytes("scale", DType::F16, &[2], &f16s(&[0.5, 2.0]))
            .arg("axis", 0)
            .expect(&[&[-0.5, 0.0, 0.5, 0.0, 20.0, 490.0]]),
        case("constexpr_affine_dequantize")
            .bytes("quantized_data", DType::I8, &[3], &[0x80, 0, 0x7f])
            .bytes("zero_point", DType::I8, &[], &[0xff])
            .bytes("scale", DType::F16, &[], &f16s(&[0.25]))
            .arg("axis", -1)
            .expect(&[&[-31.75, 0.25, 32.0]]),
        // Nibbles, the low one first: 1, -8, 7, -1; two blocks along each row of two.
        case("constexpr_blockwise_shift_scale")
            .ios18()
            .bytes("data", DType::I4, &[2, 2], &[0x81, 0xf7])
            .bytes("scale", DType::F16, &[2, 1], &f16s(&[0.5, 2.0]))
            .bytes("offset", DType::I4, &[2, 1], &[0x21])
            .expect(&[&[0.0, -4.5, 10.0, -6.0]]),
        case("constexpr_cast")
            .bytes("source_val", DType::F16, &[3], &f16s(&[1.5, -0.25, 65504.0]))
            .arg("output_dtype", "fp32")
            .expect(&[&[1.5, -0.25, 65504.0]]),
        // Two bits each, the lowest first: 0xe4 is 0, 1, 2, 3.
        case("constexpr_lut_to_dense")
            .bytes("indices", DType::U8, &[2], &[0xe4, 0x1b])
            .bytes("lut", DType::F16, &[4], &f16s(&[-1.0, 0.0, 0.5, 3.0]))
            .bytes("shape", DType::U32, &[2], &[2, 0, 0, 0, 4, 0, 0, 0])
            .expect(&[&[-1.0, 0.0, 0.5, 3.0, 3.0, 0.5, 0.0, -1.0]]),
        // A table for each row, one bit an index.
        case("constexpr_lut_to_dense")
            .ios18()
            .bytes("indices", DType::U1, &[2, 4], &[0b0101_0011])
            .bytes("lut", DType::F16, &[2, 1, 2, 1], &f16s(&[1.0, 2.0, 3.0, 4.0]))
            .expect(&[&[2.0, 2.0, 1.0, 1.0, 4.0, 3.0, 4.0, 3.0]]),
        // Vectors of two along the first axis.
        case("constexpr_lut_to_dense")
            .ios18()
            .bytes("indices", DType::U1, &[1, 3], &[0b101])
            .bytes("lut", DType::F16, &[1, 1, 2, 2], &f16s(&[1.0, 2.0, 3.0, 4.0]))
            .arg("vector_axis", 0)
            .expect(&[&[3.0, 1.0, 3.0, 4.0, 2.0, 4.0]]),
        // Results are the mask, and an element where it is set: places 0 and 2 of row 0, and 2 of row 1.
        case("constexpr_lut_to_sparse")
            .ios18()
            .bytes("indices_mask", DType::U1, &[2, 3], &[0b10_0101])
            .bytes("indices_nonzero_data", DType::U1, &[3], &[0b101])
            .bytes("lut", DType::F16, &[1, 1, 2, 1], &f16s(&[5.0, 7.0]))
            .expect(&[&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[7.0, 5.0, 7.0]]),
        case("constexpr_sparse_blockwise_shift_scale")
            .ios18()
            .bytes("data_mask", DType::U1, &[2, 3], &[0b10_0101])
            .bytes("nonzero_data", DType::I4, &[3], &[0x81, 0x07])
            .bytes("scale", DType::F16, &[2, 1], &f16s(&[0.5, 2.0]))
            .bytes("offset", DType::I4, &[2, 1], &[0x21])
            .expect(&[&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0], &[0.0, -4.5, 10.0]]),
        case("constexpr_sparse_to_dense")
            .bytes("nonzero_data", DType::F16, &[3], &f16s(&[5.0, 6.0, 7.0]))
            .bytes("mask", DType::U8, &[1], &[0b10_0101])
            .bytes("shape", DType::U32, &[2], &[2, 0, 0, 0, 3, 0, 0, 0])
            .expect(&[&[5.0, 0.0, 6.0, 0.0, 0.0, 7.0]]),
    ]
}
