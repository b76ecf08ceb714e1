use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use half::{bf16, f16};

use super::*;
use crate::gemm::pack::PackedMatrix;
use crate::pool::ThreadPool;
use crate::testing::{Tolerance, check, check_cases, check_from, random};
use crate::unary::UnaryOp;

/// `[M, K, N]` around the tile sizes of every instruction set, the block sizes and the small-row path.
const SIZES: &[[usize; 3]] = &[
    [1, 1, 1],
    [1, 7, 3],
    [2, 3, 5],
    [4, 1030, 70],
    [5, 17, 33],
    [6, 16, 16],
    [7, 15, 31],
    [11, 255, 32],
    [12, 256, 64],
    [13, 257, 65],
    [24, 64, 8],
    [25, 3, 97],
    [97, 31, 29],
    [3, 0, 4],
    [0, 4, 4],
    [4, 4, 0],
    [13, 384, 33],
    [13, 385, 33],
    [130, 520, 130],
    [1540, 9, 40],
    [9, 9, 1600],
    [13, 9, 12_301],
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Storage {
    F32,
    F32Columns,
    F32Strided,
    F16,
    Bf16,
    Packed,
}

const STORAGES: &[Storage] =
    &[Storage::F32, Storage::F32Columns, Storage::F32Strided, Storage::F16, Storage::Bf16, Storage::Packed];

/// A stored matrix and its values.
struct Owned {
    rows: usize,
    cols: usize,
    storage: Storage,
    values: Vec<f32>,
    stored: Vec<f32>,
    halves: Vec<f16>,
    bfloats: Vec<bf16>,
    packed: Option<PackedMatrix>,
}

impl Owned {
    fn new(seed: u64, rows: usize, cols: usize, storage: Storage, side: PackedSide) -> Self {
        let mut values = random(seed, rows * cols);
        let halves: Vec<f16> = values.iter().map(|x| f16::from_f32(*x)).collect();
        let bfloats: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
        match storage {
            Storage::F16 => values = halves.iter().map(|x| x.to_f32()).collect(),
            Storage::Bf16 => values = bfloats.iter().map(|x| x.to_f32()).collect(),
            _ => {}
        }
        let (row_stride, col_stride) = Self::strides(rows, cols, storage);
        // Gaps hold NaN, which reaches the output if one is read.
        let mut stored = vec![f32::NAN; rows * row_stride + cols * col_stride + 1];
        for row in 0..rows {
            for col in 0..cols {
                stored[row * row_stride + col * col_stride] = values[row * cols + col];
            }
        }
        let packed = (storage == Storage::Packed)
            .then(|| PackedMatrix::new(WeightSlice::F32(&values).matrix(rows, cols), side, Precision::F32));
        Self { rows, cols, storage, values, stored, halves, bfloats, packed }
    }

    fn strides(rows: usize, cols: usize, storage: Storage) -> (usize, usize) {
        match storage {
            Storage::F32Columns => (1, rows + 3),
            Storage::F32Strided => (2 * cols + 1, 2),
            _ => (cols, 1),
        }
    }

    fn operand(&self) -> Operand<'_> {
        match &self.packed {
            Some(packed) => Operand::Packed(packed),
            None => self.matrix().into(),
        }
    }

    fn matrix(&self) -> Mat<WeightSlice<'_>> {
        let (row_stride, col_stride) = Self::strides(self.rows, self.cols, self.storage);
        match self.storage {
            Storage::F16 => WeightSlice::F16(&self.halves).matrix(self.rows, self.cols),
            Storage::Bf16 => WeightSlice::Bf16(&self.bfloats).matrix(self.rows, self.cols),
            _ => {
                let stored = WeightSlice::F32(&self.stored);
                Mat::with_strides(stored, self.rows, self.cols, row_stride, col_stride)
            }
        }
    }
}

fn oracle(left: &Owned, right: &Owned) -> Vec<f64> {
    let mut out = Vec::new();
    for row in 0..left.rows {
        for col in 0..right.cols {
            let terms = (0..left.cols).map(|k| {
                f64::from(left.values[row * left.cols + k]) * f64::from(right.values[k * right.cols + col])
            });
            out.push(terms.sum::<f64>());
        }
    }
    out
}

const TOLERANCE: Tolerance = Tolerance::OfLargest(2e-6);

#[derive(Debug)]
struct Case {
    size: [usize; 3],
    left: Storage,
    right: Storage,
}

