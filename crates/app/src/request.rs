//! Requests as JSON and as the parameters of picture files, and back.
//!
//! A [`DrawRequest`] is a request as people and scripts write it; absent values are the model's own.
//! [`DrawRequest::request`] makes the session's [`Request`] of it. [`parameters`] writes what decided a
//! picture into its file, from where [`DrawRequest::from_parameters`] reads it.

use mixbit_diffusion::model::{DiffusionModel, ModelScheduler};
use mixbit_diffusion::random::{RANDOM_SOURCES, RandomSourceEntry};
use mixbit_diffusion::scheduler::{
    PREDICTION_TYPES, SchedulerError, SigmaSchedule, TimestepSpacing, scheduler_of_name,
};
use mixbit_diffusion::session::{Precision, Request, Start, Text, Tiling};
use mixbit_formats::hex;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::parameters::Parameters;

/// A request to draw, with an absent value for each choice that is left to the model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrawRequest {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The description of the image.
    pub prompt: String,
    /// The second text encoder's prompt, if it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_2: Option<String>,
    /// The description of what the image is not to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt: Option<String>,
    /// The second text encoder's negative prompt, if it differs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_prompt_2: Option<String>,
    /// Width in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Height in pixels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub height: Option<usize>,
    /// Inference steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<usize>,
    /// The guidance scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f32>,
    /// The guidance rescale, 0 to 1.
    pub guidance_rescale: f32,
    /// The scheduler's name, with a sigma schedule after it if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    /// The name of the timestep spacing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestep_spacing: Option<String>,
    /// The name of the UNet's prediction type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction_type: Option<String>,
    /// The name of the precision; `f32` if it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<String>,
    /// Decodes the image in tiles, or whole; the image's size decides if it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tiled_decode: Option<bool>,
    /// The seed of the noise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The name of the random source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<String>,
    /// The image that drawing starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<StartFile>,
}

/// An image file that drawing starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartFile {
    /// The file's name.
    pub name: String,
    /// The SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
    /// The part of the steps that is run, 0 to 1: the larger, the less is kept of the image.
    pub strength: f64,
}

/// A request that can't be read or does not fit the model.
#[derive(Debug, Error)]
pub enum RequestError {
    /// JSON that is malformed, or has a field that no request has.
    #[error("the request can't be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A name that nothing has, or a value that can't be read.
    #[error("the {option} can't be `{value}`")]
    Value {
        /// The option.
        option: &'static str,
        /// The value.
        value: String,
    },
    /// A scheduler that can't be used as asked.
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
}

/// The origin of a picture's noise and model, beside its request.
pub struct Origin<'a> {
    /// The model's name.
    pub model: &'a str,
    /// The random source.
    pub source: &'a RandomSourceEntry,
    /// The seed.
    pub seed: u64,
    /// The image that drawing started from.
    pub start: Option<&'a StartFile>,
    /// The words of textual inversion in the prompts, each with the SHA-256 of its file.
    pub embeddings: &'a [(String, [u8; 32])],
    /// The model's own scheduler. What a request changes of it is written.
    pub own: &'a ModelScheduler,
    /// The prediction type, if it was asked for when the model was opened.
    pub prediction_type: Option<&'a str>,
}

/// The number of hexadecimal digits of a file's hash, as in the web UI.
const HASH_DIGITS: usize = 12;

/// The names of settings, which the web UI's readers know where it has them.
mod names {
    pub(super) const STEPS: &str = "Steps";
    pub(super) const SAMPLER: &str = "Sampler";
    pub(super) const SCHEDULE: &str = "Schedule type";
    pub(super) const SPACING: &str = "Timestep spacing";
    pub(super) const PREDICTION: &str = "Prediction type";
    pub(super) const GUIDANCE: &str = "CFG scale";
    pub(super) const RESCALE: &str = "Guidance rescale";
    pub(super) const SEED: &str = "Seed";
    pub(super) const SIZE: &str = "Size";
    pub(super) const MODEL: &str = "Model";
    pub(super) const RNG: &str = "RNG";
    pub(super) const PROMPT_2: &str = "Prompt 2";
    pub(super) const NEGATIVE_2: &str = "Negative prompt 2";
    pub(super) const STRENGTH: &str = "Denoising strength";
    pub(super) const START: &str = "Start image";
    pub(super) const START_SHA256: &str = "Start image SHA-256";
    pub(super) const EMBEDDINGS: &str = "TI hashes";
    pub(super) const PRECISION: &str = "Precision";
    pub(super) const VERSION: &str = "Version";
}

