//! The measurements, as tables and as JSON.

use std::time::Duration;

use mixbit_diffusion::arch::AttentionImplementation;
use mixbit_diffusion::session::{Component, Precision, Request};
use mixbit_engine::Timing;
use serde_json::{Value, json};

use super::super::table::{Side, Table};
use super::measure::{Measured, Peaks};

/// The content of a report.
pub(super) struct Report<'a> {
    /// The model's name.
    pub(super) name: String,
    pub(super) request: &'a Request,
    pub(super) threads: usize,
    /// The time to read the model's files, excluding weights.
    pub(super) load: Duration,
    /// UNet evaluations per image.
    pub(super) evaluations: usize,
    pub(super) parts: &'a [Measured],
    pub(super) peaks: &'a Peaks,
    /// The measured time of a generated image; `None` if none was generated.
    pub(super) drawn: Option<Duration>,
    /// The peak resident set size in bytes.
    pub(super) memory: Option<u64>,
}

impl Report<'_> {
    fn of(&self, component: Component) -> impl Iterator<Item = &Measured> {
        self.parts.iter().filter(move |part| part.component == component)
    }

    fn unet(&self) -> Option<&Measured> {
        self.of(Component::Unet).next()
    }

    fn decoder(&self) -> Option<&Measured> {
        self.of(Component::Decoder).next()
    }

    fn attention(&self) -> Option<AttentionImplementation> {
        self.unet().and_then(|unet| unet.attention)
    }

    /// Seconds for the prompts, if they were encoded.
    fn text(&self) -> Option<f64> {
        let text: Vec<f64> = self.of(Component::TextEncoder).map(Measured::median).collect();
        (!text.is_empty()).then(|| text.iter().sum())
    }

    /// Seconds from the start to the UNet's first step: loading, the prompts and compiling.
    fn until_first_step(&self) -> Option<f64> {
        let unet = self.unet()?;
        self.text()?;
        let text: Duration = self.of(Component::TextEncoder).map(|part| part.prepare + part.first).sum();
        Some((self.load + text + unet.prepare).as_secs_f64())
    }

    /// Seconds per image: measured, or computed from the parts. The computed value counts the first run of
    /// each part in full, and the other steps at their median.
    fn end_to_end(&self) -> Option<f64> {
        if let Some(drawn) = self.drawn {
            return Some(drawn.as_secs_f64());
        }
        let (unet, decoder) = (self.unet()?, self.decoder()?);
        let more_steps = self.evaluations.saturating_sub(1) as f64 * unet.median();
        let decoding = (decoder.prepare + decoder.first).as_secs_f64();
        Some(self.until_first_step()? + unet.first.as_secs_f64() + more_steps + decoding)
    }

    /// The report as text tables.
    pub(super) fn tables(&self, profile: bool) -> String {
        let [width, height] = self.request.size;
        let (summary, times, rates) = (self.summary(), self.times(), self.rates());
        let mut text = format!("{}, {width}x{height}\n{summary}\n\n{times}\n\n{rates}\n\n", self.name);
        let peaks = self.peaks.all().iter().map(|(precision, peak)| match peak {
            Some(peak) => {
                let unit = if *precision == Precision::Int8 { "Gop/s" } else { "GFLOP/s" };
                format!("{} {:.0} {unit}", precision.name(), peak / 1e9)
            }
            None => format!("{} not known", precision.name()),
        });
        text += &format!("measured peak of the CPU: {}", peaks.collect::<Vec<_>>().join(", "));
        if profile {
            for part in self.parts {
                text += &format!("\n\n{}\n{}", part.folder, self.profile_table(part));
            }
        }
        text
    }

    /// The facts of the whole, a line for each.
    fn summary(&self) -> String {
        let mut lines = vec![
            ("device", device()),
            ("threads", self.threads.to_string()),
            ("precision", self.request.precision.name().to_string()),
        ];
        lines.extend(self.attention().map(|attention| ("attention", attention.name().to_string())));
        lines.extend(self.unet().map(|unet| {
            let median = unet.median().max(1e-9);
            ("speed", format!("{} a step, {:.3} iterations/s", time(median), 1.0 / median))
        }));
        let steps = self.request.steps;
        lines.extend(self.end_to_end().map(|seconds| {
            let source = if self.drawn.is_some() { "measured" } else { "computed from the parts" };
            ("an image", format!("{} in {steps} steps, {source}", time(seconds)))
        }));
        lines.extend(self.until_first_step().map(|seconds| {
            let load = time(self.load.as_secs_f64());
            ("first step", format!("after {}, of them {load} for reading the model", time(seconds)))
        }));
        lines.extend(self.memory.map(|bytes| ("memory", format!("{:.0} MB at most", bytes as f64 / 1e6))));
        let lines = lines.into_iter().map(|(name, value)| format!("  {name:<12}{value}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn times(&self) -> Table<6> {
        let mut table = Table::new([
            ("part", Side::Left),
            ("prepare", Side::Right),
            ("first run", Side::Right),
            ("median", Side::Right),
            ("least", Side::Right),
            ("most", Side::Right),
        ]);
        for part in self.parts {
            let [least, most] = part.extremes();
            table.row([
                part.folder.clone(),
                time(part.prepare.as_secs_f64()),
                time(part.first.as_secs_f64()),
                time(part.median()),
                time(least),
                time(most),
            ]);
        }
        table
    }

    /// The work of each part: its unit, precision and rate.
    fn rates(&self) -> Table<5> {
        let mut table = Table::new([
            ("part", Side::Left),
            ("a run is", Side::Left),
            ("precision", Side::Left),
            ("GFLOP/s", Side::Right),
            ("of peak", Side::Right),
        ]);
        for part in self.parts {
            table.row([
                part.folder.clone(),
                unit(part.component).to_string(),
                part.precision.name().to_string(),
                format!("{:.1}", part.rate() / 1e9),
                self.of_peak(part, part.rate()).map_or("-".to_string(), percent),
            ]);
        }
        table
    }

    /// A rate as a fraction of the machine's peak.
    fn of_peak(&self, part: &Measured, rate: f64) -> Option<f64> {
        self.peaks.of(part.precision).map(|peak| rate / peak)
    }

    fn profile_table(&self, part: &Measured) -> Table<6> {
        let mut table = Table::new([
            ("op", Side::Left),
            ("steps", Side::Right),
            ("time", Side::Right),
            ("share", Side::Right),
            ("GFLOP/s", Side::Right),
            ("of peak", Side::Right),
        ]);
        for row in self.profile(part) {
            let rate = |rate: f64| format!("{:.1}", rate / 1e9);
            table.row([
                row.kind.to_string(),
                row.steps.to_string(),
                time(row.seconds),
                percent(row.share),
                row.rate.map_or("-".to_string(), rate),
                row.of_peak.map_or("-".to_string(), percent),
            ]);
        }
        table
    }

    fn profile<'p>(&self, part: &'p Measured) -> Vec<Row<'p>> {
        let total: f64 = part.profile.iter().map(|timing| timing.time.as_secs_f64()).sum();
        let row = |timing: &'p Timing| {
            let seconds = timing.time.as_secs_f64();
            let rate = 2.0 * timing.multiply_adds as f64 / seconds.max(1e-9);
            let rate = (timing.multiply_adds > 0).then_some(rate);
            Row {
                kind: &timing.kind,
                steps: timing.steps,
                seconds: seconds / part.runs.len().max(1) as f64,
                share: seconds / total.max(1e-9),
                rate,
                of_peak: rate.and_then(|rate| self.of_peak(part, rate)),
            }
        };
        part.profile.iter().map(row).collect()
    }

    /// The report as one JSON object.
    pub(super) fn json(&self) -> Value {
        let part = |part: &Measured| {
            let [least, most] = part.extremes();
            let profile: Vec<Value> = self.profile(part).iter().map(Row::json).collect();
            json!({
                "component": part.folder,
                "role": role(part.component),
                "precision": part.precision.name(),
                "evaluations": part.evaluations,
                "prepare_seconds": part.prepare.as_secs_f64(),
                "first_seconds": part.first.as_secs_f64(),
                "seconds": part.runs.iter().map(Duration::as_secs_f64).collect::<Vec<_>>(),
                "median_seconds": part.median(),
                "min_seconds": least,
                "max_seconds": most,
                "operations": part.operations(),
                "operations_per_second": part.rate(),
                "of_peak": self.of_peak(part, part.rate()),
                "profile": profile,
            })
        };
        let peaks: serde_json::Map<String, Value> = self
            .peaks
            .all()
            .iter()
            .map(|(precision, peak)| (precision.name().to_string(), json!(peak)))
            .collect();
        json!({
            "model": self.name,
            "width": self.request.size[0],
            "height": self.request.size[1],
            "device": device(),
            "threads": self.threads,
            "precision": self.request.precision.name(),
            "attention": self.attention().map(AttentionImplementation::name),
            "steps": self.request.steps,
            "evaluations": self.evaluations,
            "guidance_scale": self.request.guidance_scale,
            "load_seconds": self.load.as_secs_f64(),
            "text_seconds": self.text(),
            "first_step_after_seconds": self.until_first_step(),
            "seconds_per_step": self.unet().map(Measured::median),
            "iterations_per_second": self.unet().map(|unet| 1.0 / unet.median().max(1e-9)),
            "decode_seconds": self.decoder().map(Measured::median),
            "end_to_end_seconds": self.end_to_end(),
            "end_to_end_is_computed": self.drawn.is_none(),
            "peak_operations_per_second": peaks,
            "peak_memory_bytes": self.memory,
            "parts": self.parts.iter().map(part).collect::<Vec<_>>(),
        })
    }
}

