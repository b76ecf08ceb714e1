//! mixbit
fn main() {}
