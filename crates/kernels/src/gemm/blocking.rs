//! Cache blocking of a product.

use super::pack::PackedShape;

/// Words of the shared side that are packed at once: 16 MB.
const SHARED_WORDS: usize = 1 << 22;
/// The most panels of the streamed side in a task.
const TASK_PANELS: usize = 8;
/// The fewest panels to which a task shrinks so that it stays in the L2 cache.
const LEAST_TASK_PANELS: usize = 4;
/// Words of the streamed side that a task packs at once; they stay in the L2 cache.
const TASK_WORDS: usize = 96 << 10;
/// Tasks that a product is cut into at least, unless they would be tiny.
const LEAST_TASKS: usize = 32;

/// Sizes of the loops around the micro-kernel, named as Goto and van de Geijn's (2008).
///
/// In the paper, the right side is packed first, `nc` columns at a time, and each core packs `mc` rows of the
/// left side. Here either side can take either role. The side with fewer lanes is *shared*: it is packed
/// first, over the whole depth, and all tasks use it. The other one is *streamed*: each task packs a few of
/// its panels, and multiplies them by the shared ones while they are in its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocking {
    /// True if the left side is the shared one.
    pub(crate) shares_left: bool,
    /// Panels of the shared side that are packed at once.
    pub(crate) nc: usize,
    /// Panels of the streamed side in a task.
    pub(crate) mc: usize,
    /// Depth of the streamed side that a task packs at once: whole blocks, or all of it for a gated product.
    pub(crate) kc: usize,
    /// Depth of a block, over which the micro-kernel sums in registers.
    pub(crate) block: usize,
}

impl Blocking {
    /// The blocking of a product of a left side and `batch` right sides.
    pub(crate) fn of(left: &PackedShape, right: &PackedShape, batch: usize) -> Self {
        let depth = left.depth;
        let shares_left = left.lanes < right.lanes * batch;
        let (shared, streamed, streamed_panels) = match shares_left {
            true => (left, right, right.panels() * batch),
            false => (right, left, left.panels()),
        };
        let block = left.format.block_depth(depth);
        let block_words = streamed.format.panel_len(block, streamed.width);
        let mut mc = TASK_PANELS;
        while (streamed_panels.div_ceil(mc) < LEAST_TASKS && mc > streamed.panels_per_tile())
            || (mc * block_words > TASK_WORDS && mc > LEAST_TASK_PANELS)
        {
            mc /= 2;
        }
        let is_gated = left.is_gated || right.is_gated;
        let kc = if is_gated { depth } else { block * (TASK_WORDS / (mc * block_words)).max(1) };
        let panel_words = shared.len_of(1, &(0..depth));
        let nc = (SHARED_WORDS / panel_words.max(1)).max(1).next_multiple_of(shared.panels_per_tile());
        Self { shares_left, nc, mc, kc, block }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::format::{Format, PackedSide};

    /// Shapes with AVX2's tile of 6 by 16, whatever the CPU has.
    fn shape(side: PackedSide, lanes: usize, depth: usize, format: Format) -> PackedShape {
        let width = if side == PackedSide::Left { 6 } else { 16 };
        PackedShape { lanes, depth, width, side, format, is_gated: false }
    }

    fn of(format: Format, [rows, depth, cols]: [usize; 3], batch: usize) -> Blocking {
        let (left, right) =
            (shape(PackedSide::Left, rows, depth, format), shape(PackedSide::Right, cols, depth, format));
        Blocking::of(&left, &right, batch)
    }

    #[test]
    fn the_side_with_fewer_lanes_is_shared() {
        assert!(of(Format::F32, [77, 768, 3072], 1).shares_left);
        assert!(!of(Format::F32, [4096, 320, 320], 1).shares_left);
        // Lanes of a batch count together; of equal sides the right one is shared.
        assert!(of(Format::F32, [320, 320, 256], 2).shares_left);
        assert!(!of(Format::F32, [320, 320, 320], 1).shares_left);
    }

    #[test]
    fn large_products_are_cut_as_on_paper() {
        // 1280 deep is five blocks of 256; eight panels of 6 rows are 12,288 words a block, so eight blocks
        // fit a task.
        let blocking = of(Format::F32, [4096, 1280, 1280], 1);
        assert_eq!(blocking, Blocking { shares_left: false, nc: 204, mc: 8, kc: 2048, block: 256 });
        // Sixteen columns are 4,096 words a block: three blocks of eight panels fit.
        let blocking = of(Format::F32, [1280, 1280, 4096], 1);
        assert_eq!(blocking, Blocking { shares_left: true, nc: 546, mc: 8, kc: 768, block: 256 });
        // One block of words of two bfloat16 is 1280 deep, and half as many words.
        let blocking = of(Format::Bf16x2, [4096, 1280, 1280], 1);
        assert_eq!(blocking, Blocking { shares_left: false, nc: 409, mc: 8, kc: 3 * 1280, block: 1280 });
    }

    #[test]
    fn small_products_become_enough_tasks() {
        // 1024 columns are 64 panels: two of them make a task.
        assert_eq!(of(Format::F32, [77, 768, 1024], 1).mc, 2);
        assert_eq!(of(Format::F32, [77, 768, 64], 1).mc, 1);
    }

    #[test]
    fn gated_products_stream_the_whole_depth_of_whole_tiles() {
        let left = shape(PackedSide::Left, 77, 1300, Format::F32);
        let right = shape(PackedSide::Right, 640, 1300, Format::F32).gated();
        let blocking = Blocking::of(&left, &right, 1);
        assert_eq!((blocking.kc, blocking.mc), (1300, 2));
        let blocking = Blocking::of(&shape(PackedSide::Left, 4096, 1300, Format::F32), &right, 1);
        assert!(!blocking.shares_left && blocking.nc.is_multiple_of(2), "{blocking:?}");
    }

    #[test]
    fn blocks_fit_the_caches() {
        for format in [Format::F32, Format::EmulatedBf16, Format::Bf16x2, Format::EmulatedI8, Format::I8x4] {
            for [rows, depth, cols] in [
                [1, 1, 1],
                [5, 2000, 70],
                [77, 768, 1024],
                [4096, 320, 320],
                [320, 11_520, 4096],
                [9, 100_000, 9],
            ] {
                let blocking = of(format, [rows, depth, cols], 2);
                let Blocking { shares_left, nc, mc, kc, block } = blocking;
                let widths = if shares_left { [6, 16] } else { [16, 6] };
                let words = |depth: usize, width: usize| format.panel_len(depth, width);
                assert!(nc == 1 || nc * words(depth, widths[0]) <= SHARED_WORDS, "{blocking:?}");
                assert!(
                    mc <= LEAST_TASK_PANELS || mc * words(block, widths[1]) <= TASK_WORDS,
                    "{blocking:?}"
                );
                assert!(kc == block || mc * words(block, widths[1]) * (kc / block) <= TASK_WORDS);
                assert!(kc.is_multiple_of(block) && block > 0, "{blocking:?}");
            }
        }
    }
}
