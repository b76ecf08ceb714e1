//! CPU kernels for diffusion models: matrix products, convolution, attention, normalisation, element-wise
//! functions and data movement, over `f32` with weights in `f32`, `f16`, `bf16` or compressed.
//!
//! A kernel is a function over slices, sizes and strides: it knows no tensors and no graph, and it writes into
//! the caller's buffer. The key types:
//!
//! - [`MatRef`], [`MatMut`] and [`Operand`]: strided matrices, and the two sides of [`gemm`], which may also be
//!   half-precision or [`Encoded`] weights (widened panel by panel, never copied whole) or a [`PackedMatrix`];
//! - [`ConvShape`] for [`conv2d`], [`Attention`] with [`HeadLayout`]s for [`attention`], [`AxisShape`] for what
//!   works along one axis, [`Strided`] for what broadcasts or permutes;
//! - [`ThreadPool`]: kernels run on the pool they are called in.
//!
//! ```
//! use mixbit_kernels::{Bias, Epilogue, Mat, MatMut, Precision, ThreadPool, WeightSlice, gemm};
//!
//! // A linear layer: tokens[2, 3] times the transposed weight[2, 3], plus a bias for each output channel.
//! let tokens = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
//! let weight = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0];
//! let bias = [0.5, -0.5];
//! let mut out = [0.0; 4];
//! let pool = ThreadPool::new(Some(2)).expect("two threads");
//! pool.install(|| {
//!     gemm(
//!         MatMut::new(&mut out, 2, 2),
//!         Mat::new(&tokens[..], 2, 3).into(),
//!         WeightSlice::F32(&weight).transposed_matrix(2, 3),
//!         Precision::F32,
//!         &Epilogue { bias: Bias::PerColumn(&bias), ..Epilogue::default() },
//!     );
//! });
//! assert_eq!(out, [1.5, 4.5, 4.5, 10.5]);
//! ```
//!
//! # Guarantees
//!
//! - The widest instruction set of the CPU is chosen at run time (AVX-512, AVX2 with FMA, NEON, portable).
//! - The same input gives the same bytes with any number of threads.
//! - Sizes that do not agree are a programming error and panic; values never do. NaN in an operand reaches the
//!   output. In narrower precisions than `f32`, a convolution of 3x3 windows may take it to the neighbours of the pixels that see
//!   it, in tiles of 2x2, and make NaN of an infinity.
//!
//! # Limits
//!
//! - Inputs and outputs are `f32`; products may be computed in bfloat16 or 8-bit integers ([`Precision`]).
//! - Packing scratch (a few megabytes) stays with each thread from call to call.
//!
//! # Shape
//!
//! Everything that multiplies matrices goes through one micro-kernel over *panels*. A new way to store or derive
//! an operand is one more source of panels, as convolution windows are; a new thing to do with a product is one
//! more field of [`Epilogue`]. Convolutions of 3x3 windows are 16 products of transformed weights and tiles, which takes 16
//! multiplications in place of 36 (Winograd's F(2x2, 3x3)), in bfloat16 and where there are enough tiles to pay for the transformations.
//!
//! `unsafe` is confined to loads and stores of the micro-kernel and of tasks that write disjoint parts of one
//! output.

mod attention;
mod axis;
mod binary;
mod conv;
pub mod convert;
mod encoded;
mod gemm;
mod isa;
mod layout;
mod math;
mod matrix;
mod memory;
mod norm;
pub mod peak;
pub mod pool;
mod precision;
mod reduce;
mod simd;
mod softmax;
mod strided;
#[cfg(test)]
mod testing;
mod unary;

pub use attention::{Attention, AttentionShape, HeadLayout, Heads, attention};
pub use binary::{BinaryOp, Strided, binary, binary_in_place, select};
pub use conv::{
    ConvEpilogue, ConvShape, ConvWeight, PackedConvWeight, Padding, conv2d, gated_conv2d, pack_conv_weight,
    pack_gated_conv_weight,
};
pub use encoded::{Affine, BlockGrid, Encoded, Scaling};
pub use gemm::pack::{PackedMatrix, PackedSide};
pub use gemm::{Bias, Epilogue, gated_gemm, gemm, gemm_several, packs_columns};
pub use layout::{
    ConcatInput, concat, copy_strided, gather_rows, gather_weight_rows, pad, permute, slice, tile,
    upsample_nearest,
};
pub use matrix::{Elements, Mat, MatMut, MatRef, Operand, WeightSlice};
pub use memory::Memory;
pub use norm::{AxisShape, GroupNormShape, NormParams, batch_norm, group_norm, layer_norm};
pub use pool::ThreadPool;
pub use precision::Precision;
pub use reduce::{ReduceOp, argmax, reduce};
pub use softmax::softmax;
pub use strided::{MAX_RANK, broadcast_strides, contiguous_strides};
pub use unary::{UnaryOp, geglu, unary, unary_in_place};
