//! Weights in the layout of the kernels: panels of 8 output rows, input by input.
//!
//! Lane `r` of every vector belongs to output row `r` of the panel, so each output element has one
//! lane and is summed along the inputs in order; that is the determinism contract. In quantised
//! cells a 32-bit lane holds the codes of four consecutive inputs (a *quad*), the operand of a
//! u8 x i8 dot product. Rows beyond the matrix are zero.
//!
//! | cell | of | bytes per 8 rows x 32 inputs |
//! |---|---|---|
//! | [`U2`] | Q2_K, TQ1_0, TQ2_0 | 112 |
//! | [`U3`] | Q3_K | 128 |
//! | [`U4`] with f16 scales | Q4_0, Q4_1 | 160 |
//! | [`U4`] with f32 scales | Q4_K | 192 |
//! | [`Table`] with f16 scales, bf16 | IQ4_NL, MXFP4 | 144 |
//! | [`Table`] with f32 scales | IQ4_XS | 160 |
//! | [`Table`] with two f32 scales | IQ1, IQ2 and IQ3 types | 192 |
//! | [`S5`] | Q5_0 | 176 |
//! | [`U5`] with f16 scales, f32 | Q5_1, Q5_K | 192, 224 |
//! | [`I8`] | Q8_0 | 272 |
//! | [`U6`] | Q6_K | 320 |
//! | `[f32; 8]`, [`Half`], [`Brain`] per input | F32, F16, BF16 | 1024, 512, 512 |

mod bytes;
mod five;
mod four;
mod narrow;
mod table;

pub(crate) use bytes::{I8, U6};
pub(crate) use five::{S5, U5};
pub(crate) use four::U4;
use half::{bf16, f16};
pub(crate) use narrow::{U2, U3};
pub(crate) use table::{HalfScales, Iq1And2, Iq3S, Iq3Xxs, Iq4, LookUp, Mxfp4, Table, Values};

use super::simd::Simd;

/// Output rows of a panel.
pub(crate) const PANEL: usize = 8;

/// One input of `P` panels as f32.
pub(crate) type Lines<const P: usize> = [[f32; PANEL]; P];

/// One step of a panel: [`Cell::INPUTS`] inputs of 8 rows.
pub(crate) trait Cell: Copy + Send + Sync {
    /// Inputs of a cell.
    const INPUTS: usize;
    /// All weights zero.
    const ZERO: Self;
    /// Writes the weights as f32: `out[k][p][r]` for input `k` and row `r`; `out.len() == INPUTS`.
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]);
}

/// Eight scales, one per row.
pub(crate) trait Scales: Copy + Send + Sync {
    const ZERO: Self;
    fn load<S: Simd>(&self, s: S) -> S::F;
    fn store(values: [f32; PANEL]) -> Self;
}

impl Scales for [f32; PANEL] {
    const ZERO: Self = [0.0; PANEL];
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load(self)
    }
    fn store(values: [f32; PANEL]) -> Self {
        values
    }
}

/// Eight IEEE halves.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Half(pub [u8; 16]);

impl Scales for Half {
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_f16(&self.0)
    }
    fn store(values: [f32; PANEL]) -> Self {
        Self(std::array::from_fn(|i| {
            f16::from_f32(values[i / 2]).to_le_bytes()[i % 2]
        }))
    }
}

/// Eight bfloat16.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Brain(pub [u8; 16]);

impl Scales for Brain {
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn load<S: Simd>(&self, s: S) -> S::F {
        s.load_bf16(&self.0)
    }
    fn store(values: [f32; PANEL]) -> Self {
        Self(std::array::from_fn(|i| {
            bf16::from_f32(values[i / 2]).to_le_bytes()[i % 2]
        }))
    }
}

impl Cell for [f32; PANEL] {
    const INPUTS: usize = 1;
    const ZERO: Self = [0.0; PANEL];
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load(self), &mut out[0][p]);
    }
}

impl Cell for Half {
    const INPUTS: usize = 1;
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load_f16(&self.0), &mut out[0][p]);
    }
}

impl Cell for Brain {
    const INPUTS: usize = 1;
    const ZERO: Self = Self([0; 16]);
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        s.store(s.load_bf16(&self.0), &mut out[0][p]);
    }
}

/// Takes the quads of a cell. A trait and no closure, because all of it must be inlined into what
/// is compiled for an instruction set, see [`Kernel`](super::simd::Kernel).
pub(crate) trait Quads<S: Simd> {
    /// Takes quad `quad` (inputs `4 quad ..`), whose codes are bytes.
    fn take(&mut self, s: S, quad: usize, codes: S::I);
}

/// How byte codes become weights: `(code - offset) * scale + min`.
#[derive(Clone, Copy)]
struct Affine<S: Simd> {
    offset: i32,
    scale: S::F,
    min: S::F,
}

impl<S: Simd> Affine<S> {
    /// Without a minimum: adding -0 changes nothing.
    #[inline(always)]
    fn scaled(s: S, offset: i32, scale: S::F) -> Self {
        Self {
            offset,
            scale,
            min: s.splat(-0.0),
        }
    }

    #[inline(always)]
    fn weight(self, s: S, code: S::I) -> S::F {
        let code = s.and(code, s.splat_i32(255));
        let code = s.to_f32(s.sub_i32(code, s.splat_i32(self.offset)));
        s.add(s.mul(code, self.scale), self.min)
    }
}

/// Writes the weights of quads as f32, into row `p` of lines.
struct Unpack<'a, S: Simd, const P: usize> {
    /// Of the first and the last 16 inputs.
    halves: [Affine<S>; 2],
    p: usize,
    out: &'a mut [Lines<P>],
}

impl<S: Simd, const P: usize> Quads<S> for Unpack<'_, S, P> {
    #[inline(always)]
    fn take(&mut self, s: S, quad: usize, codes: S::I) {
        let (half, p) = (self.halves[quad / 4], self.p);
        let out = &mut self.out[4 * quad..][..4];
        s.store(half.weight(s, codes), &mut out[0][p]);
        s.store(half.weight(s, s.shr::<8>(codes)), &mut out[1][p]);
        s.store(half.weight(s, s.shr::<16>(codes)), &mut out[2][p]);
        s.store(half.weight(s, s.shr::<24>(codes)), &mut out[3][p]);
    }
}

/// Codes of eight rows, quad by quad: byte `4r + j` of vector `i` is `f(r, 4i + j)`.
fn interleave(f: impl Fn(usize, usize) -> u8) -> [[u8; 32]; 8] {
    std::array::from_fn(|i| std::array::from_fn(|b| f(b / 4, 4 * i + b % 4)))
}

/// The quads of eight rows at byte `b`, joined to as many bytes as a cell has vectors.
fn join<const N: usize>(
    quads: &[[u8; 32]; 8],
    vectors: impl Fn([u8; 8]) -> [u8; N],
) -> [[u8; 32]; N] {
    let mut out = [[0; 32]; N];
    for b in 0..32 {
        let bytes = vectors(std::array::from_fn(|quad| quads[quad][b]));
        for (vector, byte) in out.iter_mut().zip(bytes) {
            vector[b] = byte;
        }
    }
    out
}
