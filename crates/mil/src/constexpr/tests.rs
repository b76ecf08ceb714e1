//! Every encoding against its definition, written element by element over coordinates.

use half::f16;

use super::{bits_at, blockwise_shift_scale, decoded, encoded, lut_to_dense};
use crate::{
    Builder, Bytes, Constant, DType, Def, Error, Literal, Opset, TensorType, ValueId, WeightError, WeightRef,
    verify,
};

/// A small generator: tests need many values, not good ones.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % bound
    }

    fn below_each(&mut self, count: usize, bound: usize) -> Vec<usize> {
        (0..count).map(|_| self.below(bound)).collect()
    }
}

/// Packs as the format says: element `i` in bits `[i * bits, (i + 1) * bits)`, least significant first.
fn pack(values: &[usize], bits: usize) -> Vec<u8> {
    let mut out = vec![0u8; (values.len() * bits).div_ceil(8)];
    for (index, value) in values.iter().enumerate() {
        for bit in 0..bits {
            let position = index * bits + bit;
            out[position / 8] |= ((value >> bit & 1) as u8) << (position % 8);
        }
    }
    out
}

fn coordinates(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (place, &extent) in out.iter_mut().zip(shape).rev() {
        *place = index % extent;
        index /= extent;
    }
    out
}

fn offset(coordinates: &[usize], shape: &[usize]) -> usize {
    coordinates.iter().zip(shape).fold(0, |at, (&index, &extent)| at * extent + index)
}

fn packed(dtype: DType, shape: &[usize], values: &[usize]) -> Literal {
    Literal::from_bytes(TensorType::new(dtype, shape), pack(values, dtype.bits())).unwrap()
}

fn halves(shape: &[usize], values: &[f64]) -> Literal {
    Literal::floats(DType::F16, shape, values).unwrap()
}

/// The elements that an op's result decodes to, as f32, and its shape.
fn decode(builder: Builder, result: ValueId) -> (Vec<usize>, Vec<f32>) {
    let function = builder.finish(&[result]).unwrap();
    verify(&function).unwrap();
    let function = decoded(&function).unwrap();
    verify(&function).unwrap();
    assert!(function.ops().is_empty());
    let Def::Const(Constant::Weight(weight)) = &function.value(result).def else { panic!("not a weight") };
    let bytes = weight.read().unwrap();
    let values = match weight.ty().dtype {
        DType::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        DType::I8 => bytes.iter().map(|&b| (b as i8).into()).collect(),
        _ => bytes.iter().map(|&b| b.into()).collect(),
    };
    (weight.ty().shape.clone(), values)
}

const INDEX_TYPES: [DType; 6] = [DType::U1, DType::U2, DType::U3, DType::U4, DType::U6, DType::U8];

#[test]
fn every_value_of_every_width_at_every_bit_position_unpacks() {
    for bits in [1, 2, 3, 4, 6, 8] {
        // Eight places bring an element to every bit position; every pair of neighbours is tried.
        for place in 0..8 {
            for value in 0..1usize << bits {
                for neighbour in [0, (1 << bits) - 1] {
                    let mut values = vec![neighbour; 9];
                    values[place] = value;
                    let bytes = pack(&values, bits);
                    let found: Vec<usize> = (0..9).map(|at| bits_at(&bytes, bits, at)).collect();
                    assert_eq!(found, values, "{bits} bits");
                }
            }
        }
    }
}

/// 4.2 MB encode 4.4 TB: the memory is refused, not taken.
#[test]
fn a_small_file_of_a_huge_weight_is_an_error_when_it_is_read() {
    let (rows, vector) = (1 << 21, 1 << 20);
    let mut b = Builder::new("main", Opset::Ios18);
    let indices = Literal::from_bytes(TensorType::new(DType::U1, [rows, 1]), vec![0x55; rows / 8]).unwrap();
    let lut = halves(&[1, 1, 2, vector], &vec![1.0; 2 * vector]);
    let op = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut);
    let result = op.arg("vector_axis", 0).add().unwrap();
    let function = decoded(&b.finish(&[result]).unwrap()).unwrap();
    let Def::Const(Constant::Weight(weight)) = &function.value(result).def else { panic!("not a weight") };
    assert_eq!(weight.ty().shape, [rows * vector, 1]);
    let Err(WeightError::Memory { bytes, .. }) = weight.read() else { panic!("it was read") };
    assert_eq!(bytes, 2 * rows * vector);
}

