//! The report as one self-contained page of HTML.

use std::collections::BTreeMap;
use std::io;

use super::figure::{Figure, escaped, variables};
use super::raster::Bitmap;
use super::{Pictures, Report, latent_psnr, layers, pixel_psnr};
use crate::analyze::{Analysis, Candidate, Verified, mean};
use mixbit_formats::base64;

const STYLE: &str = "\
body{background:var(--paper);color:var(--text);\
font:16px/1.5 system-ui,sans-serif;max-width:1132px;margin:0 auto;padding:16px}
h1{font-size:1.6em}h2{font-size:1.25em;margin-top:2em}
.scroll{overflow-x:auto}
svg{max-width:100%;height:auto;display:block}
.wide svg{max-width:none}
.plot svg{min-width:560px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:4px 12px;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(200px,1fr));gap:16px}
figure{margin:0;break-inside:avoid}
figure img{width:100%;height:auto;image-rendering:auto}
figcaption,.note{color:var(--muted);font-size:.9em}
dt{font-weight:600}dd{margin:0 0 .5em}
@media print{h2{break-after:avoid}body{max-width:none}.wide svg{max-width:100%}}
";

/// The longest name of a layer that is shown whole, in characters.
const LONGEST_NAME: usize = 48;

/// The page; `plot` is PSNR against size.
pub(super) fn page(report: &Report<'_>, plot: &Figure) -> io::Result<String> {
    let Report { analysis, name, pictures } = report;
    let title = escaped(&format!("{name}: mixed-bit palettization"));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <meta name=\"color-scheme\" content=\"light dark\"/>\n<title>{title}</title>\n\
         <style>\n{}{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n",
        variables(":root")
    );
    out += &measured(analysis);
    out += "<h2>PSNR and size</h2>\n";
    out += "<div class=\"scroll plot\" tabindex=\"0\">\n";
    out += &plot.svg();
    out += "</div>\n<p class=\"note\">Mean PSNR of denoised latents against those of the model as it is, in \
        states that were not measured on.</p>\n";
    out += &table(analysis);
    if let Some(pictures) = pictures {
        out += &images(pictures)?;
    }
    out += "<h2>Sensitivity of layers</h2>\n<p>PSNR with one layer alone in fewer bits. Each column is a \
        layer, in the order of use; its name is in its tooltip.</p>\n<div class=\"scroll wide\" \
        tabindex=\"0\">\n";
    out += &layers::heat_map(analysis).svg();
    out += "</div>\n";
    if !analysis.recipes.is_empty() {
        let recipes: Vec<&Verified> = analysis.recipes.iter().collect();
        out += "<h2>Chosen bits by depth</h2>\n<p>Each bar is a layer, in the order of use; 16 bits are \
            those of layers that stay as they are.</p>\n<div class=\"scroll wide\" tabindex=\"0\">\n";
        out += &layers::depths(&analysis.candidates, &recipes).svg();
        out += "</div>\n";
    }
    out += &all_layers(analysis);
    out += "</body>\n</html>\n";
    Ok(out)
}

/// The measurements and their cost.
fn measured(analysis: &Analysis) -> String {
    let weights: usize = analysis.candidates.iter().map(Candidate::count).sum();
    let timesteps: Vec<String> = analysis.timesteps.iter().map(|step| format!("{step:.0}")).collect();
    let rows = [
        (
            "Layers",
            format!(
                "{} that can be compressed, of {:.1} million weights; the UNet has {:.1} MB in 16 bits",
                analysis.candidates.len(),
                weights as f64 / 1e6,
                megabytes(analysis.bytes)
            ),
        ),
        ("Measured on", format!("{} states, at timesteps {}", analysis.points.len(), timesteps.join(", "))),
        ("Verified on", format!("{} other states", analysis.verified_points.len())),
        (
            "Cost",
            format!(
                "{:.0} evaluations of the UNet for one image; with a whole run for each measurement it \
                 would be {:.0}",
                analysis.evaluations, analysis.whole_evaluations
            ),
        ),
        ("Made by", concat!("mixbit ", env!("CARGO_PKG_VERSION")).to_string()),
    ];
    let rows = rows.map(|(term, text)| format!("<dt>{term}</dt><dd>{}</dd>\n", escaped(&text))).concat();
    format!("<dl>\n{rows}</dl>\n")
}

