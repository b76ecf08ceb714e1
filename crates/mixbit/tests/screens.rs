//! The screens that commands leave on a terminal of 80 and of 50 columns, in `tests/screens/`. Times, rates
//! and sizes are masked. `UPDATE_SCREENS=1 cargo test --test screens` writes them again.
//!
//! The terminal is tmux; without it nothing is tested, and the test fails in CI (`CI=true`).
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mixbit_testkit::{Failures, Scratch, fixture_root};

type Error = Box<dyn std::error::Error>;

/// The commands by the names of their screens. `demo` and `sd15` are models.
const COMMANDS: [(&str, &str); 7] = [
    ("generate", "generate 'a lighthouse (at night:1.2) on a cliff' --steps 2 --seed 7"),
    ("convert", "convert demo --bundle-resources-for-swift-cli -o out"),
    ("palettize", "palettize demo --nbits 6 --part text_encoder -o out"),
    ("analyze", "analyze sd15 --effort low --steps 2 --target-bits 4 --no-images -o out"),
    ("compare", "compare --models demo --schemes palette-2 --steps 1 'a red circle' 'a blue square'"),
    ("bench", "bench demo --runs 1 --precision f32 --only text,vae"),
    ("mistake", "generate 'a red circle' --smapler euler"),
];

/// The time that a command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A tmux server of its own, which ends with the value.
struct Terminal {
    name: String,
}

impl Terminal {
    fn tmux(&self, arguments: &[&str]) -> Result<String, Error> {
        let output =
            Command::new("tmux").args(["-L", &self.name, "-f", "/dev/null"]).args(arguments).output()?;
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout)?),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
        }
    }

    /// The screen of so many columns after a command of mixbit in a directory.
    fn screen(&self, directory: &Path, columns: usize, command: &str) -> Result<String, Error> {
        let script = format!(
            "cd '{}'; unset MIXBIT_MODEL NO_COLOR; '{}' {command}; echo \"exit $?\"; sleep 300",
            directory.display(),
            env!("CARGO_BIN_EXE_mixbit")
        );
        self.tmux(&[
            "new-session",
            "-d",
            "-x",
            &columns.to_string(),
            "-y",
            "60",
            "-s",
            "s",
            "sh",
            "-c",
            &script,
        ])?;
        let begin = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let screen = self.tmux(&["capture-pane", "-p", "-J", "-t", "s"])?;
            if screen.lines().any(|line| line.starts_with("exit ")) {
                return Ok(screen.trim_end().to_string() + "\n");
            }
            if begin.elapsed() > PATIENCE {
                return Err(format!("`{command}` does not end: {screen}").into());
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

/// A screen without what differs from run to run: times, rates and memory, digits after a point, the CPU.
fn masked(screen: &str) -> String {
    let lines: Vec<String> = screen.lines().map(masked_line).collect();
    lines.join("\n").replace("about a second", "about # s").replace("about # min", "about # s") + "\n"
}

fn masked_line(line: &str) -> String {
    if let Some(name) = ["device", "threads"].into_iter().find(|name| line.trim_start().starts_with(name)) {
        return format!("  {name:<12}#");
    }
    // The columns of times are as wide as the times.
    if line.trim_start().starts_with("part ") {
        return line.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let words: Vec<&str> = line.split(' ').collect();
    let units = ["s", "s,", "s:", "ms", "min", "MB", "MB,", "GFLOP/s", "iterations/s"];
    let has_unit = |index: usize| words.get(index + 1).is_some_and(|next| units.contains(next));
    let is_number = |word: &str| word.trim_end_matches([',', ':']).parse::<f64>().is_ok();
    let is_timed = (0..words.len()).any(|index| is_number(words[index]) && has_unit(index));
    let is_timed = is_timed || line.ends_with('%');
    let mask = |(index, word): (usize, &&str)| match is_number(word) {
        true if has_unit(index) || is_timed && word.contains('.') => "#".to_string(),
        true if word.contains('.') => {
            word.chars().map(|c| if c.is_ascii_digit() { '#' } else { c }).collect()
        }
        _ => word.to_string(),
    };
    let text: Vec<String> = words.iter().enumerate().map(mask).collect();
    match is_timed {
        // Numbers of other widths move the columns.
        true => text.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" "),
        false => text.join(" "),
    }
}

#[test]
fn screens_are_as_they_were_looked_at() -> Result<(), Error> {
    if Command::new("tmux").arg("-V").output().is_err() {
        if std::env::var("CI").is_ok_and(|ci| ci == "true") {
            return Err("tmux is not there: install it, so that screens are tested".into());
        }
        eprintln!("tmux is not there: no screen is tested");
        return Ok(());
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/screens");
    let models: [(&str, PathBuf); 2] = [
        ("demo", Path::new(env!("CARGO_MANIFEST_DIR")).join("../app/demo").canonicalize()?),
        ("sd15", fixture_root().join("pipelines/sd15").canonicalize()?),
    ];
    let mut failures = Failures::new("screens");
    for (name, command) in COMMANDS {
        for columns in [80, 50] {
            failures.case(&format!("{name}, {columns} columns"), || -> Result<(), Error> {
                let scratch = Scratch::new();
                for (model, path) in &models {
                    std::os::unix::fs::symlink(path, scratch.path().join(model))?;
                }
                let terminal = Terminal { name: format!("mixbit-{}-{name}-{columns}", std::process::id()) };
                let screen = terminal.screen(scratch.path(), columns, command)?;
                let masked = masked(&screen);
                let path = kept.join(format!("{name}-{columns}.txt"));
                if std::env::var_os("UPDATE_SCREENS").is_some() {
                    fs::create_dir_all(&kept)?;
                    return Ok(fs::write(path, masked)?);
                }
                let expected = fs::read_to_string(&path)?;
                match masked == expected {
                    true => Ok(()),
                    false => Err(format!("{command}\n--- kept\n{expected}--- now\n{masked}").into()),
                }
            });
        }
    }
    failures.finish();
    Ok(())
}
