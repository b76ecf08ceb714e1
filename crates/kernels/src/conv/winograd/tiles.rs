//! Winograd tiles: their positions, the pixels under them, and the input transformation.

use rten_simd::ops::BitOps;
use rten_simd::{Isa, SimdOp};

use super::WIDEST;
use crate::conv::shape::ConvShape;
use crate::simd::microkernel::TILE_VECTORS;
use crate::simd::operands::{InputPiece, OutputPiece};

/// The tiles of all images, numbered row by row, image after image.
#[derive(Clone, Copy)]
pub(super) struct Tiles {
    batch: usize,
    /// Rows and columns of tiles.
    size: [usize; 2],
}

/// A run of neighbouring tiles in one row of tiles.
#[derive(Clone, Copy)]
pub(super) struct TileRun {
    /// The lane of the first tile.
    pub(super) lane: usize,
    pub(super) len: usize,
    pub(super) image: usize,
    /// Row and column, in tiles, of the first.
    pub(super) at: [usize; 2],
}

impl Tiles {
    pub(super) fn of(shape: &ConvShape) -> Self {
        Self { batch: shape.batch, size: shape.out_size().map(|extent| extent.div_ceil(2)) }
    }

    pub(super) fn count(&self) -> usize {
        self.batch * self.size[0] * self.size[1]
    }

    /// The runs of tiles in a panel of `width` lanes.
    pub(super) fn runs(self, panel: usize, width: usize) -> impl Iterator<Item = TileRun> {
        let [rows, cols] = self.size;
        let (first, end) = (panel * width, ((panel + 1) * width).min(self.count()));
        let mut next = first;
        std::iter::from_fn(move || {
            let tile = next;
            (tile < end).then(|| {
                let (row, col) = (tile / cols, tile % cols);
                let len = (cols - col).min(end - tile);
                next += len;
                TileRun { lane: tile - first, len, image: row / rows, at: [row % rows, col] }
            })
        })
    }
}

impl TileRun {
    /// The run cut into vectors of sixteen lanes: the vector, its first lane, the number of tiles, and the
    /// column of the first tile.
    fn parts(self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        const WIDTH: usize = 16;
        let (first, end) = (self.lane, self.lane + self.len);
        (first / WIDTH..end.div_ceil(WIDTH)).map(move |vector| {
            let start = first.max(vector * WIDTH);
            let count = end.min((vector + 1) * WIDTH) - start;
            (vector, start % WIDTH, count, self.at[1] + start - first)
        })
    }

    /// The input pixels under the tiles. Images lie `image_stride` elements apart.
    pub(super) fn input_pieces(
        self,
        shape: &ConvShape,
        image_stride: usize,
    ) -> impl Iterator<Item = InputPiece> {
        let [rows, cols] = shape.in_size.map(|extent| extent as isize);
        let (top, left) = (shape.padding.top as isize, shape.padding.left as isize);
        self.parts().map(move |(vector, lane, count, col)| {
            let start = 2 * (col as isize - lane as isize) - left;
            let inside = bits(-start, cols - start) & ((1 << 34) - 1);
            let row = |row: isize| {
                let y = 2 * self.at[0] as isize + row - top;
                let inside = if (0..rows).contains(&y) { inside } else { 0 };
                ((self.image * image_stride) as isize + y * cols + start, inside)
            };
            let lanes = bits(lane as isize, (lane + count) as isize) as u16;
            InputPiece { vector, lanes, rows: [row(0), row(1), row(2), row(3)] }
        })
    }

    /// The rows of output pixels of the tiles, upper one first: the first pixel, counted within its channel,
    /// and the number of pixels.
    pub(super) fn output_rows(self, [rows, cols]: [usize; 2]) -> impl Iterator<Item = (usize, usize)> {
        let [row, col] = self.at.map(|at| 2 * at);
        (row..(row + 2).min(rows)).map(move |row| (row * cols + col, (2 * self.len).min(cols - col)))
    }

    /// The output pixels of the tiles. Images lie `image_stride` elements apart.
    pub(super) fn output_pieces(
        self,
        [rows, cols]: [usize; 2],
        image_stride: usize,
    ) -> impl Iterator<Item = OutputPiece> {
        self.parts().map(move |(vector, lane, count, col)| {
            let start = 2 * (col as isize - lane as isize);
            let end = (2 * (lane + count) as isize).min(cols as isize - start);
            let inside = bits(2 * lane as isize, end) as u32;
            let row = |row: usize| {
                let y = 2 * self.at[0] + row;
                let offset = (self.image * image_stride + y * cols) as isize + start;
                (offset, if y < rows { inside } else { 0 })
            };
            OutputPiece { vector, image: self.image, rows: [row(0), row(1)] }
        })
    }
}

