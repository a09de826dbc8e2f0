//! Codes of four bits with a minimum.

use super::{Cell, Lines, PANEL, Scales, interleave, join};
use crate::cpu::simd::Simd;
use crate::quant::{GROUP, Group};

/// 4-bit codes. Byte `4r + j` of `codes[i]` holds inputs `8i + j` (low nibble) and `8i + 4 + j` of
/// row `r`.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(crate) struct U4<W> {
    pub scale: W,
    pub min: W,
    pub codes: [[u8; 32]; 4],
}

/// Two quads to a vector of nibbles.
pub(super) fn nibbles(quads: &[[u8; 32]; 8]) -> [[u8; 32]; 4] {
    join(quads, |c| {
        std::array::from_fn(|i| c[2 * i] | c[2 * i + 1] << 4)
    })
}

impl<W: Scales> Cell for U4<W> {
    const INPUTS: usize = GROUP;
    const ZERO: Self = Self {
        scale: W::ZERO,
        min: W::ZERO,
        codes: [[0; 32]; 4],
    };
    #[inline(always)]
    fn unpack<S: Simd, const P: usize>(&self, s: S, p: usize, out: &mut [Lines<P>]) {
        let (scale, min, mask) = (self.scale.load(s), self.min.load(s), s.splat_i32(15));
        let weight = |code| s.add(s.mul(s.to_f32(s.and(code, mask)), scale), min);
        for (codes, out) in self.codes.iter().zip(out.as_chunks_mut::<8>().0) {
            let v = s.load_i(codes);
            s.store(weight(v), &mut out[0][p]);
            s.store(weight(s.shr::<8>(v)), &mut out[1][p]);
            s.store(weight(s.shr::<16>(v)), &mut out[2][p]);
            s.store(weight(s.shr::<24>(v)), &mut out[3][p]);
            s.store(weight(s.shr::<4>(v)), &mut out[4][p]);
            s.store(weight(s.shr::<12>(v)), &mut out[5][p]);
            s.store(weight(s.shr::<20>(v)), &mut out[6][p]);
            s.store(weight(s.shr::<28>(v)), &mut out[7][p]);
        }
    }
}

impl<W: Scales> U4<W> {
    /// Groups with codes 0 to 15.
    pub fn pack(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: W::store(rows.map(|group| group.scale.of(0))),
            min: W::store(rows.map(|group| group.min.of(0))),
            codes: nibbles(&interleave(|r, k| rows[r].codes[k] as u8)),
        }
    }

    /// Groups with codes -8 to 7 and no minimum, as codes 0 to 15 with one.
    pub fn pack_signed(rows: &[Group; PANEL]) -> Self {
        Self {
            scale: W::store(rows.map(|group| group.scale.of(0))),
            min: W::store(rows.map(|group| -8.0 * group.scale.of(0))),
            codes: nibbles(&interleave(|r, k| (rows[r].codes[k] + 8) as u8)),
        }
    }
}
