//! What can be checked of attention without a GPU, and one test that needs one.

mod gpu;
mod interpret;
mod plans;
mod reference;

use std::collections::BTreeSet;
use std::env;
use std::ffi::c_char;
use std::ptr::null_mut;

use interpret::Memory;
use reference::Reference;

use cudarc::cudnn::sys::{self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind};

use super::descriptor::Descriptor;
use super::handle::{OLDEST, aligned, version};
use super::operations::{Node, Operation, OperationGraph, Pointwise};
use super::plan::Pass;
use super::target::Target;
use super::tensor::{ALIGNMENT, Operand, Place};
use super::{Backward, Dnn, Error, Forward, Result, Shape, Strides};
use crate::{DType, preload};

const PASSES: [Pass; 2] = [Pass::Forward, Pass::Backward];

/// Loads NVIDIA's libraries from where they are, first from the folders of `TENGGAT_CUDA_LIBRARIES`. Without
/// cuDNN the test is skipped, or fails where `TENGGAT_REQUIRE_CUDA_LIBRARIES=1`.
fn libraries() -> bool {
    let folders = env::var_os("TENGGAT_CUDA_LIBRARIES").unwrap_or_default();
    preload(&env::split_paths(&folders).collect::<Vec<_>>());
    match version() {
        Ok(_) => true,
        Err(error) => skip(&error.to_string()),
    }
}

fn skip(reason: &str) -> bool {
    let required = env::var_os("TENGGAT_REQUIRE_CUDA_LIBRARIES").is_some_and(|value| value == "1");
    assert!(!required, "{reason}");
    tenggat_skip::skipped(reason);
    false
}

/// Properties of a device that is not there.
struct Card {
    name: &'static str,
    /// 100 · major + 10 · minor.
    version: u32,
    multiprocessors: u32,
    /// Shared memory of a block that asks for all of it.
    shared_kib: u32,
    /// Of a multiprocessor.
    threads: u32,
    l2_mib: u32,
}

#[rustfmt::skip]
const CARDS: [Card; 8] = [
    Card { name: "A100", version: 800, multiprocessors: 108, shared_kib: 163, threads: 2048, l2_mib: 40 },
    Card { name: "RTX 3090", version: 860, multiprocessors: 82, shared_kib: 99, threads: 1536, l2_mib: 6 },
    Card { name: "RTX 4090", version: 890, multiprocessors: 128, shared_kib: 99, threads: 1536, l2_mib: 72 },
    Card { name: "H200", version: 900, multiprocessors: 132, shared_kib: 227, threads: 2048, l2_mib: 60 },
    Card { name: "B200", version: 1000, multiprocessors: 148, shared_kib: 227, threads: 2048, l2_mib: 126 },
    Card { name: "B300", version: 1030, multiprocessors: 148, shared_kib: 227, threads: 2048, l2_mib: 126 },
    Card { name: "RTX 5090", version: 1200, multiprocessors: 170, shared_kib: 99, threads: 1536, l2_mib: 96 },
    Card { name: "GB10", version: 1210, multiprocessors: 48, shared_kib: 99, threads: 1536, l2_mib: 24 },
];

/// The card of a compute capability, 100 · major + 10 · minor.
fn card(version: u32) -> &'static Card {
    CARDS.iter().find(|card| card.version == version).expect("a card of the list")
}

impl Card {
    fn target(&self) -> Result<Target> {
        let Card { name, version, multiprocessors, shared_kib, threads, l2_mib } = self;
        let (shared_bytes, l2_bytes) = (shared_kib << 10, l2_mib << 20);
        let blocks = threads / 64;
        let text = format!(
            r#"{{"deviceName":"{name}","deviceVer":{version},"driverVer":13000,"cudaDeviceId":0,
            "maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,
            "multiProcessorCount":{multiprocessors},"smCountOrigin":0,"smClockRateKHz":1980000,
            "memClockRateKHz":3201000,"memoryBusWidth":5120,"l2CacheSize":{l2_bytes},"warpSize":32,
            "maxSharedMemoryPerBlock":49152,"maxSharedMemoryPerBlockOptin":{shared_bytes},
            "oversizedSharedMemoryPerBlock":0,"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,
            "pciDeviceId":0,"maxCtasPerSM":{blocks},"maxThreadsPerBlock":1024,"maxThreadsPerSM":{threads},
            "isTccDriver":0,"supportCoopLaunch":1,"totalGlobalMem":85899345920}}"#
        );
        let text: Vec<c_char> = text.bytes().map(|byte| byte as c_char).collect();
        let mut properties = Descriptor::new(Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?;
        properties.set(Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, &text)?;
        Ok(Target::Properties(properties.finalise()?))
    }
}