/// The table of recipes and baselines.
fn table(analysis: &Analysis) -> String {
    let measured = |verified: &Verified| match verified.layers.is_empty() {
        // The unchanged network's PSNR says nothing.
        true => "–".to_string(),
        false => decibels(verified.mean_psnr()),
    };
    let row = |verified: &Verified| {
        let predicted = verified.predicted.map_or("–".to_string(), |psnr| format!("{psnr:.1}"));
        format!(
            "<tr><td>{}</td><td>{:.2}</td><td>{:.1}</td><td>{:.2}×</td><td>{predicted}</td>\
             <td>{}</td></tr>\n",
            escaped(&verified.name),
            verified.bits,
            megabytes(verified.bytes),
            analysis.bytes as f64 / verified.bytes.max(1) as f64,
            measured(verified),
        )
    };
    let group = |name: &str, members: &[Verified]| match members {
        [] => String::new(),
        members => format!(
            "<tbody>\n<tr><th scope=\"rowgroup\" colspan=\"6\">{name}</th></tr>\n{}</tbody>\n",
            members.iter().map(row).collect::<String>()
        ),
    };
    format!(
        "<h2>Recipes</h2>\n<div class=\"scroll\" tabindex=\"0\"><table>\n<thead><tr><th \
         scope=\"col\">Name</th><th scope=\"col\">Bits</th>\
         <th scope=\"col\">MB</th><th scope=\"col\">Smaller by</th><th scope=\"col\">Predicted, dB</th>\
         <th scope=\"col\">Measured, dB</th></tr></thead>\n{}{}</table></div>\n",
        group("Recipes", &analysis.recipes),
        group("Everything in one form", &analysis.baselines)
    )
}

/// The images of the original and of each recipe.
fn images(pictures: &Pictures) -> io::Result<String> {
    let Pictures { prompt, seed, original, recipes } = pictures;
    let mut out = format!(
        "<h2>Images</h2>\n<p>“{}”, seed {seed}, the same noise for all.</p>\n<div class=\"pictures\">\n",
        escaped(prompt)
    );
    let all =
        [("original", original)].into_iter().chain(recipes.iter().map(|(name, one)| (name.as_str(), one)));
    for (index, (name, picture)) in all.enumerate() {
        let image = &picture.image;
        let mut bitmap = Bitmap::new(image.width, image.height);
        bitmap.put([0, 0], &image.to_rgb8(), image.width);
        let mut png = Vec::new();
        bitmap.write_png(&mut png, &[])?;
        let compared = match index {
            0 => String::new(),
            _ => format!(
                "<br/>latents {}, pixels {} dB",
                decibels(latent_psnr(&original.latents, &picture.latents)),
                decibels(pixel_psnr(&original.image, image))
            ),
        };
        let (name, prompt) = (escaped(name), escaped(prompt));
        out += &format!(
            "<figure><img src=\"data:image/png;base64,{}\" width=\"{}\" height=\"{}\" alt=\"{prompt}, drawn \
             by {name}\"/>\
             <figcaption>{name}{compared}</figcaption></figure>\n",
            base64::encode(&png),
            image.width,
            image.height
        );
    }
    Ok(out + "</div>\n")
}

/// The table of all layers and their PSNR alone.
fn all_layers(analysis: &Analysis) -> String {
    let curves: Vec<(String, BTreeMap<&str, &Vec<f64>>)> = analysis
        .single_layer
        .iter()
        .map(|(scheme, curve)| {
            (scheme.to_string(), curve.iter().map(|(name, psnr)| (name.as_str(), psnr)).collect())
        })
        .collect();
    let head: String =
        curves.iter().map(|(scheme, _)| format!("<th scope=\"col\">{scheme}, dB</th>")).collect();
    let row = |candidate: &Candidate| {
        let cells = curves.iter().map(|(_, curve)| match curve.get(candidate.name.as_str()) {
            Some(values) if !values.is_empty() => {
                format!("<td>{}</td>", decibels(mean(values)))
            }
            _ => "<td>–</td>".to_string(),
        });
        format!(
            "<tr><td title=\"{}\">{}</td><td>{}</td>{}</tr>\n",
            escaped(&candidate.name),
            escaped(&shortened(&candidate.name)),
            candidate.count(),
            cells.collect::<String>()
        )
    };
    format!(
        "<h2>All layers</h2>\n<details><summary>{} layers as numbers</summary>\n<div class=\"scroll\" \
         tabindex=\"0\"><table>\n<thead><tr>\
         <th scope=\"col\">Layer</th><th \
         scope=\"col\">Weights</th>{head}</tr></thead>\n<tbody>\n{}</tbody></table></div>\n</details>\n",
        analysis.candidates.len(),
        analysis.candidates.iter().map(row).collect::<String>()
    )
}

/// The end of a long name, in which names of layers differ.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    match count > LONGEST_NAME {
        true => format!("…{}", name.chars().skip(count - LONGEST_NAME + 1).collect::<String>()),
        false => name.to_string(),
    }
}

fn decibels(psnr: f64) -> String {
    if psnr.is_infinite() { "equal".to_string() } else { format!("{psnr:.1}") }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
