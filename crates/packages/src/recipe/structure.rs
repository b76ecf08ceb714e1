//! The correspondence of two networks' layers by what they compute, without their names.
//!
//! A graph is reduced to what every converter must keep: layers, inputs, outputs, and the ops that bring
//! several of these together. What has one source passes it on, so casts, reshapes, activations, and
//! normalizations in one op or in ten leave no trace, nor does attention by heads that are cut apart and
//! joined again. Colours of the remaining nodes are refined by those of their neighbours, in both graphs at
//! once, until no more can be told apart (Weisfeiler and Leman); a layer whose colour only one layer of the
//! other graph has is that layer.

use std::collections::{BTreeSet, HashMap};

use mixbit_mil::{Arg, Constant, Def, Function, Op, OpView, ValueId, Work};

/// The layers of a network that correspond to those of another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Correspondence {
    /// Certain pairs: places of layers in the network, and in the one with names.
    pub pairs: Vec<(usize, usize)>,
    /// Sets of layers, equally many in both networks, that the graph does not tell apart.
    pub ambiguous: Vec<(Vec<usize>, Vec<usize>)>,
    /// Layers that nothing corresponds to, of either network.
    pub only: (Vec<usize>, Vec<usize>),
}

/// Compares two networks. Constexpr ops must be decoded; layers are counted as [`mixbit_compress::layers`]
/// gives them.
pub fn correspondence(network: &Function, named: &Function) -> Correspondence {
    let mut labels = Numbers::default();
    let skeletons = [Skeleton::of(network, &mut labels), Skeleton::of(named, &mut labels)];
    let colours = refined(&skeletons);
    let mut classes: HashMap<u32, [Vec<usize>; 2]> = HashMap::new();
    for (side, (skeleton, colours)) in skeletons.iter().zip(&colours).enumerate() {
        for (layer, &node) in skeleton.layers.iter().enumerate() {
            classes.entry(colours[node]).or_default()[side].push(layer);
        }
    }
    let mut found = Correspondence::default();
    let mut classes: Vec<[Vec<usize>; 2]> = classes.into_values().collect();
    classes.sort();
    for [of_network, of_named] in classes {
        match (&of_network[..], &of_named[..]) {
            (&[a], &[b]) => found.pairs.push((a, b)),
            (a, b) if a.len() == b.len() => found.ambiguous.push((of_network, of_named)),
            _ => {
                found.only.0.extend(of_network);
                found.only.1.extend(of_named);
            }
        }
    }
    found.only.0.sort_unstable();
    found.only.1.sort_unstable();
    found
}

/// Numbers for things: the same for equal ones.
struct Numbers<T>(HashMap<T, u32>);

impl<T> Default for Numbers<T> {
    fn default() -> Self {
        Numbers(HashMap::new())
    }
}

impl<T: std::hash::Hash + Eq> Numbers<T> {
    fn of(&mut self, thing: T) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(thing).or_insert(next)
    }
}

/// A node without its neighbours.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Label {
    Input(String),
    Output(String),
    /// The weight's shape without extents of 1, and the strides.
    Layer(Vec<usize>, Vec<i64>),
    Join(&'static str),
}

/// A node and its operands; equal ones are one node.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    label: Label,
    /// Tells layers apart.
    weight: Option<ValueId>,
    sources: Vec<usize>,
}

/// The reduced graph.
#[derive(Default)]
struct Skeleton {
    nodes: HashMap<Key, usize>,
    labels: Vec<u32>,
    /// By node: its sources, and which operand each is.
    sources: Vec<Vec<(u32, usize)>>,
    /// The node of each layer.
    layers: Vec<usize>,
}

impl Skeleton {
    fn of(function: &Function, labels: &mut Numbers<Label>) -> Self {
        let mut skeleton = Skeleton::default();
        let mut sources: HashMap<ValueId, usize> = HashMap::new();
        for &id in function.inputs() {
            let label = Label::Input(function.value(id).name.clone());
            sources.insert(id, skeleton.node(label, None, Vec::new(), labels));
        }
        let mut weights: HashMap<ValueId, usize> = HashMap::new();
        for op in function.ops() {
            let Some(source) = skeleton.add(function.view(op), &mut sources, &mut weights, labels) else {
                continue;
            };
            sources.extend(op.outputs.iter().map(|&output| (output, source)));
        }
        for &id in function.outputs() {
            let label = Label::Output(function.value(id).name.clone());
            let made_of = sources.get(&id).copied().into_iter().collect();
            skeleton.node(label, None, made_of, labels);
        }
        skeleton
    }

