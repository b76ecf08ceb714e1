//! Names that people type: those of Apple's tools, of diffusers and of web UIs.

/// The meaning of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// An option of mixbit, in every command that has it.
    Option(&'static str),
    /// The prompt.
    Prompt,
    /// Nothing that mixbit needs to be told. The note says what happens instead.
    Needless {
        /// True if a value follows the name.
        takes_value: bool,
        /// The note.
        note: &'static str,
    },
    /// A wish that no option fulfils. The answer says what does.
    Answer(&'static str),
}

use Meaning::{Answer, Needless, Option, Prompt};

/// Names with one meaning. Dashes stand for underscores too.
#[derive(Debug)]
pub(super) struct Row {
    /// The names, with their dashes.
    pub(super) typed: &'static [&'static str],
    /// The commands; empty for all.
    pub(super) commands: &'static [&'static str],
    /// The meaning.
    pub(super) meaning: Meaning,
}

/// A row for every command.
const fn row(typed: &'static [&'static str], meaning: Meaning) -> Row {
    Row { typed, commands: &[], meaning }
}

/// The answer to other spellings of a sigma schedule.
const SIGMAS: &str = "the sigma schedule follows the scheduler's name, as in --scheduler dpmpp-2m-karras";

/// The answer to images that drawing starts from.
const START: &str = "mixbit draws from noise alone: image to image and inpainting are not there yet";

/// The note on devices.
const CPU: &str = "mixbit computes on the CPU of this machine, with no GPU and no Neural Engine; apps on a Mac or an \
                   iPhone choose the compute unit when they load the packages";

/// Every name. Of several rows for an option, the first whose option the command has counts.
pub(super) static NAMES: &[Row] = &[
    Row { typed: &["--prompt", "-p"], commands: &["generate", "compare"], meaning: Prompt },
    row(&["--negative", "--neg", "--neg-prompt", "--uncond"], Option("--negative-prompt")),
    row(&["--cfg-scale", "--cfg", "--guidance", "--scale"], Option("--guidance-scale")),
    row(&["--sampler", "--sampling-method", "--sampler-name", "--sampler-index"], Option("--scheduler")),
    row(
        &[
            "--num-inference-steps",
            "--inference-steps",
            "--step-count",
            "--num-steps",
            "--sampling-steps",
            "--sample-steps",
            "--ddim-steps",
        ],
        Option("--steps"),
    ),
    row(
        &[
            "--image-count",
            "--num-images",
            "--num-images-per-prompt",
            "--batch-count",
            "--batch-size",
            "--n-iter",
            "--n-samples",
            "--count",
        ],
        Option("--images"),
    ),
    row(&["--resolution", "--image-size", "--dimensions"], Option("--size")),
    row(&["--w"], Option("--width")),
    row(&["--h"], Option("--height")),
    row(MODEL, Option("--model")),
    row(MODEL, Option("--models")),
    row(&["--model"], Option("--models")),
    row(
        &["--out", "--outdir", "--out-dir", "--output-dir", "--output-path", "--output-file", "--outfile"],
        Option("--output"),
    ),
    row(&["--from-file", "--prompt-file", "--prompts"], Option("--prompts-file")),
    row(&["--save-every"], Option("--preview-every")),
    row(&["--dtype", "--torch-dtype", "--compute-precision"], Option("--precision")),
    row(&["--num-threads", "--n-threads", "-t", "--jobs", "-j"], Option("--threads")),
    row(&["--noise-generator", "--random-source", "--rng-type"], Option("--rng")),
    row(&["--lowvram", "--low-vram", "--medvram", "--low-memory"], Option("--reduce-memory")),
    row(&["--vae-tiling", "--tiled-vae", "--enable-vae-tiling"], Option("--tiled-decode")),
    row(&["--bits", "--n-bits", "--quantize-nbits", "-b"], Option("--nbits")),
    row(&["--bits", "--n-bits", "--nbits", "-b"], Option("--quantize-nbits")),
    row(&["--recipes", "--pre-analysis-json-path", "--recipe-file"], Option("--recipe")),
    row(&["--recipe", "--pre-analysis-json-path", "--recipe-file"], Option("--recipes")),
    row(&["--selected-recipe", "--select-recipe", "--recipe-name"], Option("--select")),
    row(&["--vae-path", "--vae-version"], Option("--vae")),
    row(
        &["--xl-version", "--sdxl", "--xl"],
        Needless { takes_value: false, note: "the model's own files say whether it is an XL model" },
    ),
    row(
        &["--compute-unit", "--compute-units", "--device", "--backend"],
        Needless { takes_value: true, note: CPU },
    ),
    row(&["--gpu", "--cuda", "--mps", "--cpu", "--use-gpu"], Needless { takes_value: false, note: CPU }),
    row(
        &["--disable-safety", "--no-safety-checker", "--disable-nsfw-checker", "--disable-safety-checker"],
        Needless { takes_value: false, note: "mixbit runs no safety checker" },
    ),
    row(
        &["--text-encoder-vocabulary-url", "--text-encoder-merges-url"],
        Needless { takes_value: true, note: "the vocabulary is the one in the model's folder" },
    ),
    row(
        &["--verbose", "-v", "--debug"],
        Needless { takes_value: false, note: "progress is shown anyway; --quiet hides it" },
    ),
    row(&["--yes", "-y"], Needless { takes_value: false, note: "mixbit asks no questions" }),
    row(
        &["--merge-chunks-in-pipeline-model"],
        Answer(
            "mixbit writes the two chunks as packages of their own, which apps load one after the other; leave \
             --merge-chunks-in-pipeline-model out",
        ),
    ),
    row(
        &["--lora", "--loras", "--lora-dir", "--lora-model-dir", "--lora-scale", "--lora-weights"],
        Answer(
            "LoRA files are not read yet: merge one into its model with diffusers (fuse_lora, then save_pretrained), \
             and give that directory",
        ),
    ),
    row(&["--local-files-only", "--local-only", "--no-download"], Option("--offline")),
    row(
        &["--hf-token", "--token", "--auth-token", "--use-auth-token"],
        Answer("the token is that of HF_TOKEN, or of `hf auth login`"),
    ),
    row(&["--revision"], Answer("the revision follows the model's name, as in OWNER/NAME@REVISION")),
    row(&["--cache-dir", "--hf-home"], Answer("HF_HOME is the directory of the Hub's cache")),
    row(&["--clip-skip"], Answer("the text encoder's layer is the one that the model's files name")),
    row(&["--image", "--init-image", "--init-img", "--strength", "--denoising-strength"], Answer(START)),
    row(&["--mask", "--mask-image", "--start-image"], Answer(START)),
    row(
        &["--controlnet", "--control-net", "--control-image", "--controlnet-inputs"],
        Answer("ControlNets are converted (mixbit convert --convert-controlnet DIR), but not drawn with yet"),
    ),
    row(
        &["--refiner", "--refiner-version"],
        Answer("a refiner is converted (mixbit convert --refiner-version DIR), but not drawn with yet"),
    ),
    row(
        &["--schedule", "--schedule-type", "--sigma-schedule", "--karras", "--use-karras-sigmas"],
        Answer(SIGMAS),
    ),
    row(
        &["--fp16", "--half", "--fp32", "--bf16", "--float16", "--no-half"],
        Answer(
            "--precision says what is computed in, such as bf16, and --variant fp16 takes a model's fp16 files; packages \
             hold 16 bits without being told",
        ),
    ),
];

