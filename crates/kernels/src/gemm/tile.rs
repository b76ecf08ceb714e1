//! The micro-kernel: one tile of the output in registers, and its way to memory.

use rten_simd::ops::{BitOps, NumOps};
use rten_simd::{Isa, SimdOp};

use super::prefetch::{Ahead, LINE};
use crate::gemm::format::Format;
use crate::gemm::pack::PackedSide;
use crate::isa;
use crate::matrix::MatMut;
use crate::simd;
use crate::unary::{UnaryOp, coarse_on_this_thread, unary_on_this_thread};

/// Rows of the tile where 32 registers are known to exist, and elsewhere.
pub(crate) const WIDE_MR: usize = 12;
/// The same of products whose rows fit better: two sequences of 77 tokens.
pub(crate) const LOWER_MR: usize = 11;
pub(crate) const NARROW_MR: usize = 6;
/// Vectors in a tile row.
pub(crate) const TILE_VECTORS: usize = 2;

/// Whether this instruction set has the registers for [`WIDE_MR`] rows. Constant once compiled.
#[inline(always)]
pub(crate) fn is_wide<I: Isa>(isa: I) -> bool {
    isa.f32().len() == 16
}

/// The micro-kernel's tile: rows and columns of the output in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileShape {
    pub(crate) mr: usize,
    pub(crate) nr: usize,
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

/// Rows of the tiles of a product, where there are registers for [`WIDE_MR`].
const PRODUCT_HEIGHTS: [usize; 2] = [LOWER_MR, WIDE_MR];

/// The lanes of a panel of so many.
pub(crate) fn panel_width(side: PackedSide, lanes: usize) -> usize {
    match side {
        PackedSide::Left => best_height(lanes, &PRODUCT_HEIGHTS),
        PackedSide::Right => tile_shape().nr,
    }
}

/// The tile height, of those given where there are registers for them, that wastes least time on missing rows and on the tiles'
/// ends, each worth half a row.
pub(crate) fn best_height(rows: usize, heights: &[usize]) -> usize {
    let mr = tile_shape().mr;
    if mr != WIDE_MR {
        return mr;
    }
    let cost = |height: usize| rows.div_ceil(height) * (2 * height + 1);
    heights.iter().copied().min_by_key(|height| cost(*height)).unwrap_or(mr)
}

/// A tile of sums in registers.
pub(crate) type Tile<I, const MR: usize> = [[<I as Isa>::F32; TILE_VECTORS]; MR];

/// Multiplies panels of one [`Format`].
pub(crate) trait Microkernel<I: Isa> {
    /// The product of a left panel, `MR` lanes wide, and a right panel over `words` words of each lane. Meanwhile it asks for
    /// what is `ahead`.
    fn multiply<const MR: usize, A: Ahead>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        ahead: A,
    ) -> Tile<I, MR>;
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
        Format::Pairs => simd::dispatch_pairs(op),
        Format::Quads => simd::dispatch_quads(op),
    }
}

/// The micro-kernel of words that are `f32`.
struct Singles;

impl<I: Isa> Microkernel<I> for Singles {
    #[inline(always)]
    fn multiply<const MR: usize, A: Ahead>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        ahead: A,
    ) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        assert!(left.len() >= words * MR && right.len() >= words * TILE_VECTORS * len);
        let mut sums = [[ops.zero(); TILE_VECTORS]; MR];
        let (mut left, mut right) = (left.as_ptr().cast::<f32>(), right.as_ptr().cast::<f32>());
        for part in 0..A::PARTS {
            ahead.ask(part);
            for _ in A::words(part, words) {
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
        }
        sums
    }
}

/// The micro-kernel of words that are `f32`, to be scaled.
struct Integers;

