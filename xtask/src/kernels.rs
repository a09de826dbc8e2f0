//! `cargo xtask kernels`: compiles the CUDA kernels for all targets and holds what ptxas says
//! against a committed table. It needs a compiler and no GPU, and runs nothing.

#[path = "../../kernels/build/nvcc.rs"]
mod nvcc;
mod sass;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::process::{cargo_with, run};
use crate::tools;

/// Registers of every kernel, by target. `cargo xtask kernels --table` writes it.
const TABLE: &str = "kernels/cu/registers.txt";

/// What ptxas reports of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Usage {
    registers: u32,
    /// Bytes of stack and of spilled registers: local memory, much slower.
    local: u32,
    /// Bytes of shared memory that every block has.
    shared: u32,
}

/// A compilation.
struct Compiled {
    fatbin: PathBuf,
    report: Report,
}

/// `(kernel, target)` to what it uses.
type Report = BTreeMap<(String, String), Usage>;

/// Installs nvcc below `target/tools` where none is found.
///
/// # Errors
/// When pip cannot install it.
pub fn install_compiler() -> Result<()> {
    if nvcc::find(Path::new(".")).is_some() {
        return Ok(());
    }
    // In parts, as NVIDIA publishes it for pip.
    tools::python_packages("nvcc")?;
    ensure!(
        nvcc::find(Path::new(".")).is_some(),
        "pip installed no nvcc that runs here: set NVCC or CUDA_HOME"
    );
    // Its build script ran without nvcc and has no reason of its own to run again, in any profile.
    for profile in ["dev", "release"] {
        run(&mut cargo_with(&[
            "clean",
            "--profile",
            profile,
            "--package",
            "palimpsest-kernels",
        ]))?;
    }
    Ok(())
}

/// Compiles, and compares registers and spills with the table.
///
/// # Errors
/// nvcc's errors and warnings, a kernel with spills, or one that needs other registers than the
/// table says.
pub fn check() -> Result<()> {
    println!("==> CUDA kernels");
    let Compiled { fatbin, report } = compile()?;
    let committed =
        std::fs::read_to_string(TABLE).with_context(|| format!("cannot read {TABLE}"))?;
    let problems = problems(&report, &parse_table(&committed)?);
    ensure!(
        problems.is_empty(),
        "{}\n(`cargo xtask kernels --table` writes {TABLE} anew)",
        problems.join("\n")
    );
    println!(
        "    {} kernels and targets, no spills; compiled only: nothing here runs on a GPU",
        report.len()
    );
    let footprint = |usage: &Usage| sass::Footprint {
        registers: usage.registers,
        shared: usage.shared,
    };
    let of_target = report
        .iter()
        .filter(|((_, target), _)| target == sass::TARGET);
    let footprints = of_target.map(|((kernel, _), usage)| (kernel.clone(), footprint(usage)));
    sass::check(&fatbin, &footprints.collect())
}

/// Machine code of all kernels, compiled if need be.
///
/// # Errors
/// nvcc's errors and warnings.
pub fn fatbin() -> Result<PathBuf> {
    Ok(compile()?.fatbin)
}

/// Compiles and writes the table.
///
/// # Errors
/// Those of [`check`], but for differences from the table.
pub fn write_table() -> Result<()> {
    let report = compile()?.report;
    let mut text = String::from(
        "# Registers of each kernel by target, from ptxas. Written by `cargo xtask kernels \
         --table`.\n",
    );
    for ((kernel, target), usage) in &report {
        writeln!(text, "{kernel} {target} {}", usage.registers)?;
    }
    let spills = problems(&report, &parse_table(&text)?);
    ensure!(spills.is_empty(), "{}", spills.join("\n"));
    std::fs::write(TABLE, text).with_context(|| format!("cannot write {TABLE}"))
}

