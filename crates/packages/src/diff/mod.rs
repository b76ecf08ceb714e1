//! The differences of two models, packages or weight files.
//!
//! [`open_both`] pairs their networks, [`compare`] finds the differences of their structure and their
//! tensors.

mod pairing;
mod structure;
mod tensors;

use std::path::PathBuf;

use mixbit_mil::{Function, Progress, Stopped, WeightError, constexpr};
use thiserror::Error;

pub use pairing::{NetworkPairs, open_both, role};
pub use structure::{Change, Structure};
pub use tensors::{Distance, Matched};

use crate::inspect::{InspectError, InspectedNetwork, StoredTensor};

/// Models that can't be compared.
#[derive(Debug, Error)]
pub enum DiffError {
    /// A model that can't be opened.
    #[error(transparent)]
    Inspect(#[from] InspectError),
    /// A single network without a counterpart.
    #[error("{} has nothing like {}", path.display(), single.display())]
    NoLike {
        /// The model.
        path: PathBuf,
        /// The network.
        single: PathBuf,
    },
    /// A graph whose constants can't be decoded.
    #[error(transparent)]
    Graph(#[from] mixbit_mil::Error),
    /// A tensor that can't be read.
    #[error(transparent)]
    Weight(#[from] WeightError),
    /// The progress receiver stopped the comparison.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Two networks, compared.
pub struct Comparison<'a> {
    /// The networks.
    pub networks: &'a [InspectedNetwork; 2],
    /// The differences besides the weights.
    pub structure: Structure,
    /// The tensors that belong together.
    pub tensors: Matched<'a>,
    /// The distance of each pair of tensors.
    pub distances: Vec<Distance>,
}

impl Comparison<'_> {
    /// The networks' role in a model.
    pub fn role(&self) -> String {
        let network = &self.networks[0];
        let role = role(&network.name);
        network
            .other_function
            .as_ref()
            .map_or(role.clone(), |function| format!("{role}, function {function}"))
    }

    /// The elements of all tensors and the bytes that they take, of each side.
    pub fn sizes(&self) -> [(usize, usize); 2] {
        self.networks.each_ref().map(|network| {
            let sizes = network.tensors.iter().map(|tensor| (tensor.count(), tensor.bytes()));
            sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
        })
    }

    /// The number of pairs with such a distance.
    pub fn count(&self, is: impl Fn(&Distance) -> bool) -> usize {
        self.distances.iter().filter(|distance| is(distance)).count()
    }

    /// True if the networks are equal in all that is compared.
    pub fn is_same(&self) -> bool {
        self.structure.is_same()
            && self.distances.iter().all(|distance| *distance == Distance::Equal)
            && self.tensors.only.iter().all(|only| only.is_empty())
    }
}

/// Compares pairs of networks on all processors. `progress` counts the bytes of tensors.
///
/// # Errors
/// [`DiffError`].
pub fn compare<'a>(
    pairs: &'a [[InspectedNetwork; 2]],
    progress: &dyn Progress,
) -> Result<Vec<Comparison<'a>>, DiffError> {
    let mut comparisons = Vec::new();
    for networks in pairs {
        let [a, b] =
            networks.each_ref().map(|network| network.function.as_ref().map(constexpr::decoded).transpose());
        let graphs: [Option<Function>; 2] = [a?, b?];
        let graphs = graphs.each_ref().map(Option::as_ref);
        let tensors = tensors::matched(networks.each_ref().map(|network| &network.tensors[..]), graphs);
        comparisons.push(Comparison {
            networks,
            structure: Structure::compare(networks.each_ref(), graphs, &tensors.pairs),
            tensors,
            distances: Vec::new(),
        });
    }
    let all: Vec<[&StoredTensor; 2]> =
        comparisons.iter().flat_map(|one| &one.tensors.pairs).copied().collect();
    let mut distances = tensors::distances(&all, progress)?.into_iter();
    for comparison in &mut comparisons {
        comparison.distances = distances.by_ref().take(comparison.tensors.pairs.len()).collect();
    }
    Ok(comparisons)
}
