//! Models that are asked for by name: they are downloaded before a command begins.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use mixbit_app::hub::{Hub, Located, Notice, Place, Settings, Watch, Wish, place};
use mixbit_mil::Stopped;

use super::progress::{Counter, Progress};
use super::table::byte_size;
use super::{interrupt, stop};

/// An argument that names a model, or a file of one.
pub(super) struct Asked<'a> {
    /// The argument. A name is replaced by the path of what was downloaded.
    pub(super) argument: &'a mut PathBuf,
    /// What of the model the command uses.
    pub(super) wish: Wish,
}

impl<'a> Asked<'a> {
    /// A model, or a file, of which nothing is chosen.
    pub(super) fn plain(argument: &'a mut PathBuf) -> Self {
        Asked { argument, wish: Wish::default() }
    }
}

/// The arguments of a command that takes models.
pub(super) trait Models {
    /// The arguments that name models which the command will open.
    fn models(&mut self) -> Vec<Asked<'_>>;

    /// True if no progress is shown.
    fn is_quiet(&self) -> bool;
}

/// Replaces names of models by their paths. They are downloaded as far as they are not there.
///
/// # Errors
/// [`HubError`](mixbit_app::hub::HubError).
pub(super) fn locate_all(arguments: &mut dyn Models, offline: bool) -> anyhow::Result<()> {
    let progress = Progress::new(arguments.is_quiet());
    let settings = settings(offline);
    let mut hub = None;
    for Asked { argument, wish } in arguments.models() {
        if let Place::Local(_) = place(argument, &settings.endpoint)? {
            continue;
        }
        let hub = match &mut hub {
            Some(hub) => hub,
            none => none.insert(Hub::new(settings.clone())?),
        };
        *argument = locate(hub, argument, &wish, &progress)?.path;
    }
    Ok(())
}

/// The settings of the environment.
pub(super) fn settings(offline: bool) -> Settings {
    let settings = Settings::from_environment();
    Settings { offline: offline || settings.offline, ..settings }
}

/// Locates one model.
pub(super) fn locate(
    hub: &Hub,
    argument: &Path,
    wish: &Wish,
    progress: &Progress,
) -> anyhow::Result<Located> {
    interrupt::cancel()?;
    let download = Download { progress, state: Mutex::default() };
    Ok(hub.locate(argument, wish, &download)?)
}

/// The display of a download.
struct Download<'p> {
    progress: &'p Progress,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The name of the work that will report, and its bytes.
    next: Option<(String, Option<u64>)>,
    counter: Option<Counter>,
}

impl Download<'_> {
    fn set(&self, next: Option<(String, Option<u64>)>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.counter = None;
        state.next = next;
    }
}

impl Watch for Download<'_> {
    fn notice(&self, notice: &Notice) {
        let progress = self.progress;
        match notice {
            Notice::Download { name, files, bytes, kept, directory } => {
                let noun = if *files == 1 { "file" } else { "files" };
                let kept = match kept {
                    0 => String::new(),
                    kept => format!("; {} are there already", byte_size(*kept as usize)),
                };
                let size = byte_size(*bytes as usize);
                let directory = directory.display();
                progress
                    .say(format_args!("downloading {name}: {files} {noun}, {size}, into {directory}{kept}"));
                self.set(Some((format!("downloading {name}"), Some(*bytes))));
            }
            Notice::Waiting { file } => {
                progress.say(format_args!("another process downloads {file}; waiting for that"));
            }
            Notice::Retrying { reason, pause } => {
                let pause = pause.as_secs_f64();
                progress.say(format_args!("note: {reason}; trying again in {pause:.1} s"));
            }
            Notice::Unreachable { name, reason } => {
                progress.say(format_args!("note: {reason}; {name} is taken as it was last downloaded"));
            }
            Notice::Unpacking { name } => self.set(Some((format!("unpacking {name}"), None))),
        }
    }

    fn check(&self) -> Result<(), Stopped> {
        if stop::is_raised() { Err(Stopped) } else { Ok(()) }
    }

    fn progress(&self, done: u64, total: u64) -> Result<(), Stopped> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, bytes)) = state.next.take() {
            // What is there already took no time.
            let before = bytes.map_or(0, |bytes| total.saturating_sub(bytes));
            state.counter = Some(self.progress.resumable(name, before, total));
        }
        match &state.counter {
            Some(counter) => mixbit_mil::Progress::advance(counter, done, total, mixbit_mil::Unit::Bytes),
            None => self.check(),
        }
    }
}
