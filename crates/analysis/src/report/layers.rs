//! Plots with a column for each layer: its sensitivity by width, and its bits in each recipe.

use std::collections::BTreeMap;

use mixbit_compress::Scheme;

use super::figure::{Anchor, Figure, Ink, LINE};
use crate::analyze::{Analysis, Candidate, Verified, mean};

/// The width of all layers together.
const LAYERS: f64 = 1010.0;
/// The least width of one layer. The page scrolls if there are many.
const NARROWEST: f64 = 3.0;
/// The width of the legend with its text.
const LEGEND: f64 = 560.0;
/// The left edge of the first layer.
const LEFT: f64 = 90.0;
/// The height of a row of the heat map.
const ROW: f64 = 26.0;
/// Colours from the most to the least harm: dark violet to yellow, and dark to light in greyscale.
const COLOURS: [[u8; 3]; 6] =
    [[72, 28, 128], [112, 30, 122], [159, 42, 99], [212, 72, 66], [245, 125, 21], [250, 217, 90]];

/// The mean PSNR with one layer compressed, as colours: a column for each layer, a row for each scheme.
pub(super) fn heat_map(analysis: &Analysis) -> Figure {
    let mut schemes: Vec<_> = analysis.single_layer.iter().collect();
    schemes.sort_by_key(|(scheme, _)| (scheme.width.bits(), scheme.to_string()));
    let rows: Vec<(&Scheme, BTreeMap<&str, f64>)> = schemes
        .into_iter()
        .map(|(scheme, curve)| {
            (scheme, curve.iter().map(|(layer, psnr)| (layer.as_str(), mean(psnr))).collect())
        })
        .collect();
    let all = || rows.iter().flat_map(|(_, row)| row.values()).copied().filter(|psnr| psnr.is_finite());
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let groups = 38.0;
    let height = groups + rows.len() as f64 * ROW + 60.0;
    let alt = format!(
        "PSNR in dB with one layer in fewer bits: {} layers in the order of their use, from {low:.1} to \
         {high:.1} dB",
        analysis.candidates.len()
    );
    let column = column(analysis.candidates.len());
    let right = (LEFT + column * analysis.candidates.len() as f64).max(LEFT + LEGEND);
    let mut figure = Figure::new([right, height], alt);
    let bottom = groups + rows.len() as f64 * ROW;
    sections(&mut figure, &analysis.candidates, column, [groups, bottom]);
    for (index, (scheme, row)) in rows.iter().enumerate() {
        let y = groups + index as f64 * ROW;
        figure.text([LEFT - 8.0, y + ROW / 2.0 + 4.0], scheme.to_string(), Anchor::End, Ink::Text);
        for (place, layer) in analysis.candidates.iter().enumerate() {
            let Some(psnr) = row.get(layer.name.as_str()) else { continue };
            let part = ((psnr - low) / (high - low).max(1e-9)).clamp(0.0, 1.0);
            let title = format!("{} {:?}, {scheme}: {psnr:.1} dB", layer.name, layer.shape);
            let gap = if column > NARROWEST { 0.5 } else { 0.0 };
            let at = [LEFT + place as f64 * column, y];
            figure.rect(at, [column - gap, ROW - 1.0], Ink::Exact(colour(part)), title);
        }
    }
    legend(&mut figure, [LEFT, bottom + 24.0], [low, high]);
    figure
}

