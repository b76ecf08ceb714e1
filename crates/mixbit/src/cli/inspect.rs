//! `mixbit inspect`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use mixbit_mil::{Function, Program, ValueId};
use serde_json::{Value, json};

use super::print_line;
use super::table::{Side, Table, shortened, spelt_out};
use mixbit_packages::inspect::{Form, Part, Tensor, bits, open, size};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A model's directory in the diffusers layout, a Core ML package (.mlpackage or .mlmodelc), a directory of them, or a
    /// safetensors file
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
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let parts = open(&arguments.path, &Form::default())?;
    if let [file] = &parts[..]
        && file.function.is_none()
    {
        return show_file(file, arguments);
    }
    if arguments.mil {
        for function in parts.iter().filter_map(|part| part.function.as_ref()) {
            print_line(Program::new(function.clone()))?;
        }
        return Ok(());
    }
    if arguments.json {
        let parts: Vec<Value> = parts.iter().map(to_json).collect();
        return print_line(format_args!("{:#}", json!({"parts": parts})));
    }
    for part in &parts {
        print_line(to_text(part))?;
        if arguments.layers {
            print_layers(&weights(part))?;
        }
    }
    Ok(())
}

/// The weights of a network; in a package, all constants in its weight file.
fn weights(part: &Part) -> Vec<&Tensor> {
    part.tensors.iter().filter(|tensor| !tensor.is_table).collect()
}

/// The number of elements, and the bytes that they take as they are stored.
fn sizes(tensors: &[&Tensor]) -> (usize, usize) {
    tensors.iter().fold((0, 0), |(count, bytes), tensor| (count + tensor.count(), bytes + tensor.bytes()))
}

fn signature(function: &Function, ids: &[ValueId]) -> Vec<(String, String)> {
    let one = |&id: &ValueId| {
        let value = function.value(id);
        (value.name.clone(), value.ty.to_string())
    };
    ids.iter().map(one).collect()
}

fn histogram(function: &Function) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    function.ops().iter().for_each(|op| *counts.entry(op.def.name).or_insert(0) += 1);
    counts
}

fn to_json(part: &Part) -> Value {
    let weights = weights(part);
    let (count, bytes) = sizes(&weights);
    let function = part.function.as_ref();
    let features = |ids: fn(&Function) -> &[ValueId]| -> Vec<Value> {
        let named = function.map(|function| signature(function, ids(function))).unwrap_or_default();
        named.into_iter().map(|(name, ty)| json!({"name": name, "type": ty})).collect()
    };
    json!({
        "name": part.name,
        "inputs": features(Function::inputs),
        "outputs": features(Function::outputs),
        "opset": function.map(|function| function.opset.name()),
        "specification_version": part.specification,
        "operations": function.map(histogram),
        "weights": count,
        "weight_bytes": bytes,
        "bits_per_weight": bits(count, bytes),
        "metadata": part.metadata,
        "layers": layers_json(&weights),
    })
}

fn layers_json(weights: &[&Tensor]) -> Vec<Value> {
    let one = |tensor: &&Tensor| {
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

fn to_text(part: &Part) -> String {
    let mut text = format!("{}\n", part.name);
    let mut line = |name: &str, value: String| text += &format!("  {name:<9} {value}\n");
    let (count, bytes) = sizes(&weights(part));
    let weights = format!("{count}, {}, {:.2} bits each", size(bytes), bits(count, bytes));
    if let Some(function) = &part.function {
        for (what, ids) in [("input", function.inputs()), ("output", function.outputs())] {
            for (name, ty) in signature(function, ids) {
                line(what, format!("{name}: {ty}"));
            }
        }
        line("weights", weights);
        let version = part.specification.map(|version| format!(", specification {version}"));
        line("opset", format!("{}{}", function.opset, version.unwrap_or_default()));
        let mut counts: Vec<(&str, usize)> = histogram(function).into_iter().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(*count), *name));
        let ops: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        for (index, row) in ops.chunks(6).enumerate() {
            line(if index == 0 { "ops" } else { "" }, row.join(", "));
        }
    }
    for (key, value) in &part.metadata {
        line("metadata", format!("{} = {}", spelt_out(key), shortened(value)));
    }
    text
}

/// Every weight in the order of the graph, then what each encoding amounts to.
fn print_layers(weights: &[&Tensor]) -> anyhow::Result<()> {
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
    let mut kinds: BTreeMap<String, Vec<&Tensor>> = BTreeMap::new();
    weights.iter().for_each(|tensor| kinds.entry(tensor.kind()).or_default().push(tensor));
    let mut kinds: Vec<(String, Vec<&Tensor>)> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, tensors)| std::cmp::Reverse(sizes(tensors).0));
    let mut totals = Table::new([
        ("bits", Side::Right),
        ("bytes", Side::Right),
        ("elements", Side::Right),
        ("weights", Side::Right),
        ("encoding", Side::Left),
    ]);
    let mut total = |name: String, tensors: &[&Tensor]| {
        let (count, bytes) = sizes(tensors);
        let bits = format!("{:.2}", bits(count, bytes));
        totals.row([bits, bytes.to_string(), count.to_string(), tensors.len().to_string(), name]);
    };
    for (kind, tensors) in kinds {
        total(kind, &tensors);
    }
    total("all".to_string(), weights);
    print_line(format_args!("{totals}\n"))
}

/// A weight file by itself: its tensors.
fn show_file(file: &Part, arguments: &Arguments) -> anyhow::Result<()> {
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
            json!({"tensors": types, "weights": count, "weight_bytes": bytes, "layers": layers})
        ));
    }
    if arguments.layers {
        return print_layers(&tensors);
    }
    for tensor in &tensors {
        print_line(format_args!("{}: {}", spelt_out(tensor.weight.name()), tensor.weight.ty()))?;
    }
    print_line(format_args!(
        "{} tensors, {count} weights, {}, {:.2} bits each",
        tensors.len(),
        size(bytes),
        bits(count, bytes)
    ))
}
