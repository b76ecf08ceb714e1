//! Any bytes as a component's `config.json` and as `scheduler_config.json`: no panic, no hang, graphs that
//! are built are valid, and schedulers that are built stay finite.
#![no_main]

use mixbit_diffusion::arch::text_encoder::{self, Outputs};
use mixbit_diffusion::arch::{
    ARCHITECTURES, ArchError, AttentionImplementation, Config, GraphOptions, required_tensors,
    safety_checker, unet, vae,
};
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::scheduler::{SCHEDULERS, SchedulerConfig, StepInput};
use mixbit_formats::Diffusers;
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use mixbit_mil::{Bytes, DType, Function, Weights, verify};
use serde_json::{Value, json};

/// More layers than this only take longer.
const MOST_LAYERS: usize = 64;
/// More heads than this, each by itself, only take longer.
const MOST_HEADS: usize = 64;
/// More training timesteps than this only take longer.
const MOST_TIMESTEPS: usize = 2000;

fuzz_target!(|file: &[u8]| {
    let index: &[u8] = br#"{"_class_name": "P"}"#;
    let files = [("model_index.json", index), ("part/config.json", file)];
    let files = files.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes.to_vec())));
    let model = Diffusers::from_files("fuzz", files).expect("the index is sound");
    let Ok(json) = model.config("part") else { return };
    for architecture in ARCHITECTURES {
        if let Ok(config) = architecture.config(&json)
            && layers(&config) <= MOST_LAYERS
        {
            for options in options(&config) {
                build(&config, &options);
            }
        }
    }
    if let Ok(config) = SchedulerConfig::from_json(&json)
        && config.training_steps() <= MOST_TIMESTEPS
    {
        run(&config);
        for entry in SCHEDULERS {
            if let Ok(config) = config.with_scheduler(entry.name) {
                run(&config);
            }
        }
    }
});

/// The usual size; an odd one with every option on; and one that does not fit into memory.
fn options(config: &Config) -> [GraphOptions; 3] {
    let odd = GraphOptions {
        batch: 2,
        height: 9,
        width: 7,
        tokens: 3,
        dtype: DType::F16,
        control_residuals: true,
        ..GraphOptions::default()
    };
    let huge = GraphOptions { height: 1 << 20, width: 1 << 20, tokens: 2048, ..GraphOptions::default() };
    let split = heads(config) <= MOST_HEADS;
    [
        GraphOptions::default(),
        match split {
            true => GraphOptions { attention: AttentionImplementation::SplitEinsum, ..odd },
            false => odd,
        },
        match split {
            true => GraphOptions { attention: AttentionImplementation::SplitEinsumV2, ..huge },
            false => huge,
        },
    ]
}

/// The UNet of a configuration, or of a ControlNet's.
fn unet_of(config: &Config) -> Option<&unet::Config> {
    match config {
        Config::Unet(config) => Some(config),
        Config::ControlNet(config) => Some(&config.unet),
        Config::TextEncoder(_) | Config::Vae(_) | Config::SafetyChecker(_) => None,
    }
}

/// The attention of every level of a UNet and of its middle.
fn attention(config: &unet::Config) -> impl Iterator<Item = &unet::Attention> {
    let middle = match &config.middle {
        unet::Middle::Attention(attention) => Some(attention),
        unet::Middle::None | unet::Middle::Residual => None,
    };
    config.down.iter().chain(&config.up).filter_map(|stage| stage.attention.as_ref()).chain(middle)
}

/// The most heads of any attention that is written head by head.
fn heads(config: &Config) -> usize {
    unet_of(config).into_iter().flat_map(attention).map(|attention| attention.heads).max().unwrap_or(0)
}

/// The residual and transformer blocks of a network, about.
fn layers(config: &Config) -> usize {
    match config {
        Config::TextEncoder(config) => config.num_hidden_layers,
        Config::Unet(_) | Config::ControlNet(_) => unet_of(config).map_or(0, |config| {
            let residual = config.down.iter().chain(&config.up).map(|stage| stage.layers);
            residual.chain(attention(config).flat_map(|attention| attention.depths.iter().copied())).sum()
        }),
        Config::Vae(config) => config.layers_per_block * config.block_out_channels.len(),
        Config::SafetyChecker(config) => config.num_hidden_layers,
    }
}

