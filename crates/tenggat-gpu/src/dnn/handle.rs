//! The library on one stream of a device.

use std::collections::HashMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cudarc::cudnn::sys::{self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind};

use super::descriptor::Descriptor;
use super::error::{self, Error, Result};
use super::operands::{Backward, Forward};
use super::plan::{Kept, Pass, Plans};
use super::shape::{PART_ALIGNMENT, Shape};
use super::target::{self, Handle, Target};
use super::tensor::{ALIGNMENT, Operand};

/// Oldest version that takes lengths in the forward operation: 9.15.
pub(super) const OLDEST: usize = 91_500;

/// cuDNN on one stream.
///
/// Calls of several threads wait for one another. The context of the stream has to be current on the thread
/// that calls or drops.
#[derive(Debug)]
pub struct Dnn {
    version: usize,
    plans: Mutex<Plans>,
    /// Passes that failed, and why.
    refused: Mutex<HashMap<(Pass, Shape), String>>,
}

impl Dnn {
    /// Opens the installed library, for work on `stream`, which has to live as long as the value. `plans` is
    /// a folder that keeps compiled plans for later runs.
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
        Ok(Dnn { version, plans: Mutex::new(Plans::new(target, kept)), refused: Mutex::default() })
    }

    /// Version of the library: `10000 · major + 100 · minor + patch`.
    pub fn version(&self) -> usize {
        self.version
    }

    /// From now on answers that this pass failed, without asking cuDNN again: a plan takes about a second to
    /// be refused.
    pub fn refuse(&self, pass: Pass, shape: Shape, why: &Error) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.entry((pass, shape)).or_insert_with(|| why.to_string());
    }

    /// Bytes of workspace that the plan of a pass needs.
    fn planned_bytes(&self, pass: Pass, shape: Shape) -> Result<usize> {
        let refused =
            self.refused.lock().unwrap_or_else(PoisonError::into_inner).get(&(pass, shape)).cloned();
        if let Some(why) = refused {
            return Err(Error::Refused(why));
        }
        Ok(self.plans().get(pass, &shape)?.workspace_bytes)
    }

    /// Bytes of workspace that [`forward`](Self::forward) needs. Makes the plan, if it was not made before.
    ///
    /// # Errors
    /// cuDNN has no kernel for the shape on this device.
    pub fn forward_workspace(&self, shape: Shape) -> Result<usize> {
        self.planned_bytes(Pass::Forward, shape)
    }

    /// Bytes of workspace that [`backward`](Self::backward) needs: two tensors of its own, `4·b·h·s·(1 + d)`
    /// bytes, and what the plan asks for. Makes the plan, if it was not made before.
    ///
    /// # Errors
    /// cuDNN has no kernel for the shape on this device.
    pub fn backward_workspace(&self, shape: Shape) -> Result<usize> {
        Ok(shape.scratch_bytes().iter().sum::<usize>() + self.planned_bytes(Pass::Backward, shape)?)
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

/// Version of the installed library.
///
/// # Errors
/// There is none, or it is too old.
pub(super) fn version() -> Result<usize> {
    // SAFETY: loading runs the initialisers of NVIDIA's library, which ask nothing of the process.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Missing);
    }
    // SAFETY: the library is loaded, and has had this function since its first version.
    match unsafe { sys::cudnnGetVersion() } {
        found if found < OLDEST => Err(Error::Version { found, needed: OLDEST }),
        found => Ok(found),
    }
}

/// What a plan runs on. The numbers of the host are read where they are when it starts.
pub(super) fn pack(memory: &[(Operand, u64)], host: &[(Operand, f32)], workspace: u64) -> Result<Descriptor> {
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
pub(super) fn aligned(operand: impl FnOnce() -> String, address: u64, alignment: u64) -> Result<()> {
    match address.is_multiple_of(alignment) {
        true => Ok(()),
        false => Err(Error::Address { operand: operand(), address, alignment }),
    }
}
