//! What plans are made for: a real device, or the description of one.

use std::ffi::{CStr, c_char};
use std::ptr::null_mut;

use cudarc::cudnn::sys::{self, cudnnBackendAttributeName_t as Name};
use cudarc::driver::sys as driver;

use super::descriptor::Descriptor;
use super::error::{Error, Result, check};

/// The library's state on one device and one stream.
#[derive(Debug)]
pub(super) struct Handle(sys::cudnnHandle_t);

// SAFETY: a handle may go from thread to thread as long as one at a time uses it; `Dnn` guards it by a mutex.
unsafe impl Send for Handle {}

impl Handle {
    /// A handle whose work goes to `stream`, in the context that is current.
    pub fn new(stream: sys::cudaStream_t) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: `raw` is a place for one pointer.
        check(unsafe { sys::cudnnCreate(&mut raw) }, || "new handle".into())?;
        let handle = Handle(raw);
        // SAFETY: the handle is live; the caller of `Dnn::open` vouches for the stream.
        check(unsafe { sys::cudnnSetStream(handle.0, stream) }, || "set stream".into())?;
        Ok(handle)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is live and nobody else frees it. A failure leaves nothing to do.
        unsafe { sys::cudnnDestroy(self.0) };
    }
}

/// What a plan is made for.
#[derive(Debug)]
pub(super) enum Target {
    /// A device, by a handle on it.
    Handle(Handle),
    /// The properties of a device that need not be there: plans can be made, not run.
    #[cfg(test)]
    Properties(Descriptor),
}

impl Target {
    /// The handle that plans run on; properties have none, which cuDNN refuses.
    pub fn handle(&self) -> sys::cudnnHandle_t {
        match self {
            Target::Handle(handle) => handle.0,
            #[cfg(test)]
            Target::Properties(_) => null_mut(),
        }
    }

    /// Tells an operation graph where it will run. Properties are told to heuristics and plans only.
    pub fn set_graph(&self, graph: &mut Descriptor) -> Result<()> {
        match self {
            Target::Handle(handle) => graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &[handle.0]),
            #[cfg(test)]
            Target::Properties(_) => Ok(()),
        }
    }

    /// Tells heuristics where the engine will run; a handle comes with the operation graph.
    pub fn with_heuristics(&self, heuristics: Descriptor) -> Result<Descriptor> {
        match self {
            Target::Handle(_) => Ok(heuristics),
            #[cfg(test)]
            Target::Properties(properties) => {
                let mut heuristics = heuristics;
                heuristics.set_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, &[properties])?;
                Ok(heuristics)
            }
        }
    }

    /// Tells a plan where it will run.
    pub fn set_plan(&self, plan: &mut Descriptor) -> Result<()> {
        match self {
            Target::Handle(handle) => plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[handle.0]),
            #[cfg(test)]
            Target::Properties(properties) => {
                plan.set_descriptors(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, &[properties])
            }
        }
    }
}

/// Name, compute capability and number of multiprocessors of the device of the current context: what a plan
/// fits.
pub(super) fn device() -> Result<String> {
    use driver::CUdevice_attribute as Attribute;
    let mut device = 0;
    // SAFETY: a handle was made, so the driver is loaded; `device` is a place for one number.
    driver_check("current device", unsafe { driver::cuCtxGetDevice(&mut device) })?;
    let mut name = [0u8; 256];
    let text: *mut c_char = name.as_mut_ptr().cast();
    // SAFETY: the buffer has the length that is passed.
    driver_check("name of the device", unsafe { driver::cuDeviceGetName(text, name.len() as i32, device) })?;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: `value` is a place for one number.
        let status = unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) };
        driver_check("attribute of the device", status).map(|()| value)
    };
    let name = CStr::from_bytes_until_nul(&name).map_or_else(|_| "".into(), CStr::to_string_lossy);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(format!("{name} {major}.{minor} {multiprocessors}"))
}

fn driver_check(what: &'static str, status: driver::CUresult) -> Result<()> {
    match status {
        driver::CUresult::CUDA_SUCCESS => Ok(()),
        status => Err(Error::Driver { what, status }),
    }
}
