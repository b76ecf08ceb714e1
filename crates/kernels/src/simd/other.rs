//! CPUs without instructions for bfloat16, bytes and prefetches.

use super::microkernel::PanelOp;
use super::weigh::WeighOp;

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

pub(crate) fn dispatch_bf16x2<Op: PanelOp>(_op: Op) -> Op::Output {
    panic!("this CPU has no products of bfloat16")
}

pub(crate) fn dispatch_weigh_bf16x2<Op: WeighOp>(_op: Op) {
    panic!("this CPU has no products of bfloat16")
}

pub(crate) fn dispatch_i8x4<Op: PanelOp>(_op: Op) -> Op::Output {
    panic!("this CPU has no products of bytes")
}

#[inline(always)]
pub(crate) fn prefetch_line(_place: *const f32) {}

#[inline(always)]
pub(crate) fn prefetch_to_l2(_place: *const u8) {}

#[inline(always)]
pub(crate) fn prefetch_to_write(_place: *const f32) {}
