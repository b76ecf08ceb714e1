use half::{bf16, f16};

use super::*;
use crate::gemm::epilogue::Bias;
use crate::matrix::Mat;
use crate::testing::{Tolerance, check, check_cases, random};
use crate::unary::UnaryOp;

pub(crate) const BASE: ConvShape = ConvShape {
    batch: 1,
    in_channels: 3,
    in_size: [7, 9],
    out_channels: 5,
    kernel: [3, 3],
    stride: [1, 1],
    dilation: [1, 1],
    padding: Padding { top: 1, bottom: 1, left: 1, right: 1 },
    groups: 1,
};

fn shapes() -> Vec<ConvShape> {
    let uneven = Padding { top: 0, bottom: 1, left: 0, right: 1 };
    vec![
        BASE,
        ConvShape { batch: 2, in_size: [8, 8], out_channels: 16, in_channels: 16, ..BASE },
        ConvShape { kernel: [1, 1], padding: Padding::default(), batch: 2, ..BASE },
        ConvShape { kernel: [1, 1], stride: [2, 2], padding: Padding::default(), ..BASE },
        ConvShape { kernel: [1, 1], padding: Padding::same(2), ..BASE },
        ConvShape { stride: [2, 2], ..BASE },
        ConvShape { stride: [2, 2], padding: uneven, in_size: [8, 10], ..BASE },
        ConvShape { stride: [1, 3], dilation: [2, 1], in_size: [11, 13], ..BASE },
        ConvShape { padding: Padding { top: 2, bottom: 0, left: 3, right: 5 }, ..BASE },
        ConvShape { kernel: [4, 4], stride: [4, 4], in_size: [16, 12], padding: Padding::default(), ..BASE },
        ConvShape { kernel: [1, 3], padding: Padding { top: 0, bottom: 0, left: 1, right: 1 }, ..BASE },
        ConvShape { in_channels: 6, out_channels: 4, groups: 2, batch: 2, ..BASE },
        ConvShape { in_channels: 5, out_channels: 5, groups: 5, ..BASE },
        ConvShape { in_size: [1, 1], ..BASE },
        ConvShape { in_size: [1, 40], ..BASE },
        ConvShape { in_size: [40, 1], stride: [2, 2], ..BASE },
        ConvShape { in_size: [2, 2], kernel: [5, 5], padding: Padding::same(2), ..BASE },
        ConvShape { in_size: [2, 2], kernel: [5, 5], padding: Padding::same(1), ..BASE },
        ConvShape { dilation: [3, 3], padding: Padding::same(3), ..BASE },
        ConvShape { in_channels: 40, out_channels: 33, in_size: [33, 31], ..BASE },
        ConvShape { in_channels: 0, ..BASE },
    ]
}

