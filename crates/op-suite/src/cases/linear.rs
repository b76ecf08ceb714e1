//! Matrix products, einsum and attention.

use mixbit_mil::DType;

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = linears();
    cases.extend(matmuls());
    cases.extend(einsums());
    cases.extend(attentions());
    cases
}

fn linears() -> Vec<Case> {
    let mut cases = Vec::new();
    for (x, out) in
        [(&[1][..], 1), (&[5], 3), (&[1, 17], 9), (&[7, 33], 16), (&[2, 77, 12], 31), (&[2, 3, 1, 2, 8], 5)]
    {
        let weight = [out, x[x.len() - 1]];
        for stored in [DType::F32, DType::F16, DType::BF16] {
            let plain = case("linear").input("x", x).input_in("weight", &weight, -0.5..0.5).stored(stored);
            cases.push(plain.clone());
            cases.push(plain.input("bias", &[out]).constant());
        }
    }
    cases.push(case("linear").input("x", &[3, 4]).input("weight", &[2, 4]));
    cases.push(case("linear").input("x", &[0, 4]).input("weight", &[2, 4]).constant());
    let empty = case("linear").input("x", &[3, 0]).input("weight", &[2, 0]).constant();
    cases.push(empty.clone());
    cases.push(empty.input("bias", &[2]).constant());
    cases
}

fn matmuls() -> Vec<Case> {
    let mut cases = Vec::new();
    // Batches of x and of y, and rows, depth and columns.
    let sizes: &[(&[usize], &[usize], [usize; 3])] = &[
        (&[], &[], [1, 1, 1]),
        (&[], &[], [5, 7, 3]),
        (&[2], &[2], [17, 9, 13]),
        (&[3], &[], [4, 5, 6]),
        (&[], &[3], [1, 8, 31]),
        (&[2, 1], &[1, 3], [3, 16, 5]),
        (&[1, 2, 1], &[3, 1, 2], [2, 3, 1]),
        (&[1], &[2, 1], [33, 40, 35]),
    ];
    for (x_batch, y_batch, [rows, depth, columns]) in sizes {
        for (transpose_x, transpose_y) in [(false, false), (true, false), (false, true), (true, true)] {
            let matrix = |rows: usize, columns: usize, transposed: bool| {
                if transposed { [columns, rows] } else { [rows, columns] }
            };
            let x = [*x_batch, &matrix(*rows, *depth, transpose_x)].concat();
            let y = [*y_batch, &matrix(*depth, *columns, transpose_y)].concat();
            cases.push(
                case("matmul")
                    .input("x", &x)
                    .input("y", &y)
                    .arg("transpose_x", transpose_x)
                    .arg("transpose_y", transpose_y),
            );
        }
    }
    cases.push(case("matmul").input("x", &[2, 3, 4]).input("y", &[4, 5]).constant());
    cases.push(case("matmul").input("x", &[2, 5, 3]).again("y").arg("transpose_y", true));
    cases.push(case("matmul").input("x", &[3, 0]).input("y", &[0, 2]));
    cases.push(
        case("matmul")
            .ints("x", DType::I32, &[2, 2], &[1, 2, 3, 4])
            .ints("y", DType::I32, &[2, 1], &[-1, 70000])
            .expect(&[&[139_999.0, 279_997.0]]),
    );
    cases
}