impl DrawRequest {
    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`RequestError::Json`], with the field.
    pub fn from_json(json: &str) -> Result<Self, RequestError> {
        Ok(serde_json::from_str(json)?)
    }

    /// The request as a JSON object.
    ///
    /// # Errors
    /// [`RequestError::Json`], if a number is not finite.
    pub fn to_json(&self) -> Result<serde_json::Value, RequestError> {
        Ok(serde_json::to_value(self)?)
    }

    /// The session's request for a model. `start` is the state that [`start`](Self::start) names.
    ///
    /// # Errors
    /// [`RequestError`] with the option that can't be used.
    pub fn request(&self, model: &DiffusionModel, start: Start) -> Result<Request, RequestError> {
        let text = Text {
            prompt: self.prompt.clone(),
            prompt_2: self.prompt_2.clone(),
            negative_prompt: self.negative_prompt.clone(),
            negative_prompt_2: self.negative_prompt_2.clone(),
        };
        let scheduler = match &self.scheduler {
            Some(name) => model.scheduler.with_scheduler(name)?,
            None => model.scheduler.config()?,
        };
        let mut request = Request { start, ..Request::with_scheduler(model, text, scheduler) };
        let [width, height] = request.size;
        request.size = [self.width.unwrap_or(width), self.height.unwrap_or(height)];
        request.steps = self.steps.unwrap_or(request.steps);
        request.guidance_scale = self.guidance_scale.unwrap_or(request.guidance_scale);
        request.guidance_rescale = self.guidance_rescale;
        if let Some(name) = &self.precision {
            let known = Precision::ALL.into_iter().find(|known| known.name() == name);
            request.precision = known.ok_or_else(|| value("precision", name))?;
        }
        request.tiling = match self.tiled_decode {
            Some(true) => Tiling::Always,
            Some(false) => Tiling::Never,
            None => Tiling::Auto,
        };
        if let Some(name) = &self.timestep_spacing {
            let spacing = TimestepSpacing::parse(name).ok_or_else(|| value("timestep spacing", name))?;
            request.scheduler.set_timestep_spacing(spacing)?;
        }
        if let Some(name) = &self.prediction_type {
            let known = PREDICTION_TYPES.contains(&name.as_str());
            known
                .then(|| request.scheduler.set_prediction_type(name))
                .ok_or_else(|| value("prediction type", name))?;
        }
        Ok(request)
    }

    /// Reads the parameters of a picture, of mixbit or of another tool that writes these names. Settings of
    /// other tools that mixbit does not have are left out.
    ///
    /// # Errors
    /// [`RequestError::Value`], with the setting that can't be read.
    pub fn from_parameters(parameters: &Parameters) -> Result<Self, RequestError> {
        let get = |name: &str| {
            parameters.settings.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
        };
        let [width, height] = match get(names::SIZE) {
            Some(text) => parse_size(text).ok_or_else(|| value(names::SIZE, text))?.map(Some),
            None => [None, None],
        };
        let start = match (get(names::START), get(names::START_SHA256)) {
            (Some(name), Some(sha256)) => Some(StartFile {
                name: name.to_string(),
                sha256: sha256.to_string(),
                strength: number(names::STRENGTH, get(names::STRENGTH))?.unwrap_or(1.0),
            }),
            _ => None,
        };
        Ok(DrawRequest {
            model: get(names::MODEL).map(str::to_string),
            prompt: parameters.prompt.clone(),
            prompt_2: get(names::PROMPT_2).map(str::to_string),
            negative_prompt: Some(parameters.negative_prompt.clone()).filter(|text| !text.is_empty()),
            negative_prompt_2: get(names::NEGATIVE_2).map(str::to_string),
            width,
            height,
            steps: number(names::STEPS, get(names::STEPS))?,
            guidance_scale: number(names::GUIDANCE, get(names::GUIDANCE))?,
            guidance_rescale: number(names::RESCALE, get(names::RESCALE))?.unwrap_or(0.0),
            scheduler: get(names::SAMPLER).map(|label| scheduler(label, get(names::SCHEDULE))).transpose()?,
            timestep_spacing: get(names::SPACING).map(str::to_string),
            prediction_type: get(names::PREDICTION).map(str::to_string),
            precision: get(names::PRECISION).map(str::to_string),
            tiled_decode: None,
            seed: number(names::SEED, get(names::SEED))?,
            rng: get(names::RNG).map(rng).transpose()?,
            start,
        })
    }
}