    /// The node that an op's outputs come from; `None` if they are constants.
    fn add(
        &mut self,
        op: OpView,
        sources: &mut HashMap<ValueId, usize>,
        weights: &mut HashMap<ValueId, usize>,
        labels: &mut Numbers<Label>,
    ) -> Option<usize> {
        if let Some((weight, label)) = layer(op) {
            let made_of = op.get("x").and_then(|x| sources.get(&x)).copied().into_iter().collect();
            let node = self.node(label, Some(weight), made_of, labels);
            // A weight that is used again is the layer of its first use.
            weights.entry(weight).or_insert_with(|| {
                self.layers.push(node);
                node
            });
            return Some(node);
        }
        if op.kind() == "scaled_dot_product_attention" {
            let [query, key, value] =
                ["query", "key", "value"].map(|name| sources.get(&op.get(name)?).copied());
            let scores = self.join("product", [query, key].into_iter().flatten().collect(), labels)?;
            return self.join("product", [Some(scores), value].into_iter().flatten().collect(), labels);
        }
        let made_of = operands(op.op()).filter_map(|id| sources.get(&id).copied());
        // Products and lists bring values together in an order that matters; sums, and what normalizations
        // are made of, do not.
        let kind = match (op.op().def.work, op.op().def.weight) {
            (Work::Products(_), None) => "product",
            _ if op.kind() == "concat" => "concat",
            _ => {
                let made_of: BTreeSet<usize> = made_of.collect();
                return self.join("mix", made_of.into_iter().collect(), labels);
            }
        };
        let made_of = made_of.collect();
        self.join(kind, made_of, labels)
    }

    /// Joins sources; a single one is passed on.
    fn join(
        &mut self,
        kind: &'static str,
        sources: Vec<usize>,
        labels: &mut Numbers<Label>,
    ) -> Option<usize> {
        let first = *sources.first()?;
        match sources.iter().all(|&source| source == first) {
            true => Some(first),
            false => Some(self.node(Label::Join(kind), None, sources, labels)),
        }
    }

    fn node(
        &mut self,
        label: Label,
        weight: Option<ValueId>,
        sources: Vec<usize>,
        labels: &mut Numbers<Label>,
    ) -> usize {
        let key = Key { label, weight, sources };
        if let Some(&node) = self.nodes.get(&key) {
            return node;
        }
        let node = self.labels.len();
        self.labels.push(labels.of(key.label.clone()));
        let is_ordered = !matches!(key.label, Label::Join("mix"));
        let place = |index: usize| if is_ordered { index as u32 } else { 0 };
        self.sources
            .push(key.sources.iter().enumerate().map(|(index, &source)| (place(index), source)).collect());
        self.nodes.insert(key, node);
        node
    }
}

/// All values that an op takes.
fn operands(op: &Op) -> impl Iterator<Item = ValueId> {
    op.args.iter().flat_map(Arg::values).copied()
}

/// The weight and the label of an op that is a layer.
fn layer(op: OpView) -> Option<(ValueId, Label)> {
    let weight = op.weight()?;
    let value = op.function().value(weight);
    if !matches!(value.def, Def::Const(Constant::Weight(_))) {
        return None;
    }
    let strides = match op.kind() {
        "conv" => op.opt_ints("strides").ok().flatten().unwrap_or_default(),
        _ => Vec::new(),
    };
    let shape = value.ty.shape.iter().copied().filter(|&extent| extent != 1).collect();
    Some((weight, Label::Layer(shape, strides.into_iter().filter(|&stride| stride != 1).collect())))
}

/// Colours of the nodes of both graphs, refined by their neighbours until nothing changes.
fn refined(skeletons: &[Skeleton; 2]) -> [Vec<u32>; 2] {
    let mut colours = skeletons.each_ref().map(|skeleton| skeleton.labels.clone());
    let uses = skeletons.each_ref().map(|skeleton| {
        let mut uses: Vec<Vec<(u32, usize)>> = vec![Vec::new(); skeleton.labels.len()];
        for (node, sources) in skeleton.sources.iter().enumerate() {
            sources.iter().for_each(|&(place, source)| uses[source].push((place, node)));
        }
        uses
    });
    let mut count = 0;
    loop {
        let mut numbers = Numbers::default();
        let next = [0, 1].map(|side| {
            let colours = &colours[side];
            let around = |neighbours: &[(u32, usize)]| {
                let mut around: Vec<(u32, u32)> =
                    neighbours.iter().map(|&(place, node)| (place, colours[node])).collect();
                around.sort_unstable();
                around
            };
            let nodes = skeletons[side].sources.iter().zip(&uses[side]).zip(colours);
            nodes
                .map(|((sources, uses), &colour)| numbers.of((colour, around(sources), around(uses))))
                .collect::<Vec<u32>>()
        });
        if numbers.0.len() == count {
            return next;
        }
        count = numbers.0.len();
        colours = next;
    }
}

#[cfg(test)]
mod tests;
