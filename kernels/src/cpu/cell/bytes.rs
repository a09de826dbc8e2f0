//! Codes of whole bytes.

use super::{Affine, Cell, Half, Lines, PANEL, Quads, Scales, Unpack, interleave};
use crate::cpu::simd::Simd;
use crate::quant::{GROUP, Group};

/// 8-bit codes plus 128. Byte `4r + j` of `codes[i]` is input `4i + j` of row `r`.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct I8 {
    pub scale: Half,
    pub codes: [[u8; 32]; 8],
}

/// 6-bit codes plus 32, laid out as in [`I8`]; a scale for each 16 inputs.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U6 {
    pub scale: [[f32; PANEL]; 2],
    pub codes: [[u8; 32]; 8],
}

impl Cell for I8 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: <Half as Scales>::ZERO,
        codes: [[128; 32]; 8],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let halves = [Affine::scaled(s, 128, Scales::load(&self.scale, s)); 2];
        let mut unpack = Unpack { halves, p, out };
        for (quad, codes) in self.codes.iter().enumerate() {
            unpack.take(s, quad, s.load_i(codes));
        }
    }
}

impl I8 {
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: Half::store(rows.map(|group| group.scale.of(0))),
            codes: interleave(|r, k| (rows[r].codes[k] as u8) ^ 0x80),
        }
    }
}

impl Cell for U6 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: [[0.0; PANEL]; 2],
        codes: [[32; 32]; 8],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let halves = [0, 1].map(|half| Affine::scaled(s, 32, s.load(&self.scale[half])));
        let mut unpack = Unpack { halves, p, out };
        for (quad, codes) in self.codes.iter().enumerate() {
            unpack.take(s, quad, s.load_i(codes));
        }
    }
}

impl U6 {
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: [0, 1].map(|half| rows.map(|group| group.scale.of(half))),
            codes: interleave(|r, k| (rows[r].codes[k] + 32) as u8),
        }
    }
}
