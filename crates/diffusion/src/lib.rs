//! Stable Diffusion: from a prompt to an image, for any model of the family.
//!
//! - [`model::DiffusionModel`] is a model: its networks as graphs over its weights, its tokenizers and its
//!   settings.
//! - [`session::Session`] generates images with it on an [`mixbit_engine::Backend`].
//! - [`arch`] builds the networks.
//! - [`scheduler`], [`random`] and [`tokenizer`] are the other parts of the denoising loop.
//!
//! This crate is independent of files and devices: [`model::ModelFiles`] provides the model and
//! [`mixbit_mil::Weights`] the weights.
//!
//! Supported: text to image, and continuing from given latents, with UNets of the Stable Diffusion 1, 2 and
//! XL families.
#![forbid(unsafe_code)]

pub mod adapter;
pub mod arch;
pub mod embedding;
pub mod family;
pub mod model;
pub mod original;
pub mod random;
pub mod scheduler;
pub mod session;
pub mod tokenizer;
