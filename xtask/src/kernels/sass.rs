//! What the machine code of the hot kernels is made of, and how many blocks of them fit on a
//! multiprocessor: what can be said of their speed without a GPU.
//!
//! The code of an H200 (sm_90a) is disassembled. A demand of a kernel is what its design rests on:
//! tensor-core products, copies of 16 bytes that go on while it computes, loads of 16 bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::process::output;
use crate::tools;

/// The target that is looked at.
pub const TARGET: &str = "sm_90a";
/// Registers of a multiprocessor, and the step in which a warp takes them.
const REGISTERS: u32 = 64 << 10;
const REGISTER_STEP: u32 = 256;
/// Bytes of shared memory of a multiprocessor, and what every block takes beside its own.
const SHARED: u32 = 228 << 10;
const SHARED_OF_BLOCK: u32 = 1 << 10;
/// Threads and blocks of a multiprocessor.
const THREADS: u32 = 2048;
const BLOCKS: u32 = 32;

/// What a kernel must have.
struct Demand {
    kernel: &'static str,
    /// Tensor-core instructions: those of the tiles of one step of its loop, in each copy of it.
    tensor: u32,
    /// Asynchronous copies of 16 bytes to shared memory.
    copies: u32,
    /// Loads of 16 bytes.
    loads: u32,
    /// Threads of a block.
    threads: u32,
    /// Bytes of shared memory that a launch asks for.
    shared: u32,
    /// Blocks that fit on a multiprocessor.
    blocks: u32,
}

/// Bytes that two stages of keys and values of `slots` slots take, for `warps` warps of their own:
/// `kernels/src/cuda/attention/tiles.rs`.
const fn stages(warps: u32, slots: u32, width: u32) -> u32 {
    warps * 2 * 2 * slots * (width + 8) * 2
}

/// Decoding: the tiles of 32 slots, once for slots and once for centroids.
const fn decode(kernel: &'static str, width: u32, copies: u32, blocks: u32) -> Demand {
    Demand {
        kernel,
        tensor: width,
        copies,
        loads: 1,
        threads: 128,
        shared: stages(4, 32, width),
        blocks,
    }
}

/// Prefill: the tiles of 64 slots.
const fn prefill(kernel: &'static str, width: u32, copies: u32, blocks: u32) -> Demand {
    Demand {
        tensor: 2 * width,
        loads: 0,
        shared: stages(1, 64, width),
        ..decode(kernel, width, copies, blocks)
    }
}

/// Products of a few rows with a matrix of bf16: every load of weights is of 16 bytes.
const fn gemv(kernel: &'static str, loads: u32, blocks: u32) -> Demand {
    Demand {
        kernel,
        tensor: 0,
        copies: 0,
        loads,
        threads: 256,
        shared: 0,
        blocks,
    }
}

/// The kernels that take a step's time. Decoding of 128 elements fits once: its stages are long.
/// Keys of 8 bits are not copied asynchronously: they are widened on their way.
const DEMANDS: [Demand; 11] = [
    decode("attention_decode_64", 64, 4, 3),
    decode("attention_decode_128", 128, 4, 1),
    decode("attention_decode_64_q8", 64, 0, 3),
    decode("attention_decode_128_q8", 128, 0, 1),
    prefill("attention_prefill_64", 64, 4, 3),
    prefill("attention_prefill_128", 128, 4, 2),
    gemv("gemv_bf16_1", 8, 8),
    gemv("gemv_bf16_2", 12, 4),
    gemv("gemv_bf16_4", 20, 3),
    gemv("gemv_bf16_8", 36, 2),
    Demand {
        kernel: "matmul_bf16",
        tensor: 32,
        copies: 8,
        loads: 0,
        threads: 128,
        shared: 0,
        blocks: 3,
    },
];

/// What a kernel's code has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Code {
    tensor: u32,
    copies: u32,
    narrow_copies: u32,
    loads: u32,
    local: u32,
}

/// Registers of a kernel and the static shared memory of its blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    pub registers: u32,
    pub shared: u32,
}

