//! The packages that a model becomes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use mixbit_diffusion::arch::{
    ArchError, AttentionImplementation, Config, GraphOptions, safety_checker, text_encoder, unet, vae,
};
use mixbit_diffusion::model::{
    FileError, ModelError, ModelFiles, ModelScheduler, TEXT_ENCODERS, check_pipeline, component_config,
    merged_tokenizer_config, pooled_channels, read_tokenizer,
};
use mixbit_mil::{DType, Function, Weights, bisect};
use serde_json::{Map, Value, json};

use super::error::PlanError;
use super::write::{Build, ComponentWeights, Package};
use super::{
    CONTROL_UNET, CONTROLNET, CONTROLNET_PREFIX, DeploymentTarget, PackageKind, REFINER, SAFETY_CHECKER,
    TEXT_ENCODER, TEXT_ENCODER_2, UNET, VAE_DECODER, VAE_ENCODER, file_name, fit, keys, provenance,
    title_case,
};

/// The version of Apple's converter whose packages these are like.
const APPLE_VERSION: &str = "1.1.0";

/// The option that added words to the text encoders.
const EMBEDDING: &str = "embedding";

/// The end of the name of a text encoder's table of input vectors.
const TOKEN_TABLE: &str = "token_embedding.weight";

/// The hexadecimal digits of the vectors' checksum.
const DIGITS: usize = 12;

/// Builds a network from its configuration and weights.
type Graph = Arc<dyn Fn(&GraphOptions) -> Result<Function, ArchError> + Send + Sync>;

/// The form of the packages that a model becomes.
#[derive(Clone, Debug, Default)]
pub struct ConversionOptions {
    /// The packages to make, by [`PackageKind::asked_as`]; all that the model has if it is empty.
    pub parts: Vec<&'static str>,
    /// The model's name in file names and metadata.
    pub model_version: String,
    /// Height and width of the latents; the model's own if absent.
    pub latent: Option<[usize; 2]>,
    /// True if UNets take one sample, not two.
    pub batch_one: bool,
    /// The form of attention.
    pub attention: AttentionImplementation,
    /// True if UNets are cut in two.
    pub chunk_unet: bool,
    /// True if a UNet that takes the residuals of ControlNets is made too.
    pub control_unet: bool,
    /// The oldest system to run on.
    pub target: &'static DeploymentTarget,
}