#[test]
fn flat_tables_are_looked_up() {
    let mut random = Random(1);
    for dtype in INDEX_TYPES.into_iter().filter(|dtype| dtype.bits() != 3) {
        let entries = 1 << dtype.bits();
        for shape in [&[3, 5][..], &[7, 1, 3, 3], &[1], &[0, 4], &[]] {
            let count = shape.iter().product();
            let indices = random.below_each(count, entries);
            let table: Vec<f64> = (0..entries).map(|entry| entry as f64 - 100.0).collect();
            let mut b = Builder::new("main", Opset::Ios16);
            let bytes = pack(&indices, dtype.bits());
            let bytes = Literal::from_bytes(TensorType::new(DType::U8, [bytes.len()]), bytes).unwrap();
            let extents: Vec<u8> =
                shape.iter().flat_map(|&extent: &usize| (extent as u32).to_le_bytes()).collect();
            let extents = Literal::from_bytes(TensorType::new(DType::U32, [shape.len()]), extents).unwrap();
            let op = b.op("constexpr_lut_to_dense").arg("indices", bytes).arg("shape", extents);
            let result = op.arg("lut", halves(&[entries], &table)).add().unwrap();
            let (found_shape, found) = decode(b, result);
            let expected: Vec<f32> = indices.iter().map(|&index| table[index] as f32).collect();
            assert_eq!((&found_shape[..], found), (shape, expected), "{dtype}");
        }
    }
}

#[test]
fn grouped_and_vector_tables_are_looked_up() {
    let mut random = Random(2);
    // Shape of the indices, blocks of each axis, values of a vector and its axis.
    type Case = (&'static [usize], &'static [usize], usize, Option<i32>);
    let cases: [Case; 9] = [
        (&[8, 6], &[1, 1], 1, None),
        (&[8, 6, 1, 1], &[4, 1, 1, 1], 1, None),
        (&[4, 6, 3, 3], &[1, 3, 1, 1], 1, None),
        (&[4, 6, 2], &[2, 3, 1], 1, None),
        (&[4, 6, 2], &[4, 6, 2], 1, None),
        (&[4, 6, 2], &[1, 1, 1], 2, Some(0)),
        (&[4, 6, 2], &[2, 1, 1], 3, Some(1)),
        (&[4, 6, 2], &[1, 3, 2], 2, Some(-1)),
        (&[0, 6], &[1, 2], 1, Some(1)),
    ];
    for dtype in INDEX_TYPES {
        for (shape, blocks, vector, axis) in cases {
            let entries = 1 << dtype.bits();
            let count: usize = shape.iter().product();
            let indices = random.below_each(count, entries);
            let lut_shape = [blocks, &[entries, vector]].concat();
            let table: Vec<f64> =
                (0..lut_shape.iter().product()).map(|_| random.below(2000) as f64).collect();
            let mut b = Builder::new("main", Opset::Ios18);
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(dtype, shape, &indices));
            let op = op.arg("lut", halves(&lut_shape, &table)).maybe("vector_axis", axis);
            let result = op.add().unwrap();
            let (found_shape, found) = decode(b, result);

            let rank = shape.len();
            let along = axis.map_or(0, |axis| if axis < 0 { rank - 1 } else { axis as usize });
            let mut expected_shape = shape.to_vec();
            expected_shape[along] *= vector;
            assert_eq!(found_shape, expected_shape);
            for (at, value) in found.into_iter().enumerate() {
                let mut place = coordinates(at, &expected_shape);
                let component = place[along] % vector;
                place[along] /= vector;
                let index = indices[offset(&place, shape)];
                let block: Vec<usize> = (0..rank).map(|d| place[d] / (shape[d] / blocks[d])).collect();
                let entry = [&block[..], &[index, component]].concat();
                assert_eq!(value, table[offset(&entry, &lut_shape)] as f32, "{dtype} {shape:?} {blocks:?}");
            }
        }
    }
}

