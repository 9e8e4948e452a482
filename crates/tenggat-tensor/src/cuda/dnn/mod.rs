//! Scaled dot-product attention through cuDNN's graph API.
//!
//! A pass is described as a graph of operations on tensors ([`graph`], [`tensor`]): the forward pass is one
//! operation ([`forward`]), the backward pass 24 that cuDNN recognises as one kernel ([`backward`] has their
//! table). cuDNN chooses an engine for the graph and compiles it into a plan ([`plan`]), which takes about a
//! second and is therefore kept, also as a file. Running a plan needs the addresses of the tensors and
//! nothing else.
//!
//! Formulas are those of [`crate::ops::attention`]. Values are bf16 `[b, s, h, d]` with strides of their own
//! for Q, K and V; sums and softmax are f32. Valid keys and queries are prefixes of a sample. Speed, rounding
//! and what the kernels leave in rows past the length are unmeasured.

mod backward;
mod descriptor;
mod error;
mod forward;
mod graph;
mod plan;
mod target;
mod tensor;
#[cfg(test)]
mod tests;

use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cudarc::cudnn::sys::{self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind};

use descriptor::Descriptor;
pub(crate) use error::{Error, Result};
use plan::{Kept, Pass, Plans};
use target::{Handle, Target};
use tensor::{ALIGNMENT, Operand};

/// Oldest version that takes lengths in the forward operation: 9.15.
const OLDEST: usize = 91_500;

/// What the parts of a workspace are multiples of, in bytes.
const PART_ALIGNMENT: usize = 256;

/// How the tokens and heads of a `[b, s, h, d]` tensor lie, in elements; `d` is contiguous, and a sample
/// follows the last token of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Strides {
    /// From a token to the next.
    pub token: usize,
    /// From a head to the next.
    pub head: usize,
}

/// Attention of one size and layout. Values are bf16.
///
/// O and dO are contiguous `[b, s, h, d]`; dQ, dK and dV lie as Q, K and V do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    /// Samples.
    pub batch: usize,
    /// Heads.
    pub heads: usize,
    /// Tokens per sample, padding included.
    pub tokens: usize,
    /// Channels of a head: a multiple of 8.
    pub head_dim: usize,
    /// Layout of Q.
    pub q: Strides,
    /// Layout of K.
    pub k: Strides,
    /// Layout of V.
    pub v: Strides,
}

impl Shape {
    /// Q, K and V are contiguous tensors `[b, s, h, d]`.
    pub fn separate(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        let strides = Strides { token: heads * head_dim, head: head_dim };
        Shape { batch, heads, tokens, head_dim, q: strides, k: strides, v: strides }
    }

    /// Q, K and V are slices of one tensor `[b, s, 3, h, d]`.
    #[cfg(test)]
    pub fn packed(batch: usize, tokens: usize, heads: usize, head_dim: usize) -> Self {
        let strides = Strides { token: 3 * heads * head_dim, head: head_dim };
        Shape { q: strides, k: strides, v: strides, ..Self::separate(batch, tokens, heads, head_dim) }
    }

    /// Layout of O and dO.
    fn output(&self) -> Strides {
        Strides { token: self.heads * self.head_dim, head: self.head_dim }
    }

    /// Refuses what has no elements, too many, or rows that do not start at 16 bytes.
    fn check(&self) -> Result<()> {
        let error = |reason| Err(Error::Shape { shape: *self, reason });
        let Shape { batch, heads, tokens, head_dim, q, k, v } = *self;
        if [batch, heads, tokens, head_dim].contains(&0) {
            return error("an axis is empty");
        }
        let strides = [q.token, q.head, k.token, k.head, v.token, v.head];
        if strides.into_iter().chain([head_dim]).any(|stride| stride % 8 != 0) {
            return error("the head dimension and all strides must be multiples of 8");
        }
        let extent = strides.into_iter().fold(heads.saturating_mul(tokens.max(head_dim)), usize::max);
        // At most 8 bytes are counted for an element.
        let bytes = [batch, tokens, extent, 8]
            .into_iter()
            .try_fold(1i64, |bytes, factor| bytes.checked_mul(i64::try_from(factor).ok()?));
        match bytes {
            Some(_) => Ok(()),
            None => error("more bytes than a number of 64 bits counts"),
        }
    }