/// The models and components that packages are made of.
pub struct ConversionSource<'a> {
    /// The model.
    pub model: &'a dyn ModelFiles,
    /// A model whose UNet becomes the refiner, and its name.
    pub refiner: Option<(String, &'a dyn ModelFiles)>,
    /// ControlNets by name; each has one component of that name.
    pub controlnets: Vec<(String, &'a dyn ModelFiles)>,
}

impl<'a> ConversionSource<'a> {
    /// A model by itself.
    pub fn of(model: &'a dyn ModelFiles) -> Self {
        ConversionSource { model, refiner: None, controlnets: Vec::new() }
    }
}

/// Lists the packages that a model becomes, in the order in which they are written. No weight is read.
///
/// # Errors
/// [`PlanError`], if the model can't be used or lacks a part that is asked for.
pub fn plan(source: &ConversionSource<'_>, options: &ConversionOptions) -> Result<Vec<Package>, PlanError> {
    check_pipeline(source.model)?;
    let mut planner = Planner { options, source, packages: Vec::new() };
    let Config::Unet(unet) = component_config(source.model, "unet")? else {
        return Err(PlanError::wrong_class(source.model, "unet"));
    };
    planner.text_encoders(&unet)?;
    planner.unets(&unet)?;
    planner.autoencoder(&unet)?;
    let has_safety_checker = has_safety_checker(source.model)?;
    // One that is not asked for need not be of a kind that can be converted.
    let is_asked = options.parts.contains(&SAFETY_CHECKER.asked_as);
    let is_converted = match options.parts.is_empty() {
        true => left_out_safety_checker(source.model)?.is_none(),
        false => is_asked,
    };
    if has_safety_checker && is_converted {
        planner.safety_checker(&unet)?;
    }
    let packages = planner.packages;
    let is_wanted =
        |package: &Package| options.parts.is_empty() || options.parts.contains(&package.kind.asked_as);
    if let Some(absent) =
        options.parts.iter().find(|part| packages.iter().all(|package| package.kind.asked_as != **part))
    {
        let mut present: Vec<&str> = packages.iter().map(|package| package.kind.asked_as).collect();
        present.dedup();
        if has_safety_checker && !present.contains(&SAFETY_CHECKER.asked_as) {
            present.push(SAFETY_CHECKER.asked_as);
        }
        return Err(PlanError::NoPart { part: absent.to_string(), present: present.join(", ") });
    }
    Ok(packages.into_iter().filter(is_wanted).collect())
}

/// True if a model has a safety checker. Many copies name one in `model_index.json` and go without its
/// folder.
fn has_safety_checker(model: &dyn ModelFiles) -> Result<bool, ModelError> {
    let config = model.text(SAFETY_CHECKER.name, "config.json").map_err(ModelError::File)?;
    Ok(model.component(SAFETY_CHECKER.name).is_some() && config.is_some())
}

/// The reason why the safety checker is left out when all parts of a model are converted: its weights can't
/// be read, for many copies of models are incomplete. Nothing is drawn with it.
///
/// # Errors
/// If its configuration can't be read.
pub fn left_out_safety_checker(model: &dyn ModelFiles) -> Result<Option<FileError>, ModelError> {
    Ok(match has_safety_checker(model)? {
        true => model.weights(SAFETY_CHECKER.name).err(),
        false => None,
    })
}

fn weights(files: &dyn ModelFiles, component: &str) -> Result<Arc<dyn Weights>, PlanError> {
    Ok(files.weights(component).map_err(ModelError::File)?)
}

/// The words of textual inversion in a tokenizer, and a checksum of their vectors: the checksum of the text
/// encoder's weights takes samples of its table, and may miss these.
fn embeddings(
    files: &dyn ModelFiles,
    tokenizer: &str,
    weights: &dyn Weights,
) -> Result<Option<String>, PlanError> {
    let tokenizer = read_tokenizer(files, tokenizer)?;
    let names: Vec<&str> =
        tokenizer.words().iter().flat_map(|word| &word.names).map(String::as_str).collect();
    if names.is_empty() {
        return Ok(None);
    }
    let ids = || tokenizer.words().iter().flat_map(|word| &word.ids).map(|&id| id as usize);
    let (first, end) = (ids().min().unwrap_or(0), ids().max().map_or(0, |last| last + 1));
    let table = weights.names().into_iter().find(|name| name.ends_with(TOKEN_TABLE));
    let rows = table.and_then(|name| weights.get(name)?.slice(0, first, end - first).ok());
    let sum = provenance::checksum(&rows.map(|rows| rows.read_stored().into_owned()).unwrap_or_default());
    Ok(Some(format!("{} ({})", names.join(", "), sum.get(..DIGITS).unwrap_or(&sum))))
}

struct Planner<'a> {
    options: &'a ConversionOptions,
    source: &'a ConversionSource<'a>,
    packages: Vec<Package>,
}