/// The parameters of a picture, by the web UI's names.
///
/// # Errors
/// If the scheduler's configuration is contradictory.
pub fn parameters(request: &Request, origin: &Origin) -> Result<Parameters, SchedulerError> {
    let mut parameters = Parameters {
        prompt: request.text.prompt.clone(),
        negative_prompt: request.text.negative_prompt.clone().unwrap_or_default(),
        settings: Vec::new(),
    };
    parameters.set(names::STEPS, request.steps);
    parameters.set(names::SAMPLER, request.scheduler.entry().label);
    schedule(&mut parameters, request, origin)?;
    parameters.set(names::GUIDANCE, request.guidance_scale);
    if request.guidance_rescale > 0.0 {
        parameters.set(names::RESCALE, request.guidance_rescale);
    }
    parameters.set(names::SEED, origin.seed);
    parameters.set(names::SIZE, format!("{}x{}", request.size[0], request.size[1]));
    parameters.set(names::MODEL, origin.model);
    parameters.set(names::RNG, origin.source.label);
    for (name, prompt) in
        [(names::PROMPT_2, &request.text.prompt_2), (names::NEGATIVE_2, &request.text.negative_prompt_2)]
    {
        prompt.iter().for_each(|prompt| parameters.set(name, prompt));
    }
    if let Some(start) = origin.start {
        parameters.set(names::STRENGTH, start.strength);
        parameters.set(names::START, &start.name);
        parameters.set(names::START_SHA256, &start.sha256);
    }
    if !origin.embeddings.is_empty() {
        let one = |(name, sum): &(String, [u8; 32])| format!("{name}: {}", &hex(sum)[..HASH_DIGITS]);
        let all: Vec<String> = origin.embeddings.iter().map(one).collect();
        parameters.set(names::EMBEDDINGS, all.join(", "));
    }
    if request.precision != Precision::F32 {
        parameters.set(names::PRECISION, request.precision.name());
    }
    parameters.set(names::VERSION, concat!("mixbit ", env!("CARGO_PKG_VERSION")));
    Ok(parameters)
}

/// Adds the schedule of sigmas and timesteps, and the prediction type, where they are not the model's own.
fn schedule(parameters: &mut Parameters, request: &Request, origin: &Origin) -> Result<(), SchedulerError> {
    let scheduler = &request.scheduler;
    let (sigmas, spacing) = (scheduler.sigmas()?, scheduler.spacing()?);
    let own = origin.own.with_scheduler(scheduler.entry().name).ok();
    let own_spacing = own.as_ref().and_then(|own| own.spacing().ok().flatten());
    let other_spacing = spacing.filter(|_| spacing != own_spacing);
    match (sigmas, other_spacing) {
        (SigmaSchedule::Trained, Some(TimestepSpacing::Trailing)) => {
            parameters.set(names::SCHEDULE, SGM_UNIFORM)
        }
        (sigmas, spacing) => {
            if sigmas != SigmaSchedule::Trained {
                parameters.set(names::SCHEDULE, capitalized(sigmas.name()));
            }
            if let Some(spacing) = spacing {
                parameters.set(names::SPACING, spacing.name());
            }
        }
    }
    let own_prediction = own.as_ref().and_then(|own| own.chosen_prediction_type());
    let prediction = scheduler.chosen_prediction_type();
    if let Some(name) =
        prediction.filter(|_| origin.prediction_type.is_some() || prediction != own_prediction)
    {
        parameters.set(names::PREDICTION, name);
    }
    Ok(())
}