    /// Bytes of the row sums and of the accumulator of the backward pass, each filled up to a multiple of
    /// 256.
    fn scratch_bytes(&self) -> [usize; 2] {
        let rows = 4 * self.batch * self.heads * self.tokens;
        [rows, rows * self.head_dim].map(|bytes| bytes.next_multiple_of(PART_ALIGNMENT))
    }
}

/// Device addresses of the forward pass, each a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    /// Queries.
    pub q: u64,
    /// Keys.
    pub k: u64,
    /// Values.
    pub v: u64,
    /// Output, written.
    pub o: u64,
    /// Log-sum-exp of the scaled scores, f32 `[b, h, s]`, written.
    pub stats: u64,
    /// Valid keys of each sample, i32 `[b]`: the first so many tokens.
    pub key_lengths: u64,
    /// Valid queries of each sample, i32 `[b]`.
    pub query_lengths: u64,
}

impl Forward {
    fn memory(&self) -> [(Operand, u64); 7] {
        [
            (Operand::Q, self.q),
            (Operand::K, self.k),
            (Operand::V, self.v),
            (Operand::O, self.o),
            (Operand::Stats, self.stats),
            (Operand::KeyLengths, self.key_lengths),
            (Operand::QueryLengths, self.query_lengths),
        ]
    }
}

/// Device addresses of the backward pass, each a multiple of 16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backward {
    /// What the forward pass read and wrote.
    pub saved: Forward,
    /// Gradient of the output.
    pub d_o: u64,
    /// Gradient of the queries, written.
    pub dq: u64,
    /// Gradient of the keys, written.
    pub dk: u64,
    /// Gradient of the values, written.
    pub dv: u64,
}

impl Backward {
    fn memory(&self, [row_sums, accumulator]: [u64; 2]) -> [(Operand, u64); 13] {
        let [q, k, v, o, stats, key_lengths, query_lengths] = self.saved.memory();
        [
            q,
            k,
            v,
            o,
            stats,
            key_lengths,
            query_lengths,
            (Operand::DO, self.d_o),
            (Operand::DQ, self.dq),
            (Operand::DK, self.dk),
            (Operand::DV, self.dv),
            (Operand::RowSums, row_sums),
            (Operand::Accumulator, accumulator),
        ]
    }
}

/// cuDNN on one stream.
///
/// Calls of several threads wait for one another. The context of the stream has to be current on the thread
/// that calls or drops.
#[derive(Debug)]
pub(crate) struct Dnn {
    version: usize,
    plans: Mutex<Plans>,
}

impl Dnn {
    /// Opens the library that is there, for work on `stream`, which has to live as long as the value. `plans`
    /// is a folder that keeps compiled plans for later runs.
    ///
    /// # Errors
    /// There is no library, it is older than 9.15, or it finds no device.
    pub fn open(stream: sys::cudaStream_t, plans: Option<PathBuf>) -> Result<Self> {
        let version = version()?;
        let target = Target::Handle(Handle::new(stream)?);
        let kept = match plans {
            Some(folder) => Some(Kept { folder, version, device: target::device()? }),
            None => None,
        };
        Ok(Dnn { version, plans: Mutex::new(Plans::new(target, kept)) })
    }

    /// Version of the library: `10000 · major + 100 · minor + patch`.
    pub fn version(&self) -> usize {
        self.version
    }

    /// Bytes of workspace that [`forward`](Self::forward) needs. Makes the plan, if it was not made before.
    ///
    /// # Errors
    /// cuDNN has no kernel for the shape on this device.
    pub fn forward_workspace(&self, shape: Shape) -> Result<usize> {
        Ok(self.plans().get(Pass::Forward, &shape)?.workspace_bytes)
    }