#[test]
fn products_of_every_size_and_storage() {
    let mut cases = Vec::new();
    for &size in SIZES {
        for &storage in STORAGES {
            cases.push(Case { size, left: storage, right: Storage::F32 });
            cases.push(Case { size, left: Storage::F32, right: storage });
        }
    }
    check_cases(&cases, |case| {
        let [m, k, n] = case.size;
        let left = Owned::new(1, m, k, case.left, PackedSide::Left);
        let right = Owned::new(2, k, n, case.right, PackedSide::Right);
        if (case.left, case.right) == (Storage::Packed, Storage::F32) || case.right == Storage::Packed {
            // Packed for this CPU's widest set, so only that one can read it.
            let expected = oracle(&left, &right);
            let mut out = vec![f32::NAN; m * n];
            gemm(
                MatMut::new(&mut out, m, n),
                left.operand(),
                right.operand(),
                Precision::F32,
                &Epilogue::default(),
            );
            let pairs = out.iter().zip(&expected);
            let error = pairs.fold(0.0_f64, |worst, (x, y)| worst.max((f64::from(*x) - y).abs()));
            let complete = out.iter().all(|x| x.is_finite());
            return if complete && error <= 2e-5 { Ok(()) } else { Err(format!("error {error}")) };
        }
        check(&oracle(&left, &right), TOLERANCE, |out| {
            gemm(
                MatMut::new(out, m, n),
                left.operand(),
                right.operand(),
                Precision::F32,
                &Epilogue::default(),
            );
        })
    });
}

#[derive(Debug)]
struct EpilogueCase {
    size: [usize; 3],
    right: Storage,
    bias: &'static str,
    residual: bool,
    activation: Option<UnaryOp>,
}

#[test]
fn every_epilogue() {
    let mut cases = Vec::new();
    for size in [[1, 40, 70], [4, 300, 65], [5, 300, 33], [30, 600, 70], [7, 0, 9]] {
        for right in [Storage::F32, Storage::F32Columns] {
            for bias in ["none", "row", "column"] {
                for residual in [false, true] {
                    for activation in [None, Some(UnaryOp::Silu), Some(UnaryOp::Abs)] {
                        cases.push(EpilogueCase { size, right, bias, residual, activation });
                    }
                }
            }
        }
    }
    check_cases(&cases, |case| {
        let [m, k, n] = case.size;
        let left = Owned::new(3, m, k, Storage::F32, PackedSide::Left);
        let right = Owned::new(4, k, n, case.right, PackedSide::Right);
        let (per_row, per_column) = (random(5, m), random(6, n));
        // There are gaps between the rows.
        let residual = random(7, m * (n + 3));
        let bias = match case.bias {
            "row" => Bias::PerRow(&per_row),
            "column" => Bias::PerColumn(&per_column),
            _ => Bias::None,
        };
        let mut expected = oracle(&left, &right);
        for (index, value) in expected.iter_mut().enumerate() {
            let (row, col) = (index / n, index % n);
            match bias {
                Bias::None => {}
                Bias::PerRow(bias) => *value += f64::from(bias[row]),
                Bias::PerColumn(bias) => *value += f64::from(bias[col]),
            }
            if case.residual {
                *value += f64::from(residual[row * (n + 3) + col]);
            }
            match case.activation {
                Some(UnaryOp::Silu) => *value /= 1.0 + (-*value).exp(),
                Some(UnaryOp::Abs) => *value = value.abs(),
                _ => {}
            }
        }
        check(&expected, TOLERANCE, |out| {
            let epilogue = Epilogue {
                bias,
                residual: case.residual.then(|| Mat::with_strides(&residual[..], m, n, n + 3, 1)),
                activation: case.activation,
                gate: None,
            };
            let out = MatMut::new(out, m, n);
            gemm(out, left.operand(), right.operand(), Precision::F32, &epilogue);
        })
    });
}

/// `(x + bias) * abs(gate + bias)` of a product's halves.
fn gated_oracle(product: &[f64], n: usize, bias: Option<&[f32]>) -> Vec<f64> {
    let biased = |row: &[f64], col: usize| row[col] + bias.map_or(0.0, |bias| f64::from(bias[col]));
    let rows = product.chunks_exact(2 * n);
    rows.flat_map(|row| (0..n).map(move |col| biased(row, col) * biased(row, n + col).abs())).collect()
}

