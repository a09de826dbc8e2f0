// Operations on rows of activations, all f32: embedding, RMS norm, sums, SwiGLU, gather.
//
//   embed         out[t] = table[ids[t]]                       table [V, stride], bf16 or f32; out
//   [T, E]
//                 NONE: negative zeros, which change nothing that is added to them, not even the
//                 sign of a zero
//   rms_norm      out[r] = x[r] / sqrt(mean(x[r]^2) + eps) * w  [R, E]
//   add           x += y
//   silu_mul      out[t, f] = silu(gu[t, f]) * gu[t, F + f]     gu [T, 2F], out [T, F]
//   gather_rows   out[i] = x[rows[i]]
//   fill_bias     out[t, n] = bias[n], before a product that adds to it
//   put_tables    changes of page tables, {place, page} each: `header` has the first one and how
//   many there are put_words     out = from, as bits (no address: zeros): what came with a step's
//   descriptors goes to its buffer cast_rows     bf16 of f32 rows, padded with zeros to `stride`:
//   the left side of bf16 products
//
// All are bound by memory: a block per row (or 256 values), neighbouring threads on neighbouring
// values, four values a thread where the row's length allows. The norm keeps nothing between its
// two passes: the second reads the L1.
#include "common.cuh"

extern "C" __global__ void embed(const void *table, uint32_t is_f32, uint32_t stride, uint32_t cols,
                                 const uint32_t *ids, float *out) {
    uint32_t id = ids[blockIdx.x];
    size_t from = (size_t)id * stride, to = (size_t)blockIdx.x * cols;
    for (uint32_t c = threadIdx.x; c < cols; c += blockDim.x)
        out[to + c] = id == NONE ? -0.0f
                      : is_f32   ? static_cast<const float *>(table)[from + c]
                                 : to_float(static_cast<const bf16_t *>(table)[from + c]);
}
REGISTER_KERNEL(embed)

extern "C" __global__ void rms_norm(const float *x, const float *weight, float eps, uint32_t width,
                                    float *out) {
    __shared__ float partial[32];
    x += (size_t)blockIdx.x * width;
    out += (size_t)blockIdx.x * width;
    float squares = 0.0f;
    if (width % 4 == 0) {
        for (uint32_t c = threadIdx.x * 4; c < width; c += blockDim.x * 4) {
            float4 v = *reinterpret_cast<const float4 *>(x + c);
            squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
    } else {
        for (uint32_t c = threadIdx.x; c < width; c += blockDim.x) squares += x[c] * x[c];
    }
    float inverse = 1.0f / sqrtf(block_sum(squares, partial) / (float)width + eps);
    for (uint32_t c = threadIdx.x; c < width; c += blockDim.x) out[c] = x[c] * inverse * weight[c];
}
REGISTER_KERNEL(rms_norm)

extern "C" __global__ void add(float *x, const float *y, uint64_t len) {
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) x[i] += y[i];
}
REGISTER_KERNEL(add)

extern "C" __global__ void silu_mul(const float *gate_up, uint32_t width, float *out) {
    const float *gate = gate_up + (size_t)blockIdx.x * 2 * width;
    out += (size_t)blockIdx.x * width;
    for (uint32_t f = threadIdx.x; f < width; f += blockDim.x) {
        float g = gate[f];
        out[f] = g / (1.0f + expf(-g)) * gate[width + f];
    }
}
REGISTER_KERNEL(silu_mul)

extern "C" __global__ void gather_rows(const float *x, uint32_t width, const uint32_t *rows,
                                       float *out) {
    size_t from = (size_t)rows[blockIdx.x] * width, to = (size_t)blockIdx.x * width;
    for (uint32_t c = threadIdx.x; c < width; c += blockDim.x) out[to + c] = x[from + c];
}
REGISTER_KERNEL(gather_rows)

extern "C" __global__ void fill_bias(const float *bias, uint32_t outputs, float *out) {
    for (uint32_t n = threadIdx.x; n < outputs; n += blockDim.x)
        out[(size_t)blockIdx.x * outputs + n] = bias[n];
}
REGISTER_KERNEL(fill_bias)

extern "C" __global__ void put_tables(uint32_t *tables, const uint32_t *header,
                                      const uint2 *changes) {
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < header[1];
         i += gridDim.x * blockDim.x) {
        uint2 change = changes[header[0] + i];
        tables[change.x] = change.y;
    }
}
REGISTER_KERNEL(put_tables)

extern "C" __global__ void put_words(const uint32_t *from, uint32_t count, uint32_t *out) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = from == nullptr ? 0u : from[i];
}
REGISTER_KERNEL(put_words)

extern "C" __global__ void cast_rows(const float *x, uint32_t cols, uint32_t stride,
                                     uint32_t *out) {
    const float *row = x + (size_t)blockIdx.x * cols;
    for (uint32_t c = threadIdx.x * 2; c < stride; c += blockDim.x * 2) {
        float low = c < cols ? row[c] : 0.0f, high = c + 1 < cols ? row[c + 1] : 0.0f;
        out[((size_t)blockIdx.x * stride + c) / 2] = pack_bf16(low, high);
    }
}
REGISTER_KERNEL(cast_rows)
