//! The micro-kernel: one tile of the output in registers, and its way to memory.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use crate::arch;
use crate::format::Format;
use crate::isa;
use crate::matrix::MatMut;
use crate::panels::PackedSide;
use crate::unary::{UnaryOp, unary_on_this_thread};

/// The micro-kernel's tile: rows and columns of the output in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
}

impl TileShape {
    pub(crate) fn width(self, side: PackedSide) -> usize {
        match side {
            PackedSide::Left => self.mr,
            PackedSide::Right => self.nr,
        }
    }
}

/// Rows of the tile where 32 registers are known to exist, and elsewhere.
pub(crate) const WIDE_MR: usize = 12;
pub(crate) const NARROW_MR: usize = 6;
/// Vectors in a tile row.
pub(crate) const TILE_VECTORS: usize = 2;

/// Whether this instruction set has the registers for [`WIDE_MR`] rows. Constant once compiled.
#[inline(always)]
pub(crate) fn is_wide<I: Isa>(isa: I) -> bool {
    isa.f32().len() == 16
}

/// The tile shape of this CPU's instruction set.
pub(crate) fn tile_shape() -> TileShape {
    struct Shape;
    impl SimdOp for Shape {
        type Output = TileShape;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> TileShape {
            let mr = if is_wide(isa) { WIDE_MR } else { NARROW_MR };
            TileShape { mr, nr: TILE_VECTORS * isa.f32().len() }
        }
    }
    isa::dispatch(Shape)
}

/// A tile of sums in registers.
pub(crate) type Tile<I, const MR: usize> = [[<I as Isa>::F32; TILE_VECTORS]; MR];

/// Multiplies panels of one [`Format`].
pub(crate) trait Microkernel<I: Isa> {
    /// The product of a left panel, `MR` lanes wide, and a right panel over `words` words of each lane.
    fn multiply<const MR: usize>(isa: I, words: usize, left: &[u32], right: &[u32]) -> Tile<I, MR>;
}

/// Something that multiplies panels of a format that it does not know.
pub(crate) trait PanelOp {
    type Output;

    /// Runs with the micro-kernel `K`.
    fn eval<I: Isa, K: Microkernel<I>>(self, isa: I) -> Self::Output;
}

/// Runs `op` with the micro-kernel of a format.
pub(crate) fn dispatch<Op: PanelOp>(format: Format, op: Op) -> Op::Output {
    struct Floats<Op, K>(Op, std::marker::PhantomData<K>);
    impl<Op: PanelOp> SimdOp for Floats<Op, Singles> {
        type Output = Op::Output;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> Op::Output {
            self.0.eval::<I, Singles>(isa)
        }
    }
    impl<Op: PanelOp> SimdOp for Floats<Op, Integers> {
        type Output = Op::Output;
        #[inline(always)]
        fn eval<I: Isa>(self, isa: I) -> Op::Output {
            self.0.eval::<I, Integers>(isa)
        }
    }
    match format {
        Format::Single | Format::Rounded => {
            isa::dispatch(Floats::<Op, Singles>(op, std::marker::PhantomData))
        }
        Format::Integers => isa::dispatch(Floats::<Op, Integers>(op, std::marker::PhantomData)),
        Format::Pairs => arch::dispatch_pairs(op),
        Format::Quads => arch::dispatch_quads(op),
    }
}

/// The micro-kernel of words that are `f32`.
struct Singles;

impl<I: Isa> Microkernel<I> for Singles {
    #[inline(always)]
    fn multiply<const MR: usize>(isa: I, words: usize, left: &[u32], right: &[u32]) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        assert!(left.len() >= words * MR && right.len() >= words * TILE_VECTORS * len);
        let mut sums = [[ops.zero(); TILE_VECTORS]; MR];
        let (mut left, mut right) = (left.as_ptr().cast::<f32>(), right.as_ptr().cast::<f32>());
        for _ in 0..words {
            let mut columns = [ops.zero(); TILE_VECTORS];
            for (vector, column) in columns.iter_mut().enumerate() {
                // SAFETY: `right` has `words` rows of `TILE_VECTORS * len` words, checked above.
                *column = unsafe { ops.load_ptr(right.add(vector * len)) };
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `left` has `words` rows of `MR` words, checked above.
                let value = ops.splat(unsafe { *left.add(row) });
                for (sum, column) in sums.iter_mut().zip(columns) {
                    *sum = ops.mul_add(value, column, *sum);
                }
            }
            // SAFETY: at most one past the end of the checked extent, after the last row.
            (left, right) = unsafe { (left.add(MR), right.add(TILE_VECTORS * len)) };
        }
        sums
    }
}

