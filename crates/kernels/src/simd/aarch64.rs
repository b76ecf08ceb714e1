//! NEON with BF16 and dot products. Their intrinsics are not stable yet, so the instructions are inline
//! assembly.

use std::arch::aarch64::{
    float32x4_t, int32x4_t, uint32x4_t, vcombine_u32, vcvtq_f32_s32, vdupq_n_f32, vdupq_n_s32, vld1_u32,
    vld1q_f32, vld1q_u32, vmulq_f32, vmulq_n_f32,
};
use std::arch::{asm, is_aarch64_feature_detected};

use rten_simd::isa::ArmNeonIsa;

use super::microkernel::{Microkernel, NARROW_MR, PanelOp, Prefetch, TILE_VECTORS, Tile};
use super::weigh::{Exponentials, WeighOp};
use crate::isa::is_native_level;

/// The zero point of the right side's bytes: both sides are signed.
pub(crate) const INT8_OFFSET: i32 = 0;

/// True if this CPU has an instruction for products of bfloat16.
pub(crate) fn has_bf16() -> bool {
    is_native_level() && is_aarch64_feature_detected!("bf16")
}

/// True if this CPU has an instruction for products of bytes.
pub(crate) fn has_int8() -> bool {
    is_native_level() && is_aarch64_feature_detected!("dotprod")
}

/// True if that instruction beats `f32`: it does twice the work.
pub(crate) fn bf16_pays() -> bool {
    true
}

/// Runs `op` with the micro-kernel of words of two bfloat16.
///
/// # Panics
/// When [`has_bf16`] is false.
pub(crate) fn dispatch_bf16x2<Op: PanelOp>(op: Op) -> Op::Output {
    assert!(has_bf16(), "this CPU has no products of bfloat16");
    op.eval::<ArmNeonIsa, Bf16x2Kernel>(ArmNeonIsa::new().expect("every CPU of this architecture has NEON"))
}

/// Runs `op` with the micro-kernel of words of two bfloat16, and exponentials of binary logarithms.
///
/// # Panics
/// When [`has_bf16`] is false.
pub(crate) fn dispatch_weigh_bf16x2<Op: WeighOp>(op: Op) {
    assert!(has_bf16(), "this CPU has no products of bfloat16");
    let isa = ArmNeonIsa::new().expect("every CPU of this architecture has NEON");
    op.eval::<ArmNeonIsa, Bf16x2Kernel, Exponentials<true>>(isa);
}

/// Runs `op` with the micro-kernel of words of four bytes.
///
/// # Panics
/// When [`has_int8`] is false.
pub(crate) fn dispatch_i8x4<Op: PanelOp>(op: Op) -> Op::Output {
    assert!(has_int8(), "this CPU has no products of bytes");
    op.eval::<ArmNeonIsa, I8x4Kernel>(ArmNeonIsa::new().expect("every CPU of this architecture has NEON"))
}

/// Words of a row of the right panel.
const WIDTH: usize = TILE_VECTORS * 4;

/// Adds the products of one word of each of six left lanes with one word of each of eight right lanes. Each
/// instruction multiplies a vector by one element of another.
macro_rules! multiply_word {
    (
        $extension:literal, $instruction:literal, $wide:literal, $narrow:literal,
        $sums:ident, $columns:expr, $rows:expr
    ) => {
        asm!(
            concat!(".arch_extension ", $extension),
            concat!($instruction, " {s00:v}.4s, {c0:v}.", $wide, ", {r0:v}.", $narrow, "[0]"),
            concat!($instruction, " {s01:v}.4s, {c1:v}.", $wide, ", {r0:v}.", $narrow, "[0]"),
            concat!($instruction, " {s10:v}.4s, {c0:v}.", $wide, ", {r0:v}.", $narrow, "[1]"),
            concat!($instruction, " {s11:v}.4s, {c1:v}.", $wide, ", {r0:v}.", $narrow, "[1]"),
            concat!($instruction, " {s20:v}.4s, {c0:v}.", $wide, ", {r0:v}.", $narrow, "[2]"),
            concat!($instruction, " {s21:v}.4s, {c1:v}.", $wide, ", {r0:v}.", $narrow, "[2]"),
            concat!($instruction, " {s30:v}.4s, {c0:v}.", $wide, ", {r0:v}.", $narrow, "[3]"),
            concat!($instruction, " {s31:v}.4s, {c1:v}.", $wide, ", {r0:v}.", $narrow, "[3]"),
            concat!($instruction, " {s40:v}.4s, {c0:v}.", $wide, ", {r1:v}.", $narrow, "[0]"),
            concat!($instruction, " {s41:v}.4s, {c1:v}.", $wide, ", {r1:v}.", $narrow, "[0]"),
            concat!($instruction, " {s50:v}.4s, {c0:v}.", $wide, ", {r1:v}.", $narrow, "[1]"),
            concat!($instruction, " {s51:v}.4s, {c1:v}.", $wide, ", {r1:v}.", $narrow, "[1]"),
            s00 = inout(vreg) $sums[0][0], s01 = inout(vreg) $sums[0][1],
            s10 = inout(vreg) $sums[1][0], s11 = inout(vreg) $sums[1][1],
            s20 = inout(vreg) $sums[2][0], s21 = inout(vreg) $sums[2][1],
            s30 = inout(vreg) $sums[3][0], s31 = inout(vreg) $sums[3][1],
            s40 = inout(vreg) $sums[4][0], s41 = inout(vreg) $sums[4][1],
            s50 = inout(vreg) $sums[5][0], s51 = inout(vreg) $sums[5][1],
            c0 = in(vreg) $columns[0], c1 = in(vreg) $columns[1],
            r0 = in(vreg) $rows[0], r1 = in(vreg) $rows[1],
            options(pure, nomem, nostack, preserves_flags),
        )
    };
}

