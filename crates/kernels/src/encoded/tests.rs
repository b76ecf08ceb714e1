use half::f16;

use super::*;
use crate::testing::{Tolerance, check, check_cases, random};
use crate::{
    Bias, ConvShape, ConvWeight, Epilogue, Mat, MatMut, Operand, PackedMatrix, PackedSide, Padding,
    Precision, WeightSlice, conv2d, gather_weight_rows, gemm, pack_conv_weight,
};

const WIDTHS: [usize; 6] = [1, 2, 3, 4, 6, 8];

/// The meaning of an index.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Palette,
    /// A sorted palette.
    Ascending,
    /// A palette that is scaled in half precision.
    Scaled,
    /// Integers that are shifted and scaled, in half and in single precision.
    Shifted,
    ShiftedWide,
}

/// A compressed weight with a table and a scale for each group.
#[derive(Clone, Copy, Debug)]
struct Case {
    bits: usize,
    size: [usize; 2],
    /// Groups of rows and of columns.
    groups: [usize; 2],
    form: Form,
}

struct Owned {
    case: Case,
    codes: Vec<u8>,
    indices: Vec<usize>,
    tables: Vec<f32>,
    grid: BlockGrid,
    halves: [Vec<f16>; 2],
    singles: [Vec<f32>; 2],
}

fn f16s(values: &[f32]) -> Vec<f16> {
    values.iter().map(|x| f16::from_f32(*x)).collect()
}

impl Owned {
    fn new(case: Case) -> Self {
        let Case { bits, size: [rows, columns], groups, form } = case;
        let count = rows * columns;
        let indices: Vec<usize> =
            random(9, count).iter().map(|x| ((x + 1.0) / 2.0 * (1 << bits) as f32) as usize).collect();
        let mut codes = vec![0u8; (count * bits).div_ceil(8)];
        for (element, index) in indices.iter().enumerate() {
            for bit in 0..bits {
                let at = element * bits + bit;
                codes[at / 8] |= ((index >> bit & 1) as u8) << (at % 8);
            }
        }
        let grid = BlockGrid { columns, block: [rows / groups[0], columns / groups[1]] };
        let blocks = groups[0] * groups[1];
        let tables = match form {
            Form::Palette | Form::Ascending | Form::Scaled => {
                let mut tables: Vec<f32> =
                    f16s(&random(10, blocks << bits)).iter().map(|x| x.to_f32()).collect();
                if form == Form::Ascending {
                    tables.chunks_mut(1 << bits).for_each(|table| table.sort_by(f32::total_cmp));
                }
                tables
            }
            _ => (0..1 << bits).map(|value| value as f32 - 3.0).collect(),
        };
        let (scales, offsets) = (random(11, blocks), random(12, blocks));
        let offsets: Vec<f32> = offsets.iter().map(|x| x * 7.0).collect();
        let halves = [f16s(&scales), f16s(&offsets)];
        Self { case, codes, indices, tables, grid, halves, singles: [scales, offsets] }
    }

    fn slice(&self) -> WeightSlice<'_> {
        let [rows, columns] = self.case.size;
        let whole = BlockGrid { columns, block: [rows, columns] };
        let grid = self.grid;
        let [scales, offsets] = &self.halves;
        let (table_grid, scaling) = match self.case.form {
            Form::Palette | Form::Ascending => (grid, Scaling::None),
            Form::Scaled => (grid, Scaling::F16(Affine { scale: (scales, grid), offset: None })),
            Form::Shifted => {
                (whole, Scaling::F16(Affine { scale: (scales, grid), offset: Some((offsets, grid)) }))
            }
            Form::ShiftedWide => {
                let [scales, offsets] = &self.singles;
                // One offset for all.
                (whole, Scaling::F32(Affine { scale: (scales, grid), offset: Some((&offsets[..1], whole)) }))
            }
        };
        let len = rows * columns;
        WeightSlice::Encoded(Encoded::new(
            &self.codes,
            self.case.bits,
            len,
            (&self.tables, table_grid),
            scaling,
        ))
    }

    /// The weights by definition, one by one.
    fn dense(&self) -> Vec<f32> {
        let Case { bits, size: [rows, columns], groups, form } = self.case;
        let round = |value: f32| f16::from_f32(value).to_f32();
        let element = |(at, index): (usize, &usize)| {
            let (row, column) = (at / columns, at % columns);
            let block = row * groups[0] / rows * groups[1] + column * groups[1] / columns;
            let entry = |block: usize| self.tables[(block << bits) + index];
            match form {
                Form::Palette | Form::Ascending => entry(block),
                Form::Scaled => round(entry(block) * self.halves[0][block].to_f32()),
                Form::Shifted => {
                    let shifted = round(entry(0) - self.halves[1][block].to_f32());
                    round(self.halves[0][block].to_f32() * shifted)
                }
                Form::ShiftedWide => self.singles[0][block] * (entry(0) - self.singles[1][0]),
            }
        };
        self.indices.iter().enumerate().map(element).collect()
    }
}

