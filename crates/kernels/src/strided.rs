//! Index arithmetic over strided tensors.

/// The largest rank that kernels take.
pub const MAX_RANK: usize = 6;

/// One axis of a walk over `N` operands: its length and each operand's stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis<const N: usize> {
    pub(crate) len: usize,
    pub(crate) strides: [usize; N],
}

/// The axes of a row-major walk, outermost first, with axes merged wherever all operands allow it.
///
/// There is always at least one axis.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk<const N: usize> {
    axes: [Axis<N>; MAX_RANK],
    rank: usize,
}

impl<const N: usize> Walk<N> {
    /// A walk over `shape` where operand `n` has `strides[n]`.
    pub(crate) fn new(shape: &[usize], strides: [&[usize]; N]) -> Self {
        assert!(shape.len() <= MAX_RANK, "rank {} exceeds {MAX_RANK}", shape.len());
        for strides in strides {
            assert_eq!(strides.len(), shape.len(), "an operand's rank differs from the shape's");
        }
        let mut walk = Self { axes: [Axis { len: 1, strides: [0; N] }; MAX_RANK], rank: 0 };
        for (index, &len) in shape.iter().enumerate().filter(|(_, len)| **len != 1) {
            let axis = Axis { len, strides: strides.map(|strides| strides[index]) };
            if let Some(last) = walk.rank.checked_sub(1).map(|last| &mut walk.axes[last])
                && (0..N).all(|n| Some(last.strides[n]) == axis.strides[n].checked_mul(len))
            {
                *last = Axis { len: last.len * len, strides: axis.strides };
            } else {
                walk.axes[walk.rank] = axis;
                walk.rank += 1;
            }
        }
        walk.rank = walk.rank.max(1);
        walk
    }

    /// The axes, outermost first.
    pub(crate) fn axes(&self) -> &[Axis<N>] {
        &self.axes[..self.rank]
    }

    /// The outer axes, and the innermost one.
    pub(crate) fn split_inner(&self) -> (&[Axis<N>], Axis<N>) {
        (&self.axes[..self.rank - 1], self.axes[self.rank - 1])
    }

    /// Panics unless all elements of operand `n` lie within `len`.
    pub(crate) fn check_extent(&self, n: usize, len: usize) {
        if self.axes().iter().any(|axis| axis.len == 0) {
            return;
        }
        let needed = self.axes().iter().try_fold(1_usize, |needed, axis| {
            needed.checked_add((axis.len - 1).checked_mul(axis.strides[n])?)
        });
        assert!(needed.is_some_and(|needed| needed <= len), "operand {n} exceeds its {len} elements");
    }
}

/// Each operand's offset at the `index`-th position of a row-major walk over `axes`.
pub(crate) fn offsets<const N: usize>(axes: &[Axis<N>], mut index: usize) -> [usize; N] {
    let mut offsets = [0; N];
    for axis in axes.iter().rev() {
        let position = index % axis.len;
        index /= axis.len;
        for (offset, stride) in offsets.iter_mut().zip(axis.strides) {
            *offset += position * stride;
        }
    }
    offsets
}

/// The strides of a row-major tensor without gaps. Only the first `shape.len()` count.
pub fn contiguous_strides(shape: &[usize]) -> [usize; MAX_RANK] {
    assert!(shape.len() <= MAX_RANK, "rank {} exceeds {MAX_RANK}", shape.len());
    let mut strides = [0; MAX_RANK];
    let mut step = 1;
    for (index, len) in shape.iter().enumerate().rev() {
        strides[index] = step;
        step *= len;
    }
    strides
}

/// The strides within `out_shape` of a row-major tensor of `shape` under NumPy's broadcasting; `None` when
/// the shapes do not broadcast. Only the first `out_shape.len()` strides count.
pub fn broadcast_strides(shape: &[usize], out_shape: &[usize]) -> Option<[usize; MAX_RANK]> {
    let missing = out_shape.len().checked_sub(shape.len())?;
    let own = contiguous_strides(shape);
    let mut strides = [0; MAX_RANK];
    for (index, &len) in shape.iter().enumerate() {
        if len == out_shape[missing + index] {
            strides[missing + index] = if len == 1 { 0 } else { own[index] };
        } else if len != 1 {
            return None;
        }
    }
    Some(strides)
}

#[cfg(test)]
mod tests;
