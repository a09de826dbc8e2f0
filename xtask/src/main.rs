//! The project's own chores: `cargo xtask COMMAND`. Everything CI does is one of these, so that it can be repeated by hand.

#![forbid(unsafe_code)]

mod bench_peers;
mod ci;
mod cluster;
mod crates;
mod deploy_check;
mod kernels;
mod metrics;
mod process;
mod rust_source;
mod test;
mod tools;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  test [--fast]        run all tests; --fast leaves out doc tests and the tests on the real model
  ci                   every other check: format, lints, dependencies, docs, code size, CUDA kernels
  metrics, deny        the code-size part of `ci` alone; the licences part alone
  kernels [--table]    compile the CUDA kernels, after installing nvcc with pip where there is none, and check registers
                       and spills; --table writes the table that is checked
  deploy-check         the Kubernetes manifests against schemas, themselves and the program
  cluster [--tp N] …   etcd, a coordinator and N ranks as processes of this machine; the rest goes to the ranks
  bench-peers [ARGS]   compare with llama.cpp and PyTorch; `cargo xtask bench-peers --help` lists the arguments";

fn main() -> ExitCode {
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    // Every path below is relative to the workspace root.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["test"] => test::run_all(test::Extent::All),
        ["test", "--fast"] => test::run_all(test::Extent::Fast),
        ["ci"] => ci::run_checks(),
        ["metrics"] => metrics::check(),
        ["deny"] => ci::check_third_party(),
        ["kernels"] => kernels::check(),
        ["kernels", "--table"] => kernels::write_table(),
        ["deploy-check"] => deploy_check::check(),
        ["cluster", rest @ ..] => cluster::run_local(rest),
        ["bench-peers", rest @ ..] => bench_peers::run_harness(rest),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("unknown command line `{}`\n{USAGE}", args.join(" ")),
    }
}
