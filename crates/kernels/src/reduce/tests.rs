use super::*;
use crate::testing::{Tolerance, check, check_cases, random};

fn shapes() -> Vec<AxisShape> {
    let mut shapes = Vec::new();
    for outer in [1, 3] {
        for axis in [1, 2, 31, 32, 33, 2000] {
            for inner in [1, 2, 63, 64, 65, 130] {
                shapes.push(AxisShape { outer, axis, inner });
            }
        }
    }
    shapes
}

/// The elements that reduce to one output.
fn lane(shape: &AxisShape, input: &[f32], place: usize) -> Vec<f64> {
    let (outer, inner) = (place / shape.inner, place % shape.inner);
    (0..shape.axis).map(|axis| input[(outer * shape.axis + axis) * shape.inner + inner].into()).collect()
}

#[test]
fn every_axis_and_function() {
    let mut cases = Vec::new();
    for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min] {
        cases.extend(shapes().into_iter().map(|shape| (op, shape)));
    }
    check_cases(&cases, |&(op, shape)| {
        let input: Vec<f32> = random(1, shape.element_count()).into_iter().map(|x| x + 0.5).collect();
        let expected: Vec<f64> = (0..shape.outer * shape.inner)
            .map(|place| {
                let lane = lane(&shape, &input, place);
                match op {
                    ReduceOp::Sum => lane.iter().sum(),
                    ReduceOp::Mean => lane.iter().sum::<f64>() / lane.len() as f64,
                    ReduceOp::Max => lane.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    ReduceOp::Min => lane.iter().copied().fold(f64::INFINITY, f64::min),
                }
            })
            .collect();
        check(&expected, Tolerance::OfLargest(3e-7), |out| reduce(op, &shape, &input, out))
    });
}

#[test]
fn first_of_the_greatest() {
    check_cases(&shapes(), |shape| {
        // Few distinct values, so that there are ties.
        let input: Vec<f32> =
            random(1, shape.element_count()).into_iter().map(|x| (x * 3.0).round()).collect();
        let mut out = vec![usize::MAX; shape.outer * shape.inner];
        argmax(shape, &input, &mut out);
        for (place, &found) in out.iter().enumerate() {
            let lane = lane(shape, &input, place);
            let max = lane.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let expected = lane.iter().position(|x| *x == max).expect("not empty");
            if found != expected {
                return Err(format!("output {place}: {found}, expected {expected}"));
            }
        }
        Ok(())
    });
}

#[test]
fn nan_and_empty_axes() {
    for op in [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min] {
        for inner in [1, 3] {
            for at in [0, 39] {
                let mut input = vec![1.0; 40 * inner];
                input[at * inner] = f32::NAN;
                let mut out = vec![0.0; inner];
                reduce(op, &AxisShape { outer: 1, axis: 40, inner }, &input, &mut out);
                assert!(out[0].is_nan() && out[1..].iter().all(|x| x.is_finite()), "{op:?}, {inner}, {at}");
            }
        }
    }
    let mut out = [7.0; 6];
    reduce(ReduceOp::Sum, &AxisShape { outer: 2, axis: 0, inner: 3 }, &[], &mut out);
    assert_eq!(out, [0.0; 6]);
    let mut place = [0];
    argmax(&AxisShape { outer: 1, axis: 3, inner: 1 }, &[1.0, f32::NAN, 5.0], &mut place);
    assert_eq!(place, [1]);
    argmax(&AxisShape { outer: 1, axis: 3, inner: 1 }, &[1, 9, 5], &mut place);
    assert_eq!(place, [1]);
}