/// Every width and form in every grouping, at sizes around a word of the stream, a packed run and a tile.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in WIDTHS {
        for form in [Form::Palette, Form::Ascending, Form::Scaled, Form::Shifted, Form::ShiftedWide] {
            for (size, groupings) in [
                ([1, 1], &[[1, 1]][..]),
                ([3, 7], &[[1, 1], [3, 1], [1, 7]]),
                ([13, 65], &[[1, 1], [13, 1], [1, 5], [13, 13]]),
                ([34, 72], &[[1, 1], [17, 1], [2, 1], [1, 2], [1, 9], [17, 3]]),
            ] {
                for &groups in groupings {
                    cases.push(Case { bits, size, groups, form });
                }
            }
        }
    }
    cases
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

#[test]
fn runs_decode_by_definition() {
    check_cases(&cases(), |case| {
        let owned = Owned::new(*case);
        let (slice, dense) = (owned.slice(), owned.dense());
        let len = dense.len();
        for (start, end) in [(0, len), (0, len.min(1)), (len / 2, len), (len / 3, len - len / 4), (len, len)]
        {
            let mut out = vec![f32::NAN; end - start];
            slice.slice(start..end).widen(&mut out);
            if !same_bits(&out, &dense[start..end]) {
                return Err(format!("elements {start}..{end}"));
            }
        }
        Ok(())
    });
}

/// Compares two results bit by bit, at every instruction set and thread count.
fn check_same(
    len: usize,
    dense: impl Fn(&mut [f32]) + Sync,
    encoded: impl Fn(&mut [f32]) + Sync,
) -> Result<(), String> {
    check(&vec![0.0; len], Tolerance::Absolute(0.5), |out| {
        encoded(out);
        let mut expected = vec![f32::NAN; out.len()];
        dense(&mut expected);
        for (out, expected) in out.iter_mut().zip(&expected) {
            *out = if out.to_bits() == expected.to_bits() { 0.0 } else { 1.0 };
        }
    })
}

#[test]
fn products_are_those_of_the_decoded_weights() {
    check_cases(&cases(), |case| {
        let owned = Owned::new(*case);
        let [rows, columns] = case.size;
        let values = owned.dense();
        let (encoded, dense) = (owned.slice(), WeightSlice::F32(&values));
        // A few rows, which are dot products, and many.
        for others in [1, 4, 5, 33] {
            let label = |what: &'static str| move |error: String| format!("{what} {others}: {error}");
            let tokens = random(1, (others + 1) * columns.max(rows));
            let tokens_by = |depth: usize| Operand::from(Mat::new(&tokens[..], others, depth));
            let linear = |weight: WeightSlice<'_>, out: &mut [f32]| {
                let right = weight.transposed_matrix(rows, columns).into();
                gemm(
                    MatMut::new(out, others, rows),
                    tokens_by(columns),
                    right,
                    Precision::F32,
                    &Epilogue::default(),
                );
            };
            check_same(others * rows, |out| linear(dense, out), |out| linear(encoded, out))
                .map_err(label("right, transposed"))?;
            let product = |weight: WeightSlice<'_>, out: &mut [f32]| {
                let right = weight.matrix(rows, columns).into();
                gemm(
                    MatMut::new(out, others, columns),
                    tokens_by(rows),
                    right,
                    Precision::F32,
                    &Epilogue::default(),
                );
            };
            check_same(others * columns, |out| product(dense, out), |out| product(encoded, out))
                .map_err(label("right"))?;
            let left = |weight: WeightSlice<'_>, out: &mut [f32]| {
                // With gaps: a few dense rows times contiguous columns would be dot products.
                let right = Operand::from(Mat::with_strides(&tokens[..], columns, others, others + 1, 1));
                let left = weight.matrix(rows, columns).into();
                gemm(MatMut::new(out, rows, others), left, right, Precision::F32, &Epilogue::default());
            };
            check_same(rows * others, |out| left(dense, out), |out| left(encoded, out))
                .map_err(label("left"))?;
        }
        Ok(())
    });
}

