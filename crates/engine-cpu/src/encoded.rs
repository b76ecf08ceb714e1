//! Compressed weights in the form that the kernels decode while they pack.

use half::f16;
use mixbit_kernels::{Affine, BlockGrid, Encoded, Scaling, WeightSlice};
use mixbit_mil::{DType, Encoding, WeightRef};

/// A compressed weight: its codes stay packed, in their file's memory map where they lie in one. Tables are
/// small, and held decoded.
pub(crate) struct EncodedWeight {
    codes: Codes,
    bits: usize,
    len: usize,
    tables: Vec<f32>,
    grid: BlockGrid,
    scaling: HeldScaling,
}

/// A stream of codes.
enum Codes {
    Mapped(WeightRef),
    /// A packed copy, of codes that are computed.
    Held(Vec<u8>),
}

/// One value for each block.
type Blocked<T> = (Vec<T>, BlockGrid);

/// [`Scaling`] with its values.
enum HeldScaling {
    None,
    F16(Blocked<f16>, Option<Blocked<f16>>),
    F32(Blocked<f32>, Option<Blocked<f32>>),
}

impl EncodedWeight {
    /// `None` for what the kernels do not decode: vector palettes, sparse weights, blocks along other axes
    /// than the first two, views that move elements, casts that round.
    pub(crate) fn new(weight: &WeightRef) -> Option<Self> {
        let stored = weight.stored_dtype();
        let exact = stored == weight.ty().dtype || (stored, weight.ty().dtype) == (DType::F16, DType::F32);
        if !exact || !matches!(stored, DType::F16 | DType::F32) {
            return None;
        }
        match weight.encoding()? {
            encoding @ Encoding::Lut { .. } => Self::palette(encoding),
            Encoding::ShiftScale { data, scale, offset } => {
                let mut weight = match data.encoding() {
                    Some(encoding) => Self::palette(encoding)?,
                    None => Self::integers(data)?,
                };
                let shape = &data.ty().shape;
                let blocked = |operand: &WeightRef| {
                    Some((mixbit_mil::constexpr::numbers(operand), grid(shape, &operand.ty().shape)?))
                };
                let scale = blocked(scale)?;
                let offset = match offset {
                    Some(offset) => Some(blocked(offset)?),
                    None => None,
                };
                weight.scaling = match stored {
                    DType::F16 => {
                        let round = |values: Vec<f32>| values.into_iter().map(f16::from_f32).collect();
                        weight.tables.iter_mut().for_each(|entry| *entry = f16::from_f32(*entry).to_f32());
                        let halves = |(values, grid)| (round(values), grid);
                        HeldScaling::F16(halves(scale), offset.map(halves))
                    }
                    _ => HeldScaling::F32(scale, offset),
                };
                Some(weight)
            }
            Encoding::Sparse { .. } | Encoding::Nonzero { .. } => None,
        }
    }

    /// A table's entries by index.
    fn palette(encoding: &Encoding) -> Option<Self> {
        let Encoding::Lut { indices, bits, shape, lut, .. } = encoding else { return None };
        let (blocks, row) = lut.ty().shape.split_at_checked(shape.len())?;
        if row != [1 << bits, 1] {
            return None;
        }
        let (tables, grid) = (mixbit_mil::constexpr::numbers(lut), grid(shape, blocks)?);
        Self::unscaled(indices, *bits, shape.iter().product(), (tables, grid))
    }

    /// Integers, by a table of all that their type has.
    fn integers(data: &WeightRef) -> Option<Self> {
        let dtype = data.stored_dtype();
        let bits = dtype.bits();
        if !dtype.is_int() || bits > 8 {
            return None;
        }
        let signed = matches!(dtype, DType::I4 | DType::I8);
        let value = |code: i32| if signed && code >= 1 << (bits - 1) { code - (1 << bits) } else { code };
        let tables = (0..1 << bits).map(|code| value(code) as f32).collect();
        let shape = &data.ty().shape;
        let whole = grid(shape, &vec![1; shape.len()])?;
        Self::unscaled(data, bits, data.ty().count(), (tables, whole))
    }

