//! Parsers of command-line values.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;

use anyhow::bail;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Command};
use mixbit_compress::{Scheme, Width};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_diffusion::random::RANDOM_SOURCES;
use mixbit_diffusion::scheduler::{
    PREDICTION_TYPES, SCHEDULERS, SchedulerConfig, SchedulerError, SigmaSchedule, TimestepSpacing,
    scheduler_of_name,
};
use mixbit_diffusion::session::Precision;
use mixbit_engine::Backend;

use mixbit_analysis::analyze::{AnalysisMethod, EFFORTS, METHODS};
use mixbit_app::request::parse_size;
use mixbit_diffusion::family::FAMILIES;
use mixbit_packages::package::{DEPLOYMENT_TARGETS, DeploymentTarget, PACKAGE_KINDS};

/// The model that a command works on; `None` is the demo model, which `--demo` asks for by name.
///
/// # Errors
/// If neither is given, or both are. A model of the environment gives way to `--demo`.
pub(super) fn model(given: Option<&Path>, demo: bool) -> anyhow::Result<Option<&Path>> {
    match (given, demo) {
        (Some(_), true) if !is_of_environment(given) => {
            bail!("--demo is a model by itself: leave out --model")
        }
        (_, true) => Ok(None),
        (Some(path), false) => Ok(Some(path)),
        (None, false) => bail!("say which model: --model DIR, or --demo for the small one in the binary"),
    }
}

/// True if a model is that of the environment variable, and was not asked for on the command line.
pub(super) fn is_of_environment(model: Option<&Path>) -> bool {
    std::env::var_os("MIXBIT_MODEL").is_some_and(|path| model == Some(Path::new(&path)))
}

/// Refuses to write packages into the directory of the model that they are made of: what it holds then would
/// be of two kinds.
pub(super) fn check_apart(model: Option<&Path>, output: &Path) -> anyhow::Result<()> {
    let canonical = |path: &Path| path.canonicalize().ok();
    let model = model.and_then(canonical);
    if model.is_some() && model == canonical(output) {
        bail!("{} is the model itself: choose another directory for the packages", output.display());
    }
    Ok(())
}

/// Reads `WIDTHxHEIGHT`, or one number for a square.
pub(super) fn size(text: &str) -> Result<[usize; 2], String> {
    parse_size(text).ok_or_else(|| "a size is WIDTHxHEIGHT in pixels, such as 512x768".to_string())
}

/// The size of images: both extents at once, or each by itself.
#[derive(Debug, Default, Args)]
pub(super) struct Size {
    /// Width and height in pixels, multiples of 8 [default: the model's]
    #[arg(long, value_name = "WxH", value_parser = size, conflicts_with_all = ["width", "height"])]
    size: Option<[usize; 2]>,
    /// Width in pixels
    #[arg(short = 'W', long, value_name = "N", hide = true)]
    width: Option<usize>,
    /// Height in pixels
    #[arg(short = 'H', long, value_name = "N", hide = true)]
    height: Option<usize>,
}

impl Size {
    /// Width and height in pixels, as far as they are given.
    pub(super) fn given(&self) -> [Option<usize>; 2] {
        self.size.map_or([self.width, self.height], |size| size.map(Some))
    }

    /// Width and height in pixels, each by default the model's.
    pub(super) fn or(&self, [width, height]: [usize; 2]) -> [usize; 2] {
        let given = self.given();
        [given[0].unwrap_or(width), given[1].unwrap_or(height)]
    }
}

/// A random seed: short enough to type, and valid for every random source.
pub(super) fn random_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}

/// The parser of schedulers: any name that one has, alone or with a sigma schedule. Completions offer the
/// command line's own names.
#[derive(Clone)]
pub(super) struct SchedulerName;

impl TypedValueParser for SchedulerName {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let parse = |name: &str| scheduler_of_name(name).map(|_| name.to_string());
        parse.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(SCHEDULERS.iter().map(|entry| PossibleValue::new(entry.name).help(entry.about))))
    }
}

/// A scheduler's name with its sigma schedule, as the option takes it.
///
/// # Errors
/// If the configuration is contradictory.
pub(super) fn scheduler_name(config: &SchedulerConfig) -> Result<String, SchedulerError> {
    let name = config.entry().name;
    Ok(match config.sigmas()? {
        SigmaSchedule::Trained => name.to_string(),
        sigmas => format!("{name}-{}", sigmas.name()),
    })
}

