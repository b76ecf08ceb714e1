//! The precision that a request is computed in.

use mixbit_engine::{Arithmetic, Backend};
use mixbit_mil::DType;

/// The precision that networks are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Every number is an `f32`.
    #[default]
    F32,
    /// The operands of products are rounded to `bf16`; sums, and ops that are not products, are `f32`.
    Bf16,
    /// The operands of the UNet's products are quantized to 8 bits, except in layers that the model lists
    /// ([`Network::full_precision`](crate::model::Network::full_precision)). The smaller networks are
    /// computed in the backend's [`fastest`](Self::fastest) precision.
    Int8,
    /// Graphs of `fp16`: every result is rounded to it, as on a Core ML device. An autoencoder that asks for
    /// `fp32` gets `fp32`.
    F16,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 4] = [Precision::F32, Precision::Bf16, Precision::Int8, Precision::F16];

    /// The name on command lines and in parameters.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::F16 => "f16",
        }
    }

    /// One line of help.
    pub fn about(self) -> &'static str {
        match self {
            Precision::F32 => "32-bit floats",
            Precision::Bf16 => "products of bfloat16, sums in 32 bits",
            Precision::Int8 => "the UNet's products of 8-bit integers, but in layers that a recipe excepts",
            Precision::F16 => "32-bit floats, every result rounded to 16 bits as Core ML devices do",
        }
    }

    /// The fastest precision of a backend among those that keep the quality of images.
    pub fn fastest(backend: &dyn Backend) -> Self {
        match backend.fastest() {
            Arithmetic::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// The precision of the networks around the UNet.
    pub(super) fn around_unet(self, backend: &dyn Backend) -> Self {
        if self == Precision::Int8 { Self::fastest(backend) } else { self }
    }

    pub(super) fn dtype(self) -> DType {
        match self {
            Precision::F32 | Precision::Bf16 | Precision::Int8 => DType::F32,
            Precision::F16 => DType::F16,
        }
    }

    /// The engine's arithmetic for this precision.
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Precision::F32 => Arithmetic::F32,
            Precision::Bf16 => Arithmetic::Bf16,
            Precision::Int8 => Arithmetic::Int8,
            Precision::F16 => Arithmetic::AsDeclared,
        }
    }
}