/// Q and K after their norm and rotation, V where the projection of all three left it.
fn mixed(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Shape {
    let packed = Shape::packed(batch, tokens, heads, head_dim);
    Shape { v: packed.v, ..Shape::separate(batch, tokens, heads, head_dim) }
}

/// Shapes of Qwen-Image (24 heads of 128) and of a smaller model, of even and odd lengths.
fn shapes() -> Vec<Shape> {
    let mut shapes = vec![Shape::separate(1, 1, 24, 128), Shape::separate(2, 4300, 4, 64)];
    for (batch, tokens) in [(1, 4300), (2, 4300), (1, 4173), (2, 1031)] {
        shapes.push(Shape::separate(batch, tokens, 24, 128));
        shapes.push(Shape::packed(batch, tokens, 24, 128));
        shapes.push(mixed(batch, tokens, 4, 64));
    }
    shapes
}

#[test]
fn cudnn_accepts_both_graphs() {
    if libraries() && driverless() {
        graphs_finalise();
        refused_operations_are_named();
    }
}

/// From some version on cuDNN does not even describe a device without a driver to link with; the test of
/// plans, which has a stand-in for one, covers that.
fn driverless() -> bool {
    match CARDS[0].target() {
        Err(Error::Status { status: sys::cudnnStatus_t::CUDNN_STATUS_SUBLIBRARY_LOADING_FAILED, .. }) => {
            tenggat_skip::skipped("this version of cuDNN needs a driver to load");
            false
        }
        other => other.is_ok() || panic!("{other:?}"),
    }
}

fn graphs_finalise() {
    for card in CARDS {
        let target = card.target().unwrap();
        for (shape, pass) in shapes().into_iter().flat_map(|shape| PASSES.map(|pass| (shape, pass))) {
            if let Err(error) = pass.graph(&shape).finalise(&target) {
                panic!("{}: {pass:?} {shape:?}: {error}", card.name);
            }
        }
    }
}

/// The message names the part that is wrong and carries cuDNN's words.
fn refused_operations_are_named() {
    let mut graph = Pass::Backward.graph(&Shape::separate(1, 64, 2, 64));
    let vt = graph.tensors.iter_mut().find(|tensor| tensor.name == "Vᵀ").unwrap();
    vt.dims[2] = 72;
    let error = graph.finalise(&card(900).target().unwrap()).unwrap_err().to_string();
    for part in ["attention backward: dO·Vᵀ to dO·Vᵀ", "CUDNN_STATUS_BAD_PARAM"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Every tensor that a graph reads or writes gets an address, and nothing else does.
#[test]
fn operands_are_those_of_the_graphs() {
    let named = |graph: &OperationGraph| {
        let place = |place| match place {
            Place::Memory(operand) => Some((false, operand)),
            Place::Host(operand) => Some((true, operand)),
            Place::Virtual => None,
        };
        graph.tensors.iter().filter_map(|tensor| place(tensor.place)).collect::<BTreeSet<_>>()
    };
    let given = |memory: &[(Operand, u64)], pass: Pass| {
        let memory = memory.iter().map(|&(operand, _)| (false, operand));
        memory
            .chain(pass.numbers(1.0).into_iter().map(|(operand, _)| (true, operand)))
            .collect::<BTreeSet<_>>()
    };
    let shape = Shape::separate(1, 8, 1, 8);
    let saved = Forward { q: 0, k: 0, v: 0, o: 0, stats: 0, key_lengths: 0, query_lengths: 0 };
    assert_eq!(given(&saved.memory(), Pass::Forward), named(&Pass::Forward.graph(&shape)));
    let backward = Backward { saved, d_o: 0, dq: 0, dk: 0, dv: 0 };
    let backward_graph = Pass::Backward.graph(&shape);
    assert_eq!(given(&backward.memory([0; 2]), Pass::Backward), named(&backward_graph));
    assert_eq!(backward_graph.operations.len(), 24);
}

/// Lengths are masked in every graph, whatever the batch: kernels of Hopper are known to err where the tail
/// of a sequence is not masked.
#[test]
fn no_graph_goes_without_its_mask() {
    for shape in shapes() {
        let graph = Pass::Forward.graph(&shape);
        assert!(graph.operations.iter().any(|operation| {
            let named = |node: &Node| graph.tensors[node.0].name.ends_with("lengths");
            matches!(operation, Operation::Attention { q_lens, k_lens, .. } if named(q_lens) && named(k_lens))
        }));
        let graph = Pass::Backward.graph(&shape);
        let selects = graph.operations.iter().filter(|operation| {
            matches!(operation, Operation::Pointwise { mode: Pointwise::Select, t: Some(_), .. })
        });
        assert_eq!(selects.count(), 1, "{shape:?}");
        assert!(graph.operations.iter().all(|operation| match operation {
            // Every product runs over a length where it runs over tokens.
            Operation::Matmul { m, n, k, .. } =>
                [m, n, k].iter().filter(|length| length.is_some()).count() == 2,
            _ => true,
        }));
    }
}

/// The operations, computed on the host, are the attention of the CPU and its derivative.
#[test]
fn graphs_mean_attention() {
    for shape in [Shape::separate(2, 5, 2, 3), Shape::packed(2, 5, 2, 3), mixed(2, 4, 3, 2)] {
        let reference = Reference::new(shape, &[3, shape.tokens], &[shape.tokens, 2], DType::F64);
        let lengths = |lengths: &[usize]| lengths.iter().map(|&n| n as f64).collect::<Vec<_>>();
        let [q, k, v, d_o] = &reference.inputs;
        let values = |strides| shape.values("", Operand::Q, strides);
        let mut memory = Memory::from([
            (Operand::Q, interpret::scatter(&values(shape.q), q)),
            (Operand::K, interpret::scatter(&values(shape.k), k)),
            (Operand::V, interpret::scatter(&values(shape.v), v)),
            (Operand::DO, interpret::scatter(&values(shape.output()), d_o)),
            (Operand::KeyLengths, lengths(&reference.key_lens)),
            (Operand::QueryLengths, lengths(&reference.query_lens)),
        ]);
        memory.extend(
            Pass::Backward.numbers(0.0).into_iter().map(|(operand, n)| (operand, vec![f64::from(n)])),
        );
        memory.insert(Operand::Scale, vec![reference.scale]);
        PASSES.iter().for_each(|pass| interpret::run(&pass.graph(&shape), &mut memory));
        for (output, operand, tensor) in [
            (0, Operand::O, values(shape.output())),
            (1, Operand::Stats, shape.rows("", Operand::Stats)),
            (2, Operand::DQ, values(shape.q)),
            (3, Operand::DK, values(shape.k)),
            (4, Operand::DV, values(shape.v)),
        ] {
            reference.compare(output, &interpret::gather(&tensor, &memory[&operand]), 1e-12);
        }
    }
}

#[test]
fn shapes_that_make_no_sense_are_refused() {
    let good = Shape::separate(1, 7, 2, 64);
    good.check().unwrap();
    let odd = Strides { token: 2 * 64 + 4, head: 64 };
    for (shape, reason) in [
        (Shape { tokens: 0, ..good }, "empty"),
        (Shape::separate(1, 7, 2, 60), "multiples of 8"),
        (Shape { v: odd, ..good }, "multiples of 8"),
        (Shape::separate(usize::MAX / 1024, 7, 2, 64), "more bytes"),
        (Shape { heads: usize::MAX / 2, ..good }, "more bytes"),
    ] {
        let error = shape.check().unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// Element (b, s, which, h, d) of a tensor `[b, s, 3, h, d]` lies at (((b·S + s)·3 + which)·H + h)·D + d.
#[test]
fn packed_values_are_slices_of_one_tensor() {
    let shape = Shape::packed(2, 5, 4, 8);
    let strides = |strides| shape.values("", Operand::Q, strides).strides;
    assert_eq!(strides(shape.k), [5 * 3 * 4 * 8, 8, 3 * 4 * 8, 1]);
    assert_eq!(strides(shape.output()), [5 * 4 * 8, 8, 4 * 8, 1]);
    assert_eq!(shape.values("", Operand::Q, shape.q).dims, [2, 4, 5, 8]);
}

/// 4·b·h·s bytes of row sums, and d times as many of the accumulator.
#[test]
fn scratch_is_counted() {
    assert_eq!(Shape::separate(2, 4300, 24, 128).scratch_bytes(), [825_600, 105_676_800]);
    assert_eq!(Shape::packed(1, 1, 1, 8).scratch_bytes(), [256, 256]);
}

#[test]
fn addresses_have_to_be_aligned() {
    aligned(|| "Q".into(), 4096, ALIGNMENT).unwrap();
    let error = aligned(|| "Q".into(), 4104, ALIGNMENT).unwrap_err().to_string();
    assert_eq!(error, "attention: address 0x1008 of Q is not a multiple of 16");
}

#[test]
fn versions_read_as_people_write_them() {
    for (found, expected) in [(90_501, "cuDNN 9.5: "), (91_401, "cuDNN 9.14: "), (8907, "cuDNN 8.9: ")] {
        let error = Error::Version { found, needed: OLDEST }.to_string();
        assert_eq!(error, format!("{expected}attention needs 9.15 or newer"));
    }
}

/// Without a device there is an error and no panic.
#[test]
fn opening_says_what_is_missing() {
    if let Err(error) = Dnn::open(null_mut(), None) {
        let error = error.to_string();
        assert!(error.starts_with("cuDNN") || error.starts_with("CUDA driver"), "{error}");
    }
}
