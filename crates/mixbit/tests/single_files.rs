//! Models in one file of the original layouts, beside the same models in the diffusers layout. The names of
//! the original layouts are those of `fixtures/checkpoints/names.json`, which diffusers' converters have
//! judged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mixbit_app::source::open;
use mixbit_diffusion::original::Original;
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_formats::{SafeTensors, TensorFile};
use mixbit_mil::{DType, TensorType, Weights};
use mixbit_packages::source::{OpenOptions, OpenedModel};
use mixbit_testkit::{Failures, Fixture, Scratch, copy_tree, fixture_root};
use serde_json::Value;

type Error = Box<dyn std::error::Error>;

const MODELS: [&str; 4] = ["sd15", "sd21", "sdxl", "refiner"];

fn pipeline(name: &str) -> PathBuf {
    fixture_root().join("pipelines").join(name)
}

/// A tensor's type and bytes.
type Tensor = (TensorType, Vec<u8>);

/// A component's tensors in the diffusers layout.
fn tensors(model: &str, component: &str) -> Result<BTreeMap<String, Tensor>, Error> {
    let folder = fs::read_dir(pipeline(model).join(component))?;
    let path = folder.filter_map(|entry| Some(entry.ok()?.path()));
    let mut path = path.filter(|path| path.extension().is_some_and(|end| end == "safetensors"));
    let file = SafeTensors::open(&path.next().ok_or("no weights")?)?;
    let one = |name: &str| -> Result<(String, Tensor), Error> {
        let weight = file.get(name).ok_or("no tensor")?;
        Ok((name.to_string(), (weight.ty().clone(), weight.read()?.into_owned())))
    };
    file.names().into_iter().map(one).collect()
}

/// A model's tensors in the original layout.
fn original(model: &str) -> Result<BTreeMap<String, Tensor>, Error> {
    let table = Fixture::open("checkpoints").json("names.json");
    let mut all: BTreeMap<String, Tensor> = BTreeMap::new();
    for (component, entry) in table[model].as_object().ok_or("no such model")? {
        let prefix = entry["prefix"].as_str().ok_or("no prefix")?;
        let own = tensors(model, component)?;
        // Rows come in the order of their numbers.
        let mut rows: Vec<(&String, &Value)> = entry["names"].as_object().ok_or("no names")?.iter().collect();
        rows.sort_by_key(|(_, place)| place[1].as_str());
        for (name, place) in rows {
            let (ty, bytes) = own[name].clone();
            let original = format!("{prefix}{}", place[0].as_str().ok_or("no name")?);
            let (ty, bytes) = match place[1].as_str() {
                Some("1x1") => (TensorType::new(ty.dtype, [&ty.shape[..], &[1, 1]].concat()), bytes),
                Some("transposed") => transposed(&ty, &bytes),
                Some(_) => {
                    let (joined, before) = all.remove(&original).unwrap_or_else(|| {
                        (TensorType::new(ty.dtype, [&[0], &ty.shape[1..]].concat()), Vec::new())
                    });
                    let shape = [&[joined.shape[0] + ty.shape[0]], &ty.shape[1..]].concat();
                    (TensorType::new(ty.dtype, shape), [before, bytes].concat())
                }
                None => (ty, bytes),
            };
            all.insert(original, (ty, bytes));
        }
    }
    Ok(all)
}

fn transposed(ty: &TensorType, bytes: &[u8]) -> Tensor {
    let (rows, columns, size) = (ty.shape[0], ty.shape[1], ty.dtype.bits() / 8);
    let at = |row: usize, column: usize| &bytes[(row * columns + column) * size..][..size];
    let moved = (0..columns).flat_map(|column| (0..rows).flat_map(move |row| at(row, column).to_vec()));
    (TensorType::new(ty.dtype, [columns, rows]), moved.collect())
}

