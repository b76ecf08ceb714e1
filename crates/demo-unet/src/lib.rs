//! The weights of the demo model's UNet.
//!
//! They are a crate of their own because the registry takes at most 10 MiB a crate; `mixbit-app` has the rest
//! of the model, with its licence and the measurements of it in `demo/README.md`.
#![forbid(unsafe_code)]

/// A safetensors file of the UNet's weights in `f16`, under diffusers' names.
pub static WEIGHTS: &[u8] = include_bytes!("../diffusion_pytorch_model.safetensors");
