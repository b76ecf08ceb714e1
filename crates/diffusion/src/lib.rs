//! diffusion

pub mod random;
pub mod scheduler;