fn write(path: &Path, tensors: &BTreeMap<String, Tensor>, metadata: &[(&str, &str)]) -> Result<(), Error> {
    let metadata = metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|(name, (ty, _))| TensorSpec { name: name.clone(), ty: ty.clone() }).collect();
    Ok(safetensors::write(path, &metadata, &specs, |index, writer| {
        writer.write_all(&tensors[&specs[index].name].1)
    })?)
}

/// The configurations of a model, without weights.
fn configuration(scratch: &Scratch, model: &str) -> Result<PathBuf, Error> {
    let copy = scratch.path().join(format!("{model}-config"));
    if !copy.is_dir() {
        copy_tree(&pipeline(model), &copy)?;
        for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
            for name in ["diffusion_pytorch_model.safetensors", "model.safetensors"] {
                let _ = fs::remove_file(copy.join(component).join(name));
            }
        }
    }
    Ok(copy)
}

/// Checks that every tensor of two models is the same.
fn same(a: &OpenedModel, b: &OpenedModel, model: &str) -> Result<(), Error> {
    for component in ["unet", "vae", "text_encoder", "text_encoder_2"] {
        let has = a.files().component(component).is_some();
        assert_eq!(has, b.files().component(component).is_some(), "{model}: {component}");
        if !has {
            continue;
        }
        let [own, other] = [a, b].map(|model| model.files().weights(component));
        let (own, other) = (own.map_err(|it| it.to_string())?, other.map_err(|it| it.to_string())?);
        for name in other.names().into_iter().filter(|name| !name.ends_with("position_ids")) {
            // transformers 5 leaves out a prefix that original files have.
            let full = format!("text_model.{name}");
            let mine = own.get(name).or_else(|| own.get(&full)).ok_or(format!("{component}: {name}"))?;
            let theirs = other.get(name).ok_or("listed")?;
            assert_eq!(mine.ty(), theirs.ty(), "{component}: {name}");
            assert!(mine.read()? == theirs.read()?, "{component}: {name} has other values");
        }
    }
    Ok(())
}

fn mixbit(directory: &Path, arguments: &[&str]) -> Result<Output, Error> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mixbit"));
    command.current_dir(directory).args(arguments).env_remove("MIXBIT_MODEL").stdin(Stdio::null());
    Ok(command.output()?)
}

/// The picture of a model, and what was said.
fn drawn(scratch: &Scratch, model: &Path, more: &[&str]) -> Result<(Vec<u8>, String), Error> {
    let path = model.to_string_lossy();
    let common = ["generate", "a red circle", "--steps", "2", "--seed", "5", "-o", "-", "--model", &path];
    let output = mixbit(scratch.path(), &[&common[..], more].concat())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said.into());
    }
    let mut reader = png::Decoder::new(std::io::Cursor::new(output.stdout)).read_info()?;
    let mut pixels = vec![0; reader.output_buffer_size().ok_or("no size")?];
    reader.next_frame(&mut pixels)?;
    Ok((pixels, said))
}

