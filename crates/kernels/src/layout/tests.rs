use super::*;
use crate::testing::{Tolerance, check, check_cases, random};

/// The coordinates of a position of a row-major walk.
fn coordinates(shape: &[usize], mut position: usize) -> Vec<usize> {
    let mut out = vec![0; shape.len()];
    for (place, len) in out.iter_mut().zip(shape).rev() {
        *place = position % len;
        position /= len;
    }
    out
}

/// The position of coordinates in a row-major tensor.
fn position(shape: &[usize], coordinates: &[usize]) -> usize {
    shape.iter().zip(coordinates).fold(0, |position, (len, at)| position * len + at)
}

/// Checks a movement against the source position of each output coordinate, `None` where it writes `fill`.
fn check_moved(
    input: &[f32],
    out_shape: &[usize],
    source: impl Fn(&[usize]) -> Option<usize>,
    fill: f32,
    kernel: impl Fn(&mut [f32]) + Sync,
) -> Result<(), String> {
    let expected: Vec<f64> = (0..out_shape.iter().product())
        .map(|index| source(&coordinates(out_shape, index)).map_or(fill, |at| input[at]).into())
        .collect();
    check(&expected, Tolerance::OfEach(0.0), kernel)
}

#[test]
fn permutations() {
    let cases: &[(&[usize], &[usize])] = &[
        (&[1], &[0]),
        (&[5, 7], &[1, 0]),
        (&[16, 17], &[1, 0]),
        (&[2, 33, 47], &[0, 2, 1]),
        (&[2, 33, 47], &[2, 0, 1]),
        (&[2, 33, 47], &[1, 2, 0]),
        (&[2, 64, 3, 40], &[0, 2, 1, 3]),
        (&[2, 3, 64, 40], &[0, 1, 3, 2]),
        (&[2, 3, 4, 5, 6], &[4, 2, 0, 3, 1]),
        (&[2, 2, 3, 2, 3, 4], &[0, 3, 5, 1, 4, 2]),
        (&[300, 200], &[1, 0]),
        (&[0, 4], &[1, 0]),
    ];
    check_cases(cases, |&(shape, axes)| {
        let input = random(1, shape.iter().product());
        let out_shape: Vec<usize> = axes.iter().map(|axis| shape[*axis]).collect();
        let source = |at: &[usize]| {
            let mut from = vec![0; shape.len()];
            for (axis, at) in axes.iter().zip(at) {
                from[*axis] = *at;
            }
            Some(position(shape, &from))
        };
        check_moved(&input, &out_shape, source, 0.0, |out| permute(&input, shape, axes, out))
    });
}

#[test]
fn slices() {
    // Shape, begin, step, output shape.
    let cases: &[[&[usize]; 4]] = &[
        [&[9], &[2], &[3], &[3]],
        [&[4, 10], &[1, 0], &[1, 1], &[2, 10]],
        [&[4, 10], &[0, 3], &[2, 2], &[2, 3]],
        [&[2, 3, 200, 100], &[0, 1, 7, 0], &[1, 1, 1, 1], &[2, 2, 150, 100]],
        [&[2, 3], &[0, 0], &[1, 1], &[0, 3]],
    ];
    check_cases(cases, |&[shape, begin, step, out_shape]| {
        let input = random(1, shape.iter().product());
        let source = |at: &[usize]| {
            let from: Vec<usize> = (0..at.len()).map(|axis| begin[axis] + at[axis] * step[axis]).collect();
            Some(position(shape, &from))
        };
        check_moved(&input, out_shape, source, 0.0, |out| slice(&input, shape, begin, step, out_shape, out))
    });
}

#[test]
fn tiles() {
    let cases: &[(&[usize], &[usize])] =
        &[(&[3], &[4]), (&[2, 3], &[2, 2]), (&[1, 5, 1], &[3, 1, 7]), (&[2, 3, 1, 4], &[2, 1, 3, 1])];
    check_cases(cases, |&(shape, repeats)| {
        let input = random(1, shape.iter().product());
        let out_shape: Vec<usize> = shape.iter().zip(repeats).map(|(len, repeat)| len * repeat).collect();
        let source = |at: &[usize]| {
            let from: Vec<usize> = at.iter().zip(shape).map(|(at, len)| at % len).collect();
            Some(position(shape, &from))
        };
        check_moved(&input, &out_shape, source, 0.0, |out| tile(&input, shape, repeats, out))
    });
}

