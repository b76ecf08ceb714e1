//! The same network, shapes and weights in mixbit, OpenVINO and PyTorch, in turn on one machine.
//!
//! Every contender is a process of its own, so that each has its own threads and its memory can be told: a peer is
//! `tools/bench-peers/peer.py`, one of ours is this program again with `--serve`. All are loaded before the first round, and
//! answer one line for each that they are given: `step` with its seconds, `save` when the result lies in a file.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use mixbit_app::model;
use mixbit_diffusion::arch::GraphOptions;
use mixbit_diffusion::model::{DiffusionModel, Network};
use mixbit_diffusion::random::{NoiseSource, TorchSource};
use mixbit_engine::{Arithmetic, Backend, Options, Tensor};
use mixbit_engine_cpu::Cpu;
use mixbit_formats::safetensors::{self, TensorSpec};
use mixbit_mil::{DType, Function, TensorType, Weights};
use mixbit_packages::psnr::{mean_square, peak, psnr};

use crate::repository;

/// The seed of what the networks are given.
const SEED: u64 = 93;
/// The time step that the UNet is told.
const TIMESTEP: f32 = 500.0;
/// What the text encoders read.
const PROMPT: &str = "a lighthouse on a cliff above the sea, in the evening";
/// How long the machine rests between two steps, so that no threads of the last one still spin.
const REST: Duration = Duration::from_millis(300);

/// A contender takes steps for at least so long before the first round, and at least one: short ones change in the first few.
const WARM_UP: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A checkpoint in the diffusers layout, such as `cargo xtask synth sd15 DIR` writes: what the peers load
    #[arg(long)]
    model: PathBuf,
    /// Core ML packages of the same model for mixbit to run, such as `mixbit palettize` writes; without them it runs the
    /// checkpoint
    #[arg(long)]
    palettized: Option<PathBuf>,
    /// The network
    #[arg(long, value_enum, default_value_t = Part::Unet)]
    part: Part,
    /// Width and height of the image
    #[arg(long, value_parser = parse_size, default_value = "512x512")]
    size: [usize; 2],
    /// Samples in a step [default: 2 for the UNet, 1 otherwise]
    #[arg(long)]
    batch: Option<usize>,
    /// Threads of each contender [default: one for each CPU]
    #[arg(long)]
    threads: Option<usize>,
    /// Rounds, in each of which every contender takes one step
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// What mixbit computes in
    #[arg(long, value_enum, value_delimiter = ',', default_value = "f32,bf16")]
    ours: Vec<Ours>,
    /// Let mixbit keep the text's keys and values from step to step, as `generate` does; without it, it computes all that the
    /// peers compute
    #[arg(long)]
    keep_text: bool,
    /// Who it is compared with; all are in memory at once
    #[arg(long, value_enum, value_delimiter = ',', num_args = 0.., default_value = "openvino-bf16,torch-bf16")]
    peers: Vec<Peer>,
    /// A Python that has what `tools/bench-peers/requirements.txt` names; without it, an environment is made in the scratch
    /// folder
    #[arg(long)]
    python: Option<PathBuf>,
    /// Where the environment, inputs and results are kept
    #[arg(long, default_value = "target/bench-peers")]
    scratch: PathBuf,
    /// Be a contender
    #[arg(long, value_enum, hide = true)]
    serve: Option<Ours>,
}

/// A network of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Unet,
    /// The autoencoder's decoder
    Vae,
    #[value(name = "text_encoder")]
    TextEncoder,
    #[value(name = "text_encoder_2")]
    TextEncoder2,
}

/// A precision of mixbit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Ours {
    F32,
    Bf16,
    Int8,
}

/// Another framework in a precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    #[value(name = "openvino-f32")]
    OpenvinoF32,
    #[value(name = "openvino-bf16")]
    OpenvinoBf16,
    #[value(name = "torch-f32")]
    TorchF32,
    #[value(name = "torch-bf16")]
    TorchBf16,
}

