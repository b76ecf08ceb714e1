//! Rewrites of functions: named values in a list.

mod dead_code;

use crate::Function;

/// A rewrite that keeps what the function computes.
pub struct Pass {
    /// The name, for messages and dumps.
    pub name: &'static str,
    run: fn(&Function) -> Function,
}

impl Pass {
    /// The rewritten function.
    pub fn run(&self, function: &Function) -> Function {
        (self.run)(function)
    }
}

/// Removes ops and values that no output depends on. Inputs stay: they are the function's signature.
///
/// ```text
/// y = relu(x = x)              y = relu(x = x)
/// z = exp(x = x)        ->     } -> (y)
/// } -> (y)
/// ```
pub static DEAD_CODE: Pass = Pass { name: "dead-code", run: dead_code::run };

/// Every pass, in the order in which they are usually run.
pub static PASSES: &[&Pass] = &[&DEAD_CODE];
