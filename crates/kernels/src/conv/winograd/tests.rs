use half::bf16;

use super::*;
use crate::conv::direct::{Groups, direct, group_epilogue};
use crate::conv::{ConvWeight, Padding};
use crate::encoded::{BlockGrid, Encoded, Scaling};
use crate::matrix::{Mat, WeightSlice};
use crate::testing::{Tolerance, check, check_cases, random};
use crate::unary::UnaryOp;

const BASE: ConvShape = ConvShape { in_channels: 32, in_size: [8, 8], ..crate::conv::tests::BASE };

/// Sizes around those of vectors, panels and blocks of channels.
fn shapes() -> Vec<ConvShape> {
    let mut shapes: Vec<ConvShape> = [[1, 1], [1, 7], [2, 2], [3, 65], [5, 33], [7, 9], [64, 3], [16, 34]]
        .map(|in_size| ConvShape { in_size, ..BASE })
        .into();
    shapes.extend([33, 47, 64, 65, 129].map(|in_channels| ConvShape { in_channels, ..BASE }));
    shapes.extend([1, 6, 12, 13, 24, 49, 100].map(|out_channels| ConvShape { out_channels, ..BASE }));
    shapes.extend([2, 3].map(|batch| ConvShape { batch, in_size: [6, 10], ..BASE }));
    shapes.extend(
        [
            Padding::default(),
            Padding::same(2),
            Padding { top: 2, bottom: 0, left: 3, right: 5 },
            Padding { top: 0, bottom: 1, left: 0, right: 1 },
        ]
        .map(|padding| ConvShape { padding, in_size: [9, 6], batch: 2, ..BASE }),
    );
    shapes
}

/// Multiples of 1/256, whose sums are exact.
fn grid(seed: u64, len: usize) -> Vec<f32> {
    random(seed, len).into_iter().map(|x| (x * 256.0).round() / 256.0).collect()
}

fn operands(shape: &ConvShape) -> (Vec<f32>, Vec<f32>) {
    let input = grid(1, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
    (input, grid(2, shape.out_channels * shape.in_channels * 9))
}

/// The convolution by F(2x2, 3x3), with transformed weights and tiles rounded by `round`.
fn oracle(shape: &ConvShape, input: &[f32], weight: &[f32], round: fn(f64) -> f64) -> Vec<f64> {
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
    const BT: [[f64; 4]; 4] =
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]];
    const AT: [[f64; 4]; 2] = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, -1.0, -1.0]];
    let ([rows, cols], [out_rows, out_cols]) = (shape.in_size, shape.out_size());
    let (channels, outputs) = (shape.in_channels, shape.out_channels);
    let both = |matrix: &dyn Fn(usize, usize) -> f64,
                len: usize,
                value: &dyn Fn(usize, usize) -> f64,
                at: [usize; 2]| {
        let terms = (0..len).flat_map(|i| (0..len).map(move |j| (i, j)));
        terms.map(|(i, j)| matrix(at[0], i) * matrix(at[1], j) * value(i, j)).sum::<f64>()
    };
    let positions = || (0..16).map(|position| [position / 4, position % 4]);
    let transformed: Vec<Vec<f64>> = (0..outputs * channels)
        .map(|filter| {
            let tap = |i: usize, j: usize| f64::from(weight[filter * 9 + 3 * i + j]);
            positions().map(|at| round(both(&|a, b| G[a][b], 3, &tap, at))).collect()
        })
        .collect();
    let mut out = vec![f64::NAN; shape.out_len()];
    for image in 0..shape.batch {
        for (row, col) in
            (0..out_rows.div_ceil(2)).flat_map(|y| (0..out_cols.div_ceil(2)).map(move |x| (2 * y, 2 * x)))
        {
            let tiles: Vec<Vec<f64>> = (0..channels)
                .map(|channel| {
                    let pixel = |i: usize, j: usize| {
                        let y = (row + i).checked_sub(shape.padding.top).filter(|y| *y < rows);
                        let x = (col + j).checked_sub(shape.padding.left).filter(|x| *x < cols);
                        y.zip(x).map_or(0.0, |(y, x)| {
                            f64::from(input[((image * channels + channel) * rows + y) * cols + x])
                        })
                    };
                    positions().map(|at| round(both(&|a, b| BT[a][b], 4, &pixel, at))).collect()
                })
                .collect();
            for output in 0..outputs {
                let products: Vec<f64> = (0..16)
                    .map(|p| (0..channels).map(|c| transformed[output * channels + c][p] * tiles[c][p]).sum())
                    .collect();
                for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    if row + i < out_rows && col + j < out_cols {
                        let value = both(&|a, b| AT[a][b], 4, &|a, b| products[4 * a + b], [i, j]);
                        out[((image * outputs + output) * out_rows + row + i) * out_cols + col + j] = value;
                    }
                }
            }
        }
    }
    out
}

