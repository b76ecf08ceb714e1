//! Writing the packages of a model, palettized or unchanged: plans for all of them, then each written and
//! verified.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use mixbit_compress::{Layer, Plan, Scheme, uniform};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_formats::coreml::{self, Values};
use mixbit_formats::{Claim, make_directory, make_subdirectory};
use mixbit_mil::{Function, Opset, Progress, Unit, constexpr};
use thiserror::Error;

use super::check::{CheckError, Report};
use super::stale::{self, Stale};
use super::target::{Target, TargetError, Targets};
use super::{MIN_SIZE, PalettizeError, by_recipe, by_structure, check_plan, palettize};
use crate::existing::{self, ExistsError, SideFile};
use crate::inspect::{InspectError, open};
use crate::package::{ConversionOptions, DeploymentTarget, PackageKind, VOCABULARY, keys, provenance};
use crate::recipe::{MatchError, Recipe, RecipeFile};
use crate::source::OpenOptions;

/// The source of the plan of each package.
pub enum PlanSource {
    /// No layer changes.
    Unchanged,
    /// One scheme for every layer of more than `min_size` weights. Of several packages, those of the kinds
    /// that are not palettized with a model stay unchanged.
    Uniform {
        /// The scheme.
        scheme: Scheme,
        /// The most weights of a layer that stays unchanged.
        min_size: usize,
        /// True if a package that is the only one is palettized whatever its kind.
        any_kind: bool,
    },
    /// A recipe for the UNets; other packages stay unchanged.
    Recipe {
        /// The file.
        file: Box<RecipeFile>,
        /// The recipe's name in the file.
        name: String,
        /// A checkpoint with the configuration of packages that have lost the names of their layers.
        like: Option<PathBuf>,
    },
}

/// The plan of palettized packages, as their metadata keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Provenance {
    /// The scheme, or the recipe's name and checksum.
    recipe: String,
    /// Layers that are not computed in 8-bit integers.
    full_precision: Vec<String>,
    /// The most weights of a layer that stays unchanged, if it was chosen.
    min_size: Option<usize>,
}

/// Packages that are not palettized as asked, though the others are.
#[derive(Debug)]
pub enum Warning {
    /// The recipe was made on a network with other layers.
    OtherLayers {
        /// The network.
        part: &'static str,
    },
    /// The recipe does not fit: the network stays unchanged.
    Unchanged {
        /// The network.
        part: &'static str,
        /// The mismatch.
        cause: MatchError,
    },
}

/// A package that can't be palettized.
#[derive(Debug, Error)]
pub enum JobError {
    /// A package that can't be read or made.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A name that no recipe of the file has.
    #[error("the file has no recipe `{name}`")]
    NoRecipe {
        /// The name.
        name: String,
    },
    /// A recipe for a model without a UNet.
    #[error("a recipe is for a UNet, and there is none")]
    NoUnet,
    /// A recipe that fits no network.
    #[error("{part}: {cause}")]
    Mismatch {
        /// The first network.
        part: &'static str,
        /// The mismatch.
        cause: MatchError,
    },
    /// Packages of one kind that are not the two halves of a network.
    #[error("the packages of the {part} are not two halves of one network")]
    Chunks {
        /// The network.
        part: &'static str,
    },
    /// A checkpoint for names that can't be opened.
    #[error(transparent)]
    Like(#[from] InspectError),
    /// A checkpoint for names without the network.
    #[error("{} has no UNet that names could be taken from", path.display())]
    NoNames {
        /// The checkpoint.
        path: PathBuf,
    },
    /// An output that is there, and is another.
    #[error(transparent)]
    Exists(#[from] ExistsError),
    /// A package of palettes where one without is to be bundled.
    #[error(
        "{cause} (a bundle of palettized packages is made by `mixbit palettize` with the options that made \
         them, and --bundle-resources-for-swift-cli)"
    )]
    Bundle {
        /// The package that is there.
        cause: ExistsError,
    },
    /// A package that has no name in a bundle.
    #[error(
        "{package} can't be bundled: its name does not say which part of a model it is, as \
         `..._unet.mlpackage` does"
    )]
    NoCompiledName {
        /// The package.
        package: String,
    },
    /// A compiled model that can't be bundled.
    #[error("{package} is compiled already: leave out --bundle-resources-for-swift-cli")]
    Compiled {
        /// The compiled model.
        package: String,
    },
    /// A package whose layers can't be palettized.
    #[error("{package}: {cause}")]
    Palettize {
        /// The package.
        package: String,
        /// The reason.
        cause: Box<PalettizeError>,
    },
    /// A package that was not written as it should be.
    #[error("{package}: {cause}")]
    Check {
        /// The package.
        package: String,
        /// The difference.
        cause: Box<CheckError>,
    },
    /// A file that can't be written.
    #[error(transparent)]
    Format(#[from] mixbit_formats::Error),
}

