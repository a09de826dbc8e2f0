//! The stages of a GPU check: what each runs, what it shows and how long it may take.

use anyhow::{Result, bail};

/// Minutes for everything, where the command line does not say.
pub const MINUTES: f64 = 9.5;
/// What random weights of a real shape are measured with.
const SHAPE: &str = "random:llama-3.1-8b";
/// How the programs of tests are run.
const TESTS: &str = "--nocapture --test-threads=1";

/// The kernels as a file, for those who start them without Rust.
pub const FATBIN: &str = "kernels.fatbin";

/// One stage.
#[derive(Debug)]
pub struct Stage {
    /// Name in the report.
    pub name: &'static str,
    /// What it shows.
    pub what: &'static str,
    /// Seconds it may take, of `MINUTES`; more time gives each stage more.
    pub limit: u64,
    /// Program and arguments.
    pub command: Vec<String>,
}

impl Stage {
    /// How the command line calls it: `NCCL, two ranks` is `nccl-two-ranks`.
    pub fn slug(&self) -> String {
        let words = self.name.split([' ', ',']).filter(|word| !word.is_empty());
        words.collect::<Vec<_>>().join("-").to_lowercase()
    }
}

/// The stages that a list of names asks for, in the order of [`stages`].
///
/// # Errors
/// When there is no stage of a name.
pub fn chosen(names: &str) -> Result<Vec<Stage>> {
    let wanted: Vec<&str> = names.split(',').map(str::trim).collect();
    let known: Vec<String> = stages().iter().map(Stage::slug).collect();
    if let Some(odd) = wanted
        .iter()
        .find(|name| !known.iter().any(|slug| slug == *name))
    {
        bail!("there is no stage `{odd}`: use {}", known.join(", "));
    }
    let asked = |stage: &Stage| wanted.contains(&stage.slug().as_str());
    Ok(stages().into_iter().filter(asked).collect())
}

/// A stage whose command is one line, without quotes.
pub fn stage(name: &'static str, what: &'static str, limit: u64, command: &str) -> Stage {
    Stage {
        name,
        what,
        limit,
        command: command.split_whitespace().map(str::to_owned).collect(),
    }
}

/// All stages, in order: what is wrong is known before what is slow.
pub fn stages() -> Vec<Stage> {
    let mut all = stages_of_correctness();
    all.extend(stages_of_speed());
    all.extend(stages_beside_pytorch());
    all.extend(stages_of_groups());
    all.extend(stages_of_sanitizers());
    all.push(stage(
        "prefill to 1M",
        "the same to a million positions",
        240,
        &prefill(1 << 20),
    ));
    all
}

fn stages_of_correctness() -> Vec<Stage> {
    vec![
        stage(
            "device",
            "the GPU as the program sees it",
            20,
            "bin/kernels-bench identify",
        ),
        stage(
            "kernels",
            "copies, products and attention, by events",
            75,
            "bin/kernels-bench kernels",
        ),
        stage(
            "conformance",
            "every operation against the reference",
            90,
            &format!("bin/kernels-conformance {TESTS} --skip large"),
        ),
        stage(
            "conformance, large",
            "thousands of slots, 151,936 tokens, 210 sequences",
            60,
            &format!("bin/kernels-conformance {TESTS} large"),
        ),
        stage(
            "tiny models",
            "tokens and kept slots against the CPU",
            60,
            &format!("bin/models-check {TESTS} every_"),
        ),
        stage(
            "SmolLM2",
            "the default model's tokens against the CPU",
            45,
            &format!("bin/models-check {TESTS} smollm2"),
        ),
    ]
}

fn stages_of_speed() -> Vec<Stage> {
    vec![
        stage(
            "decode, 1 sequence",
            "8B, budget 4096",
            60,
            &decode(1, 4096),
        ),
        stage(
            "decode, 64 sequences",
            "8B, budget 4096",
            60,
            &decode(64, 43 << 10),
        ),
        stage(
            "prefill to 32K",
            "8B, stride 512: is the time of a stride flat",
            60,
            &prefill(32 << 10),
        ),
    ]
}

