//! A model directory as diffusers saves it: `model_index.json` and one folder per component.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use mixbit_mil::Bytes;
use serde_json::{Map, Value};

use crate::files::{Files, is_plain, read_text};
use crate::shown::shown;
use crate::{Checkpoint, Error, json};

const INDEX: &str = "model_index.json";

/// The names of weight files.
struct Form {
    extension: &'static str,
    /// The names without variant and extension, of diffusers and of transformers.
    stems: [&'static str; 2],
}

/// The forms of weights, the preferred one first.
const FORMS: [Form; 2] = [
    Form { extension: "safetensors", stems: ["diffusion_pytorch_model", "model"] },
    Form { extension: "bin", stems: ["diffusion_pytorch_model", "pytorch_model"] },
];

/// The ends of names of files that may be models by themselves.
const SINGLE_FILES: [&str; 3] = [".safetensors", ".ckpt", ".gguf"];

/// The variant that is taken by default if there are no weights without a variant.
const FALLBACK_VARIANT: &str = "fp16";

/// One entry of `model_index.json`: the Python class that reads the folder of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    /// The library, such as `transformers`.
    pub library: String,
    /// The class, such as `CLIPTextModel`.
    pub class: String,
}

/// A model in the diffusers layout. Only `model_index.json` is read when it is opened.
#[derive(Clone, Debug)]
pub struct Diffusers {
    files: Files,
    class: String,
    components: BTreeMap<String, Option<Component>>,
    options: Map<String, Value>,
}