#[test]
fn gates_multiply_values() {
    let mut cases = Vec::new();
    let sizes =
        [[1, 40, 7], [5, 300, 33], [13, 700, 31], [30, 1601, 70], [7, 0, 9], [600, 20, 40], [40, 20, 700]];
    for size in sizes {
        for right in [Storage::F32, Storage::F32Columns] {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                cases.push((size, right, precision));
            }
        }
    }
    check_cases(&cases, |&([m, k, n], right, precision)| {
        let left = Owned::new(3, m, k, Storage::F32, PackedSide::Left);
        let right = Owned::new(4, k, 2 * n, right, PackedSide::Right);
        let product = rounded_oracle(precision, &left, &right);
        let bias = random(5, 2 * n);
        for bias in [None, Some(&bias[..])] {
            let epilogue = Epilogue {
                bias: bias.map_or(Bias::None, Bias::PerColumn),
                gate: Some(UnaryOp::Abs),
                ..Epilogue::default()
            };
            let expected = gated_oracle(&product, n, bias);
            check(&expected, Tolerance::OfLargest(1e-5), |out| {
                let out = MatMut::new(out, m, n);
                gemm(out, left.operand(), right.operand(), precision, &epilogue);
            })?;
            // Packed for this CPU's widest set, so only that one can read it.
            let packed = PackedMatrix::gated(right.matrix(), PackedSide::Right, precision);
            let [mut from_packed, mut from_stored] = [vec![f32::NAN; m * n], vec![f32::NAN; m * n]];
            let out = MatMut::new(&mut from_packed, m, n);
            gemm(out, left.operand(), Operand::Packed(&packed), precision, &epilogue);
            let out = MatMut::new(&mut from_stored, m, n);
            gemm(out, left.operand(), right.operand(), precision, &epilogue);
            if from_packed != from_stored {
                return Err("differs if it is packed".to_string());
            }
        }
        Ok(())
    });
}

/// The values of a lane after rounding to a precision.
fn rounded(precision: Precision, run: &[f32]) -> Vec<f64> {
    match precision {
        Precision::F32 => run.iter().map(|x| f64::from(*x)).collect(),
        Precision::Bf16 => run.iter().map(|x| bf16::from_f32(*x).to_f64()).collect(),
        Precision::Int8 => {
            let mut kept = Vec::new();
            for block in run.chunks(Format::I8x4.block_depth(run.len())) {
                let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let quantized = block.iter().map(|x| (x * (127.0 / largest)).round_ties_even());
                kept.extend(quantized.map(|q| f64::from(q) * f64::from(largest) / 127.0));
            }
            kept
        }
    }
}

/// The exact product of the rounded sides.
fn rounded_oracle(precision: Precision, left: &Owned, right: &Owned) -> Vec<f64> {
    let (rows, depth, cols) = (left.rows, left.cols, right.cols);
    let lefts: Vec<Vec<f64>> =
        (0..rows).map(|row| rounded(precision, &left.values[row * depth..][..depth])).collect();
    let column = |col: usize| (0..depth).map(|k| right.values[k * cols + col]).collect::<Vec<_>>();
    let rights: Vec<Vec<f64>> = (0..cols).map(|col| rounded(precision, &column(col))).collect();
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum();
    lefts.iter().flat_map(|left| rights.iter().map(|right| dot(left, right)).collect::<Vec<_>>()).collect()
}

#[test]
fn every_precision_rounds_its_operands_and_nothing_else() {
    let mut cases = Vec::new();
    for precision in [Precision::Bf16, Precision::Int8] {
        for &size in SIZES.iter().filter(|size| size[0] > DOT_ROWS || size[0] == 0) {
            for &storage in STORAGES.iter().filter(|storage| **storage != Storage::Packed) {
                cases.push((precision, Case { size, left: storage, right: Storage::F32 }));
                cases.push((precision, Case { size, left: Storage::F32, right: storage }));
            }
        }
        for size in [[13, 769, 33], [13, 1023, 40], [30, 2050, 65]] {
            cases.push((precision, Case { size, left: Storage::F32, right: Storage::F32Columns }));
        }
    }
    check_cases(&cases, |(precision, case)| {
        let [m, k, n] = case.size;
        let left = Owned::new(1, m, k, case.left, PackedSide::Left);
        let right = Owned::new(2, k, n, case.right, PackedSide::Right);
        // The bfloat16 instruction rounds its sums to even pairs of products, an ulp of theirs each.
        let expected = rounded_oracle(*precision, &left, &right);
        check(&expected, Tolerance::OfLargest(6e-6), |out| {
            let out = MatMut::new(out, m, n);
            gemm(out, left.operand(), right.operand(), *precision, &Epilogue::default());
        })?;
        let packed = PackedMatrix::new(right.matrix(), PackedSide::Right, *precision);
        let product = |right: Operand<'_>| {
            let mut out = vec![f32::NAN; m * n];
            let target = MatMut::new(&mut out, m, n);
            // With gaps: a few dense rows times contiguous columns would be dot products.
            gemm(target, left.operand(), right, *precision, &Epilogue::default());
            out
        };
        if product(Operand::Packed(&packed)) != product(right.operand()) {
            return Err("the packed weight gives other bytes".into());
        }
        Ok(())
    });
}

