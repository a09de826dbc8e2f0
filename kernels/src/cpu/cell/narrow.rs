//! Codes of two and three bits, with small integers as scales of each 16 inputs.

use super::{Affine, Cell, Half, Lines, PANEL, Quads, Scales, Unpack, interleave, join};
use crate::cpu::simd::Simd;
use crate::quant::{GROUP, Group, Scale};

/// 2-bit codes: quads `4i` to `4i + 3` in vector `i`, from the lowest bits on.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct U2 {
    /// What scales are multiples of.
    pub unit: Half,
    /// What minima are multiples of.
    pub min_unit: Half,
    /// Byte `2r + h`: scale of half `h` of row `r` in the low, minimum in the high nibble.
    pub factors: [u8; 16],
    codes: [[u8; 32]; 2],
}

/// 3-bit codes plus 4: quads 0 and 1 in vector 0, 2 and 3 in vector 1, 4 and 5 in vector 2, from
/// the lowest bits on. The two bits above hold quad 6 in vectors 0 and 1, quad 7 in 2 and 1.
///
/// ```text
/// bit       7   6   5 .. 3  2 .. 0
/// vector 0  6.1 6.0 quad 1  quad 0
/// vector 1  7.2 6.2 quad 3  quad 2
/// vector 2  7.1 7.0 quad 5  quad 4
/// ```
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct U3 {
    /// What scales are multiples of.
    pub unit: Half,
    /// Byte `2r + h`: scale of half `h` of row `r`, signed.
    pub factors: [u8; 16],
    codes: [[u8; 32]; 3],
}

/// Factors of each half of a cell's inputs, as pairs of 16 bits: of the first half in the low word
/// of a row's lane.
#[derive(Clone, Copy)]
pub(crate) struct Pairs<S: Simd>(pub S::I);

impl<S: Simd> Pairs<S> {
    /// The factor of a half in both words of a lane.
    #[inline(always)]
    pub fn both(self, s: S, half: usize) -> S::I {
        if half == 0 {
            s.or(s.and(self.0, s.splat_i32(0xffff)), s.shl::<16>(self.0))
        } else {
            let high = s.and(self.0, s.splat_i32(-0x1_0000));
            s.or(s.shr::<16>(self.0), high)
        }
    }

    /// The factor of a half as f32.
    #[inline(always)]
    fn float(self, s: S, half: usize) -> S::F {
        // Times one and zero: the words that are not asked for drop out.
        let which = s.splat_i32(if half == 0 { 1 } else { 0x1_0000 });
        s.to_f32(s.dot_i16(self.0, which))
    }
}

impl U2 {
    #[inline(always)]
    pub fn scales<S: Simd>(&self, s: S) -> Pairs<S> {
        Pairs(s.and(s.widen_i8(&self.factors), s.splat_i16(15)))
    }

    #[inline(always)]
    pub fn minima<S: Simd>(&self, s: S) -> Pairs<S> {
        let minima = s.shr::<4>(s.widen_i8(&self.factors));
        Pairs(s.and(minima, s.splat_i16(15)))
    }

    /// Hands over each quad.
    #[inline(always)]
    pub fn quads<S: Simd>(&self, s: S, to: &mut impl Quads<S>) {
        let mask = s.splat_bytes(&[3; 4]);
        for (i, codes) in self.codes.iter().enumerate() {
            let v = s.load_i(codes);
            to.take(s, 4 * i, s.and(v, mask));
            to.take(s, 4 * i + 1, s.and(s.shr::<2>(v), mask));
            to.take(s, 4 * i + 2, s.and(s.shr::<4>(v), mask));
            to.take(s, 4 * i + 3, s.and(s.shr::<6>(v), mask));
        }
    }