impl Diffusers {
    /// Opens a directory that holds `model_index.json`, or a `models--org--name` directory of the Hugging
    /// Face cache (its `main` revision). Symbolic links are followed.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no model, with what to do; [`Error::Text`] or [`Error::Layout`] if
    /// `model_index.json` is malformed; [`Error::Read`] if it can't be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let files = Files::Directory(resolve(path)?);
        if !files.has(INDEX)? {
            files.names_in("")?;
            return Err(Error::NotFound { path: files.path(INDEX), hint: hint_for(&files) });
        }
        Self::from_tree(files)
    }

    /// Opens the directory of one component, with `config.json` and weights, as a model of that component
    /// alone. Also returns the component's name, which is the directory's.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no `config.json`, [`Error::Layout`] if it does not name a class.
    pub fn open_component(path: &Path) -> Result<(Self, String), Error> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
        else {
            let hint = "a component is a directory that has a name".to_string();
            return Err(Error::NotFound { path, hint });
        };
        let files = Files::Directory(parent.to_path_buf());
        let mut model =
            Diffusers { files, class: String::new(), components: BTreeMap::new(), options: Map::new() };
        let config = model.config(name)?;
        let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str());
        let class = class.ok_or_else(|| Error::Layout {
            path: path.join("config.json"),
            what: "it does not say the component's class in `_class_name`".to_string(),
        })?;
        let component = Component { library: "diffusers".to_string(), class: class.to_string() };
        model.class = component.class.clone();
        model.components.insert(name.to_string(), Some(component));
        Ok((model, name.to_string()))
    }

    /// A model in memory: the bytes of files by their path in the model's directory, such as
    /// `unet/config.json`. Messages call the directory `label`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_files(label: &str, files: impl IntoIterator<Item = (String, Bytes)>) -> Result<Self, Error> {
        Self::from_tree(Files::Memory { label: PathBuf::from(label), files: files.into_iter().collect() })
    }

    fn from_tree(files: Files) -> Result<Self, Error> {
        let layout = |what: String| Error::Layout { path: files.path(INDEX), what };
        let Value::Object(index) = read_json(&files, INDEX)? else {
            return Err(layout("it is not a JSON object".to_string()));
        };
        let (mut class, mut components, mut options) = (None, BTreeMap::new(), Map::new());
        for (key, value) in index {
            if key == "_class_name" {
                class = class_name(&value).map(str::to_string);
            } else if key.starts_with('_') {
                options.insert(key, value);
            } else if let Some(component) = component(&value) {
                if !is_plain(&key) {
                    return Err(layout(format!("component `{}` is not a plain folder name", shown(&key))));
                }
                components.insert(key, component);
            } else {
                options.insert(key, value);
            }
        }
        let class = class.ok_or_else(|| layout("it has no `_class_name`".to_string()))?;
        Ok(Diffusers { files, class, components, options })
    }

    /// The directory that holds `model_index.json`, or the label of a model in memory.
    pub fn path(&self) -> &Path {
        self.files.root()
    }

    /// The pipeline's class, `_class_name`.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The components by name. `None` is a component of the pipeline that the model leaves empty.
    pub fn components(&self) -> &BTreeMap<String, Option<Component>> {
        &self.components
    }

    /// The other values of `model_index.json`, such as `force_zeros_for_empty_prompt`.
    pub fn options(&self) -> &Map<String, Value> {
        &self.options
    }

    /// A required component.
    ///
    /// # Errors
    /// [`Error::Layout`] if it is absent, with the names of the others.
    pub fn component(&self, name: &str) -> Result<&Component, Error> {
        self.components.get(name).and_then(Option::as_ref).ok_or_else(|| {
            let present: Vec<String> = self
                .components
                .iter()
                .filter(|(_, value)| value.is_some())
                .map(|(name, _)| shown(name))
                .collect();
            let what = format!("the model has no component `{name}`; it has {}", listed(&present));
            Error::Layout { path: self.files.path(INDEX), what }
        })
    }

    /// A component's `config.json`.
    ///
    /// # Errors
    /// Those of [`json`](Self::json).
    pub fn config(&self, component: &str) -> Result<Value, Error> {
        self.json(component, "config.json")
    }

    /// A JSON file of a component, such as `scheduler_config.json`. Python's bare `NaN`, `Infinity` and
    /// `-Infinity` are read as strings.
    ///
    /// # Errors
    /// Those of [`text`](Self::text), and [`Error::Text`] if it is not JSON.
    pub fn json(&self, component: &str, file: &str) -> Result<Value, Error> {
        parse_json(&self.text(component, file)?, || self.file_path(component, file))
    }

    /// A text file of a component, such as `merges.txt`.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is absent, [`Error::Text`] if it is not UTF-8, [`Error::TooLarge`],
    /// [`Error::Read`].
    pub fn text(&self, component: &str, file: &str) -> Result<String, Error> {
        self.optional_text(component, file)?.ok_or_else(|| {
            let found = self.files.list(component);
            let hint = if found.is_empty() {
                format!("the model lacks the folder `{component}`: download the whole model")
            } else {
                format!("the folder has {}: download the whole model", listed(&found))
            };
            Error::NotFound { path: self.file_path(component, file), hint }
        })
    }

    /// An optional text file of a component; `None` if it is absent.
    ///
    /// # Errors
    /// Those of [`text`](Self::text) for a file that is there.
    pub fn optional_text(&self, component: &str, file: &str) -> Result<Option<String>, Error> {
        let name = format!("{component}/{file}");
        match self.files.has(&name)? {
            true => self.files.text(&name).map(Some),
            false => Ok(None),
        }
    }

    /// A component's weights.
    ///
    /// With a `variant`, its weights are taken. Without one, the first that exist of: the weights without a
    /// variant, those of `fp16`, and the only ones of any other variant. Weights are one file, or an index
    /// and its shards, under the names of diffusers (`diffusion_pytorch_model`) or of transformers (`model`).
    /// Those in safetensors are preferred to those of PyTorch (`.bin`), unless only these have the variant.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there are no weights, [`Error::Layout`] if several could be
    /// meant, and those of [`Checkpoint::open`].
    pub fn weights(&self, component: &str, variant: Option<&str>) -> Result<Checkpoint, Error> {
        let present = self.files.names_in(component)?;
        let prefers_model = self
            .components
            .get(component)
            .and_then(Option::as_ref)
            .is_some_and(|c| c.library == "transformers");
        let chosen =
            choose(&present, variant, prefers_model).map_err(|Ambiguous(candidates)| Error::Layout {
                path: self.files.path(component),
                what: format!("the weights are one of {}: say which variant", listed(&candidates)),
            })?;
        match chosen {
            Some(name) if !self.files.contains(&format!("{component}/{name}")) => {
                let hint =
                    "the link points nowhere, an unfinished download: download the model again".to_string();
                Err(Error::NotFound { path: self.file_path(component, &name), hint })
            }
            Some(name) => Checkpoint::open_in(&self.files, component, &name),
            None => {
                let stem = FORMS[0].stems[usize::from(prefers_model)];
                let path = self.file_path(component, &format!("{stem}.safetensors"));
                Err(Error::NotFound { path, hint: hint_for_weights(component, &present) })
            }
        }
    }

    /// Refuses a variant that no component has weights of. A component without it takes its other weights, as
    /// in diffusers.
    ///
    /// # Errors
    /// [`Error::Layout`] with the variants that there are.
    pub fn require_variant(&self, variant: &str) -> Result<(), Error> {
        let present = self.components.iter().filter(|(_, component)| component.is_some());
        let names = present.flat_map(|(name, _)| self.files.list(name));
        let found = names.flat_map(|name| {
            FORMS.map(|form| form.stems.map(|stem| variant_of(&name, stem, form.extension))).concat()
        });
        let found: BTreeSet<String> = found.flatten().collect();
        if found.contains(variant) {
            return Ok(());
        }
        let mut known: Vec<String> = found.iter().filter(|name| !name.is_empty()).cloned().collect();
        let without = found.contains("").then(|| "weights without a variant".to_string());
        let known = match known.len() {
            0 => without.unwrap_or_else(|| "no weights".to_string()),
            _ => {
                known.sort();
                let named = format!("the variants {}", listed(&known));
                without.map_or(named.clone(), |without| format!("{named}, and {without}"))
            }
        };
        let what = format!("no component has weights of the variant `{}`: there are {known}", shown(variant));
        Err(Error::Layout { path: self.files.root().to_path_buf(), what })
    }

    fn file_path(&self, component: &str, file: &str) -> PathBuf {
        self.files.path(component).join(file)
    }
}

