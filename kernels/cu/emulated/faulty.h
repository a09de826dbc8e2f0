// Kernels that are wrong on purpose: what the emulated device has to find.
#pragma once

extern "C" __global__ void faulty_nothing(float *out) {
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}
REGISTER_KERNEL(faulty_nothing)

extern "C" __global__ void faulty_barrier(float *out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1.0f;
}
REGISTER_KERNEL(faulty_barrier)

extern "C" __global__ void faulty_shuffle(float *out) {
    float x = 1.0f;
    if (threadIdx.x % 32 < 7)
        x = __shfl_xor_sync(FULL, x, 1);
    else
        __syncwarp();
    out[threadIdx.x] = x;
}
REGISTER_KERNEL(faulty_shuffle)

extern "C" __global__ void faulty_shared(float *out) {
    DYNAMIC_SHARED(raw);
    float *shared = reinterpret_cast<float *>(raw);
    if (threadIdx.x == 0) shared[16] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = 1.0f;
}
REGISTER_KERNEL(faulty_shared)

extern "C" __global__ void faulty_global(float *out) {
    out[threadIdx.x + (threadIdx.x == 63)] = 1.0f;
}
REGISTER_KERNEL(faulty_global)