#[test]
fn blocks_are_shifted_and_scaled() {
    let mut random = Random(3);
    let cases: [(&[usize], &[usize]); 5] = [
        (&[4, 6], &[1, 1]),
        (&[4, 6], &[4, 1]),
        (&[4, 6], &[4, 3]),
        (&[2, 6, 2, 2], &[2, 3, 1, 2]),
        (&[], &[]),
    ];
    for dtype in [DType::I4, DType::U4, DType::I8, DType::U8] {
        for (shape, blocks) in cases {
            for (with_offset, scale_type) in
                [(false, DType::F16), (true, DType::F16), (false, DType::F32), (true, DType::F32)]
            {
                let bound = 1usize << dtype.bits();
                let number = |stored: usize| match dtype {
                    DType::I4 | DType::I8 if stored >= bound / 2 => stored as f64 - bound as f64,
                    _ => stored as f64,
                };
                let data = random.below_each(shape.iter().product(), bound);
                let offsets = random.below_each(blocks.iter().product(), bound);
                let scales: Vec<f64> =
                    offsets.iter().map(|_| (1 + random.below(999)) as f64 / 1024.0).collect();
                let mut b = Builder::new("main", Opset::Ios18);
                let op = b.op("constexpr_blockwise_shift_scale").arg("data", packed(dtype, shape, &data));
                let op = op.arg("scale", Literal::floats(scale_type, blocks, &scales).unwrap());
                let op = op.maybe("offset", with_offset.then(|| packed(dtype, blocks, &offsets)));
                let result = op.add().unwrap();
                let (found_shape, found) = decode(b, result);
                assert_eq!(found_shape, shape);
                for (at, value) in found.into_iter().enumerate() {
                    let place = coordinates(at, shape);
                    let block: Vec<usize> =
                        place.iter().zip(shape).zip(blocks).map(|((i, s), b)| i / (s / b)).collect();
                    let block = offset(&block, blocks);
                    let shift = if with_offset { number(offsets[block]) } else { 0.0 };
                    // Exact in f64; one rounding.
                    let exact = scales[block] * (number(data[at]) - shift);
                    let expected = match scale_type {
                        DType::F16 => f16::from_f64(exact).to_f32(),
                        _ => exact as f32,
                    };
                    assert_eq!(value, expected, "{dtype} {shape:?} {blocks:?}");
                }
            }
        }
    }
}

#[test]
fn every_byte_is_dequantized() {
    for (dtype, zero) in [(DType::I8, 0x85u8), (DType::U8, 0x85), (DType::I8, 0)] {
        let number = |stored: u8| if dtype == DType::I8 { f32::from(stored as i8) } else { stored.into() };
        let data: Vec<u8> = (0..=255).collect();
        let mut b = Builder::new("main", Opset::Ios16);
        let data = Literal::from_bytes(TensorType::new(dtype, [256]), data).unwrap();
        let zero_point = Literal::from_bytes(TensorType::scalar(dtype), vec![zero]).unwrap();
        let op = b.op("constexpr_affine_dequantize").arg("quantized_data", data).arg("axis", 0);
        let op = op.arg("zero_point", zero_point).arg("scale", halves(&[], &[0.25]));
        let result = op.add().unwrap();
        let (_, found) = decode(b, result);
        let expected: Vec<f32> = (0..=255).map(|stored| 0.25 * (number(stored) - number(zero))).collect();
        assert_eq!(found, expected);
    }
}

#[test]
fn channels_are_dequantized() {
    for (axis, channels) in [(0, 2), (1, 3), (-1, 2)] {
        let mut b = Builder::new("main", Opset::Ios16);
        let data: Vec<usize> = (0..12).collect();
        let zero_points: Vec<usize> = (0..channels).map(|c| 5 * c).collect();
        let scales: Vec<f64> = (0..channels).map(|c| 0.5 + c as f64).collect();
        let op = b.op("constexpr_affine_dequantize").arg("axis", axis);
        let op = op.arg("quantized_data", packed(DType::U8, &[2, 3, 2], &data));
        let op = op.arg("zero_point", packed(DType::U8, &[channels], &zero_points));
        let result =
            op.arg("scale", Literal::floats(DType::F32, &[channels], &scales).unwrap()).add().unwrap();
        let (_, found) = decode(b, result);
        for (at, value) in found.into_iter().enumerate() {
            let c = coordinates(at, &[2, 3, 2])[if axis < 0 { 2 } else { axis as usize }];
            assert_eq!(f64::from(value), scales[c] * (at as f64 - 5.0 * c as f64), "axis {axis}");
        }
    }
}

