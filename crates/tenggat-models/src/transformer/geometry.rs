//! How the tokens of a pass lie: two streams, and the joint tensor of both.
//!
//! Shapes as in `double.rs`.

use tenggat_tensor::ops::attention::Layout;
use tenggat_tensor::ops::copy;
use tenggat_tensor::ops::rms_norm_rope::Segment;
use tenggat_tensor::{DType, Device, Tensor, View, ViewMut};

use crate::Result;

/// Shapes of one forward pass.
#[derive(Debug, Clone)]
pub(super) struct Geometry {
    pub image_tokens: usize,
    pub text_tokens: usize,
    /// Valid keys per sample.
    pub key_lens: Vec<usize>,
    pub heads: usize,
    pub head_dim: usize,
    /// Whether products may round their operands to bf16.
    pub bf16_products: bool,
}

impl Geometry {
    /// `t`.
    pub fn joint_tokens(&self) -> usize {
        self.image_tokens + self.text_tokens
    }

    /// Where one stream's tokens lie in a joint tensor.
    pub fn segment(&self, image: bool) -> Segment {
        let (tokens, at) = if image { (self.image_tokens, 0) } else { (self.text_tokens, self.image_tokens) };
        Segment { tokens, at, joint_tokens: self.joint_tokens(), heads: self.heads }
    }

    /// Layout of the attention; `device_lens`: the valid keys where captured work reads them, see
    /// [`attention::device_lens`].
    pub fn layout<'a>(&'a self, device_lens: Option<&'a Tensor>) -> Layout<'a> {
        let scale = 1.0 / (self.head_dim as f64).sqrt();
        let (key_lens, bf16_products) = (self.key_lens.as_slice(), self.bf16_products);
        Layout { key_lens, device_lens, tokens: self.joint_tokens(), heads: self.heads, scale, bf16_products }
    }

    /// An uninitialised joint tensor, `[b·t, c]`.
    ///
    /// # Errors
    /// Out of device memory.
    pub fn joint(&self, device: &Device, dtype: DType) -> Result<Tensor> {
        let rows = self.key_lens.len() * self.joint_tokens();
        Ok(Tensor::empty(device, dtype, &[rows, self.heads * self.head_dim])?)
    }

    /// Runs `work` on one stream's rows of a joint tensor, `[b·tᵢ, c]` or `[b·tₜ, c]`: on a copy, unless they
    /// already lie one after another.
    ///
    /// # Errors
    /// Those of `work`; out of device memory.
    pub fn with_rows<R>(
        &self,
        joint: &Tensor,
        image: bool,
        work: impl FnOnce(View<'_>) -> Result<R>,
    ) -> Result<R> {
        let s = self.segment(image);
        if self.key_lens.len() == 1 {
            return work(joint.view().row_range(s.at..s.at + s.tokens));
        }
        let mut rows = joint.empty_like(&[self.key_lens.len() * s.tokens, joint.shape()[1]])?;
        for sample in 0..self.key_lens.len() {
            let from = sample * s.joint_tokens + s.at;
            let to = rows.view_mut().row_range(sample * s.tokens..(sample + 1) * s.tokens);
            copy::forward(joint.view().row_range(from..from + s.tokens), to)?;
        }
        work(rows.view())
    }

    /// Runs `work` on one stream's rows, `[b·tᵢ, c]` or `[b·tₜ, c]`, of a joint tensor `[b·t, c]`, all of
    /// which it writes: in place, if they lie one after another.
    ///
    /// # Errors
    /// Those of `work`; or the device failed.
    pub fn write_rows<R>(
        &self,
        joint: &mut Tensor,
        image: bool,
        work: impl FnOnce(ViewMut<'_>) -> Result<R>,
    ) -> Result<R> {
        let s = self.segment(image);
        if self.key_lens.len() == 1 {
            return work(joint.view_mut().row_range(s.at..s.at + s.tokens));
        }
        let mut rows = joint.empty_like(&[self.key_lens.len() * s.tokens, joint.shape()[1]])?;
        let result = work(rows.view_mut())?;
        for sample in 0..self.key_lens.len() {
            let from = rows.view().row_range(sample * s.tokens..(sample + 1) * s.tokens);
            copy::forward(from, self.rows_of(sample, image, joint))?;
        }
        Ok(result)
    }

    /// Zeros one stream's rows of a joint tensor.
    ///
    /// # Errors
    /// `joint` has another shape, or the device failed.
    pub fn zero_rows(&self, joint: &mut Tensor, image: bool) -> Result<()> {
        (0..self.key_lens.len()).try_for_each(|sample| Ok(copy::zero(self.rows_of(sample, image, joint))?))
    }

    /// The rows that a stream has of a sample in a joint tensor.
    fn rows_of<'a>(&self, sample: usize, image: bool, joint: &'a mut Tensor) -> ViewMut<'a> {
        let s = self.segment(image);
        let first = sample * s.joint_tokens + s.at;
        joint.view_mut().row_range(first..first + s.tokens)
    }

    /// Where the tokens of both streams lie in a joint tensor: everywhere.
    pub fn whole(&self) -> Segment {
        let tokens = self.joint_tokens();
        Segment { tokens, at: 0, joint_tokens: tokens, heads: self.heads }
    }

    /// Writes one stream, `[b·tᵢ, c]` or `[b·tₜ, c]`, into a joint tensor `[b·t, c]`.
    ///
    /// # Errors
    /// The shapes differ, or the device failed.
    pub fn scatter(&self, stream: &Tensor, image: bool, joint: &mut Tensor) -> Result<()> {
        self.write_rows(joint, image, |rows| Ok(copy::forward(stream.view(), rows)?))
    }

    /// A copy of one stream's rows of a joint tensor, `[b·tᵢ, c]` or `[b·tₜ, c]`.
    ///
    /// # Errors
    /// Out of device memory, or the device failed.
    pub fn gather(&self, joint: &Tensor, image: bool) -> Result<Tensor> {
        self.with_rows(joint, image, |rows| {
            let mut stream = joint.empty_like(&rows.shape())?;
            copy::forward(rows, stream.view_mut())?;
            Ok(stream)
        })
    }
}
