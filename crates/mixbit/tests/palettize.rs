//! `mixbit palettize` and `mixbit convert --quantize-nbits`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use mixbit_app::source::load;
use mixbit_compress::{Layer, Scheme, Width, layers};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::random_source;
use mixbit_diffusion::session::{Cancel, Request, Session, Text};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::coreml;
use mixbit_mil::{Constant, constexpr};
use mixbit_testkit::{ErrorStats, Failures, Scratch, copy_tree, fixture_root};
use serde_json::{Map, Value, json};

type Error = Box<dyn std::error::Error>;

const PROMPT: &str = "a small red circle above a large blue square on a white background";

const UNET: &str = "Stable_Diffusion_version_demo_unet.mlpackage";

fn mixbit(arguments: &[&str]) -> Result<String, Error> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_mixbit")).args(arguments).env_remove("MIXBIT_MODEL").output()?;
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout)?),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

fn text(path: &Path) -> Result<&str, Error> {
    path.to_str().ok_or_else(|| "the path is not UTF-8".into())
}

/// Palettizes, and gives what was printed.
fn palettize(model: &Path, output: &Path, options: &[&str]) -> Result<String, Error> {
    let paths = ["palettize", "--model", text(model)?, "--output", text(output)?];
    mixbit(&[&paths[..], options].concat())
}

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/demo")
}

fn draw(model: &DiffusionModel, size: [usize; 2]) -> Result<Vec<f32>, Error> {
    let request = Request { steps: 4, size, ..Request::new(model, Text::new(PROMPT)).unwrap() };
    let mut session = Session::new(Arc::new(model.clone()), Arc::new(Cpu::new(None)?));
    let mut noise = random_source("torch")?.seeded(93)?;
    Ok(session.generate(&request, &mut *noise, &Cancel::default(), &mut |_| {})?.planes)
}

fn packaged_layers(package: &Path) -> Result<Vec<Layer>, Error> {
    let model = coreml::read(package)?;
    Ok(layers(&constexpr::decoded(model.program.main().ok_or("no function")?)?))
}

/// A recipe of the demo model's UNet: bits by turns.
fn recipe(layers: &[Layer]) -> Map<String, Value> {
    let turns = [4, 6, 16, 2, 8, 1];
    layers
        .iter()
        .enumerate()
        .map(|(index, layer)| (layer.name.clone(), json!(turns[index % turns.len()])))
        .collect()
}

fn recipe_file(scratch: &Scratch, layers: &Map<String, Value>) -> PathBuf {
    let file = json!({"model_version": "demo", "recipes": {"recipe_4.50_bit_mixedpalette": layers}});
    scratch.file("recipe.json", file.to_string().as_bytes())
}

#[test]
fn layers_are_what_they_were_compressed_to() -> Result<(), Error> {
    let scratch = Scratch::new();
    let plain = scratch.path().join("plain");
    let options =
        ["--convert-unet", "--convert-vae-decoder", "--min-deployment-target", "macOS15", "--quiet"];
    let (model, output) = (demo(), text(&plain)?.to_string());
    mixbit(&[&["convert", "--model", text(&model)?, "--output", &output][..], &options].concat())?;
    let expected = packaged_layers(&plain.join(UNET))?;
    let mut failures = Failures::new("schemes");
    for name in
        ["palette-1", "palette-3", "grouped-palette-4", "scaled-palette-2", "int8-palette-6", "linear-8"]
    {
        failures.case(name, || {
            let scheme: Scheme = name.parse()?;
            let output = scratch.path().join(name);
            let printed = palettize(&plain, &output, &["--scheme", name, "--min-size", "5000"])?;
            if !printed.contains("each decoded again and right") || !printed.contains("worst layers") {
                return Err(printed.into());
            }
            for (found, source) in packaged_layers(&output.join(UNET))?.iter().zip(&expected) {
                let is_small = source.count() <= 5000;
                let should =
                    if is_small { source.weight.clone() } else { scheme.encode(&source.weight, None)? };
                if found.weight.read()? != should.read()? || found.weight.encoding().is_none() != is_small {
                    return Err(format!("{} is something else", found.name).into());
                }
            }
            let decoder = "Stable_Diffusion_version_demo_vae_decoder.mlpackage";
            let weights = Path::new("Data/com.apple.CoreML/weights/weight.bin");
            let is_kept =
                fs::read(plain.join(decoder).join(weights))? == fs::read(output.join(decoder).join(weights))?;
            if is_kept { Ok::<(), Error>(()) } else { Err("the decoder changed".into()) }
        });
    }
    failures.finish();
    Ok(())
}