/// The micro-kernel of words that are `f32`, to be scaled.
struct Integers;

impl<I: Isa> Microkernel<I> for Integers {
    #[inline(always)]
    fn multiply<const MR: usize>(isa: I, words: usize, left: &[u32], right: &[u32]) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        let mut sums = <Singles as Microkernel<I>>::multiply::<MR>(isa, words, left, right);
        let rows = &left[words * MR..][..MR];
        let columns = &right[words * TILE_VECTORS * len..][..TILE_VECTORS * len];
        let columns: &[f32] = bytemuck::cast_slice(columns);
        for (sums, scale) in sums.iter_mut().zip(rows) {
            let scale = ops.splat(f32::from_bits(*scale));
            for (sum, columns) in sums.iter_mut().zip(columns.chunks_exact(len)) {
                *sum = ops.mul(*sum, ops.mul(scale, ops.load(columns)));
            }
        }
        sums
    }
}

/// Images of a matrix each, all with column stride 1, that tasks write disjoint tiles of.
pub(crate) struct Target {
    data: *mut f32,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    row_stride: usize,
    images: usize,
    image_stride: usize,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives the product, and tasks write through it only
// in `store_tile`, `finish_tile` and `row_mut`, each to tiles of its own.
unsafe impl Sync for Target {}

impl Target {
    /// One matrix.
    pub(crate) fn new(out: MatMut<'_>) -> Self {
        let MatMut { data, rows, cols, row_stride, col_stride } = out;
        assert!(col_stride == 1 || cols <= 1, "the output of a product needs a column stride of 1");
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, images: 1, image_stride: 0 }
    }

    /// `images` matrices without gaps between their rows, `image_stride` elements apart.
    ///
    /// # Panics
    /// When the last lies beyond `out`.
    pub(crate) fn images(
        out: &mut [f32],
        images: usize,
        rows: usize,
        cols: usize,
        image_stride: usize,
    ) -> Self {
        assert!(image_stride >= rows * cols && images > 0);
        assert!(out.len() >= (images - 1) * image_stride + rows * cols, "output length");
        Self { data: out.as_mut_ptr(), rows, cols, row_stride: cols, images, image_stride }
    }

    /// The first element of a row of the first image.
    ///
    /// # Panics
    /// When there is no such row.
    pub(crate) fn row_start(&self, row: usize) -> *mut f32 {
        assert!(row < self.rows);
        // SAFETY: inside the output, whose extent was checked when `self` was made.
        unsafe { self.data.add(row * self.row_stride) }
    }

    /// Elements from one image to the next.
    pub(crate) fn image_stride(&self) -> usize {
        self.image_stride
    }

    /// `len` elements of a row.
    ///
    /// # Panics
    /// When they are not all inside the output.
    ///
    /// # Safety
    /// No other reference to them is alive, in this task or another.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub(crate) unsafe fn row_mut(&self, Corner { image, row, col }: Corner, len: usize) -> &mut [f32] {
        assert!(image < self.images && row < self.rows && col + len <= self.cols);
        let at = image * self.image_stride + row * self.row_stride + col;
        // SAFETY: checked above to be inside the output, whose extent was checked when `self` was made; that nobody else has
        // it is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(at), len) }
    }

    /// Asks for a tile some time before it is stored: its rows lie on as many pages, and often not in any cache.
    #[inline(always)]
    pub(crate) fn prefetch(&self, corner: Corner, [mr, nr]: [usize; 2]) {
        let Corner { image, row, col } = corner;
        for row in row..(row + mr).min(self.rows) {
            let place = self.data.wrapping_add(image * self.image_stride + row * self.row_stride + col);
            for line in (0..nr).step_by(16) {
                arch::prefetch_to_write(place.wrapping_add(line));
            }
        }
    }
}

