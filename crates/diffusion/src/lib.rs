//! diffusion

pub mod random;
pub mod scheduler;
pub mod tokenizer;