impl<I: Isa> Microkernel<I> for Integers {
    #[inline(always)]
    fn multiply<const MR: usize, A: Ahead>(
        isa: I,
        words: usize,
        left: &[u32],
        right: &[u32],
        ahead: A,
    ) -> Tile<I, MR> {
        let ops = isa.f32();
        let len = ops.len();
        let mut sums = <Singles as Microkernel<I>>::multiply::<MR, A>(isa, words, left, right, ahead);
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
// in `store_tile` and `row_mut`, each to tiles of its own.
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

    /// Where an element is, if there is one.
    #[inline(always)]
    fn place(&self, Corner { image, row, col }: Corner) -> *mut f32 {
        self.data.wrapping_add(image * self.image_stride + row * self.row_stride + col)
    }

    /// Whether all rows and columns of a tile are inside the output.
    #[inline(always)]
    fn has_whole(&self, Corner { row, col, .. }: Corner, [mr, nr]: [usize; 2]) -> bool {
        row + mr <= self.rows && col + nr <= self.cols
    }

    /// Asks for `nr` elements of a row some time before they are stored: rows lie on as many pages, and often not in any cache.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, corner: Corner, nr: usize) {
        let place = self.place(corner);
        for line in (0..nr).step_by(LINE) {
            simd::prefetch_to_write(place.wrapping_add(line));
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

/// What happens to the tiles of a product: `activation(product + bias + residual)`; or, with a `gate`,
/// `(product + bias) * gate(product of the gates + bias)`, where the gates' bias lies behind the other.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    pub(crate) bias: Bias<'a>,
    /// Elements from one image's bias to the next one's.
    pub(crate) bias_stride: usize,
    pub(crate) residual: Option<Beside<'a>>,
    pub(crate) activation: Option<UnaryOp>,
    pub(crate) gate: Option<UnaryOp>,
    /// Whether activations need no more than the accuracy of rounded products.
    pub(crate) coarse: bool,
}

impl Finish<'_> {
    /// Asks for what `nr` elements of a row are to be finished with.
    #[inline(always)]
    pub(crate) fn prefetch_row(&self, Corner { image, row, col }: Corner, nr: usize) {
        if let Some(Beside { data, row_stride, image_stride }) = self.residual {
            let place = data.as_ptr().wrapping_add(image * image_stride + row * row_stride + col);
            for line in (0..nr).step_by(LINE) {
                simd::prefetch_line(place.wrapping_add(line));
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

    /// How the gates are finished before they multiply.
    pub(crate) fn gates(&self, target: &Target) -> Self {
        let bias = match self.bias {
            Bias::None => Bias::None,
            Bias::PerRow(bias) => Bias::PerRow(&bias[target.rows..]),
            Bias::PerColumn(bias) => Bias::PerColumn(&bias[target.cols..]),
        };
        Self { bias, residual: None, activation: self.gate, gate: None, ..*self }
    }

    /// Applies the activation.
    #[inline(always)]
    fn activate(&self, values: &mut [f32]) {
        match self.activation {
            Some(activation) if self.coarse => coarse_on_this_thread(activation, values),
            Some(activation) => unary_on_this_thread(activation, values),
            None => {}
        }
    }

    /// Finishes elements of one row but for the gate.
    #[inline(always)]
    pub(crate) fn finish_row(&self, Corner { image, row, col }: Corner, values: &mut [f32]) {
        match self.bias {
            Bias::None => {}
            Bias::PerRow(_) => {
                let bias = self.row_bias(image, row);
                values.iter_mut().for_each(|x| *x += bias);
            }
            Bias::PerColumn(bias) => {
                let bias = &bias[image * self.bias_stride + col..];
                values.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
            }
        }
        if let Some(residual) = &self.residual {
            let residual = residual.row(image, row, col, values.len());
            values.iter_mut().zip(residual).for_each(|(x, residual)| *x += residual);
        }
        self.activate(values);
    }

    /// Finishes a tile within the output's edges but for the gate: one loop after the other, each without branches, so that it
    /// stays in registers.
    #[inline(always)]
    fn finish_whole<I: Isa, const MR: usize>(&self, isa: I, sums: &mut Tile<I, MR>, corner: Corner) {
        let ops = isa.f32();
        let len = ops.len();
        let Corner { image, row, col } = corner;
        match self.bias {
            Bias::None => {}
            Bias::PerRow(bias) => {
                let bias: &[f32; MR] = bias[image * self.bias_stride + row..].first_chunk().expect("MR rows");
                for (sums, bias) in sums.iter_mut().zip(bias) {
                    for sum in sums {
                        *sum = ops.add(*sum, ops.splat(*bias));
                    }
                }
            }
            Bias::PerColumn(bias) => {
                let mut columns = [ops.zero(); TILE_VECTORS];
                let bias = &bias[image * self.bias_stride + col..];
                for (column, bias) in columns.iter_mut().zip(bias.chunks_exact(len)) {
                    *column = ops.load(bias);
                }
                for sums in sums.iter_mut() {
                    for (sum, column) in sums.iter_mut().zip(&columns) {
                        *sum = ops.add(*sum, *column);
                    }
                }
            }
        }
        if let Some(residual) = &self.residual {
            for (index, sums) in sums.iter_mut().enumerate() {
                let residual = residual.row(image, row + index, col, TILE_VECTORS * len);
                for (sum, residual) in sums.iter_mut().zip(residual.chunks_exact(len)) {
                    *sum = ops.add(*sum, ops.load(residual));
                }
            }
        }
        if self.activation.is_some() {
            let mut tile = Spilled::of::<I, MR>(isa, sums);
            self.activate(&mut tile.0[..MR * TILE_VECTORS * len]);
            for (sum, values) in sums.as_flattened_mut().iter_mut().zip(tile.0.chunks_exact(len)) {
                *sum = ops.load(values);
            }
        }
    }

    /// A finished tile, in memory.
    #[inline(always)]
    pub(crate) fn spilled<I: Isa, const MR: usize>(
        &self,
        isa: I,
        mut sums: Tile<I, MR>,
        target: &Target,
        corner: Corner,
    ) -> Spilled {
        let nr = TILE_VECTORS * isa.f32().len();
        if target.has_whole(corner, [MR, nr]) {
            self.finish_whole::<I, MR>(isa, &mut sums, corner);
            return Spilled::of::<I, MR>(isa, &sums);
        }
        let mut tile = Spilled::of::<I, MR>(isa, &sums);
        for (row, values) in (corner.row..target.rows).zip(tile.rows_mut::<MR>(nr)) {
            self.finish_row(Corner { row, ..corner }, &mut values[..nr.min(target.cols - corner.col)]);
        }
        tile
    }
}

/// Where a tile belongs.
#[derive(Clone, Copy)]
pub(crate) struct Corner {
    pub(crate) image: usize,
    pub(crate) row: usize,
    pub(crate) col: usize,
}

/// Elements of the largest tile.
const LARGEST_TILE: usize = WIDE_MR * TILE_VECTORS * 16;

/// A tile in memory, row after row.
pub(crate) struct Spilled([f32; LARGEST_TILE]);

impl Spilled {
    #[inline(always)]
    fn of<I: Isa, const MR: usize>(isa: I, sums: &Tile<I, MR>) -> Self {
        let mut tile = Self([0.0; LARGEST_TILE]);
        for (sum, place) in sums.as_flattened().iter().zip(tile.0.chunks_exact_mut(isa.f32().len())) {
            isa.f32().store(*sum, place);
        }
        tile
    }

    /// The rows of a tile of `MR` rows of `nr` elements.
    #[inline(always)]
    fn rows_mut<const MR: usize>(&mut self, nr: usize) -> impl Iterator<Item = &mut [f32]> {
        self.0.chunks_exact_mut(nr).take(MR)
    }
}

/// Writes a tile to its place, or adds it to what is there, but for the parts beyond the output's edges. It is finished if
/// there is a `finish`, and multiplied by `gates`, which are.
#[inline(always)]
pub(crate) fn store_tile<I: Isa, const MR: usize>(
    isa: I,
    mut sums: Tile<I, MR>,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    finish: Option<&Finish<'_>>,
    gates: Option<&Spilled>,
) {
    let ops = isa.f32();
    let len = ops.len();
    let nr = TILE_VECTORS * len;
    if !target.has_whole(corner, [MR, nr]) {
        let mut tile = Spilled::of::<I, MR>(isa, &sums);
        return store_part::<MR>(&mut tile, nr, target, corner, accumulate, finish, gates);
    }
    // Read once: as far as the compiler knows, stores could change them.
    let (first, row_stride) = (target.place(corner), target.row_stride);
    let place = |row: usize, vector: usize| first.wrapping_add(row * row_stride + vector * len);
    if accumulate {
        for (row, sums) in sums.iter_mut().enumerate() {
            for (vector, sum) in sums.iter_mut().enumerate() {
                // SAFETY: all of the tile is inside the output, and no other task touches it.
                *sum = ops.add(*sum, unsafe { ops.load_ptr(place(row, vector)) });
            }
        }
    }
    if let Some(finish) = finish {
        finish.finish_whole::<I, MR>(isa, &mut sums, corner);
    }
    if let Some(gates) = gates {
        for (sum, gates) in sums.as_flattened_mut().iter_mut().zip(gates.0.chunks_exact(len)) {
            *sum = ops.mul(*sum, ops.load(gates));
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (vector, sum) in sums.iter().enumerate() {
            // SAFETY: as for the load.
            unsafe { ops.store_ptr(*sum, place(row, vector)) };
        }
    }
}

/// [`store_tile`] of a tile that lies across the output's edges.
#[inline(never)]
fn store_part<const MR: usize>(
    tile: &mut Spilled,
    nr: usize,
    target: &Target,
    corner: Corner,
    accumulate: bool,
    finish: Option<&Finish<'_>>,
    gates: Option<&Spilled>,
) {
    let cols = nr.min(target.cols - corner.col);
    for (index, values) in tile.rows_mut::<MR>(nr).enumerate().take(target.rows - corner.row) {
        let (values, corner) = (&mut values[..cols], Corner { row: corner.row + index, ..corner });
        // SAFETY: no other task touches this tile.
        let out = unsafe { target.row_mut(corner, cols) };
        if accumulate {
            values.iter_mut().zip(&*out).for_each(|(x, old)| *x += old);
        }
        if let Some(finish) = finish {
            finish.finish_row(corner, values);
        }
        if let Some(gates) = gates {
            values.iter_mut().zip(&gates.0[index * nr..]).for_each(|(x, gate)| *x *= gate);
        }
        out.copy_from_slice(values);
    }
}
