//! The project's own chores: `cargo xtask COMMAND`. Everything CI does is one of these, so that it
//! can be repeated by hand.

#![forbid(unsafe_code)]

mod bench_peers;
mod ci;
mod clients;
mod cluster;
mod crates;
mod deploy_check;
mod eval_quick;
mod formats;
mod fuzz;
mod gpu_check;
mod image;
mod kernels;
mod metrics;
mod miri;
mod modules;
mod node;
mod pictures;
mod pin;
mod process;
mod rust_source;
mod sbom;
mod test;
mod tools;
mod wheel;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask COMMAND

  test [--fast]        run all tests; --fast leaves out doc tests and the tests on the real model
  ci                   every other check: format, lints, dependencies, docs, code size, kernels
  metrics, deny        the house rules alone (sizes, circles between modules); licences,
                       advisories and the list of what is linked alone
  sbom                 that list: CycloneDX, under target/sbom
  format               format CUDA, C++ and Python; `cargo fmt --all` formats Rust
  crates               the graph of the crates, as ARCHITECTURE.md shows it
  kernels [--table]    compile the CUDA kernels, after installing nvcc with pip where there is
                       none, and check registers and spills; --table writes the table they are
                       checked against
  gpu-check [ARGS]     one archive under target/gpu-check that checks and measures the CUDA
                       backend on a machine with a GPU and without Rust, and writes a report;
                       tests/gpu/README.md says how
  deploy-check         the Kubernetes manifests against schemas, themselves and the program
  image                size of what the CPU image adds to its base: the binary and what it links
  fuzz [--seconds N] [TARGET…]
                       readers of outside bytes under guided mutations, 60 s each
  miri                 unsafe code of the CPU kernels under Miri, which it installs
  clients [NAME…]      clients that people bring, unchanged, against a server of this build;
                       --list lists them, --quick runs those that CI runs, --server URL and
                       --grpc ADDRESS ask a server that runs already
  pin [--keep] PURPOSE…
                       packages of such clients anew, with hashes; --keep keeps versions
  pictures             what the documents show of the console, made anew in docs/src/images
  wheel                the program as a Python wheel, tried in an empty environment
  cluster [--tp N] …   etcd, a coordinator and N ranks as processes of this machine; the rest
                       goes to the ranks
  eval-quick [ARGS]    what eviction costs with the shipped indexer, in 12 minutes; the rest goes
                       to `palimpsest eval ruler`
  bench-peers [ARGS]   compare with llama.cpp and PyTorch; `cargo xtask bench-peers --help` lists
                       the arguments
  bench-turns KIND …   a conversation about a long document (`turns`), or many questions at once
                       (`questions`), beside llama.cpp's server
  bench-state KIND …   what reading does to others' answers (`gaps`), what keeping a state costs
                       (`suspend`) or copying one (`fork`), many sessions under kill -9 (`soak`)
  bench-guide [KIND…]  what a schema costs (`decode`, `first-mask`), and what the log-probabilities
                       of a prompt do (`echo`)
  bench-against …      this program and another one of ours, as servers beside each other";

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
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        // In a bundle there is no workspace: these two work where they are started.
        ["gpu-run", rest @ ..] => return gpu_check::stages::run_all(rest),
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    // Every path below is relative to the workspace root.
    std::env::set_current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))?;
    match args.as_slice() {
        ["test"] => test::run_all(test::Extent::All),
        ["test", "--fast"] => test::run_all(test::Extent::Fast),
        ["ci"] => ci::run_checks(),
        ["metrics"] => metrics::check().and_then(|()| modules::check()),
        ["format"] => formats::apply(),
        ["crates"] => crates::print_drawing(),
        ["deny"] => ci::check_third_party(),
        ["sbom"] => sbom::write(),
        ["kernels"] => kernels::check(),
        ["kernels", "--table"] => kernels::write_table(),
        ["gpu-check", rest @ ..] => gpu_check::bundle(rest),
        ["deploy-check"] => deploy_check::check(),
        ["image"] => image::measure(),
        ["fuzz", rest @ ..] => fuzz::run_targets(rest),
        ["miri"] => miri::check(),
        ["clients", rest @ ..] => clients::run_suite(rest),
        ["pin", rest @ ..] => pin::make_files(Path::new(tools::REQUIREMENTS), rest),
        ["pictures"] => pictures::make(),
        ["wheel"] => wheel::build_and_try(),
        ["cluster", rest @ ..] => cluster::run_local(rest),
        ["eval-quick", rest @ ..] => eval_quick::run_table(rest),
        ["bench-peers", rest @ ..] => bench_peers::run_harness(bench_peers::HARNESS, rest),
        ["bench-turns", rest @ ..] => bench_peers::run_harness(bench_peers::TURNS, rest),
        ["bench-against", rest @ ..] => bench_peers::run_harness(bench_peers::AGAINST, rest),
        ["bench-guide", rest @ ..] => bench_peers::run_harness(bench_peers::GUIDE, rest),
        ["bench-state", rest @ ..] => bench_peers::run_harness(bench_peers::STATE, rest),
        _ => bail!("unknown command line `{}`\n{USAGE}", args.join(" ")),
    }
}
