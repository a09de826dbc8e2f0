//! Rounded activations as kernels read them.

/// One group of `T` token rows.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Tile<const T: usize> {
    /// Codes (i8) of four inputs of each row.
    pub quads: [[[u8; 4]; T]; 8],
    /// `d`.
    pub scale: [f32; T],
    /// `d` times the sum of the codes.
    pub sum: [f32; T],
    /// Sums of the first and the last 16 codes, in the low and the high word.
    pub sums: [i32; T],
    /// -16 times the sum of the first two codes of each quad, and of the last two, in the low and
    /// the high word: what dot products of codes plus 16 begin with, so that 16 bits hold them. On
    /// the way they may wrap around; at the end a word is at most `16 * 16 * 127` from zero.
    pub centre: [i32; T],
}

// SAFETY: 4-byte fields and bytes in multiples of 4, so no padding; zero bytes are valid.
unsafe impl<const T: usize> bytemuck::Zeroable for Tile<T> {}
// SAFETY: as above; every bit pattern is valid, and there is no interior mutability or pointer.
unsafe impl<const T: usize> bytemuck::Pod for Tile<T> {}