#[test]
fn palettized_bundles_draw_nearly_the_same_picture() -> Result<(), Error> {
    let scratch = Scratch::new();
    let model = load(None, &Default::default())?.model;
    // Not 160x72, where rounding to f16 alone changes the picture a lot.
    let expected = [draw(&model, [128, 128])?, draw(&model, [144, 72])?];
    let mut before = [0.0; 2];
    for (nbits, least) in [("4", 14.0), ("8", 36.0)] {
        let output = scratch.path().join(nbits);
        palettize(&demo(), &output, &["--nbits", nbits])?;
        let found = load(Some(&output), &Default::default())?.model;
        let drawn = [draw(&found, [128, 128])?, draw(&found, [144, 72])?];
        let psnr = [0, 1].map(|at| ErrorStats::compare(&drawn[at], &expected[at]).psnr);
        assert!(psnr[0] > least, "{nbits} bits: {psnr:.1?} dB");
        assert!(psnr[0] > before[0] && psnr[1] > before[1], "{nbits} bits: {psnr:.1?} dB after {before:.1?}");
        before = psnr;
    }
    assert!(before[1] > 20.0, "another size: {:.1} dB", before[1]);
    Ok(())
}

#[test]
fn converting_with_bits_is_converting_and_palettizing() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (model, once, twice) = (demo(), scratch.path().join("once"), scratch.path().join("twice"));
    let said = Command::new(env!("CARGO_BIN_EXE_mixbit"))
        .args([
            "convert",
            "--quantize-nbits",
            "2",
            "--check-output-correctness",
            "--convert-unet",
            "--chunk-unet",
        ])
        .args(["--bundle-resources-for-swift-cli", "--model", text(&model)?, "--output", text(&once)?])
        .output()?;
    let stderr = String::from_utf8(said.stderr)?;
    assert!(said.status.success() && stderr.contains("PSNR"), "{stderr}");
    palettize(&model, &twice, &["--nbits", "2", "--chunk-unet"])?;
    for chunk in ["Stable_Diffusion_version_demo_unet_chunk1", "Stable_Diffusion_version_demo_unet_chunk2"] {
        for file in ["model.mlmodel", "weights/weight.bin"] {
            let path = format!("{chunk}.mlpackage/Data/com.apple.CoreML/{file}");
            assert!(fs::read(once.join(&path))? == fs::read(twice.join(&path))?, "{path}");
        }
    }
    let compiled = packaged_layers(&once.join("Resources/UnetChunk1.mlmodelc"))?;
    assert!(compiled.iter().filter(|layer| layer.weight.encoding().is_some()).count() > 30);
    let error = mixbit(&["convert", "--demo", "--quantize-nbits", "3", "--output", text(&once)?])
        .unwrap_err()
        .to_string();
    assert!(error.contains("3 bits need --min-deployment-target macOS15"), "{error}");
    Ok(())
}

/// The demo model with other values: the last bit of every weight of the UNet is turned over.
fn fine_tune(scratch: &Scratch) -> Result<PathBuf, Error> {
    let tuned = scratch.path().join("tuned");
    copy_tree(&demo(), &tuned)?;
    let path = tuned.join("unet/diffusion_pytorch_model.safetensors");
    let mut bytes = fs::read(&path)?;
    let header = u64::from_le_bytes(bytes[..8].try_into()?) as usize;
    bytes[8 + header..].as_chunks_mut::<2>().0.iter_mut().for_each(|half| half[0] ^= 1);
    fs::write(path, bytes)?;
    Ok(tuned)
}