#[test]
fn a_file_is_the_model_of_its_directory() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("single files");
    for model in MODELS {
        failures.case(model, || -> Result<(), Error> {
            let (path, config) =
                (scratch.path().join(format!("{model}.safetensors")), configuration(&scratch, model)?);
            write(&path, &original(model)?, &[])?;
            let options = OpenOptions { config: Some(config.clone()), ..OpenOptions::default() };
            let file = open(Some(&path), &options)?;
            let directory = open(Some(&pipeline(model)), &OpenOptions::default())?;
            same(&file, &directory, model)?;
            if model != "sd21" {
                let (own, said) = drawn(&scratch, &path, &["--config", &config.to_string_lossy()])?;
                assert!(own == drawn(&scratch, &pipeline(model), &[])?.0, "another picture");
                assert!(said.contains(&format!("{model}: SD")), "{said}");
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn other_forms_of_the_file_are_the_same_model() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("forms");
    let all = original("sd15").unwrap();
    let renamed = |from: &str, to: &str| -> BTreeMap<String, Tensor> {
        let rename = |name: &String| match name.strip_prefix(from) {
            Some(rest) => format!("{to}{rest}"),
            None => name.clone(),
        };
        all.iter().map(|(name, tensor)| (rename(name), tensor.clone())).collect()
    };
    let text = "cond_stage_model.transformer.";
    let positions = |ty: DType, bytes: Vec<u8>| {
        let mut all = all.clone();
        let name = format!("{text}text_model.embeddings.position_ids");
        all.insert(name, (TensorType::new(ty, [1, 77]), bytes));
        all
    };
    // Positions of old files are whole numbers, or rounded to floats; they are never used.
    let whole: Vec<u8> = (0..77i64).flat_map(i64::to_le_bytes).collect();
    let rounded: Vec<u8> = (0..77u32).flat_map(|it| ((it / 8 * 8) as f32).to_le_bytes()).collect();
    let mut averages = all.clone();
    let unet = "model.diffusion_model.";
    for (name, tensor) in &all {
        if let Some(rest) = name.strip_prefix(unet) {
            let wrong = (tensor.0.clone(), vec![0; tensor.1.len()]);
            averages.insert(name.clone(), wrong);
            let dotless = format!("model_ema.diffusion_model{}", rest.replace('.', ""));
            averages.insert(dotless, tensor.clone());
        }
    }
    let forms = [
        ("without-text-model", renamed(&format!("{text}text_model."), text), false),
        ("whole-positions", positions(DType::I64, whole), false),
        ("float-positions", positions(DType::F32, rounded), false),
        ("comfy", renamed(text, "text_encoders.clip_l.transformer."), false),
        ("bare-unet", renamed(unet, ""), false),
        ("averages", averages, true),
    ];
    let directory = open(Some(&pipeline("sd15")), &OpenOptions::default()).unwrap();
    for (form, tensors, use_ema) in forms {
        failures.case(form, || -> Result<(), Error> {
            let path = scratch.path().join(format!("{form}.safetensors"));
            write(&path, &tensors, &[])?;
            let config = Some(configuration(&scratch, "sd15")?);
            let options = OpenOptions { config, use_ema, ..OpenOptions::default() };
            same(&open(Some(&path), &options)?, &directory, form)
        });
    }
    failures.finish();
}

#[test]
fn a_unet_alone_is_completed_by_a_base() -> Result<(), Error> {
    let scratch = Scratch::new();
    let all = original("sd15")?;
    let unet = all.iter().filter(|(name, _)| name.starts_with("model.diffusion_model."));
    let unet: BTreeMap<String, Tensor> = unet.map(|(name, it)| (name.clone(), it.clone())).collect();
    let path = scratch.path().join("unet.safetensors");
    write(&path, &unet, &[])?;
    let (config, base) = (configuration(&scratch, "sd15")?, pipeline("sd15"));
    let (config, base_text) = (config.to_string_lossy().into_owned(), base.to_string_lossy());
    let refused = drawn(&scratch, &path, &["--config", &config]).unwrap_err().to_string();
    assert!(refused.contains("lacks") || refused.contains("safetensors is not there"), "{refused}");
    let (own, said) = drawn(&scratch, &path, &["--config", &config, "--base", &base_text])?;
    assert!(own == drawn(&scratch, &base, &[])?.0);
    assert!(said.contains("text_encoder from"), "{said}");
    Ok(())
}

#[test]
fn another_autoencoder_replaces_the_model_s_own() -> Result<(), Error> {
    let scratch = Scratch::new();
    let table = original("sd15")?;
    let vae = table.iter().filter_map(|(name, (ty, bytes))| {
        let bare = name.strip_prefix("first_stage_model.")?;
        // A brighter picture: the last bias is half a unit more.
        let bytes = match bare {
            "decoder.conv_out.bias" => brighter(ty.dtype, bytes),
            _ => bytes.clone(),
        };
        Some((bare.to_string(), (ty.clone(), bytes)))
    });
    let path = scratch.path().join("bright.safetensors");
    write(&path, &vae.collect(), &[])?;
    let (own, _) = drawn(&scratch, &pipeline("sd15"), &[])?;
    let (other, _) = drawn(&scratch, &pipeline("sd15"), &["--vae", &path.to_string_lossy()])?;
    let mean = |pixels: &[u8]| pixels.iter().map(|&it| f64::from(it)).sum::<f64>() / pixels.len() as f64;
    assert!(mean(&other) > mean(&own) + 10.0, "{} and {}", mean(&own), mean(&other));
    let (same, _) =
        drawn(&scratch, &pipeline("sd15"), &["--vae", &pipeline("sd15").join("vae").to_string_lossy()])?;
    assert!(same == own);
    Ok(())
}

fn brighter(dtype: DType, bytes: &[u8]) -> Vec<u8> {
    match dtype {
        DType::F32 => {
            let values = bytes.chunks_exact(4).map(|it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]));
            values.flat_map(|value| (value + 0.5).to_le_bytes()).collect()
        }
        _ => {
            let values = bytes.chunks_exact(2).map(|it| half::f16::from_le_bytes([it[0], it[1]]));
            values.flat_map(|value| half::f16::from_f32(value.to_f32() + 0.5).to_le_bytes()).collect()
        }
    }
}

#[test]
fn what_a_model_was_trained_for_is_told() {
    let scratch = Scratch::new();
    let mut failures = Failures::new("kinds");
    let key = |value: f32| (TensorType::new(DType::F32, [1]), value.to_le_bytes().to_vec());
    let marked = |names: &[(&str, f32)]| {
        let mut all = original("sdxl").unwrap();
        all.extend(names.iter().map(|(name, value)| (name.to_string(), key(*value))));
        all
    };
    let plain: &[(&str, &str)] = &[];
    for (case, tensors, metadata, said, scheduler) in [
        ("plain", marked(&[]), plain, "SDXL", &[("prediction_type", "epsilon")][..]),
        (
            "v",
            marked(&[("v_pred", 0.0)]),
            plain,
            "SDXL, v-prediction (marker keys)",
            &[("prediction_type", "v_prediction")],
        ),
        (
            "v-zero",
            marked(&[("v_pred", 0.0), ("ztsnr", 0.0)]),
            plain,
            "SDXL, v-prediction with zero-terminal SNR (marker keys)",
            &[("prediction_type", "v_prediction"), ("rescale_betas_zero_snr", "true")],
        ),
        (
            "cosxl",
            marked(&[("edm_vpred.sigma_max", 120.0), ("edm_vpred.sigma_min", 0.002)]),
            plain,
            "SDXL, EDM noise of 0.002 to 120, v-prediction (marker keys)",
            &[("_class_name", "EDMEulerScheduler"), ("sigma_max", "120.0"), ("sigma_min", "0.002")],
        ),
        (
            "metadata",
            marked(&[]),
            &[("modelspec.predict_key", "v")][..],
            "SDXL, v-prediction (metadata)",
            &[("prediction_type", "v_prediction")],
        ),
    ] {
        failures.case(case, || -> Result<(), Error> {
            let path = scratch.path().join(format!("{case}.safetensors"));
            write(&path, &tensors, metadata)?;
            let options =
                OpenOptions { config: Some(configuration(&scratch, "sdxl")?), ..OpenOptions::default() };
            let model = open(Some(&path), &options)?;
            let kind = model.opening().kind.as_deref().unwrap_or_default();
            assert!(kind.ends_with(said.strip_prefix("SDXL").unwrap_or(said)), "{kind}");
            let config =
                model.files().json("scheduler", "scheduler_config.json").map_err(|it| it.to_string())?;
            for (field, value) in scheduler {
                let found = config[*field].as_str().map_or(config[*field].to_string(), str::to_string);
                assert_eq!(&found, value, "{field}");
            }
            Ok(())
        });
    }
    failures.finish();
}

#[test]
fn files_that_are_no_model_are_named() -> Result<(), Error> {
    let scratch = Scratch::new();
    let tensor = || (TensorType::new(DType::F32, [1]), vec![0; 4]);
    let mut failures = Failures::new("other files");
    for (file, tensors, says) in [
        ("lora", &["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"][..], "a LoRA"),
        ("embedding", &["emb_params"], "--embedding"),
        ("control", &["control_model.input_hint_block.0.weight"], "a ControlNet"),
        ("unknown", &["some.weight"], "no network of Stable Diffusion (its first tensor is `some.weight`)"),
    ] {
        failures.case(file, || -> Result<(), Error> {
            let path = scratch.path().join(format!("{file}.safetensors"));
            write(&path, &tensors.iter().map(|name| (name.to_string(), tensor())).collect(), &[])?;
            let output = mixbit(scratch.path(), &["generate", "x", "--model", &path.to_string_lossy()])?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && error.contains(says), "{error}");
            Ok(())
        });
    }
    let directory = pipeline("sd15").to_string_lossy().into_owned();
    for option in ["--use-ema", "--config", "--base"] {
        let mut arguments = vec!["generate", "x", "--model", &directory, option];
        arguments.extend((option != "--use-ema").then_some(&*directory));
        failures.case(option, || -> Result<(), Error> {
            let output = mixbit(scratch.path(), &arguments)?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.code() == Some(1) && error.contains("single file"), "{error}");
            Ok(())
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn a_tensor_that_the_architecture_has_not_is_refused() -> Result<(), Error> {
    let scratch = Scratch::new();
    let mut all = original("sd15")?;
    let name = "model.diffusion_model.middle_block.1.transformer_blocks.0.fuser.linear.weight";
    all.insert(name.to_string(), (TensorType::new(DType::F32, [1]), vec![0; 4]));
    let path = scratch.path().join("gligen.safetensors");
    write(&path, &all, &[])?;
    let config = configuration(&scratch, "sd15")?.to_string_lossy().into_owned();
    let error = drawn(&scratch, &path, &["--config", &config]).unwrap_err().to_string();
    assert!(error.contains(name) && error.contains("it is another one"), "{error}");
    let mut of_diffusers = tensors("sd15", "unet")?;
    let extra = "mid_block.extra.weight";
    of_diffusers.insert(extra.to_string(), (TensorType::new(DType::F32, [1]), vec![0; 4]));
    let alone = scratch.path().join("extra.safetensors");
    write(&alone, &of_diffusers, &[])?;
    let base = pipeline("sd15").to_string_lossy().into_owned();
    let error = drawn(&scratch, &alone, &["--config", &config, "--base", &base]).unwrap_err().to_string();
    assert!(error.contains(extra) && error.contains("it is another one"), "{error}");
    all.remove(name);
    all.remove("model.diffusion_model.middle_block.1.norm.weight");
    write(&path, &all, &[])?;
    let error = drawn(&scratch, &path, &["--config", &config]).unwrap_err().to_string();
    assert!(error.contains("lacks 1 tensors") && error.contains("middle_block.1.norm.weight"), "{error}");
    Ok(())
}

#[test]
fn every_file_says_which_networks_it_has() -> Result<(), Error> {
    let scratch = Scratch::new();
    let path = scratch.path().join("sdxl.safetensors");
    write(&path, &original("sdxl")?, &[])?;
    let found = Original::find(std::sync::Arc::new(TensorFile::open(&path)?), &BTreeMap::new(), false)?;
    assert!(found.networks().eq(["unet", "vae", "text_encoder", "text_encoder_2"]));
    Ok(())
}