#[test]
fn nonzero_elements_are_spread() {
    let mut random = Random(4);
    for count in [0usize, 1, 7, 8, 9, 31] {
        let mask = random.below_each(count, 2);
        let set = mask.iter().sum();
        let values: Vec<f64> = (0..set).map(|value| value as f64 + 1.0).collect();
        let mut left = values.iter();
        let expected: Vec<f32> =
            mask.iter().map(|&bit| if bit == 1 { *left.next().unwrap() as f32 } else { 0.0 }).collect();

        let mut b = Builder::new("main", Opset::Ios18);
        let op = b.op("constexpr_sparse_to_dense").arg("nonzero_data", halves(&[set], &values));
        let result = op.arg("mask", packed(DType::U1, &[count], &mask)).add().unwrap();
        assert_eq!(decode(b, result), (vec![count], expected.clone()));

        let mut b = Builder::new("main", Opset::Ios16);
        let bytes = pack(&mask, 1);
        let bytes = Literal::from_bytes(TensorType::new(DType::U8, [bytes.len()]), bytes).unwrap();
        let op = b.op("constexpr_sparse_to_dense").arg("nonzero_data", halves(&[set], &values));
        let shape = packed(DType::U32, &[1], &[count]);
        let result = op.arg("mask", bytes).arg("shape", shape).add().unwrap();
        assert_eq!(decode(b, result), (vec![count], expected));
    }
}

#[test]
fn chains_decode_inside_out() {
    let mut b = Builder::new("main", Opset::Ios18);
    // A table of int8, scaled, then indexed; and a scale that is itself a table.
    let table = packed(DType::I8, &[1, 1, 4, 1], &[0, 10, 246, 127]);
    let scale = halves(&[1, 1, 1, 1], &[0.5]);
    let op = b.op("constexpr_blockwise_shift_scale").arg("data", table).arg("scale", scale);
    let lut = op.add().unwrap();
    let indices = packed(DType::U2, &[1, 4], &[3, 2, 1, 0]);
    let result = b.op("constexpr_lut_to_dense").arg("indices", indices).arg("lut", lut).add().unwrap();
    let mut deep = result;
    for _ in 0..10 {
        let scale = halves(&[1, 1], &[2.0]);
        let op = b.op("constexpr_blockwise_shift_scale").arg("data", deep).arg("scale", scale);
        deep = op.add().unwrap();
    }
    let function = b.finish(&[result, deep]).unwrap();
    let function = decoded(&function).unwrap();
    let read = |id: ValueId| match &function.value(id).def {
        Def::Const(Constant::Weight(weight)) => weight.cast(DType::F32).read().unwrap().into_owned(),
        _ => panic!("not a weight"),
    };
    let bytes = |values: [f32; 4]| values.map(f32::to_le_bytes).concat();
    assert_eq!(read(result), bytes([63.5, -5.0, 5.0, 0.0]));
    assert_eq!(read(deep), bytes([63.5, -5.0, 5.0, 0.0].map(|value: f32| value * 1024.0)));
}

#[test]
fn halves_are_widened() {
    let mut b = Builder::new("main", Opset::Ios16);
    let op = b.op("constexpr_cast").arg("source_val", halves(&[2], &[0.1, -2.0]));
    let result = op.arg("output_dtype", "fp32").add().unwrap();
    assert_eq!(decode(b, result), (vec![2], vec![0.099_975_586, -2.0]));
}

