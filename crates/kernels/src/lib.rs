//! CPU kernels for diffusion models: matrix products, convolution, attention, normalisation, element-wise
//! functions and data movement, over `f32` with weights in `f32`, `f16`, `bf16` or compressed.
//!
//! A kernel is a function over slices, sizes and strides. It knows no tensors and no graph, and it writes
//! into the caller's buffer. The key types:
//!
//! - [`MatRef`] and [`MatMut`] are strided matrices. An [`Operand`], one side of [`gemm`], is a matrix of any
//!   [`WeightSlice`] (half-precision and [`Encoded`] weights are decoded panel by panel, never copied whole)
//!   or a [`PackedMatrix`]. The [`Epilogue`] is what [`gemm`] and [`conv2d`] apply to a product before it is
//!   stored.
//! - [`ConvShape`], [`AttentionShape`] with [`HeadLayout`]s, [`AxisShape`] (kernels along one axis) and
//!   [`Strided`] (broadcasting, permutation) are the sizes of a kernel's tensors.
//! - [`ThreadPool`] runs the kernels that are called inside [`install`](ThreadPool::install).
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
//!         WeightSlice::F32(&weight).transposed_matrix(2, 3).into(),
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
//! - Sizes that do not agree are a programming error and panic; values never panic. NaN in an operand reaches
//!   the output. In precisions other than `f32`, a 3x3 convolution may carry it to other pixels of the same
//!   2x2 tile, and may turn an infinity into NaN.
//!
//! # Limits
//!
//! - Inputs and outputs are `f32`; products may be computed in bfloat16 or 8-bit integers ([`Precision`]).
//! - Tensors have at most [`MAX_RANK`] axes.
//! - Packing scratch, a few megabytes, stays with each thread between calls. A kernel that cannot get it
//!   panics.
//!
//! # Structure
//!
//! All products go through one micro-kernel over packed panels (`gemm`): linear layers, convolution windows,
//! Winograd's transformed tiles, and both products of attention. A new way to store an operand is one more
//! source of panels; a new step after a product is one more field of [`Epilogue`]. Modules depend on each
//! other in one direction: `simd` (micro-kernels and routines of single CPUs), then `gemm`, then `conv` and
//! `attention`.
//!
//! # Unsafe code
//!
//! Each block states why it is sound. It is used for
//!
//! - loads, stores and prefetches of the micro-kernels (`simd::microkernel`);
//! - intrinsics and inline assembly of AVX-512 and NEON, behind run-time detection (`simd::x86_64`,
//!   `simd::aarch64`, `peak`);
//! - tasks that write disjoint parts of one output through a pointer (`gemm::tile`, `gemm::epilogue`,
//!   `conv::winograd`, `attention::panel`, `axis`, `pool`);
//! - loops that lend a closure, and stop flags, to worker threads that are waited for (`pool`).

mod attention;
mod axis;
mod binary;
mod blocks;
mod conv;
pub mod convert;
mod elements;
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

pub use attention::{Attention, AttentionShape, HeadLayout, Heads, Partition, attention};
pub use axis::AxisShape;
pub use binary::{BinaryOp, Strided, binary, binary_in_place, select};
pub use conv::{
    ConvShape, ConvWeight, PackedConvWeight, Padding, conv2d, pack_conv_weight, pack_gated_conv_weight,
};
pub use encoded::{Affine, BlockGrid, Encoded, Scaling};
pub use gemm::epilogue::{Bias, Epilogue};
pub use gemm::format::PackedSide;
pub use gemm::operand::Operand;
pub use gemm::pack::PackedMatrix;
pub use gemm::{gemm, gemm_batched, packs_columns};
pub use layout::{
    ConcatInput, concat, copy_strided, gather_rows, gather_weight_rows, pad, permute, slice, tile,
    upsample_nearest,
};
pub use matrix::{Mat, MatMut, MatRef, WeightSlice};
pub use memory::{Memory, OutOfMemory, with_memory};
pub use norm::{GroupNormShape, NormParams, batch_norm, group_norm, layer_norm};
pub use pool::ThreadPool;
pub use precision::Precision;
pub use reduce::{ReduceOp, argmax, reduce};
pub use softmax::softmax;
pub use strided::{MAX_RANK, broadcast_strides, contiguous_strides};
pub use unary::{UnaryOp, geglu, unary, unary_in_place};