/// The web UI's word for trailing timesteps.
const SGM_UNIFORM: &str = "SGM Uniform";

fn value(option: &'static str, value: &str) -> RequestError {
    RequestError::Value { option, value: value.to_string() }
}

fn number<T: std::str::FromStr>(option: &'static str, text: Option<&str>) -> Result<Option<T>, RequestError> {
    text.map(|text| text.parse().map_err(|_| value(option, text))).transpose()
}

/// Width and height of the text `WIDTHxHEIGHT`, or of one number for a square. `None` if a side is not a
/// number above 0.
pub fn parse_size(text: &str) -> Option<[usize; 2]> {
    let (width, height) = text.split_once(['x', 'X', '×']).unwrap_or((text, text));
    let side = |side: &str| side.trim().parse::<usize>().ok().filter(|&side| side > 0);
    Some([side(width)?, side(height)?])
}

/// The name of a scheduler by its label and the name of its sigma schedule.
fn scheduler(label: &str, sigmas: Option<&str>) -> Result<String, RequestError> {
    // `Automatic` is the web UI's word for the scheduler's own schedule.
    let name = match sigmas.filter(|sigmas| !sigmas.eq_ignore_ascii_case("automatic")) {
        Some(sigmas) => format!("{label} {sigmas}"),
        None => label.to_string(),
    };
    Ok(scheduler_of_name(&name)?.to_string())
}

/// The name of a random source by its label.
fn rng(label: &str) -> Result<String, RequestError> {
    let entry = RANDOM_SOURCES.iter().find(|entry| entry.label == label);
    Ok(entry.ok_or_else(|| value(names::RNG, label))?.name.to_string())
}

