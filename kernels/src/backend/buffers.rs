//! Arrays on a device, and the way in and out.

use crate::error::Result;

/// A device that holds arrays of f32. Every other part of a device builds on this one.
pub trait Buffers: Send + Sync + 'static {
    /// Array of f32 on the device.
    type Buffer: Send + Sync;

    /// Name for logs and reports, such as `cpu (avx2, 2 threads, int8 activations)`.
    fn name(&self) -> String;

    /// What decides the bits of its results, such as `cpu int8`: two devices of which this is the
    /// same compute the same bits from the same values, and others need not.
    fn arithmetic(&self) -> String {
        self.name()
    }

    /// A zeroed array of `len` values.
    fn alloc(&self, len: usize) -> Result<Self::Buffer>;

    /// Writes `src` at `offset` of `dst`.
    fn upload(&self, src: &[f32], dst: &mut Self::Buffer, offset: usize) -> Result<()>;

    /// Reads `dst.len()` values from `offset` of `src`.
    fn download(&self, src: &Self::Buffer, offset: usize, dst: &mut [f32]) -> Result<()>;
}
