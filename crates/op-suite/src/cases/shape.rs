//! Rearranging, joining and splitting.

use mixbit_mil::{DType, Literal};

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = joins();
    cases.extend(slices());
    cases.extend(splits());
    cases.extend(renamings());
    cases.extend(permutations());
    cases.extend(pixel_shuffles());
    cases
}

fn pixel_shuffles() -> Vec<Case> {
    let shuffled =
        |shape: &[usize], factor: i32| case("pixel_shuffle").input("x", shape).arg("upscale_factor", factor);
    let mut cases = vec![
        shuffled(&[1, 4, 3, 5], 2),
        shuffled(&[2, 18, 1, 2], 3),
        shuffled(&[3, 5, 2, 2], 1),
        shuffled(&[1, 4, 0, 5], 2),
    ];
    // As torch.nn.functional.pixel_shuffle orders them.
    let values = (0..8).map(|value| value as f32).collect();
    cases.push(
        case("pixel_shuffle")
            .input_of("x", &[1, 4, 1, 2], values)
            .arg("upscale_factor", 2)
            .expect(&[&[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]]),
    );
    cases
}

fn joins() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[3][..], &[2, 5], &[2, 1, 7], &[1, 4, 3, 2], &[2, 1, 3, 1, 2]] {
        for axis in -(shape.len() as i32)..shape.len() as i32 {
            let at = axis.rem_euclid(shape.len() as i32) as usize;
            let mut joined = case("concat");
            for extent in [shape[at], 1, 4, 0, 9] {
                let mut part = shape.to_vec();
                part[at] = extent;
                joined = joined.input("values", &part);
            }
            cases.push(joined.arg("axis", axis));
        }
        for axis in -(shape.len() as i32) - 1..=shape.len() as i32 {
            cases.push(
                case("stack")
                    .input("values", shape)
                    .input("values", shape)
                    .input("values", shape)
                    .arg("axis", axis),
            );
        }
    }
    cases.push(case("concat").input("values", &[2, 3]).arg("axis", 0));
    cases.push(case("concat").input("values", &[2, 3]).input("values", &[2, 3]).constant().arg("axis", 1));
    cases.push(case("concat").input("values", &[2, 3]).again("values").arg("axis", 1));
    let many = (0..33).fold(case("concat"), |many, _| many.input("values", &[2, 3]));
    cases.push(many.arg("axis", 1));
    for op in ["concat", "stack"] {
        cases.push(
            case(op)
                .ints("values", DType::I32, &[2], &[1, 2])
                .ints("values", DType::I32, &[2], &[3, 4])
                .arg("axis", 0)
                .expect(&[&[1.0, 2.0, 3.0, 4.0]]),
        );
    }
    cases
}

fn slices() -> Vec<Case> {
    let by_index = |shape: &[usize], begin: &[i32], end: &[i32]| {
        case("slice_by_index").input("x", shape).arg("begin", begin.to_vec()).arg("end", end.to_vec())
    };
    let mut cases = vec![
        by_index(&[7], &[2], &[5]),
        by_index(&[7], &[-5], &[-1]),
        by_index(&[7], &[0], &[100]),
        by_index(&[7], &[5], &[2]),
        by_index(&[7], &[6], &[0]).arg("stride", [-1]),
        by_index(&[7], &[0], &[0]).arg("stride", [-2]).arg("begin_mask", [true]).arg("end_mask", [true]),
        by_index(&[7], &[-2], &[-7]).arg("stride", [-3]),
        by_index(&[5, 6], &[1, 2], &[4, 6]).arg("stride", [2, 3]),
        by_index(&[5, 6], &[1, 2], &[0, 6]).arg("end_mask", [true, false]),
        by_index(&[5, 6], &[3, 2], &[4, 6]).arg("begin_mask", [true, false]),
        by_index(&[5, 6], &[-1, 2], &[0, 6]).arg("squeeze_mask", [true, false]),
        by_index(&[5, 6], &[2, 3], &[3, 4]).arg("squeeze_mask", [true, true]),
        by_index(&[2, 3, 4], &[0, 0, 1], &[2, 3, 4]),
        by_index(&[2, 3, 4, 5], &[0, 1, 0, -1], &[2, 3, 4, 0])
            .arg("stride", [1, 1, 2, -2])
            .arg("end_mask", [false, false, false, true]),
        by_index(&[2, 3, 2, 3, 4], &[0, 0, 1, 0, 0], &[2, 3, 2, 3, 4]).arg("stride", [1, 2, 1, 1, 3]),
        case("slice_by_index")
            .ints("x", DType::I32, &[2, 3], &[1, 2, 3, 4, 5, 6])
            .arg("begin", [1, 0])
            .arg("end", [2, 3])
            .arg("squeeze_mask", [true, false])
            .expect(&[&[4.0, 5.0, 6.0]]),
    ];
    for (shape, begin, size) in [
        (&[7][..], &[2][..], &[3][..]),
        (&[7], &[-3], &[2]),
        (&[5, 6], &[1, 0], &[-1, 4]),
        (&[2, 3, 4], &[0, -1, 2], &[2, 1, -1]),
        (&[2, 3, 4, 5], &[1, 0, 0, 4], &[1, 3, 0, 1]),
    ] {
        cases.push(
            case("slice_by_size").input("x", shape).arg("begin", begin.to_vec()).arg("size", size.to_vec()),
        );
    }
    cases
}

