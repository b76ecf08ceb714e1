//! diffusion

pub mod arch;
pub mod random;
pub mod scheduler;
pub mod tokenizer;