/// A phase of palettizing one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Palettes are fitted: counts layers.
    Palettes,
    /// The package is written: counts bytes.
    Writing,
    /// A package that stays unchanged is written: counts bytes.
    Copying,
    /// Every layer is read again: counts layers.
    Checking,
    /// The compiled model is written: counts bytes.
    Bundling,
    /// Another process writes the package: reports ten times a second that nothing is done.
    Waiting,
}

/// Makes the receiver of a phase's progress.
pub type Phases<'p> = &'p dyn Fn(Phase) -> Box<dyn Progress + 'p>;

/// The result of one package.
#[derive(Debug)]
pub enum Outcome {
    /// The package was there, made of the same source in the same way.
    Kept,
    /// The package was written unchanged.
    Copied,
    /// The package was palettized, and every layer verified.
    Palettized(Report),
}

/// Packages to be written, with a plan for each.
pub struct Job {
    targets: Targets,
    /// For each package; `None` for one that stays unchanged.
    plans: Vec<Option<Plan>>,
    provenance: Provenance,
    /// The directory of the compiled models, if they are written too.
    resources: Option<PathBuf>,
}

impl PlanSource {
    /// One scheme for layers of more than [`MIN_SIZE`] weights.
    pub fn uniform(scheme: Scheme) -> Self {
        PlanSource::Uniform { scheme, min_size: MIN_SIZE, any_kind: false }
    }

