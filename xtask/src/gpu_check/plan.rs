//! The stages of a GPU check: what each runs, what it shows and how long it may take.

/// Minutes for everything, where the command line does not say.
pub const MINUTES: f64 = 9.5;
/// What random weights of a real shape are measured with.
const SHAPE: &str = "random:llama-3.1-8b";
/// How the programs of tests are run.
const TESTS: &str = "--nocapture --test-threads=1";

/// One stage.
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
    all.extend(stages_of_groups());
    all.extend(stages_of_sanitizers());
    all.push(stage(
        "prefill to 1M",
        "the same to a million positions",
        900,
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
            &format!("bin/kernels-conformance {TESTS}"),
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
             halves"
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

    #[test]
    fn the_stages_fit_the_time_they_are_given() {
        let all = stages();
        let sum: u64 = all
            .iter()
            .filter(|stage| stage.name != "prefill to 1M")
            .map(|stage| stage.limit)
            .sum();
        assert!(sum as f64 <= 1.1 * MINUTES * 60.0, "{sum} s");
        assert!(all.iter().all(|stage| !stage.command.is_empty()));
    }
}
