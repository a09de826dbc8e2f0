//! Finding nvcc and compiling the kernels with it: used by the build script and by `cargo xtask`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Targets: machine code for A100 and for H100/H200, and PTX that later GPUs compile when the
/// program starts.
const TARGETS: [&str; 3] = [
    "arch=compute_80,code=sm_80",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_80,code=compute_80",
];

/// What a compilation left.
pub struct Built {
    /// Machine code and PTX of all targets.
    pub fatbin: PathBuf,
    /// ptxas's report: registers, stack frames, spills of every kernel.
    #[allow(dead_code, reason = "xtask reads it, the build script does not")]
    pub report: PathBuf,
}

/// The first nvcc that runs: `$NVCC`, `$CUDA_HOME`, `$PATH`, the one of `cargo xtask kernels`.
pub fn find(workspace: &Path) -> Option<PathBuf> {
    let from_home = std::env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let installed = workspace.join("target/tools/python-nvcc/nvidia/cu13/bin/nvcc");
    let candidates = [
        std::env::var_os("NVCC").map(PathBuf::from),
        from_home,
        Some("nvcc".into()),
        Some(installed),
    ];
    let runs = |nvcc: &PathBuf| {
        Command::new(nvcc)
            .arg("--version")
            .output()
            .is_ok_and(|out| out.status.success())
    };
    candidates.into_iter().flatten().find(runs)
}

/// Compiles all kernels for all targets unless that was done for these very sources. Warnings are
/// errors.
///
/// # Errors
/// nvcc's output, or why it cannot be run.
pub fn compile(workspace: &Path, nvcc: &Path) -> Result<Built, String> {
    let (sources, out) = (workspace.join("kernels/cu"), workspace.join("target/cuda"));
    let digest =
        digest(&sources).map_err(|error| format!("cannot read {}: {error}", sources.display()))?;
    let fatbin = out.join(format!("kernels-{digest:016x}.fatbin"));
    let built = Built {
        report: fatbin.with_extension("ptxas.txt"),
        fatbin,
    };
    if built.fatbin.exists() && built.report.exists() {
        return Ok(built);
    }
    std::fs::create_dir_all(&out)
        .map_err(|error| format!("cannot create {}: {error}", out.display()))?;
    // Two builds at a time write files of their own; the last rename wins, with the same bytes.
    let partial = out.join(format!("partial-{}.fatbin", std::process::id()));
    let mut command = Command::new(nvcc);
    command.args([
        "-std=c++17",
        "-O3",
        "--fatbin",
        "-Werror",
        "all-warnings",
        "-Xptxas",
        "-v",
        "--threads",
        "0",
    ]);
    command.args(TARGETS.iter().flat_map(|target| ["-gencode", target]));
    command
        .arg("-o")
        .arg(&partial)
        .arg(sources.join("kernels.cu"));
    let done = command
        .output()
        .map_err(|error| format!("cannot run {}: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&done.stderr) + String::from_utf8_lossy(&done.stdout);
    if !done.status.success() {
        return Err(format!("nvcc failed:\n{text}"));
    }
    let write = || {
        std::fs::write(&built.report, text.as_bytes())?;
        std::fs::rename(&partial, &built.fatbin)
    };
    write().map_err(|error| format!("cannot write to {}: {error}", out.display()))?;
    Ok(built)
}

/// FNV-1a over this file's flags and all sources, in the order of their names.
fn digest(sources: &Path) -> std::io::Result<u64> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(sources)?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "cu" || extension == "cuh")
    });
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    eat(include_bytes!("nvcc.rs"));
    for path in files {
        eat(&std::fs::read(path)?);
    }
    Ok(hash)
}
