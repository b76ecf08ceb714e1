//! Fusion: the nodes of every chain of the op suite, and chains that a backend declines.

use std::collections::BTreeMap;

use mixbit_engine::fuse::{Fused, Node, fuse};
use mixbit_engine::{Backend, Options, Reference, Tensor, evaluate};
use mixbit_mil::{Function, ValueId};
use mixbit_op_suite::{Chain, Expect, chains};

fn kinds(fused: &Fused, function: &Function) -> String {
    fused.nodes.iter().map(|node| node.kind(function)).collect::<Vec<_>>().join(", ")
}

/// The difference between a chain's fusion and the expected one.
fn difference(chain: &Chain) -> Option<String> {
    let fused = fuse(&chain.function);
    let (found, single) =
        (kinds(&fused, &chain.function), kinds(&Fused::single_ops(&chain.function), &chain.function));
    let (expected, is_explained) = match chain.expect {
        Expect::Nodes(nodes) => (nodes, true),
        Expect::Declined(reason) => {
            (single.as_str(), fused.declined.iter().any(|declined| declined.reason.contains(reason)))
        }
        Expect::Nothing => (single.as_str(), true),
    };
    let is_right = found == expected && is_explained;
    (!is_right).then(|| format!("{}: {found}, not {expected}; {:?}", chain.name, fused.declined))
}

#[test]
fn chains_become_the_nodes_that_they_are() {
    let chains = chains();
    assert!(!chains.is_empty());
    let differences: Vec<String> = chains.iter().filter_map(difference).collect();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn every_op_is_in_one_node_and_after_the_ops_that_it_reads() {
    for Chain { name, function, .. } in chains() {
        let fused = fuse(&function);
        for nodes in [fused.clone(), fused.without(|_| true)] {
            let mut covered: Vec<usize> = nodes.nodes.iter().flat_map(Node::ops).copied().collect();
            covered.sort_unstable();
            assert!(covered.into_iter().eq(0..function.ops().len()), "{name}");
        }
    }
}

/// Runs nodes that are single ops by the definitions of the ops.
fn run_single_ops(fused: &Fused, function: &Function, inputs: &[(&str, &Tensor)]) -> Vec<Tensor> {
    let mut values: BTreeMap<ValueId, Tensor> = BTreeMap::new();
    for &id in function.inputs() {
        let given = inputs.iter().find(|(name, _)| *name == function.value(id).name).unwrap();
        values.insert(id, given.1.clone());
    }
    for node in &fused.nodes {
        let Node::Op(position) = *node else { panic!("{node:?} is not declined") };
        let op = &function.ops()[position];
        let results = evaluate(&function.view(op), &|id| values.get(&id).cloned()).unwrap();
        values.extend(op.outputs.iter().copied().zip(results));
    }
    function.outputs().iter().map(|id| values[id].clone()).collect()
}

#[test]
fn a_backend_may_decline_every_node() {
    for Chain { name, function, .. } in chains() {
        let inputs: Vec<(String, Tensor)> = function
            .inputs()
            .iter()
            .map(|&id| {
                let value = function.value(id);
                let values = (0..value.ty.count()).map(|index| (index as f32 * 0.7).sin()).collect();
                (value.name.clone(), Tensor::from_f32(&value.ty.shape, values).unwrap())
            })
            .collect();
        let inputs: Vec<(&str, &Tensor)> =
            inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let expected = Reference.compile(&function, &Options::default()).unwrap().run(&inputs).unwrap();
        let declined = fuse(&function).without(|_| true);
        assert_eq!(run_single_ops(&declined, &function, &inputs), expected, "{name}");
    }
}
