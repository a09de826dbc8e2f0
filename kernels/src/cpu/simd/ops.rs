//! The operations that kernels are written in.

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
    /// A table for [`Self::look_up`].
    fn splat_table(self, x: &[u8; 16]) -> Self::I;
    /// Byte `i` = entry `indices[i]` of the table; indices are below 16.
    fn look_up(self, table: Self::I, indices: Self::I) -> Self::I;
    /// Sixteen i8 as i16 lanes.
    fn widen_i8(self, x: &[u8; 16]) -> Self::I;
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// 32-bit lanes shifted left.
    fn shl<const N: i32>(self, a: Self::I) -> Self::I;
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
