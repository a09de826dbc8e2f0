// Matrix products: out[T, N] (+)= x[T, C] * w[N, C]^T, f32 sums in an order that depends on C
// alone.
//
//   gemv_bf16_R   up to R rows of bf16 x: decode. A warp per output, 16-byte loads of the weight
//   row, each used for all R
//                 rows; x comes from the L1. Bound by reading w once.
//   matmul_bf16   any number of rows: tiles of 64 x 64, depth 64, two stages of asynchronous
//   copies, mma.m16n8k16 with
//                 f32 sums. Where cuBLAS is found the driver's device uses that instead for more
//                 than 8 rows.
//   matmul_f32    f32 throughout, for parity with the CPU: tiles of 64 x 64, 4 x 4 sums a thread.
//
// x and w have rows of `stride` elements, a multiple of 8, with zeros beyond C. `accumulate`: out
// holds the bias.
#include "common.cuh"

template <int R>
__device__ inline void gemv_bf16(const bf16_t *x, const bf16_t *w, uint32_t rows, uint32_t outputs,
                                 uint32_t stride, uint32_t accumulate, float *out) {
    uint32_t lane = threadIdx.x % 32, n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (n >= outputs) return;
    const bf16_t *row = w + (size_t)n * stride;
    float sums[R] = {};
#pragma unroll 4
    for (uint32_t c = lane * 8; c < stride; c += 256) {
        uint4 packed = *reinterpret_cast<const uint4 *>(row + c);
        uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
        for (int r = 0; r < R; ++r) {
            // Rows beyond the last read the last: no branch, and nothing of them is written.
            size_t from = (size_t)min((uint32_t)r, rows - 1) * stride + c;
            uint4 values = *reinterpret_cast<const uint4 *>(x + from);
            uint32_t others[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float2 a = unpack_bf16(pairs[i]), b = unpack_bf16(others[i]);
                sums[r] += a.x * b.x;
                sums[r] += a.y * b.y;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
        float sum = warp_sum(sums[r]);
        size_t at = (size_t)r * outputs + n;
        if (lane == 0 && (uint32_t)r < rows) out[at] = accumulate ? out[at] + sum : sum;
    }
}

#define GEMV(R)                                                                                    \
    extern "C" __global__ void gemv_bf16_##R(const bf16_t *x, const bf16_t *w, uint32_t rows,      \
                                             uint32_t outputs, uint32_t stride,                    \
                                             uint32_t accumulate, float *out) {                    \
        gemv_bf16<R>(x, w, rows, outputs, stride, accumulate, out);                                \
    }                                                                                              \
    REGISTER_KERNEL(gemv_bf16_##R)

GEMV(1)
GEMV(2)
GEMV(4)
GEMV(8)

constexpr uint32_t TILE = 64;
// A row of a tile in shared memory: 64 elements and 8 more, so that the rows of a fragment lie in
// different banks.
constexpr uint32_t TILE_ROW = 72;

__device__ inline void load_tile(bf16_t *to, const bf16_t *from, uint32_t first, uint32_t count,
                                 uint32_t c, uint32_t stride) {
    for (uint32_t chunk = threadIdx.x; chunk < TILE * 8; chunk += 128) {
        uint32_t row = chunk / 8, col = c + chunk % 8 * 8;
        bool inside = first + row < count && col < stride;
        copy_async(to + row * TILE_ROW + chunk % 8 * 8,
                   inside ? from + (size_t)(first + row) * stride + col : from, inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(128)
    matmul_bf16(const bf16_t *x, const bf16_t *w, uint32_t rows, uint32_t outputs, uint32_t stride,
                uint32_t accumulate, float *out) {
    DYNAMIC_SHARED(raw);
    bf16_t *shared = reinterpret_cast<bf16_t *>(raw);
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t first_row = blockIdx.y * TILE, first_output = blockIdx.x * TILE;
    float sums[8][4] = {};
    auto load = [&](uint32_t c, uint32_t stage) {
        bf16_t *at = shared + stage * 2 * TILE * TILE_ROW;
        load_tile(at, x, first_row, rows, c, stride);
        load_tile(at + TILE * TILE_ROW, w, first_output, outputs, c, stride);
    };
    uint32_t steps = (stride + TILE - 1) / TILE;
    load(0, 0);
    copy_commit();
    for (uint32_t step = 0; step < steps; ++step) {
        if (step + 1 < steps) load((step + 1) * TILE, (step + 1) % 2);
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        const bf16_t *left = shared + step % 2 * 2 * TILE * TILE_ROW,
                     *right = left + TILE * TILE_ROW;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            uint32_t a[4], b[4];
            ldmatrix(a, left + (warp * 16 + lane % 16) * TILE_ROW + k * 16 + lane / 16 * 8);
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                ldmatrix(b, right + (pair * 16 + lane / 16 * 8 + lane % 8) * TILE_ROW + k * 16 +
                                lane / 8 % 2 * 8);
                mma_bf16(sums[2 * pair], a, b[0], b[1]);
                mma_bf16(sums[2 * pair + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
    copy_wait<0>();
#pragma unroll
    for (int tile = 0; tile < 8; ++tile)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            uint32_t row = first_row + warp * 16 + lane / 4 + i / 2 * 8;
            uint32_t n = first_output + tile * 8 + lane % 4 * 2 + i % 2;
            size_t at = (size_t)row * outputs + n;
            if (row < rows && n < outputs)
                out[at] = accumulate ? out[at] + sums[tile][i] : sums[tile][i];
        }
}
REGISTER_KERNEL(matmul_bf16)

extern "C" __global__ void __launch_bounds__(256)
    matmul_f32(const float *x, const float *w, uint32_t rows, uint32_t outputs, uint32_t cols,
               uint32_t stride, uint32_t accumulate, float *out) {
    __shared__ float left[16][TILE + 1];
    __shared__ float right[16][TILE + 1];
    uint32_t first_row = blockIdx.y * TILE, first_output = blockIdx.x * TILE;
    uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float sums[4][4] = {};
    for (uint32_t c = 0; c < cols; c += 16) {
        for (uint32_t i = threadIdx.x; i < TILE * 16; i += 256) {
            uint32_t row = i / 16, k = i % 16;
            bool inside = c + k < cols;
            left[k][row] = inside && first_row + row < rows
                               ? x[(size_t)(first_row + row) * cols + c + k]
                               : 0.0f;
            right[k][row] = inside && first_output + row < outputs
                                ? w[(size_t)(first_output + row) * stride + c + k]
                                : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < 16; ++k)
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    sums[i][j] += left[k][ty + 16 * i] * right[k][tx + 16 * j];
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            uint32_t row = first_row + ty + 16 * i, n = first_output + tx + 16 * j;
            size_t at = (size_t)row * outputs + n;
            if (row < rows && n < outputs) out[at] = accumulate ? out[at] + sums[i][j] : sums[i][j];
        }
}
REGISTER_KERNEL(matmul_f32)