    fn unscaled(codes: &WeightRef, bits: usize, len: usize, tables: Blocked<f32>) -> Option<Self> {
        let (tables, grid) = tables;
        if !matches!(bits, 1..=4 | 6 | 8) {
            return None;
        }
        let codes = match codes.read_stored() {
            std::borrow::Cow::Borrowed(_) => Codes::Mapped(codes.clone()),
            std::borrow::Cow::Owned(bytes) => Codes::Held(bytes),
        };
        Some(EncodedWeight { codes, bits, len, tables, grid, scaling: HeldScaling::None })
    }

    /// The elements.
    pub(crate) fn slice(&self) -> WeightSlice<'_> {
        let codes = match &self.codes {
            Codes::Mapped(codes) => match codes.read_stored() {
                std::borrow::Cow::Borrowed(bytes) => bytes,
                // Borrowed when the weight was made, and the same since.
                std::borrow::Cow::Owned(_) => &[],
            },
            Codes::Held(bytes) => bytes,
        };
        let scaling = match &self.scaling {
            HeldScaling::None => Scaling::None,
            HeldScaling::F16(scale, offset) => Scaling::F16(affine(scale, offset.as_ref())),
            HeldScaling::F32(scale, offset) => Scaling::F32(affine(scale, offset.as_ref())),
        };
        WeightSlice::Encoded(Encoded::new(codes, self.bits, self.len, (&self.tables, self.grid), scaling))
    }

    /// Bytes of codes, tables, scales and offsets.
    pub(crate) fn bytes(&self) -> usize {
        let scaling = match &self.scaling {
            HeldScaling::None => 0,
            HeldScaling::F16(scale, offset) => {
                blocked_bytes(scale) + offset.as_ref().map_or(0, blocked_bytes)
            }
            HeldScaling::F32(scale, offset) => {
                blocked_bytes(scale) + offset.as_ref().map_or(0, blocked_bytes)
            }
        };
        (self.len * self.bits).div_ceil(8) + size_of_val(&*self.tables) + scaling
    }
}

fn affine<'a, T>(scale: &'a Blocked<T>, offset: Option<&'a Blocked<T>>) -> Affine<'a, T> {
    Affine { scale: (&scale.0, scale.1), offset: offset.map(|(values, grid)| (&values[..], *grid)) }
}

fn blocked_bytes<T>((values, _): &Blocked<T>) -> usize {
    size_of_val(&**values)
}

/// The blocks of a tensor of `shape` as blocks of a matrix: rows are the first axis that is longer than 1,
/// columns all after it, and only the first two such axes may have several blocks. A convolution's groups of
/// output and of input channels are of this kind.
fn grid(shape: &[usize], blocks: &[usize]) -> Option<BlockGrid> {
    let mut long = (0..shape.len()).filter(|&axis| shape[axis] != 1);
    let axis = |axis: Option<usize>| axis.map_or([1, 1], |axis| [shape[axis], blocks[axis]]);
    let [rows, row_blocks] = axis(long.next());
    let [_, column_blocks] = axis(long.next());
    if long.any(|axis| blocks[axis] != 1) || row_blocks == 0 || column_blocks == 0 {
        return None;
    }
    let columns = shape.iter().product::<usize>().checked_div(rows)?;
    Some(BlockGrid { columns, block: [rows / row_blocks, columns / column_blocks] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_the_first_two_long_axes_are_blocks_of_a_matrix() {
        let found = |shape: &[usize], blocks: &[usize]| {
            grid(shape, blocks).map(|grid| (grid.columns, grid.block[0], grid.block[1]))
        };
        assert_eq!(found(&[8, 6, 3, 3], &[1, 1, 1, 1]), Some((54, 8, 54)));
        assert_eq!(found(&[8, 6, 3, 3], &[4, 1, 1, 1]), Some((54, 2, 54)));
        assert_eq!(found(&[8, 6, 3, 3], &[1, 2, 1, 1]), Some((54, 8, 27)));
        assert_eq!(found(&[8, 6, 3, 3], &[1, 1, 3, 1]), None);
        assert_eq!(found(&[1, 6, 1, 4], &[1, 3, 1, 2]), Some((4, 2, 2)));
        assert_eq!(found(&[1, 1], &[1, 1]), Some((1, 1, 1)));
        assert_eq!(found(&[6], &[3]), Some((1, 2, 1)));
    }
}