/// The kernel, whether or not it would be chosen for a shape.
fn convolve(
    shape: &ConvShape,
    input: &[f32],
    weight: WeightSlice<'_>,
    precision: Precision,
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
) {
    let pixels = shape.out_size().iter().product();
    let epilogue = group_epilogue(epilogue, shape, 0);
    let target = Target::batched(out, shape.batch, shape.out_channels, pixels, shape.out_channels * pixels);
    conv2d(shape, input, Filters::Stored(weight, Format::of(precision)), &target, &epilogue);
}

fn rounded(x: f64) -> f64 {
    bf16::from_f64(x).to_f64()
}

#[test]
fn the_oracle_is_a_convolution() {
    let shape = ConvShape { in_size: [3, 4], batch: 2, ..BASE };
    let (input, weight) = operands(&shape);
    let expected = crate::conv::tests::oracle(&shape, &input, &weight);
    let found = oracle(&shape, &input, &weight, |x| x);
    assert!(found.iter().zip(&expected).all(|(found, expected)| (found - expected).abs() < 1e-12));
}

/// `f32` is as accurate as the direct product; bfloat16 rounds transformed filters and tiles, and nothing
/// else.
#[test]
fn every_shape_in_every_format() {
    check_cases(&shapes(), |shape| {
        let (input, weight) = operands(shape);
        for (precision, round) in [(Precision::F32, (|x| x) as fn(f64) -> f64), (Precision::Bf16, rounded)] {
            let expected = oracle(shape, &input, &weight, round);
            check(&expected, Tolerance::OfLargest(3e-6), |out| {
                let weight = WeightSlice::F32(&weight);
                convolve(shape, &input, weight, precision, &Epilogue::default(), out);
            })?;
        }
        Ok(())
    });
}

/// Both ways to share the work, at any size.
#[test]
fn kept_filters_and_kept_tiles() {
    let shape = ConvShape { in_channels: 40, out_channels: 70, in_size: [11, 18], batch: 2, ..BASE };
    let (input, weight) = operands(&shape);
    let expected = oracle(&shape, &input, &weight, |x| x);
    for keeps_filters in [true, false] {
        check(&expected, Tolerance::OfLargest(3e-6), |out| {
            let pixels = shape.out_size().iter().product();
            let target =
                Target::batched(out, shape.batch, shape.out_channels, pixels, shape.out_channels * pixels);
            let epilogue = TileEpilogue::default();
            let convolution = Convolution::new(&shape, &input, Format::F32, &target, &epilogue);
            let source = FilterTransform::new(&shape, WeightSlice::F32(&weight), Format::F32);
            if keeps_filters {
                let mut words = vec![0; source.panels * source.panel_len];
                source.transform(&mut words);
                convolution.by_tiles(&words);
            } else {
                convolution.by_weights(&source, convolution.right_len);
            }
        })
        .unwrap();
    }
}

#[test]
fn every_epilogue() {
    let shapes = [
        ConvShape { in_size: [7, 9], batch: 2, ..BASE },
        ConvShape { in_size: [4, 66], out_channels: 14, batch: 2, ..BASE },
    ];
    check_cases(&shapes, |shape| {
        let (input, weight) = operands(shape);
        let residual = random(6, shape.out_len());
        let pixels = shape.out_size().iter().product::<usize>();
        for bias_images in [1, shape.batch] {
            let bias = random(5, bias_images * shape.out_channels);
            let mut expected = oracle(shape, &input, &weight, |x| x);
            for (index, value) in expected.iter_mut().enumerate() {
                *value += f64::from(bias[index / pixels % bias.len()]) + f64::from(residual[index]);
                *value /= 1.0 + (-*value).exp();
            }
            let rows = shape.batch * shape.out_channels;
            let epilogue = Epilogue {
                bias: Bias::PerRow(&bias),
                residual: Some(Mat::new(&residual[..], rows, shape.out_size().iter().product())),
                activation: Some(UnaryOp::Silu),
                gate: None,
            };
            check(&expected, Tolerance::OfLargest(3e-6), |out| {
                convolve(shape, &input, WeightSlice::F32(&weight), Precision::F32, &epilogue, out);
            })?;
        }
        Ok(())
    });
}