/// The long help of the scheduler option: every scheduler with its help line.
pub(super) fn scheduler_help() -> String {
    let width = SCHEDULERS.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let mut text = "The scheduler [default: the model's]\n\n".to_string();
    for entry in SCHEDULERS {
        text += &format!("  {:width$}  {}\n", entry.name, entry.about);
    }
    text + "\nSigma schedules: -karras, -exponential, -beta or -lu after the name, as in dpmpp-2m-karras; \
            -trailing spaces timesteps from the last one down. The names of diffusers, AUTOMATIC1111 and ComfyUI \
            are understood too, as in \"DPM++ 2M Karras\" or euler_ancestral."
}

/// Every prediction type.
pub(super) fn prediction_types() -> PossibleValuesParser {
    PREDICTION_TYPES.to_vec().into()
}

/// Every random source.
pub(super) fn random_sources() -> PossibleValuesParser {
    let value = |entry: &mixbit_diffusion::random::RandomSourceEntry| {
        PossibleValue::new(entry.name).aliases(entry.aliases).help(entry.about)
    };
    RANDOM_SOURCES.iter().map(value).collect::<Vec<_>>().into()
}

/// Every method of analysis.
pub(super) fn analysis_methods() -> PossibleValuesParser {
    let value = |method: &AnalysisMethod| PossibleValue::new(method.name).help(method.about);
    METHODS.iter().map(value).collect::<Vec<_>>().into()
}

/// Every effort of an analysis.
pub(super) fn efforts() -> PossibleValuesParser {
    EFFORTS.iter().map(|effort| PossibleValue::new(effort.name).help(effort.about)).collect::<Vec<_>>().into()
}

/// The name of the fastest precision without loss of quality.
pub(super) const AUTO: &str = "auto";

/// Every precision, and [`AUTO`].
pub(super) fn precisions() -> PossibleValuesParser {
    let auto = PossibleValue::new(AUTO).help("bf16 where it is faster on this CPU, or f32");
    let one = |precision: Precision| PossibleValue::new(precision.name()).help(precision.about());
    std::iter::once(auto).chain(Precision::ALL.map(one)).collect::<Vec<_>>().into()
}

/// The precision of a name accepted by [`precisions`].
pub(super) fn precision(name: &str, backend: &dyn Backend) -> Precision {
    let known = Precision::ALL.into_iter().find(|known| known.name() == name);
    known.unwrap_or_else(|| Precision::fastest(backend))
}

/// Every published model that supports random weights.
pub(super) fn published_models() -> PossibleValuesParser {
    FAMILIES.iter().map(|family| PossibleValue::new(family.name)).collect::<Vec<_>>().into()
}

/// Every timestep spacing.
pub(super) fn spacings() -> PossibleValuesParser {
    TimestepSpacing::ALL.map(|spacing| PossibleValue::new(spacing.name())).to_vec().into()
}

/// Every attention implementation.
pub(super) fn attention() -> impl TypedValueParser<Value = AttentionImplementation> {
    let names = AttentionImplementation::ALL.map(|attention| PossibleValue::new(attention.name()));
    PossibleValuesParser::new(names).try_map(|name| {
        let mut all = AttentionImplementation::ALL.into_iter();
        all.find(|attention| attention.name().eq_ignore_ascii_case(&name)).ok_or("there is no such form")
    })
}

/// Parses the bits of a palette's indices.
pub(super) fn width(text: &str) -> Result<Width, String> {
    let widths = || Width::ALL.map(|width| width.bits().to_string()).join(", ");
    let width = text.parse().ok().and_then(Width::of_bits);
    width.ok_or_else(|| format!("there are {} bits", widths()))
}

/// Every scheme for storing a layer in fewer bits.
pub(super) fn schemes() -> PossibleValuesParser {
    let value = |scheme: Scheme| PossibleValue::new(scheme.to_string()).help(scheme.method.about());
    Scheme::all().map(value).collect::<Vec<_>>().into()
}

/// Every part of a model.
pub(super) fn parts() -> PossibleValuesParser {
    let mut names: Vec<&str> = PACKAGE_KINDS.iter().map(|kind| kind.asked_as).collect();
    names.dedup();
    names.into_iter().map(PossibleValue::new).collect::<Vec<_>>().into()
}

/// Every deployment target, by both of its names.
pub(super) fn targets() -> impl TypedValueParser<Value = &'static DeploymentTarget> {
    let names = DEPLOYMENT_TARGETS.iter().flat_map(|target| target.names);
    PossibleValuesParser::new(names.map(PossibleValue::new))
        .try_map(|name| DeploymentTarget::of_name(&name).ok_or("there is no such system"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_pairs_or_squares() {
        assert_eq!(size("512x768"), Ok([512, 768]));
        assert_eq!(size("64"), Ok([64, 64]));
        for wrong in ["", "x", "0x8", "8x", "-8x8", "8x8x8", "a", "99999999999999999999x8"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