/// Disassembles a fatbin and holds its hot kernels against what is demanded of them.
///
/// # Errors
/// What is not met, or a disassembler that cannot be installed.
pub fn check(fatbin: &Path, footprints: &BTreeMap<String, Footprint>) -> Result<()> {
    let tools = tools::python_packages("sass")?.join("nvidia/cu13/bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path =
        std::env::join_paths(std::iter::once(tools.clone()).chain(std::env::split_paths(&path)))?;
    let mut disassembler = Command::new(tools.join("cuobjdump"));
    disassembler
        .args(["-sass", "-arch", TARGET])
        .arg(fatbin)
        .env("PATH", path);
    let code = parse(&output(&mut disassembler)?);
    let problems = problems(&code, footprints);
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    println!(
        "    machine code of {} kernels has no local memory; {} have what their design rests on",
        code.len(),
        DEMANDS.len()
    );
    Ok(())
}

/// The instructions of every function that `cuobjdump -sass` prints.
fn parse(text: &str) -> BTreeMap<String, Code> {
    let (mut all, mut current) = (BTreeMap::new(), None);
    for line in text.lines() {
        if let Some((_, name)) = line.split_once("Function : ") {
            current = Some(name.trim().to_owned());
            all.insert(name.trim().to_owned(), Code::default());
        } else if let Some(code) = current.as_ref().and_then(|name| all.get_mut(name))
            && let Some(operation) = operation(line)
        {
            count(code, operation);
        }
    }
    all
}

/// The operation of a line, `/*0010*/ @P0 LDG.E.128 R4, …`.
fn operation(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("/*")?;
    let (_, rest) = rest.split_once("*/")?;
    let mut words = rest.split_whitespace();
    let first = words.next()?;
    let operation = if first.starts_with('@') {
        words.next()?
    } else {
        first
    };
    operation
        .starts_with(|c: char| c.is_ascii_uppercase())
        .then_some(operation)
}

fn count(code: &mut Code, operation: &str) {
    let wide = operation.split('.').any(|part| part == "128");
    match operation.split('.').next() {
        Some("HMMA" | "HGMMA" | "IMMA") => code.tensor += 1,
        Some("LDGSTS") if wide => code.copies += 1,
        Some("LDGSTS") => code.narrow_copies += 1,
        Some("LDG") if wide => code.loads += 1,
        Some("LDL" | "STL") => code.local += 1,
        _ => {}
    }
}

/// Blocks of a kernel that a multiprocessor holds at once.
fn blocks(footprint: Footprint, threads: u32, shared: u32) -> u32 {
    let of_warp = (footprint.registers * 32).next_multiple_of(REGISTER_STEP);
    let by_registers = REGISTERS / of_warp.max(1) / (threads / 32);
    let by_shared = SHARED / (footprint.shared + shared + SHARED_OF_BLOCK);
    by_registers
        .min(by_shared)
        .min(THREADS / threads)
        .min(BLOCKS)
}

fn problems(
    code: &BTreeMap<String, Code>,
    footprints: &BTreeMap<String, Footprint>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (kernel, code) in code {
        if code.local > 0 {
            found.push(format!(
                "{kernel} has {} accesses to local memory",
                code.local
            ));
        }
        if code.narrow_copies > 0 {
            found.push(format!(
                "{kernel} has {} asynchronous copies of less than 16 bytes",
                code.narrow_copies
            ));
        }
    }
    for demand in &DEMANDS {
        let kernel = demand.kernel;
        let (Some(code), Some(&footprint)) = (code.get(kernel), footprints.get(kernel)) else {
            found.push(format!("{kernel} was not compiled for {TARGET}"));
            continue;
        };
        let blocks = blocks(footprint, demand.threads, demand.shared);
        let figures = [
            ("tensor-core instructions", code.tensor, demand.tensor),
            (
                "asynchronous copies of 16 bytes",
                code.copies,
                demand.copies,
            ),
            ("loads of 16 bytes", code.loads, demand.loads),
            ("blocks on a multiprocessor", blocks, demand.blocks),
        ];
        let missed = figures.iter().filter(|(_, got, least)| got < least);
        found.extend(missed.map(|(what, got, least)| {
            format!("{kernel} has {got} {what}, its design rests on {least}")
        }));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SASS: &str = "
	code for sm_90a
		Function : attention_decode_64
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
                                                            /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDGSTS.E.BYPASS.128 [R3], desc[UR6][R2.64] ;  /* 0x0 */
        /*0020*/                   HMMA.16816.F32 R4, R4, R6, R8 ;  /* 0x0 */
        /*0030*/                   LDG.E.128 R4, desc[UR6][R2.64] ;  /* 0x0 */
        /*0040*/                   LDG.E.64 R4, desc[UR6][R2.64] ;  /* 0x0 */
		Function : spilled
        /*0000*/                   STL.128 [R1], R4 ;  /* 0x0 */
        /*0010*/                   LDGSTS.E.64 [R3], desc[UR6][R2.64] ;  /* 0x0 */
";

    #[test]
    fn instructions_are_counted_by_function() {
        let code = parse(SASS);
        let decode = Code {
            tensor: 1,
            copies: 1,
            loads: 1,
            ..Code::default()
        };
        assert_eq!(code["attention_decode_64"], decode);
        let spilled = Code {
            local: 1,
            narrow_copies: 1,
            ..Code::default()
        };
        assert_eq!(code["spilled"], spilled);
    }

    #[test]
    fn what_is_missing_is_named() {
        let footprint = Footprint {
            registers: 255,
            shared: 0,
        };
        let footprints = BTreeMap::from([("attention_decode_64".to_owned(), footprint)]);
        let told = problems(&parse(SASS), &footprints).join("\n");
        for part in [
            "spilled has 1 accesses to local memory",
            "spilled has 1 asynchronous copies of less",
            "attention_decode_64 has 1 tensor-core instructions, its design rests on 64",
            "attention_decode_64 has 2 blocks on a multiprocessor, its design rests on 3",
            "gemv_bf16_1 was not compiled",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
    }

    #[test]
    fn blocks_are_limited_by_what_runs_out_first() {
        let blocks = |registers, threads, shared| {
            let footprint = Footprint {
                registers,
                shared: 0,
            };
            super::blocks(footprint, threads, shared)
        };
        assert_eq!(blocks(32, 256, 0), 8, "threads");
        assert_eq!(blocks(32, 32, 0), 32, "blocks");
        assert_eq!(blocks(168, 128, 0), 3, "registers");
        assert_eq!(blocks(64, 128, 139_264), 1, "shared memory");
    }
}
