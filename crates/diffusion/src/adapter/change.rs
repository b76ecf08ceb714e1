//! The change of one weight, in the form that an adapter stores it.
//!
//! A weight of a convolution is a matrix here: one row for each output channel, one column for each input
//! channel and place of the kernel. `alpha / rank` scales the change once, in every form.

use mixbit_mil::{DType, WeightError, WeightRef};
use rayon::prelude::*;

/// Rows of one task.
const ROWS: usize = 16;

/// The change of a weight.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// LoRA and LoCon: a product.
    LowRank(Factors),
    /// LoHa: the element-wise product of two products.
    Hadamard(Factors, Factors),
    /// LoKr: a Kronecker product.
    Kronecker(Operand, Operand),
    /// The difference itself.
    Full(WeightRef),
}

/// A product of two matrices, with a core between them in Tucker's decomposition.
#[derive(Clone, Debug)]
pub(super) struct Factors {
    /// Rows by rank; the other way round if `by_rank`.
    pub(super) left: WeightRef,
    /// Rank by columns; with a core, rank by input channels.
    pub(super) right: WeightRef,
    /// Rank by rank by the kernel's extents.
    pub(super) core: Option<WeightRef>,
    /// True if the rank is the first axis of `left` too, as LyCORIS has it with a core.
    pub(super) by_rank: bool,
}

/// An operand of a Kronecker product.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Full(WeightRef),
    Product(Factors),
}

/// Rows and columns of a tensor as a matrix.
pub(super) fn extent(weight: &WeightRef) -> [usize; 2] {
    let shape = &weight.ty().shape;
    let rows = shape.first().copied().unwrap_or(1);
    [rows, shape.iter().skip(1).product()]
}

