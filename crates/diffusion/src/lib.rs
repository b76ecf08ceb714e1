//! Stable Diffusion: from a prompt to an image, for any model of the family.
//!
//! - [`model::DiffusionModel`] is a model: its networks as graphs over its weights, its tokenizers, its
//!   rules;
//! - [`session::Session`] draws with it on an [`mixbit_engine::Backend`], request after request;
//! - [`arch`] builds the networks, [`scheduler`], [`random`] and [`tokenizer`] are what the loop needs
//!   besides.
//!
//! This crate reads no files and knows no device: a model comes as [`model::ModelFiles`], weights as
//! [`mixbit_mil::Weights`].
//!
//! Limits: text to image, and the continuation of given latents; UNets of the Stable Diffusion 1, 2 and XL
//! families.
#![forbid(unsafe_code)]

pub mod arch;
pub mod family;
pub mod model;
pub mod random;
pub mod scheduler;
pub mod session;
pub mod tokenizer;