/// The bits of recipes, one beneath the other, with a bar for each layer.
pub(super) fn depths(candidates: &[Candidate], recipes: &[&Verified]) -> Figure {
    let (panel, bars, top) = (104.0, 64.0, 20.0);
    let column = column(candidates.len());
    let right = (LEFT + column * candidates.len() as f64).max(LEFT + LEGEND);
    let mut figure = Figure::new(
        [right, top + panel * recipes.len() as f64],
        "Bits of each layer in the order of its use, one row for each recipe",
    );
    let most = 16.0;
    for (index, recipe) in recipes.iter().enumerate() {
        let begin = top + index as f64 * panel;
        let base = begin + 24.0 + bars;
        let title = format!("{}: {:.2} bits, {:.1} dB", recipe.name, recipe.bits, recipe.mean_psnr());
        figure.text([LEFT, begin + 12.0], title, Anchor::Start, Ink::Text);
        for bits in [4.0, 8.0, 16.0] {
            let y = base - bits / most * bars;
            figure.line(vec![[LEFT, y], [right, y]], Ink::Grid, 1.0);
            figure.text([LEFT - 8.0, y + 4.0], format!("{bits}"), Anchor::End, Ink::Muted);
        }
        for (place, layer) in candidates.iter().enumerate() {
            let scheme = recipe.layers.get(&layer.name);
            let bits = scheme.map_or(most, |scheme| f64::from(scheme.width.bits()));
            let height = bits / most * bars;
            let stored = scheme.map_or("as it is".to_string(), Scheme::to_string);
            let at = [LEFT + place as f64 * column, base - height];
            let gap = if column > NARROWEST { 1.0 } else { 0.0 };
            figure.rect(at, [column - gap, height], Ink::Mixed, format!("{}: {stored}", layer.name));
        }
        figure.line(vec![[LEFT, base], [right, base]], Ink::Muted, 1.0);
    }
    figure
}

/// The width of one layer.
fn column(layers: usize) -> f64 {
    (LAYERS / layers.max(1) as f64).clamp(NARROWEST, 40.0)
}

/// Marks the beginnings of the network's sections, and names the sections that are wide enough.
fn sections(figure: &mut Figure, candidates: &[Candidate], column: f64, [top, bottom]: [f64; 2]) {
    let mut begin = 0;
    for part in candidates.chunk_by(|a, b| section(&a.name) == section(&b.name)) {
        let x = LEFT + begin as f64 * column;
        let name = part.first().map(|layer| section(&layer.name)).unwrap_or_default();
        figure.line(vec![[x, top - 6.0], [x, bottom + 4.0]], Ink::Muted, 1.0);
        if 7.0 * name.len() as f64 <= part.len() as f64 * column {
            figure.text([x, top - 10.0], name, Anchor::Start, Ink::Muted);
        }
        begin += part.len();
    }
}

/// The section of a UNet that a layer is in, in short: `down 0`, `mid`, `up 2`, or the module's own name.
fn section(name: &str) -> String {
    let mut parts = name.split('.');
    match (parts.next().unwrap_or_default(), parts.next()) {
        ("down_blocks", Some(index)) => format!("down {index}"),
        ("up_blocks", Some(index)) => format!("up {index}"),
        ("mid_block", _) => "mid".to_string(),
        (other, _) => other.chars().take(16).collect(),
    }
}

fn legend(figure: &mut Figure, [x, y]: [f64; 2], [low, high]: [f64; 2]) {
    let (steps, width) = (60, 240.0);
    for step in 0..steps {
        let part = step as f64 / (steps - 1) as f64;
        let at = [x + step as f64 * width / steps as f64, y];
        figure.rect(at, [width / steps as f64 + 0.3, 10.0], Ink::Exact(colour(part)), "");
    }
    if low <= high {
        figure.text([x, y + 10.0 + LINE], format!("{low:.0} dB"), Anchor::Start, Ink::Muted);
        figure.text([x + width, y + 10.0 + LINE], format!("{high:.0} dB"), Anchor::End, Ink::Muted);
    }
    figure.text(
        [x + width + 16.0, y + 10.0],
        "dark: the layer matters, light: it does not",
        Anchor::Start,
        Ink::Muted,
    );
}

/// The colour for a value from 0 to 1.
fn colour(part: f64) -> [u8; 3] {
    let at = part.clamp(0.0, 1.0) * (COLOURS.len() - 1) as f64;
    let low = (at as usize).min(COLOURS.len() - 2);
    let mixed = |channel: usize| {
        let [a, b] = [COLOURS[low][channel], COLOURS[low + 1][channel]].map(f64::from);
        (a + (at - low as f64) * (b - a)).round() as u8
    };
    [0, 1, 2].map(mixed)
}
