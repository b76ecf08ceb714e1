//! The sensitivity of a diffusion model's layers to compression: measurements, recipes made of them, and
//! reports.
//!
//! - [`analyze()`](analyze::analyze) measures the layers of a model's UNet, chooses recipes for
//!   [goals](analyze::Goal), and verifies them; the result is an [`Analysis`](analyze::Analysis).
//! - [`report::write()`] shows an analysis as a page with plots, tables and images.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use mixbit_analysis::analyze::{
//!     EFFORTS, Goal, METHODS, Options, Outcome, PROMPTS, Phases, Setting, Shard, analyze,
//!     schemes_of_recipes,
//! };
//! # use mixbit_diffusion::model::DiffusionModel;
//! # use mixbit_engine::{Backend, Cancel};
//! # fn files() -> Box<dyn mixbit_diffusion::model::ModelFiles> { unimplemented!() }
//! # fn backend() -> Arc<dyn Backend> { unimplemented!() }
//!
//! let model = Arc::new(DiffusionModel::from_files(&*files())?);
//! let options = Options {
//!     method: &METHODS[0],
//!     effort: &EFFORTS[1],
//!     schemes: schemes_of_recipes(),
//!     min_size: 100_000,
//!     goals: vec![Goal::Bits(4.5)],
//!     earlier: Vec::new(),
//!     int8: None,
//!     prompts: PROMPTS.map(String::from).into(),
//!     seed: 93,
//!     setting: Setting { negative_prompt: None, size: [512, 512], steps: 25, guidance_scale: 7.5 },
//!     shard: Some(Shard::WHOLE),
//!     directory: "analysis".into(),
//! };
//! let phases = Phases { measuring: &(), verifying: &() };
//! if let Outcome::Done(analysis) = analyze(&model, &backend(), &options, &Cancel::new(), phases)? {
//!     analysis.recipe_file("my-model", &options.setting).write("recipe.json".as_ref())?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Limits: only the UNet is analyzed. The measure is the PSNR of denoised latents, which does not judge
//! pictures.
#![forbid(unsafe_code)]

pub mod analyze;
pub mod report;
