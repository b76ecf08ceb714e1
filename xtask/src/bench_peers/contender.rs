//! A contender: a process that takes steps when it is asked to.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use mixbit_mil::DType;

use super::inputs::floats;

/// A process that takes steps.
pub(super) struct Contender {
    pub(super) name: String,
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// Framework and version, as the process reports them.
    pub(super) about: String,
    output: PathBuf,
    pub(super) seconds: Vec<f64>,
}

impl Contender {
    /// Starts a process and waits until it is ready.
    pub(super) fn start(name: &str, mut command: Command, output: PathBuf) -> anyhow::Result<Self> {
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

    /// Takes one step and returns its seconds.
    pub(super) fn step(&mut self) -> anyhow::Result<f64> {
        let answer = self.ask("step")?;
        answer.parse().with_context(|| format!("{} said {answer:?}", self.name))
    }

    /// The result of the last step.
    pub(super) fn save(&mut self) -> anyhow::Result<Vec<f32>> {
        let answer = self.ask("save")?;
        ensure!(answer == "saved", "{} said {answer:?}", self.name);
        let bytes = mixbit_formats::npy::open_npy(&self.output)?.cast(DType::F32).read()?.to_vec();
        Ok(floats(&bytes))
    }

    fn ask(&mut self, request: &str) -> anyhow::Result<String> {
        // The missing answer shows that a process has ended.
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

    /// The largest resident size so far in bytes, where the system reports it.
    pub(super) fn peak_memory(&self) -> Option<f64> {
        parse_peak(&fs::read_to_string(format!("/proc/{}/status", self.process.id())).ok()?)
    }

    pub(super) fn quit(mut self) {
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

/// A message about the end of a process, with advice.
fn ending(status: ExitStatus) -> String {
    #[cfg(unix)]
    if std::os::unix::process::ExitStatusExt::signal(&status) == Some(9) {
        return "was killed, as the system does when memory is short: choose fewer with --peers and --ours, or a smaller \
                --size"
            .to_string();
    }
    format!("ended early ({status}): see its messages above")
}

/// The peak of the resident size in bytes in a text of Linux' `/proc/PID/status`.
fn parse_peak(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_memory_is_read_from_the_status_of_a_process() {
        assert_eq!(parse_peak("VmPeak:\t  9 kB\nVmHWM:\t  2000 kB\n"), Some(2_048_000.0));
        assert_eq!(parse_peak("VmPeak:\t  9 kB\n"), None);
    }
}