#[test]
fn recipes_fit_fine_tunes_and_no_other_model() -> Result<(), Error> {
    let scratch = Scratch::new();
    let plain = scratch.path().join("plain");
    mixbit(&["convert", "--model", text(&demo())?, "--output", text(&plain)?, "--convert-unet"])?;
    let source = packaged_layers(&plain.join(UNET))?;
    let recipe = recipe(&source);
    let file = recipe_file(&scratch, &recipe);
    let options = ["--recipe", text(&file)?, "--select", "4.50"];
    let bits = |package: &Path| -> Result<BTreeMap<String, u64>, Error> {
        let encoded = packaged_layers(package)?.into_iter().map(|layer| {
            let bits = 8.0 * layer.weight.stored_len() as f64 / layer.count() as f64;
            let known = Width::ALL.iter().map(|width| u64::from(width.bits()));
            // Tables are at most as large as the indices of the least layer.
            let bits =
                known.rev().find(|&known| known as f64 <= bits).filter(|_| layer.weight.encoding().is_some());
            (layer.name, bits.unwrap_or(16))
        });
        Ok(encoded.collect())
    };
    let tuned = fine_tune(&scratch)?;
    for (name, model) in [("demo", demo()), ("tuned", tuned), ("package", plain.join(UNET))] {
        let output = scratch.path().join(format!("by recipe, {name}"));
        palettize(&model, &output, &options)?;
        let package = fs::read_dir(&output)?.filter_map(Result::ok).map(|entry| entry.path());
        let package = package.into_iter().find(|path| path.to_string_lossy().ends_with("_unet.mlpackage"));
        let package = package.ok_or("no UNet was written")?;
        let found = bits(&package)?;
        for (layer, expected) in &recipe {
            let (found, count) =
                (found[layer], source.iter().find(|it| it.name == *layer).map_or(0, Layer::count));
            // The tables of tiny layers are larger than their indices.
            assert!(
                found == expected.as_u64().unwrap() || count < 4096,
                "{name}, {layer}: {found}, not {expected}"
            );
        }
        let noted = coreml::read(&package)?.metadata.user_defined;
        assert!(noted["mixbit.recipe"].starts_with("recipe_4.50_bit_mixedpalette "), "{noted:?}");
        let encoder = output.join("Stable_Diffusion_version_demo_text_encoder.mlpackage");
        assert!(!encoder.exists() || bits(&encoder)?.values().all(|&bits| bits == 16));
    }

    let other = fixture_root().join("pipelines/sd15");
    let output = scratch.path().join("other");
    let error = palettize(&other, &output, &options).unwrap_err().to_string();
    assert!(
        error.contains("error: unet: the model lacks ") && error.contains(" more; the recipe is for another"),
        "{error}"
    );
    assert!(
        !output.exists() || fs::read_dir(&output)?.all(|entry| !entry.is_ok_and(|it| it.path().is_dir()))
    );
    Ok(())
}

#[test]
fn packages_of_apples_converter_are_matched_by_their_constants() -> Result<(), Error> {
    let scratch = Scratch::new();
    let package = fixture_root().join("coreml/unet_sd15s_split_einsum.mlpackage");
    let chosen =
        json!({"conv_in": 16, "down_blocks.0.resnets.0.conv1": 4, "mid_block.resnets.0.time_emb_proj": 6});
    let file = recipe_file(&scratch, chosen.as_object().unwrap());
    let output = scratch.path().join("Unet.mlpackage");
    let printed = palettize(&package, &output, &["--recipe", text(&file)?, "--select", "recipe"])?;
    assert!(printed.contains("2 layers palettized"), "{printed}");
    for layer in packaged_layers(&output)? {
        let is_chosen = ["down_blocks_0_resnets_0_conv1_w", "mid_block_resnets_0_time_emb_proj_w"]
            .iter()
            .any(|name| layer.name.starts_with(name));
        assert_eq!(layer.weight.encoding().is_some(), is_chosen, "{}", layer.name);
    }
    let file = recipe_file(&scratch, json!({"conv_in": 8, "conv_on": 8}).as_object().unwrap());
    let again = scratch.path().join("again");
    let error = palettize(&package, &again, &["--recipe", text(&file)?, "--select", "recipe"]).unwrap_err();
    assert!(error.to_string().contains("lacks 1 of the recipe's 2 layers: conv_on"), "{error}");
    Ok(())
}

