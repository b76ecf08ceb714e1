//! Streams of integers of 1 to 8 bits, least significant bit first, as Core ML stores them.

/// Packs integers below 2 to the power of `bits`.
pub(crate) fn pack(values: impl ExactSizeIterator<Item = u8>, bits: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity((values.len() * bits as usize).div_ceil(8));
    let (mut pending, mut filled) = (0u32, 0);
    for value in values {
        pending |= u32::from(value) << filled;
        filled += bits;
        while filled >= 8 {
            out.push(pending as u8);
            pending >>= 8;
            filled -= 8;
        }
    }
    if filled > 0 {
        out.push(pending as u8);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_follow_each_other() {
        assert_eq!(pack([1u8, 2, 3, 4, 5, 6].into_iter(), 3), [0b1101_0001, 0b0101_1000, 0b11]);
        assert_eq!(pack([0x1u8, 0x2, 0x3].into_iter(), 4), [0x21, 0x03]);
        assert_eq!(pack([1u8, 0, 1].into_iter(), 1), [0b101]);
        assert_eq!(pack([7u8, 255].into_iter(), 8), [7, 255]);
        assert_eq!(pack([0x3fu8, 0, 0x3f, 0x01].into_iter(), 6), [0x3f, 0xf0, 0x07]);
    }
}
