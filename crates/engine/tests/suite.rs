//! The op suite on the reference: results recorded from PyTorch and coremltools, compressed constants,
//! misfits.

use mixbit_engine::{Error, Reference, Tensor};
use mixbit_op_suite::{Exceptions, run};

#[test]
fn the_reference_passes_the_suite() {
    let report = run(&Reference, &Exceptions::default());
    assert!(report.is_passed(), "{report}");
}

#[test]
fn tensors_have_as_many_elements_as_their_shape() {
    assert!(matches!(Tensor::from_f32(&[2, 3], vec![0.0; 5]), Err(Error::Elements { found: 5, .. })));
    assert!(matches!(Tensor::from_i32(&[usize::MAX, 2], vec![0]), Err(Error::Elements { .. })));
    let floats = |shape: &[usize]| Tensor::from_f32(shape, vec![0.5; shape.iter().product()]).unwrap();
    assert!(matches!(floats(&[4]).reshaped(&[3]), Err(Error::Elements { .. })));
    assert!(floats(&[0, 5]).reshaped(&[0]).is_ok());
}
