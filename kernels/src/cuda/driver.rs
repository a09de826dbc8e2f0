//! The real twin of [`Device`]: a GPU through the CUDA driver, which is loaded when it is asked
//! for.
//!
//! Everything runs on one stream, in order. Matrix products of more than eight rows go to cuBLAS
//! where that library is found (`libcublas`, of the CUDA toolkit), else to our own kernel.

mod graph;
mod staging;
mod timing;
mod waiting;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublas::{result as blas, sys as blas_sys};
use cudarc::driver::{result as cuda, sys};
pub use graph::Graph;
use staging::Staging;
pub use timing::Facts;

use super::{Arg, Command, Device, Launch, Product, Sum, at_least};
use crate::error::{Error, Result};
use crate::sums::DeviceSums;

/// Kernels of all targets, empty when this program was built without nvcc.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// The driver API that the kernels were compiled for: 13.0, as `cuDriverGetVersion` counts.
const LEAST_DRIVER: i32 = 13_000;
/// Compute capability 8.0: asynchronous copies and bf16 tensor cores.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Whether this program has kernels for a GPU.
pub fn has_kernels() -> bool {
    !KERNELS.is_empty()
}

fn failed(op: &'static str) -> impl Fn(cuda::DriverError) -> Error {
    move |error| {
        let text = error.error_string().map_or_else(
            |_| format!("{error:?}"),
            |text| text.to_string_lossy().into_owned(),
        );
        Error::Device { op, what: text }
    }
}

/// A GPU.
pub struct Driver {
    shared: Arc<Shared>,
    name: String,
    module: sys::CUmodule,
    functions: Mutex<HashMap<String, Function>>,
    blas: Option<Blas>,
    shared_bytes: usize,
    /// What uploads go through. Who has started a copy from it holds it until the copy is on the
    /// stream.
    staging: Mutex<Staging>,
    /// What was timed so far, while kernels are timed.
    spans: Mutex<Option<Vec<timing::Span>>>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that the function was told to allow.
    shared: u32,
}

/// What memory needs to be freed.
struct Shared {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    sums: waiting::Sums,
}

struct Blas {
    handle: blas_sys::cublasHandle_t,
    /// What products use beside their matrices. From memory of its own, cuBLAS allocates nothing
    /// while a step is captured.
    workspace: sys::CUdeviceptr,
}

/// Bytes of that: what NVIDIA recommends for Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;

// SAFETY: handles of the driver and of cuBLAS may be used from any thread that makes the context
// current, which every call does; the backend's lock keeps calls of one handle apart.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}
// SAFETY: as above.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn enter(&self, op: &'static str) -> Result<()> {
        // SAFETY: the context is retained until this is dropped.
        unsafe { cuda::ctx::set_current(self.context) }.map_err(failed(op))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.enter("close").is_ok() {
            // SAFETY: made in `open`, and nothing that used it is left: all of that holds this.
            let _ = unsafe { cuda::stream::destroy(self.stream) };
        }
        // SAFETY: retained in `open`.
        let _ = unsafe { cuda::primary_ctx::release(self.device) };
    }
}

/// Memory on the GPU.
pub struct DriverMemory {
    address: sys::CUdeviceptr,
    bytes: usize,
    shared: Arc<Shared>,
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        if self.shared.enter("free").is_ok() {
            // SAFETY: allocated on this stream in `alloc`; what was started before on the stream is
            // done first.
            let _ = unsafe { cuda::free_async(self.address, self.shared.stream) };
        }
    }
}