    /// Groups with codes 0 to 3 and scales and minima of four bits.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        let factor = |scale: Scale, half: usize| scale.by[half] as u8;
        let group = |i: usize| (&rows[i / 2], i % 2);
        Self {
            unit: Half::store(rows.map(|group| group.scale.unit)),
            min_unit: Half::store(rows.map(|group| group.min.unit)),
            factors: std::array::from_fn(|i| {
                let (group, half) = group(i);
                factor(group.scale, half) | factor(group.min, half) << 4
            }),
            codes: Self::join(|r, k| rows[r].codes[k] as u8),
        }
    }

    /// Groups with codes -1 to 2, one scale and no minimum.
    pub fn pack_ternary(rows: &[Group; PANEL]) -> Self {
        Self {
            unit: Half::store(rows.map(|group| group.scale.unit)),
            min_unit: Half::store(rows.map(|group| -group.scale.unit)),
            factors: [0x11; 16],
            codes: Self::join(|r, k| (rows[r].codes[k] + 1) as u8),
        }
    }

    fn join(code: impl Fn(usize, usize) -> u8) -> [[u8; 32]; 2] {
        join(&interleave(code), |c| {
            [0, 4].map(|i| c[i] | c[i + 1] << 2 | c[i + 2] << 4 | c[i + 3] << 6)
        })
    }
}

impl Cell for U2 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        unit: <Half as Scales>::ZERO,
        min_unit: <Half as Scales>::ZERO,
        factors: [0; 16],
        codes: [[0; 32]; 2],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let [unit, min_unit] = [&self.unit, &self.min_unit].map(|unit| Scales::load(unit, s));
        let (scales, minima) = (self.scales(s), self.minima(s));
        let halves = [0, 1].map(|half| Affine {
            offset: 0,
            scale: s.mul(unit, scales.float(s, half)),
            min: s.mul(min_unit, minima.float(s, half)),
        });
        self.quads(s, &mut Unpack { halves, p, out });
    }
}

impl U3 {
    #[inline(always)]
    pub fn scales<S: Simd>(&self, s: S) -> Pairs<S> {
        Pairs(s.widen_i8(&self.factors))
    }

    /// Hands over each quad.
    #[inline(always)]
    pub fn quads<S: Simd>(&self, s: S, to: &mut impl Quads<S>) {
        let (mask, two, top) = (
            s.splat_bytes(&[7; 4]),
            s.splat_bytes(&[3; 4]),
            s.splat_bytes(&[4; 4]),
        );
        let [v0, v1, v2] = [0, 1, 2].map(|i| s.load_i(&self.codes[i]));
        for (i, v) in [v0, v1, v2].into_iter().enumerate() {
            to.take(s, 2 * i, s.and(v, mask));
            to.take(s, 2 * i + 1, s.and(s.shr::<3>(v), mask));
        }
        to.take(
            s,
            6,
            s.or(s.and(s.shr::<6>(v0), two), s.and(s.shr::<4>(v1), top)),
        );
        to.take(
            s,
            7,
            s.or(s.and(s.shr::<6>(v2), two), s.and(s.shr::<5>(v1), top)),
        );
    }

    /// Groups with codes -4 to 3, scales of eight bits and no minimum.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            unit: Half::store(rows.map(|group| group.scale.unit)),
            factors: std::array::from_fn(|i| rows[i / 2].scale.by[i % 2] as i8 as u8),
            codes: join(&interleave(|r, k| (rows[r].codes[k] + 4) as u8), |c| {
                [
                    c[0] | c[1] << 3 | (c[6] & 3) << 6,
                    c[2] | c[3] << 3 | c[6] >> 2 << 6 | c[7] >> 2 << 7,
                    c[4] | c[5] << 3 | (c[7] & 3) << 6,
                ]
            }),
        }
    }
}

impl Cell for U3 {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        unit: <Half as Scales>::ZERO,
        factors: [0; 16],
        codes: [[0; 32]; 3],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let (unit, scales) = (Scales::load(&self.unit, s), self.scales(s));
        let halves = [0, 1].map(|half| Affine::scaled(s, 4, s.mul(unit, scales.float(s, half))));
        self.quads(s, &mut Unpack { halves, p, out });
    }
}
