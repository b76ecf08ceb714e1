//! `mixbit convert`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use mixbit_app::hub::Wish;
use mixbit_app::source::open_checkpoint;
use mixbit_compress::{Scheme, Width};
use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_engine::Cancel;
use mixbit_packages::inspect::bits_per_element;
use mixbit_packages::package::{
    ConversionOptions, ConversionSource, DeploymentTarget, Package, check_output, plan,
};
use mixbit_packages::palettize::{Job, Outcome, PlanSource, Report, Targets};
use mixbit_packages::source::{OpenOptions, OpenedModel, controlnet};

use super::backends::Machine;
use super::hub::{Asked, Models};
use super::model_files::ModelFileOptions;
use super::palettize::{Shown, say_limits};
use super::progress::Progress;
use super::table::counted;
use super::{interrupt, memory, next, opening, print_line, values};

/// The least output PSNR in dB; Apple's converter refuses packages below it.
const LEAST_PSNR: f64 = 35.0;

/// Pixels of an image for one of its latents, in every direction.
const SCALE: usize = 8;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit convert --model stable-diffusion-v1-5 --output converted
  mixbit convert --model sdxl --convert-unet --latent-h 96 --latent-w 128
  mixbit convert --demo --output converted")]
pub(super) struct Arguments {
    /// A model: a file (.safetensors, .ckpt, .gguf), a directory in the diffusers layout, or a name on the
    /// Hugging Face Hub (OWNER/NAME)
    #[arg(short, long, alias = "model-version", value_name = "MODEL", env = "MIXBIT_MODEL")]
    model: Option<PathBuf>,
    /// The demo model in the binary
    #[arg(long)]
    demo: bool,
    /// The directory for the packages, made if it is not there
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// The model's name in file names and metadata [default: the directory's]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    files: ModelFileOptions,
    /// Replace packages that are there
    #[arg(long)]
    force: bool,

    /// Convert the text encoder, or both; without any --convert option, all that the model has
    #[arg(long, help_heading = "Parts")]
    convert_text_encoder: bool,
    /// Convert the UNet
    #[arg(long, help_heading = "Parts")]
    convert_unet: bool,
    /// Convert the autoencoder's decoder
    #[arg(long, help_heading = "Parts")]
    convert_vae_decoder: bool,
    /// Convert the autoencoder's encoder
    #[arg(long, help_heading = "Parts")]
    convert_vae_encoder: bool,
    /// Convert the safety checker
    #[arg(long, help_heading = "Parts")]
    convert_safety_checker: bool,
    /// Convert ControlNets, each a file, or a directory with config.json and weights
    #[arg(long, value_name = "PATH", num_args = 1.., help_heading = "Parts")]
    convert_controlnet: Vec<PathBuf>,
    /// Make a UNet that takes a ControlNet's residuals too
    #[arg(long, help_heading = "Parts")]
    unet_support_controlnet: bool,
    /// Convert the UNet of this model as the refiner
    #[arg(long, value_name = "DIR", help_heading = "Parts")]
    refiner_version: Option<PathBuf>,

    #[command(flatten, next_help_heading = "Form")]
    size: values::Size,
    /// Height of the latents, an eighth of the image's [default: the model's]
    #[arg(long, value_name = "N", requires = "latent_w", conflicts_with = "size", help_heading = "Form")]
    latent_h: Option<usize>,
    /// Width of the latents, an eighth of the image's [default: the model's]
    #[arg(long, value_name = "N", requires = "latent_h", conflicts_with = "size", help_heading = "Form")]
    latent_w: Option<usize>,
    /// How attention is written: for the Neural Engine split, for the GPU original
    #[arg(long, value_name = "NAME", value_parser = values::attention(), ignore_case = true,
          default_value = "SPLIT_EINSUM", help_heading = "Form")]
    attention_implementation: AttentionImplementation,
    /// UNets that take one sample, not two
    #[arg(long, help_heading = "Form")]
    unet_batch_one: bool,
    /// Cut UNets in two, for devices that can't load them whole
    #[arg(long, help_heading = "Form")]
    chunk_unet: bool,
    /// The oldest system to run on
    #[arg(long, value_name = "NAME", value_parser = values::targets(), ignore_case = true,
          default_value = "macOS13", help_heading = "Form")]
    min_deployment_target: &'static DeploymentTarget,

    /// Palettes of N bits for UNets, ControlNets and text encoders: 1, 2, 3, 4, 6 or 8
    #[arg(long, value_name = "N", value_parser = values::width, help_heading = "Form")]
    quantize_nbits: Option<Width>,

    /// Also compile the packages into a Resources directory, as Apple's and other apps load them
    #[arg(long, help_heading = "Form")]
    bundle_resources_for_swift_cli: bool,

    /// Run each package, rounded as a device rounds, and compare with the checkpoint in fp32; less than 35 dB
    /// is an error, unless with --quantize-nbits
    #[arg(long, help_heading = "Form")]
    check_output_correctness: bool,

    /// Print only the packages' names
    #[arg(short, long)]
    quiet: bool,
}

