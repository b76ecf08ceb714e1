//! The cases, by family as in the op table.

pub(crate) mod activation;
mod binary;
mod constexpr;
mod convolution;
mod large;
mod linear;
mod normalization;
mod recorded;
mod reduction;
mod scatter_gather;
mod shape;
mod unary;

use crate::case::Case;

/// Every case: by family, then those that are large, then those recorded from PyTorch and coremltools.
///
/// # Panics
/// If a recorded case can't be read from `fixtures/ops`.
pub fn cases() -> Vec<Case> {
    let families: [fn() -> Vec<Case>; 12] = [
        activation::cases,
        binary::cases,
        constexpr::cases,
        convolution::cases,
        linear::cases,
        normalization::cases,
        reduction::cases,
        scatter_gather::cases,
        shape::cases,
        unary::cases,
        large::cases,
        recorded::cases,
    ];
    families.iter().flat_map(|family| family()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_op_of_the_table_has_cases() {
        let cases: Vec<_> =
            super::cases().into_iter().filter(|case| case.expected_shapes.is_none()).collect();
        let without: Vec<&str> = mixbit_mil::ops::OPS
            .iter()
            .flat_map(|family| family.iter())
            .map(|def| def.name)
            .filter(|name| cases.iter().all(|case| case.op != *name))
            .collect();
        assert!(without.is_empty(), "ops without a case: {without:?}");
    }
}
