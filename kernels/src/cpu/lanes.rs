//! Eight f32 lanes, once in plain Rust and once in AVX2: kernels are written against [`Lanes`] and
//! give the same bits on both, because every operation here is correctly rounded IEEE arithmetic or
//! exact bit manipulation.

use super::simd::SimdLevel;

/// Lanes of one vector.
pub(crate) const WIDTH: usize = 8;

/// Eight f32 values. Comparisons follow the x86 rule: [`Lanes::max`] and [`Lanes::min`] return the
/// second operand when either is NaN.
pub(crate) trait Lanes: Copy {
    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// Eight values from `src`.
    ///
    /// # Safety
    /// `src .. src + 8` is readable.
    unsafe fn load(src: *const f32) -> Self;
    /// Eight halves from `src`, exactly.
    ///
    /// # Safety
    /// `src .. src + 8` is readable.
    unsafe fn load_f16(src: *const u16) -> Self;
    /// Eight integers from `src`.
    ///
    /// # Safety
    /// `src .. src + 8` is readable.
    unsafe fn load_i8(src: *const i8) -> Self;
    /// Eight values to `dst`.
    ///
    /// # Safety
    /// `dst .. dst + 8` is writable.
    unsafe fn store(self, dst: *mut f32);
    /// Eight values to `dst`, rounded to the nearest half, ties to even.
    ///
    /// # Safety
    /// `dst .. dst + 8` is writable.
    unsafe fn store_f16(self, dst: *mut u16);
    /// Asks for the cache line at `address`, which may be any.
    fn prefetch<T>(address: *const T);
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self * a + b`, rounded once.
    fn fma(self, a: Self, b: Self) -> Self;
    /// The larger of both.
    fn max(self, b: Self) -> Self;
    /// The smaller of both.
    fn min(self, b: Self) -> Self;
    /// `self * 2^n`, where the integer `n` sits in the low bits of `t` (a sum with `1.5 * 2^23`).
    /// The result must be a normal number.
    fn shift_exponent(self, t: Self) -> Self;
    /// `self` where `x >= limit`, otherwise `+0`.
    fn zero_below(self, x: Self, limit: f32) -> Self;

    /// The lanes.
    #[inline(always)]
    fn to_array(self) -> [f32; WIDTH] {
        let mut out = [0.0; WIDTH];
        // SAFETY: `out` holds eight values.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// Eight lanes from at most eight values, the missing ones `fill`.
    #[inline(always)]
    fn from_slice(src: &[f32], fill: f32) -> Self {
        if src.len() >= WIDTH {
            // SAFETY: eight values are there.
            return unsafe { Self::load(src.as_ptr()) };
        }
        let mut lanes = [fill; WIDTH];
        lanes[..src.len()].copy_from_slice(src);
        // SAFETY: `lanes` holds eight values.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// The first `dst.len()` lanes, at most eight.
    #[inline(always)]
    fn write(self, dst: &mut [f32]) {
        if dst.len() >= WIDTH {
            // SAFETY: room for eight values.
            unsafe { self.store(dst.as_mut_ptr()) };
        } else {
            let lanes = self.to_array();
            dst.copy_from_slice(&lanes[..dst.len()]);
        }
    }

    /// Sum of the lanes in a fixed tree.
    #[inline(always)]
    fn sum(self) -> f32 {
        let [a, b, c, d, e, f, g, h] = self.to_array();
        ((a + e) + (c + g)) + ((b + f) + (d + h))
    }

    /// Largest lane.
    #[inline(always)]
    fn largest(self) -> f32 {
        let lanes = self.to_array();
        let mut best = lanes[0];
        for &x in &lanes[1..] {
            best = if x > best { x } else { best };
        }
        best
    }
}

/// The lanes as an array.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; WIDTH]);

impl Plain {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Lanes for Plain {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        Self([x; WIDTH])
    }
    #[inline(always)]
    unsafe fn load(src: *const f32) -> Self {
        // SAFETY: the caller keeps eight values readable; the read is unaligned.
        Self(unsafe { src.cast::<[f32; WIDTH]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_f16(src: *const u16) -> Self {
        // SAFETY: the caller keeps eight values readable; the read is unaligned.
        let bits = unsafe { src.cast::<[u16; WIDTH]>().read_unaligned() };
        Self(bits.map(|x| half::f16::from_bits(x).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_i8(src: *const i8) -> Self {
        // SAFETY: the caller keeps eight values readable; the read is unaligned.
        Self(unsafe { src.cast::<[i8; WIDTH]>().read_unaligned() }.map(f32::from))
    }
    #[inline(always)]
    unsafe fn store(self, dst: *mut f32) {
        // SAFETY: the caller keeps eight values writable; the write is unaligned.
        unsafe { dst.cast::<[f32; WIDTH]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, dst: *mut u16) {
        let bits = self.0.map(|x| half::f16::from_f32(x).to_bits());
        // SAFETY: the caller keeps eight values writable; the write is unaligned.
        unsafe { dst.cast::<[u16; WIDTH]>().write_unaligned(bits) }
    }
    #[inline(always)]
    fn prefetch<T>(_: *const T) {}
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|i| self.0[i].mul_add(a.0[i], b.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn shift_exponent(self, t: Self) -> Self {
        self.zip(t, |x, y| {
            f32::from_bits(x.to_bits().wrapping_add(y.to_bits() << 23))
        })
    }
    #[inline(always)]
    fn zero_below(self, x: Self, limit: f32) -> Self {
        self.zip(x, |value, x| if x >= limit { value } else { 0.0 })
    }
}

/// The lanes in one AVX register. Values of this type exist only below [`dispatch`], which has
/// checked the processor.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Avx2, Lanes};

    // SAFETY of every block below that gives no other reason: the instruction exists, because
    // `dispatch` runs code on `Avx2` only after AVX2, FMA and F16C were detected. Pointers are
    // valid by the contract of the trait method.
    #[expect(
        clippy::undocumented_unsafe_blocks,
        reason = "one reason for all, stated above"
    )]
    impl Lanes for Avx2 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            Self(unsafe { _mm256_set1_ps(x) })
        }
        #[inline(always)]
        unsafe fn load(src: *const f32) -> Self {
            Self(unsafe { _mm256_loadu_ps(src) })
        }
        #[inline(always)]
        unsafe fn load_f16(src: *const u16) -> Self {
            Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(src.cast())) })
        }
        #[inline(always)]
        unsafe fn load_i8(src: *const i8) -> Self {
            Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(src.cast()))) })
        }
        #[inline(always)]
        unsafe fn store(self, dst: *mut f32) {
            unsafe { _mm256_storeu_ps(dst, self.0) }
        }
        #[inline(always)]
        unsafe fn store_f16(self, dst: *mut u16) {
            unsafe {
                _mm_storeu_si128(
                    dst.cast(),
                    _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0),
                )
            }
        }
        #[inline(always)]
        fn prefetch<T>(address: *const T) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            Self(unsafe { _mm256_add_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            Self(unsafe { _mm256_sub_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            Self(unsafe { _mm256_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            Self(unsafe { _mm256_div_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn fma(self, a: Self, b: Self) -> Self {
            Self(unsafe { _mm256_fmadd_ps(self.0, a.0, b.0) })
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            Self(unsafe { _mm256_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            Self(unsafe { _mm256_min_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn shift_exponent(self, t: Self) -> Self {
            Self(unsafe {
                let shifted = _mm256_slli_epi32::<23>(_mm256_castps_si256(t.0));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), shifted))
            })
        }
        #[inline(always)]
        fn zero_below(self, x: Self, limit: f32) -> Self {
            Self(unsafe {
                _mm256_and_ps(
                    self.0,
                    _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, _mm256_set1_ps(limit)),
                )
            })
        }
    }
}

/// A computation that is written once for any [`Lanes`]. Implementations mark `run` and everything
/// below it `#[inline(always)]`, so that it is compiled with the instructions of the lanes.
pub(crate) trait Kernel {
    /// What the computation returns.
    type Output;
    /// Runs it on lanes `L`.
    fn run<L: Lanes>(self) -> Self::Output;
}

/// Runs `kernel` on the lanes of `level`.
#[inline]
pub(crate) fn dispatch<K: Kernel>(level: SimdLevel, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn on_avx2<K: Kernel>(kernel: K) -> K::Output {
            kernel.run::<Avx2>()
        }
        if level == SimdLevel::Avx2 {
            // SAFETY: a backend holds `SimdLevel::Avx2` only where AVX2, FMA and F16C were
            // detected.
            return unsafe { on_avx2(kernel) };
        }
    }
    let _ = level;
    kernel.run::<Plain>()
}

/// A mutable slice that the tasks of one parallel call share, each writing a part of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `part` only, whose callers keep the parts disjoint.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    /// Shares `slice`.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            owner: std::marker::PhantomData,
        }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// No other part that overlaps this one is alive at the same time.
    pub(crate) unsafe fn part(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "a part lies inside its slice"
        );
        // SAFETY: inside the slice by the assertion, unaliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// First element, for writes that are scattered over the slice.
    pub(crate) fn start(&self) -> *mut T {
        self.start
    }
}
