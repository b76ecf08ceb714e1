//! Symmetric quantization to 8 bits: `value = integer * scale`, with integers from -127 to 127.

/// The largest quantized value.
pub(crate) const LARGEST: f32 = 127.0;

/// The scale of a quantized lane of a panel, and where its integer sums start.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LaneScale {
    pub(crate) scale: f32,
    /// The initial value of integer sums with this lane on the left. It cancels the right side's zero point.
    pub(crate) start: i32,
}

impl LaneScale {
    /// The scale of formats that have none.
    pub(crate) const NONE: LaneScale = LaneScale { scale: 1.0, start: 0 };
}

/// The scale of values of magnitude up to `largest`, and its inverse. Both are zero where the inverse would
/// overflow. If `largest` is not finite, neither are the results.
#[inline(always)]
pub(crate) fn scale_of(largest: f32) -> (f32, f32) {
    let scale = largest / LARGEST;
    let inverse = LARGEST / largest;
    if inverse.is_infinite() { (0.0, 0.0) } else { (scale, inverse) }
}
