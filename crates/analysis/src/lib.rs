//! How far each layer of a model can be compressed.
//!
//! - [`analyze`] measures, chooses and verifies;
//! - [`report`] shows an analysis: plots, tables and images.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod report;
