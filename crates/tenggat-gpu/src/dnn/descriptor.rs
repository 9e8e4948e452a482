//! A backend descriptor: a bag of attributes that cuDNN builds, freezes and frees.

use std::ffi::{c_char, c_void};
use std::ptr::null_mut;

use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type,
    cudnnBackendDescriptor_t as Raw, cudnnBackendDescriptorType_t as Kind,
};

use super::error::{Result, check};

/// A host type that cuDNN copies as the value of an attribute.
///
/// # Safety
/// The type has the size and meaning that cuDNN documents for [`Value::TYPE`].
pub(super) unsafe trait Value: Copy {
    /// What cuDNN calls the type.
    const TYPE: Type;
}

macro_rules! values {
    ($($host:ty => $name:ident),* $(,)?) => {
        $(
            // SAFETY: the pair is in NVIDIA's table of attribute types.
            unsafe impl Value for $host {
                const TYPE: Type = Type::$name;
            }
        )*
    };
}

values! {
    i64 => CUDNN_TYPE_INT64,
    bool => CUDNN_TYPE_BOOLEAN,
    c_char => CUDNN_TYPE_CHAR,
    *mut c_void => CUDNN_TYPE_VOID_PTR,
    sys::cudnnHandle_t => CUDNN_TYPE_HANDLE,
    sys::cudnnDataType_t => CUDNN_TYPE_DATA_TYPE,
    sys::cudnnPointwiseMode_t => CUDNN_TYPE_POINTWISE_MODE,
    sys::cudnnReduceTensorOp_t => CUDNN_TYPE_REDUCTION_OPERATOR_TYPE,
    sys::cudnnBackendHeurMode_t => CUDNN_TYPE_HEUR_MODE,
}

/// A descriptor that is freed when dropped.
///
/// cuDNN copies what it is given, except for descriptors: one that was set as an attribute of another must
/// live until the other is finalised, and what is built from a graph must not outlive it. Owners keep them in
/// this order.
#[derive(Debug)]
pub(super) struct Descriptor {
    raw: Raw,
    kind: Kind,
}

// SAFETY: a descriptor is plain host memory without ties to the thread that made it.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// An empty descriptor.
    pub fn new(kind: Kind) -> Result<Self> {
        let mut raw = null_mut();
        // SAFETY: the library is loaded (`version` found it), and `raw` is a place for one pointer.
        check(unsafe { sys::cudnnBackendCreateDescriptor(kind, &mut raw) }, || format!("new {kind:?}"))?;
        Ok(Descriptor { raw, kind })
    }

    /// Sets an attribute to a list of values, most of the time of one.
    pub fn set<T: Value>(&mut self, name: Name, values: &[T]) -> Result<()> {
        self.set_raw(name, T::TYPE, values.len(), values.as_ptr().cast())
    }

    /// Sets an attribute to other descriptors, which have to be finalised and to stay.
    pub fn set_descriptors(&mut self, name: Name, values: &[&Descriptor]) -> Result<()> {
        let raws: Vec<Raw> = values.iter().map(|descriptor| descriptor.raw).collect();
        self.set_raw(name, Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, raws.len(), raws.as_ptr().cast())
    }

    fn set_raw(&mut self, name: Name, of: Type, count: usize, values: *const c_void) -> Result<()> {
        // SAFETY: `values` points to `count` values of the type that is named; both callers take them from a
        // slice.
        let status = unsafe { sys::cudnnBackendSetAttribute(self.raw, name, of, count as i64, values) };
        check(status, || format!("set {name:?}"))
    }

    /// Freezes the attributes; cuDNN checks here that they fit together.
    pub fn finalise(self) -> Result<Self> {
        // SAFETY: `raw` is a live descriptor.
        check(unsafe { sys::cudnnBackendFinalize(self.raw) }, || format!("finalise {:?}", self.kind))?;
        Ok(self)
    }

    /// One number of a finalised descriptor.
    pub fn number(&self, name: Name) -> Result<i64> {
        let (mut value, mut count) = (0i64, 0);
        // SAFETY: one value is requested, and there is room for it.
        unsafe { self.get_raw(name, i64::TYPE, 1, &mut count, (&raw mut value).cast()) }?;
        Ok(value)
    }

    /// Text of a finalised descriptor, with its closing NUL if cuDNN counts it.
    pub fn text(&self, name: Name) -> Result<Vec<u8>> {
        let mut count = 0;
        // SAFETY: no value is requested, only the number of values, so nothing is written but that.
        unsafe { self.get_raw(name, c_char::TYPE, 0, &mut count, null_mut()) }?;
        let mut text = vec![0u8; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the buffer has room for as many characters as are requested.
        unsafe { self.get_raw(name, c_char::TYPE, text.len() as i64, &mut count, text.as_mut_ptr().cast()) }?;
        text.truncate(usize::try_from(count).unwrap_or(0));
        Ok(text)
    }

    /// The descriptors that cuDNN fills in for an attribute, each of kind `of`.
    pub fn descriptors(&self, name: Name, of: Kind) -> Result<Vec<Descriptor>> {
        const TYPE: Type = Type::CUDNN_TYPE_BACKEND_DESCRIPTOR;
        let mut count = 0;
        // SAFETY: no value is requested, only the number of values, so nothing is written but that.
        unsafe { self.get_raw(name, TYPE, 0, &mut count, null_mut()) }?;
        let mut all = (0..count).map(|_| Descriptor::new(of)).collect::<Result<Vec<_>>>()?;
        let mut raws: Vec<Raw> = all.iter().map(|descriptor| descriptor.raw).collect();
        // SAFETY: as many live descriptors are passed as are requested; cuDNN writes into them.
        unsafe { self.get_raw(name, TYPE, count, &mut count, raws.as_mut_ptr().cast()) }?;
        all.truncate(usize::try_from(count).unwrap_or(0));
        Ok(all)
    }

    /// # Safety
    /// `values` has room for `capacity` values of type `of`.
    unsafe fn get_raw(
        &self,
        name: Name,
        of: Type,
        capacity: i64,
        count: &mut i64,
        values: *mut c_void,
    ) -> Result<()> {
        // SAFETY: the caller's promise, and `count` is a place for one number.
        let status = unsafe { sys::cudnnBackendGetAttribute(self.raw, name, of, capacity, count, values) };
        check(status, || format!("get {name:?}"))
    }

    /// What the C functions take.
    pub fn raw(&self) -> Raw {
        self.raw
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live descriptor that nobody else frees. A failure leaves nothing to do.
        unsafe { sys::cudnnBackendDestroyDescriptor(self.raw) };
    }
}