fn capitalized(name: &str) -> String {
    let mut characters = name.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use mixbit_diffusion::random::random_source;
    use mixbit_diffusion::scheduler::SCHEDULERS;
    use mixbit_packages::source::OpenOptions;

    use super::*;

    fn model() -> DiffusionModel {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        crate::source::load(Some(&path), &OpenOptions::default()).unwrap().model
    }

    fn full() -> DrawRequest {
        DrawRequest {
            model: Some("demo".to_string()),
            prompt: "a circle, red: \"big\"\nat the left".to_string(),
            prompt_2: Some("another".to_string()),
            negative_prompt: Some("blue".to_string()),
            negative_prompt_2: Some("green, dark".to_string()),
            width: Some(64),
            height: Some(72),
            steps: Some(7),
            guidance_scale: Some(3.1),
            guidance_rescale: 0.7,
            scheduler: Some("dpmpp-2m-karras".to_string()),
            timestep_spacing: Some("leading".to_string()),
            prediction_type: Some("epsilon".to_string()),
            precision: Some("int8".to_string()),
            tiled_decode: None,
            seed: Some(u64::MAX),
            rng: Some("torch".to_string()),
            start: Some(StartFile {
                name: "start, 1.png".to_string(),
                sha256: "9f86d081".to_string(),
                strength: 0.35,
            }),
        }
    }

    #[test]
    fn json_reads_back() {
        let spaced = DrawRequest { timestep_spacing: None, tiled_decode: Some(true), ..full() };
        for request in [DrawRequest::default(), full(), spaced] {
            let json = request.to_json().unwrap().to_string();
            assert_eq!(DrawRequest::from_json(&json).unwrap(), request, "{json}");
        }
        let error = DrawRequest::from_json(r#"{"prompt": "a", "stepps": 3}"#).unwrap_err();
        assert!(error.to_string().contains("stepps"), "{error}");
    }

    #[test]
    fn parameters_read_back() {
        let model = model();
        let bare = DrawRequest {
            start: None,
            precision: None,
            scheduler: None,
            timestep_spacing: None,
            prediction_type: None,
            guidance_rescale: 0.0,
            ..full()
        };
        for asked in [full(), bare] {
            let request = asked.request(&model, Start::Noise).unwrap();
            let origin = Origin {
                model: "demo",
                source: random_source("torch").unwrap(),
                seed: u64::MAX,
                start: asked.start.as_ref(),
                embeddings: &[("my, style".to_string(), [0xab; 32])],
                own: &model.scheduler,
                prediction_type: None,
            };
            let written = parameters(&request, &origin).unwrap();
            assert!(written.to_string().contains("TI hashes: \"my, style: abababababab\""), "{written}");
            let read = DrawRequest::from_parameters(&Parameters::parse(&written.to_string())).unwrap();
            let expected = DrawRequest { scheduler: read.scheduler.clone(), ..asked.clone() };
            assert_eq!(read, expected);
            let again = parameters(&read.request(&model, Start::Noise).unwrap(), &origin).unwrap();
            assert_eq!(again, written);
        }
    }

    #[test]
    fn every_scheduler_reads_back() {
        let model = model();
        let source = random_source("torch").unwrap();
        let mut failures = mixbit_testkit::Failures::new("schedulers");
        for entry in SCHEDULERS {
            failures.case(entry.name, || {
                let scheduler = Some(entry.name.to_string());
                let asked = DrawRequest { scheduler, ..DrawRequest::default() };
                let request = asked.request(&model, Start::Noise).map_err(|error| error.to_string())?;
                let (own, embeddings) = (&model.scheduler, &[][..]);
                let origin = Origin {
                    model: "",
                    source,
                    seed: 0,
                    start: None,
                    embeddings,
                    own,
                    prediction_type: None,
                };
                let written = parameters(&request, &origin).map_err(|error| error.to_string())?;
                let read = DrawRequest::from_parameters(&written).map_err(|error| error.to_string())?;
                let again = read.request(&model, Start::Noise).map_err(|error| error.to_string())?;
                match again.scheduler.entry().label == entry.label {
                    true => Ok(()),
                    false => Err(format!("{:?} became {:?}", entry.label, read.scheduler)),
                }
            });
        }
        failures.finish();
    }

    #[test]
    fn schedules_have_the_web_ui_s_names_where_it_has_one() {
        let model = model();
        let source = random_source("torch").unwrap();
        let mut own = model.scheduler.file().clone();
        own["timestep_spacing"] = "leading".into();
        let model = DiffusionModel { scheduler: ModelScheduler::new(own), ..model };
        let own = &model.scheduler;
        for (scheduler, spacing, expected) in [
            ("euler", None, None),
            ("euler-karras", None, Some("Schedule type: Karras,")),
            ("euler-trailing", None, Some("Schedule type: SGM Uniform,")),
            ("euler", Some("trailing"), Some("Schedule type: SGM Uniform,")),
            ("euler", Some("linspace"), Some("Timestep spacing: linspace,")),
            ("euler-karras", Some("trailing"), Some("Schedule type: Karras, Timestep spacing: trailing,")),
        ] {
            let asked = DrawRequest {
                scheduler: Some(scheduler.to_string()),
                timestep_spacing: spacing.map(str::to_string),
                ..DrawRequest::default()
            };
            let request = asked.request(&model, Start::Noise).unwrap();
            let embeddings = &[][..];
            let origin =
                Origin { model: "", source, seed: 0, start: None, embeddings, own, prediction_type: None };
            let text = parameters(&request, &origin).unwrap().to_string();
            match expected {
                Some(expected) => assert!(text.contains(expected), "{text}"),
                None => assert!(!text.contains("Schedule") && !text.contains("spacing"), "{text}"),
            }
            let read = DrawRequest::from_parameters(&Parameters::parse(&text)).unwrap();
            let again = read.request(&model, Start::Noise).unwrap().scheduler;
            assert_eq!(again.spacing(), request.scheduler.spacing(), "{text}");
        }
    }

    #[test]
    fn names_that_nothing_has_are_refused() {
        let model = model();
        let of = |change: fn(&mut DrawRequest)| {
            let mut request = DrawRequest::default();
            change(&mut request);
            request.request(&model, Start::Noise).err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(of(|it| it.precision = Some("f8".to_string())).contains("f8"));
        assert!(of(|it| it.scheduler = Some("eular".to_string())).contains("eular"));
        assert!(of(|it| it.prediction_type = Some("w".to_string())).contains("prediction type can't be `w`"));
        assert!(of(|it| it.timestep_spacing = Some("wide".to_string())).contains("wide"));
    }
}
