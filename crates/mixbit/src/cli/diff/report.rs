//! The result of a comparison, as text and as JSON.

use std::cmp::Ordering;
use std::path::Path;

use serde_json::{Value, json};

use mixbit_packages::diff::{Change, Comparison, Distance};
use mixbit_packages::inspect::{StoredTensor, bits_per_element};

use crate::cli::printable::visible_line;
use crate::cli::table::{LONGEST_VALUE, Side, Table, byte_size, shortened};

/// The number of tensors listed without `--all`.
const LISTED: usize = 10;

/// Ops per line.
const OPS_IN_LINE: usize = 4;

/// The number of characters shown before the first difference of two values.
const CONTEXT: usize = 20;

pub(super) struct Report<'a> {
    pub(super) paths: [&'a Path; 2],
    pub(super) comparisons: Vec<Comparison<'a>>,
    /// Networks that only one side has.
    pub(super) only: [Vec<String>; 2],
}

/// The number of elements and their bytes.
type Size = (usize, usize);

/// A differing tensor and its network.
struct Different<'a> {
    network: String,
    pair: [&'a StoredTensor; 2],
    distance: Distance,
}

impl Different<'_> {
    /// The PSNR as a sort key; incomparable tensors come first.
    fn order(&self) -> f64 {
        match self.distance {
            Distance::Psnr(psnr) if !psnr.is_nan() => psnr,
            _ => f64::NEG_INFINITY,
        }
    }
}

/// The names of both networks.
fn name(comparison: &Comparison) -> String {
    match comparison.networks.each_ref().map(|network| network.title()) {
        [a, b] if a == b => a,
        [a, b] => format!("{a} -> {b}"),
    }
}

/// One line about the weights.
fn weights_text(comparison: &Comparison) -> String {
    let mut found = Vec::new();
    let equal = comparison.count(|distance| *distance == Distance::Equal);
    if equal > 0 {
        found.push(format!("{equal} the same"));
    }
    let psnrs = || {
        comparison.distances.iter().filter_map(|distance| match distance {
            Distance::Psnr(psnr) => Some(*psnr),
            _ => None,
        })
    };
    let differ = psnrs().count();
    if differ > 0 {
        // A NaN PSNR is the worst.
        let least = psnrs()
            .fold(f64::INFINITY, |least, psnr| if psnr < least || psnr.is_nan() { psnr } else { least });
        found.push(format!("{differ} differ, the worst at {}", decibels(least)));
    }
    let shapes = comparison.count(|distance| *distance == Distance::Shape);
    if shapes > 0 {
        found.push(format!("{shapes} of another shape"));
    }
    for (side, only) in ["A", "B"].iter().zip(&comparison.tensors.only) {
        if !only.is_empty() {
            found.push(format!("{} only in {side}", only.len()));
        }
    }
    if found.is_empty() { "none".to_string() } else { found.join(", ") }
}

fn comparison_text(comparison: &Comparison) -> String {
    let mut text = format!("{}\n", visible_line(&name(comparison)));
    let mut line = |name: &str, value: String| text += &format!("  {name:<9} {value}\n");
    let structure = &comparison.structure;
    for (name, changes) in [("input", &structure.inputs), ("output", &structure.outputs)] {
        changes.iter().for_each(|change| line(name, change_text(change)));
    }
    structure.formats.iter().for_each(|change| line("format", change_text(change)));
    let ops: Vec<String> = structure.operations.iter().map(op_text).collect();
    for (index, row) in ops.chunks(OPS_IN_LINE).enumerate() {
        line(if index == 0 { "ops" } else { "" }, row.join(", "));
    }
    if let Some(difference) = &structure.first_difference {
        line("graph", format!("differs from here on: {}", visible_line(difference)));
    }
    structure.metadata.iter().for_each(|change| line("metadata", change_text(change)));
    line("weights", weights_text(comparison));
    line("size", size_text(comparison.sizes()));
    text
}