#[test]
fn operands_that_do_not_fit_are_refused() {
    type Bind = fn(&mut Builder) -> Result<ValueId, Error>;
    let cases: [(&str, Bind); 9] = [
        ("a table of three", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U8, &[1], &[0]));
            op.arg("lut", halves(&[3], &[0.0; 3])).arg("shape", packed(DType::U32, &[1], &[1])).add()
        }),
        ("too few bytes of indices", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U8, &[1], &[0]));
            op.arg("lut", halves(&[16], &[0.0; 16])).arg("shape", packed(DType::U32, &[1], &[3])).add()
        }),
        ("a shape that overflows", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U8, &[1], &[0]));
            let shape = packed(DType::U32, &[3], &[0xffff_ffff; 3]);
            op.arg("lut", halves(&[16], &[0.0; 16])).arg("shape", shape).add()
        }),
        ("entries that indices can't reach", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U2, &[4], &[0; 4]));
            op.arg("lut", halves(&[1, 8, 1], &[0.0; 8])).add()
        }),
        ("blocks that do not divide", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U1, &[4], &[0; 4]));
            op.arg("lut", halves(&[3, 2, 1], &[0.0; 6])).add()
        }),
        ("vectors without an axis", |b| {
            let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U1, &[4], &[0; 4]));
            op.arg("lut", halves(&[1, 2, 2], &[0.0; 4])).add()
        }),
        ("no blocks", |b| {
            let op = b.op("constexpr_blockwise_shift_scale").arg("data", packed(DType::I4, &[0], &[]));
            op.arg("scale", halves(&[0], &[])).add()
        }),
        ("an offset of another shape", |b| {
            let op = b.op("constexpr_blockwise_shift_scale").arg("data", packed(DType::I4, &[2], &[1, 2]));
            op.arg("scale", halves(&[1], &[1.0])).arg("offset", packed(DType::I4, &[2], &[0, 0])).add()
        }),
        ("more set bits than values", |b| {
            let op = b.op("constexpr_sparse_to_dense").arg("nonzero_data", halves(&[1], &[1.0]));
            op.arg("mask", packed(DType::U1, &[3], &[1, 0, 1])).add()
        }),
    ];
    for (what, bind) in cases {
        let result = bind(&mut Builder::new("main", Opset::Ios18));
        assert!(matches!(result, Err(Error::Invalid { .. })), "{what}: {result:?}");
    }
    // The form of iOS 18 needs that opset.
    let mut b = Builder::new("main", Opset::Ios17);
    let op = b.op("constexpr_lut_to_dense").arg("indices", packed(DType::U1, &[4], &[0; 4]));
    assert!(matches!(op.arg("lut", halves(&[1, 2, 1], &[0.0; 2])).add(), Err(Error::Opset { .. })));
}

#[test]
fn run_time_operands_are_refused() {
    let mut b = Builder::new("main", Opset::Ios18);
    let data = b.input("data", TensorType::new(DType::F16, [4])).unwrap();
    let op = b.op("constexpr_blockwise_shift_scale").arg("data", data);
    let result = op.arg("scale", halves(&[1], &[2.0])).add().unwrap();
    let function = b.finish(&[result]).unwrap();
    assert!(matches!(verify(&function), Err(Error::NotConst { .. })));
    assert!(matches!(decoded(&function), Err(Error::NotConst { .. })));
}

/// A function that adds a compressed constant to its input.
fn adds(weight: &WeightRef, opset: Opset) -> crate::Function {
    let mut b = Builder::new("main", opset);
    let x = b.input("x", weight.ty().clone()).unwrap();
    let w = b.weight(weight.clone());
    let y = b.op("add").arg("x", x).arg("y", w).add().unwrap();
    b.finish(&[y]).unwrap()
}

fn stored(dtype: DType, shape: &[usize], bytes: Vec<u8>) -> WeightRef {
    WeightRef::new("part", TensorType::new(dtype, shape), Bytes::new(bytes)).unwrap()
}

fn stored_halves(shape: &[usize], random: &mut Random) -> WeightRef {
    let values = random.below_each(shape.iter().product(), 2000);
    let bytes = values.iter().flat_map(|&v| f16::from_f32(v as f32 / 64.0 - 9.0).to_le_bytes()).collect();
    stored(DType::F16, shape, bytes)
}