impl Part {
    fn batch(self) -> usize {
        if self == Part::Unet { 2 } else { 1 }
    }

    /// The network of a model, and the output that is compared.
    fn of(self, model: &DiffusionModel) -> anyhow::Result<(&Network, &'static str)> {
        let encoder = |index: usize| {
            let encoder = model.text_encoders.get(index).context("the model has no such text encoder")?;
            Ok((&encoder.network, encoder.states))
        };
        match self {
            Part::Unet => Ok((&model.unet.network, "noise_pred")),
            Part::Vae => Ok((&model.decoder.network, "image")),
            Part::TextEncoder => encoder(0),
            Part::TextEncoder2 => encoder(1),
        }
    }
}

impl Ours {
    fn arithmetic(self) -> Arithmetic {
        match self {
            Ours::F32 => Arithmetic::F32,
            Ours::Bf16 => Arithmetic::Bf16,
            Ours::Int8 => Arithmetic::Int8,
        }
    }
}

impl Peer {
    /// The framework and the precision, as the script is told them.
    fn words(self) -> [&'static str; 2] {
        match self {
            Peer::OpenvinoF32 => ["openvino", "f32"],
            Peer::OpenvinoBf16 => ["openvino", "bf16"],
            Peer::TorchF32 => ["torch", "f32"],
            Peer::TorchBf16 => ["torch", "bf16"],
        }
    }
}

/// The name of a value on the command line.
fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let extents =
        text.split_once('x').and_then(|(width, height)| Some([width.parse().ok()?, height.parse().ok()?]));
    let is_good = |extent: &usize| *extent > 0 && extent.is_multiple_of(8);
    extents
        .filter(|extents| extents.iter().all(is_good))
        .ok_or_else(|| format!("`{text}` is not WIDTHxHEIGHT in multiples of 8, such as 512x512"))
}

/// Lets all contenders take their steps in turn, and prints a table of times, ratios, memory and agreement.
///
/// # Errors
/// If a contender can't be run.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(ours) = arguments.serve {
        return serve(arguments, ours);
    }
    ensure!(
        arguments.part == Part::Unet || !arguments.ours.contains(&Ours::Int8),
        "only the UNet is computed in int8: choose others with --ours"
    );
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    fs::create_dir_all(&arguments.scratch)
        .with_context(|| format!("{} can't be made", arguments.scratch.display()))?;
    let threads = Cpu::new(arguments.threads)?.threads();
    write_inputs(arguments)?;
    let python = if arguments.peers.is_empty() { None } else { Some(python(arguments)?) };

    let bench = Bench { arguments, threads, python };
    let dense = bench.reference(&arguments.model);
    let packaged = arguments.palettized.as_deref().map(|path| bench.reference(path));
    let mut contenders = Vec::new();
    for &ours in &arguments.ours {
        let path = arguments.palettized.as_deref().unwrap_or(&arguments.model);
        contenders.push(bench.ours(ours, path)?);
    }
    for &peer in &arguments.peers {
        contenders.push(bench.peer(peer)?);
    }
    for contender in &mut contenders {
        let begin = Instant::now();
        loop {
            let seconds = contender.step()?;
            eprintln!("warm-up: {} {seconds:.3} s", contender.name);
            if begin.elapsed() >= WARM_UP {
                break;
            }
        }
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    for round in 1..=arguments.rounds {
        for contender in &mut contenders {
            thread::sleep(REST);
            let seconds = contender.step()?;
            eprintln!("round {round}: {} {seconds:.3} s", contender.name);
            contender.seconds.push(seconds);
        }
    }
    let mut rows = Vec::new();
    for (index, mut contender) in contenders.into_iter().enumerate() {
        let is_ours = index < arguments.ours.len();
        let reference = packaged.as_ref().filter(|_| is_ours).unwrap_or(&dense);
        let agreement =
            reference.as_ref().and_then(|reference| agreement(&contender.save().ok()?, reference));
        rows.push(Row {
            name: contender.name.clone(),
            is_ours,
            seconds: contender.seconds.clone(),
            memory: contender.peak_memory(),
            agreement,
            about: contender.about.clone(),
        });
        contender.quit();
    }
    print!("{}", circumstances(arguments, threads, &load));
    print!("{}", table(&rows));
    Ok(())
}