#[test]
fn packages_without_names_are_matched_by_their_graphs() -> Result<(), Error> {
    let scratch = Scratch::new();
    let (model, plain) = (demo(), scratch.path().join("plain"));
    mixbit(&["convert", "--model", text(&model)?, "--output", text(&plain)?, "--convert-unet", "--quiet"])?;
    let mut package = coreml::read(&plain.join(UNET))?;
    let names: Vec<String> =
        packaged_layers(&plain.join(UNET))?.into_iter().map(|layer| layer.name).collect();
    for function in &mut package.program.functions {
        let renamed = function.map_constants(|id, constant| {
            let Constant::Weight(weight) = constant else { return Ok::<_, Infallible>(None) };
            Ok(Some(Constant::Weight(weight.renamed(&format!("c{}", id.index())))))
        });
        let Ok(()) = renamed;
    }
    let nameless = scratch.path().join("nameless.mlpackage");
    coreml::write_package(&nameless, &package, &())?;
    let found = packaged_layers(&nameless)?;
    assert!(found.iter().all(|layer| layer.name.starts_with('c') && !layer.name.contains('.')));
    let bits = recipe(&packaged_layers(&plain.join(UNET))?);
    let file = recipe_file(&scratch, &bits);
    let options = ["--recipe", text(&file)?, "--select", "recipe"];
    let output = scratch.path().join("Unet.mlpackage");
    let error = palettize(&nameless, &output, &options).unwrap_err().to_string();
    assert!(error.contains("--like CHECKPOINT"), "{error}");
    palettize(&nameless, &output, &[&options[..], &["--like", text(&model)?]].concat())?;
    let by_name = scratch.path().join("named.mlpackage");
    palettize(&plain.join(UNET), &by_name, &options)?;
    for ((name, a), b) in names.iter().zip(packaged_layers(&output)?).zip(packaged_layers(&by_name)?) {
        assert_eq!(a.weight.read()?, b.weight.read()?, "{name}");
        assert_eq!(a.weight.encoding().is_some(), b.weight.encoding().is_some(), "{name}");
    }
    let other = fixture_root().join("pipelines/sd15");
    let fresh = scratch.path().join("fresh.mlpackage");
    let error = palettize(&nameless, &fresh, &[&options[..], &["--like", text(&other)?]].concat());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("another architecture") && !fresh.exists(), "{error}");
    Ok(())
}

