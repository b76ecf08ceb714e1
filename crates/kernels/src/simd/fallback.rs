//! What only x86-64 has instructions of its own for: elsewhere nothing is done, and the compiler's loops do all.

use crate::conv::winograd::tiles::{MadePiece, PackTiles};
use crate::encoded::Codes;
use crate::gemm::format::{LaneScale, Rows};
use crate::gemm::pack::Lanes;

pub(crate) fn pair_up<T>(_run: &[T], _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn pair_rows(_rows: &Rows<'_>, _width: usize, _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn quad_rows(_rows: &Rows<'_>, _width: usize, _flip: u32, _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn transpose_blocks(
    _lanes: Lanes<'_>,
    _panel: &mut [u32],
    _width: usize,
    _offset: usize,
) -> usize {
    0
}

pub(crate) fn look_up_filters(_codes: &Codes<'_>, _channels: usize, _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn pack_tiles(_job: PackTiles<'_>) -> bool {
    false
}

/// # Safety
/// None is needed.
pub(crate) unsafe fn store_tiles(
    _products: &[f32],
    _position_len: usize,
    _pieces: &[MadePiece],
    _bias: impl Fn(usize) -> f32,
    _out: *mut f32,
    _residual: Option<*const f32>,
) -> bool {
    false
}

pub(crate) fn split_nines(_windows: &[f32], _out: &mut [f32], _stride: usize) -> usize {
    0
}

pub(crate) fn widen_f16(_src: &[half::f16], _dst: &mut [f32]) -> usize {
    0
}

pub(crate) fn encode_quads(_run: &[f32], _inverse: f32, _flip: u32, _words: &mut [u32]) -> (usize, i32) {
    (0, 0)
}

pub(crate) fn look_up(
    _table: &[f32],
    _bits: usize,
    _codes: &[u8],
    _element: usize,
    _out: &mut [f32],
) -> usize {
    0
}

pub(crate) fn look_up_pairs(_codes: &Codes<'_>, _len: usize, _words: &mut [u32]) -> Option<LaneScale> {
    None
}

pub(crate) fn look_up_quads(
    _codes: &Codes<'_>,
    _len: usize,
    _flip: u32,
    _words: &mut [u32],
) -> Option<LaneScale> {
    None
}