/// How the contenders are started.
struct Bench<'a> {
    arguments: &'a Arguments,
    threads: usize,
    python: Option<PathBuf>,
}

impl Bench<'_> {
    /// What mixbit computes in f32 from a model; nothing, with a message, if it can't.
    fn reference(&self, path: &Path) -> Option<Vec<f32>> {
        let attempt = || {
            let mut contender = self.ours(Ours::F32, path)?;
            contender.step()?;
            let values = contender.save()?;
            contender.quit();
            Ok::<_, anyhow::Error>(values)
        };
        match attempt() {
            Ok(values) => Some(values),
            Err(error) => {
                eprintln!("results are not compared, for {} can't be run in f32: {error:#}", path.display());
                None
            }
        }
    }

    fn ours(&self, ours: Ours, path: &Path) -> anyhow::Result<Contender> {
        let arguments = self.arguments;
        let [width, height] = arguments.size;
        let mut command = Command::new(std::env::current_exe().context("this program can't find itself")?);
        command.arg("bench-peers").arg("--serve").arg(name_of(ours)).arg("--model").arg(path);
        command.args(["--part", &name_of(arguments.part), "--size", &format!("{width}x{height}")]);
        command.args(["--batch", &arguments.samples().to_string(), "--threads", &self.threads.to_string()]);
        command.arg("--scratch").arg(&arguments.scratch);
        if arguments.keep_text {
            command.arg("--keep-text");
        }
        Contender::start(
            &format!("mixbit-{}", name_of(ours)),
            command,
            output_path(arguments, &name_of(ours)),
        )
    }

    fn peer(&self, peer: Peer) -> anyhow::Result<Contender> {
        let arguments = self.arguments;
        let name = name_of(peer);
        let output = output_path(arguments, &name);
        let [framework, precision] = peer.words();
        let mut command = Command::new(self.python.as_deref().unwrap_or(Path::new("python3")));
        command.arg(repository().join("tools/bench-peers/peer.py"));
        command.args([
            "--framework",
            framework,
            "--precision",
            precision,
            "--part",
            &name_of(arguments.part),
        ]);
        command.arg("--model").arg(&arguments.model).args(["--threads", &self.threads.to_string()]);
        command.arg("--inputs").arg(inputs_path(arguments)).arg("--output").arg(&output);
        Contender::start(&name, command, output)
    }
}

impl Arguments {
    fn samples(&self) -> usize {
        self.batch.unwrap_or(self.part.batch())
    }
}

fn inputs_path(arguments: &Arguments) -> PathBuf {
    arguments.scratch.join("inputs.safetensors")
}

fn output_path(arguments: &Arguments, name: &str) -> PathBuf {
    arguments.scratch.join(format!("{name}.npy"))
}

/// A Python that has the peers: the one that was named, or that of an environment which is made if it is not there.
fn python(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    if let Some(python) = &arguments.python {
        return Ok(python.clone());
    }
    let requirements = repository().join("tools/bench-peers/requirements.txt");
    let environment = std::path::absolute(arguments.scratch.join("environment"))?;
    let (python, made) = (environment.join("bin/python"), environment.join("requirements.txt"));
    let wanted = fs::read(&requirements)?;
    if fs::read(&made).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    eprintln!("making an environment in {}", environment.display());
    let base = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let status = Command::new(&base).args(["-m", "venv", "--clear"]).arg(&environment).status();
    let status = status.with_context(|| {
        format!("{} can't be run: set PYTHON to a Python 3.11 or newer, or give --python", base.display())
    })?;
    ensure!(status.success(), "{} has no venv: set PYTHON to one that has, or give --python", base.display());
    let status =
        Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements).status()?;
    ensure!(
        status.success(),
        "the packages were not installed: it needs the package index and 8 GB of disk (with PyTorch's CPU wheels 2 GB, see \
         tools/bench-peers/README.md), or an environment that has them with --python"
    );
    fs::write(&made, wanted)?;
    Ok(python)
}