/// A component of a model, before its graph is built.
struct Component<'a> {
    kind: &'static PackageKind,
    files: &'a dyn ModelFiles,
    /// The component's folder.
    name: &'a str,
    /// The name of its model.
    version: &'a str,
    weights: Arc<dyn Weights>,
    graph: Graph,
    graph_options: GraphOptions,
    /// The options of the command line that the graph depends on, besides the target.
    asked: Vec<(&'static str, String)>,
    /// Metadata besides the configuration.
    more: Vec<(&'static str, String)>,
}

impl<'a> Planner<'a> {
    fn text_encoders(&mut self, unet: &unet::Config) -> Result<(), PlanError> {
        let outputs = text_encoder::Outputs { pooled: true, ..unet.text_outputs() };
        let kinds = [&TEXT_ENCODER, &TEXT_ENCODER_2];
        for ((name, tokenizer), kind) in TEXT_ENCODERS.into_iter().zip(kinds) {
            let files = self.source.model;
            if files.component(name).is_none() {
                continue;
            }
            let Config::TextEncoder(config) = component_config(files, name)? else {
                return Err(PlanError::wrong_class(files, name));
            };
            let tokens = config.max_position_embeddings;
            let weights = weights(files, name)?;
            let built = weights.clone();
            let graph: Graph =
                Arc::new(move |options| text_encoder::build(&config, &*built, options, outputs));
            let graph_options = GraphOptions { tokens, ..self.graph_options(DType::F16) };
            let settings = merged_tokenizer_config(files, tokenizer)?;
            let asked = match &settings {
                Some(_) => embeddings(files, tokenizer, &*weights)?.map(|words| (EMBEDDING, words)),
                None => None,
            };
            let asked = asked.into_iter().collect();
            let more = settings.map(|text| (keys::TOKENIZER, text)).into_iter().collect();
            let version = &self.options.model_version;
            let component =
                Component { kind, files, name, version, weights, graph, graph_options, asked, more };
            self.add(component, false)?;
        }
        Ok(())
    }

    fn unets(&mut self, unet: &unet::Config) -> Result<(), PlanError> {
        let size = self.size(unet);
        let options = self.options;
        let graph_options = |config: &unet::Config, pooled: usize, control: bool| {
            let time_ids = config
                .time_id_count(pooled)
                .map_err(|source| ModelError::Network { component: "unet".to_string(), source })?;
            Ok::<_, PlanError>(GraphOptions {
                batch: if options.batch_one { 1 } else { 2 },
                height: size[0],
                width: size[1],
                time_ids: time_ids.unwrap_or_default(),
                attention: options.attention,
                control_residuals: control,
                ..self.graph_options(DType::F16)
            })
        };
        let files = self.source.model;
        let pooled = pooled_channels(files)?;
        let mut components = Vec::new();
        let version = options.model_version.as_str();
        let mut unets = vec![(&UNET, files, version, unet.clone(), pooled, false)];
        if options.control_unet {
            unets.push((&CONTROL_UNET, files, version, unet.clone(), pooled, true));
        }
        if let Some((version, refiner)) = &self.source.refiner {
            let refiner = *refiner;
            let Config::Unet(config) = component_config(refiner, "unet")? else {
                return Err(PlanError::wrong_class(refiner, "unet"));
            };
            fit::refiner(files, unet, refiner, &config)?;
            unets.push((&REFINER, refiner, version, *config, pooled_channels(refiner)?, false));
        }
        for (kind, files, version, config, pooled, control) in unets {
            let graph_options = graph_options(&config, pooled, control)?;
            let weights = weights(files, "unet")?;
            let built = weights.clone();
            let graph: Graph = Arc::new(move |options| unet::build(&config, &*built, options));
            let scheduler = ModelScheduler::from_files(files)?;
            let more = vec![
                (keys::APPLE_VERSION, APPLE_VERSION.to_string()),
                (keys::SCHEDULER, scheduler.file().to_string()),
                (keys::MODEL_INDEX, model_index(files)),
            ];
            let (name, asked) = ("unet", self.unet_options(size));
            let component =
                Component { kind, files, name, version, weights, graph, graph_options, asked, more };
            components.push(component);
        }
        for (name, files) in &self.source.controlnets {
            let Config::ControlNet(config) = component_config(*files, name)? else {
                return Err(PlanError::wrong_class(*files, name));
            };
            fit::controlnet(name, &config.unet, unet)?;
            let graph_options = graph_options(&config.unet, pooled, false)?;
            let weights = weights(*files, name)?;
            let built = weights.clone();
            let graph: Graph = Arc::new(move |options| unet::control::build(&config, &*built, options));
            components.push(Component {
                kind: &CONTROLNET,
                files: *files,
                name,
                version: name,
                weights,
                graph,
                graph_options,
                asked: self.unet_options(size),
                more: Vec::new(),
            });
        }
        for component in components {
            let is_cut = options.chunk_unet && component.kind.name != CONTROLNET.name;
            self.add(component, is_cut)?;
        }
        Ok(())
    }

    fn autoencoder(&mut self, unet: &unet::Config) -> Result<(), PlanError> {
        let (files, config) = self.vae()?;
        let [height, width] = self.size(unet);
        let weights = weights(files, "vae")?;
        let full = |full: bool| if full { DType::F32 } else { DType::F16 };
        // Apple's converter encodes for XL in fp32 whatever the autoencoder says.
        let decoder = full(unet.takes_sizes() && config.force_upcast);
        let encoder = full(unet.takes_sizes());
        let (decoder_config, decoder_weights, built) = (config.clone(), weights.clone(), weights.clone());
        let parts: [(_, Graph, DType); 2] = [
            (
                &VAE_DECODER,
                Arc::new(move |options| vae::build_decoder(&decoder_config, &*decoder_weights, options)),
                decoder,
            ),
            (&VAE_ENCODER, Arc::new(move |options| vae::build_encoder(&config, &*built, options)), encoder),
        ];
        for (kind, graph, dtype) in parts {
            let graph_options = GraphOptions { height, width, ..self.graph_options(dtype) };
            let (version, weights) = (&self.options.model_version, weights.clone());
            let (name, asked, more) = ("vae", size_options([height, width]).into(), Vec::new());
            let component =
                Component { kind, files, name, version, weights, graph, graph_options, asked, more };
            self.add(component, false)?;
        }
        Ok(())
    }

    /// The files of the autoencoder, and its configuration.
    fn vae(&self) -> Result<(&'a dyn ModelFiles, vae::Config), PlanError> {
        let files = self.source.model;
        match component_config(files, "vae")? {
            Config::Vae(config) => Ok((files, config)),
            _ => Err(PlanError::wrong_class(files, "vae")),
        }
    }

    fn safety_checker(&mut self, unet: &unet::Config) -> Result<(), PlanError> {
        let (files, name) = (self.source.model, SAFETY_CHECKER.name);
        let Config::SafetyChecker(config) = component_config(files, name)? else {
            return Err(PlanError::wrong_class(files, name));
        };
        let (_, vae) = self.vae()?;
        let size = self.size(unet);
        let image = size.map(|extent| extent.saturating_mul(vae.scale()));
        let weights = weights(files, name)?;
        let built = weights.clone();
        let graph: Graph = Arc::new(move |options| safety_checker::build(&config, &*built, options, image));
        let graph_options = self.graph_options(DType::F16);
        let (kind, version) = (&SAFETY_CHECKER, &self.options.model_version);
        let (asked, more) = (size_options(size).into(), Vec::new());
        let component = Component { kind, files, name, version, weights, graph, graph_options, asked, more };
        self.add(component, false)
    }

    /// The options that UNets and ControlNets depend on.
    fn unet_options(&self, size: [usize; 2]) -> Vec<(&'static str, String)> {
        let form = [
            ("attention-implementation", self.options.attention.name().to_string()),
            ("unet-batch-one", self.options.batch_one.to_string()),
        ];
        form.into_iter().chain(size_options(size)).collect()
    }

    fn size(&self, unet: &unet::Config) -> [usize; 2] {
        self.options.latent.or(unet.sample_size).unwrap_or([64, 64])
    }

    fn graph_options(&self, dtype: DType) -> GraphOptions {
        GraphOptions { dtype, opset: self.options.target.opset, ..GraphOptions::default() }
    }

    /// Adds a component as one package, or as two.
    fn add(&mut self, component: Component<'_>, is_cut: bool) -> Result<(), PlanError> {
        let Component { kind, files, name, version, weights, graph, graph_options, mut asked, more } =
            component;
        asked.push(("min-deployment-target", self.options.target.names[0].to_string()));
        let source = Arc::new(ComponentWeights { weights, checksum: OnceLock::new() });
        let config = files.json(name, "config.json").map_err(ModelError::File)?;
        let mut user_defined: BTreeMap<String, String> =
            more.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        for (key, value) in [
            (keys::VERSION, env!("CARGO_PKG_VERSION").to_string()),
            (keys::COMPONENT, name.to_string()),
            (keys::CLASS, files.component(name).unwrap_or_default().to_string()),
            (keys::CONFIG, config.to_string()),
            (keys::OPTIONS, provenance::options_text(&asked)),
        ] {
            user_defined.insert(key.to_string(), value);
        }
        let model = &self.options.model_version;
        let (file, compiled) = match kind.name == CONTROLNET.name {
            true => (
                format!("{CONTROLNET_PREFIX}{}", file_name(name)),
                format!("controlnet/{}", title_case(name)),
            ),
            false => (
                format!("Stable_Diffusion_version_{}_{}", file_name(model), kind.name),
                kind.compiled.to_string(),
            ),
        };
        let build = move || -> Result<Function, ArchError> { graph(&graph_options) };
        let package = |suffix: [String; 2], build: Build| Package {
            name: format!("{file}{}", suffix[0]),
            compiled: format!("{compiled}{}", suffix[1]),
            kind,
            model_version: version.to_string(),
            specification_version: self.options.target.specification_version,
            user_defined: user_defined.clone(),
            source: source.clone(),
            build,
        };
        if !is_cut {
            let build = move || build().map_err(|source| network(name_of(kind), source));
            let package = package([String::new(), String::new()], Box::new(build));
            self.packages.push(package);
            return Ok(());
        }
        let build = Arc::new(build);
        let mut chunks = Vec::new();
        for index in 0..2 {
            let build = build.clone();
            let chunk = move || {
                let whole = build().map_err(|source| network(name_of(kind), source))?;
                let chunks = bisect(&whole).ok_or(PlanError::Chunks { component: name_of(kind) })?;
                let [first, second] = chunks;
                Ok(if index == 0 { first } else { second })
            };
            let suffix = [format!("_chunk{}", index + 1), format!("Chunk{}", index + 1)];
            chunks.push(package(suffix, Box::new(chunk)));
        }
        self.packages.extend(chunks);
        Ok(())
    }
}

/// The latents' size as options.
fn size_options([height, width]: [usize; 2]) -> [(&'static str, String); 2] {
    [("latent-h", height.to_string()), ("latent-w", width.to_string())]
}

fn name_of(kind: &PackageKind) -> String {
    kind.name.to_string()
}

fn network(component: String, source: ArchError) -> PlanError {
    ModelError::Network { component, source }.into()
}

/// The options of `model_index.json` that drawing needs.
fn model_index(files: &dyn ModelFiles) -> String {
    let mut index = Map::new();
    index.insert("_class_name".to_string(), json!(files.class()));
    for option in ["force_zeros_for_empty_prompt", "requires_aesthetics_score", "_mixbit"] {
        if let Some(value) = files.option(option) {
            index.insert(option.to_string(), value);
        }
    }
    Value::Object(index).to_string()
}