fn build(config: &Config, options: &GraphOptions) {
    type Build<'a> = &'a dyn Fn(&dyn Weights) -> Result<Function, ArchError>;
    let checked = |build: Build| {
        let _ = required_tensors(|weights| {
            let function = build(weights)?;
            verify(&function).expect("a graph that was built is valid");
            Ok(function)
        });
    };
    match config {
        Config::TextEncoder(config) => {
            for outputs in [Outputs::LAST, Outputs::PENULTIMATE] {
                checked(&|weights| text_encoder::build(config, weights, options, outputs));
            }
        }
        Config::Unet(config) => checked(&|weights| unet::build(config, weights, options)),
        Config::ControlNet(config) => checked(&|weights| unet::control::build(config, weights, options)),
        Config::Vae(config) => {
            checked(&|weights| vae::build_decoder(config, weights, options));
            checked(&|weights| vae::build_encoder(config, weights, options));
        }
        Config::SafetyChecker(config) => {
            checked(&|weights| {
                safety_checker::build(config, weights, options, [options.height, options.width])
            });
        }
    }
}

/// Runs a scheduler with its input as the model's output.
fn run(config: &SchedulerConfig) {
    for steps in [1, 2, 7] {
        let Ok(mut scheduler) = config.build(steps) else { continue };
        let mut noise = TorchSource::new(0);
        let mut sample = vec![scheduler.init_noise_sigma(); 4];
        for index in 0..scheduler.timesteps().len() {
            let noised = scheduler.add_noise(&sample, &[0.5; 4], index);
            assert!(noised.iter().all(|x| x.is_finite()), "noised at {index} of {steps} steps");
            let model_output = scheduler.scale_model_input(&sample, index);
            let input = StepInput { index, model_output: &model_output, sample: &sample, images: 2 };
            sample = scheduler.step(input, &mut noise).previous;
            assert!(sample.iter().all(|x| x.is_finite()), "evaluation {index} of {steps} steps");
        }
    }
}

// Most changes of bytes break the JSON; these change one value of it.
fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let mut random = Random(u64::from(seed) << 1 | 1);
    let Some(mut config) = serde_json::from_slice(&data[..size]).ok().filter(|_| random.below(8) > 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    mutate(&mut config, &mut random);
    let text = config.to_string();
    if text.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..text.len()].copy_from_slice(text.as_bytes());
    text.len()
});

/// A multiplicative congruential generator.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(0xd134_2543_de82_ef95);
        (self.0 >> 33) as usize % end
    }
}

/// Changes one value, or the length of one list.
fn mutate(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let index = random.below(fields.len());
            if let Some(field) = fields.values_mut().nth(index) {
                mutate(field, random);
            }
        }
        Value::Array(list) if !list.is_empty() && random.below(4) > 0 => {
            let index = random.below(list.len());
            match random.below(4) {
                0 => drop(list.remove(index)),
                1 => list.push(list[index].clone()),
                _ => mutate(&mut list[index], random),
            }
        }
        other => *other = replacement(random),
    }
}

/// A value that some field takes, or that none should.
fn replacement(random: &mut Random) -> Value {
    let pools = [
        json!([
            0,
            -1,
            1,
            2,
            3,
            4,
            5,
            7,
            8,
            16,
            31,
            32,
            33,
            64,
            77,
            96,
            128,
            1000,
            1024,
            1025,
            2048,
            65536,
            1_048_576,
            1_048_577,
            i32::MAX,
            1_u64 << 32,
            (1_u64 << 53) + 1,
            u64::MAX,
            i64::MIN,
            0.0,
            0.5,
            -0.5,
            0.999,
            1e-5,
            1e-30,
            1e-300,
            1e30,
            -1e30,
            1e300,
            2.5,
            12.0,
        ]),
        json!([
            null,
            true,
            false,
            {},
            [],
            [[]],
            [1],
            [2, 2],
            [1, 2, 4],
            [0.1, 0.2],
            [[1, 2]],
            "",
            "text",
            "Infinity",
            "-Infinity",
            "NaN",
        ]),
        json!([
            "linspace",
            "leading",
            "trailing",
            "v_prediction",
            "sample",
            "epsilon",
            "squaredcos_cap_v2",
            "scaled_linear",
            "sigmoid",
            "sde-dpmsolver++",
            "dpmsolver",
            "dpmsolver++",
            "sigma_min",
            "zero",
            "heun",
            "midpoint",
            "bh1",
            "log_linear",
            "continuous",
            "text_time",
            "projection",
            "identity",
            "timestep",
            "simple_projection",
            "fourier",
            "scale_shift",
            "gelu",
            "silu",
            "mish",
            "UNetMidBlock2D",
            "DownBlock2D",
            "CrossAttnDownBlock2D",
            "UpBlock2D",
            "CrossAttnUpBlock2D",
        ]),
    ];
    let pool = &pools[random.below(pools.len())];
    pool[random.below(pool.as_array().map_or(1, Vec::len))].clone()
}
