//! What a page is made of: f32, halves, or 8-bit integers with scales.

use half::f16;

use super::lanes::{Lanes, WIDTH};

/// Stored element of the arena.
pub(crate) trait Element: bytemuck::Pod + Default + Send + Sync {
    /// Whether each key and each value has a scale, that all its elements are multiples of:
    /// [`KvType::Q8`](crate::KvType::Q8).
    const SCALED: bool = false;
    /// Eight elements as f32; of scaled elements the integers.
    ///
    /// # Safety
    /// `src .. src + 8` is readable.
    unsafe fn load<L: Lanes>(src: *const Self) -> L;
    /// Eight elements from f32, rounded once; `scale` is 1 where elements are not scaled.
    ///
    /// # Safety
    /// `dst .. dst + 8` is writable.
    unsafe fn store<L: Lanes>(lanes: L, scale: f32, dst: *mut Self);
    /// The pointer itself where no conversion is needed.
    fn as_single(_: *const Self) -> Option<*const f32> {
        None
    }
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L {
        // SAFETY: by the caller's contract.
        unsafe { L::load(src) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, _: f32, dst: *mut Self) {
        // SAFETY: by the caller's contract.
        unsafe { lanes.store(dst) }
    }
    fn as_single(src: *const Self) -> Option<*const f32> {
        Some(src)
    }
}

/// IEEE half bits. Values beyond the range are stored as the largest half: an infinity in a slot
/// that a row does not see would turn its weight of zero into NaN.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L {
        // SAFETY: by the caller's contract.
        unsafe { L::load_f16(src) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, _: f32, dst: *mut Self) {
        let largest = f16::MAX.to_f32();
        let lanes = L::splat(-largest).max(L::splat(largest).min(lanes));
        // SAFETY: by the caller's contract.
        unsafe { lanes.store_f16(dst) }
    }
}

/// Integers, multiples of a scale.
impl Element for i8 {
    const SCALED: bool = true;
    #[inline(always)]
    unsafe fn load<L: Lanes>(src: *const Self) -> L {
        // SAFETY: by the caller's contract.
        unsafe { L::load_i8(src) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, scale: f32, dst: *mut Self) {
        let integer = |x: f32| x.round_ties_even().clamp(-127.0, 127.0) as i8;
        let lanes = if scale == 0.0 {
            [0; WIDTH]
        } else {
            lanes.div(L::splat(scale)).to_array().map(integer)
        };
        // SAFETY: by the caller's contract; the write is unaligned.
        unsafe { dst.cast::<[i8; WIDTH]>().write_unaligned(lanes) }
    }
}

/// Scale of a key or a value, whose length is a multiple of eight: the largest half `s` with `127 s
/// <= max |x|`.
#[inline(always)]
pub(crate) fn scale<L: Lanes>(x: &[f32]) -> f16 {
    let mut max = L::splat(0.0);
    for x in x.chunks_exact(WIDTH) {
        let x = L::from_slice(x, 0.0);
        // NaN as the first operand loses.
        max = x.max(L::splat(0.0).sub(x)).max(max);
    }
    let want = (max.largest() / 127.0).min(f16::MAX.to_f32());
    let near = f16::from_f32(want);
    // Halves above zero are in the order of their bits.
    if near.to_f32() > want {
        f16::from_bits(near.to_bits() - 1)
    } else {
        near
    }
}

#[cfg(test)]
mod tests {
    use super::super::lanes::Plain;
    use super::*;

    fn stored(x: &[f32; WIDTH]) -> (f16, [i8; WIDTH]) {
        let (scale, mut out) = (scale::<Plain>(x), [0; WIDTH]);
        // SAFETY: eight values each.
        unsafe { i8::store(Plain::load(x.as_ptr()), scale.to_f32(), out.as_mut_ptr()) };
        (scale, out)
    }

    #[test]
    fn integers_and_scale_of_known_vectors() {
        let x = [127.0, -127.0, 0.0, 64.0, 0.5, -1.5, 10.4, 100.0].map(|x| x / 128.0);
        assert_eq!(
            stored(&x),
            (
                f16::from_f32(1.0 / 128.0),
                [127, -127, 0, 64, 0, -2, 10, 100]
            )
        );
        assert_eq!(stored(&[0.0; 8]), (f16::ZERO, [0; 8]));
        let wild = stored(&[
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            1.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ]);
        assert_eq!(wild, (f16::MAX, [0, 127, -127, 0, 0, 0, 0, 0]));
    }

    #[test]
    fn what_was_read_is_written_in_the_same_bits_and_errors_are_half_a_step() {
        let mut seed = 7u32;
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        for exponent in -30..20 {
            let x: [f32; WIDTH] = std::array::from_fn(|_| next() * 2f32.powi(exponent));
            let (scale, integers) = stored(&x);
            let read = integers.map(|q| f32::from(q) * scale.to_f32());
            assert_eq!(stored(&read), (scale, integers), "{x:?}");
            let largest = x.iter().fold(0.0f32, |max, x| max.max(x.abs()));
            for (x, read) in x.iter().zip(read) {
                // Half a step, and what rounding the scale down cuts off the largest.
                let allowed = scale.to_f32() * 0.5 + largest - 127.0 * scale.to_f32();
                assert!(
                    (x - read).abs() <= allowed * 1.001 + 1e-12,
                    "{x} was stored as {read}"
                );
            }
        }
    }
}