/// A process that takes steps.
struct Contender {
    name: String,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// What it says that it is.
    about: String,
    output: PathBuf,
    seconds: Vec<f64>,
}

impl Contender {
    /// Starts a process and waits until it is ready.
    fn start(name: &str, mut command: Command, output: PathBuf) -> anyhow::Result<Self> {
        let program = command.get_program().to_os_string();
        let begin = Instant::now();
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: {} can't be run", program.display()))?;
        let (requests, answers) =
            process.stdin.take().zip(process.stdout.take()).context("a process without pipes")?;
        let mut contender = Contender {
            name: name.to_string(),
            process,
            requests,
            answers: BufReader::new(answers),
            about: String::new(),
            output,
            seconds: Vec::new(),
        };
        let answer = contender.answer()?;
        let about = answer.strip_prefix("ready ");
        contender.about = about.with_context(|| format!("{name} said {answer:?}"))?.to_string();
        eprintln!("{name}: {}, ready after {:.1} s", contender.about, begin.elapsed().as_secs_f64());
        Ok(contender)
    }

    /// Takes one step, and gives the seconds.
    fn step(&mut self) -> anyhow::Result<f64> {
        let answer = self.ask("step")?;
        answer.parse().with_context(|| format!("{} said {answer:?}", self.name))
    }

    /// What the last step gave.
    fn save(&mut self) -> anyhow::Result<Vec<f32>> {
        let answer = self.ask("save")?;
        ensure!(answer == "saved", "{} said {answer:?}", self.name);
        let bytes = mixbit_formats::npy::open_npy(&self.output)?.cast(DType::F32).read()?.to_vec();
        Ok(floats(&bytes))
    }

    fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        // A process that ended is told by its answer that is not there.
        let _ = writeln!(self.requests, "{request}").and_then(|()| self.requests.flush());
        self.answer()
    }

    fn answer(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.process.wait()?;
            bail!("{} {}", self.name, ending(status));
        }
        Ok(line.trim().to_string())
    }

    /// The largest resident size so far in bytes, where the system tells.
    fn peak_memory(&self) -> Option<f64> {
        parse_peak(&fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?)
    }

    fn quit(mut self) {
        let _ = writeln!(self.requests, "quit").and_then(|()| self.requests.flush());
        let _ = self.process.wait();
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a process ended, and what can be done.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
        return "was killed, as the system does when memory is short: choose fewer with --peers and --ours, or a smaller \
                --size"
            .to_string();
    }
    format!("ended before its time ({status}); what it printed above says why")
}