impl Models for Arguments {
    fn models(&mut self) -> Vec<Asked<'_>> {
        let wish =
            Wish { safety_checker: self.convert_safety_checker || self.are_all_parts(), ..self.files.wish() };
        let model = self.model.iter_mut().filter(|_| !self.demo);
        let model = model.map(|argument| Asked { argument, wish: wish.clone() });
        let others = self.convert_controlnet.iter_mut().chain(&mut self.refiner_version).map(Asked::plain);
        model.chain(others).chain(self.files.models()).collect()
    }

    fn is_quiet(&self) -> bool {
        self.quiet
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let begin = Instant::now();
    let cancel = interrupt::cancel()?;
    let progress = Progress::new(arguments.quiet);
    let options = arguments.files.open();
    let path = values::model(arguments.model.as_deref(), arguments.demo)?;
    values::check_apart(path, &arguments.output)?;
    let model = opening::checkpoint(path, &options, &progress)?;
    let refiner = arguments.refiner_version.as_deref();
    let refiner = refiner.map(|path| open_checkpoint(Some(path), &OpenOptions::default())).transpose()?;
    let controlnets = arguments.convert_controlnet.iter().map(|path| controlnet(path));
    let controlnets = controlnets.collect::<Result<Vec<_>, _>>()?;
    let source = ConversionSource {
        model: model.files(),
        refiner: refiner.as_ref().map(|refiner: &OpenedModel| (refiner.name().to_string(), refiner.files())),
        controlnets: controlnets.iter().map(|(name, net)| (name.clone(), &**net)).collect(),
    };
    let options = arguments.options(model.name())?;
    let packages = plan(&source, &options).with_context(|| model.name().to_string())?;
    say_limits(model.files(), options.parts.is_empty(), &progress)?;
    let plans = arguments
        .quantize_nbits
        .map_or(PlanSource::Unchanged, |width| PlanSource::uniform(Scheme::palette(width)));
    let targets = Targets::of_plan(&packages, model.files(), &options.model_version, &arguments.output)?;
    let (mut job, _) = Job::new(targets, &plans)?;
    if arguments.bundle_resources_for_swift_cli {
        job = job.with_bundle()?;
    }
    let shown = Shown { progress: &progress, cancel: &cancel };
    shown.begin(&job, arguments.force)?;
    let checker = arguments.check_output_correctness.then(|| Machine::new(None)).transpose()?;
    let mut bytes = 0;
    for (index, package) in packages.iter().enumerate() {
        let path = &job.targets()[index].path;
        let outcome = shown.write(&job, index, arguments.force)?;
        if !matches!(outcome, Outcome::Kept) {
            bytes += size(path);
        }
        if let Outcome::Palettized(report) = outcome {
            progress.say(palettized(&package.name, &report));
        }
        print_line(path.display())?;
        shown.bundle(&job, index, arguments.force)?;
        if let Some(machine) = &checker {
            let psnr = arguments.checked(package, path, machine, &cancel, &progress)?;
            progress.say(format_args!("{}: PSNR {psnr:.1} dB", package.name));
        }
        shown.check_stopped(&package.name)?;
    }
    progress.say(format_args!(
        "{}, {}, in {:.1} s{}",
        counted(packages.len() as u64, "package"),
        if bytes == 0 { "there already".to_string() } else { format!("{:.1} MB", bytes as f64 / 1e6) },
        begin.elapsed().as_secs_f64(),
        memory::in_summary()
    ));
    if arguments.are_all_parts() {
        progress.say(next::drawing(&arguments.output));
    }
    if arguments.bundle_resources_for_swift_cli {
        progress.say(next::app(&arguments.output.join("Resources")));
    }
    Ok(())
}

