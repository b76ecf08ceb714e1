//! `mixbit inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mixbit_mil::{Function, Program, ValueId};
use mixbit_packages::inspect::{InspectedFeature, InspectedNetwork, StoredTensor, bits_per_element, open};
use mixbit_packages::package::ConversionOptions;
use serde_json::{Value, json};

use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::printable::visible_line;
use super::table::{Side, Table, byte_size, counted, shortened};
use super::{print_line, recipe, summary};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a Core ML package (.mlpackage or .mlmodelc), a directory
    /// of them, a model in one file, a file of tensors, or a recipe file
    path: PathBuf,
    /// List every weight with its encoding and bits, in the order of the graph
    #[arg(long, conflicts_with = "mil")]
    layers: bool,
    /// Print the programs as MIL text
    #[arg(long, conflicts_with = "json")]
    mil: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    files: ModelFileOptions,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        vec![Asked::plain(&mut self.path)]
    }

    fn is_quiet(&self) -> bool {
        false
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.path.extension().is_some_and(|extension| extension == "json") {
        return recipe::show(&arguments.path, arguments.json);
    }
    let networks = open(&arguments.path, &ConversionOptions::default(), &arguments.files.open())?;
    if let [file] = &networks[..]
        && file.function.is_none()
    {
        return show_file(file, arguments);
    }
    if arguments.mil {
        for function in networks.iter().filter_map(|network| network.function.as_ref()) {
            print_line(Program::new(function.clone()))?;
        }
        return Ok(());
    }
    if arguments.json {
        let parts: Vec<Value> = networks.iter().map(to_json).collect();
        let kind = networks.first().and_then(|network| network.kind.as_deref());
        return print_line(format_args!("{:#}", json!({"kind": kind, "parts": parts})));
    }
    print_line(summary::of(&networks))?;
    for network in &networks {
        print_line(to_text(network))?;
        if arguments.layers {
            print_layers(&weights(network))?;
        }
    }
    Ok(())
}

/// The weights of a network; in a package, all constants in its weight file.
fn weights(network: &InspectedNetwork) -> Vec<&StoredTensor> {
    network.tensors.iter().filter(|tensor| !tensor.is_table).collect()
}

/// The number of elements, and their bytes in the file.
fn sizes(tensors: &[&StoredTensor]) -> (usize, usize) {
    tensors.iter().fold((0, 0), |(count, bytes), tensor| (count + tensor.count(), bytes + tensor.bytes()))
}

fn histogram(function: &Function) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    function.ops().iter().for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
    counts
}

fn to_json(network: &InspectedNetwork) -> Value {
    let weights = weights(network);
    let (count, bytes) = sizes(&weights);
    let function = network.function.as_ref();
    let features = |ids: fn(&Function) -> &[ValueId]| -> Vec<Value> {
        let one = |feature: InspectedFeature| {
            let mut one = json!({"name": feature.name, "type": feature.ty});
            feature.kind.into_iter().for_each(|kind| one["kind"] = kind.into());
            one
        };
        network.features(ids).into_iter().map(one).collect()
    };
    json!({
        "name": network.name,
        "function": network.other_function,
        "pipeline": network.pipeline,
        "inputs": features(Function::inputs),
        "outputs": features(Function::outputs),
        "opset": function.map(|function| function.opset.name()),
        "specification_version": network.specification,
        "operations": function.map(histogram),
        "weights": count,
        "weight_bytes": bytes,
        "bits_per_weight": bits_per_element(count, bytes),
        "metadata": network.metadata,
        "layers": layers_json(&weights),
    })
}

fn layers_json(weights: &[&StoredTensor]) -> Vec<Value> {
    let one = |tensor: &&StoredTensor| {
        json!({
            "name": tensor.weight.name(),
            "shape": tensor.weight.ty().shape,
            "encoding": tensor.kind(),
            "groups": tensor.groups(),
            "bytes": tensor.bytes(),
            "bits_per_weight": tensor.bits(),
        })
    };
    weights.iter().map(one).collect()
}