fn stages_beside_pytorch() -> Vec<Stage> {
    vec![
        stage(
            "single kernels",
            "kernels against PyTorch in f64, started without Rust",
            45,
            &format!("python3 peer/launch.py {FATBIN}"),
        ),
        stage(
            "PyTorch",
            "attention over a full cache, the peer of decode and prefill",
            60,
            "python3 peer/full_cache.py",
        ),
    ]
}

fn stages_of_groups() -> Vec<Stage> {
    vec![
        stage(
            "NCCL",
            "a group of one rank",
            25,
            &format!("bin/models-check {TESTS} nccl"),
        ),
        stage(
            "NCCL, two ranks",
            "processes on one GPU that sum inside captured graphs; one is killed",
            40,
            &format!("bin/models-check {TESTS} two_ranks"),
        ),
    ]
}

fn stages_of_sanitizers() -> Vec<Stage> {
    let sanitizer = |tool: &str| {
        format!(
            "compute-sanitizer --tool {tool} --error-exitcode 9 bin/kernels-conformance {TESTS} \
             --exact halves_on_tensor_cores"
        )
    };
    vec![
        stage(
            "memcheck",
            "accesses out of bounds",
            45,
            &sanitizer("memcheck"),
        ),
        stage(
            "racecheck",
            "races in shared memory",
            45,
            &sanitizer("racecheck"),
        ),
    ]
}

/// Arguments of both benchmarks.
fn bench() -> String {
    format!("--device cuda:0 --model {SHAPE} --kv-budget 4096 --json")
}

/// Decoding of some sequences from a cache of `mib` MiB.
fn decode(sequences: u32, mib: u32) -> String {
    format!(
        "bin/palimpsest bench decode {} --depths 4096 --assume-context --tokens 64 --repeat 3 \
         --sequences {sequences} --kv-memory-mib {mib}",
        bench()
    )
}

/// Prefill of one sequence up to position `depth`.
fn prefill(depth: u32) -> String {
    format!(
        "bin/palimpsest bench prefill {} --stride 512 --depths {depth} --strides --kv-memory-mib \
         4096",
        bench()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The runs of tests/gpu/RUNBOOK.md, as their command lines have them.
    fn runs() -> Vec<Vec<Stage>> {
        let text = std::fs::read_to_string("../tests/gpu/RUNBOOK.md").unwrap();
        let lists = text.split("--stages ").skip(1);
        lists
            .map(|list| chosen(list.split_whitespace().next().unwrap()).unwrap())
            .collect()
    }

    #[test]
    fn the_runs_of_the_runbook_fit_their_time_and_leave_out_no_stage() {
        let runs = runs();
        assert_eq!(runs.len(), 3);
        let mut told: Vec<String> = Vec::new();
        for stages in runs {
            let sum: u64 = stages.iter().map(|stage| stage.limit).sum();
            assert!(sum as f64 <= MINUTES * 60.0, "{sum} s");
            assert!(stages.iter().all(|stage| !stage.command.is_empty()));
            told.extend(stages.iter().map(Stage::slug));
        }
        for stage in stages() {
            assert!(told.contains(&stage.slug()), "{} is in no run", stage.name);
        }
    }

    #[test]
    fn stages_are_chosen_by_name() {
        let names = |stages: Vec<Stage>| stages.iter().map(Stage::slug).collect::<Vec<_>>();
        let some = chosen("nccl-two-ranks, device").unwrap();
        assert_eq!(names(some), ["device", "nccl-two-ranks"]);
        let error = chosen("device,nothing").unwrap_err().to_string();
        assert!(
            error.contains("`nothing`") && error.contains("prefill-to-1m"),
            "{error}"
        );
        let mut all = names(stages());
        all.sort();
        all.dedup();
        assert_eq!(all.len(), stages().len());
    }
}
