use super::*;

#[test]
fn broadcasting_follows_numpy() {
    assert_eq!(broadcast_strides(&[3, 1], &[2, 3, 4]).map(|s| s[..3].to_vec()), Some(vec![0, 1, 0]));
    assert_eq!(broadcast_strides(&[], &[2]).map(|s| s[..1].to_vec()), Some(vec![0]));
    assert_eq!(broadcast_strides(&[2, 3, 4], &[2, 3, 4]).map(|s| s[..3].to_vec()), Some(vec![12, 4, 1]));
    assert_eq!(broadcast_strides(&[3], &[2]), None);
    assert_eq!(broadcast_strides(&[1, 2], &[2]), None);
}

#[test]
fn axes_merge_where_all_operands_allow() {
    let own = contiguous_strides(&[2, 3, 4]);
    let walk = Walk::new(&[2, 3, 4], [&own[..3], &own[..3]]);
    assert_eq!(walk.axes(), [Axis { len: 24, strides: [1, 1] }]);
    let walk = Walk::new(&[2, 3, 4], [&own[..3], &[0, 1, 0]]);
    assert_eq!(walk.axes().len(), 3);
    let walk = Walk::new(&[1, 1], [&[5, 7]]);
    assert_eq!(walk.axes(), [Axis { len: 1, strides: [0] }]);
}