/// A package's layers in fewer bits, in words.
fn palettized(name: &str, report: &Report) -> String {
    format!(
        "{name}: {} palettized, {:.2} bits per weight of all layers",
        counted(report.layers.len() as u64, "layer"),
        bits_per_element(report.weights as usize, report.after as usize)
    )
}

/// The bytes of the files in a directory.
fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

impl Arguments {
    /// The PSNR in dB of a package's output beside the checkpoint's.
    ///
    /// # Errors
    /// If it is too low.
    fn checked(
        &self,
        package: &Package,
        path: &Path,
        machine: &Machine,
        cancel: &Cancel,
        progress: &Progress,
    ) -> anyhow::Result<f64> {
        let _waiting = progress.wait("checking the package's output");
        let psnr = check_output(package, path, &*machine.backend, cancel)?;
        // Palettes of few bits lower the PSNR; that is no conversion error.
        if psnr.is_nan() || (psnr < LEAST_PSNR && self.quantize_nbits.is_none()) {
            bail!(
                "{}: its output has a PSNR of {psnr:.1} dB beside the checkpoint's, less than {LEAST_PSNR} dB",
                path.display()
            );
        }
        Ok(psnr)
    }

    /// True if the packages are a whole model.
    fn are_all_parts(&self) -> bool {
        let asked = [
            self.convert_text_encoder,
            self.convert_unet,
            self.convert_vae_decoder,
            self.convert_vae_encoder,
            self.convert_safety_checker,
        ];
        !asked.contains(&true)
    }

    /// Height and width of the latents; `None` for the model's own.
    fn latent(&self) -> anyhow::Result<Option<[usize; 2]>> {
        let latent = self.latent_h.zip(self.latent_w).map(|(height, width)| [height, width]);
        let [width, height] = match self.size.given() {
            [None, None] => return Ok(latent),
            [Some(width), Some(height)] => [width, height],
            _ => bail!("a size has both --width and --height"),
        };
        if let Some(wrong) = [width, height].into_iter().find(|extent| *extent == 0 || extent % SCALE > 0) {
            bail!("{wrong} pixels are no multiple of {SCALE}; try {}", (wrong / SCALE).max(1) * SCALE);
        }
        Ok(Some([height / SCALE, width / SCALE]))
    }

    fn options(&self, model: &str) -> anyhow::Result<ConversionOptions> {
        let asked = |chosen: &[(bool, &'static str)]| -> Vec<&'static str> {
            chosen.iter().filter(|(is_asked, _)| *is_asked).map(|(_, part)| *part).collect()
        };
        let mut parts = asked(&[
            (self.convert_text_encoder, "text_encoder"),
            (self.convert_unet, "unet"),
            (self.convert_vae_decoder, "vae_decoder"),
            (self.convert_vae_encoder, "vae_encoder"),
            (self.convert_safety_checker, "safety_checker"),
        ]);
        if !parts.is_empty() {
            parts.extend(asked(&[
                (!self.convert_controlnet.is_empty(), "controlnet"),
                (self.unet_support_controlnet, "control-unet"),
                (self.refiner_version.is_some(), "refiner"),
            ]));
        }
        let target = self.min_deployment_target;
        if let Some(scheme) = self.quantize_nbits.map(Scheme::palette).filter(|it| it.since() > target.opset)
        {
            bail!("{} bits need --min-deployment-target macOS15", scheme.width.bits());
        }
        Ok(ConversionOptions {
            parts,
            model_version: self.name.clone().unwrap_or_else(|| model.to_string()),
            latent: self.latent()?,
            batch_one: self.unet_batch_one,
            attention: self.attention_implementation,
            chunk_unet: self.chunk_unet,
            control_unet: self.unet_support_controlnet,
            target,
        })
    }
}
