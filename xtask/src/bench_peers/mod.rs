//! The same network, shapes and weights in mixbit, OpenVINO and PyTorch, in turn on one machine.
//!
//! Every contender is a process of its own, with its own threads and memory: a peer is
//! `tools/bench-peers/peer.py`, mixbit is this program again with `--serve`. All are loaded before the first
//! round. Each answers a request with one line: `step` with its seconds, `save` once the result is in a file.

mod contender;
mod inputs;
mod options;
mod report;
mod serve;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use mixbit_engine_cpu::Cpu;

use crate::repository;
use contender::Contender;
pub(crate) use options::Arguments;
use options::{Network, Peer, Precision, name_of};
use report::{Row, agreement, circumstances, table};

/// A pause between two steps, so that no thread of the last one still spins.
const PAUSE: Duration = Duration::from_millis(300);

/// The least time of a contender's uncounted steps: the first few vary.
const WARM_UP: Duration = Duration::from_secs(1);

/// Runs all contenders' steps in turn, and prints a table of times, ratios, memory and agreement.
///
/// # Errors
/// If a contender can't be run.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Some(precision) = arguments.serve {
        return serve::serve(arguments, precision);
    }
    ensure!(
        arguments.part == Network::Unet || !arguments.ours.contains(&Precision::Int8),
        "only the UNet is computed in int8: choose others with --ours"
    );
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    fs::create_dir_all(&arguments.scratch)
        .with_context(|| format!("{} can't be made", arguments.scratch.display()))?;
    let threads = Cpu::new(arguments.threads)?.threads();
    inputs::write(arguments)?;
    let python = if arguments.peers.is_empty() { None } else { Some(python(arguments)?) };

    let bench = Bench { arguments, threads, python };
    let dense = bench.reference(&arguments.model);
    let packaged = arguments.palettized.as_deref().map(|path| bench.reference(path));
    let mut contenders = bench.contenders()?;
    warm_up(&mut contenders)?;
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    take_rounds(&mut contenders, arguments.rounds)?;
    let mut rows = Vec::new();
    for (index, contender) in contenders.into_iter().enumerate() {
        let is_mixbit = index < arguments.ours.len();
        let reference = packaged.as_ref().filter(|_| is_mixbit).unwrap_or(&dense);
        rows.push(row(contender, is_mixbit, reference.as_deref()));
    }
    print!("{}", circumstances(arguments, threads, &load));
    print!("{}", table(&rows));
    Ok(())
}

/// Lets each contender take uncounted steps.
fn warm_up(contenders: &mut [Contender]) -> anyhow::Result<()> {
    for contender in contenders {
        let begin = Instant::now();
        loop {
            let seconds = contender.step()?;
            eprintln!("warm-up: {} {seconds:.3} s", contender.name);
            if begin.elapsed() >= WARM_UP {
                break;
            }
        }
    }
    Ok(())
}

fn take_rounds(contenders: &mut [Contender], rounds: usize) -> anyhow::Result<()> {
    for round in 1..=rounds {
        for contender in contenders.iter_mut() {
            thread::sleep(PAUSE);
            let seconds = contender.step()?;
            eprintln!("round {round}: {} {seconds:.3} s", contender.name);
            contender.seconds.push(seconds);
        }
    }
    Ok(())
}

/// The row of a contender, which is ended.
fn row(mut contender: Contender, is_mixbit: bool, reference: Option<&[f32]>) -> Row {
    let agreement = reference.and_then(|reference| agreement(&contender.save().ok()?, reference));
    let row = Row {
        name: contender.name.clone(),
        is_mixbit,
        seconds: contender.seconds.clone(),
        memory: contender.peak_memory(),
        agreement,
        about: contender.about.clone(),
    };
    contender.quit();
    row
}

/// Starts contenders.
struct Bench<'a> {
    arguments: &'a Arguments,
    threads: usize,
    python: Option<PathBuf>,
}

impl Bench<'_> {
    /// All contenders, mixbit's first.
    fn contenders(&self) -> anyhow::Result<Vec<Contender>> {
        let arguments = self.arguments;
        let path = arguments.palettized.as_deref().unwrap_or(&arguments.model);
        let mixbit = arguments.ours.iter().map(|&precision| self.mixbit(precision, path));
        let peers = arguments.peers.iter().map(|&peer| self.peer(peer));
        mixbit.chain(peers).collect()
    }

    /// mixbit's f32 result from a model; nothing, with a message, if the model can't be run so.
    fn reference(&self, path: &Path) -> Option<Vec<f32>> {
        let attempt = || {
            let mut contender = self.mixbit(Precision::F32, path)?;
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

    fn mixbit(&self, precision: Precision, path: &Path) -> anyhow::Result<Contender> {
        let arguments = self.arguments;
        let [width, height] = arguments.size;
        let mut command = Command::new(std::env::current_exe().context("this program can't find itself")?);
        command.arg("bench-peers").arg("--serve").arg(name_of(precision)).arg("--model").arg(path);
        command.args(["--part", &name_of(arguments.part), "--size", &format!("{width}x{height}")]);
        command.args(["--batch", &arguments.samples().to_string(), "--threads", &self.threads.to_string()]);
        command.arg("--scratch").arg(&arguments.scratch);
        if arguments.keep_text {
            command.arg("--keep-text");
        }
        Contender::start(
            &format!("mixbit-{}", name_of(precision)),
            command,
            arguments.output_path(&name_of(precision)),
        )
    }

    fn peer(&self, peer: Peer) -> anyhow::Result<Contender> {
        let arguments = self.arguments;
        let name = name_of(peer);
        let output = arguments.output_path(&name);
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
        command.arg("--inputs").arg(arguments.inputs_path()).arg("--output").arg(&output);
        Contender::start(&name, command, output)
    }
}

/// The Python of the peers: the given one, or that of an environment that is made if it is absent.
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
        "the packages can't be installed: that needs the package index and 8 GB of disk (2 GB with PyTorch's CPU wheels, see \
         tools/bench-peers/README.md); or give an environment that has them with --python"
    );
    fs::write(&made, wanted)?;
    Ok(python)
}