/// One word of each of eight right lanes.
///
/// # Safety
/// Eight words are readable.
#[inline(always)]
unsafe fn columns(right: *const u32) -> [uint32x4_t; TILE_VECTORS] {
    // SAFETY: the caller's promise.
    unsafe { [vld1q_u32(right), vld1q_u32(right.add(4))] }
}

/// One word of each of six left lanes; the second vector holds the last two twice.
///
/// # Safety
/// Six words are readable.
#[inline(always)]
unsafe fn rows(left: *const u32) -> [uint32x4_t; 2] {
    // SAFETY: the caller's promise.
    unsafe {
        let last = vld1_u32(left.add(4));
        [vld1q_u32(left), vcombine_u32(last, last)]
    }
}

/// The micro-kernel of words of two bfloat16. Used only through [`dispatch_bf16x2`].
struct Bf16x2Kernel;

impl Microkernel<ArmNeonIsa> for Bf16x2Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        _isa: ArmNeonIsa,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<ArmNeonIsa, MR> {
        assert!(MR == NARROW_MR && left.len() >= words * MR && right.len() >= words * WIDTH);
        let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
        // SAFETY: reads are within the lengths checked above, and `dispatch_bf16x2` has checked the
        // instruction.
        unsafe {
            let mut sums: [[float32x4_t; TILE_VECTORS]; NARROW_MR] =
                [[vdupq_n_f32(0.0); TILE_VECTORS]; NARROW_MR];
            for portion in 0..P::PORTIONS {
                prefetch.issue(portion);
                for _ in P::words(portion, words) {
                    let (columns, rows) = (columns(right), rows(left));
                    multiply_word!("bf16", "bfdot", "8h", "2h", sums, columns, rows);
                    (left, right) = (left.add(MR), right.add(WIDTH));
                }
            }
            tile(sums)
        }
    }
}

/// The micro-kernel of words of four bytes. Used only through [`dispatch_i8x4`].
struct I8x4Kernel;

impl Microkernel<ArmNeonIsa> for I8x4Kernel {
    #[inline(always)]
    fn multiply<const MR: usize, P: Prefetch>(
        _isa: ArmNeonIsa,
        words: usize,
        left: &[u32],
        right: &[u32],
        prefetch: P,
    ) -> Tile<ArmNeonIsa, MR> {
        // Behind the words are a scale and a start, here zero, for each lane.
        assert!(MR == NARROW_MR && left.len() >= (words + 1) * MR && right.len() >= (words + 1) * WIDTH);
        let (mut left, mut right) = (left.as_ptr(), right.as_ptr());
        // SAFETY: reads are within the lengths checked above, and `dispatch_i8x4` has checked the
        // instruction.
        unsafe {
            let mut sums: [[int32x4_t; TILE_VECTORS]; NARROW_MR] =
                [[vdupq_n_s32(0); TILE_VECTORS]; NARROW_MR];
            for portion in 0..P::PORTIONS {
                prefetch.issue(portion);
                for _ in P::words(portion, words) {
                    let (columns, rows) = (columns(right), rows(left));
                    multiply_word!("dotprod", "sdot", "16b", "4b", sums, columns, rows);
                    (left, right) = (left.add(MR), right.add(WIDTH));
                }
            }
            let mut scaled = [[vdupq_n_f32(0.0); TILE_VECTORS]; NARROW_MR];
            for (row, (scaled, sums)) in scaled.iter_mut().zip(sums).enumerate() {
                let scale = f32::from_bits(*left.add(row));
                for (vector, (scaled, sum)) in scaled.iter_mut().zip(sums).enumerate() {
                    let columns = vmulq_n_f32(vld1q_f32(right.add(4 * vector).cast()), scale);
                    *scaled = vmulq_f32(vcvtq_f32_s32(sum), columns);
                }
            }
            tile(scaled)
        }
    }
}

/// Sums as a tile of `MR` rows, which is [`NARROW_MR`] wherever vectors have four lanes.
#[inline(always)]
fn tile<const MR: usize>(sums: [[float32x4_t; TILE_VECTORS]; NARROW_MR]) -> Tile<ArmNeonIsa, MR> {
    std::array::from_fn(|row| sums[row])
}

/// Prefetches the cache line of any address.
#[inline(always)]
pub(crate) fn prefetch_line(place: *const f32) {
    // SAFETY: a prefetch affects timing only.
    unsafe { asm!("prfm pldl1keep, [{}]", in(reg) place, options(readonly, nostack, preserves_flags)) }
}

/// Prefetches the cache line of any address into the L2 cache.
#[inline(always)]
pub(crate) fn prefetch_to_l2(place: *const u8) {
    // SAFETY: a prefetch affects timing only.
    unsafe { asm!("prfm pldl2keep, [{}]", in(reg) place, options(readonly, nostack, preserves_flags)) }
}

/// Prefetches the cache line of any address for writing.
#[inline(always)]
pub(crate) fn prefetch_to_write(place: *const f32) {
    // SAFETY: a prefetch affects timing only.
    unsafe { asm!("prfm pstl1keep, [{}]", in(reg) place, options(readonly, nostack, preserves_flags)) }
}
