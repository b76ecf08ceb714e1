//! The files of a repository that a model needs.

use std::collections::{BTreeMap, BTreeSet};

use mixbit_formats::diffusers::{weight_file, weight_variant};
use serde_json::Value;

use super::Wish;

const INDEX: &str = "model_index.json";

/// The ends of names of configurations and vocabularies.
const TEXTS: [&str; 3] = [".json", ".txt", ".model"];

/// The ends of names of weights in one file.
const SINGLE_FILES: [&str; 4] = [".safetensors", ".ckpt", ".gguf", ".pth"];

/// The most names of a message.
const MOST_NAMED: usize = 12;

/// What to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Files of a folder that is the model; the empty text is the repository.
    Folder { folder: String, files: Vec<String> },
    /// One file that is the model, and files beside it that are read with it.
    File { file: String, beside: Vec<String> },
    /// An archive that has the model.
    Archive(String),
}

/// The reader of a small file of the repository.
pub(super) type Read<'r, E> = dyn FnMut(&str) -> Result<String, E> + 'r;

/// Why there is no choice.
pub(super) enum NoChoice<E> {
    /// What there is, and how to choose.
    Unclear(String),
    /// There is nothing of the path that was asked for.
    Absent,
    /// A file could not be read.
    Read(E),
}

impl<E> From<E> for NoChoice<E> {
    fn from(error: E) -> Self {
        NoChoice::Read(error)
    }
}

/// Chooses among a repository's paths. `asked` is a file or folder of it, or empty; `name` is how the user
/// names the repository.
pub(super) fn choose<E>(
    name: &str,
    paths: &BTreeSet<String>,
    asked: &str,
    wish: &Wish,
    read: &mut Read<E>,
) -> Result<Choice, NoChoice<E>> {
    if paths.contains(asked) {
        return Ok(match asked.ends_with(".zip") {
            true => Choice::Archive(asked.to_string()),
            false => file(paths, asked),
        });
    }
    let prefix = if asked.is_empty() { String::new() } else { format!("{asked}/") };
    let below: Vec<&str> = paths.iter().filter_map(|path| path.strip_prefix(&prefix)).collect();
    if below.is_empty() {
        return Err(if asked.is_empty() { unclear("it has no files") } else { NoChoice::Absent });
    }
    let folder = Folder { prefix: &prefix, below: &below };
    let whole = |files: Vec<String>| Choice::Folder { folder: asked.to_string(), files };
    if below.contains(&INDEX) {
        return folder.diffusers(wish, read).map(whole);
    }
    if is_package(asked) {
        return Ok(whole(below.iter().map(|path| format!("{prefix}{path}")).collect()));
    }
    let bundles = folder.bundles();
    if let Some(packages) = bundles.get("") {
        return Ok(whole(folder.bundle(packages, wish)));
    }
    if below.contains(&"config.json")
        && let Some(files) = folder.component(wish, read)?
    {
        return Ok(whole(files));
    }
    folder.only(name, asked, &bundles, wish)
}

/// A file, with the description that people keep beside checkpoints.
fn file(paths: &BTreeSet<String>, path: &str) -> Choice {
    let beside = path.strip_suffix(".ckpt").map(|stem| format!("{stem}.yaml"));
    let beside = beside.into_iter().filter(|beside| paths.contains(beside)).collect();
    Choice::File { file: path.to_string(), beside }
}

fn unclear<E>(what: impl Into<String>) -> NoChoice<E> {
    NoChoice::Unclear(what.into())
}

/// A folder of a repository.
struct Folder<'a> {
    /// The path before each name, with its slash.
    prefix: &'a str,
    below: &'a [&'a str],
}

