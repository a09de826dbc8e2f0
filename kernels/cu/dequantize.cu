// Weights of a model file to the device's type, once, at load: GGML blocks (ggml-common.h), halves,
// floats.
//
//   out[row, c] = weight (row * cols + c) of the file's blocks;  out [rows, stride], bf16 or f32,
//   zeros beyond `cols`
//
// A thread per weight; blocks stay in the L1 while their 32 or 256 weights are read. It runs once
// per matrix.
#include "common.cuh"

__device__ inline float half_at(const unsigned char *at) {
    return to_float(half_bits((uint16_t)(at[0] | at[1] << 8)));
}

__device__ inline float q4_k(const unsigned char *block, uint32_t i) {
    const unsigned char *packed = block + 4;
    uint32_t group = i / 32, scale, least;
    if (group < 4) {
        scale = packed[group] & 63u;
        least = packed[group + 4] & 63u;
    } else {
        uint32_t low = packed[group + 4];
        scale = (low & 15u) | (uint32_t)(packed[group - 4] >> 6) << 4;
        least = (low >> 4) | (uint32_t)(packed[group] >> 6) << 4;
    }
    uint32_t byte = block[16 + group / 2 * 32 + i % 32];
    uint32_t code = group % 2 == 0 ? byte & 15u : byte >> 4;
    return half_at(block) * (float)scale * (float)code - half_at(block + 2) * (float)least;
}

__device__ inline float q6_k(const unsigned char *block, uint32_t i) {
    uint32_t part = i / 128, row = i % 128 / 32, lane = i % 32;
    uint32_t byte = block[part * 64 + row % 2 * 32 + lane];
    uint32_t nibble = row < 2 ? byte & 15u : byte >> 4;
    uint32_t pair = (uint32_t)(block[128 + part * 32 + lane] >> (2 * row)) & 3u;
    int code = (int)(nibble | pair << 4) - 32;
    return half_at(block + 208) * (float)(signed char)block[192 + i / 16] * (float)code;
}

// The numbers of the types are those of kernels/src/cuda/products/weights.rs.
__device__ inline float weight_at(const unsigned char *bytes, uint32_t type, size_t index) {
    if (type == 0) {
        const unsigned char *at = bytes + index * 4;
        return __uint_as_float(at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
                               (uint32_t)at[3] << 24);
    }
    if (type == 1) return half_at(bytes + index * 2);
    if (type == 2)
        return to_float(bf16_bits((uint16_t)(bytes[index * 2] | bytes[index * 2 + 1] << 8)));
    if (type == 6) return q4_k(bytes + index / 256 * 144, (uint32_t)(index % 256));
    if (type == 7) return q6_k(bytes + index / 256 * 210, (uint32_t)(index % 256));
    uint32_t size = type == 3 ? 34 : type == 4 ? 18 : 20, i = (uint32_t)(index % 32);
    const unsigned char *block = bytes + index / 32 * size;
    if (type == 3) return half_at(block) * (float)(signed char)block[2 + i];
    uint32_t byte = block[size - 16 + i % 16], code = i < 16 ? byte & 15u : byte >> 4;
    if (type == 4) return half_at(block) * ((float)code - 8.0f);
    return half_at(block) * (float)code + half_at(block + 2);
}

extern "C" __global__ void dequantize(const unsigned char *bytes, uint32_t dtype, uint32_t cols,
                                      uint32_t stride, uint32_t is_f32, void *out) {
    size_t row = blockIdx.x;
    for (uint32_t c = threadIdx.x; c < stride; c += blockDim.x) {
        float w = c < cols ? weight_at(bytes, dtype, row * cols + c) : 0.0f;
        if (is_f32)
            static_cast<float *>(out)[row * stride + c] = w;
        else
            store(static_cast<bf16_t *>(out) + row * stride + c, w);
    }
}
REGISTER_KERNEL(dequantize)
