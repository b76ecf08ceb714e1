use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};

use mixbit_compress::layers;
use mixbit_diffusion::arch::{AttentionImplementation, Config, GraphOptions, lookup, required_tensors, unet};
use mixbit_formats::coreml;
use mixbit_mil::{Builder, Bytes, DType, Opset, TensorType, WeightRef, Weights, constexpr};
use mixbit_testkit::{Failures, fixture_root};
use serde_json::{Value, json};

use super::*;
use crate::recipe::{MatchError, Recipe, RecipeFile, assign_by_structure};

type Error = Box<dyn std::error::Error>;

/// Weights of zeros with the given names and shapes.
struct Zeros(BTreeMap<String, Vec<usize>>);

impl Weights for Zeros {
    fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        let ty = TensorType::new(DType::F32, self.0.get(name)?.clone());
        let bytes = Bytes::new(vec![0u8; ty.byte_len()?]);
        WeightRef::new(name, ty, bytes).ok()
    }
}

fn unet(fields: &Value, attention: AttentionImplementation) -> Result<Function, Error> {
    let Config::Unet(config) = lookup("UNet2DConditionModel")?.config(fields)? else {
        return Err("no UNet".into());
    };
    let time_ids = if fields["addition_embed_type"] == "text_time" { 6 } else { 0 };
    let options = GraphOptions { attention, time_ids, ..GraphOptions::default() };
    let weights = Zeros(required_tensors(|weights| unet::build(&config, weights, &options))?);
    Ok(unet::build(&config, &weights, &options)?)
}

/// The graph with its weights renamed by their order, and the names that they had.
fn stripped(function: &Function) -> (Function, Vec<String>) {
    let mut function = function.clone();
    let names = layers(&function).into_iter().map(|layer| layer.name).collect();
    let renamed = function.map_constants(|id, constant| {
        let Constant::Weight(weight) = constant else { return Ok::<_, Infallible>(None) };
        Ok(Some(Constant::Weight(weight.renamed(&format!("c{}", id.index())))))
    });
    let Ok(()) = renamed;
    (function, names)
}

fn package(path: &Path) -> Result<Function, Error> {
    let model = coreml::read(path)?;
    Ok(constexpr::decoded(model.program.main().ok_or("no function")?)?)
}

/// True if a constant of Apple's converter is named after a layer.
fn is_named_after(constant: &str, layer: &str) -> bool {
    let rest = constant.strip_prefix(&layer.replace('.', "_"));
    rest.is_some_and(|rest| rest.starts_with("_weight"))
}

/// Pairs that are not what they were called.
fn wrong(
    found: &Correspondence,
    truth: &[String],
    named: &Function,
    is: fn(&str, &str) -> bool,
) -> Vec<String> {
    let names: Vec<String> = layers(named).into_iter().map(|layer| layer.name).collect();
    let wrong = found.pairs.iter().filter(|(a, b)| !is(&truth[*a], &names[*b]));
    wrong.map(|(a, b)| format!("{} for {}", names[*b], truth[*a])).collect()
}

fn all_found(network: &Function, named: &Function, is: fn(&str, &str) -> bool) -> Result<(), Error> {
    let (network, truth) = stripped(network);
    let found = correspondence(&network, named);
    let wrong = wrong(&found, &truth, named, is);
    if found.pairs.len() != truth.len() || truth.is_empty() || !wrong.is_empty() {
        let only: Vec<&String> = found.only.0.iter().take(5).map(|&index| &truth[index]).collect();
        let ambiguous: Vec<Vec<&String>> =
            found.ambiguous.iter().map(|(a, _)| a.iter().map(|&index| &truth[index]).collect()).collect();
        return Err(format!(
            "{} of {} layers found, wrong: {wrong:?}, {} alone: {only:?}, ambiguous: {ambiguous:?}",
            found.pairs.len(),
            truth.len(),
            found.only.0.len()
        )
        .into());
    }
    Ok(())
}

fn small() -> Value {
    json!({
        "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64],
        "layers_per_block": 1, "cross_attention_dim": 48, "attention_head_dim": 2,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]
    })
}