pub(crate) fn oracle(shape: &ConvShape, input: &[f32], weight: &[f32]) -> Vec<f64> {
    let [out_h, out_w] = shape.out_size();
    let [in_h, in_w] = shape.in_size;
    let (per_group, out_per_group) = (shape.in_channels / shape.groups, shape.out_channels / shape.groups);
    let mut out = Vec::new();
    for image in 0..shape.batch {
        for o in 0..shape.out_channels {
            for y in 0..out_h {
                for x in 0..out_w {
                    let mut sum = 0.0;
                    for c in 0..per_group {
                        for ky in 0..shape.kernel[0] {
                            for kx in 0..shape.kernel[1] {
                                let iy = (y * shape.stride[0] + ky * shape.dilation[0]) as isize
                                    - shape.padding.top as isize;
                                let ix = (x * shape.stride[1] + kx * shape.dilation[1]) as isize
                                    - shape.padding.left as isize;
                                if iy < 0 || ix < 0 || iy >= in_h as isize || ix >= in_w as isize {
                                    continue;
                                }
                                let channel = o / out_per_group * per_group + c;
                                let at = ((image * shape.in_channels + channel) * in_h + iy as usize) * in_w;
                                let w = ((o * per_group + c) * shape.kernel[0] + ky) * shape.kernel[1] + kx;
                                sum += f64::from(input[at + ix as usize]) * f64::from(weight[w]);
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

const TOLERANCE: Tolerance = Tolerance::OfLargest(2e-6);

#[test]
fn every_window() {
    check_cases(&shapes(), |shape| {
        let input = random(1, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
        let weight = random(2, shape.out_channels * shape.depth());
        check(&oracle(shape, &input, &weight), TOLERANCE, |out| {
            let weight = ConvWeight::Stored(WeightSlice::F32(&weight));
            conv2d(shape, &input, weight, Precision::F32, &Epilogue::default(), out);
        })
    });
}

/// In bfloat16, values that bfloat16 holds are exact; in int8, the error is that of the quantization.
#[test]
fn every_precision() {
    check_cases(&shapes(), |shape| {
        let narrow =
            |values: Vec<f32>| values.into_iter().map(|x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
        let input = narrow(random(1, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]));
        let weight = narrow(random(2, shape.out_channels * shape.depth()));
        let expected = oracle(shape, &input, &weight);
        for (precision, tolerance) in [(Precision::Bf16, 4e-6), (Precision::Int8, 3e-2)] {
            let run = |weight: Groups<'_>, out: &mut [f32]| {
                direct(shape, &input, weight, precision, &Epilogue::default(), out);
            };
            let weight = WeightSlice::F32(&weight);
            check(&expected, Tolerance::OfLargest(tolerance), |out| {
                if !out.is_empty() {
                    run(Groups::Stored(weight), out);
                }
            })?;
            check(&expected, Tolerance::OfLargest(tolerance), |out| {
                if !out.is_empty() {
                    run(Groups::Packed(&pack_groups(shape, weight, precision)), out);
                }
            })?;
        }
        Ok(())
    });
}

#[test]
fn packed_and_half_weights_with_an_epilogue() {
    check_cases(&shapes(), |shape| {
        let input = random(3, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
        let halves: Vec<f16> =
            random(4, shape.out_channels * shape.depth()).into_iter().map(f16::from_f32).collect();
        let weight: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        let residual = random(6, shape.out_len());
        let pixels = shape.out_size().iter().product::<usize>().max(1);
        // The same bias for all images, and one for each.
        for bias_images in [1, shape.batch] {
            let bias = random(5, bias_images * shape.out_channels);
            let mut expected = oracle(shape, &input, &weight);
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
            check(&expected, TOLERANCE, |out| {
                let packed = pack_conv_weight(shape, WeightSlice::F16(&halves), Precision::F32);
                conv2d(shape, &input, ConvWeight::Packed(&packed), Precision::F32, &epilogue, out);
            })?;
            check(&expected, TOLERANCE, |out| {
                let weight = ConvWeight::Stored(WeightSlice::F16(&halves));
                conv2d(shape, &input, weight, Precision::F32, &epilogue, out);
            })?;
        }
        Ok(())
    });
}

#[test]
fn gates_multiply_values() {
    let shapes: Vec<_> = shapes().into_iter().filter(|shape| shape.groups == 1).collect();
    check_cases(&shapes, |shape| {
        // The shape's output channels are values; there are as many gates.
        let whole = ConvShape { out_channels: 2 * shape.out_channels, ..*shape };
        let input = random(3, shape.batch * shape.in_channels * shape.in_size[0] * shape.in_size[1]);
        let weight = random(4, whole.out_channels * whole.depth());
        let bias = random(5, whole.out_channels);
        let image_len = shape.out_len() / shape.batch.max(1);
        let pixels = shape.out_size().iter().product::<usize>().max(1);
        let mut sums = oracle(&whole, &input, &weight);
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum += f64::from(bias[index / pixels % bias.len()]);
        }
        let images = sums.chunks_exact((2 * image_len).max(1)).map(|image| image.split_at(image_len));
        let gated = images.flat_map(|(values, gates)| values.iter().zip(gates));
        let expected: Vec<f64> = gated.map(|(value, gate)| value * gate / (1.0 + (-gate).exp())).collect();
        let epilogue =
            Epilogue { bias: Bias::PerRow(&bias), gate: Some(UnaryOp::Silu), ..Epilogue::default() };
        check(&expected, TOLERANCE, |out| {
            let weight = ConvWeight::Stored(WeightSlice::F32(&weight));
            conv2d(&whole, &input, weight, Precision::F32, &epilogue, out);
        })?;
        check(&expected, TOLERANCE, |out| {
            let packed = pack_gated_conv_weight(&whole, WeightSlice::F32(&weight), Precision::F32);
            let weight = ConvWeight::Packed(&packed);
            conv2d(&whole, &input, weight, Precision::F32, &epilogue, out);
        })
    });
}

#[test]
fn windows_that_do_not_fit_give_no_output() {
    let shape = ConvShape { in_size: [2, 9], padding: Padding::default(), ..BASE };
    assert_eq!(shape.out_size(), [0, 7]);
    assert_eq!(shape.out_len(), 0);
}
