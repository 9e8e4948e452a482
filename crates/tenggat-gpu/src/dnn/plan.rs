//! Plans: the engine that cuDNN chose for a graph, compiled, and kept for the next run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_char;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t as Mode,
};

use super::descriptor::Descriptor;
use super::error::{Error, Result};
use super::operations::OperationGraph;
use super::shape::Shape;
use super::target::Target;
use super::tensor::Operand;
use super::{backward, forward};

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pass {
    /// From queries, keys and values to the output.
    Forward,
    /// From the output's gradient to theirs.
    Backward,
}

impl Pass {
    /// The operations for a shape.
    pub(super) fn graph(self, shape: &Shape) -> OperationGraph {
        match self {
            Pass::Forward => forward::graph(shape),
            Pass::Backward => backward::graph(shape),
        }
    }

    /// The numbers of the host that the operations read.
    pub(super) fn numbers(self, scale: f32) -> Vec<(Operand, f32)> {
        let scale = (Operand::Scale, scale);
        match self {
            Pass::Forward => vec![scale],
            Pass::Backward => vec![scale, (Operand::One, 1.0), (Operand::Never, f32::NEG_INFINITY)],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Pass::Forward => "forward",
            Pass::Backward => "backward",
        }
    }
}

/// An execution plan.
#[derive(Debug)]
pub(super) struct Plan {
    descriptor: Descriptor,
    /// Bytes of device memory that it needs for itself while it runs.
    pub workspace_bytes: usize,
}

impl Plan {
    /// The first engine, in the library's order of preference, that can be compiled for the graph.
    pub fn build(graph: &OperationGraph, target: &Target) -> Result<Self> {
        let finalised = graph.finalise(target)?;
        let mut heuristics = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?;
        let of = Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH;
        heuristics.set_descriptors(of, &[&finalised.graph])?;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[Mode::CUDNN_HEUR_MODE_A])?;
        let heuristics = target.with_heuristics(heuristics)?.finalise()?;
        let engines = heuristics
            .descriptors(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?;
        let mut last = None;
        for engine in &engines {
            let plan = Self::finalise(target, |plan| {
                plan.set_descriptors(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[engine])
            });
            match plan {
                Ok(plan) => return Ok(plan),
                Err(error) => last = Some(Box::new(error)),
            }
        }
        Err(Error::Engines { what: graph.name.to_owned(), tried: engines.len(), last })
    }

    /// A plan from what [`json`](Self::json) gave, on a target of the same kind.
    pub fn restore(json: &[u8], target: &Target) -> Result<Self> {
        let text: Vec<c_char> = json.iter().map(|&byte| byte as c_char).collect();
        Self::finalise(target, |plan| plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, &text))
    }

    fn finalise(target: &Target, describe: impl FnOnce(&mut Descriptor) -> Result<()>) -> Result<Self> {
        let mut descriptor = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        target.set_plan(&mut descriptor)?;
        describe(&mut descriptor)?;
        let descriptor = descriptor.finalise()?;
        let bytes = descriptor.number(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        Ok(Plan { descriptor, workspace_bytes: usize::try_from(bytes).unwrap_or(0) })
    }

    /// The plan with its compiled kernel, as text.
    pub fn json(&self) -> Result<Vec<u8>> {
        self.descriptor.text(Name::CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION)
    }

    /// What runs.
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }
}

/// The plans of one target, each made on first use.
#[derive(Debug)]
pub(super) struct Plans {
    // Before `target`, which they are dropped before.
    made: HashMap<(Pass, Shape), Plan>,
    kept: Option<Kept>,
    /// What they are made for.
    pub target: Target,
}

/// Where plans stay between runs.
#[derive(Debug)]
pub(super) struct Kept {
    /// Folder of the files; made when needed.
    pub folder: PathBuf,
    /// Version of cuDNN.
    pub version: usize,
    /// Device that the plans are for.
    pub device: String,
}

impl Plans {
    /// No plan yet.
    pub fn new(target: Target, kept: Option<Kept>) -> Self {
        Plans { made: HashMap::new(), kept, target }
    }

    /// The plan of a pass: from memory, from its file, or a new one, which goes to both.
    pub fn get(&mut self, pass: Pass, shape: &Shape) -> Result<&Plan> {
        Ok(match self.made.entry((pass, *shape)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                shape.check()?;
                let graph = pass.graph(shape);
                entry.insert(match &self.kept {
                    Some(kept) => kept.plan(&kept.file(pass, shape, &graph), &graph, &self.target)?,
                    None => Plan::build(&graph, &self.target)?,
                })
            }
        })
    }
}

impl Kept {
    /// The file of a plan. Its name ends in a hash of all that the plan depends on, strides and operations
    /// included.
    fn file(&self, pass: Pass, shape: &Shape, graph: &OperationGraph) -> PathBuf {
        let mut hash = DefaultHasher::new();
        (self.version, &self.device, graph).hash(&mut hash);
        let (pass, hash) = (pass.name(), hash.finish());
        let Shape { batch, tokens, heads, head_dim, .. } = shape;
        self.folder.join(format!("attention-{pass}-{batch}x{tokens}x{heads}x{head_dim}-{hash:016x}.json"))
    }

    /// The plan of a file, or else a new one that is left there.
    ///
    /// A file that cannot be read, restored or written costs the time of compiling anew and nothing else.
    fn plan(&self, file: &Path, graph: &OperationGraph, target: &Target) -> Result<Plan> {
        if let Ok(json) = fs::read(file)
            && let Ok(plan) = Plan::restore(&json, target)
        {
            return Ok(plan);
        }
        let plan = Plan::build(graph, target)?;
        // Two devices of one process may make the same plan at once.
        static WRITES: AtomicUsize = AtomicUsize::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let beside = file.with_extension(format!("{}-{write}.part", std::process::id()));
        let json = plan.json()?;
        let written = fs::create_dir_all(&self.folder)
            .and_then(|()| fs::write(&beside, json))
            .and_then(|()| fs::rename(&beside, file));
        if written.is_err() {
            let _ = fs::remove_file(&beside);
        }
        Ok(plan)
    }
}