/// The peak of the resident size in bytes in a text of Linux' `/proc/PID/status`.
fn parse_peak(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

/// The dB between results; nothing if they are not of one size.
fn agreement(found: &[f32], expected: &[f32]) -> Option<f64> {
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let (found, expected) = (wide(found), wide(expected));
    (found.len() == expected.len()).then(|| {
        psnr(peak(expected.iter().copied()), mean_square(found.into_iter().zip(expected.iter().copied())))
    })
}

/// The graph of a model's network at the size that is asked for.
fn graph(arguments: &Arguments, model: &DiffusionModel) -> anyhow::Result<Function> {
    let scale = model.decoder.latent.scale;
    let tokens = model.text_encoders.first().map_or(77, |encoder| encoder.tokenizer.length());
    let options = GraphOptions {
        batch: arguments.samples(),
        height: arguments.size[1] / scale,
        width: arguments.size[0] / scale,
        tokens,
        time_ids: model.unet.time_ids.unwrap_or_default(),
        ..GraphOptions::default()
    };
    Ok(arguments.part.of(model)?.0.graph(&options)?)
}

/// Writes what the network is given, in the layout of diffusers.
fn write_inputs(arguments: &Arguments) -> anyhow::Result<()> {
    let (model, _) = model::load(Some(&arguments.model), None)?;
    let graph = graph(arguments, &model)?;
    let mut noise = TorchSource::new(SEED);
    let (mut specs, mut values) = (Vec::new(), Vec::new());
    for &id in graph.inputs() {
        let value = graph.value(id);
        let mut shape = value.ty.shape.clone();
        let count = shape.iter().product();
        values.push(match value.name.as_str() {
            "timestep" => vec![TIMESTEP; count],
            "time_ids" => time_ids(arguments.size, model.unet.time_ids.unwrap_or_default(), count),
            "input_ids" => token_ids(arguments.part, &model, count)?,
            "sample" | "z" | "text_embeds" | "encoder_hidden_states" => {
                let mut values = vec![0.0; count];
                noise.fill(&mut values);
                values
            }
            other => bail!("the network takes `{other}`, which this benchmark does not know"),
        });
        if value.name == "encoder_hidden_states" {
            shape = vec![shape[0], shape[3], shape[1]];
        }
        specs.push(TensorSpec { name: value.name.clone(), ty: TensorType { dtype: DType::F32, shape } });
    }
    let path = inputs_path(arguments);
    safetensors::write(&path, &Default::default(), &specs, |index, writer| {
        values[index].iter().try_for_each(|value| writer.write_all(&value.to_le_bytes()))
    })?;
    Ok(())
}

/// The sizes that Stable Diffusion XL is told (height before width), the same for every sample.
fn time_ids([width, height]: [usize; 2], each: usize, count: usize) -> Vec<f32> {
    let ids = [height, width, 0, 0, height, width].map(|extent| extent as f32);
    ids.iter().take(each).cycle().take(count).copied().collect()
}

fn token_ids(part: Part, model: &DiffusionModel, count: usize) -> anyhow::Result<Vec<f32>> {
    let index = usize::from(part == Part::TextEncoder2);
    let encoder = model.text_encoders.get(index).context("the model has no such text encoder")?;
    let ids = encoder.tokenizer.encode(PROMPT)?.ids;
    Ok(ids.iter().cycle().take(count).map(|&id| id as f32).collect())
}

/// Reads what [`write_inputs`] wrote, in the layout of our graphs.
fn read_inputs(arguments: &Arguments, graph: &Function) -> anyhow::Result<Vec<(String, Tensor)>> {
    let weights = safetensors::SafeTensors::open(&inputs_path(arguments))?;
    let read = |&id| {
        let value = graph.value(id);
        let stored = weights.get(&value.name).with_context(|| format!("no input `{}`", value.name))?;
        let values = floats(&stored.read()?);
        let values = match (value.name.as_str(), stored.ty().shape.as_slice()) {
            ("encoder_hidden_states", &[_, tokens, channels]) => transposed(&values, tokens, channels),
            _ => values,
        };
        Ok((value.name.clone(), Tensor::from_f32(&value.ty.shape, values)?))
    };
    graph.inputs().iter().map(read).collect()
}

/// Matrices one after the other, each transposed.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let transpose = |matrix: &[f32]| {
        (0..rows * columns).map(|at| matrix[at % rows * columns + at / rows]).collect::<Vec<f32>>()
    };
    values.chunks_exact(rows * columns).flat_map(transpose).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// Is one of our contenders, until it is told to quit.