/// The weights that [`Diffusers::weights`] takes from a component's folder with these files: one file, or an
/// index of shards. `library` is the component's. `None` if there are none.
///
/// # Errors
/// The files that could be meant, if there are several.
pub fn weight_file(
    present: &[String],
    variant: Option<&str>,
    library: &str,
) -> Result<Option<String>, Vec<String>> {
    choose(present, variant, library == "transformers").map_err(|Ambiguous(candidates)| candidates)
}

/// The variant in the name of a weight file or index: empty for none, `None` for a name of another kind.
pub fn weight_variant(name: &str) -> Option<String> {
    let stems = FORMS.iter().flat_map(|form| form.stems.map(|stem| (stem, form.extension)));
    stems.into_iter().find_map(|(stem, extension)| variant_of(name, stem, extension))
}

/// Several files that could be meant.
#[derive(Debug, PartialEq, Eq)]
struct Ambiguous(Vec<String>);

/// The weight file or index among the names in a component's folder.
fn choose(
    present: &[String],
    variant: Option<&str>,
    prefers_model: bool,
) -> Result<Option<String>, Ambiguous> {
    let named = |form: &Form, variant: &str| {
        of_form(present, form, prefers_model).into_iter().find_map(|of_stem| find(&of_stem, variant))
    };
    if let Some(name) = variant.and_then(|variant| FORMS.iter().find_map(|form| named(form, variant))) {
        return Ok(Some(name));
    }
    for of_stem in FORMS.iter().flat_map(|form| of_form(present, form, prefers_model)) {
        if let Some(name) = ["", FALLBACK_VARIANT].into_iter().find_map(|variant| find(&of_stem, variant)) {
            return Ok(Some(name));
        }
        match &of_stem[..] {
            [] => {}
            [(name, _)] => return Ok(Some(name.to_string())),
            _ => return Err(Ambiguous(of_stem.iter().map(|(name, _)| shown(name)).collect())),
        }
    }
    Ok(None)
}

/// Names of weight files and their variants.
type Named<'a> = Vec<(&'a str, String)>;

/// The names of a form, by stem, the preferred one first.
fn of_form<'a>(present: &'a [String], form: &Form, prefers_model: bool) -> [Named<'a>; 2] {
    let mut stems = form.stems;
    if prefers_model {
        stems.reverse();
    }
    stems.map(|stem| {
        let variant = |name: &'a String| Some((name.as_str(), variant_of(name, stem, form.extension)?));
        present.iter().filter_map(variant).collect()
    })
}

/// The file or the index of a variant. One file is preferred to an index of the same weights.
fn find(named: &Named<'_>, variant: &str) -> Option<String> {
    let matching: Vec<&str> =
        named.iter().filter(|(_, found)| found == variant).map(|(name, _)| *name).collect();
    let single = matching.iter().find(|name| !name.ends_with(".json"));
    single.or(matching.first()).map(|name| name.to_string())
}

/// The variant in the name of a weight file or index of `stem`: empty for none, `None` for a name of another
/// kind.
///
/// Both forms of an index's name are in use: `stem.safetensors.index.fp16.json` and
/// `stem.fp16.safetensors.index.json`.
fn variant_of(name: &str, stem: &str, extension: &str) -> Option<String> {
    let rest = name.strip_prefix(stem)?;
    let parts: Vec<&str> = rest.strip_prefix('.')?.split('.').collect();
    let variant = match parts[..] {
        [form] | [form, "index", "json"] if form == extension => "",
        [variant, form] | [variant, form, "index", "json"] | [form, "index", variant, "json"]
            if form == extension =>
        {
            variant
        }
        _ => return None,
    };
    Some(variant.to_string())
}

