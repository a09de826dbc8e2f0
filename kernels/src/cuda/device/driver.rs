//! The real twin of [`Device`]: a GPU through the CUDA driver, which is loaded when it is asked
//! for.
//!
//! Everything runs on one stream, in order. Matrix products of more than eight rows go to cuBLAS
//! where that library is found (`libcublas`, of the CUDA toolkit), else to our own kernel.

mod blas;
mod context;
mod graph;
mod image;
mod measure;
mod requirements;
mod staging;
mod timing;
mod waiting;

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::{Arc, Mutex, PoisonError};

use blas::Blas;
use context::{Context, failed};
use cudarc::driver::{result as cuda, sys};
pub use graph::Graph;
use image::Image;
pub use image::has_kernels;
pub use measure::Facts;
use requirements::{check_capability, check_software, find_device};
use staging::Staging;
use timing::Timer;

use super::Device;
use crate::cuda::checks::at_least;
use crate::cuda::launch::{Arg, Command, Launch, Product, Sum};
use crate::error::{Error, Result};
use crate::sums::{DeviceSums, Summand};

/// A GPU.
pub struct Driver {
    context: Arc<Context>,
    name: String,
    module: sys::CUmodule,
    functions: Mutex<HashMap<String, Function>>,
    blas: Option<Blas>,
    shared_bytes: usize,
    /// What uploads go through. Who has started a copy from it holds it until the copy is on the
    /// stream.
    staging: Mutex<Staging>,
    timer: Timer,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Dynamic shared memory that the function was told to allow.
    shared: u32,
}

// SAFETY: handles of the driver and of cuBLAS may be used from any thread that makes the context
// current, which every call does; the backend's lock keeps calls of one handle apart.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}
/// Memory on the GPU.
pub struct DriverMemory {
    address: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<Context>,
}

impl Drop for DriverMemory {
    fn drop(&mut self) {
        if self.context.enter("free").is_ok() {
            // SAFETY: allocated on this stream in `alloc`; what was started before on the stream is
            // done first.
            let _ = unsafe { cuda::free_async(self.address, self.context.stream) };
        }
    }
}

impl Driver {
    /// Opens GPU `ordinal`, counted as the driver counts.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where this program has no kernels, or the machine no driver, where
    /// the driver or the GPU is too old, and where there is no such ordinal.
    pub fn open(ordinal: usize) -> Result<Self> {
        let image = Image::of_environment()?;
        check_software(!image.is_empty())?;
        let device = find_device(ordinal)?;
        let name = cuda::device::get_name(device).map_err(failed("open"))?;
        check_capability(device, &name)?;
        let context = Arc::new(Context::open(device)?);
        // SAFETY: a fatbin that nvcc wrote, which knows its own length, at an aligned address.
        let module = unsafe { cuda::module::load_data(image.as_ptr().cast()) }
            .map_err(failed("load kernels"))?;
        let blas = Blas::open(context.stream);
        let staging = Mutex::new(Staging::new(&context)?);
        let attribute =
            sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        // SAFETY: the device exists.
        let most =
            unsafe { cuda::device::get_attribute(device, attribute) }.map_err(failed("open"))?;
        // Static shared memory counts, too; no kernel that asks has more than a KiB.
        let shared_bytes = (most as usize).saturating_sub(1 << 10);
        Ok(Self {
            context,
            name,
            module,
            functions: Mutex::default(),
            blas,
            shared_bytes,
            staging,
            timer: Timer::default(),
        })
    }

    /// Free and total bytes of the GPU's memory.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.enter("memory")?;
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
        if self.context.enter("close").is_err() {
            return;
        }
        // A sum that does not come to an end fails here, which ends it.
        let _ = self.context.wait("close");
        // SAFETY: made in `open`, dropped once; a stream that is waited for uses neither.
        unsafe {
            let _ = cuda::stream::synchronize(self.context.stream);
            if let Some(blas) = self.blas.take() {
                blas.close(self.context.stream);
            }
            let _ = cuda::module::unload(self.module);
        }
    }
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
        self.context.enter("alloc")?;
        let size = bytes.max(16);
        // SAFETY: freed on the same stream when dropped.
        let address = unsafe { cuda::malloc_async(self.context.stream, size) }.map_err(
            |error| match error.0 {
                sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { what, bytes },
                _ => failed("alloc")(error),
            },
        )?;
        let memory = DriverMemory {
            address,
            bytes,
            context: self.context.clone(),
        };
        // SAFETY: the allocation is `size` long.
        unsafe { cuda::memset_d8_async(address, 0, size, self.context.stream) }
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
        self.context.enter("upload")?;
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
        self.context.enter("download")?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        // A copy to pageable memory returns only when it is done, and nothing gets it out of the
        // driver until then.
        self.context.wait_for_sums()?;
        // SAFETY: inside the allocation; waited for before the destination is looked at.
        unsafe {
            cuda::memcpy_dtoh_async(dst, src.address + offset as u64, self.context.stream)
                .map_err(failed("download"))?;
            cuda::stream::synchronize(self.context.stream).map_err(failed("download"))?;
        }
        staging.waited();
        Ok(())
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        self.context.enter("launch")?;
        let function = self.function(launch.kernel, launch.shared)?;
        let mut words: Vec<u64> = launch.args.iter().copied().map(Arg::word).collect();
        let mut args: Vec<*mut c_void> = words
            .iter_mut()
            .map(|word| std::ptr::from_mut(word).cast())
            .collect();
        let [x, y, z] = launch.grid;
        let span = self.timer.begin(&self.context)?;
        // SAFETY: by the caller's contract; the driver copies the arguments before it returns.
        unsafe {
            cuda::launch_kernel(
                function,
                (x, y, z),
                (launch.threads, 1, 1),
                launch.shared,
                self.context.stream,
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
        self.timer.end(&self.context, launch.kernel, span)
    }

    fn has_products(&self) -> bool {
        self.has_blas()
    }

    unsafe fn product(&self, product: &Product) -> Result<()> {
        let blas = self.blas.as_ref().ok_or_else(|| Error::Device {
            op: "matmul",
            what: "there is no cuBLAS".into(),
        })?;
        self.context.enter("matmul")?;
        let span = self.timer.begin(&self.context)?;
        // SAFETY: by the caller's contract.
        unsafe { blas.product(product) }?;
        self.timer.end(&self.context, "cublas", span)
    }

    fn join_sums(&self, sums: Option<Arc<dyn DeviceSums>>) {
        self.context.sums.join(sums);
    }

    unsafe fn sum(&self, sum: &Sum) -> Result<()> {
        self.context.enter("sum")?;
        let none = || Error::Device {
            op: "sum",
            what: "no ranks were joined".into(),
        };
        let sums = self.context.sums.joined().ok_or_else(none)?;
        let span = self.timer.begin(&self.context)?;
        // SAFETY: by the caller's contract; the stream is that of the context which was just made
        // current.
        let summand = unsafe {
            Summand::on_stream(
                sum.element,
                sum.address,
                sum.count,
                self.context.stream as u64,
            )
        };
        self.context.sums.begin();
        sums.all_reduce(summand)?;
        self.timer.end(&self.context, "sum", span)
    }

    fn captures(&self) -> bool {
        !self.timer.is_on()
    }

    unsafe fn capture(&self, commands: &[Command]) -> Result<Graph> {
        let has_sums = commands.iter().any(Command::is_sum);
        let start = || {
            commands.iter().try_for_each(|command| {
                // SAFETY: by the caller's contract.
                unsafe { self.start(command) }
            })
        };
        Graph::of(&self.context, has_sums, start)
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<()> {
        graph.start()
    }
}
