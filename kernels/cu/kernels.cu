// All kernels as one translation unit: one compilation for each target.
#include "rows.cu"
#include "dequantize.cu"
#include "matmul.cu"
#include "slots.cu"
#include "latent.cu"
#include "attention_prefill.cu"
#include "attention_decode.cu"
#include "attention_exact.cu"