    /// The oldest deployment target with all schemes, and not older than `asked`.
    pub fn target(&self, asked: &'static DeploymentTarget) -> &'static DeploymentTarget {
        let needed = self.since().filter(|&needed| needed > asked.opset);
        needed.and_then(DeploymentTarget::of_opset).unwrap_or(asked)
    }

    /// The schemes of the layers, each once.
    pub fn schemes(&self) -> Vec<Scheme> {
        match self {
            PlanSource::Unchanged => Vec::new(),
            PlanSource::Uniform { scheme, .. } => vec![*scheme],
            PlanSource::Recipe { file, name, .. } => {
                let recipe = file.recipes.get(name).map(|recipe| recipe.layers.values());
                let mut schemes: Vec<Scheme> = Vec::new();
                for scheme in recipe.into_iter().flatten().flatten() {
                    if !schemes.contains(scheme) {
                        schemes.push(*scheme);
                    }
                }
                schemes
            }
        }
    }

    /// The opset that has all schemes.
    fn since(&self) -> Option<Opset> {
        match self {
            PlanSource::Unchanged => None,
            PlanSource::Uniform { scheme, .. } => Some(scheme.since()),
            PlanSource::Recipe { file, name, .. } => {
                let schemes = file.recipes.get(name)?.layers.values().flatten();
                schemes.map(|scheme| scheme.since()).max()
            }
        }
    }

    /// The metadata of packages that are made by it.
    fn provenance(&self) -> Provenance {
        match self {
            PlanSource::Unchanged => Provenance::default(),
            PlanSource::Uniform { scheme, min_size, .. } => Provenance {
                recipe: scheme.to_string(),
                full_precision: Vec::new(),
                min_size: Some(*min_size),
            },
            PlanSource::Recipe { file, name, .. } => {
                let int8 = file.details.as_ref().and_then(|details| details.int8.as_ref());
                Provenance {
                    recipe: format!("{name} {}", file.checksum(name)),
                    full_precision: int8.map(|int8| int8.full_precision.clone()).unwrap_or_default(),
                    min_size: None,
                }
            }
        }
    }
}

impl Provenance {
    /// Notes the plan in a palettized package's metadata.
    fn note(&self, metadata: &mut BTreeMap<String, String>) {
        metadata.insert(keys::RECIPE.to_string(), self.recipe.clone());
        if !self.full_precision.is_empty() {
            metadata.insert(keys::FULL_PRECISION.to_string(), self.full_precision.join(" "));
        }
        if let Some(min_size) = self.min_size {
            provenance::add_option(metadata, "min-size", &min_size.to_string());
        }
    }
}

impl Job {
    /// Plans the layers of packages. No weight is read.
    ///
    /// # Errors
    /// [`JobError`], if a recipe fits none of them.
    pub fn new(targets: Targets, source: &PlanSource) -> Result<(Self, Vec<Warning>), JobError> {
        let provenance = source.provenance();
        let packages = &targets.packages;
        let (plans, warnings) = match source {
            PlanSource::Unchanged => (packages.iter().map(|_| None).collect(), Vec::new()),
            PlanSource::Uniform { scheme, min_size, any_kind } => {
                let all = *any_kind && packages.len() == 1;
                (uniform_plans(packages, *scheme, *min_size, all), Vec::new())
            }
            PlanSource::Recipe { file, name, like } => {
                let recipe =
                    file.recipes.get(name).ok_or_else(|| JobError::NoRecipe { name: name.clone() })?;
                recipe_plans(packages, file, recipe, like.as_deref())?
            }
        };
        Ok((Job { targets, plans, provenance, resources: None }, warnings))
    }

    /// Also compiles the packages, into `Resources` beside them.
    ///
    /// # Errors
    /// [`JobError::NoCompiledName`] or [`JobError::Compiled`] for a package that has no place there.
    pub fn with_bundle(mut self) -> Result<Self, JobError> {
        let resources = self.targets.output.join("Resources");
        self.targets.folders.extend([resources.clone(), resources.join("controlnet")]);
        for target in &self.targets.packages {
            target.compiled_path(&resources)?;
        }
        let vocabulary = |file: &SideFile| -> Option<SideFile> {
            let name = file.path.file_name()?.to_str().filter(|name| VOCABULARY.contains(name))?;
            Some(SideFile { path: resources.join(name), content: file.content.clone() })
        };
        let copies: Vec<SideFile> = self.targets.files.iter().filter_map(vocabulary).collect();
        self.targets.files.extend(copies);
        self.resources = Some(resources);
        Ok(self)
    }

    /// The packages, in the order in which they are written.
    pub fn targets(&self) -> &[Target] {
        &self.targets.packages
    }

    /// The numbers of layers that are stored in fewer bits, and of their weights.
    pub fn work(&self) -> (usize, u64) {
        let planned = self
            .targets
            .packages
            .iter()
            .zip(&self.plans)
            .filter_map(|(target, plan)| Some((target, plan.as_ref()?)));
        let layers = planned.flat_map(|(target, plan)| {
            target.layers.iter().filter(|layer| plan.contains_key(&layer.name)).map(Layer::count)
        });
        layers.fold((0, 0), |(layers, weights), count| (layers + 1, weights + count as u64))
    }