/// Several blocks of depth, and work that is shared among threads.
#[test]
fn large_products_are_those_of_the_decoded_weights() {
    let cases = WIDTHS.map(|bits| Case { bits, size: [64, 1030], groups: [4, 2], form: Form::Palette });
    check_cases(&cases, |case| {
        let owned = Owned::new(*case);
        let [rows, columns] = case.size;
        let values = owned.dense();
        for others in [3, 70] {
            let tokens = random(2, others * columns);
            let linear = |weight: WeightSlice<'_>, out: &mut [f32]| {
                let left = Operand::from(Mat::new(&tokens[..], others, columns));
                let right = weight.transposed_matrix(rows, columns).into();
                gemm(MatMut::new(out, others, rows), left, right, Precision::F32, &Epilogue::default());
            };
            let dense = WeightSlice::F32(&values);
            check_same(others * rows, |out| linear(dense, out), |out| linear(owned.slice(), out))?;
        }
        Ok(())
    });
}

#[test]
fn convolutions_are_those_of_the_decoded_weights() {
    let base = ConvShape {
        batch: 1,
        in_channels: 6,
        in_size: [7, 9],
        out_channels: 34,
        kernel: [3, 3],
        stride: [1, 1],
        dilation: [1, 1],
        padding: Padding::same(1),
        groups: 1,
    };
    let point = ConvShape { kernel: [1, 1], padding: Padding::default(), ..base };
    let shapes = [
        base,
        ConvShape { groups: 2, batch: 2, ..base },
        ConvShape { stride: [2, 2], kernel: [4, 4], ..base },
        point,
        ConvShape { groups: 2, ..point },
    ];
    let mut cases = Vec::new();
    for shape in shapes {
        for bits in WIDTHS {
            // Groups of input channels are groups of columns.
            for groups in [[1, 1], [17, 1], [1, 3], [17, 3]] {
                for form in [Form::Palette, Form::Shifted] {
                    let depth = shape.in_channels / shape.groups * shape.kernel[0] * shape.kernel[1];
                    cases.push((shape, Case { bits, size: [34, depth], groups, form }));
                }
            }
        }
    }
    check_cases(&cases, |(shape, case)| {
        let owned = Owned::new(*case);
        let values = owned.dense();
        let input = random(3, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
        let bias = random(4, shape.out_channels);
        let epilogue = Epilogue { bias: Bias::PerRow(&bias), ..Epilogue::default() };
        let conv = |weight: ConvWeight<'_>, out: &mut [f32]| {
            conv2d(shape, &input, weight, Precision::F32, &epilogue, out)
        };
        let dense = |out: &mut [f32]| conv(ConvWeight::Stored(WeightSlice::F32(&values)), out);
        check_same(shape.out_len(), dense, |out| conv(ConvWeight::Stored(owned.slice()), out))?;
        check_same(shape.out_len(), dense, |out| {
            conv(ConvWeight::Packed(&pack_conv_weight(shape, owned.slice(), Precision::F32)), out);
        })
    });
}

#[test]
fn packing_beforehand_and_gathering_rows_decode_too() {
    check_cases(&cases(), |case| {
        let owned = Owned::new(*case);
        let [rows, columns] = case.size;
        let values = owned.dense();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            for side in [PackedSide::Left, PackedSide::Right] {
                // Both rows and columns as lanes.
                for transposed in [false, true] {
                    let pack = |weight: WeightSlice<'_>| {
                        let matrix = match transposed {
                            true => weight.transposed_matrix(rows, columns),
                            false => weight.matrix(rows, columns),
                        };
                        PackedMatrix::new(matrix, side, precision)
                    };
                    if pack(owned.slice()).words() != pack(WeightSlice::F32(&values)).words() {
                        return Err(format!("packed for {side:?} in {precision:?}"));
                    }
                }
            }
        }
        let indices = [rows - 1, 0, rows / 2, rows - 1];
        check_same(
            indices.len() * columns,
            |out| gather_weight_rows(WeightSlice::F32(&values), columns, &indices, out),
            |out| gather_weight_rows(owned.slice(), columns, &indices, out),
        )
    });
}

#[test]
#[should_panic(expected = "fewer tables than blocks")]
fn a_table_for_each_block_is_required() {
    let grid = BlockGrid { columns: 4, block: [1, 4] };
    Encoded::new(&[0; 4], 4, 8, (&[0.0; 16], grid), Scaling::None);
}
