//! Gathering by index.

use mixbit_mil::DType;

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[5][..], &[7, 3], &[3, 4, 5], &[2, 3, 2, 3], &[2, 2, 3, 2, 2]] {
        for axis in -(shape.len() as i32)..shape.len() as i32 {
            let extent = shape[axis.rem_euclid(shape.len() as i32) as usize] as i32;
            let (last, first) = (extent - 1, -extent);
            for (indices_shape, indices) in
                [(&[][..], vec![last]), (&[3], vec![0, first, last]), (&[2, 2], vec![-1, 0, last, 0])]
            {
                for constant in [false, true] {
                    let gather = case("gather").input("x", shape);
                    let gather = if constant { gather.constant() } else { gather };
                    cases.push(gather.ints("indices", DType::I32, indices_shape, &indices).arg("axis", axis));
                }
            }
        }
    }
    // An embedding table stays as stored; tokens of several integer types.
    for stored in [DType::F16, DType::BF16] {
        cases.push(case("gather").input("x", &[11, 6]).stored(stored).ints(
            "indices",
            DType::I32,
            &[2, 5],
            &[0, 10, 3, 3, 7, 1, 2, 9, 8, 4],
        ));
    }
    for dtype in [DType::I8, DType::U8, DType::I16, DType::U16] {
        cases.push(case("gather").input("x", &[11, 6]).ints("indices", dtype, &[3], &[0, 10, 3]));
    }
    cases.push(
        case("gather")
            .ints("x", DType::I32, &[2, 3], &[1, 2, 3, 4, 5, 6])
            .ints("indices", DType::I32, &[2], &[-1, 0])
            .arg("axis", 1)
            .expect(&[&[3.0, 1.0, 6.0, 4.0]]),
    );
    cases.push(case("gather").input("x", &[3, 2]).ints("indices", DType::I32, &[0], &[]));
    for (shape, indices_shape, indices) in [
        (&[5][..], &[1][..], vec![4]),
        (&[3, 4], &[3, 1], vec![0, -1, 1]),
        (&[3, 4], &[2, 2], vec![0, 3, -1, -4]),
        (&[2, 3, 4], &[1, 2, 2], vec![1, 2, 0, 0]),
        (&[2, 3, 2, 2], &[2, 3], vec![1, 2, 1, 0, -3, 0]),
    ] {
        cases.push(case("gather_nd").input("x", shape).ints("indices", DType::I32, indices_shape, &indices));
    }
    cases.push(
        case("gather_nd")
            .ints("x", DType::I32, &[2, 2], &[1, 2, 3, 4])
            .ints("indices", DType::I32, &[2, 2], &[0, 1, 1, 0])
            .expect(&[&[2.0, 3.0]]),
    );
    cases
}