    /// Refuses plans that can't be carried out; also outputs that are there and are others, and packages that
    /// would not fit beside the new ones, unless `force` replaces and removes them. Then makes the
    /// directories, which removes what killed runs left in them, and writes the files beside the packages.
    /// Returns the paths that it removed.
    ///
    /// # Errors
    /// [`JobError`]; nothing is written then.
    pub fn begin(&self, force: bool) -> Result<Vec<PathBuf>, JobError> {
        for (index, target) in self.targets.packages.iter().enumerate() {
            let planned = self.metadata(index);
            let is_kept = !force && self.is_there(&target.path, &planned)?;
            if let Some(resources) = self.resources.as_ref().filter(|_| !force) {
                existing::is_there(&target.compiled_path(resources)?, &planned)?;
            }
            if let Some(plan) = self.plans[index].as_ref().filter(|_| !is_kept) {
                let refused =
                    |cause| JobError::Palettize { package: target.source.clone(), cause: Box::new(cause) };
                check_plan(&target.model, plan, force).map_err(refused)?;
            }
        }
        let resources = self.resources.as_deref();
        let compiled = resources.map(|resources| {
            self.targets.packages.iter().map(|target| target.compiled_path(resources)).collect()
        });
        let stale = stale::find(&self.targets, &compiled.unwrap_or_else(|| Ok(Vec::new()))?)
            .map_err(TargetError::Open)?;
        let stale = if force { stale } else { stale::refused(stale).map(|()| Vec::new())? };
        let mut missing = Vec::new();
        for file in &self.targets.files {
            match file.is_there() {
                Ok(true) => {}
                Err(error) if !force => return Err(error.into()),
                _ => missing.push(file),
            }
        }
        make_directory(&self.targets.output)?;
        for folder in &self.targets.folders {
            make_subdirectory(folder)?;
        }
        for Stale { path, .. } in &stale {
            Claim::new(path, &mut || Ok(()))?.remove()?;
        }
        missing.into_iter().try_for_each(SideFile::write)?;
        Ok(stale.into_iter().map(|stale| stale.path).collect())
    }

    /// Writes one package and verifies it. A package that is there, made of the same source in the same way,
    /// stays, unless `force` writes it again and compresses again what is compressed already. While another
    /// process writes the package, this one waits.
    ///
    /// # Errors
    /// [`JobError`]; no partial package is left.
    pub fn write(&self, index: usize, force: bool, phases: Phases<'_>) -> Result<Outcome, JobError> {
        let (target, plan) = (&self.targets.packages[index], &self.plans[index]);
        let claim = claim(&target.path, phases)?;
        let metadata = self.metadata(index);
        if !force && self.is_there(&target.path, &metadata)? {
            return Ok(Outcome::Kept);
        }
        let class = target.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let model = coreml::Model { metadata, class, ..target.model.clone() };
        // Packages of other tools may have infinities in their masks.
        let values = if target.is_of_package { Values::Any } else { Values::Finite };
        let Some(plan) = plan else {
            coreml::write_claimed(&claim, &model, values, &*phases(Phase::Copying))?;
            return Ok(Outcome::Copied);
        };
        let package = || target.source.clone();
        let palettized = palettize(&model, plan, force, &*phases(Phase::Palettes))
            .map_err(|cause| JobError::Palettize { package: package(), cause: Box::new(cause) })?;
        coreml::write_claimed(&claim, &palettized.model, values, &*phases(Phase::Writing))?;
        let report = palettized
            .check(&target.path, &*phases(Phase::Checking))
            .map_err(|cause| JobError::Check { package: package(), cause: Box::new(cause) })?;
        Ok(Outcome::Palettized(report))
    }

    /// Compiles one package that is there, if compiled models are written too. Returns the path of the
    /// compiled model, and false with it if it was there, of the same package.
    ///
    /// # Errors
    /// [`JobError`]; no partial model is left.
    pub fn bundle(
        &self,
        index: usize,
        force: bool,
        phases: Phases<'_>,
    ) -> Result<Option<(PathBuf, bool)>, JobError> {
        let Some(resources) = &self.resources else { return Ok(None) };
        let target = &self.targets.packages[index];
        let path = target.compiled_path(resources)?;
        let claim = claim(&path, phases)?;
        let model = coreml::read(&target.path)?;
        if !force && existing::is_there(&path, &model.metadata)? {
            return Ok(Some((path, false)));
        }
        coreml::write_claimed(&claim, &model, Values::Any, &*phases(Phase::Bundling))?;
        Ok(Some((path, true)))
    }

