//! `mixbit inspect`.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use diffusion::arch::AttentionImplementation;
use formats::{SafeTensors, coreml};
use mil::{Arg, Constant, Def, Function, Program, ValueId, Weights};
use serde_json::{Value, json};

use super::print_line;
use crate::model::DiffusersModel;
use crate::package::{DEPLOYMENT_TARGETS, Options, Source, plan};

/// Metadata longer than this is cut, unless it goes into JSON.
const LONGEST_METADATA: usize = 60;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a Core ML package (.mlpackage or .mlmodelc), a directory of them, or a
    /// safetensors file
    path: PathBuf,
    /// Print the programs as MIL text
    #[arg(long, conflicts_with = "json")]
    mil: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let path = &arguments.path;
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        let file = SafeTensors::open(path)?;
        return show_tensors(&file, arguments.json);
    }
    let parts = parts(path)?;
    if arguments.mil {
        for part in &parts {
            print_line(Program::new(part.function.clone()))?;
        }
        return Ok(());
    }
    if arguments.json {
        let parts: Vec<Value> = parts.iter().map(Part::to_json).collect();
        return print_line(format_args!("{:#}", json!({"parts": parts})));
    }
    for part in &parts {
        print_line(part.to_text())?;
    }
    Ok(())
}

/// One network.
struct Part {
    name: String,
    function: Function,
    metadata: BTreeMap<String, String>,
    /// The specification's version, of packages.
    specification: Option<u32>,
}

/// The networks at a path.
fn parts(path: &Path) -> anyhow::Result<Vec<Part>> {
    let is_package = |path: &Path| {
        path.extension()
            .is_some_and(|extension| ["mlpackage", "mlmodelc", "mlmodel"].iter().any(|e| extension == *e))
    };
    if is_package(path) {
        return Ok(vec![packaged(path)?]);
    }
    if path.is_dir() && !path.join("model_index.json").is_file() && !path.join("snapshots").is_dir() {
        let entries = fs::read_dir(path).with_context(|| format!("{} can't be listed", path.display()))?;
        let mut packages: Vec<PathBuf> = entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| is_package(path))
            .collect();
        packages.sort();
        if !packages.is_empty() {
            return packages.iter().map(|path| packaged(path)).collect();
        }
    }
    if path.is_file() {
        bail!("{} is neither a safetensors file nor a Core ML package", path.display());
    }
    checkpoint(path)
}

fn packaged(path: &Path) -> anyhow::Result<Part> {
    let model = coreml::read(path)?;
    let function = model.program.main().cloned();
    let metadata = model.metadata;
    let mut all = metadata.user_defined;
    for (key, value) in [
        ("description", metadata.short_description),
        ("version", metadata.version),
        ("author", metadata.author),
        ("license", metadata.license),
    ] {
        if !value.is_empty() {
            all.insert(key.to_string(), value);
        }
    }
    Ok(Part {
        name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        function: function.with_context(|| format!("{} has no function `main`", path.display()))?,
        metadata: all,
        specification: Some(model.specification_version),
    })
}

/// The networks of a checkpoint, as graphs of its own size.
fn checkpoint(path: &Path) -> anyhow::Result<Vec<Part>> {
    let model = DiffusersModel::open(path, None)?;
    let source = Source { model: &model, refiner: None, vae: None, controlnets: Vec::new() };
    let options = Options {
        parts: Vec::new(),
        model_version: model.name().to_string(),
        latent: None,
        batch_one: false,
        attention: AttentionImplementation::Original,
        chunk_unet: false,
        control_unet: false,
        target: &DEPLOYMENT_TARGETS[0],
    };
    let packages = plan(&source, &options)?;
    let part = |package: &crate::package::Package| {
        Ok(Part {
            name: package.compiled.clone(),
            function: package.function()?,
            metadata: BTreeMap::new(),
            specification: None,
        })
    };
    packages.iter().map(part).collect()
}

impl Part {
    fn signature(&self, ids: &[ValueId]) -> Vec<(String, String)> {
        let one = |&id: &ValueId| {
            let value = self.function.value(id);
            (value.name.clone(), value.ty.to_string())
        };
        ids.iter().map(one).collect()
    }

    fn histogram(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        self.function.ops().iter().for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
        counts
    }