/// One kind of op in a part's profile.
struct Row<'p> {
    kind: &'p str,
    steps: usize,
    /// Seconds per run.
    seconds: f64,
    share: f64,
    /// Operations per second; `None` for ops that do not multiply.
    rate: Option<f64>,
    of_peak: Option<f64>,
}

impl Row<'_> {
    fn json(&self) -> Value {
        json!({
            "op": self.kind,
            "steps": self.steps,
            "seconds": self.seconds,
            "share": self.share,
            "operations_per_second": self.rate,
            "of_peak": self.of_peak,
        })
    }
}

/// The unit of work in one run of a part.
fn unit(component: Component) -> &'static str {
    match component {
        Component::TextEncoder => "the prompts",
        Component::Unet => "a step",
        Component::Encoder | Component::Decoder => "an image",
    }
}

/// A part's name on the command line.
fn role(component: Component) -> &'static str {
    super::PARTS.iter().find(|(_, other)| *other == component).map_or("", |(name, _)| name)
}

/// A human-readable duration.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.1} ms", 1e3 * seconds),
        seconds => format!("{seconds:.2} s"),
    }
}

fn percent(part: f64) -> String {
    format!("{:.1} %", 100.0 * part)
}

/// The CPU's name if the system reports it, else its architecture.
pub(in crate::cli) fn device() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|name| name.trim_start().strip_prefix(':')).map(str::trim);
    name.filter(|name| !name.is_empty()).unwrap_or(std::env::consts::ARCH).to_string()
}
