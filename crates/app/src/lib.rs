//! The parts that a command line, a server and a web page share.
//!
//! - [`source`] finds models: directories in the diffusers layout, Core ML packages, the [`demo`] model in
//!   the binary;
//! - [`hub`] downloads models that are asked for by name;
//! - [`loras`] finds LoRAs by name, in directories and in prompts;
//! - [`parameters`] and [`picture`] are the generation parameters and the PNG files that hold them;
//! - [`request`] turns requests into JSON and parameters, and back;
//! - [`error`] has the kinds of errors, from which status codes follow;
//! - [`synthetic`] writes models of published sizes with random weights.
#![forbid(unsafe_code)]

pub mod demo;
pub mod error;
pub mod hub;
pub mod loras;
pub mod parameters;
pub mod picture;
pub mod request;
pub mod source;
pub mod synthetic;