impl Folder<'_> {
    fn full(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }

    /// The names directly in a folder below.
    fn names_in(&self, folder: &str) -> Vec<String> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let names = self.below.iter().filter_map(|path| path.strip_prefix(&prefix));
        names.filter(|name| !name.contains('/')).map(str::to_string).collect()
    }

    /// The files of a model in the diffusers layout.
    fn diffusers<E>(&self, wish: &Wish, read: &mut Read<E>) -> Result<Vec<String>, NoChoice<E>> {
        let index: Value = serde_json::from_str(&read(&self.full(INDEX))?).unwrap_or_default();
        let library = |value: &Value| match value.as_array().map(Vec::as_slice) {
            Some([Value::String(library), Value::String(_)]) => Some(library.clone()),
            _ => None,
        };
        let entries = index.as_object().into_iter().flatten();
        let components: Vec<(String, String)> = entries
            .filter(|(key, _)| !key.starts_with('_'))
            .filter_map(|(key, value)| Some((key.clone(), library(value)?)))
            .collect();
        self.check_variant(components.iter().map(|(name, _)| name.as_str()), wish)?;
        let mut files = vec![self.full(INDEX)];
        for (component, library) in &components {
            self.add_component(component, library, wish.takes(component), wish, read, &mut files)?;
        }
        Ok(files)
    }

    /// The files of one component that is a repository by itself; `None` if it has no weights.
    fn component<E>(&self, wish: &Wish, read: &mut Read<E>) -> Result<Option<Vec<String>>, NoChoice<E>> {
        let mut files = Vec::new();
        self.check_variant([""].into_iter(), wish)?;
        self.add_component("", "diffusers", true, wish, read, &mut files)?;
        Ok(files.iter().any(|file| !TEXTS.iter().any(|end| file.ends_with(end))).then_some(files))
    }

    /// Refuses a variant that nothing has, before anything large is downloaded.
    fn check_variant<'c, E>(
        &self,
        components: impl Iterator<Item = &'c str>,
        wish: &Wish,
    ) -> Result<(), NoChoice<E>> {
        let Some(variant) = &wish.variant else { return Ok(()) };
        let names = components.flat_map(|component| self.names_in(component));
        let found: BTreeSet<String> = names.filter_map(|name| weight_variant(&name)).collect();
        if found.contains(variant) {
            return Ok(());
        }
        let named: Vec<String> = found.into_iter().filter(|variant| !variant.is_empty()).collect();
        Err(unclear(match named.is_empty() {
            true => format!("it has no variant `{variant}`, only weights without one: leave out --variant"),
            false => format!("it has no variant `{variant}`, but {}", named.join(", ")),
        }))
    }

    /// Adds the texts of a component and one set of its weights.
    fn add_component<E>(
        &self,
        component: &str,
        library: &str,
        with_weights: bool,
        wish: &Wish,
        read: &mut Read<E>,
        files: &mut Vec<String>,
    ) -> Result<(), NoChoice<E>> {
        let names = self.names_in(component);
        let place = |name: &str| match component {
            "" => self.full(name),
            component => self.full(&format!("{component}/{name}")),
        };
        let is_text = |name: &&String| TEXTS.iter().any(|end| name.ends_with(end)) && !is_index(name);
        files.extend(names.iter().filter(is_text).map(|name| place(name)));
        if !with_weights {
            return Ok(());
        }
        let chosen = weight_file(&names, wish.variant.as_deref(), library).map_err(|candidates| {
            let candidates = candidates.join(", ");
            unclear(format!("the weights of `{component}` are one of {candidates}: say --variant"))
        })?;
        let Some(chosen) = chosen else { return Ok(()) };
        files.push(place(&chosen));
        if is_index(&chosen) {
            let index: Value = serde_json::from_str(&read(&place(&chosen))?).unwrap_or_default();
            let shards = index["weight_map"].as_object().into_iter().flatten();
            let shards: BTreeSet<&str> = shards.filter_map(|(_, shard)| shard.as_str()).collect();
            let missing = |shard: &&&str| !names.iter().any(|name| name == **shard);
            if let Some(shard) = shards.iter().find(missing) {
                let shard = shard.escape_debug();
                return Err(unclear(format!("`{component}/{chosen}` names `{shard}`, which is not there")));
            }
            files.extend(shards.into_iter().map(place));
        }
        Ok(())
    }

    /// The names of the packages of each folder that has some.
    fn bundles(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut bundles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for path in self.below {
            let parts: Vec<&str> = path.split('/').collect();
            if let Some(at) = parts.iter().position(|part| is_package(part)) {
                bundles.entry(parts[..at].join("/")).or_default().insert(parts[at].to_string());
            }
        }
        bundles
    }

    /// The files of a directory of packages: the UNet whole or in chunks, not both.
    fn bundle(&self, packages: &BTreeSet<String>, wish: &Wish) -> Vec<String> {
        let stem = |name: &str| name.rsplit_once('.').map_or(name, |(stem, _)| stem).to_ascii_lowercase();
        let is_chunk = |name: &str| stem(name).ends_with("chunk1") || stem(name).ends_with("chunk2");
        let whole = |name: &str| {
            let stem = stem(name);
            let stem =
                stem.trim_end_matches(['1', '2']).trim_end_matches("chunk").trim_end_matches(['_', '-']);
            packages.iter().any(|other| {
                let other = other.rsplit_once('.').map_or(other.as_str(), |(stem, _)| stem);
                other.eq_ignore_ascii_case(stem)
            })
        };
        let is_safety_checker = |name: &str| stem(name).replace('_', "").ends_with("safetychecker");
        let is_wanted = |path: &&&str| {
            let (first, rest) = path.split_once('/').unwrap_or((path, ""));
            match is_package(first) {
                true => {
                    !(is_chunk(first) && whole(first)) && (wish.safety_checker || !is_safety_checker(first))
                }
                false => rest.is_empty() && TEXTS.iter().any(|end| path.ends_with(end)),
            }
        };
        self.below.iter().filter(is_wanted).map(|path| self.full(path)).collect()
    }

    /// The only model of a folder that is none itself.
    fn only<E>(
        &self,
        name: &str,
        asked: &str,
        bundles: &BTreeMap<String, BTreeSet<String>>,
        wish: &Wish,
    ) -> Result<Choice, NoChoice<E>> {
        let ends = |ends: &[&str]| -> Vec<&str> {
            let is_one = |path: &&&str| ends.iter().any(|end| path.ends_with(end)) && !path.contains('/');
            self.below.iter().filter(is_one).copied().collect()
        };
        let models = self.below.iter().filter_map(|path| path.strip_suffix("/model_index.json"));
        let folders: Vec<&str> = models.chain(bundles.keys().map(String::as_str)).collect();
        let (archives, singles) = (ends(&[".zip"]), ends(&SINGLE_FILES));
        match (&folders[..], &archives[..], &singles[..]) {
            ([folder], _, _) if bundles.contains_key(*folder) => {
                let (prefix, inner) = (self.full(&format!("{folder}/")), format!("{folder}/"));
                let below: Vec<&str> =
                    self.below.iter().filter_map(|path| path.strip_prefix(&inner)).collect();
                let files = Folder { prefix: &prefix, below: &below }.bundle(&bundles[*folder], wish);
                Ok(Choice::Folder { folder: self.full(folder), files })
            }
            ([], [archive], []) => Ok(Choice::Archive(self.full(archive))),
            ([], [], [single]) => {
                let paths = self.below.iter().map(|path| self.full(path)).collect();
                Ok(file(&paths, &self.full(single)))
            }
            ([], [], []) => {
                let shown: Vec<&str> = self.below.iter().take(MOST_NAMED).copied().collect();
                Err(unclear(format!("it has no model that mixbit reads, only {}", shown.join(", "))))
            }
            _ => {
                let all: Vec<&str> = folders.into_iter().chain(archives).chain(singles).collect();
                let base = if asked.is_empty() { name.to_string() } else { format!("{name}/{asked}") };
                let mut named: Vec<String> =
                    all.iter().take(MOST_NAMED).map(|path| format!("{base}/{path}")).collect();
                if all.len() > MOST_NAMED {
                    named.push(format!("{} more", all.len() - MOST_NAMED));
                }
                Err(unclear(format!("it has several models: give one of {}", named.join(", "))))
            }
        }
    }
}

