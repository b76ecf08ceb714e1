//! What products are computed in.

/// What the factors of a product are rounded to while they are packed. Operands and results in memory are `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Not at all: `f32` factors, summed in `f32`.
    #[default]
    F32,
    /// `bf16` factors, summed in `f32`.
    Bf16,
    /// 8-bit whole numbers and a scale for each group of them, summed in `i32`.
    Int8,
}
