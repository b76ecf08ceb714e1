//! Sizes from which kernels share their work among threads and walk over blocks.

use mixbit_mil::DType;

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let attention = |queries: usize, keys: usize| {
        case("scaled_dot_product_attention")
            .ios18()
            .input("query", &[2, queries, 40])
            .input("key", &[2, keys, 40])
            .input("value", &[2, keys, 40])
    };
    let einsum = |equation, x: &[usize], y: &[usize]| {
        case("einsum").input("values", x).input("values", y).arg("equation", equation)
    };
    vec![
        case("add").input("x", &[41, 1000]).input("y", &[1000]),
        case("mul").input("x", &[2, 37, 600]).input("y", &[2, 37, 1]),
        case("silu").input_in("x", &[3, 11_003], -9.0..9.0),
        case("gelu").input_in("x", &[3, 11_003], -9.0..9.0),
        case("softmax").input_in("x", &[131, 700], -9.0..9.0),
        case("softmax").input_in("x", &[2, 300, 90], -9.0..9.0).arg("axis", 1),
        case("layer_norm").input("x", &[211, 320]).arg("axes", [-1]),
        case("layer_norm").input("x", &[1, 320, 211]).arg("axes", [1]),
        case("instance_norm").input("x", &[2, 9, 60, 41]),
        case("reduce_mean").input("x", &[97, 513]).arg("axes", [1]),
        case("reduce_sum").input_in("x", &[97, 513], 0.0..1.0).arg("axes", [0]),
        case("reduce_max").input("x", &[3, 20_011]).arg("axes", [1]),
        case("transpose").input("x", &[2, 77, 8, 40]).arg("perm", [0, 2, 1, 3]),
        case("concat").input("values", &[2, 100, 99]).input("values", &[2, 71, 99]).arg("axis", 1),
        case("upsample_nearest_neighbor")
            .input("x", &[1, 7, 31, 33])
            .arg("scale_factor_height", 2)
            .arg("scale_factor_width", 2),
        case("resize_nearest_neighbor")
            .input("x", &[1, 7, 31, 33])
            .arg("target_size_height", 77)
            .arg("target_size_width", 50),
        case("matmul").input("x", &[2, 130, 401]).input("y", &[2, 401, 77]),
        case("linear")
            .input("x", &[1, 300, 320])
            .input_in("weight", &[200, 320], -0.2..0.2)
            .stored(DType::F16),
        case("conv")
            .input("x", &[1, 40, 24, 25])
            .input_in("weight", &[33, 40, 3, 3], -0.2..0.2)
            .stored(DType::F16)
            .arg("pad_type", "same"),
        case("conv").input("x", &[2, 320, 11, 13]).input_in("weight", &[65, 320, 1, 1], -0.2..0.2).constant(),
        attention(350, 350),
        attention(350, 350).input("attn_mask", &[350, 350]),
        attention(70, 77),
        einsum("bchq,bkhc->bkhq", &[1, 40, 1, 300], &[1, 250, 1, 40]),
        einsum("bkhq,bchk->bchq", &[1, 250, 1, 300], &[1, 40, 1, 250]),
    ]
}
