//! The views that routines of a CPU take.

/// `f32` rows, one for each depth, of which the first `lanes` elements count.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by that architecture's kernels"))]
pub(crate) struct Rows<'a> {
    pub(crate) data: &'a [f32],
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    /// The number of rows.
    pub(crate) depth: usize,
    pub(crate) lanes: usize,
}

/// Lanes that are transposed at once.
pub(crate) const GROUP: usize = 16;

/// At most [`GROUP`] lanes of `len` words each.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<'a> {
    /// Long enough for [`GROUP`] lanes, whatever `count` is.
    pub(crate) words: &'a [u32],
    /// Words from one lane to the next.
    pub(crate) stride: usize,
    pub(crate) len: usize,
    pub(crate) count: usize,
}

/// Palette indices into one table, from element `element` of a bit stream on.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by that architecture's kernels"))]
pub(crate) struct Codes<'a> {
    pub(crate) table: &'a [f32],
    /// Bits of an index.
    pub(crate) bits: usize,
    /// The bit stream, least significant bits first.
    pub(crate) codes: &'a [u8],
    pub(crate) element: usize,
}

/// The eight bytes from `start` on as a little-endian word, with zeros beyond the end.
#[inline(always)]
pub(crate) fn read_word(bytes: &[u8], start: usize) -> u64 {
    let bytes = bytes.get(start..).unwrap_or_default();
    match bytes.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        }
    }
}

/// The Winograd tiles of a run that lie in one vector of sixteen lanes, and the input pixels under them.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by that architecture's kernels"))]
pub(crate) struct InputPiece {
    pub(crate) vector: usize,
    /// Mask of the lanes.
    pub(crate) lanes: u16,
    /// For each of four rows: the offset, from the channel's first pixel, of the pixel that lane 0 would
    /// begin with; and a mask of the pixels from there on that lie inside the image.
    pub(crate) rows: [(isize, u64); 4],
}

/// The Winograd tiles of a run that lie in one vector of sixteen lanes, and the output pixels that they
/// become.
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by that architecture's kernels"))]
pub(crate) struct OutputPiece {
    pub(crate) vector: usize,
    pub(crate) image: usize,
    /// For each of two rows: the offset, from the channel's first pixel in the first image, of the pixel that
    /// lane 0 would begin with; and a mask of the pixels from there on that belong to these tiles.
    pub(crate) rows: [(isize, u32); 2],
}

/// A panel of Winograd tiles to be transformed and packed: the arguments of
/// [`pack_tiles`](super::pack_tiles).
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read by that architecture's kernels"))]
pub(crate) struct PackTiles<'a> {
    /// From the first image's first channel on.
    pub(crate) input: &'a [f32],
    /// Elements from one channel to the next.
    pub(crate) plane: usize,
    pub(crate) channels: usize,
    /// Sorted by vector.
    pub(crate) pieces: &'a [InputPiece],
    /// The panel: `position_len` words for each position.
    pub(crate) words: &'a mut [u32],
    pub(crate) position_len: usize,
}