/// A vector that is added to the product.
#[derive(Clone, Copy, Debug, Default)]
pub enum Bias<'a> {
    /// No bias.
    #[default]
    None,
    /// One value for each output row: a convolution's bias.
    PerRow(&'a [f32]),
    /// One value for each output column: a linear layer's bias.
    PerColumn(&'a [f32]),
}

/// A tensor that lies as the output does, image after image.
#[derive(Clone, Copy)]
pub(crate) struct Beside<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) row_stride: usize,
    pub(crate) image_stride: usize,
}

impl<'a> Beside<'a> {
    /// The elements from those beside a row of the first image on, if images lie as far apart as the output's.
    pub(crate) fn rows_of_images(&self, row: usize, target: &Target) -> Option<&'a [f32]> {
        let fits = target.images <= 1 || self.image_stride == target.image_stride;
        let last = target.images.saturating_sub(1) * target.image_stride + target.cols;
        self.data.get(row * self.row_stride..).filter(|rows| fits && rows.len() >= last)
    }

    /// `len` elements beside those of a tile's row.
    #[inline(always)]
    fn row(&self, image: usize, row: usize, col: usize, len: usize) -> &'a [f32] {
        &self.data[image * self.image_stride + row * self.row_stride + col..][..len]
    }
}

/// What happens to the tiles of a product: `(activation(product + bias + residual)) * multiplier`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    pub(crate) bias: Bias<'a>,
    /// Elements from one image's bias to the next one's.
    pub(crate) bias_stride: usize,
    pub(crate) residual: Option<Beside<'a>>,
    pub(crate) activation: Option<UnaryOp>,
    pub(crate) multiplier: Option<Beside<'a>>,
}

impl Finish<'_> {
    /// Asks for what a tile of rows and columns, or what of it is inside the output, is to be finished with.
    #[inline(always)]
    pub(crate) fn prefetch(&self, target: &Target, corner: Corner, [rows, cols]: [usize; 2]) {
        let Corner { image, row, col } = corner;
        let cols = cols.min(target.cols - col);
        for beside in [&self.residual, &self.multiplier].into_iter().flatten() {
            for row in row..(row + rows).min(target.rows) {
                arch::prefetch(bytemuck::cast_slice(beside.row(image, row, col, cols)));
            }
        }
    }

    /// What is added to all of an image's row.
    #[inline(always)]
    pub(crate) fn row_bias(&self, image: usize, row: usize) -> f32 {
        match self.bias {
            Bias::PerRow(bias) => bias[image * self.bias_stride + row],
            Bias::None | Bias::PerColumn(_) => 0.0,
        }
    }
}

