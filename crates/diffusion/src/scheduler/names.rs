//! Schedulers by the names that people type: those of diffusers, AUTOMATIC1111, ComfyUI, k-diffusion and
//! InvokeAI.
//!
//! Names are compared without regard to case, spaces, `_` and `-`, and `+` is `p`: `DPM++ 2M Karras`,
//! `dpmpp_2m_karras` and `dpmpp-2m-karras` are one name. A row of [`VARIANTS`] may follow the scheduler.

use std::fmt;

use super::error::SchedulerError;
use super::words::{SigmaSchedule, TimestepSpacing};
use super::{SCHEDULERS, SchedulerEntry};

/// The longest name that is looked up; error messages search it for the nearest known name.
const LONGEST: usize = 64;

/// A word after a scheduler's name that chooses among its schedules: a row of [`VARIANTS`].
#[derive(Debug, PartialEq, Eq)]
pub struct SchedulerVariant {
    /// The word.
    pub name: &'static str,
    /// Words of other programs for the same.
    pub aliases: &'static [&'static str],
    pub(super) choice: Choice,
}

/// The schedule that a variant chooses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Choice {
    Sigmas(SigmaSchedule),
    Spacing(TimestepSpacing),
}

const fn sigmas(schedule: SigmaSchedule, aliases: &'static [&'static str]) -> SchedulerVariant {
    SchedulerVariant { name: schedule.name(), aliases, choice: Choice::Sigmas(schedule) }
}

/// The words that may follow a scheduler's name. diffusers' documentation equates AUTOMATIC1111's
/// `SGM Uniform` and `Simple` with trailing timesteps.
pub static VARIANTS: &[SchedulerVariant] = &[
    sigmas(SigmaSchedule::Karras, &["k"]),
    sigmas(SigmaSchedule::Exponential, &[]),
    sigmas(SigmaSchedule::Beta, &[]),
    sigmas(SigmaSchedule::Lu, &[]),
    sigmas(SigmaSchedule::Trained, &["normal", "uniform"]),
    SchedulerVariant {
        name: "trailing",
        aliases: &["sgm-uniform", "simple"],
        choice: Choice::Spacing(TimestepSpacing::Trailing),
    },
];

/// A scheduler by name.
#[derive(Debug, Clone, Copy)]
pub struct NamedScheduler {
    /// The scheduler.
    pub entry: &'static SchedulerEntry,
    /// The word after its name.
    pub variant: Option<&'static SchedulerVariant>,
}

/// The name on the command line, with the variant after it.
impl fmt::Display for NamedScheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)?;
        self.variant.map_or(Ok(()), |variant| write!(f, "-{}", variant.name))
    }
}

/// The scheduler of a name.
///
/// # Errors
///
/// [`SchedulerError::UnknownScheduler`], with the nearest known name; [`SchedulerError::VariantAlone`].
pub fn scheduler_of_name(name: &str) -> Result<NamedScheduler, SchedulerError> {
    let unknown = || SchedulerError::UnknownScheduler {
        name: name.chars().take(LONGEST).collect(),
        nearest: nearest(name),
        known: names_where(|_| true),
    };
    if name.chars().count() > LONGEST {
        return Err(unknown());
    }
    let folded = folded(name);
    // k-diffusion's functions are `sample_euler`; the first web UIs called them `k_euler`.
    let bare = ["sample", "k"].into_iter().filter_map(|prefix| folded.strip_prefix(prefix));
    let found = std::iter::once(&folded[..]).chain(bare).find_map(of_folded);
    let is_alone = |variant: &&SchedulerVariant| {
        variant.aliases.iter().copied().chain([variant.name]).any(|word| self::folded(word) == folded)
    };
    found.ok_or_else(|| match VARIANTS.iter().find(is_alone) {
        Some(variant) => SchedulerError::VariantAlone { name: name.to_string(), variant: variant.name },
        None => unknown(),
    })
}

fn of_folded(name: &str) -> Option<NamedScheduler> {
    if let Some(entry) = entry_of(name) {
        return Some(NamedScheduler { entry, variant: None });
    }
    VARIANTS.iter().find_map(|variant| {
        let words = variant.aliases.iter().copied().chain([variant.name]);
        let entry = words.filter_map(|word| name.strip_suffix(&folded(word)[..])).find_map(entry_of)?;
        Some(NamedScheduler { entry, variant: Some(variant) })
    })
}

fn entry_of(name: &str) -> Option<&'static SchedulerEntry> {
    SCHEDULERS.iter().find(|entry| entry.names().any(|known| folded(known) == name))
}

impl SchedulerEntry {
    /// Every name of the scheduler: the command line's, the common one, aliases, and diffusers' class with
    /// and without `Scheduler` at its end.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let class = [self.class, self.class.strip_suffix("Scheduler").unwrap_or(self.class)];
        [self.name, self.label].into_iter().chain(self.aliases.iter().copied()).chain(class)
    }
}

/// The names of some schedulers, separated by commas.
pub(crate) fn names_where(is_meant: impl Fn(&SchedulerEntry) -> bool) -> String {
    let names = SCHEDULERS.iter().filter(|entry| is_meant(entry)).map(|entry| entry.name);
    names.collect::<Vec<_>>().join(", ")
}

