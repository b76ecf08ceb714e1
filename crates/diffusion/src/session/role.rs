//! The places of models in a session.

use std::fmt;

/// The place of a model in a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The model that draws from noise.
    #[default]
    Base,
    /// The model that finishes another's latents: see [`Start::Continue`](super::Start::Continue).
    Refiner,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Base => "base",
            Role::Refiner => "refiner",
        })
    }
}