#[test]
fn compressed_constants_become_ops_and_come_back() {
    let mut random = Random(5);
    let mut cases = Vec::new();
    for dtype in INDEX_TYPES {
        let indices = stored(dtype, &[6, 4], pack(&random.below_each(24, 1 << dtype.bits()), dtype.bits()));
        let flat = stored_halves(&[1, 1, 1 << dtype.bits(), 1], &mut random);
        let weight = lut_to_dense("a.flat.weight", indices.clone(), flat).unwrap();
        cases.push((weight.clone(), dtype != DType::U3));
        cases.push((weight.reshape([6, 4, 1, 1]).unwrap(), dtype != DType::U3));
        cases.push((weight.cast(DType::F32), dtype != DType::U3));
        let groups = stored_halves(&[3, 1, 1 << dtype.bits(), 1], &mut random);
        let weight = lut_to_dense("grouped", indices.clone(), groups).unwrap();
        cases.push((weight.reshape([6, 1, 4, 1]).unwrap(), false));
        let table = stored(DType::I8, &[1, 1, 1 << dtype.bits(), 1], vec![3; 1 << dtype.bits()]);
        let scale = stored_halves(&[6, 1, 1, 1], &mut random);
        let scaled = blockwise_shift_scale("lut", broadcast(&table, 6), scale, None).unwrap();
        cases.push((lut_to_dense("tables", indices.clone(), scaled).unwrap(), false));
        let flat = stored_halves(&[1, 1, 1 << dtype.bits(), 1], &mut random);
        let table = lut_to_dense("scaled", indices, flat).unwrap();
        let scale = stored_halves(&[6, 1], &mut random);
        let scaled = blockwise_shift_scale("scaled", table, scale, None).unwrap();
        cases.push((scaled.reshape([6, 4, 1, 1]).unwrap(), false));
    }
    for dtype in [DType::I8, DType::U8] {
        let data = stored(dtype, &[6, 4], random.below_each(24, 256).iter().map(|&v| v as u8).collect());
        let scale = stored_halves(&[6, 1], &mut random);
        cases.push((blockwise_shift_scale("linear", data.clone(), scale.clone(), None).unwrap(), true));
        let offset = stored(dtype, &[6, 1], vec![7; 6]);
        let weight = blockwise_shift_scale("shifted", data.clone(), scale, Some(offset)).unwrap();
        cases.push((weight.reshape([6, 4, 1, 1]).unwrap(), true));
        let blocks = stored_halves(&[6, 2], &mut random);
        cases.push((blockwise_shift_scale("blocks", data, blocks, None).unwrap(), false));
    }
    for (weight, is_in_ios16) in cases {
        for opset in [Opset::Ios16, Opset::Ios18] {
            let function = adds(&weight, opset);
            if opset == Opset::Ios16 && !is_in_ios16 {
                assert!(matches!(encoded(&function), Err(Error::Opset { .. })), "{weight:?}");
                continue;
            }
            let written = encoded(&function).unwrap();
            verify(&written).unwrap();
            assert!(written.ops().len() > 1);
            let read = decoded(&written).unwrap();
            let found = read.values().iter().find_map(|value| match &value.def {
                Def::Const(Constant::Weight(found)) if found.encoding().is_some() => Some(found),
                _ => None,
            });
            let found = found.unwrap();
            assert_eq!((found.name(), found.ty()), (weight.name(), weight.ty()));
            assert_eq!(found.read().unwrap(), weight.read().unwrap(), "{weight:?}");
        }
    }
}

/// A table repeated for each of `groups` rows.
fn broadcast(table: &WeightRef, groups: usize) -> WeightRef {
    let parts = vec![table.clone(); groups];
    WeightRef::concat("tables", &parts, 0).unwrap()
}

#[test]
fn views_that_no_op_expresses_are_refused() {
    let mut random = Random(6);
    let indices = stored(DType::U4, &[6, 4], pack(&random.below_each(24, 16), 4));
    let weight = lut_to_dense("grouped", indices, stored_halves(&[3, 1, 16, 1], &mut random)).unwrap();
    let error = encoded(&adds(&weight.reshape([4, 6]).unwrap(), Opset::Ios18)).unwrap_err();
    assert_eq!(error.to_string(), "tensor `grouped`: no op decodes to it as tensor<fp16, [4, 6]>");
}

#[test]
fn computed_elements_are_read_when_they_are_asked_for() {
    #[derive(Debug)]
    struct Counts(std::sync::atomic::AtomicUsize);
    impl crate::Computed for Counts {
        fn read(&self) -> Vec<u8> {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            vec![0x21, 0x43]
        }
        fn release(&self) {}
    }
    let counts = std::sync::Arc::new(Counts(0.into()));
    let indices = WeightRef::computed("w", TensorType::new(DType::U4, [4]), counts.clone());
    let table = halves(&[1, 16, 1], &(0..16).map(f64::from).collect::<Vec<_>>());
    let table = stored(DType::F16, &[1, 16, 1], table.bytes().unwrap().to_vec());
    let weight = lut_to_dense("w", indices, table).unwrap();
    let written = encoded(&adds(&weight, Opset::Ios16)).unwrap();
    verify(&written).unwrap();
    assert_eq!(counts.0.load(std::sync::atomic::Ordering::Relaxed), 0);
    let expected: Vec<u8> =
        [1.0, 2.0, 3.0, 4.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
    assert_eq!(weight.read().unwrap(), expected);
}