fn hint_for_weights(component: &str, present: &[String]) -> String {
    if present.is_empty() {
        return format!("the model lacks the folder `{component}`: download the whole model");
    }
    format!("the folder has no weights, only {}: download the whole model", listed(present))
}

/// The most bytes of a cache's `refs/main`, which holds a commit's hash.
const REVISION_LIMIT: u64 = 4096;

/// The directory of the model: `path`, or the snapshot inside if `path` is of the Hugging Face cache.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    let not_found =
        |path: &Path, hint: &str| Error::NotFound { path: path.to_path_buf(), hint: hint.to_string() };
    if path.is_file() {
        let what = "it is a file, and no directory with model_index.json".to_string();
        return Err(Error::Layout { path: path.to_path_buf(), what });
    }
    if !path.is_dir() {
        return Err(not_found(path, "there is no such directory"));
    }
    let snapshots = path.join("snapshots");
    if path.join(INDEX).is_file() || !snapshots.is_dir() {
        return Ok(path.to_path_buf());
    }
    let revision = read_text(&path.join("refs/main"), REVISION_LIMIT).unwrap_or_default();
    let revision = revision.trim();
    if is_plain(revision) && snapshots.join(revision).is_dir() {
        return Ok(snapshots.join(revision));
    }
    let mut found = Files::Directory(snapshots.clone()).list("");
    match (found.pop(), found.is_empty()) {
        (Some(only), true) => Ok(snapshots.join(only)),
        (None, _) => Err(not_found(&snapshots, "the cache has no snapshot: download the model again")),
        (Some(_), false) => Err(Error::Layout {
            path: snapshots,
            what: "the cache has several snapshots and no refs/main: give the directory of one".to_string(),
        }),
    }
}

/// Advice for a directory without `model_index.json`, from the files that it has.
fn hint_for(files: &Files) -> String {
    let present = files.list("");
    let parent_has_index = files
        .root()
        .canonicalize()
        .is_ok_and(|path| path.parent().is_some_and(|parent| parent.join(INDEX).is_file()));
    if parent_has_index {
        return "this is one component of a model: give the directory above it".to_string();
    }
    let is_single = |name: &&String| SINGLE_FILES.iter().any(|end| name.ends_with(end));
    let single: Vec<String> = present.iter().filter(is_single).cloned().collect();
    match &single[..] {
        [] => {}
        [only] => return format!("a file is a model by itself: give `{}`, with its directory", shown(only)),
        _ => return format!("each file is a model by itself: give one of {}", listed(&single)),
    }
    match present.is_empty() {
        true => "the directory is empty: give one that diffusers saved".to_string(),
        false => format!("the directory has {}: give one that diffusers saved", listed(&present)),
    }
}

/// The class of a pipeline. Of a community pipeline, diffusers writes its module and its class.
fn class_name(value: &Value) -> Option<&str> {
    match value.as_array().map(Vec::as_slice) {
        Some([_, class]) => class.as_str(),
        _ => value.as_str(),
    }
}

/// A component's library and class. `Some(None)` is an empty component, `None` a value of another kind.
fn component(value: &Value) -> Option<Option<Component>> {
    match value.as_array().map(Vec::as_slice) {
        Some([Value::String(library), Value::String(class)]) => {
            Some(Some(Component { library: library.clone(), class: class.clone() }))
        }
        Some([Value::Null, Value::Null]) => Some(None),
        _ => None,
    }
}

fn read_json(files: &Files, name: &str) -> Result<Value, Error> {
    parse_json(&files.text(name)?, || files.path(name))
}

fn parse_json(text: &str, path: impl FnOnce() -> PathBuf) -> Result<Value, Error> {
    json::parse(text).map_err(|error| Error::Text {
        path: path(),
        what: format!("it is not JSON: {}", shown(&error.to_string())),
    })
}

/// Names for a message: the first few, in backticks.
fn listed(names: &[String]) -> String {
    const MOST: usize = 8;
    if names.is_empty() {
        return "none".to_string();
    }
    let mut quoted: Vec<String> = names.iter().take(MOST).map(|name| format!("`{}`", shown(name))).collect();
    if names.len() > MOST {
        quoted.push(format!("{} more", names.len() - MOST));
    }
    quoted.join(", ")
}

#[cfg(test)]
mod tests;
