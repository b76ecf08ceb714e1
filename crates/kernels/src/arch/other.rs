//! CPUs without such instructions.

use crate::attention::QueryPanel;
use crate::gemm::tile::PanelOp;
use crate::winograd::tiles::{MadePiece, PackTiles};

pub(crate) const INT8_OFFSET: i32 = 0;

pub(crate) fn has_bf16() -> bool {
    false
}

pub(crate) fn has_int8() -> bool {
    false
}

pub(crate) fn bf16_pays() -> bool {
    false
}

pub(crate) fn dispatch_pairs<Op: PanelOp>(_op: Op) -> Op::Output {
    panic!("this CPU has no products of bfloat16")
}

pub(crate) fn attend_pairs(_panel: QueryPanel<'_>) {
    panic!("this CPU has no products of bfloat16")
}

pub(crate) fn dispatch_quads<Op: PanelOp>(_op: Op) -> Op::Output {
    panic!("this CPU has no products of bytes")
}

pub(crate) fn pair_up(_rows: &[f32], _width: usize, _words: &mut [u32]) -> bool {
    false
}

pub(crate) fn transpose_blocks(
    _words: &[u32],
    _len: usize,
    _lanes: usize,
    _panel: &mut [u32],
    _width: usize,
    _offset: usize,
) -> usize {
    0
}

/// Packs no tiles: the compiler's loops do.
pub(crate) fn pack_tiles(_job: PackTiles<'_>) -> bool {
    false
}

/// Stores no tiles: the compiler's loops do.
///
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

/// Splits no windows: the compiler's loop does.
pub(crate) fn split_nines(_windows: &[f32], _out: &mut [f32], _stride: usize) -> usize {
    0
}

/// Asks for nothing.
pub(crate) fn prefetch(_bytes: &[u8]) {}

/// Asks for nothing.
#[inline(always)]
pub(crate) fn prefetch_to_write(_place: *const f32) {}

/// Widens nothing: the compiler's loop does.
pub(crate) fn widen_f16(_src: &[half::f16], _dst: &mut [f32]) -> usize {
    0
}

/// Encodes nothing: the compiler's loop does.
pub(crate) fn encode_quads(_run: &[f32], _inverse: f32, _flip: u32, _words: &mut [u32]) -> (usize, i32) {
    (0, 0)
}

/// Looks up nothing: the compiler's loop does.
pub(crate) fn look_up(
    _table: &[f32],
    _bits: usize,
    _codes: &[u8],
    _element: usize,
    _out: &mut [f32],
) -> usize {
    0
}