/// Names of a model.
const MODEL: &[&str] = &[
    "--ckpt",
    "--ckpt-path",
    "--checkpoint",
    "--checkpoint-path",
    "--diffusion-model",
    "--mlpackage-path",
    "--model-dir",
    "--model-id",
    "--model-path",
    "--model-version",
    "--pretrained-model-name-or-path",
    "--resource-path",
];

/// Another spelling of an option's value.
pub(super) struct Value {
    /// The option.
    pub(super) option: &'static str,
    /// The spellings, without regard to case.
    pub(super) typed: &'static [&'static str],
    /// The value.
    pub(super) means: Spelling,
}

/// A value of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// A text.
    Text(&'static str),
    /// A random seed.
    Random,
}

/// Every value with another spelling.
pub(super) static VALUES: &[Value] = &[
    Value { option: "--seed", typed: &["-1", "random"], means: Spelling::Random },
    Value { option: "--precision", typed: &["fp16", "float16", "half"], means: Spelling::Text("f16") },
    Value { option: "--precision", typed: &["fp32", "float32", "full"], means: Spelling::Text("f32") },
    Value { option: "--precision", typed: &["bfloat16"], means: Spelling::Text("bf16") },
    Value { option: "--precision", typed: &["i8", "w8a8"], means: Spelling::Text("int8") },
];

/// Names of commands in other tools, and mixbit's.
pub(super) static COMMANDS: &[(&str, &str)] = &[
    ("draw", "generate"),
    ("txt2img", "generate"),
    ("t2i", "generate"),
    ("image", "generate"),
    ("sample", "generate"),
    ("run", "generate"),
    ("quantize", "palettize"),
    ("compress", "palettize"),
    ("benchmark", "bench"),
    ("info", "inspect"),
    ("show", "inspect"),
    ("analyse", "analyze"),
    ("export", "convert"),
    ("download", "pull"),
    ("fetch", "pull"),
    ("list", "models"),
    ("ls", "models"),
    ("about", "doctor"),
    ("env", "doctor"),
];