impl Driver {
    /// Opens GPU `ordinal`, counted as the driver counts.
    ///
    /// # Errors
    /// [`Error::Unavailable`]: no kernels in this program, no driver, a driver or GPU that is too old, no such ordinal.
    pub fn open(ordinal: usize) -> Result<Self> {
        let unavailable = |text: String| Err(Error::Unavailable(text));
        if !has_kernels() {
            return unavailable(
                "this program was built without CUDA kernels: run `cargo xtask kernels` (or set \
                 NVCC or CUDA_HOME) and build again"
                    .into(),
            );
        }
        // SAFETY: loading the driver runs its initialisers, which is what it is for.
        if !unsafe { sys::is_culib_present() } {
            return unavailable(
                "no CUDA driver on this machine (libcuda.so.1 was not found); use --device cpu"
                    .into(),
            );
        }
        if let Err(error) = cuda::init() {
            return unavailable(format!(
                "the CUDA driver does not start ({error}); is there a GPU? use --device cpu"
            ));
        }
        let version = driver_version()?;
        if version < LEAST_DRIVER {
            let (have, want) = (dotted(version), dotted(LEAST_DRIVER));
            return unavailable(format!(
                "the CUDA driver is for CUDA {have}, the kernels need {want}: update the driver"
            ));
        }
        let count = cuda::device::get_count().map_err(failed("open"))?;
        let device = match i32::try_from(ordinal)
            .ok()
            .filter(|&ordinal| ordinal < count)
        {
            Some(ordinal) => cuda::device::get(ordinal).map_err(failed("open"))?,
            None => {
                return unavailable(format!(
                    "there is no device cuda:{ordinal}; this machine has {count}"
                ));
            }
        };
        let name = cuda::device::get_name(device).map_err(failed("open"))?;
        let capability = capability(device)?;
        if capability < LEAST_CAPABILITY {
            let ((major, minor), (least, zero)) = (capability, LEAST_CAPABILITY);
            return unavailable(format!(
                "{name} has compute capability {major}.{minor}, the kernels need {least}.{zero}"
            ));
        }
        // SAFETY: the device exists; released when `Shared` is dropped.
        let context = unsafe { cuda::primary_ctx::retain(device) }.map_err(failed("open"))?;
        // SAFETY: the context was just retained.
        unsafe { cuda::ctx::set_current(context) }.map_err(failed("open"))?;
        let stream =
            cuda::stream::create(cuda::stream::StreamKind::NonBlocking).map_err(failed("open"))?;
        let shared = Arc::new(Shared {
            device,
            context,
            stream,
            sums: waiting::Sums::default(),
        });
        // SAFETY: a fatbin that nvcc wrote, which knows its own length.
        let module = unsafe { cuda::module::load_data(KERNELS.as_ptr().cast()) }
            .map_err(failed("load kernels"))?;
        let blas = Blas::open(shared.stream);
        let staging = Mutex::new(Staging::new(&shared)?);
        let attribute =
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device exists.
        let most =
            unsafe { cuda::device::get_attribute(device, attribute) }.map_err(failed("open"))?;
        // Static shared memory counts, too; no kernel that asks has more than a KiB.
        let shared_bytes = (most as usize).saturating_sub(1 << 10);
        Ok(Self {
            shared,
            name,
            module,
            functions: Mutex::default(),
            blas,
            shared_bytes,
            staging,
            spans: Mutex::default(),
        })
    }

    /// Free and total bytes of the GPU's memory.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.shared.enter("memory")?;
        cuda::mem_get_info().map_err(failed("memory"))
    }

    /// Whether cuBLAS was found.
    pub fn has_blas(&self) -> bool {
        self.blas.is_some()
    }

    fn function(&self, name: &str, shared: u32) -> Result<sys::CUfunction> {
        /// A block gets this much without asking.
        const FREE: u32 = 48 * 1024;
        let mut functions = self
            .functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = functions.get(name).copied();
        let mut function = match known {
            Some(function) => function,
            None => {
                let text = CString::new(name).map_err(|error| Error::Device {
                    op: "launch",
                    what: error.to_string(),
                })?;
                // SAFETY: the module lives as long as this.
                let handle = unsafe { cuda::module::get_function(self.module, text) }
                    .map_err(failed("find a kernel"))?;
                Function {
                    handle,
                    shared: FREE,
                }
            }
        };
        if shared > function.shared {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of the loaded module.
            unsafe {
                cuda::function::set_function_attribute(function.handle, attribute, shared as i32)
            }
            .map_err(failed("shared memory of a kernel"))?;
            function.shared = shared;
        }
        functions.insert(name.to_owned(), function);
        Ok(function.handle)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.shared.enter("close").is_err() {
            return;
        }
        // A sum that does not come to an end fails here, which ends it.
        let _ = self.shared.wait("close");
        // SAFETY: made in `open`, dropped once; a stream that is waited for uses neither.
        unsafe {
            let _ = cuda::stream::synchronize(self.shared.stream);
            if let Some(Blas { handle, workspace }) = self.blas.take() {
                let _ = blas::destroy_handle(handle);
                if workspace != 0 {
                    let _ = cuda::free_async(workspace, self.shared.stream);
                }
            }
            let _ = cuda::module::unload(self.module);
        }
    }
}