/// The name in lower case, without its separators.
pub(super) fn folded(name: &str) -> String {
    let folded = name.chars().filter_map(|c| match c {
        '+' => Some('p'),
        c => c.is_alphanumeric().then_some(c),
    });
    folded.flat_map(char::to_lowercase).collect()
}

/// The known name that takes the fewest edits, if it takes few.
fn nearest(name: &str) -> Option<&'static str> {
    let name = folded(name);
    if name.len() > LONGEST {
        return None;
    }
    let distance = |entry: &'static SchedulerEntry| {
        entry.names().map(|known| (edits(&name, &folded(known)), entry.name)).min()
    };
    let (edits, nearest) = SCHEDULERS.iter().filter_map(distance).min()?;
    (edits <= 1 + name.len() / 4).then_some(nearest)
}

/// The Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_program_are_understood() {
        let cases = [
            ("DPM++ 2M Karras", "dpmpp-2m-karras"),
            ("dpmpp_2m", "dpmpp-2m"),
            ("dpm++2m", "dpmpp-2m"),
            ("DPM-Solver++", "dpmpp-2m"),
            ("DPMSolverMultistepScheduler", "dpmpp-2m"),
            ("DPMSolverMultistep", "dpmpp-2m"),
            ("DPM++ 2M SDE Exponential", "dpmpp-2m-sde-exponential"),
            ("dpmpp_2m_sde_gpu", "dpmpp-2m-sde"),
            ("DPM++ SDE Karras", "dpmpp-sde-karras"),
            ("dpmpp_sde", "dpmpp-sde"),
            ("dpmpp_2m_sde_k", "dpmpp-2m-sde-karras"),
            ("Euler a", "euler-ancestral"),
            ("EULER_A", "euler-ancestral"),
            ("k_euler_a", "euler-ancestral"),
            ("euler_ancestral", "euler-ancestral"),
            ("sample_euler", "euler"),
            ("Euler SGM Uniform", "euler-trailing"),
            ("euler_simple", "euler-trailing"),
            ("Euler A Trailing", "euler-ancestral-trailing"),
            ("euler normal", "euler-trained"),
            ("DPM2", "dpm2"),
            ("DPM2 a Karras", "dpm2-ancestral-karras"),
            ("dpm_2_ancestral", "dpm2-ancestral"),
            ("kdpm_2_a", "dpm2-ancestral"),
            ("k_dpm_2", "dpm2"),
            ("KDPM2AncestralDiscreteScheduler", "dpm2-ancestral"),
            ("LMS Karras", "lms-karras"),
            ("uni_pc", "unipc"),
            ("uni_pc_bh2", "unipc"),
            ("UniPC", "unipc"),
            ("deis", "deis"),
            ("ddim", "ddim"),
            ("PLMS", "pndm"),
            ("ipndm", "ipndm"),
            ("lcm", "lcm"),
            ("TCD", "tcd"),
            ("sa_solver", "sa-solver"),
            ("Discrete Flow", "flow-euler"),
        ];
        let mut failures = mixbit_testkit::Failures::new("names");
        for (name, expected) in cases {
            failures.case(name, || match scheduler_of_name(name) {
                Ok(named) if named.to_string() == expected => Ok(()),
                Ok(named) => Err(named.to_string()),
                Err(error) => Err(error.to_string()),
            });
        }
        failures.finish();
    }

    #[test]
    fn every_name_is_that_of_one_row() {
        let mut failures = mixbit_testkit::Failures::new("rows");
        for entry in SCHEDULERS {
            for name in entry.names() {
                failures.case(name, || {
                    let found = scheduler_of_name(name).map_err(|error| error.to_string())?;
                    // Rows that share a class: its name is the first's.
                    let is_class = name == entry.class || entry.class.starts_with(name);
                    match found.entry.name == entry.name || (is_class && found.entry.class == entry.class) {
                        true => Ok(()),
                        false => Err(format!("{} for {}", found.entry.name, entry.name)),
                    }
                });
            }
        }
        failures.finish();
    }

    #[test]
    fn unknown_names_are_answered_with_the_nearest() {
        let message = |name: &str| scheduler_of_name(name).expect_err("unknown").to_string();
        assert!(
            message("eular").starts_with("unknown scheduler `eular`, nearest to `euler`; the known ones")
        );
        assert!(message("dpmpp-2mm").contains("nearest to `dpmpp-2m`"));
        assert!(message("DPM++ 2S a").contains("nearest to `dpmpp-2s`"));
        assert!(
            message("warp drive").starts_with("unknown scheduler `warp drive`; the known ones are ddim, ")
        );
        for name in ["karras", "_karras", "Simple", "k"] {
            assert!(message(name).contains("is no scheduler by itself"), "{name}");
        }
        for name in ["", "-", "euler karras karras", &"é".repeat(1000)] {
            assert!(message(name).contains("the known ones are ddim"), "{name}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (a, b, expected) in [("", "ab", 2), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), expected, "{a} {b}");
        }
    }
}
