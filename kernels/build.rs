//! Compiles `cu/kernels.cu`: with nvcc into the fatbin that the program embeds, and with a C++
//! compiler into the emulated device of the tests (feature `emulate`).
//!
//! nvcc is looked for in `$NVCC`, `$CUDA_HOME/bin`, `$PATH` and where `cargo xtask kernels`
//! installs it. Without one the program has no kernels and says so when it is asked for a CUDA
//! device. The fatbin is kept in `target/cuda` under the digest of its sources, so nothing is
//! compiled twice; ptxas's report of registers and spills lies beside it.

#[path = "build/nvcc.rs"]
mod nvcc;

#[cfg(feature = "emulate")]
use std::path::Path;
use std::path::PathBuf;

fn main() {
    let crate_dir = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    println!("cargo::rerun-if-changed=cu");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-env-changed=NVCC");
    println!("cargo::rerun-if-env-changed=CUDA_HOME");
    let workspace = crate_dir.join("..");
    let embedded = out.join("kernels.fatbin");
    match nvcc::find(&workspace) {
        Some(nvcc) => {
            let built = nvcc::compile(&workspace, &nvcc).unwrap_or_else(|error| panic!("{error}"));
            std::fs::copy(&built.fatbin, &embedded).expect("OUT_DIR is writable");
        }
        None => std::fs::write(&embedded, []).expect("OUT_DIR is writable"),
    }
    #[cfg(feature = "emulate")]
    emulate(&crate_dir, &out);
}

/// Compiles the emulated device, and writes its sources with all macros expanded: a test compares
/// the parameters of the kernels with those that the launches pass.
#[cfg(feature = "emulate")]
fn emulate(crate_dir: &Path, out: &Path) {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .define("PALIMPSEST_EMULATED", None)
        .file(crate_dir.join("cu/emulated/device.cpp"))
        // The tests run in the development profile; fibers without optimisation are too slow to
        // wait for.
        .opt_level(2)
        .flag("-Wno-unknown-pragmas")
        .flag("-ffp-contract=off")
        .warnings_into_errors(true)
        .link_lib_modifier("+whole-archive")
        .compile("palimpsest_emulated");
    std::fs::write(out.join("kernels.expanded.cpp"), build.expand()).expect("OUT_DIR is writable");
}