impl Blas {
    fn open(stream: sys::CUstream) -> Option<Self> {
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
}

fn driver_version() -> Result<i32> {
    let mut version = 0;
    // SAFETY: writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(failed("driver version"))?;
    Ok(version)
}

fn dotted(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn capability(device: sys::CUdevice) -> Result<(i32, i32)> {
    use sys::CUdevice_attribute as Attribute;
    let get = |attribute| {
        // SAFETY: the device exists.
        unsafe { cuda::device::get_attribute(device, attribute) }
            .map_err(failed("compute capability"))
    };
    let major = get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((
        major,
        get(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
    ))
}

impl Device for Driver {
    type Memory = DriverMemory;
    type Graph = Graph;

    fn name(&self) -> String {
        format!(
            "{}{}",
            self.name,
            if self.blas.is_some() {
                "; cuBLAS"
            } else {
                "; without cuBLAS"
            }
        )
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn alloc(&self, what: &'static str, bytes: usize) -> Result<DriverMemory> {
        self.shared.enter("alloc")?;
        let size = bytes.max(16);
        // SAFETY: freed on the same stream when dropped.
        let address =
            unsafe { cuda::malloc_async(self.shared.stream, size) }.map_err(
                |error| match error.0 {
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what, bytes },
                    _ => failed("alloc")(error),
                },
            )?;
        let memory = DriverMemory {
            address,
            bytes,
            shared: self.shared.clone(),
        };
        // SAFETY: the allocation is `size` long.
        unsafe { cuda::memset_d8_async(address, 0, size, self.shared.stream) }
            .map_err(failed("alloc"))?;
        Ok(memory)
    }

    fn address(memory: &DriverMemory) -> u64 {
        memory.address
    }

    fn upload(&self, src: &[u8], dst: &DriverMemory, offset: usize) -> Result<()> {
        at_least("upload", "dst", dst.bytes, offset.saturating_add(src.len()))?;
        if src.is_empty() {
            return Ok(());
        }
        self.shared.enter("upload")?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        staging.upload(src, dst.address + offset as u64)
    }

    fn download(&self, src: &DriverMemory, offset: usize, dst: &mut [u8]) -> Result<()> {
        at_least(
            "download",
            "src",
            src.bytes,
            offset.saturating_add(dst.len()),
        )?;
        if dst.is_empty() {
            return Ok(());
        }
        self.shared.enter("download")?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // A copy to pageable memory returns only when it is done, and nothing gets it out of the
        // driver until then.
        self.shared.wait_for_sums()?;
        // SAFETY: inside the allocation; waited for before the destination is looked at.
        unsafe {
            cuda::memcpy_dtoh_async(dst, src.address + offset as u64, self.shared.stream)
                .map_err(failed("download"))?;
            cuda::stream::synchronize(self.shared.stream).map_err(failed("download"))?;
        }
        staging.waited();
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        self.shared.enter("launch")?;
        let function = self.function(launch.kernel, launch.shared)?;
        let mut words: Vec<u64> = launch.args.iter().copied().map(Arg::word).collect();
        let mut args: Vec<*mut c_void> = words
            .iter_mut()
            .map(|word| std::ptr::from_mut(word).cast())
            .collect();
        let [x, y, z] = launch.grid;
        let span = self.begin_span()?;
        // SAFETY: by the caller's contract; the driver copies the arguments before it returns.
        unsafe {
            cuda::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.shared.stream,
                &mut args,
            )
        }
        .map_err(|error| match failed("launch")(error) {
            Error::Device { op, what } => Error::Device {
                op,
                what: format!("{}: {what}", launch.kernel),
            },
            other => other,
        })?;
        self.end_span(launch.kernel, span)
    }

    fn has_products(&self) -> bool {
        self.has_blas()
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let Some(Blas { handle, .. }) = self.blas else {
            return Err(Error::Device {
                op: "matmul",
                what: "there is no cuBLAS".into(),
            });
        };
        self.shared.enter("matmul")?;
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
        let span = self.begin_span()?;
        let (bf16, single) = (
            blas_sys::cudaDataType_t::CUDA_R_16BF,
            blas_sys::cudaDataType_t::CUDA_R_32F,
        );
        // cuBLAS counts columns first: outᵀ [N, T] = w [N, C] · xᵀ, where row-major `w` reads as
        // its transpose. SAFETY: by the caller's contract; alpha and beta are read before the call
        // returns.
        unsafe {
            blas::gemm_ex(
                handle,
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
        })?;
        self.end_span("cublas", span)
    }

    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
        self.shared.sums.join(sums);
    }

    unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        // SAFETY: by the caller's contract.
        unsafe { self.put_sum(sum) }
    }

    fn captures(&self) -> bool {
        !self.times_kernels()
    }

    unsafe fn capture(&self, commands: &[Command]) -> Result<Graph> {
        let has_sums = commands.iter().any(Command::is_sum);
        // SAFETY: by the caller's contract.
        let start = || {
            commands
                .iter()
                .try_for_each(|command| unsafe { command.start(self) })
        };
        Graph::of(&self.shared, has_sums, start)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        graph.start()
    }
}
