//! The operations of [`Simd`] in AVX2, FMA and F16C instructions.

use std::arch::x86_64::*;

use super::ops::{Kernel, Simd};

/// Runs a kernel compiled for AVX2, FMA and F16C.
///
/// # Safety
/// The processor has the three features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// [`run`], never merged with its caller.
///
/// # Safety
/// As for [`run`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// AVX2, FMA and F16C. Only [`run`] and [`call`] make one, so whoever holds one runs on a processor
/// that has the features; every `SAFETY` below rests on that.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat(self, x: f32) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> __m256 {
        // SAFETY: features present; the array has 32 bytes.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m256, out: &mut [f32; 8]) {
        // SAFETY: features present; the array has 32 bytes.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> __m256 {
        // SAFETY: features present; the array has 16 bytes.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> __m256 {
        // SAFETY: features present; the array has 16 bytes.
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    fn add(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: features present.
        unsafe { call(kernel) }
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 8]) -> __m256i {
        // SAFETY: features present; the array has 32 bytes.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_i(self, x: &[u8; 32]) -> __m256i {
        // SAFETY: features present; the array has 32 bytes.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_i(self, x: __m256i, out: &mut [i32; 8]) {
        // SAFETY: features present; the array has 32 bytes.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[u8; 4]) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_set1_epi32(i32::from_le_bytes(*x)) }
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_set1_epi32(x) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn or(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_or_si256(a, b) }
    }
    #[inline(always)]
    fn shl<const N: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_slli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn splat_table(self, x: &[u8; 16]) -> __m256i {
        // SAFETY: features present; the array has 16 bytes.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn look_up(self, table: __m256i, indices: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_shuffle_epi8(table, indices) }
    }
    #[inline(always)]
    fn widen_i8(self, x: &[u8; 16]) -> __m256i {
        // SAFETY: features present; the array has 16 bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(x.as_ptr().cast())) }
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_srli_epi32::<N>(a) }
    }
    #[inline(always)]
    fn add_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn max_i32(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_max_epi32(a, b) }
    }
    #[inline(always)]
    fn add_i16(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_add_epi16(a, b) }
    }
    #[inline(always)]
    fn dot_u8_i8(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_maddubs_epi16(a, b) }
    }
    #[inline(always)]
    fn dot_i16(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_madd_epi16(a, b) }
    }
    #[inline(always)]
    fn splat_i16(self, x: i16) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_set1_epi16(x) }
    }
    #[inline(always)]
    fn to_f32(self, a: __m256i) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    fn round(self, a: __m256) -> __m256i {
        // SAFETY: features present. Rounds to nearest even: nobody changes the rounding mode of a
        // Rust thread.
        unsafe { _mm256_cvtps_epi32(a) }
    }
    #[inline(always)]
    fn bits(self, a: __m256) -> __m256i {
        // SAFETY: features present.
        unsafe { _mm256_castps_si256(a) }
    }
    #[inline(always)]
    fn weigh(self, a: __m256i, p: f64, b: __m256i, q: f64) -> __m256 {
        // SAFETY: features present.
        unsafe {
            let half = |a, b| {
                let (a, b) = (_mm256_cvtepi32_pd(a), _mm256_cvtepi32_pd(b));
                let sum =
                    _mm256_fmadd_pd(a, _mm256_set1_pd(p), _mm256_mul_pd(b, _mm256_set1_pd(q)));
                _mm256_cvtpd_ps(sum)
            };
            let low = half(_mm256_castsi256_si128(a), _mm256_castsi256_si128(b));
            let high = half(
                _mm256_extracti128_si256::<1>(a),
                _mm256_extracti128_si256::<1>(b),
            );
            _mm256_set_m128(high, low)
        }
    }
    #[inline(always)]
    fn choose(self, a: __m256i, b: __m256i, x: __m256, y: __m256) -> __m256 {
        // SAFETY: features present.
        unsafe { _mm256_blendv_ps(y, x, _mm256_castsi256_ps(_mm256_cmpgt_epi32(a, b))) }
    }
}