fn splits() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[6][..], &[2, 6], &[6, 5], &[2, 6, 3], &[1, 2, 6, 5], &[2, 6, 1, 3, 2]] {
        for axis in (0..shape.len()).filter(|&axis| shape[axis] == 6) {
            for axis in [axis as i32, axis as i32 - shape.len() as i32] {
                cases.push(case("split").input("x", shape).arg("num_splits", 3).arg("axis", axis));
                cases.push(case("split").input("x", shape).arg("split_sizes", [1, 5]).arg("axis", axis));
                cases
                    .push(case("split").input("x", shape).arg("split_sizes", [2, 0, 3, 1]).arg("axis", axis));
            }
        }
    }
    cases.push(
        case("split")
            .ints("x", DType::I32, &[2, 2], &[1, 2, 3, 4])
            .arg("num_splits", 2)
            .arg("axis", 1)
            .expect(&[&[1.0, 3.0], &[2.0, 4.0]]),
    );
    cases
}

fn renamings() -> Vec<Case> {
    let reshape =
        |shape: &[usize], wanted: &[i32]| case("reshape").input("x", shape).arg("shape", wanted.to_vec());
    let mut cases = vec![
        reshape(&[6], &[2, 3]),
        reshape(&[2, 3, 4], &[-1]),
        reshape(&[2, 3, 4], &[0, -1, 1]),
        reshape(&[2, 3, 4], &[4, 0, 2]),
        reshape(&[2, 1, 3, 1, 2], &[1, 12, 1]),
        reshape(&[1], &[]),
        case("squeeze").input("x", &[1, 3, 1, 2]),
        case("squeeze").input("x", &[1, 3, 1, 2]).arg("axes", [-2]),
        case("squeeze").input("x", &[1, 1]),
        case("expand_dims").input("x", &[3, 2]).arg("axes", [0, -1]),
        case("expand_dims").input("x", &[3]).arg("axes", [1, 2, 0, 4]),
        case("expand_dims").input("x", &[]).arg("axes", [0]),
        case("expand_dims").ints("x", DType::I32, &[2], &[1, 2]).arg("axes", [1]),
        case("fill").arg("shape", [2, 3]).arg("value", 1.5).expect(&[&[1.5; 6]]),
        case("fill").arg("shape", [4]).arg("value", -7).expect(&[&[-7.0; 4]]),
        case("fill").arg("shape", [2]).arg("value", true).expect(&[&[1.0; 2]]),
        case("fill").arg("shape", [3]).expect(&[&[0.0; 3]]),
        case("fill").arg("shape", [3, 0]).expect(&[&[]]),
    ];
    let half = Literal::float(DType::F16, 0.25).expect("a float");
    cases.push(case("fill").arg("shape", [2]).arg("value", half).expect(&[&[0.25; 2]]));
    for (shape, reps) in [
        (&[3][..], &[4][..]),
        (&[2, 3], &[1, 5]),
        (&[2, 3], &[3, 2]),
        (&[2, 1, 4], &[2, 3, 1]),
        (&[1, 2, 3, 1], &[2, 1, 2, 3]),
        (&[2, 1, 2, 1, 2], &[1, 2, 2, 1, 2]),
    ] {
        cases.push(case("tile").input("x", shape).arg("reps", reps.to_vec()));
    }
    cases.push(
        case("tile").ints("x", DType::Bool, &[2], &[1, 0]).arg("reps", [2]).expect(&[&[1.0, 0.0, 1.0, 0.0]]),
    );
    cases
}

/// Every permutation of up to four axes, by Heap's algorithm, and some of five.
fn permutations() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[5][..], &[3, 17], &[2, 3, 5], &[2, 3, 4, 5]] {
        let mut axes: Vec<i32> = (0..shape.len() as i32).collect();
        let mut counters = vec![0; axes.len()];
        let mut push = |axes: &[i32]| {
            cases.push(case("transpose").input("x", shape).arg("perm", axes.to_vec()));
        };
        push(&axes);
        let mut level = 1;
        while level < axes.len() {
            if counters[level] < level {
                axes.swap(if level % 2 == 0 { 0 } else { counters[level] }, level);
                push(&axes);
                counters[level] += 1;
                level = 1;
            } else {
                counters[level] = 0;
                level += 1;
            }
        }
    }
    for perm in [[4, 3, 2, 1, 0], [0, 2, 4, 1, 3], [0, -1, 1, -3, 3]] {
        cases.push(case("transpose").input("x", &[2, 3, 1, 4, 5]).arg("perm", perm));
    }
    cases.push(case("transpose").input("x", &[16, 40, 33]).arg("perm", [0, 2, 1]));
    cases.push(
        case("transpose")
            .ints("x", DType::I32, &[2, 2], &[1, 2, 3, 4])
            .arg("perm", [1, 0])
            .expect(&[&[1.0, 3.0, 2.0, 4.0]]),
    );
    cases
}
