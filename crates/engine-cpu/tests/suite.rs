//! The op suite on the CPU, with 1, 2 and 3 threads, which give the same bits.

use mixbit_engine::Backend;
use mixbit_engine_cpu::Cpu;
use mixbit_op_suite::{Exceptions, run_alike};

#[test]
fn the_cpu_passes_the_suite() {
    let cpus = [1, 2, 3].map(|threads| Cpu::new(Some(threads)).unwrap());
    let backends: Vec<&dyn Backend> = cpus.iter().map(|cpu| cpu as &dyn Backend).collect();
    let report = run_alike(&backends, &Exceptions::default());
    assert!(report.is_passed(), "{report}");
}