#[test]
fn what_can_not_be_done_is_said() -> Result<(), Error> {
    let scratch = Scratch::new();
    let package = fixture_root().join("coreml/unet_sd15s_split_einsum.mlpackage");
    let compressed = fixture_root().join("coreml/unet_sdxl_split_einsum__pal2.mlpackage");
    let truncated = scratch.file("cut.json", br#"{"model_version": "m", "recipes": {"a": {"conv_in""#);
    let illegal =
        scratch.file("illegal.json", br#"{"model_version": "m", "recipes": {"a": {"conv_in": 7}}}"#);
    let fine =
        scratch.file("fine.json", br#"{"model_version": "m", "recipes": {"a4": {"conv_in": 6}, "b4": {}}}"#);
    let file = scratch.file("file", b"");
    let (truncated, illegal, fine) = (text(&truncated)?, text(&illegal)?, text(&fine)?);
    let out = scratch.path().join("out");
    let cases: [(&Path, &Path, &[&str], &str); 12] = [
        (&package, &out, &[], "the following required arguments were not provided"),
        (&package, &out, &["--nbits", "5"], "there are 1, 2, 3, 4, 6, 8 bits"),
        (&package, &out, &["--nbits", "4", "--scheme", "linear-8"], "cannot be used with"),
        (&package, &out, &["--scheme", "palette-5"], "[one of palette-1"),
        (&package, &out, &["--recipe", fine], "--select"),
        (
            &package,
            &out,
            &["--recipe", truncated, "--select", "a"],
            "cut.json: the text ends at line 1, column 50",
        ),
        (&package, &out, &["--recipe", illegal, "--select", "a"], "layer `conv_in`: 7 is no width"),
        (
            &package,
            &out,
            &["--recipe", fine, "--select", "c"],
            "fine.json: no recipe is called `c`; the file has a4, b4",
        ),
        (&package, &out, &["--nbits", "3"], "palette-3 needs macOS15, and the package is for macOS13"),
        (&compressed, &out, &["--nbits", "4"], "are compressed already"),
        (&package, &package, &["--nbits", "4", "--force"], "is what is read: choose another output"),
        (&package, &file, &["--nbits", "4"], "the directory"),
    ];
    let mut failures = Failures::new("errors");
    for (model, output, options, expected) in cases {
        failures.case(expected, || match palettize(model, output, options) {
            Err(error) if error.to_string().contains(expected) => Ok(()),
            Err(error) => Err(error.to_string()),
            Ok(printed) => Err(printed),
        });
    }
    failures.finish();
    assert!(!out.exists() || fs::read_dir(&out)?.next().is_none());
    let again = palettize(&compressed, &out, &["--nbits", "1", "--force"])?;
    assert!(again.contains(" 1.") && again.contains("palettized"), "{again}");
    let error = palettize(&package, &out, &["--nbits", "4"]).map(|_| ());
    assert!(error.is_ok(), "{error:?}");
    let error = palettize(&package, &out, &["--nbits", "2"]).unwrap_err().to_string();
    assert!(
        error.contains("it is palettized by palette-4, and would be palettized by palette-2: choose another")
            && error.contains("--force"),
        "{error}"
    );
    Ok(())
}

/// The bytes of every file below a directory.
fn tree(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, Error> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(tree(&path)?),
            false => drop(found.insert(path.clone(), fs::read(&path)?)),
        }
    }
    Ok(found)
}

fn relative(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, Error> {
    let cut = |(path, bytes): (PathBuf, Vec<u8>)| Ok((path.strip_prefix(directory)?.to_path_buf(), bytes));
    tree(directory)?.into_iter().map(cut).collect()
}

#[cfg(unix)]
#[test]
fn a_kill_leaves_nothing_that_looks_complete() -> Result<(), Error> {
    let scratch = Scratch::new();
    let whole = scratch.path().join("whole");
    palettize(&demo(), &whole, &["--nbits", "2"])?;
    let expected = relative(&whole)?;
    let killed = scratch.path().join("killed");
    let mut interrupted = 0;
    for delay in [30, 150, 400, 800] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mixbit"))
            .args([
                "palettize",
                "--nbits",
                "2",
                "--quiet",
                "--model",
                text(&demo())?,
                "--output",
                text(&killed)?,
            ])
            .stdout(Stdio::null())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        child.kill()?;
        interrupted += usize::from(!child.wait()?.success());
        let visible =
            fs::read_dir(&killed).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
        for package in
            visible.filter(|path| path.extension().is_some_and(|extension| extension == "mlpackage"))
        {
            packaged_layers(&package)?;
        }
    }
    assert!(interrupted > 0, "no run was killed");
    palettize(&demo(), &killed, &["--nbits", "2"])?;
    assert!(
        relative(&killed)? == expected,
        "what a killed run left was taken for complete, or was not removed"
    );
    Ok(())
}

/// A disk that is full is played by a limit on the size of files, which by itself would end the process.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_that_leaves_nothing() -> Result<(), Error> {
    let scratch = Scratch::new();
    let output = scratch.path().join("out");
    let script = "ulimit -f 64; exec \"$0\" palettize --nbits 8 --model \"$1\" --output \"$2\"";
    let run = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_mixbit"), text(&demo())?, text(&output)?])
        .output()?;
    let error = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success() && error.contains("error: ") && error.contains("can't write"), "{error}");
    let left: Vec<PathBuf> =
        fs::read_dir(&output)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    assert!(left.iter().all(|path| path.is_file()), "{left:?}");
    Ok(())
}
