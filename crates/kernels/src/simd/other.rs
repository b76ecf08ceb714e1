//! CPUs without such instructions.

use crate::attention::QueryPanel;
use crate::gemm::tile::PanelOp;

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

#[inline(always)]
pub(crate) fn prefetch_line(_place: *const f32) {}

#[inline(always)]
pub(crate) fn prefetch_to_l2(_place: *const u8) {}

#[inline(always)]
pub(crate) fn prefetch_to_write(_place: *const f32) {}
