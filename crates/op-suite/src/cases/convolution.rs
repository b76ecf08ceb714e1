//! Convolution, padding and resizing.

use mixbit_mil::DType;

use crate::case::{Case, case};

/// x, weight without its channels per group, strides, dilations and groups.
struct Conv {
    x: [usize; 4],
    weight: [usize; 3],
    strides: [i32; 2],
    dilations: [i32; 2],
    groups: i32,
}

const fn conv(
    x: [usize; 4],
    weight: [usize; 3],
    strides: [i32; 2],
    dilations: [i32; 2],
    groups: i32,
) -> Conv {
    Conv { x, weight, strides, dilations, groups }
}

const CONVS: &[Conv] = &[
    conv([1, 1, 1, 1], [1, 1, 1], [1, 1], [1, 1], 1),
    conv([1, 3, 5, 7], [4, 3, 3], [1, 1], [1, 1], 1),
    conv([2, 5, 9, 11], [7, 3, 3], [2, 2], [1, 1], 1),
    conv([1, 4, 13, 8], [17, 1, 1], [1, 1], [1, 1], 1),
    conv([2, 17, 6, 6], [3, 1, 1], [2, 1], [1, 1], 1),
    conv([1, 2, 11, 12], [5, 3, 2], [1, 2], [2, 3], 1),
    conv([2, 6, 7, 5], [9, 3, 3], [1, 1], [1, 1], 3),
    conv([1, 5, 8, 9], [5, 3, 3], [1, 1], [2, 1], 5),
    conv([1, 4, 10, 9], [8, 5, 4], [3, 2], [1, 1], 2),
    conv([1, 1, 1, 31], [2, 1, 7], [1, 1], [1, 1], 1),
    conv([1, 33, 16, 16], [33, 3, 3], [1, 1], [1, 1], 1),
];

/// Shapes to pad, with what is added.
const PADS: &[(&[usize], &[i32])] = &[
    (&[5], &[2, 3]),
    (&[3, 4], &[0, 1]),
    (&[3, 4], &[1, 0, 0, 2]),
    (&[2, 3, 5], &[1, 2]),
    (&[1, 3, 7, 5], &[0, 1, 0, 1]),
    (&[2, 3, 4, 5], &[0, 0, 1, 1, 2, 0, 0, 3]),
    (&[1, 2, 1, 3, 2], &[1, 1, 2, 2]),
    (&[2, 2], &[]),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for conv in CONVS {
        let weight = [conv.weight[0], conv.x[1] / conv.groups as usize, conv.weight[1], conv.weight[2]];
        let with = |stored: DType, pad_type: &'static str| {
            case("conv")
                .input("x", &conv.x)
                .input_in("weight", &weight, -0.5..0.5)
                .stored(stored)
                .arg("strides", conv.strides)
                .arg("dilations", conv.dilations)
                .arg("groups", conv.groups)
                .arg("pad_type", pad_type)
        };
        for pad_type in ["same", "same_lower"] {
            cases.push(with(DType::F32, pad_type));
        }
        for pad in [[0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 2, 3]] {
            let spans = [0, 1].map(|axis| (weight[2 + axis] - 1) * conv.dilations[axis] as usize + 1);
            let fits =
                |axis: usize| conv.x[2 + axis] + (pad[2 * axis] + pad[2 * axis + 1]) as usize >= spans[axis];
            if fits(0) && fits(1) {
                cases.push(with(DType::F16, "custom").arg("pad", pad).input("bias", &[weight[0]]).constant());
            }
        }
        cases.push(with(DType::BF16, "same").input("bias", &[weight[0]]).constant());
    }
    // A weight that is computed, and defaults for everything else.
    cases.push(case("conv").input("x", &[1, 2, 4, 5]).input("weight", &[3, 2, 2, 2]));
    cases.push(
        case("conv").input("x", &[2, 2, 4, 5]).input("weight", &[3, 2, 2, 2]).input("bias", &[3]).constant(),
    );
    for (shape, pad) in PADS {
        cases.push(case("pad").input("x", shape).arg("pad", *pad));
        cases.push(case("pad").input("x", shape).arg("pad", *pad).arg("constant_val", -1.5));
    }
    for shape in [&[1, 1, 1][..], &[3, 5, 7], &[2, 3, 4, 6], &[1, 2, 3, 4, 5]] {
        for factors in [[1, 1], [2, 2], [3, 1], [1, 4]] {
            cases.push(
                case("upsample_nearest_neighbor")
                    .input("x", shape)
                    .arg("scale_factor_height", factors[0])
                    .arg("scale_factor_width", factors[1]),
            );
        }
        for size in [[1, 1], [2, 3], [7, 5], [8, 16], [13, 31]] {
            cases.push(
                case("resize_nearest_neighbor")
                    .input("x", shape)
                    .arg("target_size_height", size[0])
                    .arg("target_size_width", size[1]),
            );
        }
    }
    cases.push(
        case("upsample_nearest_neighbor")
            .input("x", &[1, 2, 3, 3])
            .arg("scale_factor_height", 2.0)
            .arg("scale_factor_width", 2.0),
    );
    cases
}
