//! What the kernels ask of a machine and its GPU.

use cudarc::driver::{result as cuda, sys};

use super::context::failed;
use crate::error::{Error, Result};

/// The driver API that the kernels were compiled for: 13.0, as `cuDriverGetVersion` counts.
const LEAST_DRIVER: i32 = 13_000;
/// Compute capability 8.0: asynchronous copies and bf16 tensor cores.
const LEAST_CAPABILITY: (i32, i32) = (8, 0);

/// Newest CUDA that the driver is for, as `cuDriverGetVersion` counts.
pub(super) fn driver_version() -> Result<i32> {
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

/// Compute capability, major and minor.
pub(super) fn capability(device: sys::CUdevice) -> Result<(i32, i32)> {
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

fn unavailable<T>(text: String) -> Result<T> {
    Err(Error::Unavailable(text))
}

/// Checks that this program has kernels, and that there is a driver that runs them.
pub(super) fn check_software(has_kernels: bool) -> Result<()> {
    if !has_kernels {
        return unavailable(
            "this program was built without CUDA kernels: run `cargo xtask kernels` (or set NVCC \
             or CUDA_HOME) and build again"
                .into(),
        );
    }
    // SAFETY: loading the driver runs its initialisers, which is what it is for.
    if !unsafe { sys::is_culib_present() } {
        return unavailable(
            "no CUDA driver on this machine (libcuda.so.1 was not found); use --device cpu".into(),
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
    Ok(())
}

/// The GPU of this number.
pub(super) fn find_device(ordinal: usize) -> Result<sys::CUdevice> {
    let count = cuda::device::get_count().map_err(failed("open"))?;
    match i32::try_from(ordinal) {
        Ok(ordinal) if ordinal < count => cuda::device::get(ordinal).map_err(failed("open")),
        _ => unavailable(format!(
            "there is no device cuda:{ordinal}; this machine has {count}"
        )),
    }
}

/// Checks that the kernels run on this GPU.
pub(super) fn check_capability(device: sys::CUdevice, name: &str) -> Result<()> {
    let have = capability(device)?;
    if have >= LEAST_CAPABILITY {
        return Ok(());
    }
    let ((major, minor), (least, zero)) = (have, LEAST_CAPABILITY);
    unavailable(format!(
        "{name} has compute capability {major}.{minor}, the kernels need {least}.{zero}"
    ))
}