#[test]
fn pads() {
    let cases: &[(&[usize], &[usize], &[usize])] = &[
        (&[3], &[1], &[2]),
        (&[2, 3, 4, 5], &[0, 0, 0, 0], &[0, 0, 1, 1]),
        (&[2, 3, 4, 5], &[1, 0, 2, 3], &[0, 2, 1, 0]),
        (&[1, 0, 2], &[0, 1, 0], &[0, 1, 0]),
        (&[3, 200, 100], &[0, 1, 1], &[0, 1, 1]),
    ];
    check_cases(cases, |&(shape, before, after)| {
        let input = random(1, shape.iter().product());
        let out_shape: Vec<usize> =
            (0..shape.len()).map(|axis| before[axis] + shape[axis] + after[axis]).collect();
        let source = |at: &[usize]| {
            let from: Option<Vec<usize>> = (0..at.len())
                .map(|axis| at[axis].checked_sub(before[axis]).filter(|from| *from < shape[axis]))
                .collect();
            from.map(|from| position(shape, &from))
        };
        check_moved(&input, &out_shape, source, 0.25, |out| pad(&input, shape, before, after, 0.25, out))
    });
}

#[test]
fn concatenations() {
    let cases: &[(usize, &[usize], usize)] =
        &[(1, &[3], 1), (2, &[3, 4], 5), (3, &[1, 0, 2], 1), (2, &[320, 640], 256), (1, &[2, 3], 200_000)];
    check_cases(cases, |&(outer, axes, inner)| {
        let total: usize = axes.iter().sum();
        let tensors: Vec<Vec<f32>> =
            axes.iter().enumerate().map(|(seed, axis)| random(seed as u64, outer * axis * inner)).collect();
        let all: Vec<f32> = tensors.concat();
        let source = |at: &[usize]| {
            let (mut base, mut index) = (0, at[1]);
            for axis in axes {
                if index < *axis {
                    return Some(base + (at[0] * axis + index) * inner + at[2]);
                }
                index -= axis;
                base += outer * axis * inner;
            }
            None
        };
        let inputs: Vec<ConcatInput<'_, f32>> =
            tensors.iter().zip(axes).map(|(data, axis)| ConcatInput { data, axis: *axis }).collect();
        check_moved(&all, &[outer, total, inner], source, 0.0, |out| concat(&inputs, outer, inner, out))
    });
}

#[test]
fn upsampling() {
    let cases = [
        (1, [1, 1], [2, 2]),
        (3, [5, 7], [2, 2]),
        (2, [4, 3], [3, 1]),
        (2, [4, 3], [1, 4]),
        (64, [33, 35], [2, 2]),
    ];
    check_cases(&cases, |&(planes, size, scale)| {
        let input = random(1, planes * size[0] * size[1]);
        let out_shape = [planes, size[0] * scale[0], size[1] * scale[1]];
        let source = |at: &[usize]| Some((at[0] * size[0] + at[1] / scale[0]) * size[1] + at[2] / scale[1]);
        check_moved(&input, &out_shape, source, 0.0, |out| upsample_nearest(&input, planes, size, scale, out))
    });
}

#[test]
fn gathering() {
    check_cases(&[(5, 1), (7, 33), (100, 768)], |&(rows, width)| {
        let table = random(1, rows * width);
        let indices = [rows - 1, 0, rows / 2, 0];
        let source = |at: &[usize]| Some(indices[at[0]] * width + at[1]);
        check_moved(&table, &[4, width], source, 0.0, |out| gather_rows(&table, width, &indices, out))?;
        let halves: Vec<half::f16> = table.iter().map(|x| half::f16::from_f32(*x)).collect();
        let widened: Vec<f32> = halves.iter().map(|x| x.to_f32()).collect();
        check_moved(&widened, &[4, width], source, 0.0, |out| {
            gather_weight_rows(crate::WeightSlice::F16(&halves), width, &indices, out);
        })
    });
}

#[test]
#[should_panic(expected = "exceed the length")]
fn slices_beyond_the_tensor_are_refused() {
    slice(&[0.0; 6], &[6], &[2], &[2], &[3], &mut [0.0; 3]);
}