#[test]
fn a_batch_of_right_sides() {
    let mut cases = Vec::new();
    for precision in Precision::ALL {
        for size in [[5, 1, 1], [13, 40, 33], [77, 65, 96], [154, 1300, 70], [300, 64, 31]] {
            cases.push((precision, size, false));
            cases.push((precision, size, true));
        }
    }
    check_cases(&cases, |&(precision, [m, k, n], has_bias)| {
        let left = Owned::new(1, m, k, Storage::F32, PackedSide::Left);
        let storages = [Storage::F32Columns, Storage::F16, Storage::F32];
        let right = |(seed, storage)| Owned::new(seed, k, n, storage, PackedSide::Right);
        let rights: Vec<Owned> = (2..).zip(storages).map(right).collect();
        let bias = has_bias.then(|| random(9, 3 * n));
        let mut expected = Vec::new();
        for (index, right) in rights.iter().enumerate() {
            let product = match precision {
                Precision::F32 => oracle(&left, right),
                _ => rounded_oracle(precision, &left, right),
            };
            let bias = |at: usize| bias.as_ref().map_or(0.0, |bias| f64::from(bias[index * n + at % n]));
            expected.extend(product.iter().enumerate().map(|(at, value)| value + bias(at)));
        }
        let matrices: Vec<Mat<WeightSlice<'_>>> = rights.iter().map(Owned::matrix).collect();
        let rights: Vec<Operand<'_>> = matrices.iter().map(|matrix| (*matrix).into()).collect();
        let product = |out: &mut [f32], is_packed: bool| {
            if is_packed {
                let packed = PackedMatrix::batch(&matrices, PackedSide::Right, precision);
                let rights = [Operand::Packed(&packed)];
                return gemm_batched(out, left.operand(), &rights, precision, bias.as_deref());
            }
            gemm_batched(out, left.operand(), &rights, precision, bias.as_deref());
        };
        for is_packed in [false, true] {
            check(&expected, Tolerance::OfLargest(6e-6), |out| product(out, is_packed))?;
        }
        let [stored, packed] = [false, true].map(|is_packed| {
            let mut out = vec![f32::NAN; expected.len()];
            product(&mut out, is_packed);
            out
        });
        if stored == packed { Ok(()) } else { Err("packed weights give other bytes".into()) }
    });
}

#[test]
fn few_rows_are_exact_in_every_precision() {
    let (left, right) = (
        Owned::new(1, 4, 300, Storage::F32, PackedSide::Left),
        Owned::new(2, 300, 70, Storage::F32Columns, PackedSide::Right),
    );
    for precision in Precision::ALL {
        check(&oracle(&left, &right), TOLERANCE, |out| {
            let out = MatMut::new(out, 4, 70);
            gemm(out, left.operand(), right.operand(), precision, &Epilogue::default());
        })
        .expect("exact");
    }
}

#[test]
fn gaps_between_output_rows_stay_untouched() {
    check_cases(&[[2, 40, 9], [13, 40, 33], [30, 300, 40]], |&[m, k, n]| {
        let left = Owned::new(8, m, k, Storage::F32, PackedSide::Left);
        let right = Owned::new(9, k, n, Storage::F32Columns, PackedSide::Right);
        let stride = n + 5;
        let mut expected = vec![7.0; m * stride];
        for (row, values) in oracle(&left, &right).chunks(n).enumerate() {
            expected[row * stride..row * stride + n].copy_from_slice(values);
        }
        check_from(&vec![7.0; m * stride], &expected, TOLERANCE, |out| {
            let out = MatMut::with_strides(out, m, n, stride, 1);
            gemm(out, left.operand(), right.operand(), Precision::F32, &Epilogue::default());
        })
    });
}

#[test]
fn nan_reaches_the_output() {
    for precision in Precision::ALL {
        nan_reaches_the_output_of(precision);
    }
}

