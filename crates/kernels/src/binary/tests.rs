use super::*;
use crate::strided::{broadcast_strides, contiguous_strides};
use crate::testing::{Tolerance, check, check_cases, random};

type Oracle = fn(f64, f64) -> f64;

const OPS: &[(BinaryOp, Oracle)] = &[
    (BinaryOp::Add, |x, y| x + y),
    (BinaryOp::Sub, |x, y| x - y),
    (BinaryOp::Mul, |x, y| x * y),
    (BinaryOp::Div, |x, y| x / y),
    (BinaryOp::FloorDiv, |x, y| (x as f32 / y as f32).floor().into()),
    (BinaryOp::Mod, |x, y| x - (x / y).floor() * y),
    (BinaryOp::Pow, f64::powf),
    (BinaryOp::Maximum, f64::max),
    (BinaryOp::Minimum, f64::min),
];

const SHAPES: &[(&[usize], &[usize], &[usize])] = &[
    (&[1], &[1], &[1]),
    (&[17], &[17], &[17]),
    (&[4, 5], &[5], &[4, 5]),
    (&[4, 5], &[4, 1], &[4, 5]),
    (&[2, 3, 7, 9], &[1, 3, 1, 1], &[2, 3, 7, 9]),
    (&[1, 3, 1, 1], &[2, 3, 7, 9], &[2, 3, 7, 9]),
    (&[], &[3, 16], &[3, 16]),
    (&[2, 1, 4, 1, 6], &[1, 3, 1, 5, 1], &[2, 3, 4, 5, 6]),
    (&[2, 320, 1, 1], &[2, 320, 16, 16], &[2, 320, 16, 16]),
    (&[40_001], &[], &[40_001]),
    (&[0, 3], &[3], &[0, 3]),
];

fn strides(shape: &[usize], out: &[usize]) -> Vec<usize> {
    broadcast_strides(shape, out).expect("broadcastable")[..out.len()].to_vec()
}

/// The operand's element at a position of the output.
fn at(data: &[f32], strides: &[usize], shape: &[usize], mut position: usize) -> f64 {
    let mut offset = 0;
    for (len, stride) in shape.iter().zip(strides).rev() {
        offset += position % len * stride;
        position /= len;
    }
    data[offset].into()
}

#[test]
fn every_function_and_broadcast() {
    let mut cases = Vec::new();
    for &(op, oracle) in OPS {
        cases.extend(SHAPES.iter().map(|shapes| (op, oracle, *shapes)));
    }
    check_cases(&cases, |&(op, oracle, (x_shape, y_shape, shape))| {
        // Positive, and away from each other's multiples, so that powers and quotients are well conditioned.
        let values = |seed, shape: &[usize]| -> Vec<f32> {
            random(seed, shape.iter().product()).into_iter().map(|x| x + 1.25).collect()
        };
        let (x, y) = (values(1, x_shape), values(2, y_shape));
        let (x_strides, y_strides) = (strides(x_shape, shape), strides(y_shape, shape));
        let expected: Vec<f64> = (0..shape.iter().product())
            .map(|position| oracle(at(&x, &x_strides, shape, position), at(&y, &y_strides, shape, position)))
            .collect();
        check(&expected, Tolerance::OfLargest(1.5e-7), |out| {
            let x = Strided { data: &x, strides: &x_strides };
            let y = Strided { data: &y, strides: &y_strides };
            binary(op, x, y, shape, out);
        })
    });
}

#[test]
fn strided_operands_and_in_place() {
    let shape = [3, 5, 7];
    let data = random(1, 2 * 105);
    let transposed = [1, 3, 15];
    let gapped = [70, 14, 2];
    let y = random(2, 105);
    check_cases(&[transposed, gapped], |strides| {
        let own = contiguous_strides(&shape);
        let expected: Vec<f64> =
            (0..105).map(|position| at(&data, strides, &shape, position) - f64::from(y[position])).collect();
        check(&expected, Tolerance::OfLargest(1e-7), |out| {
            let x = Strided { data: &data, strides };
            binary(BinaryOp::Sub, x, Strided { data: &y, strides: &own[..3] }, &shape, out);
        })
    });
    check_cases(OPS, |&(op, oracle)| {
        let x: Vec<f32> = random(3, 33_001).into_iter().map(|x| x + 1.25).collect();
        let y: Vec<f32> = random(4, 33_001).into_iter().map(|x| x + 1.25).collect();
        let expected: Vec<f64> =
            x.iter().zip(&y).map(|(x, y)| oracle(f64::from(*x), f64::from(*y))).collect();
        check(&expected, Tolerance::OfLargest(1.5e-7), |out| {
            out.copy_from_slice(&x);
            binary_in_place(op, out, &y);
        })
    });
}

#[test]
fn signs_and_nan() {
    let cases = [
        (BinaryOp::FloorDiv, -7.0, 2.0, -4.0),
        (BinaryOp::Mod, -7.0, 3.0, 2.0),
        (BinaryOp::Mod, 7.0, -3.0, -2.0),
        (BinaryOp::Mod, 6.0, 3.0, 0.0),
        (BinaryOp::Pow, -3.0, 2.0, 9.0),
        (BinaryOp::Pow, 2.0, -1.0, 0.5),
        (BinaryOp::Div, 1.0, 0.0, f32::INFINITY),
    ];
    check_cases(&cases, |&(op, x, y, expected)| {
        let mut acc = [x];
        binary_in_place(op, &mut acc, &[y]);
        if acc[0] == expected { Ok(()) } else { Err(format!("{acc:?}")) }
    });
    check_cases(OPS, |&(op, _)| {
        let mut acc = [f32::NAN, 1.0];
        binary_in_place(op, &mut acc, &[1.0, f32::NAN]);
        let one_to_any_power = op == BinaryOp::Pow;
        if acc[0].is_nan() && (acc[1].is_nan() || one_to_any_power) {
            Ok(())
        } else {
            Err(format!("{acc:?}"))
        }
    });
}

#[test]
fn select_broadcasts() {
    let condition = [true, false, true];
    let (x, y) = (random(1, 6), random(2, 1));
    let expected: Vec<f64> =
        (0..6).map(|index| f64::from(if condition[index % 3] { x[index] } else { y[0] })).collect();
    check_cases(&[()], |()| {
        check(&expected, Tolerance::OfEach(0.0), |out| {
            let condition = Strided { data: &condition[..], strides: &[0, 1] };
            let x = Strided { data: &x[..], strides: &[3, 1] };
            select(condition, x, Strided { data: &y[..], strides: &[0, 0] }, &[2, 3], out);
        })
    });
}