    /// [`existing::is_there`], with advice for palettized packages where others are to be bundled.
    fn is_there(&self, path: &Path, planned: &coreml::Metadata) -> Result<bool, JobError> {
        let is_palettized = |path: &Path| {
            coreml::read(path).is_ok_and(|model| model.metadata.user_defined.contains_key(keys::RECIPE))
        };
        existing::is_there(path, planned).map_err(|cause| {
            let is_plain = !planned.user_defined.contains_key(keys::RECIPE);
            match self.resources.is_some() && is_plain && is_palettized(path) {
                true => JobError::Bundle { cause },
                false => cause.into(),
            }
        })
    }

    /// The metadata of a package as it is written: its source, its options and its plan.
    fn metadata(&self, index: usize) -> coreml::Metadata {
        let (target, plan) = (&self.targets.packages[index], &self.plans[index]);
        let mut metadata = target.model.metadata.clone();
        let own = &mut metadata.user_defined;
        // A copy of a package that says what it was made of stays what it is.
        if target.is_of_package && (plan.is_some() || !own.contains_key(keys::SOURCE)) {
            let source = target.model.program.main().map(provenance::of_function).unwrap_or_default();
            own.insert(keys::SOURCE.to_string(), source);
        }
        if plan.is_some() {
            self.provenance.note(own);
        }
        metadata
    }
}

/// Claims an output, with its progress while another process has it.
fn claim(path: &Path, phases: Phases<'_>) -> Result<Claim, JobError> {
    let mut waiting = None;
    let mut wait = || waiting.get_or_insert_with(|| phases(Phase::Waiting)).advance(0, 0, Unit::Layers);
    Ok(Claim::new(path, &mut wait)?)
}

impl Target {
    /// The path of the compiled model in a `Resources` directory.
    fn compiled_path(&self, resources: &Path) -> Result<PathBuf, JobError> {
        if self.path.extension().is_some_and(|extension| extension == "mlmodelc") {
            return Err(JobError::Compiled { package: self.source.clone() });
        }
        let name = PackageKind::compiled_name(&self.source);
        let name = name.ok_or_else(|| JobError::NoCompiledName { package: self.source.clone() })?;
        Ok(resources.join(format!("{name}.mlmodelc")))
    }
}

fn uniform_plans(targets: &[Target], scheme: Scheme, min_size: usize, all: bool) -> Vec<Option<Plan>> {
    let plan = |target: &Target| {
        let stays = !all && target.kind.is_some_and(|kind| !kind.is_palettized);
        (!stays).then(|| uniform(&target.layers, scheme, min_size))
    };
    targets.iter().map(plan).collect()
}

/// Matches a recipe with the UNets; those that it does not fit stay unchanged unless it fits none.
fn recipe_plans(
    targets: &[Target],
    file: &RecipeFile,
    recipe: &Recipe,
    like: Option<&Path>,
) -> Result<(Vec<Option<Plan>>, Vec<Warning>), JobError> {
    let mut plans: Vec<Option<Plan>> = targets.iter().map(|_| None).collect();
    let mut warnings = Vec::new();
    for (part, indices) in unets(targets) {
        let chunks: Vec<&Target> = indices.iter().map(|&index| &targets[index]).collect();
        match network_plan(part, &chunks, file, recipe, like)? {
            Ok((plan, is_same)) => {
                if is_same == Some(false) {
                    warnings.push(Warning::OtherLayers { part });
                }
                for index in indices {
                    plans[index] = Some(plan_of(&targets[index].layers, &plan));
                }
            }
            Err(cause) => warnings.push(Warning::Unchanged { part, cause }),
        }
    }
    if plans.iter().any(Option::is_some) {
        return Ok((plans, warnings));
    }
    let mismatch = warnings.into_iter().find_map(|warning| match warning {
        Warning::Unchanged { part, cause } => Some(JobError::Mismatch { part, cause }),
        Warning::OtherLayers { .. } => None,
    });
    Err(mismatch.unwrap_or(JobError::NoUnet))
}

/// The targets of each UNet: one, or its chunks. A package that is given by itself under another name is a
/// UNet.
fn unets(targets: &[Target]) -> BTreeMap<&'static str, Vec<usize>> {
    let mut unets: BTreeMap<&'static str, Vec<usize>> = BTreeMap::new();
    for (index, target) in targets.iter().enumerate() {
        let part = match target.kind {
            Some(kind) => kind.is_unet.then_some(kind.name),
            None => (targets.len() == 1).then_some("unet"),
        };
        if let Some(part) = part {
            unets.entry(part).or_default().push(index);
        }
    }
    unets
}