    /// Bytes of workspace that [`backward`](Self::backward) needs: two tensors of its own, `4·b·h·s·(1 + d)`
    /// bytes, and what the plan asks for. Makes the plan, if it was not made before.
    ///
    /// # Errors
    /// cuDNN has no kernel for the shape on this device.
    pub fn backward_workspace(&self, shape: Shape) -> Result<usize> {
        let own = self.plans().get(Pass::Backward, &shape)?.workspace_bytes;
        Ok(shape.scratch_bytes().iter().sum::<usize>() + own)
    }

    /// Queues the forward pass. `workspace` is the address of [`forward_workspace`](Self::forward_workspace)
    /// bytes, a multiple of 256.
    ///
    /// # Errors
    /// An address is not aligned, or cuDNN cannot plan or start the kernels.
    pub fn forward(&self, shape: Shape, operands: Forward, scale: f32, workspace: u64) -> Result<()> {
        self.run(Pass::Forward, shape, &operands.memory(), scale, workspace)
    }

    /// Queues the backward pass. `workspace` is the address of
    /// [`backward_workspace`](Self::backward_workspace) bytes, a multiple of 256.
    ///
    /// # Errors
    /// An address is not aligned, or cuDNN cannot plan or start the kernels.
    pub fn backward(&self, shape: Shape, operands: Backward, scale: f32, workspace: u64) -> Result<()> {
        shape.check()?;
        let [row_sums, accumulator] = shape.scratch_bytes().map(|bytes| bytes as u64);
        let memory = operands.memory([workspace, workspace + row_sums]);
        self.run(Pass::Backward, shape, &memory, scale, workspace + row_sums + accumulator)
    }

    fn plans(&self) -> std::sync::MutexGuard<'_, Plans> {
        // A panic elsewhere leaves at most a plan that was not made.
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a plan on the tensors of the device and the numbers of the host.
    fn run(
        &self,
        pass: Pass,
        shape: Shape,
        memory: &[(Operand, u64)],
        scale: f32,
        workspace: u64,
    ) -> Result<()> {
        for (operand, address) in memory {
            aligned(|| format!("{operand:?}"), *address, ALIGNMENT)?;
        }
        aligned(|| "the workspace".to_owned(), workspace, PART_ALIGNMENT as u64)?;
        let mut plans = self.plans();
        let raw = plans.get(pass, &shape)?.descriptor().raw();
        let numbers = pass.numbers(scale);
        let pack = pack(memory, &numbers, workspace)?;
        let handle = plans.target.handle();
        // SAFETY: handle, plan and pack are live and finalised, and the lock keeps other threads off them.
        // The numbers of the host are read before the call returns; the addresses are the caller's.
        let status = unsafe { sys::cudnnBackendExecute(handle, raw, pack.raw()) };
        error::check(status, || format!("{pass:?} of {shape:?}"))
    }
}

/// Version of the library that is there.
///
/// # Errors
/// There is none, or it is too old.
fn version() -> Result<usize> {
    // SAFETY: loading runs the initialisers of NVIDIA's library, which ask nothing of the process.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Missing);
    }
    // SAFETY: the library is there, and the function has been in it since its first version.
    match unsafe { sys::cudnnGetVersion() } {
        found if found < OLDEST => Err(Error::Version { found, needed: OLDEST }),
        found => Ok(found),
    }
}

/// What a plan runs on. The numbers of the host are read where they are when it starts.
fn pack(memory: &[(Operand, u64)], host: &[(Operand, f32)], workspace: u64) -> Result<Descriptor> {
    let memory = memory.iter().map(|&(operand, address)| (operand as i64, address as usize as *mut c_void));
    let host = host.iter().map(|(operand, number)| (*operand as i64, (&raw const *number).cast_mut().cast()));
    let (ids, pointers): (Vec<i64>, Vec<*mut c_void>) = memory.chain(host).unzip();
    let mut pack = Descriptor::new(Kind::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &ids)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &pointers)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[workspace as usize as *mut c_void])?;
    pack.finalise()
}

/// Refuses an address that is no multiple of `alignment`.
fn aligned(operand: impl FnOnce() -> String, address: u64, alignment: u64) -> Result<()> {
    match address.is_multiple_of(alignment) {
        true => Ok(()),
        false => Err(Error::Address { operand: operand(), address, alignment }),
    }
}
