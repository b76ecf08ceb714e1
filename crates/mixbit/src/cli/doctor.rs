//! `mixbit doctor`.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use mixbit_diffusion::session::Precision;
use serde_json::{Value, json};

use super::backends::Machine;
use super::bench::{cache_directory, device};
use super::colour::{self, Style};
use super::progress::Progress;
use super::table::byte_size;
use super::{memory, print_line};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  mixbit doctor
  mixbit doctor --clean                                   (empties mixbit's caches)")]
pub(super) struct Arguments {
    /// Empty mixbit's caches
    #[arg(long)]
    clean: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A directory with files that mixbit makes again when they are needed.
struct Cache {
    content: &'static str,
    directory: PathBuf,
}

/// Every cache.
fn caches() -> [Cache; 1] {
    [Cache { content: "models with random weights, of bench --synthetic", directory: cache_directory() }]
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.clean {
        for cache in caches() {
            let bytes = size(&cache.directory);
            clean(&cache.directory)
                .with_context(|| format!("{} can't be emptied", cache.directory.display()))?;
            print_line(format_args!("{}: {} removed", cache.directory.display(), byte_size(bytes as usize)))?;
        }
        return Ok(());
    }
    let machine = Machine::new(None)?;
    let rates: Vec<(Precision, Option<f64>)> = {
        let _measuring = Progress::new(arguments.json).wait("measuring the CPU");
        let measured = |&precision: &Precision| (precision, machine.peak(precision.arithmetic()));
        // f16 is f32 that is rounded.
        Precision::ALL.iter().filter(|precision| **precision != Precision::F16).map(measured).collect()
    };
    match arguments.json {
        true => print_line(format_args!("{:#}", to_json(&machine, &rates))),
        false => print_line(to_text(&machine, &rates)),
    }
}

/// A line for each fact, under headings.
fn to_text(machine: &Machine, rates: &[(Precision, Option<f64>)]) -> String {
    let mut text = String::new();
    let mut heading = |name: &str, lines: Vec<(String, String)>| {
        text += &format!("{}\n", colour::on_stdout(Style::Strong, name));
        for (name, value) in lines {
            text += &format!("  {name:<14}{value}\n");
        }
    };
    let line = |name: &str, value: String| (name.to_string(), value);
    heading(
        "mixbit",
        vec![
            line("version", env!("CARGO_PKG_VERSION").to_string()),
            line("system", format!("{} on {}", env::consts::OS, env::consts::ARCH)),
            line(
                "demo model",
                if cfg!(feature = "demo-model") { "in this binary" } else { "absent" }.to_string(),
            ),
        ],
    );
    let fastest = Precision::fastest(&*machine.backend);
    heading(
        "CPU",
        vec![
            line("name", device()),
            line("threads", machine.threads.to_string()),
            line("instructions", or_none(&instructions())),
            line("auto", format!("--precision auto is {}", fastest.name())),
        ],
    );
    let rate = |(precision, rate): &(Precision, Option<f64>)| {
        let rate = rate.map_or("no instructions of its own".to_string(), |rate| {
            format!("{:.0} billion operations/s", rate / 1e9)
        });
        line(precision.name(), rate)
    };
    heading("peak by precision", rates.iter().map(rate).collect());
    let memory = |name: &str, bytes: Option<u64>| {
        line(name, bytes.map_or("not known".to_string(), |bytes| format!("{:.0} MB", bytes as f64 / 1e6)))
    };
    let [total, free] = memory::of_system();
    heading("memory", vec![memory("total", total), memory("free", free)]);
    let model = env::var("MIXBIT_MODEL").ok().filter(|model| !model.is_empty());
    let model = model.unwrap_or_else(|| "not set".to_string());
    heading("settings", vec![line("MIXBIT_MODEL", model)]);
    let cache = |cache: Cache| {
        let bytes = size(&cache.directory);
        let state = if bytes == 0 { "empty".to_string() } else { byte_size(bytes as usize) };
        [
            line("directory", cache.directory.display().to_string()),
            line("content", cache.content.to_string()),
            line("size", format!("{state}; --clean empties it")),
        ]
    };
    heading("caches", caches().into_iter().flat_map(cache).collect());
    text.trim_end().to_string()
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none beyond the architecture's own".to_string() } else { names.join(" ") }
}

fn to_json(machine: &Machine, rates: &[(Precision, Option<f64>)]) -> Value {
    let [total, free] = memory::of_system();
    let rates: serde_json::Map<String, Value> =
        rates.iter().map(|(precision, rate)| (precision.name().to_string(), json!(rate))).collect();
    let cache = |cache: Cache| {
        json!({
            "directory": cache.directory.to_string_lossy(),
            "content": cache.content,
            "bytes": size(&cache.directory),
        })
    };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "os": env::consts::OS,
        "architecture": env::consts::ARCH,
        "device": device(),
        "threads": machine.threads,
        "instructions": instructions(),
        "precision": Precision::fastest(&*machine.backend).name(),
        "peak_operations_per_second": rates,
        "memory_bytes": total,
        "free_memory_bytes": free,
        "caches": caches().into_iter().map(cache).collect::<Vec<_>>(),
    })
}

/// The instruction sets beyond the architecture's own that this CPU has and mixbit may use.
#[cfg(target_arch = "x86_64")]
fn instructions() -> Vec<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    let all = [
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vbmi", has!("avx512vbmi")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
    ];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// The instruction sets beyond the architecture's own that this CPU has and mixbit may use.
#[cfg(target_arch = "aarch64")]
fn instructions() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected as has;
    let all = [("neon", has!("neon")), ("dotprod", has!("dotprod")), ("bf16", has!("bf16"))];
    all.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

/// The instruction sets beyond the architecture's own that this CPU has and mixbit may use.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Vec<&'static str> {
    Vec::new()
}

/// The bytes of all files below a directory; links are not followed.
fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let one = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path()),
        Ok(metadata) if metadata.is_file() => metadata.len(),
        _ => 0,
    };
    entries.map(one).sum()
}

/// Removes a directory with all that is in it. A link or a file in its place is refused.
fn clean(directory: &Path) -> io::Result<()> {
    match fs::symlink_metadata(directory) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(directory),
        Ok(_) => Err(io::Error::new(io::ErrorKind::NotADirectory, "it is no directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_directory_is_emptied() {
        let scratch = mixbit_testkit::Scratch::new();
        let cache = scratch.path().join("cache");
        fs::create_dir_all(cache.join("a/b")).unwrap();
        fs::write(cache.join("a/b/c"), [0; 1000]).unwrap();
        let file = scratch.file("file", &[0; 10]);
        assert_eq!(size(&cache), 1000);
        assert!(clean(&file).is_err() && file.exists());
        #[cfg(unix)]
        {
            let link = scratch.path().join("link");
            std::os::unix::fs::symlink(&cache, &link).unwrap();
            assert!(clean(&link).is_err() && cache.join("a/b/c").exists());
        }
        clean(&cache).unwrap();
        clean(&cache).unwrap();
        assert!(!cache.exists());
    }
}