fn to_text(network: &InspectedNetwork) -> String {
    let mut text = format!("{}\n", network.title());
    let mut line = |name: &str, value: String| text += &format!("  {name:<9} {value}\n");
    let (count, bytes) = sizes(&weights(network));
    let weights = format!("{count}, {}, {:.2} bits each", byte_size(bytes), bits_per_element(count, bytes));
    if let Some(function) = &network.function {
        if !network.pipeline.is_empty() {
            line(
                "pipeline",
                format!("of {} models: {}", network.pipeline.len(), network.pipeline.join(", ")),
            );
        }
        type Ids = fn(&Function) -> &[ValueId];
        let features: [(&str, Ids); 2] = [("input", Function::inputs), ("output", Function::outputs)];
        for (what, ids) in features {
            for feature in network.features(ids) {
                line(what, format!("{}: {}", feature.name, feature.type_and_kind()));
            }
        }
        line("weights", weights);
        let version = network.specification.map(|version| format!(", specification {version}"));
        line("opset", format!("{}{}", function.opset, version.unwrap_or_default()));
        let mut counts: Vec<(&str, usize)> = histogram(function).into_iter().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        let ops: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        for (index, row) in ops.chunks(6).enumerate() {
            line(if index == 0 { "ops" } else { "" }, row.join(", "));
        }
    }
    for (key, value) in &network.metadata {
        line("metadata", format!("{} = {}", visible_line(key), shortened(value)));
    }
    text
}

/// Every weight in the order of the graph, then the totals of each encoding.
fn print_layers(weights: &[&StoredTensor]) -> anyhow::Result<()> {
    let mut layers = Table::new([
        ("bits", Side::Right),
        ("bytes", Side::Right),
        ("encoding", Side::Left),
        ("shape", Side::Left),
        ("weight", Side::Left),
    ]);
    for tensor in weights {
        layers.row([
            format!("{:.2}", tensor.bits()),
            tensor.bytes().to_string(),
            tensor.encoding(),
            format!("{:?}", tensor.weight.ty().shape),
            tensor.weight.name().to_string(),
        ]);
    }
    print_line(format_args!("{layers}\n"))?;
    let mut kinds: BTreeMap<String, Vec<&StoredTensor>> = BTreeMap::new();
    weights.iter().for_each(|tensor| kinds.entry(tensor.kind()).or_default().push(tensor));
    let mut kinds: Vec<(String, Vec<&StoredTensor>)> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, tensors)| std::cmp::Reverse(sizes(tensors).0));
    let mut totals = Table::new([
        ("bits", Side::Right),
        ("bytes", Side::Right),
        ("elements", Side::Right),
        ("weights", Side::Right),
        ("encoding", Side::Left),
    ]);
    let mut total = |name: String, tensors: &[&StoredTensor]| {
        let (count, bytes) = sizes(tensors);
        let bits = format!("{:.2}", bits_per_element(count, bytes));
        totals.row([bits, bytes.to_string(), count.to_string(), tensors.len().to_string(), name]);
    };
    for (kind, tensors) in kinds {
        total(kind, &tensors);
    }
    total("all".to_string(), weights);
    print_line(format_args!("{totals}\n"))
}

/// The tensors of a standalone weight file.
fn show_file(file: &InspectedNetwork, arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.mil {
        bail!("{} has weights, but no program", file.name);
    }
    let tensors = weights(file);
    let (count, bytes) = sizes(&tensors);
    if arguments.json {
        let types: Vec<Value> = tensors
            .iter()
            .map(|tensor| json!({"name": tensor.weight.name(), "type": tensor.weight.ty().to_string()}))
            .collect();
        let layers = layers_json(&tensors);
        return print_line(format_args!(
            "{:#}",
            json!({"kind": file.kind, "tensors": types, "weights": count, "weight_bytes": bytes, "layers": layers})
        ));
    }
    if arguments.layers {
        return print_layers(&tensors);
    }
    file.kind.iter().try_for_each(|kind| print_line(format_args!("{}: {kind}", file.name)))?;
    for tensor in &tensors {
        print_line(format_args!("{}: {}", visible_line(tensor.weight.name()), tensor.weight.ty()))?;
    }
    print_line(format_args!(
        "{}, {}, {}, {:.2} bits each",
        counted(tensors.len() as u64, "tensor"),
        counted(count as u64, "weight"),
        byte_size(bytes),
        bits_per_element(count, bytes)
    ))
}
