//! Compares every network with PyTorch: the outputs of diffusers and transformers for the tiny checkpoints in
//! `fixtures/models/`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use mixbit_diffusion::arch::text_encoder::Outputs;
use mixbit_diffusion::arch::{
    self, AttentionImplementation, Config, GraphOptions, safety_checker, text_encoder, unet, vae,
};
use mixbit_engine::{Arithmetic, Backend, Options, Reference, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::Checkpoint;
use mixbit_mil::{Function, Weights, verify};
use mixbit_testkit::{Array, ErrorStats, Failures, Fixture};

/// The error tolerance, relative to the largest value of the tensor.
const TOLERANCE: f64 = 1e-4;

type Arrays = BTreeMap<String, Array>;
type Error = Box<dyn std::error::Error>;

/// A graph, its inputs and its expected outputs.
struct Run {
    function: Function,
    inputs: Vec<(String, Tensor)>,
    expected: Vec<(String, Vec<f32>)>,
}

#[test]
fn text_encoders_match_transformers() {
    check("text encoders", |kind, config, weights, inputs, outputs| match (kind, config) {
        ("text-encoder", Config::TextEncoder(config)) => {
            text_encoder_runs(config, weights, inputs, outputs).map(Some)
        }
        _ => Ok(None),
    });
}

#[test]
fn unets_match_diffusers() {
    check("UNets", |kind, config, weights, inputs, outputs| match (kind, config) {
        ("unet", Config::Unet(config)) => {
            let forms = [AttentionImplementation::Original, AttentionImplementation::SplitEinsum];
            let runs = forms.map(|attention| unet_run(config, weights, attention, inputs, outputs));
            runs.into_iter().collect::<Result<_, _>>().map(Some)
        }
        _ => Ok(None),
    });
}

#[test]
fn controlnets_match_diffusers() {
    check("ControlNets", |kind, config, weights, inputs, outputs| match (kind, config) {
        ("controlnet", Config::ControlNet(config)) => {
            let (options, inputs) = unet_inputs(&config.unet, inputs)?;
            let function = unet::control::build(config, weights, &options)?;
            let expected = outputs.iter().map(|(name, array)| (name.clone(), array.f32s())).collect();
            Ok(Some(vec![Run { function, inputs, expected }]))
        }
        _ => Ok(None),
    });
}

#[test]
fn attention_in_chunks_is_attention() -> Result<(), Error> {
    let fixture = Fixture::open("models");
    let config = unet::Config::from_json(&fixture.json("unet-sd21/config.json"))?;
    let weights = Checkpoint::open(&weights_file(&fixture.path("unet-sd21")))?;
    // 960 pixels at the finest level: a chunk of 512 and a partial one.
    let shape = [1, config.in_channels, 24, 40];
    let channels = config.text_channels.ok_or("no text")?;
    let wave = |shape: &[usize]| {
        let count: usize = shape.iter().product();
        Tensor::from_f32(shape, (0..count).map(|index| (index as f32 * 0.37).sin()).collect())
    };
    let inputs = [
        ("sample", wave(&shape)?),
        ("timestep", Tensor::from_f32(&[1], vec![301.0])?),
        ("encoder_hidden_states", wave(&[1, channels, 1, 77])?),
    ];
    let inputs = inputs.each_ref().map(|(name, tensor)| (*name, tensor));
    let run = |attention| {
        let size = GraphOptions { height: shape[2], width: shape[3], ..GraphOptions::default() };
        let function = unet::build(&config, &weights, &GraphOptions { attention, ..size })?;
        let result = Cpu::new(None)?.compile(&function, &Options::default())?.run(&inputs)?.swap_remove(0);
        let chunks = function.ops().iter().filter(|op| op.def.name == "slice_by_index").count();
        Ok::<_, Error>((result.into_f32().ok_or("no floats")?, chunks))
    };
    let (expected, _) = run(AttentionImplementation::Original)?;
    let (whole, few) = run(AttentionImplementation::SplitEinsum)?;
    let (chunked, many) = run(AttentionImplementation::SplitEinsumV2)?;
    assert!(many > few, "{many} slices, not more than {few}");
    for found in [whole, chunked] {
        ErrorStats::compare(&found, &expected).within(1e-5)?;
    }
    Ok(())
}

/// The graphs of packages: `fp16` around `fp32` sinusoids, run in wide precision and with every result
/// rounded.
#[test]
fn half_precision_unets_stay_close() {
    let cpu = Cpu::new(None).unwrap();
    let fixture = Fixture::open("models");
    let mut failures = Failures::new("UNets of fp16");
    for (name, label) in [
        ("unet-sd15", "b1-16x16-t999"),
        ("unet-sd21", "b2-16x24-t500.5+500.5"),
        ("unet-sdxl", "b1-16x16-t999"),
    ] {
        failures.case(name, || {
            let tensors = fixture.arrays(&format!("{name}.safetensors"));
            let prefix = format!("{label}/inputs/");
            let named = |(key, array): (&String, &Array)| {
                Some((key.strip_prefix(&prefix)?.to_string(), array.clone()))
            };
            let inputs: Arrays = tensors.iter().filter_map(named).collect();
            let config = unet::Config::from_json(&fixture.json(&format!("{name}/config.json")))?;
            let weights = Checkpoint::open(&weights_file(&fixture.path(name)))?;
            let (options, inputs) = unet_inputs(&config, &inputs)?;
            let function =
                unet::build(&config, &weights, &GraphOptions { dtype: mixbit_mil::DType::F16, ..options })?;
            let expected = tensors[&format!("{label}/outputs/sample")].f32s();
            let given: Vec<(&str, &Tensor)> =
                inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            for (arithmetic, least) in [(Arithmetic::F32, 90.0), (Arithmetic::AsDeclared, 50.0)] {
                let mut model = cpu.compile(&function, &Options { arithmetic, ..Options::default() })?;
                let result = model.run(&given)?.swap_remove(0);
                let psnr = ErrorStats::compare(result.as_f32().ok_or("no floats")?, &expected).psnr;
                if psnr < least {
                    return Err(format!("{psnr:.1} dB, less than {least}, {arithmetic:?}").into());
                }
            }
            Ok::<(), Error>(())
        });
    }
    failures.finish();
}

#[test]
fn autoencoders_match_diffusers() {
    check("autoencoders", |kind, config, weights, inputs, outputs| match (kind, config) {
        ("vae-decoder" | "vae-encoder", Config::Vae(config)) => {
            vae_run(config, weights, inputs, outputs).map(|run| Some(vec![run]))
        }
        _ => Ok(None),
    });
}

#[test]
fn safety_checkers_match_diffusers() {
    check("safety checkers", |kind, config, weights, inputs, outputs| match (kind, config) {
        ("safety-checker", Config::SafetyChecker(config)) => {
            let &[batch, height, width, _] = &inputs["images"].shape[..] else {
                return Err("images without four axes".into());
            };
            let options = GraphOptions { batch, ..GraphOptions::default() };
            let given = inputs.iter().map(|(name, array)| Ok((name.clone(), tensor(array)?)));
            Ok(Some(vec![Run {
                function: safety_checker::build(config, weights, &options, [height, width])?,
                inputs: given.collect::<Result<_, Error>>()?,
                expected: outputs.iter().map(|(name, array)| (name.clone(), array.f32s())).collect(),
            }]))
        }
        _ => Ok(None),
    });
}

/// Runs every case that `prepare` accepts on every backend.
fn check(
    table: &str,
    prepare: impl Fn(&str, &Config, &dyn Weights, &Arrays, &Arrays) -> Result<Option<Vec<Run>>, Error>,
) {
    let fixture = Fixture::open("models");
    let cpu = Cpu::new(None).unwrap();
    let backends: [&dyn Backend; 2] = [&Reference, &cpu];
    let mut failures = Failures::new(table);
    for case in fixture.json("cases.json")["cases"].as_array().unwrap() {
        let text = |field: &str| case[field].as_str().unwrap();
        let config = fixture.json(&format!("{}/config.json", text("dir")));
        let class = config["_class_name"].as_str().or_else(|| config["architectures"][0].as_str()).unwrap();
        let tensors = fixture.arrays(text("tensors"));
        let arrays = |field: &str| -> Arrays {
            let keys = case[field].as_object().unwrap().iter();
            keys.map(|(name, key)| (name.clone(), tensors[key.as_str().unwrap()].clone())).collect()
        };
        let prepared = arch::lookup(class)
            .and_then(|class| class.config(&config))
            .map_err(Error::from)
            .and_then(|config| {
                let weights = Checkpoint::open(&weights_file(&fixture.path(text("dir"))))?;
                prepare(text("kind"), &config, &weights, &arrays("inputs"), &arrays("outputs"))
            });
        match prepared {
            Ok(None) => {}
            Ok(Some(runs)) => {
                for backend in backends {
                    failures.case(&format!("{} on {}", text("key"), backend.name()), || {
                        runs.iter().try_for_each(|run| run_on(backend, run))
                    });
                }
            }
            Err(error) => failures.case(text("key"), || Err(error)),
        }
    }
    failures.finish();
}

/// The weights of a checkpoint folder: the index of its shards, or its only file.
fn weights_file(folder: &Path) -> PathBuf {
    let names = || std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let ends = |end: &'static str| move |path: &PathBuf| path.to_string_lossy().ends_with(end);
    names().find(ends(".index.json")).or_else(|| names().find(ends(".safetensors"))).unwrap()
}

fn run_on(backend: &dyn Backend, run: &Run) -> Result<(), Error> {
    verify(&run.function)?;
    let mut model = backend.compile(&run.function, &Options::default())?;
    let inputs: Vec<(&str, &Tensor)> =
        run.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let results = model.run(&inputs)?;
    for (name, expected) in &run.expected {
        let index = model.output_index(name).ok_or_else(|| format!("no output `{name}`"))?;
        let found = results[index].as_f32().ok_or("an output that is not of floats")?;
        ErrorStats::compare(found, expected).within(TOLERANCE).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

fn tensor(array: &Array) -> Result<Tensor, Error> {
    Ok(Tensor::from_f32(&array.shape, array.f32s())?)
}

fn text_encoder_runs(
    config: &text_encoder::Config,
    weights: &dyn Weights,
    inputs: &Arrays,
    outputs: &Arrays,
) -> Result<Vec<Run>, Error> {
    let ids = &inputs["input_ids"];
    let options = GraphOptions { batch: ids.shape[0], tokens: ids.shape[1], ..GraphOptions::default() };
    let pooled = if config.projection_dim.is_some() { "text_embeds" } else { "pooler_output" };
    let variants = [
        (Outputs::LAST, "last_hidden_state"),
        (Outputs::PENULTIMATE, "penultimate_hidden_state"),
        (Outputs { pooled: false, ..Outputs::PENULTIMATE }, "penultimate_hidden_state"),
    ];
    let run = |(variant, hidden): (Outputs, &str)| {
        let mut expected = vec![(variant.hidden_name().to_string(), outputs[hidden].f32s())];
        if variant.pooled {
            expected.push(("pooled_outputs".to_string(), outputs[pooled].f32s()));
        }
        Ok(Run {
            function: text_encoder::build(config, weights, &options, variant)?,
            inputs: vec![("input_ids".to_string(), tensor(ids)?)],
            expected,
        })
    };
    variants.into_iter().map(run).collect()
}

fn unet_run(
    config: &unet::Config,
    weights: &dyn Weights,
    attention: AttentionImplementation,
    inputs: &Arrays,
    outputs: &Arrays,
) -> Result<Run, Error> {
    let (options, inputs) = unet_inputs(config, inputs)?;
    let expected = vec![("noise_pred".to_string(), outputs["sample"].f32s())];
    let function = unet::build(config, weights, &GraphOptions { attention, ..options })?;
    Ok(Run { function, inputs, expected })
}

/// The options and the inputs of a UNet's or a ControlNet's case.
fn unet_inputs(
    config: &unet::Config,
    inputs: &Arrays,
) -> Result<(GraphOptions, Vec<(String, Tensor)>), Error> {
    let shape = &inputs["sample"].shape;
    let mut options =
        GraphOptions { batch: shape[0], height: shape[2], width: shape[3], ..GraphOptions::default() };
    let mut given = Vec::new();
    for (name, array) in inputs {
        match name.as_str() {
            "timesteps" => given.push(("timestep".to_string(), tensor(array)?)),
            "encoder_hidden_states" => {
                options.tokens = array.shape[1];
                given.push((name.clone(), channels_first(array)?));
            }
            _ => {
                options.control_residuals |= name.starts_with("additional_residual");
                if name == "time_ids" {
                    options.time_ids = array.shape[1];
                }
                given.push((name.clone(), tensor(array)?));
            }
        }
    }
    if let Some(text) = inputs.get("text_embeds") {
        assert_eq!(config.time_id_count(text.shape[1])?, Some(options.time_ids));
    }
    Ok((options, given))
}

/// (batch, tokens, channels) as (batch, channels, 1, tokens).
fn channels_first(array: &Array) -> Result<Tensor, Error> {
    let &[batch, tokens, channels] = &array.shape[..] else {
        return Err("text states without three axes".into());
    };
    let values = array.f32s();
    let mut moved = Vec::with_capacity(values.len());
    for image in 0..batch {
        for channel in 0..channels {
            moved.extend((0..tokens).map(|token| values[(image * tokens + token) * channels + channel]));
        }
    }
    Ok(Tensor::from_f32(&[batch, channels, 1, tokens], moved)?)
}

fn vae_run(
    config: &vae::Config,
    weights: &dyn Weights,
    inputs: &Arrays,
    outputs: &Arrays,
) -> Result<Run, Error> {
    let (input, scale, array) = match inputs.get("z") {
        Some(latent) => ("z", 1, latent),
        None => ("x", config.scale(), &inputs["image"]),
    };
    let options = GraphOptions {
        batch: array.shape[0],
        height: array.shape[2] / scale,
        width: array.shape[3] / scale,
        ..GraphOptions::default()
    };
    let (function, output, expected) = match input {
        "z" => (vae::build_decoder(config, weights, &options)?, "image", &outputs["image"]),
        _ => (vae::build_encoder(config, weights, &options)?, "latent", &outputs["moments"]),
    };
    Ok(Run {
        function,
        inputs: vec![(input.to_string(), tensor(array)?)],
        expected: vec![(output.to_string(), expected.f32s())],
    })
}