fn compile() -> Result<Compiled> {
    install_compiler()?;
    let root = std::env::current_dir()?;
    let compiler = nvcc::find(&root).context("nvcc is gone")?;
    let built = nvcc::compile(&root, &compiler).map_err(|error| anyhow!(error))?;
    let report = parse_report(&std::fs::read_to_string(&built.report)?)?;
    ensure!(
        !report.is_empty(),
        "{} names no kernel",
        built.report.display()
    );
    Ok(Compiled {
        fatbin: built.fatbin,
        report,
    })
}

/// The number before `word`.
fn before(line: &str, word: &str) -> Option<u32> {
    line[..line.find(word)?]
        .split_whitespace()
        .last()?
        .parse()
        .ok()
}

/// ptxas prints three lines of a kernel: its name and target in quotes, stack and spills,
/// registers.
fn parse_report(text: &str) -> Result<Report> {
    let (mut report, mut kernel, mut local) = (Report::new(), None, 0);
    for line in text.lines() {
        if line.contains("Compiling entry function") {
            let quoted: Vec<&str> = line.split('\'').collect();
            let [_, name, _, target, ..] = quoted[..] else {
                bail!("a line of ptxas that is not understood: {line}")
            };
            (kernel, local) = (Some((name.to_owned(), target.to_owned())), 0);
        } else if let Some(stack) = before(line, " bytes stack frame") {
            local = stack + before(line, " bytes spill stores").unwrap_or(0);
        } else if let Some(registers) = before(line, " registers") {
            let kernel = kernel.take().context("registers of no kernel")?;
            let usage = Usage {
                registers,
                local,
                shared: before(line, " bytes smem").unwrap_or(0),
            };
            report.insert(kernel, usage);
        }
    }
    Ok(report)
}

fn parse_table(text: &str) -> Result<BTreeMap<(String, String), u32>> {
    let rows = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    rows.map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [kernel, target, registers] = fields[..] else {
            bail!("{TABLE}: a row that is not understood: {line}")
        };
        Ok(((kernel.to_owned(), target.to_owned()), registers.parse()?))
    })
    .collect()
}

fn problems(report: &Report, table: &BTreeMap<(String, String), u32>) -> Vec<String> {
    let mut found = Vec::new();
    for ((kernel, target), usage) in report {
        if usage.local > 0 {
            found.push(format!(
                "{kernel} for {target} uses {} bytes of local memory: registers spill",
                usage.local
            ));
        }
        match table.get(&(kernel.clone(), target.clone())) {
            None => found.push(format!("{kernel} for {target} is not in the table")),
            Some(&want) if want != usage.registers => {
                found.push(format!(
                    "{kernel} for {target} uses {} registers, the table says {want}",
                    usage.registers
                ));
            }
            Some(_) => {}
        }
    }
    let gone = table.keys().filter(|row| !report.contains_key(row));
    found.extend(gone.map(|(kernel, target)| {
        format!("{kernel} for {target} is in the table and was not compiled")
    }));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'add' for 'sm_80'
ptxas info    : Function properties for add
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compiling entry function 'mul' for 'sm_80'
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 376 bytes cmem[0]";

    #[test]
    fn spills_and_changed_registers_are_found() {
        let report = parse_report(REPORT).unwrap();
        let key = |kernel: &str| (kernel.to_owned(), "sm_80".to_owned());
        assert_eq!(
            report[&key("add")],
            Usage {
                registers: 10,
                local: 0,
                shared: 0
            }
        );
        assert_eq!(
            report[&key("mul")],
            Usage {
                registers: 255,
                local: 12,
                shared: 4096
            }
        );
        let told = problems(
            &report,
            &parse_table("# head\nadd sm_80 10\nmul sm_80 250\nold sm_80 9\n").unwrap(),
        );
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(
            told[0].contains("spill") && told[1].contains("250") && told[2].contains("old"),
            "{told:?}"
        );
        assert_eq!(problems(&report, &BTreeMap::new()).len(), 3);
        parse_table("add sm_80").unwrap_err();
    }
}