fn nan_reaches_the_output_of(precision: Precision) {
    let mut left = vec![1.0; 20 * 50];
    left[3 * 50 + 49] = f32::NAN;
    let right = vec![1.0; 50 * 40];
    let mut out = vec![0.0; 20 * 40];
    gemm(
        MatMut::new(&mut out, 20, 40),
        Mat::new(&left[..], 20, 50).into(),
        Mat::new(&right[..], 50, 40).into(),
        precision,
        &Epilogue::default(),
    );
    for (index, value) in out.iter().enumerate() {
        assert_eq!(value.is_nan(), index / 40 == 3, "element {index}");
    }
}

#[test]
fn a_cancelled_product_returns_soon_and_the_next_one_is_right() {
    const SIZE: usize = 1024;
    let (left, right) = (random(1, SIZE * SIZE), random(2, SIZE * SIZE));
    let product = |pool: &ThreadPool, cancelled: &AtomicBool| {
        let mut out = vec![f32::NAN; SIZE * SIZE];
        let begin = Instant::now();
        pool.install_until(cancelled, || {
            let operand = |data| Mat::new(data, SIZE, SIZE).into();
            let out = MatMut::new(&mut out, SIZE, SIZE);
            gemm(out, operand(&left[..]), operand(&right[..]), Precision::F32, &Epilogue::default());
        });
        (begin.elapsed(), out)
    };
    for threads in [1, 3] {
        let pool = ThreadPool::new(Some(threads)).expect("threads");
        let (whole, expected) = product(&pool, &AtomicBool::new(false));
        // The machine may be busy: the flag may come late, but not five times.
        let returns_soon = (0..5).any(|_| {
            let cancelled = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(whole / 20);
                    cancelled.store(true, Ordering::Relaxed);
                });
                let (elapsed, out) = product(&pool, &cancelled);
                elapsed < whole / 2 && out.iter().any(|x| x.is_nan())
            })
        });
        assert!(returns_soon, "a cancelled product takes more than half of {whole:?}");
        let (_, next) = product(&pool, &AtomicBool::new(false));
        assert_eq!(next, expected);
        let dot = |row: usize, col: usize| -> f64 {
            let terms = (0..SIZE).map(|k| f64::from(left[row * SIZE + k]) * f64::from(right[k * SIZE + col]));
            terms.sum()
        };
        for [row, col] in [[0, 0], [7, 1023], [1023, 1], [1000, 1000]] {
            assert!((f64::from(next[row * SIZE + col]) - dot(row, col)).abs() < 1e-3, "({row}, {col})");
        }
    }
}

#[test]
#[should_panic(expected = "the number of matrices")]
fn a_packed_batch_is_not_one_matrix() {
    let weight = random(1, 40 * 30);
    let matrix = WeightSlice::F32(&weight).matrix(40, 30);
    let packed = PackedMatrix::batch(&[matrix, matrix], PackedSide::Right, Precision::F32);
    let (left, mut out) = (random(2, 13 * 40), vec![0.0; 13 * 30]);
    let left = Mat::new(&left[..], 13, 40).into();
    let out = MatMut::new(&mut out, 13, 30);
    gemm(out, left, Operand::Packed(&packed), Precision::F32, &Epilogue::default());
}

#[test]
fn a_gated_epilogue_has_a_residual_and_an_activation() {
    check_cases(&[[7, 40, 21], [70, 700, 33]], |&[m, k, n]| {
        let left = Owned::new(3, m, k, Storage::F32, PackedSide::Left);
        let right = Owned::new(4, k, 2 * n, Storage::F32, PackedSide::Right);
        let (bias, residual) = (random(5, 2 * n), random(6, m * n));
        let product = oracle(&left, &right);
        let at = |row: usize, col: usize| product[row * 2 * n + col] + f64::from(bias[col]);
        let value = |row: usize, col: usize| (at(row, col) + f64::from(residual[row * n + col])).max(0.0);
        let element = |index: usize| value(index / n, index % n) * at(index / n, n + index % n).abs();
        let expected: Vec<f64> = (0..m * n).map(element).collect();
        check(&expected, Tolerance::OfLargest(1e-5), |out| {
            let epilogue = Epilogue {
                bias: Bias::PerColumn(&bias),
                residual: Some(Mat::new(&residual[..], m, n)),
                activation: Some(UnaryOp::Relu),
                gate: Some(UnaryOp::Abs),
            };
            let out = MatMut::new(out, m, n);
            gemm(out, left.operand(), right.operand(), Precision::F32, &epilogue);
        })
    });
}