/// The stated error of the method, relative to the direct product in the same precision.
#[test]
fn bfloat16_is_less_exact_by_the_known_factor() {
    let shape = ConvShape { in_channels: 128, out_channels: 16, in_size: [16, 16], ..BASE };
    let input = random(1, shape.in_channels * 256);
    let weight = random(2, shape.out_channels * shape.in_channels * 9);
    let expected = crate::conv::tests::oracle(&shape, &input, &weight);
    let error = |run: &dyn Fn(&mut [f32])| {
        let mut out = vec![0.0; shape.out_len()];
        run(&mut out);
        out.iter().zip(&expected).map(|(x, y)| (f64::from(*x) - y).powi(2)).sum::<f64>().sqrt()
    };
    let weight = WeightSlice::F32(&weight);
    let filtered = error(&|out| convolve(&shape, &input, weight, Precision::Bf16, &Epilogue::default(), out));
    let direct = error(&|out| {
        let (weight, epilogue) = (Groups::Stored(weight), Epilogue::default());
        direct(&shape, &input, weight, Precision::Bf16, &epilogue, out);
    });
    let ratio = filtered / direct;
    assert!((1.5..1.9).contains(&ratio), "{ratio}");
}

#[test]
fn nan_reaches_the_tiles_that_read_it() {
    let shape = ConvShape { in_size: [8, 8], ..BASE };
    let (mut input, weight) = operands(&shape);
    input[64 * 3 + 8 * 4 + 4] = f32::NAN;
    for precision in [Precision::F32, Precision::Bf16] {
        let mut out = vec![0.0; shape.out_len()];
        let weight = WeightSlice::F32(&weight);
        convolve(&shape, &input, weight, precision, &Epilogue::default(), &mut out);
        for (index, value) in out.iter().enumerate() {
            let (y, x) = (index / 8 % 8, index % 8);
            if (3..=5).contains(&y) && (3..=5).contains(&x) {
                assert!(value.is_nan(), "{precision} at {y}, {x}");
            }
        }
    }
}

/// Where the method is chosen, packed weights give the same bytes as stored ones.
#[test]
fn packed_weights_give_the_same_bytes() {
    let shape = ConvShape { in_channels: 40, out_channels: 14, in_size: [16, 18], ..BASE };
    let (input, weight) = operands(&shape);
    let weight = WeightSlice::F32(&weight);
    assert!(format(&shape, Precision::F32).is_none());
    assert!(format(&shape, Precision::Bf16).is_some());
    assert!(format(&ConvShape { in_size: [4, 4], ..shape }, Precision::Bf16).is_none());
    let run = |weight: ConvWeight<'_>| {
        let mut out = vec![0.0; shape.out_len()];
        crate::conv2d(&shape, &input, weight, Precision::Bf16, &Epilogue::default(), &mut out);
        out
    };
    let packed = crate::pack_conv_weight(&shape, weight, Precision::Bf16);
    assert_eq!(run(ConvWeight::Packed(&packed)), run(ConvWeight::Stored(weight)));
}

/// Compressed filters, which are transformed in registers, equal the transformed values.
#[test]
fn compressed_filters_equal_decoded_ones() {
    let mut cases = Vec::new();
    for bits in [1, 2, 3, 4, 6, 8] {
        for in_channels in [1, 16, 33, 64, 65, 130] {
            for out_channels in [5, 12, 14] {
                cases.push((bits, ConvShape { in_channels, out_channels, ..BASE }));
            }
        }
    }
    check_cases(&cases, |&(bits, shape)| {
        let (rows, columns) = (shape.out_channels, 9 * shape.in_channels);
        let len = rows * columns;
        // Any bytes are valid indices.
        let codes: Vec<u8> = (0..len * bits / 8 + 1).map(|index| ((index * 7919) >> 3) as u8).collect();
        let table = random(8, 1 << bits);
        let grid = BlockGrid { columns, block: [rows, columns] };
        let encoded = Encoded::new(&codes, bits, len, (&table, grid), Scaling::None);
        let encoded = WeightSlice::Encoded(encoded);
        let mut values = vec![0.0; len];
        encoded.widen(&mut values);
        for format in [Format::F32, Format::of(Precision::Bf16)] {
            let dense = PackedFilters::new(&shape, WeightSlice::F32(&values), format);
            if *PackedFilters::new(&shape, encoded, format).words != *dense.words {
                return Err(format!("{format:?}"));
            }
        }
        Ok(())
    });
}