    /// The number of weights (in a package, of all constants in its weight file), and the bytes that they take as they are
    /// stored.
    fn weights(&self) -> (usize, usize) {
        let function = &self.function;
        let (mut encoded, mut count) = (HashSet::new(), 0);
        for op in function.ops().iter().filter(|op| op.def.is_constexpr()) {
            encoded.extend(op.args.iter().flat_map(Arg::values).copied());
            count += op.outputs.iter().map(|&id| function.value(id).ty.count()).sum::<usize>();
        }
        // What one decoder makes for another is no weight of its own.
        let chained = function.ops().iter().flat_map(|op| &op.outputs).filter(|id| encoded.contains(id));
        count -= chained.map(|&id| function.value(id).ty.count()).sum::<usize>();
        let used: HashSet<ValueId> =
            function.ops().iter().flat_map(|op| op.args.iter().flat_map(Arg::values)).copied().collect();
        let mut bytes = 0;
        for id in used {
            let Def::Const(Constant::Weight(weight)) = &function.value(id).def else { continue };
            let mut stored = weight.ty().clone();
            stored.dtype = weight.stored_dtype();
            bytes += stored.byte_len().unwrap_or(0);
            if !encoded.contains(&id) {
                count += weight.ty().count();
            }
        }
        (count, bytes)
    }

    fn to_json(&self) -> Value {
        let features = |ids: &[ValueId]| -> Vec<Value> {
            let one = |(name, ty): (String, String)| json!({"name": name, "type": ty});
            self.signature(ids).into_iter().map(one).collect()
        };
        let (weights, bytes) = self.weights();
        json!({
            "name": self.name,
            "inputs": features(self.function.inputs()),
            "outputs": features(self.function.outputs()),
            "opset": self.function.opset.name(),
            "specification_version": self.specification,
            "operations": self.histogram(),
            "weights": weights,
            "weight_bytes": bytes,
            "bits_per_weight": bits(weights, bytes),
            "metadata": self.metadata,
        })
    }

    fn to_text(&self) -> String {
        let mut text = format!("{}\n", self.name);
        let mut line = |name: &str, value: String| text += &format!("  {name:<9} {value}\n");
        for (what, ids) in [("input", self.function.inputs()), ("output", self.function.outputs())] {
            for (name, ty) in self.signature(ids) {
                line(what, format!("{name}: {ty}"));
            }
        }
        let (weights, bytes) = self.weights();
        let megabytes = bytes as f64 / 1e6;
        line("weights", format!("{weights}, {megabytes:.1} MB, {:.2} bits each", bits(weights, bytes)));
        let version = self.specification.map(|version| format!(", specification {version}"));
        line("opset", format!("{}{}", self.function.opset, version.unwrap_or_default()));
        let mut counts: Vec<(&str, usize)> = self.histogram().into_iter().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        let ops: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        for (index, row) in ops.chunks(6).enumerate() {
            line(if index == 0 { "ops" } else { "" }, row.join(", "));
        }
        for (key, value) in &self.metadata {
            line("metadata", format!("{key} = {}", shortened(value)));
        }
        text
    }
}

fn bits(weights: usize, bytes: usize) -> f64 {
    if weights == 0 { 0.0 } else { 8.0 * bytes as f64 / weights as f64 }
}

/// A value on one line, and not too long for one.
fn shortened(value: &str) -> String {
    let line: String = value.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST_METADATA) {
        Some((end, _)) => format!("{}... ({} bytes)", &line[..end], value.len()),
        None => line,
    }
}

/// A weight file by itself: its tensors.
fn show_tensors(file: &SafeTensors, is_json: bool) -> anyhow::Result<()> {
    let tensors: Vec<_> = file.names().into_iter().filter_map(|name| Some((name, file.get(name)?))).collect();
    let count: usize = tensors.iter().map(|(_, weight)| weight.ty().count()).sum();
    let bytes: usize = tensors.iter().filter_map(|(_, weight)| weight.ty().byte_len()).sum();
    if is_json {
        let tensors: Vec<Value> = tensors
            .iter()
            .map(|(name, weight)| json!({"name": name, "type": weight.ty().to_string()}))
            .collect();
        return print_line(format_args!(
            "{:#}",
            json!({"tensors": tensors, "weights": count, "weight_bytes": bytes})
        ));
    }
    for (name, weight) in &tensors {
        print_line(format_args!("{name}: {}", weight.ty()))?;
    }
    print_line(format_args!(
        "{} tensors, {count} weights, {:.1} MB, {:.2} bits each",
        tensors.len(),
        bytes as f64 / 1e6,
        bits(count, bytes)
    ))
}
