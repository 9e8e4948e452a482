//! Operation graphs computed in f64 on the host, to check what they mean without a GPU.

use std::collections::HashMap;

use super::super::operations::{Node, Operation, OperationGraph, Pointwise};
use super::super::tensor::{Axes, Operand, Place, Tensor};

/// Elements of the caller's tensors, each where its strides put it.
pub(super) type Memory = HashMap<Operand, Vec<f64>>;

/// Elements in the order `[b, s, h, d]` to where the strides of a `[b, h, s, d]` tensor put them.
pub(super) fn scatter(tensor: &Tensor, dense: &[f64]) -> Vec<f64> {
    let mut elements = vec![f64::NAN; extent(tensor)];
    for (index, position) in dense_positions(tensor.dims) {
        elements[offset(tensor, index)] = dense[position];
    }
    elements
}

/// The inverse of [`scatter`].
pub(super) fn gather(tensor: &Tensor, elements: &[f64]) -> Vec<f64> {
    let mut dense = vec![f64::NAN; tensor.dims.iter().product::<i64>() as usize];
    for (index, position) in dense_positions(tensor.dims) {
        dense[position] = elements[offset(tensor, index)];
    }
    dense
}

/// Computes every operation. Products leave zeros in rows and columns past their lengths.
pub(super) fn run(graph: &OperationGraph, memory: &mut Memory) {
    let mut machine = Machine { graph, memory, between: HashMap::new() };
    graph.operations.iter().for_each(|operation| machine.step(operation));
}

struct Machine<'a> {
    graph: &'a OperationGraph,
    memory: &'a mut Memory,
    between: HashMap<Node, Vec<f64>>,
}

impl Machine<'_> {
    fn step(&mut self, operation: &Operation) {
        match *operation {
            Operation::Pointwise { mode, x, b, t, y } => self.fill(y, |machine, index| {
                let at = |node: Option<Node>| machine.at(node.expect("an operand is missing"), index);
                let truth = |condition: bool| f64::from(u8::from(condition));
                match mode {
                    Pointwise::Multiply => at(Some(x)) * at(b),
                    Pointwise::Subtract => at(Some(x)) - at(b),
                    Pointwise::Exp => at(Some(x)).exp(),
                    Pointwise::Identity => at(Some(x)),
                    Pointwise::Index(axis) => index[axis as usize] as f64,
                    Pointwise::Less => truth(at(Some(x)) < at(b)),
                    Pointwise::And => truth(at(Some(x)) != 0.0 && at(b) != 0.0),
                    Pointwise::Select if at(t) != 0.0 => at(Some(x)),
                    Pointwise::Select => at(b),
                }
            }),
            Operation::Sum { x, y } => self.fill(y, |machine, [b, h, i, _]| {
                (0..machine.dims(x)[3]).map(|j| machine.at(x, [b, h, i, j])).sum()
            }),
            Operation::Matmul { a, b, m, n, k, c } => self.fill(c, |machine, [batch, h, i, j]| {
                let length = |node: Option<Node>, all: i64| {
                    node.map_or(all, |node| machine.at(node, [batch, 0, 0, 0]) as i64)
                };
                let terms = machine.dims(a)[3];
                assert_eq!(terms, machine.dims(b)[2]);
                if i >= length(m, i + 1) || j >= length(n, j + 1) {
                    return 0.0;
                }
                let term = |t| machine.at(a, [batch, h, i, t]) * machine.at(b, [batch, h, t, j]);
                (0..length(k, terms)).map(term).sum()
            }),
            Operation::Reshape { x, y } => {
                let elements = self.elements(x).clone();
                assert!(extent(self.tensor(y)) == elements.len());
                self.put(y, elements);
            }
            Operation::Attention { q, k, v, scale, q_lens, k_lens, stats, o } => {
                let scale = self.at(scale, [0; 4]);
                let channels = self.dims(q)[3];
                let score = move |machine: &Self, [b, h, i, j]: Axes| {
                    scale
                        * (0..channels)
                            .map(|c| machine.at(q, [b, h, i, c]) * machine.at(k, [b, h, j, c]))
                            .sum::<f64>()
                };
                let keys = move |machine: &Self, b| 0..machine.at(k_lens, [b, 0, 0, 0]) as i64;
                let valid =
                    move |machine: &Self, [b, _, i, _]: Axes| i < machine.at(q_lens, [b, 0, 0, 0]) as i64;
                self.fill(stats, |machine, index @ [b, h, i, _]| match valid(machine, index) {
                    true => keys(machine, b).map(|j| score(machine, [b, h, i, j]).exp()).sum::<f64>().ln(),
                    false => 0.0,
                });
                self.fill(o, |machine, index @ [b, h, i, c]| match valid(machine, index) {
                    true => keys(machine, b)
                        .map(|j| {
                            let p = (score(machine, [b, h, i, j]) - machine.at(stats, [b, h, i, 0])).exp();
                            p * machine.at(v, [b, h, j, c])
                        })
                        .sum(),
                    false => 0.0,
                });
            }
        }
    }

    fn fill(&mut self, y: Node, value: impl Fn(&Self, Axes) -> f64) {
        let tensor = self.tensor(y);
        let mut elements = vec![f64::NAN; extent(tensor)];
        for (index, _) in dense_positions(tensor.dims) {
            elements[offset(tensor, index)] = value(self, index);
        }
        self.put(y, elements);
    }

    fn put(&mut self, node: Node, elements: Vec<f64>) {
        match self.tensor(node).place {
            Place::Memory(operand) => {
                assert!(self.memory.insert(operand, elements).is_none(), "written twice")
            }
            Place::Host(operand) => panic!("{operand:?} is written"),
            Place::Virtual => assert!(self.between.insert(node, elements).is_none(), "written twice"),
        }
    }

    fn tensor(&self, node: Node) -> &Tensor {
        &self.graph.tensors[node.0]
    }

    fn dims(&self, node: Node) -> Axes {
        self.tensor(node).dims
    }

    fn elements(&self, node: Node) -> &Vec<f64> {
        match self.tensor(node).place {
            Place::Memory(operand) | Place::Host(operand) => &self.memory[&operand],
            Place::Virtual => &self.between[&node],
        }
    }

    /// An element; axes of extent one are repeated.
    fn at(&self, node: Node, index: Axes) -> f64 {
        let tensor = self.tensor(node);
        let repeated = std::array::from_fn(|axis| if tensor.dims[axis] == 1 { 0 } else { index[axis] });
        self.elements(node)[offset(tensor, repeated)]
    }
}

fn offset(tensor: &Tensor, index: Axes) -> usize {
    index.iter().zip(tensor.dims).for_each(|(&i, extent)| assert!((0..extent).contains(&i)));
    index.iter().zip(tensor.strides).map(|(i, stride)| i * stride).sum::<i64>() as usize
}

fn extent(tensor: &Tensor) -> usize {
    1 + offset(tensor, tensor.dims.map(|extent| extent - 1))
}

/// Every index of `[b, h, s, d]`, with its position in a dense `[b, s, h, d]`.
fn dense_positions([b, h, s, d]: Axes) -> impl Iterator<Item = (Axes, usize)> {
    (0..b * s * h * d).map(move |position| {
        let (row, channel) = (position / d, position % d);
        ([row / h / s, row % h, row / h % s, channel], position as usize)
    })
}
