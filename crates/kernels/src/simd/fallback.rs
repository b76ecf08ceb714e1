//! Routines that only x86-64 has instructions for: elsewhere they do nothing, and portable loops do the work.

use super::operands::{Codes, Lanes, OutputPiece, PackTiles, Rows};
use super::quantize::LaneScale;

pub(crate) fn encode_bf16x2<T>(_run: &[T], _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn encode_rows_bf16x2(_rows: &Rows<'_>, _width: usize, _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn encode_rows_i8x4(_rows: &Rows<'_>, _width: usize, _flip: u32, _words: &mut [u32]) -> bool {
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
/// Nothing is written: any arguments are safe.
pub(crate) unsafe fn store_tiles(
    _products: &[f32],
    _position_len: usize,
    _pieces: &[OutputPiece],
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

pub(crate) fn encode_i8x4(_run: &[f32], _inverse: f32, _flip: u32, _words: &mut [u32]) -> (usize, i32) {
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

pub(crate) fn look_up_bf16x2(_codes: &Codes<'_>, _len: usize, _words: &mut [u32]) -> Option<LaneScale> {
    None
}

pub(crate) fn look_up_i8x4(
    _codes: &Codes<'_>,
    _len: usize,
    _flip: u32,
    _words: &mut [u32],
) -> Option<LaneScale> {
    None
}
