//! cuBLAS, for products of many rows, where it is found.

use std::ffi::c_void;

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::{result as cuda, sys};

use crate::cuda::launch::Product;
use crate::error::{Error, Result};

/// Bytes that cuBLAS uses beside the matrices: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

/// cuBLAS on a stream.
pub(super) struct Blas {
    handle: blas_sys::cublasHandle_t,
    /// What products use beside their matrices, or 0. From memory of its own, cuBLAS allocates
    /// nothing while a step is captured.
    workspace: sys::CUdeviceptr,
}

impl Blas {
    /// The library, where it is found.
    pub(super) fn open(stream: sys::CUstream) -> Option<Self> {
        // SAFETY: loading the library runs its initialisers, which is what it is for.
        if !unsafe { blas_sys::is_culib_present() } {
            return None;
        }
        let handle = blas::create_handle().ok()?;
        // SAFETY: freed on the same stream when the driver is dropped.
        let workspace = unsafe { cuda::malloc_async(stream, WORKSPACE_BYTES) }.unwrap_or(0);
        let bytes = if workspace == 0 { 0 } else { WORKSPACE_BYTES };
        // SAFETY: all were just made; the two libraries name the stream's type each for itself.
        // Setting the stream would take the workspace back, so it comes first. Without memory,
        // cuBLAS goes on with its own.
        unsafe {
            blas::set_stream(handle, stream.cast()).ok()?;
            if bytes > 0 {
                blas_sys::cublasSetWorkspace_v2(handle, workspace as *mut c_void, bytes)
                    .result()
                    .ok()?;
            }
        }
        Some(Self { handle, workspace })
    }

    /// Starts a product.
    ///
    /// # Safety
    /// As [`Device::product`](crate::cuda::device::Device::product); the context is current.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(super) unsafe fn product(&self, product: &Product) -> Result<()> {
        let &Product {
            x,
            w,
            out,
            rows,
            outputs,
            stride,
            accumulate,
        } = product;
        let (one, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
        let pointer = |address: u64| address as *const c_void;
        let (bf16, single) = (
            blas_sys::cudaDataType_t::CUDA_R_16BF,
            blas_sys::cudaDataType_t::CUDA_R_32F,
        );
        // cuBLAS counts columns first: outᵀ [N, T] = w [N, C] · xᵀ, where row-major `w` reads as
        // its transpose. SAFETY: by the caller's contract; alpha and beta are read before the call
        // returns.
        unsafe {
            blas::gemm_ex(
                self.handle,
                blas_sys::cublasOperation_t::CUBLAS_OP_T,
                blas_sys::cublasOperation_t::CUBLAS_OP_N,
                outputs as i32,
                rows as i32,
                stride as i32,
                std::ptr::from_ref(&one).cast(),
                pointer(w),
                bf16,
                stride as i32,
                pointer(x),
                bf16,
                stride as i32,
                std::ptr::from_ref(&beta).cast(),
                out as *mut c_void,
                single,
                outputs as i32,
                blas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                blas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|error| Error::Device {
            op: "matmul",
            what: format!("cuBLAS: {error:?}"),
        })
    }

    /// Gives back what [`Self::open`] took.
    ///
    /// # Safety
    /// The stream is that of [`Self::open`], was waited for, and its context is current.
    pub(super) unsafe fn close(self, stream: sys::CUstream) {
        // SAFETY: by the caller's contract, nothing uses either any more.
        unsafe {
            let _ = blas::destroy_handle(self.handle);
            if self.workspace != 0 {
                let _ = cuda::free_async(self.workspace, stream);
            }
        }
    }
}
