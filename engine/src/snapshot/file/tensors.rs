//! Names and types of the tensors of a file.

use std::borrow::Cow;

use palimpsest_kernels::KvType;
use safetensors::{Dtype, View};

/// A tensor that is written.
pub(super) struct Tensor<'a> {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Cow<'a, [u8]>,
}

impl View for &Tensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// A number of a tensor.
pub(super) trait Number: bytemuck::Pod {
    const DTYPE: Dtype;
}

impl Number for u32 {
    const DTYPE: Dtype = Dtype::U32;
}

impl Number for f32 {
    const DTYPE: Dtype = Dtype::F32;
}

impl Number for f64 {
    const DTYPE: Dtype = Dtype::F64;
}

/// What keys and values are stored as.
pub(super) const fn element(dtype: KvType) -> Dtype {
    match dtype {
        KvType::F32 => Dtype::F32,
        KvType::F16 => Dtype::F16,
        KvType::Q8 => Dtype::I8,
    }
}

/// Name of a part of a head.
pub(super) fn name(layer: usize, kv_head: usize, part: &str) -> String {
    format!("{layer}.{kv_head}.{part}")
}

/// Keys, values and their scales, in the order of their bytes.
pub(super) const STORED: [&str; 4] = ["keys", "values", "key_scales", "value_scales"];
