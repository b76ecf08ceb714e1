//! The table that the benchmark prints.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use mixbit_packages::psnr::{mean_square, peak, psnr};

use super::options::{Arguments, name_of};
use crate::statistics::median;

/// The command, machine, date and load of a measurement.
pub(super) fn circumstances(arguments: &Arguments, threads: usize, load: &str) -> String {
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

/// The CPU's name and its instructions for narrow products, from Linux' `/proc/cpuinfo`.
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

/// The results of a contender.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) is_mixbit: bool,
    pub(super) seconds: Vec<f64>,
    pub(super) memory: Option<f64>,
    /// In dB.
    pub(super) agreement: Option<f64>,
    pub(super) about: String,
}

/// A Markdown table of contenders, with the ratio of each of mixbit's medians to each median.
pub(super) fn table(rows: &[Row]) -> String {
    let mixbits: Vec<&Row> = rows.iter().filter(|row| row.is_mixbit).collect();
    let mut text = "| contender | median | min | max |".to_string();
    for row in &mixbits {
        let _ = write!(text, " {} over it |", row.name);
    }
    text.push_str(" peak memory | PSNR to f32 | version |\n|");
    text.push_str(&" --- |".repeat(7 + mixbits.len()));
    text.push('\n');
    for row in rows {
        let least = row.seconds.iter().copied().fold(f64::INFINITY, f64::min);
        let most = row.seconds.iter().copied().fold(0.0, f64::max);
        let middle = median(&row.seconds);
        let _ = write!(text, "| {} | {middle:.3} s | {least:.3} s | {most:.3} s |", row.name);
        for mixbit in &mixbits {
            let _ = write!(text, " {:.2} |", median(&mixbit.seconds) / middle);
        }
        let or_unknown = |value: Option<String>| value.unwrap_or("not known".to_string());
        let memory = or_unknown(row.memory.map(|bytes| format!("{:.2} GB", bytes / 1e9)));
        let agreement = or_unknown(row.agreement.map(|decibels| format!("{decibels:.1} dB")));
        let _ = writeln!(text, " {memory} | {agreement} | {} |", row.about);
    }
    text
}

/// The PSNR between results in dB; nothing if their sizes differ.
pub(super) fn agreement(found: &[f32], expected: &[f32]) -> Option<f64> {
    let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let (found, expected) = (wide(found), wide(expected));
    (found.len() == expected.len()).then(|| {
        psnr(peak(expected.iter().copied()), mean_square(found.into_iter().zip(expected.iter().copied())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, is_mixbit: bool, seconds: &[f64]) -> Row {
        let about = "some 1.0".to_string();
        Row {
            name: name.to_string(),
            is_mixbit,
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
    fn an_error_of_a_tenth_of_the_peak_is_twenty_decibels() {
        let decibels = agreement(&[1.1, -0.9], &[1.0, -1.0]).unwrap_or_default();
        assert!((decibels - 20.0).abs() < 1e-4, "{decibels}");
        assert_eq!(agreement(&[1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn the_machine_is_read_from_cpuinfo() {
        let info = "processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f\nprocessor\t: 1\n";
        assert_eq!(machine(info), "2 x Some CPU (avx2 avx512f)");
    }
}