fn comparison_json(comparison: &Comparison) -> Value {
    let [a, b] = comparison.sizes();
    let structure = &comparison.structure;
    let tensors = comparison.tensors.pairs.iter().zip(&comparison.distances);
    let layers: Vec<Value> = tensors
        .map(|(pair, distance)| {
            let psnr = match distance {
                Distance::Psnr(psnr) if psnr.is_finite() => Some(*psnr),
                _ => None,
            };
            json!({
                "name": pair[0].weight.name(),
                "shapes": pair.map(|tensor| tensor.weight.ty().shape.clone()),
                "encodings": pair.map(StoredTensor::encoding),
                "bytes": pair.map(StoredTensor::bytes),
                "bits_per_weight": pair.map(StoredTensor::bits),
                "equal": *distance == Distance::Equal,
                "psnr": psnr,
            })
        })
        .collect();
    let only = comparison
        .tensors
        .only
        .each_ref()
        .map(|only| only.iter().map(|tensor| tensor.weight.name().to_string()).collect::<Vec<_>>());
    json!({
        "names": comparison.networks.each_ref().map(|network| network.title()),
        "same": comparison.is_same(),
        "inputs": changes_json(&structure.inputs),
        "outputs": changes_json(&structure.outputs),
        "formats": changes_json(&structure.formats),
        "operations": changes_json(&structure.operations),
        "first_difference": structure.first_difference,
        "metadata": changes_json(&structure.metadata),
        "weights": [a.0, b.0],
        "weight_bytes": [a.1, b.1],
        "bits_per_weight": [bits_per_element(a.0, a.1), bits_per_element(b.0, b.1)],
        "layers": layers,
        "only": only,
    })
}

impl Report<'_> {
    pub(super) fn is_same(&self) -> bool {
        self.comparisons.iter().all(Comparison::is_same) && self.only.iter().all(|only| only.is_empty())
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "paths": self.paths.map(|path| path.display().to_string()),
            "same": self.is_same(),
            "parts": self.comparisons.iter().map(comparison_json).collect::<Vec<_>>(),
            "only": self.only,
        })
    }

    /// A summary, then the tensors with the largest differences, or all of them.
    pub(super) fn to_text(&self, all: bool) -> String {
        let mut text = format!("{}\n\n", self.summary());
        self.comparisons.iter().for_each(|comparison| text += &format!("{}\n", comparison_text(comparison)));
        let limit = if all { usize::MAX } else { LISTED };
        text + &self.worst(limit) + &self.only_in_one(limit)
    }

    fn summary(&self) -> String {
        let sizes = self.comparisons.iter().map(Comparison::sizes);
        let sum = |a: Size, b: Size| (a.0 + b.0, a.1 + b.1);
        let size = sizes.fold([(0, 0); 2], |[a, b], [x, y]| [sum(a, x), sum(b, y)]);
        let [a, b] = self.paths.map(Path::display);
        let differing = self.comparisons.iter().filter(|comparison| !comparison.is_same()).count();
        let mut found = match (self.comparisons.len(), differing) {
            (_, 0) if self.is_same() => "the same".to_string(),
            (0, _) => "no network in common".to_string(),
            (1, 0) => "the network in common is the same".to_string(),
            (1, _) => "they differ".to_string(),
            (count, differing) => format!("{differing} of {count} networks differ"),
        };
        for (side, only) in ["A", "B"].iter().zip(&self.only) {
            if !only.is_empty() {
                found += &format!("; only in {side}: {}", visible_line(&only.join(", ")));
            }
        }
        let total = if self.comparisons.len() > 1 { format!("\n{}", size_text(size)) } else { String::new() };
        format!("A: {a}\nB: {b}\n{found}{total}")
    }

    fn label(&self, network: &str, tensor: &StoredTensor) -> String {
        match self.comparisons.len() {
            1 => tensor.weight.name().to_string(),
            _ => format!("{network}: {}", tensor.weight.name()),
        }
    }

    fn worst(&self, limit: usize) -> String {
        let mut different: Vec<Different> = Vec::new();
        for comparison in &self.comparisons {
            let tensors = comparison.tensors.pairs.iter().zip(&comparison.distances);
            let changed = tensors.filter(|(_, distance)| **distance != Distance::Equal);
            different.extend(changed.map(|(&pair, &distance)| Different {
                network: comparison.role(),
                pair,
                distance,
            }));
        }
        if different.is_empty() {
            return String::new();
        }
        different.sort_by(|a, b| a.order().partial_cmp(&b.order()).unwrap_or(Ordering::Equal));
        let mut table =
            Table::new([("PSNR", Side::Right), ("stored as", Side::Left), ("tensor", Side::Left)]);
        for tensor in different.iter().take(limit) {
            let [a, b] = tensor.pair;
            let (psnr, name) = (decibels_of(tensor.distance), self.label(&tensor.network, a));
            let name = match tensor.distance {
                Distance::Shape => {
                    format!("{name} {:?} -> {:?}", a.weight.ty().shape, b.weight.ty().shape)
                }
                _ => name,
            };
            table.row([psnr, arrow(a.encoding(), b.encoding()), name]);
        }
        let what =
            if limit < different.len() { "The tensors that differ most" } else { "The tensors that differ" };
        format!("{what}:\n{table}\n{}\n", more(different.len(), limit))
    }

    fn only_in_one(&self, limit: usize) -> String {
        let mut text = String::new();
        for (index, side) in ["A", "B"].iter().enumerate() {
            let mut table =
                Table::new([("stored as", Side::Left), ("shape", Side::Left), ("tensor", Side::Left)]);
            let of_network = |comparison: &Comparison| {
                let tensors: Vec<[String; 3]> = comparison.tensors.only[index]
                    .iter()
                    .map(|tensor| {
                        let shape = format!("{:?}", tensor.weight.ty().shape);
                        [tensor.encoding(), shape, self.label(&comparison.role(), tensor)]
                    })
                    .collect();
                tensors
            };
            let rows: Vec<[String; 3]> = self.comparisons.iter().flat_map(of_network).collect();
            let count = rows.len();
            rows.into_iter().take(limit).for_each(|row| table.row(row));
            if count > 0 {
                text += &format!("Only in {side}:\n{table}\n{}\n", more(count, limit));
            }
        }
        text
    }
}

