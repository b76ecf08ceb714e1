//! The differences of two networks: of their [`structure`], and of their [`tensors`].

pub mod structure;
pub mod tensors;
