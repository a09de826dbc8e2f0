//! Codes of five bits.

use super::{Affine, Cell, Half, Lines, PANEL, Quads, Scales, Unpack, interleave, join};
use crate::cpu::simd::Simd;
use crate::quant::{GROUP, Group};

/// Codes of five bits in five vectors, each a quad in the low bits of its bytes. The three bits
/// above hold the other quads: 5 in vectors 0 and 1, 6 in 2 and 3, 7 in 4 and one bit each of 1 and
/// 3.
///
/// ```text
/// bit       7   6   5   4 .. 0
/// vector 0  5.2 5.1 5.0 quad 0
/// vector 1  5.4 5.3 7.3 quad 1
/// vector 2  6.2 6.1 6.0 quad 2
/// vector 3  6.4 6.3 7.4 quad 3
/// vector 4  7.2 7.1 7.0 quad 4
/// ```
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct FiveBits([[u8; 32]; 5]);

impl FiveBits {
    /// All codes `code`.
    const fn all(code: u8) -> Self {
        Self([
            [code | (code & 7) << 5; 32],
            [code | (code >> 3) << 6 | (code >> 3 & 1) << 5; 32],
            [code | (code & 7) << 5; 32],
            [code | (code >> 3) << 6 | (code >> 4) << 5; 32],
            [code | (code & 7) << 5; 32],
        ])
    }

    fn pack(code: impl Fn(usize, usize) -> u8) -> Self {
        Self(join(&interleave(code), |c| {
            [
                c[0] | (c[5] & 7) << 5,
                c[1] | c[5] >> 3 << 6 | (c[7] >> 3 & 1) << 5,
                c[2] | (c[6] & 7) << 5,
                c[3] | c[6] >> 3 << 6 | c[7] >> 4 << 5,
                c[4] | (c[7] & 7) << 5,
            ]
        }))
    }

    /// Hands over each quad. Few constants, so that they stay in registers beside the sums of a
    /// tile.
    #[inline(always)]
    pub fn quads<S: Simd>(&self, s: S, to: &mut impl Quads<S>) {
        let five = s.splat_bytes(&[31; 4]);
        let (high, single) = (s.splat_bytes(&[24; 4]), s.splat_bytes(&[32; 4]));
        let [v0, v1] = [0, 1].map(|i| s.load_i(&self.0[i]));
        to.take(s, 0, s.and(v0, five));
        to.take(s, 1, s.and(v1, five));
        to.take(s, 5, s.or(upper(s, v0), s.and(s.shr::<3>(v1), high)));
        let [v2, v3] = [2, 3].map(|i| s.load_i(&self.0[i]));
        to.take(s, 2, s.and(v2, five));
        to.take(s, 3, s.and(v3, five));
        to.take(s, 6, s.or(upper(s, v2), s.and(s.shr::<3>(v3), high)));
        let v4 = s.load_i(&self.0[4]);
        to.take(s, 4, s.and(v4, five));
        // Bits 3 and 4 of quad 7 side by side at bits 5 and 6, then moved down.
        let fourth = s.and(v3, single);
        let both = s.or(s.and(v1, single), s.add_i32(fourth, fourth));
        to.take(s, 7, s.or(upper(s, v4), s.shr::<2>(both)));
    }
}

/// The upper three bits of bytes.
#[inline(always)]
fn upper<S: Simd>(s: S, bytes: S::I) -> S::I {
    s.and(s.shr::<5>(bytes), s.splat_bytes(&[7; 4]))
}

/// 5-bit codes plus 16, without minima.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct S5 {
    pub scale: Half,
    pub codes: FiveBits,
}

/// 5-bit codes with minima.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U5<W> {
    pub scale: W,
    pub min: W,
    pub codes: FiveBits,
}

impl Cell for S5 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: <Half as Scales>::ZERO,
        codes: FiveBits::all(16),
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let halves = [Affine::scaled(s, 16, Scales::load(&self.scale, s)); 2];
        self.codes.quads(s, &mut Unpack { halves, p, out });
    }
}

impl S5 {
    /// Groups with codes -16 to 15 and no minimum.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: Half::store(rows.map(|group| group.scale.of(0))),
            codes: FiveBits::pack(|r, k| (rows[r].codes[k] + 16) as u8),
        }
    }
}

impl<W: Scales> Cell for U5<W> {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: W::ZERO,
        min: W::ZERO,
        codes: FiveBits::all(0),
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let weights = Affine {
            offset: 0,
            scale: self.scale.load(s),
            min: self.min.load(s),
        };
        let halves = [weights; 2];
        self.codes.quads(s, &mut Unpack { halves, p, out });
    }
}

impl<W: Scales> U5<W> {
    /// Groups with codes 0 to 31.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: W::store(rows.map(|group| group.scale.of(0))),
            min: W::store(rows.map(|group| group.min.of(0))),
            codes: FiveBits::pack(|r, k| rows[r].codes[k] as u8),
        }
    }
}