/// A line about the tensors that are not listed.
fn more(count: usize, limit: usize) -> String {
    match count.checked_sub(limit) {
        Some(more) if more > 0 => format!("  and {more} more: --all\n"),
        _ => String::new(),
    }
}

fn arrow(a: String, b: String) -> String {
    if a == b { a } else { format!("{a} -> {b}") }
}

fn decibels(psnr: f64) -> String {
    if psnr.is_nan() { "NaN".to_string() } else { format!("{psnr:.1} dB") }
}

fn decibels_of(distance: Distance) -> String {
    match distance {
        Distance::Psnr(psnr) => decibels(psnr),
        _ => "-".to_string(),
    }
}

fn size_text(sizes: [Size; 2]) -> String {
    let bytes = sizes.map(|(_, bytes)| byte_size(bytes));
    let bits = sizes.map(|(count, bytes)| format!("{:.2}", bits_per_element(count, bytes)));
    let ([a, b], [x, y]) = (bytes, bits);
    format!("{}, {} bits each", arrow(a, b), arrow(x, y))
}

fn op_text(change: &Change) -> String {
    let count = |side: &Option<String>| side.clone().unwrap_or_else(|| "0".to_string());
    format!("{} {} -> {}", change.name, count(&change.sides[0]), count(&change.sides[1]))
}

/// A change, on one line.
fn change_text(change: &Change) -> String {
    let name = visible_line(&change.name);
    match &change.sides {
        [Some(a), Some(b)] => {
            let [a, b] = excerpts(a, b);
            format!("{name}: {} -> {}", shortened(&a), shortened(&b))
        }
        [Some(value), None] => format!("{name}: {}, only in A", shortened(value)),
        [None, Some(value)] => format!("{name}: {}, only in B", shortened(value)),
        [None, None] => name,
    }
}

/// Two values; long ones start shortly before their first difference.
fn excerpts(a: &str, b: &str) -> [String; 2] {
    if a.len().max(b.len()) <= LONGEST_VALUE {
        return [a, b].map(str::to_string);
    }
    let common = a.chars().zip(b.chars()).take_while(|(a, b)| a == b).count();
    let skipped = common.saturating_sub(CONTEXT);
    [a, b].map(|value| match skipped {
        0 => value.to_string(),
        _ => format!("...{}", value.chars().skip(skipped).collect::<String>()),
    })
}

fn changes_json(changes: &[Change]) -> Vec<Value> {
    changes.iter().map(|change| json!({"name": change.name, "values": change.sides})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_shown_where_they_differ() {
        let long = "x".repeat(100);
        let [a, b] = excerpts(&format!("{long}1"), &format!("{long}2"));
        assert_eq!((a.as_str(), b.len()), (format!("...{}1", "x".repeat(CONTEXT)).as_str(), a.len()));
        let short = "tensor<fp16, [1, 4, 16, 16]>";
        assert_eq!(excerpts(short, "tensor<fp16, [1, 4, 16, 17]>")[0], short);
    }
}
