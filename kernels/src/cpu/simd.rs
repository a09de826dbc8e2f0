//! Eight lanes of f32 or i32, or 32 bytes: what the CPU kernels are written in, once for every
//! instruction set.
//!
//! A kernel is generic over [`Simd`] and runs with [`SimdLevel::dispatch`]. [`Portable`] defines
//! what each operation means; [`Avx2`](super::simd_avx2::Avx2) does the same in one or two
//! instructions, **bit for bit** (NaN payloads excepted), so a kernel's result does not depend on
//! the machine. Methods are safe: operands are arrays of the right size.

/// Instruction set of the kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SimdLevel {
    /// Plain Rust; slow where the processor has no fused multiply-add.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
}

impl SimdLevel {
    /// The best level that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
        {
            return Self::Avx2;
        }
        Self::Portable
    }

    /// Runs a kernel at this level; at [`SimdLevel::Portable`] where the processor lacks the level.
    #[inline]
    pub(crate) fn dispatch<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 if Self::detect() == Self::Avx2 => {
                // SAFETY: the processor was just found to have the features.
                unsafe { super::simd_avx2::run(kernel) }
            }
            _ => kernel.run(Portable),
        }
    }
}

/// A function with its arguments, generic over the instruction set. `run` and what it calls must be
/// `#[inline(always)]`: only what ends up inside the dispatching function is compiled for its
/// instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// The function.
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

/// Operations on a 256-bit register. `F`: 8 lanes of f32. `I`: 8 lanes of 32 bits, lane `i` = bytes
/// `4i .. 4i+4`.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// 32 bytes, 16 i16 or 8 i32, as the operation says.
    type I: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, x: &[f32; 8]) -> Self::F;
    fn store(self, x: Self::F, out: &mut [f32; 8]);
    /// Eight IEEE halves, little-endian.
    fn load_f16(self, x: &[u8; 16]) -> Self::F;
    /// Eight bfloat16, little-endian.
    fn load_bf16(self, x: &[u8; 16]) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;

    /// Runs a kernel as a function of its own, whose constants take no registers from its caller's
    /// loops.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;

    fn load_i(self, x: &[u8; 32]) -> Self::I;
    fn load_i32(self, x: &[i32; 8]) -> Self::I;
    fn store_i(self, x: Self::I, out: &mut [i32; 8]);
    /// The same four bytes in every lane.
    fn splat_bytes(self, x: &[u8; 4]) -> Self::I;
    fn splat_i32(self, x: i32) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// 32-bit lanes shifted right, zeros from above.
    fn shr<const N: i32>(self, a: Self::I) -> Self::I;
    /// i32 lanes, wrapping.
    fn add_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// i32 lanes, wrapping.
    fn sub_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// i32 lanes, signed maximum.
    fn max_i32(self, a: Self::I, b: Self::I) -> Self::I;
    /// i16 lanes, wrapping.
    fn add_i16(self, a: Self::I, b: Self::I) -> Self::I;
    /// i16 lane `i` = `u8 a[2i] * i8 b[2i] + u8 a[2i+1] * i8 b[2i+1]`, saturating.
    fn dot_u8_i8(self, a: Self::I, b: Self::I) -> Self::I;
    /// i32 lane `i` = `i16 a[2i] * i16 b[2i] + i16 a[2i+1] * i16 b[2i+1]`.
    fn dot_i16(self, a: Self::I, b: Self::I) -> Self::I;
    fn splat_i16(self, x: i16) -> Self::I;
    /// i32 lanes to the nearest f32, ties to even.
    fn to_f32(self, a: Self::I) -> Self::F;
    /// f32 lanes to the nearest i32, ties to even; defined for |x| < 2^31.
    fn round(self, a: Self::F) -> Self::I;
    /// The bits of f32 lanes as i32 lanes.
    fn bits(self, a: Self::F) -> Self::I;
    /// `a * p + b * q` of i32 lanes in f64, rounded to f32; defined where both products are exact.
    fn weigh(self, a: Self::I, p: f64, b: Self::I, q: f64) -> Self::F;
    /// Lanes of `x` where `a > b`, as i32; of `y` elsewhere.
    fn choose(self, a: Self::I, b: Self::I, x: Self::F, y: Self::F) -> Self::F;
}