/// The elements as `f32`.
pub(super) fn floats(weight: &WeightRef) -> Result<Vec<f32>, WeightError> {
    let weight = weight.cast(DType::F32);
    let bytes = weight.read()?;
    Ok(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
}

impl Factors {
    /// The rank, and the product's rows and columns.
    ///
    /// # Errors
    /// The misfit of the factors.
    pub(super) fn extent(&self) -> Result<(usize, [usize; 2]), String> {
        let ([left_rows, left_columns], [right_rows, columns]) = (extent(&self.left), extent(&self.right));
        let (rows, rank) = if self.by_rank { (left_columns, left_rows) } else { (left_rows, left_columns) };
        let misfit = || {
            let shapes = [Some(&self.left), Some(&self.right), self.core.as_ref()];
            let shapes: Vec<String> =
                shapes.into_iter().flatten().map(|it| format!("{:?}", it.ty().shape)).collect();
            format!("its factors of the shapes {} don't fit each other", shapes.join(" and "))
        };
        let Some(core) = &self.core else {
            return if rank == right_rows { Ok((rank, [rows, columns])) } else { Err(misfit()) };
        };
        let shape = &core.ty().shape;
        match shape.get(..2) {
            Some(&[first, second]) if first == rank && second == right_rows => {
                let kernel: usize = shape[2..].iter().product();
                let columns = columns.checked_mul(kernel).ok_or_else(misfit)?;
                Ok((second, [rows, columns]))
            }
            _ => Err(misfit()),
        }
    }

    /// Rows by rank.
    pub(super) fn left(&self) -> Result<Vec<f32>, WeightError> {
        let values = floats(&self.left)?;
        let [rank, rows] = extent(&self.left);
        if !self.by_rank {
            return Ok(values);
        }
        let places = (0..rows).flat_map(|row| (0..rank).map(move |at| at * rows + row));
        Ok(places.map(|place| values[place]).collect())
    }

    /// Rank by columns; a core is multiplied in.
    pub(super) fn right(&self) -> Result<Vec<f32>, WeightError> {
        let right = floats(&self.right)?;
        let Some(core) = &self.core else { return Ok(right) };
        let [inner, channels] = extent(&self.right);
        let [rank, rest] = extent(core);
        let kernel = rest / inner.max(1);
        let core = floats(core)?;
        let mut out = vec![0.0; rank * channels * kernel];
        for at in 0..rank {
            for other in 0..inner {
                let core = &core[(at * inner + other) * kernel..][..kernel];
                for channel in 0..channels {
                    let factor = right[other * channels + channel];
                    let out = &mut out[(at * channels + channel) * kernel..][..kernel];
                    out.iter_mut().zip(core).for_each(|(out, core)| *out += factor * core);
                }
            }
        }
        Ok(out)
    }

    /// Adds rows of the product, from `first` on, times `scale`.
    fn add(&self, first: usize, scale: f32, out: &mut [f32], columns: usize) -> Result<(), WeightError> {
        let (left, right) = (self.left()?, self.right()?);
        let rank = right.len() / columns.max(1);
        add_product(&left[first * rank..], &right, rank, scale, out, columns);
        Ok(())
    }

    /// The product.
    fn dense(&self, [rows, columns]: [usize; 2]) -> Result<Vec<f32>, WeightError> {
        let mut out = vec![0.0; rows * columns];
        self.add(0, 1.0, &mut out, columns)?;
        Ok(out)
    }
}

/// Adds `left * right * scale`. `left` has `rank` values for each row of `out`.
fn add_product(left: &[f32], right: &[f32], rank: usize, scale: f32, out: &mut [f32], columns: usize) {
    if rank == 0 || columns == 0 {
        return;
    }
    out.par_chunks_mut(columns * ROWS).zip(left.par_chunks(rank * ROWS)).for_each(|(out, left)| {
        for (out, left) in out.chunks_exact_mut(columns).zip(left.chunks_exact(rank)) {
            let (fours, rest) = left.as_chunks::<4>();
            let (right_fours, right_rest) = right.split_at(fours.len() * 4 * columns);
            // Four rows at once: the output is loaded and stored a quarter as often.
            for (factors, rows) in fours.iter().zip(right_fours.chunks_exact(4 * columns)) {
                let [a, b, c, d] = factors.map(|factor| factor * scale);
                let (first, second) = rows.split_at(2 * columns);
                let ((w, x), (y, z)) = (first.split_at(columns), second.split_at(columns));
                for ((((out, w), x), y), z) in out.iter_mut().zip(w).zip(x).zip(y).zip(z) {
                    *out += (a * w + b * x) + (c * y + d * z);
                }
            }
            for (factor, row) in rest.iter().zip(right_rest.chunks_exact(columns)) {
                let factor = factor * scale;
                out.iter_mut().zip(row).for_each(|(out, value)| *out += factor * value);
            }
        }
    });
}

impl Operand {
    /// The rank, if it is a product, and rows and columns.
    fn extent(&self) -> Result<(Option<usize>, [usize; 2]), String> {
        match self {
            Operand::Full(weight) => Ok((None, extent(weight))),
            Operand::Product(factors) => factors.extent().map(|(rank, extent)| (Some(rank), extent)),
        }
    }

    fn dense(&self, extent: [usize; 2]) -> Result<Vec<f32>, WeightError> {
        match self {
            Operand::Full(weight) => floats(weight),
            Operand::Product(factors) => factors.dense(extent),
        }
    }
}

impl Change {
    /// The rank by which `alpha` is divided, if there is one, and the matrix's rows and columns.
    ///
    /// # Errors
    /// The misfit of the parts.
    pub(super) fn extent(&self) -> Result<(Option<usize>, [usize; 2]), String> {
        match self {
            Change::LowRank(factors) => factors.extent().map(|(rank, extent)| (Some(rank), extent)),
            Change::Hadamard(one, other) => {
                let ((rank, extent), (_, second)) = (one.extent()?, other.extent()?);
                match extent == second {
                    true => Ok((Some(rank), extent)),
                    false => Err(format!("its products of {extent:?} and {second:?} don't fit each other")),
                }
            }
            Change::Kronecker(one, other) => {
                let ((first_rank, first), (second_rank, second)) = (one.extent()?, other.extent()?);
                let extents = [0, 1].map(|axis| first[axis].checked_mul(second[axis]));
                let [Some(rows), Some(columns)] = extents else {
                    return Err("its Kronecker product is too large".to_string());
                };
                Ok((first_rank.or(second_rank), [rows, columns]))
            }
            Change::Full(weight) => Ok((None, extent(weight))),
        }
    }

    /// Adds rows of the change, from `first` on, times `scale`, to rows of `columns` elements.
    ///
    /// # Errors
    /// [`WeightError`] if a part can't be read.
    pub(super) fn add(
        &self,
        first: usize,
        scale: f32,
        out: &mut [f32],
        columns: usize,
    ) -> Result<(), WeightError> {
        let add = |change: &[f32], out: &mut [f32]| {
            let change = &change[first * columns..][..out.len()];
            out.iter_mut().zip(change).for_each(|(out, change)| *out += scale * change);
        };
        match self {
            Change::LowRank(factors) => factors.add(first, scale, out, columns)?,
            Change::Hadamard(one, other) => {
                let rows = first + out.len() / columns.max(1);
                let all = one.extent().map_or([rows, columns], |(_, extent)| extent);
                let (mut one, other) = (one.dense(all)?, other.dense(all)?);
                one.iter_mut().zip(&other).for_each(|(one, other)| *one *= other);
                add(&one, out);
            }
            Change::Kronecker(one, other) => add_kronecker([one, other], first, scale, out, columns)?,
            Change::Full(weight) => add(&floats(weight)?, out),
        }
        Ok(())
    }

    /// The tensors that it is computed from.
    pub(super) fn parts(&self) -> Vec<&WeightRef> {
        fn of(factors: &Factors) -> Vec<&WeightRef> {
            [&factors.left, &factors.right].into_iter().chain(&factors.core).collect()
        }
        match self {
            Change::LowRank(factors) => of(factors),
            Change::Hadamard(one, other) => [of(one), of(other)].concat(),
            Change::Kronecker(one, other) => {
                let operands = [one, other].into_iter();
                operands
                    .flat_map(|operand| match operand {
                        Operand::Full(weight) => vec![weight],
                        Operand::Product(factors) => of(factors),
                    })
                    .collect()
            }
            Change::Full(weight) => vec![weight],
        }
    }
}

fn add_kronecker(
    operands: [&Operand; 2],
    first: usize,
    scale: f32,
    out: &mut [f32],
    columns: usize,
) -> Result<(), WeightError> {
    let [Ok((_, one)), Ok((_, two))] = operands.map(Operand::extent) else { return Ok(()) };
    let (left, right) = (operands[0].dense(one)?, operands[1].dense(two)?);
    out.par_chunks_mut(columns.max(1)).enumerate().for_each(|(row, out)| {
        let (outer, inner) = ((first + row) / two[0], (first + row) % two[0]);
        let right = &right[inner * two[1]..][..two[1]];
        for (factor, out) in left[outer * one[1]..][..one[1]].iter().zip(out.chunks_exact_mut(two[1])) {
            let factor = factor * scale;
            out.iter_mut().zip(right).for_each(|(out, value)| *out += factor * value);
        }
    });
    Ok(())
}