/// A plan for the layers of a network, and whether it has the layers that the recipe was made on.
type Matched = Result<(Plan, Option<bool>), MatchError>;

/// Matches a recipe with one network by the names of its layers, or else by its structure.
fn network_plan(
    part: &'static str,
    chunks: &[&Target],
    file: &RecipeFile,
    recipe: &Recipe,
    like: Option<&Path>,
) -> Result<Matched, JobError> {
    let layers: Vec<Layer> = chunks.iter().flat_map(|chunk| chunk.layers.iter().cloned()).collect();
    match (by_recipe(file, recipe, &layers), like) {
        (Err(_), Some(like)) => {
            Ok(by_structure(file, recipe, &network(part, chunks)?, &named_graphs(like, part)?))
        }
        (matched, _) => Ok(matched),
    }
}

/// The layers of a plan that a package has.
fn plan_of(layers: &[Layer], plan: &Plan) -> Plan {
    let own = layers.iter().filter_map(|layer| plan.get_key_value(&layer.name));
    own.map(|(name, chosen)| (name.clone(), chosen.clone())).collect()
}

/// The graph of a network, of one package or two chunks.
fn network(part: &'static str, chunks: &[&Target]) -> Result<Function, JobError> {
    let functions = chunks.iter().map(|target| {
        let unusable = |cause| JobError::Palettize { package: target.source.clone(), cause: Box::new(cause) };
        let function = target.model.program.main().ok_or_else(|| unusable(PalettizeError::NoFunction))?;
        constexpr::decoded(function).map_err(|error| unusable(error.into()))
    });
    match &functions.collect::<Result<Vec<Function>, JobError>>()?[..] {
        [whole] => Ok(whole.clone()),
        [first, second] => mixbit_mil::join(first, second).map_err(|_| JobError::Chunks { part }),
        _ => Err(JobError::Chunks { part }),
    }
}

/// The graphs of a checkpoint's UNet, one for each form of attention.
fn named_graphs(checkpoint: &Path, part: &str) -> Result<Vec<Function>, JobError> {
    let control_unet = part == "control-unet";
    let compiled = if control_unet { "ControlledUnet" } else { "Unet" };
    let mut graphs = Vec::new();
    for attention in AttentionImplementation::ALL {
        let options = ConversionOptions { attention, control_unet, ..ConversionOptions::default() };
        let networks = open(checkpoint, &options, &OpenOptions::default())?;
        let unet =
            networks.into_iter().find(|network| network.name.trim_end_matches(".mlmodelc") == compiled);
        graphs.extend(unet.and_then(|network| network.function));
    }
    if graphs.is_empty() {
        return Err(JobError::NoNames { path: checkpoint.to_path_buf() });
    }
    Ok(graphs)
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::OtherLayers { part } => {
                write!(f, "{part}: it has other layers than the recipe was made on")
            }
            Warning::Unchanged { part, cause } => write!(f, "{part} stays as it is: {cause}"),
        }
    }
}