/// Plain Rust: the definition of every operation.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

#[inline(always)]
fn zip<T: Copy, U: Copy + Default, const N: usize>(
    a: [T; N],
    b: [T; N],
    f: impl Fn(T, T) -> U,
) -> [U; N] {
    let mut out = [U::default(); N];
    for i in 0..N {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn halves(a: [i32; 8]) -> [i16; 16] {
    bytemuck::cast(a)
}

impl Simd for Portable {
    type F = [f32; 8];
    type I = [i32; 8];

    #[inline(always)]
    fn splat(self, x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn load(self, x: &[f32; 8]) -> [f32; 8] {
        *x
    }
    #[inline(always)]
    fn store(self, x: [f32; 8], out: &mut [f32; 8]) {
        *out = x;
    }
    #[inline(always)]
    fn load_f16(self, x: &[u8; 16]) -> [f32; 8] {
        std::array::from_fn(|i| half::f16::from_le_bytes([x[2 * i], x[2 * i + 1]]).to_f32())
    }
    #[inline(always)]
    fn load_bf16(self, x: &[u8; 16]) -> [f32; 8] {
        std::array::from_fn(|i| f32::from_bits(u32::from_le_bytes([0, 0, x[2 * i], x[2 * i + 1]])))
    }
    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
    #[inline(always)]
    fn load_i32(self, x: &[i32; 8]) -> [i32; 8] {
        *x
    }
    #[inline(always)]
    fn load_i(self, x: &[u8; 32]) -> [i32; 8] {
        std::array::from_fn(|i| {
            i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]])
        })
    }
    #[inline(always)]
    fn store_i(self, x: [i32; 8], out: &mut [i32; 8]) {
        *out = x;
    }
    #[inline(always)]
    fn splat_bytes(self, x: &[u8; 4]) -> [i32; 8] {
        [i32::from_le_bytes(*x); 8]
    }
    #[inline(always)]
    fn splat_i32(self, x: i32) -> [i32; 8] {
        [x; 8]
    }
    #[inline(always)]
    fn and(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn shr<const N: i32>(self, a: [i32; 8]) -> [i32; 8] {
        a.map(|a| (a as u32 >> N) as i32)
    }
    #[inline(always)]
    fn add_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, i32::wrapping_add)
    }
    #[inline(always)]
    fn sub_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, i32::wrapping_sub)
    }
    #[inline(always)]
    fn max_i32(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        zip(a, b, |a: i32, b| a.max(b))
    }
    #[inline(always)]
    fn add_i16(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        bytemuck::cast(zip(halves(a), halves(b), i16::wrapping_add))
    }
    #[inline(always)]
    fn dot_u8_i8(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        let (a, b): ([u8; 32], [i8; 32]) = (bytemuck::cast(a), bytemuck::cast(b));
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        let sums: [i16; 16] = std::array::from_fn(|i| {
            (product(2 * i) + product(2 * i + 1)).clamp(i32::from(i16::MIN), i32::from(i16::MAX))
                as i16
        });
        bytemuck::cast(sums)
    }
    #[inline(always)]
    fn dot_i16(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        let (a, b) = (halves(a), halves(b));
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| product(2 * i).wrapping_add(product(2 * i + 1)))
    }
    #[inline(always)]
    fn splat_i16(self, x: i16) -> [i32; 8] {
        bytemuck::cast([x; 16])
    }
    #[inline(always)]
    fn to_f32(self, a: [i32; 8]) -> [f32; 8] {
        a.map(|a| a as f32)
    }
    #[inline(always)]
    fn round(self, a: [f32; 8]) -> [i32; 8] {
        a.map(|a| a.round_ties_even() as i32)
    }
    #[inline(always)]
    fn bits(self, a: [f32; 8]) -> [i32; 8] {
        a.map(|a| a.to_bits() as i32)
    }
    #[inline(always)]
    fn weigh(self, a: [i32; 8], p: f64, b: [i32; 8], q: f64) -> [f32; 8] {
        std::array::from_fn(|i| (f64::from(a[i]) * p + f64::from(b[i]) * q) as f32)
    }
    #[inline(always)]
    fn choose(self, a: [i32; 8], b: [i32; 8], x: [f32; 8], y: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { x[i] } else { y[i] })
    }
}
