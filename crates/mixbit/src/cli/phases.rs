//! The names of a session's phases, shown as they come.

use mixbit_diffusion::session::Event;

use super::progress::{Counter, Progress};

/// A display of the phases before and after the steps.
pub(super) struct Phases<'p> {
    progress: &'p Progress,
    /// The phase at work. It is dropped before the next begins, so that one line is shown.
    shown: Option<Counter>,
}

impl<'p> Phases<'p> {
    /// Shows a first phase.
    pub(super) fn new(progress: &'p Progress, first: &str) -> Self {
        Phases { shown: Some(progress.wait(first)), progress }
    }

    /// Shows the phase that an event begins.
    pub(super) fn on(&mut self, event: Event<'_>) {
        let name = match event {
            Event::Encoding(folder) => format!("encoding, {folder}"),
            Event::Compiling(folder) => format!("preparing, {folder}"),
            Event::Decoding => "decoding the image".to_string(),
            Event::Step { .. } => return,
        };
        self.shown = None;
        self.shown = Some(self.progress.wait(name));
    }
}