/// A mask of the bits from `start` up to `end`, clamped to the word.
fn bits(start: isize, end: isize) -> u64 {
    let below = |end: isize| match end {
        ..=0 => 0,
        1..=63 => (1_u64 << end) - 1,
        _ => u64::MAX,
    };
    below(end) & !below(start)
}

/// Transforms a panel of tiles in one channel.
pub(super) struct TransformTiles<'a> {
    /// The channel's first plane.
    pub(super) planes: &'a [f32],
    pub(super) image_stride: usize,
    /// Rows and columns of a plane.
    pub(super) size: [usize; 2],
    /// Padding at the top and at the left.
    pub(super) origin: [usize; 2],
    pub(super) runs: &'a [TileRun],
    /// The panel's lanes at each position, `stride` apart.
    pub(super) out: &'a mut [f32],
    pub(super) stride: usize,
}

impl SimdOp for TransformTiles<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, isa: I) {
        let mut columns = [[[0.0; WIDEST]; 4]; 4];
        for run in self.runs {
            for (row, columns) in columns.iter_mut().enumerate() {
                self.columns(run, row, columns);
            }
        }
        let width = TILE_VECTORS * isa.f32().len();
        let [first, second, third, fourth] = &columns;
        let rows = first.iter().zip(second).zip(third.iter().zip(fourth));
        for (col, ((a, b), (c, d))) in rows.enumerate() {
            // B^T times the column.
            let (a, b, c, d) = (&a[..width], &b[..width], &c[..width], &d[..width]);
            let mut store = |row: usize, x: &[f32], y: &[f32], f: fn(f32, f32) -> f32| {
                let out = &mut self.out[(4 * row + col) * self.stride..][..width];
                x.iter().zip(y).zip(out).for_each(|((x, y), out)| *out = f(*x, *y));
            };
            store(0, a, c, |a, c| a - c);
            store(1, b, c, |b, c| b + c);
            store(2, c, b, |c, b| c - b);
            store(3, b, d, |b, d| b - d);
        }
    }
}

impl TransformTiles<'_> {
    /// Row `row` of a run of tiles, times `B`.
    #[inline(always)]
    fn columns(&self, run: &TileRun, row: usize, out: &mut [[f32; WIDEST]; 4]) {
        let &TileRun { lane, len, image, at } = run;
        let [rows, cols] = self.size;
        let mut padded = [0.0; 2 * WIDEST + 2];
        let needed = 2 * len + 2;
        // Wraps around in the padding above or at the left, and then lies beyond the plane.
        let y = (2 * at[0] + row).wrapping_sub(self.origin[0]);
        let first = (2 * at[1]).wrapping_sub(self.origin[1]);
        let pixels: &[f32] = if y < rows {
            let pixels = &self.planes[image * self.image_stride + y * cols..][..cols];
            match pixels.get(first..).and_then(|pixels| pixels.get(..needed)) {
                Some(inside) => inside,
                None => {
                    let before = self.origin[1].saturating_sub(2 * at[1]).min(needed);
                    let start = (2 * at[1]).saturating_sub(self.origin[1]).min(cols);
                    let count = (cols - start).min(needed - before);
                    padded[before..before + count].copy_from_slice(&pixels[start..start + count]);
                    &padded[..needed]
                }
            }
        } else {
            &padded[..needed]
        };
        match len {
            32 => combine::<32>(pixels, lane, out),
            16 => combine::<16>(pixels, lane, out),
            8 => combine::<8>(pixels, lane, out),
            4 => combine::<4>(pixels, lane, out),
            _ => (0..len).for_each(|index| combine::<1>(&pixels[2 * index..], lane + index, out)),
        }
    }
}

/// `N` tiles' pixels of one row, times `B`.
#[inline(always)]
fn combine<const N: usize>(pixels: &[f32], lane: usize, out: &mut [[f32; WIDEST]; 4]) {
    let pixels = &pixels[..2 * N + 2];
    let mut split = [[0.0; N]; 4];
    for index in 0..N {
        for (offset, split) in split.iter_mut().enumerate() {
            split[index] = pixels[2 * index + offset];
        }
    }
    let [a, b, c, d] = split;
    let [w, x, y, z] = out.each_mut().map(|out| &mut out[lane..lane + N]);
    for index in 0..N {
        w[index] = a[index] - c[index];
        x[index] = b[index] + c[index];
        y[index] = c[index] - b[index];
        z[index] = b[index] - d[index];
    }
}