fn serve(arguments: &Arguments, ours: Ours) -> anyhow::Result<()> {
    let (model, _) = model::load(Some(&arguments.model), None)?;
    let (network, output) = arguments.part.of(&model)?;
    let graph = graph(arguments, &model)?;
    let inputs = read_inputs(arguments, &graph)?;
    let inputs: Vec<(&str, &Tensor)> = inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
    let options = Options {
        arithmetic: ours.arithmetic(),
        full_precision: network.full_precision().clone(),
        constant_inputs: arguments
            .keep_text
            .then(|| "encoder_hidden_states".to_string())
            .into_iter()
            .collect(),
        ..Options::default()
    };
    let mut compiled = Cpu::new(arguments.threads)?.compile(&graph, &options)?;
    let output =
        compiled.output_index(output).with_context(|| format!("the network has no output `{output}`"))?;
    println!("ready mixbit {}", env!("CARGO_PKG_VERSION"));
    let mut result = None;
    for line in std::io::stdin().lines() {
        match line?.trim() {
            "step" => {
                let begin = Instant::now();
                let mut results = compiled.run(&inputs)?;
                println!("{}", begin.elapsed().as_secs_f64());
                result = Some(results.swap_remove(output));
            }
            "save" => {
                let result = result.as_ref().context("no step was taken")?;
                fs::write(output_path(arguments, &name_of(ours)), npy(result.as_f32().unwrap_or_default()))?;
                println!("saved");
            }
            "quit" => return Ok(()),
            other => bail!("{other:?} is no request"),
        }
    }
    Ok(())
}

/// A NumPy file of a vector.
fn npy(values: &[f32]) -> Vec<u8> {
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", values.len());
    // The whole head is a multiple of 64 bytes and ends with a line feed.
    let length = (10 + header.len() + 1).next_multiple_of(64) - 10;
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((length as u16).to_le_bytes());
    file.extend(format!("{header:<width$}\n", width = length - 1).bytes());
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// What was measured, where and when.
fn circumstances(arguments: &Arguments, threads: usize, load: &str) -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let date = Command::new("date").args(["-u", "+%-d %B %Y, %H:%M UTC"]).output();
    let date =
        date.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default();
    let [width, height] = arguments.size;
    format!(
        "    cargo xtask {}\n\n{} at {width}x{height}, {} samples, {} rounds in turn, {threads} threads each; {}; {date}; load \
         average before the rounds {}\n\n",
        words.join(" "),
        name_of(arguments.part),
        arguments.samples(),
        arguments.rounds,
        machine(&info),
        load.split(' ').next().unwrap_or_default(),
    )
}

/// The CPU's name and what it has for products of few bits, from Linux' `/proc/cpuinfo`.
fn machine(info: &str) -> String {
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_string())
    };
    let cpus = info.lines().filter(|line| line.starts_with("processor")).count();
    let flags = field("flags").unwrap_or_default();
    let known = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8"];
    let has: Vec<&str> =
        known.into_iter().filter(|flag| flags.split(' ').any(|found| found == *flag)).collect();
    format!("{} x {} ({})", cpus, field("model name").unwrap_or("unknown CPU".to_string()), has.join(" "))
}

/// What is known of a contender in the end.
struct Row {
    name: String,
    is_ours: bool,
    seconds: Vec<f64>,
    memory: Option<f64>,
    /// In dB.
    agreement: Option<f64>,
    about: String,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        count if count.is_multiple_of(2) => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}