impl Choice {
    /// The paths of the files.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        let (files, one) = match self {
            Choice::Folder { files, .. } => (&files[..], None),
            Choice::File { file, beside } => (&beside[..], Some(file)),
            Choice::Archive(file) => (&[][..], Some(file)),
        };
        one.into_iter().chain(files)
    }
}

/// The parts of a chosen model in the diffusers layout of which there is nothing, or no weights: an
/// interrupted download has such.
pub(super) fn missing<E>(choice: &Choice, read: &mut Read<E>) -> Result<Vec<String>, E> {
    const NOT_NEEDED: [&str; 3] = ["safety_checker", "feature_extractor", "image_encoder"];
    let Choice::Folder { folder, files } = choice else { return Ok(Vec::new()) };
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let index = format!("{prefix}{INDEX}");
    if !files.contains(&index) {
        return Ok(Vec::new());
    }
    let index: Value = serde_json::from_str(&read(&index)?).unwrap_or_default();
    let is_component = |value: &Value| value.as_array().is_some_and(|pair| pair.iter().all(Value::is_string));
    let components = index.as_object().into_iter().flatten().filter(|(_, value)| is_component(value));
    let names = components.map(|(name, _)| name).filter(|name| !name.starts_with('_'));
    let mut lacking = Vec::new();
    for component in names.filter(|name| !NOT_NEEDED.contains(&name.as_str())) {
        let folder = format!("{prefix}{component}/");
        let own: Vec<&str> = files.iter().filter_map(|file| file.strip_prefix(&folder)).collect();
        let is_text = |name: &&str| TEXTS.iter().any(|end| name.ends_with(end));
        match own.contains(&"config.json") {
            true if own.iter().all(is_text) => lacking.push(format!("weights in `{component}`")),
            false if own.is_empty() => lacking.push(format!("`{component}`")),
            _ => {}
        }
    }
    Ok(lacking)
}