fn einsums() -> Vec<Case> {
    let equations: &[(&str, &[usize], &[usize])] = &[
        // Apple's SPLIT_EINSUM attention: scores, then weighted values.
        ("bchq,bkhc->bkhq", &[1, 8, 1, 13], &[1, 7, 1, 8]),
        ("bchq,bkhc->bkhq", &[2, 17, 3, 5], &[2, 9, 3, 17]),
        ("bkhq,bchk->bchq", &[2, 9, 3, 5], &[2, 17, 3, 9]),
        ("bkhq,bchk->bchq", &[1, 77, 1, 64], &[1, 40, 1, 77]),
        ("bhcq,bhck->bhqk", &[2, 3, 4, 5], &[2, 3, 4, 6]),
        ("bhqk,bhck->bhcq", &[2, 3, 5, 6], &[2, 3, 4, 6]),
        ("nchw,nwhu->nchu", &[2, 5, 2, 3], &[2, 3, 2, 4]),
        ("chw,whu->chu", &[5, 2, 3], &[3, 2, 4]),
        ("ab,bc->ac", &[4, 5], &[5, 6]),
        ("ab,bc->ca", &[4, 5], &[5, 6]),
        ("ab,ab->ab", &[3, 4], &[3, 4]),
        ("ab,ab->ba", &[3, 4], &[3, 4]),
        ("a,b->ab", &[3], &[17]),
        ("ab,ab->a", &[3, 9], &[3, 9]),
        ("abc,abc->", &[2, 3, 5], &[2, 3, 5]),
        // More axes than a matrix has, side by side and apart.
        ("abcd,cde->abe", &[2, 3, 4, 5], &[4, 5, 6]),
        ("abcd,dce->abe", &[2, 3, 4, 5], &[5, 4, 6]),
        ("acb,cde->adbe", &[2, 4, 3], &[4, 5, 6]),
        ("acb,cde->daeb", &[2, 4, 3], &[4, 5, 6]),
        ("xayb,xcyb->cxya", &[2, 3, 2, 5], &[2, 4, 2, 5]),
        ("ab,b->a", &[9, 17], &[17]),
        ("b,ab->a", &[17], &[9, 17]),
        ("ab,ac->abc", &[3, 5], &[3, 4]),
        ("ab,bc->ac", &[0, 3], &[3, 4]),
        ("ab,bc->ac", &[2, 0], &[0, 4]),
        // Axes of one operand only that are summed.
        ("abc,cd->ad", &[2, 3, 4], &[4, 5]),
        ("ab,cd->ad", &[2, 3], &[4, 5]),
        ("ab,bc->a", &[2, 3], &[3, 4]),
        ("abcde,cbf->aefd", &[2, 2, 3, 2, 3], &[3, 2, 4]),
        ("bij, bjk -> bik", &[2, 3, 1], &[2, 1, 4]),
    ];
    let einsum = |&(equation, x, y): &(&'static str, &[usize], &[usize])| {
        case("einsum").input("values", x).input("values", y).arg("equation", equation)
    };
    let mut cases: Vec<Case> = equations.iter().map(einsum).collect();
    cases.push(
        case("einsum")
            .input("values", &[3, 4])
            .input("values", &[4, 5])
            .constant()
            .arg("equation", "ab,bc->ac"),
    );
    cases.push(case("einsum").input("values", &[3, 4]).again("values").arg("equation", "ab,cb->ac"));
    cases.push(
        case("einsum")
            .ints("values", DType::I32, &[2, 2], &[1, 2, 3, 4])
            .ints("values", DType::I32, &[2], &[5, -6])
            .arg("equation", "ab,b->a")
            .expect(&[&[-7.0, -9.0]]),
    );
    cases
}

fn attentions() -> Vec<Case> {
    let mut cases = vec![
        case("scaled_dot_product_attention").ios18().input("query", &[2, 5, 8]).again("key").again("value"),
    ];
    // Axes before the tokens, then queries, keys, channels and value channels.
    let sizes: &[(&[usize], [usize; 4])] = &[
        (&[1], [1, 1, 1, 1]),
        (&[2], [5, 7, 8, 8]),
        (&[1, 2], [17, 77, 40, 40]),
        (&[2, 3], [31, 31, 13, 5]),
        (&[1, 2, 2], [3, 260, 16, 16]),
    ];
    for (outer, [queries, keys, channels, width]) in sizes {
        let attention = || {
            case("scaled_dot_product_attention")
                .ios18()
                .input("query", &[*outer, &[*queries, *channels]].concat())
                .input("key", &[*outer, &[*keys, *channels]].concat())
                .input("value", &[*outer, &[*keys, *width]].concat())
        };
        cases.push(attention());
        let full = [*outer, &[*queries, *keys]].concat();
        let mut each_image = vec![1; full.len()];
        (each_image[0], each_image[full.len() - 1]) = (full[0], *keys);
        for mask in [&[*queries, *keys][..], &[*keys], &[1], &full, &each_image] {
            cases.push(attention().input("attn_mask", mask));
        }
        cases.push(attention().input("attn_mask", &[*queries, *keys]).constant());
        let seen: Vec<i32> =
            (0..queries * keys).map(|index| i32::from(index % 3 != 1 || *keys == 1)).collect();
        cases.push(attention().ints("attn_mask", DType::Bool, &[*queries, *keys], &seen));
        cases.push(attention().ints("attn_mask", DType::Bool, &[*queries, *keys], &seen).constant());
        // A causal mask: a query sees the keys up to its own.
        let causal = (0..queries * keys)
            .map(|index| if index % keys > index / keys { f32::NEG_INFINITY } else { 0.0 })
            .collect();
        cases.push(attention().input_of("attn_mask", &[*queries, *keys], causal));
    }
    cases
}