/// A Markdown table of contenders, with each of ours over each of them.
fn table(rows: &[Row]) -> String {
    let ours: Vec<&Row> = rows.iter().filter(|row| row.is_ours).collect();
    let mut text = "| contender | median | min | max |".to_string();
    for row in &ours {
        let _ = write!(text, " {} over it |", row.name);
    }
    text.push_str(" peak memory | PSNR to f32 | version |\n|");
    text.push_str(&" --- |".repeat(7 + ours.len()));
    text.push('\n');
    for row in rows {
        let least = row.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.seconds.iter().copied().fold(0.0, f64::max);
        let middle = median(&row.seconds);
        let _ = write!(text, "| {} | {middle:.3} s | {least:.3} s | {most:.3} s |", row.name);
        for our in &ours {
            let _ = write!(text, " {:.2} |", median(&our.seconds) / middle);
        }
        let or_unknown = |value: Option<String>| value.unwrap_or("not known".to_string());
        let memory = or_unknown(row.memory.map(|bytes| format!("{:.2} GB", bytes / 1e9)));
        let agreement = or_unknown(row.agreement.map(|decibels| format!("{decibels:.1} dB")));
        let _ = writeln!(text, " {memory} | {agreement} | {} |", row.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, is_ours: bool, seconds: &[f64]) -> Row {
        let about = "some 1.0".to_string();
        Row {
            name: name.to_string(),
            is_ours,
            seconds: seconds.to_vec(),
            memory: Some(2.5e9),
            agreement: None,
            about,
        }
    }

    #[test]
    fn ratios_are_those_of_medians() {
        let rows = [row("mixbit-f32", true, &[9.0, 2.0, 2.0]), row("other", false, &[4.0, 8.0])];
        let expected = "\
| contender | median | min | max | mixbit-f32 over it | peak memory | PSNR to f32 | version |
| --- | --- | --- | --- | --- | --- | --- | --- |
| mixbit-f32 | 2.000 s | 2.000 s | 9.000 s | 1.00 | 2.50 GB | not known | some 1.0 |
| other | 6.000 s | 4.000 s | 8.000 s | 0.33 | 2.50 GB | not known | some 1.0 |
";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn sizes_are_multiples_of_eight() {
        assert_eq!(parse_size("1024x768"), Ok([1024, 768]));
        for wrong in ["512", "512x", "x512", "512x510", "0x512", "512x512x3", "-8x8"] {
            assert!(parse_size(wrong).is_err_and(|error| error.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn vectors_are_read_back_from_numpy_files() -> Result<(), Box<dyn std::error::Error>> {
        for count in [0, 3, 1000] {
            let values: Vec<f32> = (0..count).map(|index| index as f32 - 0.5).collect();
            let read = mixbit_formats::npy::parse_npy("values", mixbit_mil::Bytes::new(npy(&values)))?;
            assert_eq!(read.ty().shape, [count]);
            assert_eq!(floats(&read.read()?), values);
        }
        Ok(())
    }

    #[test]
    fn each_matrix_is_transposed() {
        let values: Vec<f32> = (0..12).map(|index| index as f32).collect();
        let expected = [0.0, 3.0, 1.0, 4.0, 2.0, 5.0, 6.0, 9.0, 7.0, 10.0, 8.0, 11.0];
        assert_eq!(transposed(&values, 2, 3), expected);
        assert_eq!(transposed(&transposed(&values, 2, 3), 3, 2), values);
    }

    #[test]
    fn an_error_of_a_tenth_of_the_peak_is_twenty_decibels() {
        let decibels = agreement(&[1.1, -0.9], &[1.0, -1.0]).unwrap_or_default();
        assert!((decibels - 20.0).abs() < 1e-4, "{decibels}");
        assert_eq!(agreement(&[1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn memory_and_machine_are_read_from_what_linux_says() {
        assert_eq!(parse_peak("VmPeak:\t  9 kB\nVmHWM:\t  2000 kB\n"), Some(2_048_000.0));
        assert_eq!(parse_peak("VmPeak:\t  9 kB\n"), None);
        let info = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\nprocessor\t: 1\n";
        assert_eq!(machine(info), "2 x Some CPU (avx2 avx512f)");
    }

    #[test]
    fn sizes_are_told_for_every_sample() {
        assert_eq!(time_ids([16, 8], 6, 12), [8.0, 16.0, 0.0, 0.0, 8.0, 16.0].repeat(2));
    }
}