fn is_package(name: &str) -> bool {
    name.ends_with(".mlpackage") || name.ends_with(".mlmodelc")
}

/// True for an index of shards.
fn is_index(name: &str) -> bool {
    name.ends_with(".index.json") || name.contains(".index.") && name.ends_with(".json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(paths: &[&str], texts: &[(&str, &str)], asked: &str, wish: &Wish) -> Result<Choice, String> {
        let paths = paths.iter().map(|path| path.to_string()).collect();
        let mut read = |path: &str| -> Result<String, String> {
            let text = texts.iter().find(|(other, _)| *other == path);
            text.map(|(_, text)| text.to_string()).ok_or_else(|| format!("{path} was read"))
        };
        choose("o/n", &paths, asked, wish, &mut read).map_err(|error| match error {
            NoChoice::Unclear(what) => what,
            NoChoice::Absent => "absent".to_string(),
            NoChoice::Read(error) => error,
        })
    }

    fn folder(folder: &str, files: &[&str]) -> Result<Choice, String> {
        let files = files.iter().map(|file| file.to_string()).collect();
        Ok(Choice::Folder { folder: folder.to_string(), files })
    }

    const INDEX_TEXT: &str = r#"{"_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"], "text_encoder": ["transformers", "CLIPTextModel"],
        "safety_checker": ["sd", "SafetyChecker"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "image_encoder": [null, null], "requires_safety_checker": true}"#;

    #[test]
    fn one_set_of_weights_is_taken() {
        let paths = [
            "README.md",
            "model.safetensors",
            "model_index.json",
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "text_encoder/config.json",
            "text_encoder/flax_model.msgpack",
            "text_encoder/model.fp16.safetensors",
            "text_encoder/model.onnx",
            "text_encoder/model.safetensors",
            "text_encoder/openvino_model.bin",
            "text_encoder/pytorch_model.bin",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "unet/diffusion_pytorch_model.fp16.safetensors",
            "unet/diffusion_pytorch_model.safetensors.index.json",
        ];
        let shards = r#"{"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors",
            "b": "diffusion_pytorch_model-00002-of-00002.safetensors"}}"#;
        let texts = [
            ("model_index.json", INDEX_TEXT),
            ("unet/diffusion_pytorch_model.safetensors.index.json", shards),
        ];
        let plain = [
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors.index.json",
            "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
            "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
            "text_encoder/config.json",
            "text_encoder/model.safetensors",
            "safety_checker/config.json",
            "tokenizer/merges.txt",
            "tokenizer/vocab.json",
        ];
        assert_eq!(chosen(&paths, &texts, "", &Wish::default()), folder("", &plain));
        let half = Wish { variant: Some("fp16".into()), ..Wish::default() };
        let Ok(Choice::Folder { files, .. }) = chosen(&paths, &texts, "", &half) else { panic!("no folder") };
        assert!(files.contains(&"unet/diffusion_pytorch_model.fp16.safetensors".to_string()), "{files:?}");
        assert!(!files.iter().any(|file| file.contains("00001")), "{files:?}");
        let with = Wish { safety_checker: true, ..Wish::default() };
        let Ok(Choice::Folder { files, .. }) = chosen(&paths, &texts, "", &with) else { panic!("no folder") };
        assert!(files.contains(&"safety_checker/model.safetensors".to_string()), "{files:?}");
        let other = Wish { variant: Some("ema".into()), ..Wish::default() };
        assert_eq!(chosen(&paths, &texts, "", &other), Err("it has no variant `ema`, but fp16".to_string()));
        let single = Choice::File { file: "model.safetensors".to_string(), beside: Vec::new() };
        assert_eq!(chosen(&paths, &[], "model.safetensors", &half), Ok(single));
        assert_eq!(chosen(&paths, &[], "vae", &half), Err("absent".to_string()));
    }

    #[test]
    fn pickles_are_taken_where_there_is_nothing_else() {
        let paths = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"];
        let found = chosen(&paths, &[("model_index.json", INDEX_TEXT)], "", &Wish::default());
        assert_eq!(found, folder("", &paths));
    }

    #[test]
    fn packages_are_chosen_by_their_folder() {
        let paths = [
            "README.md",
            "original/compiled/Unet.mlmodelc/model.mil",
            "original/compiled/vocab.json",
            "split_einsum/compiled/SafetyChecker.mlmodelc/model.mil",
            "split_einsum/compiled/TextEncoder.mlmodelc/model.mil",
            "split_einsum/compiled/Unet.mlmodelc/model.mil",
            "split_einsum/compiled/UnetChunk1.mlmodelc/model.mil",
            "split_einsum/compiled/merges.txt",
        ];
        let error = chosen(&paths, &[], "", &Wish::default()).unwrap_err();
        let expected = "it has several models: give one of o/n/original/compiled, o/n/split_einsum/compiled";
        assert_eq!(error, expected);
        let files = [paths[4], paths[5], paths[7]];
        let asked = "split_einsum/compiled";
        assert_eq!(chosen(&paths, &[], asked, &Wish::default()), folder(asked, &files));
        assert_eq!(chosen(&paths, &[], "split_einsum", &Wish::default()), folder(asked, &files));
        let package = "original/compiled/Unet.mlmodelc";
        assert_eq!(chosen(&paths, &[], package, &Wish::default()), folder(package, &[paths[1]]));
    }

    #[test]
    fn archives_and_single_files_are_found() {
        let archive = Choice::Archive("coreml-x_split_einsum_compiled.zip".to_string());
        let only = ["README.md", "coreml-x_split_einsum_compiled.zip"];
        assert_eq!(chosen(&only, &[], "", &Wish::default()), Ok(archive.clone()));
        let two = [only[1], "x.zip"];
        assert_eq!(chosen(&two, &[], only[1], &Wish::default()), Ok(archive));
        assert!(chosen(&two, &[], "", &Wish::default()).unwrap_err().contains("o/n/x.zip"));
        let file = Choice::File { file: "v1.ckpt".to_string(), beside: vec!["v1.yaml".to_string()] };
        assert_eq!(chosen(&["v1.ckpt", "v1.yaml"], &[], "", &Wish::default()), Ok(file));
        let none = chosen(&["weights.onnx"], &[], "", &Wish::default()).unwrap_err();
        assert_eq!(none, "it has no model that mixbit reads, only weights.onnx");
        let component = ["config.json", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"];
        assert_eq!(chosen(&component, &[], "", &Wish::default()), folder("", &component[..2]));
    }
}