/// Where a tile belongs.
#[derive(Clone, Copy)]
pub(crate) struct Corner {
    pub(crate) image: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// Writes a tile to its place, or adds it to what is there, but for the parts beyond the output's edges. The bias is added
/// if there is a `finish`.
#[inline(always)]
pub(crate) fn store_tile<I: Isa, const MR: usize>(
    isa: I,
    sums: Tile<I, MR>,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    finish: Option<&Finish<'_>>,
) {
    let ops = isa.f32();
    let len = ops.len();
    let Corner { image, row, col } = corner;
    let (rows, cols) = (MR.min(target.rows - row), (TILE_VECTORS * len).min(target.cols - col));
    if rows == MR && cols == TILE_VECTORS * len {
        return store_whole::<I, MR>(isa, sums, target, corner, accumulate, finish);
    }
    let bias = finish.map_or(Bias::None, |finish| finish.bias);
    for (index, sums) in sums.into_iter().enumerate() {
        if index >= rows {
            break;
        }
        for (vector, mut value) in sums.into_iter().enumerate() {
            let start = vector * len;
            if start >= cols {
                break;
            }
            let mask = ops.first_n_mask((cols - start).min(len));
            let whole = cols - start >= len;
            let at = image * target.image_stride + (row + index) * target.row_stride + col + start;
            // SAFETY: image, row and column are inside the output, whose extent was checked when `target` was made.
            let place = unsafe { target.data.add(at) };
            if accumulate {
                // SAFETY: all of the vector, or the masked part of it, lies within the row; no other task
                // touches this tile.
                let old = unsafe { if whole { ops.load_ptr(place) } else { ops.load_ptr_mask(place, mask) } };
                value = ops.add(value, old);
            }
            match bias {
                Bias::None => {}
                Bias::PerRow(bias) => {
                    let stride = finish.map_or(0, |finish| finish.bias_stride);
                    value = ops.add(value, ops.splat(bias[image * stride + row + index]));
                }
                Bias::PerColumn(bias) => value = ops.add(value, ops.load_pad(&bias[col + start..]).0),
            }
            // SAFETY: as for the load.
            unsafe {
                if whole { ops.store_ptr(value, place) } else { ops.store_ptr_mask(value, place, mask) }
            }
        }
    }
}

/// [`store_tile`] of a tile within the output's edges.
#[inline(always)]
fn store_whole<I: Isa, const MR: usize>(
    isa: I,
    mut sums: Tile<I, MR>,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    finish: Option<&Finish<'_>>,
) {
    let ops = isa.f32();
    let len = ops.len();
    let Corner { image, row, col } = corner;
    let at = image * target.image_stride + row * target.row_stride + col;
    // SAFETY: image, row and column are inside the output, whose extent was checked when `target` was made.
    let place = unsafe { target.data.add(at) };
    let place = |index: usize, vector: usize| place.wrapping_add(index * target.row_stride + vector * len);
    // One loop after the other, each without branches, so that the tile stays in registers.
    if accumulate {
        for (index, sums) in sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: all of the tile is inside the output, and no other task touches it.
                *sum = ops.add(*sum, unsafe { ops.load_ptr(place(index, vector)) });
            }
        }
    }
    match (finish.map_or(Bias::None, |finish| finish.bias), finish) {
        (Bias::PerRow(bias), Some(finish)) => {
            let bias: &[f32; MR] = bias[image * finish.bias_stride + row..][..MR].as_array().expect("MR");
            for (sums, bias) in sums.iter_mut().zip(bias) {
                *sums = sums.map(|sum| ops.add(sum, ops.splat(*bias)));
            }
        }
        (Bias::PerColumn(bias), _) => {
            let bias: [_; TILE_VECTORS] = std::array::from_fn(|vector| ops.load(&bias[col + vector * len..]));
            for sums in &mut sums {
                for (sum, bias) in sums.iter_mut().zip(bias) {
                    *sum = ops.add(*sum, bias);
                }
            }
        }
        _ => {}
    }
    for (index, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            // SAFETY: as for the load.
            unsafe { ops.store_ptr(sum, place(index, vector)) };
        }
    }
}

/// Does with a stored tile, still in the cache, what comes after the bias.
#[inline(always)]
pub(crate) fn finish_tile<const MR: usize>(target: &Target, corner: Corner, nr: usize, finish: &Finish<'_>) {
    if finish.residual.is_none() && finish.activation.is_none() && finish.multiplier.is_none() {
        return;
    }
    let Corner { image, row, col } = corner;
    let (rows, cols) = (MR.min(target.rows - row), nr.min(target.cols - col));
    for row in row..row + rows {
        let at = image * target.image_stride + row * target.row_stride + col;
        // SAFETY: image, row and columns are inside the output, whose extent was checked when `target` was made, and no
        // other task touches this tile.
        let out = unsafe { std::slice::from_raw_parts_mut(target.data.add(at), cols) };
        if let Some(residual) = &finish.residual {
            out.iter_mut().zip(residual.row(image, row, col, cols)).for_each(|(out, x)| *out += x);
        }
        if let Some(activation) = finish.activation {
            unary_on_this_thread(activation, out);
        }
        if let Some(multiplier) = &finish.multiplier {
            out.iter_mut().zip(multiplier.row(image, row, col, cols)).for_each(|(out, x)| *out *= x);
        }
    }
}