#[test]
fn layers_of_apples_packages_are_found_without_names() {
    let mut packages: Vec<(PathBuf, Option<PathBuf>)> =
        vec![(fixture_root().join("coreml/unet_sd15s_split_einsum.mlpackage"), None)];
    if let Ok(more) = std::env::var("MIXBIT_COREML_FIXTURES") {
        for name in ["unet_sd15_split_einsum", "unet_sdxl_original"] {
            let path = |end: &str| Path::new(&more).join(format!("{name}.{end}"));
            packages.push((path("mlpackage"), Some(path("config.json"))));
        }
    }
    let mut failures = Failures::new("packages");
    for (path, config) in packages {
        let case = path.display().to_string();
        failures.case(&case, || {
            let config: Value = match &config {
                Some(path) => serde_json::from_str(&std::fs::read_to_string(path)?)?,
                None => small(),
            };
            let written = match case.contains("original") {
                true => AttentionImplementation::Original,
                false => AttentionImplementation::SplitEinsum,
            };
            all_found(&package(&path)?, &unet(&config, written)?, is_named_after)?;
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

#[test]
fn layers_of_every_unet_are_found_whichever_way_attention_is_written() {
    let mut failures = Failures::new("UNets");
    for name in ["unet-sd15", "unet-sd21", "unet-sdxl", "unet-inpaint", "unet-three", "unet-lcm"] {
        for (a, b) in [(0, 0), (1, 1), (1, 2), (2, 1), (2, 2)] {
            let [a, b] = [a, b].map(|index| AttentionImplementation::ALL[index]);
            failures.case(&format!("{name}, {} by {}", a.name(), b.name()), || {
                let path = fixture_root().join("models").join(name).join("config.json");
                let config: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
                all_found(&unet(&config, a)?, &unet(&config, b)?, |a, b| a == b)
            });
        }
    }
    failures.finish();
}

/// Two convolutions of one input by weights of the given names and types, added.
fn branches(names: [&str; 2], shapes: [[usize; 4]; 2]) -> Result<Function, Error> {
    let mut b = Builder::new("main", Opset::Ios16);
    let x = b.input("x", TensorType::new(DType::F16, [1, 2, 4, 4]))?;
    let mut made = Vec::new();
    for (name, shape) in names.into_iter().zip(shapes) {
        let ty = TensorType::new(DType::F16, shape);
        let bytes = Bytes::new(vec![0; ty.byte_len().ok_or("too large")?]);
        let weight = b.weight(WeightRef::new(name, ty, bytes)?);
        made.push(b.op("conv").arg("x", x).arg("weight", weight).arg("pad_type", "same").add()?);
    }
    let y = b.op("add").arg("x", made[0]).arg("y", made[1]).named("y").add()?;
    Ok(b.finish(&[y])?)
}

fn recipe(bits: [u32; 2]) -> Result<(RecipeFile, Recipe), Error> {
    let text = json!({"model_version": "m", "recipes": {"r": {"left": bits[0], "right": bits[1]}}});
    let file = RecipeFile::parse(&text.to_string())?;
    let recipe = file.select("r")?.1.clone();
    Ok((file, recipe))
}

#[test]
fn what_the_graph_does_not_tell_is_refused_where_it_matters() -> Result<(), Error> {
    let alike = [[2, 2, 3, 3]; 2];
    let named = branches(["left.weight", "right.weight"], alike)?;
    let network = branches(["c0", "c1"], alike)?;
    let (file, different) = recipe([4, 8])?;
    let error = assign_by_structure(&file, &different, &network, std::slice::from_ref(&named)).unwrap_err();
    assert!(matches!(error, MatchError::Alike { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("left, right") && text.contains("c0, c1"), "{text}");

    let (file, same) = recipe([4, 4])?;
    let found = assign_by_structure(&file, &same, &network, std::slice::from_ref(&named))?;
    let scheme = same.layers["left"];
    assert!(found.layers.values().all(|(_, chosen)| *chosen == scheme) && found.layers.len() == 2);

    // Other kernels tell them apart, in whichever order they come.
    let shapes = [[2, 2, 1, 1], [2, 2, 3, 3]];
    let named = branches(["left.weight", "right.weight"], shapes)?;
    let network = branches(["c0", "c1"], [shapes[1], shapes[0]])?;
    let (file, different) = recipe([4, 8])?;
    let found = assign_by_structure(&file, &different, &network, &[named])?;
    assert_eq!([&found.layers["c0"].0, &found.layers["c1"].0], ["right", "left"]);
    Ok(())
}

#[test]
fn another_architecture_is_refused_with_names() -> Result<(), Error> {
    let named = branches(["left.weight", "right.weight"], [[2, 2, 1, 1], [2, 2, 3, 3]])?;
    let network = branches(["c0", "c1"], [[2, 2, 5, 5], [2, 2, 3, 3]])?;
    let (file, recipe) = recipe([4, 8])?;
    let error = assign_by_structure(&file, &recipe, &network, &[named]).unwrap_err().to_string();
    assert!(
        error.contains("2 of the recipe's layers do: left, right") && error.contains("c0, c1"),
        "{error}"
    );
    Ok(())
}
