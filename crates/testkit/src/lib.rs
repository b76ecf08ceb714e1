//! What mixbit's tests share: fixtures, error statistics, and a collector that reports every failing case.
//!
//! Five parts, re-exported here:
//!
//! - [`Fixture`]: a folder under `fixtures/` with a JSON file of cases and safetensors files of arrays,
//!   made by a script in `tools/reference/`.
//! - [`ErrorStats`]: maximum absolute and relative error, PSNR and NaN counts of one array against another.
//! - [`Scratch`]: a directory for one test; [`copy_tree`] and [`read_tree`] take whole ones.
//! - [`HubServer`]: a server on loopback that speaks the Hugging Face Hub's API.
//! - [`Failures`]: a table test's result; it runs every case and then lists each one that failed.
//!
//! ```
//! use mixbit_testkit::{ErrorStats, Failures};
//!
//! let mut failures = Failures::new("doubling");
//! for (input, expected) in [(1.0_f32, 2.0_f32), (3.0, 6.0)] {
//!     failures.case(&format!("input {input}"), || {
//!         ErrorStats::compare(&[input * 2.0], &[expected]).within(1e-6)
//!     });
//! }
//! failures.finish();
//! ```
//!
//! A dev-dependency only: it reads trusted files of this repository, so a malformed fixture is a panic with
//! the file's name, and it depends on no other crate of the workspace.

#![forbid(unsafe_code)]

mod failures;
mod fixture;
mod hub;
mod safetensors;
mod scratch;
mod stats;
mod tree;

pub use failures::Failures;
pub use fixture::{Fixture, fixture_root};
pub use hub::{Faults, HubFile, HubRepository, HubRequest, HubServer};
pub use safetensors::{Array, read_safetensors};
pub use scratch::Scratch;
pub use stats::ErrorStats;
pub use tree::{copy_tree, read_tree};
