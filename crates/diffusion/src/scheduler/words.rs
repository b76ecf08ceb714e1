//! Enums of the words in configuration fields, each with one table.

/// A word of a configuration field.
pub(super) trait Word: Copy + 'static {
    /// Every word.
    const ALL: &'static [Self];

    /// Every word as spelt in `scheduler_config.json`, for the table of fields.
    const WORDS: &'static [&'static str];

    /// The word in `scheduler_config.json`.
    fn word(self) -> &'static str;
}

/// Declares an enum of words: the variants, each with its word in `scheduler_config.json`.
macro_rules! words {
    (
        $(#[$meta:meta])*
        $visibility:vis enum $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$doc])* $variant),*
        }

        impl $crate::scheduler::words::Word for $name {
            const ALL: &'static [Self] = &[$($name::$variant),*];
            const WORDS: &'static [&'static str] = &[$($word),*];

            fn word(self) -> &'static str {
                match self {
                    $($name::$variant => $word),*
                }
            }
        }
    };
}
pub(super) use words;

words! {
    /// The formula of the training betas.
    pub(super) enum BetaSchedule {
        /// Evenly spaced.
        Linear = "linear",
        /// Evenly spaced in the square root.
        ScaledLinear = "scaled_linear",
        /// The squared cosine of Nichol and Dhariwal.
        SquaredCosine = "squaredcos_cap_v2",
        /// From the Laplace distribution.
        Laplace = "laplace",
        /// Exponential decay of the cumulative alpha.
        Exponential = "exp",
        /// From the logistic function.
        Sigmoid = "sigmoid",
    }
}

words! {
    /// The prediction type of a model.
    pub(super) enum Prediction {
        /// The noise.
        Epsilon = "epsilon",
        /// The velocity `alpha noise - sigma x0` of Salimans and Ho (arXiv 2202.00512).
        Velocity = "v_prediction",
        /// The denoised sample `x0`.
        Original = "sample",
    }
}

words! {
    /// The spacing of inference timesteps over the training timesteps `0..T`.
    pub enum TimestepSpacing {
        /// Evenly spaced, both ends included.
        Linspace = "linspace",
        /// Multiples of an integer step from 0 up, plus an offset; may omit the last timesteps.
        Leading = "leading",
        /// Evenly spaced from the last timestep down; omits the first ones.
        Trailing = "trailing",
    }
}

impl TimestepSpacing {
    /// Every spacing.
    pub const ALL: [TimestepSpacing; 3] =
        [TimestepSpacing::Linspace, TimestepSpacing::Leading, TimestepSpacing::Trailing];

    /// The name in a configuration and on the command line.
    pub fn name(self) -> &'static str {
        self.word()
    }

    /// The spacing with this name.
    pub fn parse(name: &str) -> Option<TimestepSpacing> {
        Self::ALL.into_iter().find(|spacing| spacing.name() == name)
    }
}

/// The spacing of the noise levels between the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigmaSchedule {
    /// The training levels at the chosen timesteps.
    Trained,
    /// Evenly spaced in `sigma^(1/7)`.
    Karras,
    /// Evenly spaced in `ln sigma`.
    Exponential,
    /// Quantiles of the beta distribution with both parameters 0.6.
    Beta,
    /// Evenly spaced in the log-SNR of training.
    Lu,
}

impl SigmaSchedule {
    /// Every schedule.
    pub const ALL: [SigmaSchedule; 5] = [
        SigmaSchedule::Trained,
        SigmaSchedule::Karras,
        SigmaSchedule::Exponential,
        SigmaSchedule::Beta,
        SigmaSchedule::Lu,
    ];

    /// The name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            SigmaSchedule::Trained => "trained",
            SigmaSchedule::Karras => "karras",
            SigmaSchedule::Exponential => "exponential",
            SigmaSchedule::Beta => "beta",
            SigmaSchedule::Lu => "lu",
        }
    }

    /// The schedule with this name.
    pub fn parse(name: &str) -> Option<SigmaSchedule> {
        Self::ALL.into_iter().find(|schedule| schedule.name() == name)
    }

    /// The configuration field that enables the schedule; `None` for the default.
    pub(super) fn field(self) -> Option<&'static str> {
        match self {
            SigmaSchedule::Trained => None,
            SigmaSchedule::Karras => Some("use_karras_sigmas"),
            SigmaSchedule::Exponential => Some("use_exponential_sigmas"),
            SigmaSchedule::Beta => Some("use_beta_sigmas"),
            SigmaSchedule::Lu => Some("use_lu_lambdas"),
        }
    }
}
