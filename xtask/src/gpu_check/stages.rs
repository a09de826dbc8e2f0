//! `xtask gpu-run`, in the bundle: the stages one after the other, each with a time limit of its
//! own, so that none costs the rest.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::outcome::{Ended, Machine, Outcome, Run};
use super::plan::{MINUTES, Stage, chosen, stages};
use super::report;

/// The default model's file in the bundle, when it was put in.
pub const MODEL: &str = "model.gguf";
/// Kept back for writing the report.
const RESERVE: Duration = Duration::from_secs(5);

/// Where and how long.
struct Options {
    minutes: f64,
    out: PathBuf,
    model: Option<PathBuf>,
    stages: Vec<Stage>,
}

fn parse(args: &[&str]) -> Result<Options> {
    let found = Path::new(MODEL);
    let model = found.exists().then(|| found.to_owned());
    let mut options = Options {
        minutes: MINUTES,
        out: "report".into(),
        model,
        stages: stages(),
    };
    let mut rest = args.iter();
    while let Some(&flag) = rest.next() {
        let value = rest
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag {
            "--minutes" => {
                options.minutes = value
                    .parse()
                    .with_context(|| format!("--minutes {value}"))?
            }
            "--out" => options.out = value.into(),
            "--model" => options.model = Some(value.into()),
            "--stages" => options.stages = chosen(value)?,
            _ => bail!(
                "unknown argument {flag}: --minutes N, --out DIR, --model FILE and --stages A,B \
                 are known"
            ),
        }
    }
    ensure!(
        options.minutes.is_finite() && options.minutes > 0.0,
        "--minutes {}: more than 0",
        options.minutes
    );
    Ok(options)
}

/// Runs all stages of the bundle in the current directory and writes the report.
///
/// # Errors
/// When the report cannot be written, and when a stage did not pass: the report says which.
pub fn run_all(args: &[&str]) -> Result<()> {
    let options = parse(args)?;
    let manifest =
        fs::read_to_string("manifest.json").context("not a bundle of `cargo xtask gpu-check`")?;
    let manifest: Value = serde_json::from_str(&manifest)?;
    let started = Instant::now();
    let budget = Duration::from_secs_f64(options.minutes * 60.0);
    let machine = Machine::ask();
    let place = Place::new(&options, machine.libraries.path())?;
    let mut run = Run {
        manifest,
        machine,
        minutes: options.minutes,
        stages: Vec::new(),
    };
    for stage in &options.stages {
        let left = budget
            .saturating_sub(RESERVE)
            .saturating_sub(started.elapsed());
        let scaled =
            Duration::from_secs_f64(stage.limit as f64 * (options.minutes / MINUTES).max(1.0));
        let ended = run_stage(stage, scaled.min(left), &place)?;
        println!("{}", ended.line());
        run.stages.push(ended);
        // After every stage: what is known is not lost with the machine.
        report::write(&run, &options.out)?;
        place.pack()?;
    }
    let bad = run.bad();
    println!("report in {}", options.out.display());
    ensure!(bad.is_empty(), "not passed: {}", bad.join(", "));
    Ok(())
}

/// Where stages run and leave what they print.
struct Place {
    /// Logs, outside of the report: machines that are lent give few files back.
    logs: PathBuf,
    /// The report's folder.
    out: PathBuf,
    /// What every stage finds in its environment.
    environment: Vec<(&'static str, OsString)>,
}

impl Place {
    fn new(options: &Options, libraries: Option<OsString>) -> Result<Self> {
        let logs = std::env::temp_dir().join(format!("gpu-check-{}/logs", std::process::id()));
        fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
        fs::create_dir_all(&options.out)
            .with_context(|| format!("cannot create {}", options.out.display()))?;
        let fixtures = std::path::absolute("fixtures")?;
        let mut environment = vec![("PALIMPSEST_TEST_FIXTURES", fixtures.into_os_string())];
        if let Some(model) = &options.model {
            let model = std::path::absolute(model)?;
            environment.push(("PALIMPSEST_TEST_MODEL", model.into_os_string()));
        }
        environment.extend(libraries.map(|path| ("LD_LIBRARY_PATH", path)));
        Ok(Self {
            logs,
            out: options.out.clone(),
            environment,
        })
    }

    fn log(&self, stage: &Stage) -> PathBuf {
        self.logs.join(format!("{}.txt", stage.slug()))
    }

    /// Puts all logs into one archive beside the report.
    fn pack(&self) -> Result<()> {
        let archive = std::path::absolute(self.out.join("logs.tar.gz"))?;
        let folder = self.logs.parent().context("logs lie in a folder")?;
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(folder)
            .arg("-czf")
            .arg(archive)
            .arg("logs");
        ensure!(tar.status()?.success(), "tar cannot pack the logs");
        Ok(())
    }
}

/// Runs a stage, no longer than `limit`.
fn run_stage(stage: &Stage, limit: Duration, place: &Place) -> Result<Ended> {
    let (name, what) = (stage.name.to_owned(), stage.what.to_owned());
    let limit_seconds = limit.as_secs_f64();
    let mut ended = Ended {
        name,
        what,
        limit_seconds,
        ..Ended::default()
    };
    if limit < Duration::from_secs(1) {
        ended.outcome = Outcome::NotRun("no time was left".into());
        return Ok(ended);
    }
    let log = place.log(stage);
    let (stdout, started) = (File::create(&log)?, Instant::now());
    let mut command = Command::new(&stage.command[0]);
    command
        .args(&stage.command[1..])
        .stdin(Stdio::null())
        .stderr(stdout.try_clone()?)
        .stdout(stdout)
        .envs(place.environment.iter().map(|(name, value)| (name, value)));
    // A group of its own, so that what a sanitizer starts ends with it.
    let exit = match command.process_group(0).spawn() {
        Ok(child) => wait(child, limit)?,
        Err(error) => {
            ended.outcome =
                Outcome::NotRun(format!("{} cannot be started: {error}", stage.command[0]));
            return Ok(ended);
        }
    };
    ended.seconds = started.elapsed().as_secs_f64();
    ended.read(&String::from_utf8_lossy(&fs::read(&log)?), exit);
    Ok(ended)
}

/// The exit code, `None` when the time was over and the process was ended.
fn wait(mut child: Child, limit: Duration) -> Result<Option<i32>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            // A signal has no code: any that is not 0 says so.
            return Ok(Some(status.code().unwrap_or(-1)));
        }
        if Instant::now() >= end {
            Command::new("kill")
                .args(["-KILL", "--"])
                .arg(format!("-{}", child.id()))
                .status()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu_check::plan::stage;

    /// A place that is removed with this.
    struct Folder(Place);

    impl Folder {
        fn new() -> Self {
            let thread = format!("{:?}", std::thread::current().id());
            let name = format!("gpu-check-test-{}-{thread}", std::process::id());
            let out = std::env::temp_dir().join(name);
            let logs = out.join("logs");
            fs::create_dir_all(&logs).unwrap();
            let environment = vec![("GIVEN", "given".into())];
            Self(Place {
                logs,
                out,
                environment,
            })
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0.out).ok();
        }
    }

    fn shell(script: &str, limit: f64) -> Ended {
        let command = vec!["sh".into(), "-c".into(), script.into()];
        let stage = Stage {
            name: "a stage",
            what: "a test",
            limit: 1,
            command,
        };
        let folder = Folder::new();
        let ended = run_stage(&stage, Duration::from_secs_f64(limit), &folder.0).unwrap();
        folder.0.pack().unwrap();
        assert!(folder.0.out.join("logs.tar.gz").exists());
        ended
    }

    #[test]
    fn a_stage_passes_fails_or_is_skipped_by_what_it_says() {
        let passed = shell(
            r#"test "$GIVEN" = given; echo a table; echo '{"kind": "copy", "bytes_per_second": 2.5}'"#,
            20.0,
        );
        assert_eq!((passed.outcome, passed.figures.len()), (Outcome::Passed, 1));
        assert_eq!(passed.figures[0]["bytes_per_second"], 2.5);
        let failed = shell("echo why it fails >&2; exit 3", 20.0);
        assert_eq!(
            failed.outcome,
            Outcome::Failed("ended with 3: why it fails".into())
        );
        let skipped = shell(
            "echo 'SKIPPED: no CUDA driver'; echo 'test result: ok'",
            20.0,
        );
        assert_eq!(skipped.outcome, Outcome::NotRun("no CUDA driver".into()));
        assert!(matches!(
            shell("kill -SEGV $$", 20.0).outcome,
            Outcome::Failed(_)
        ));
    }

    #[test]
    fn a_stage_that_takes_too_long_ends_with_all_it_started() {
        let started = Instant::now();
        let late = shell("sleep 60 & echo half; wait", 1.0);
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(
            (late.outcome, late.tail),
            (Outcome::TimedOut, vec!["half".to_owned()])
        );
        let none = shell("true", 0.1);
        assert_eq!(none.outcome, Outcome::NotRun("no time was left".into()));
    }

    #[test]
    fn a_program_that_is_not_there_is_said_by_name() {
        let stage = stage("nothing", "a test", 1, "no-such-program --flag");
        let ended = run_stage(&stage, Duration::from_secs(5), &Folder::new().0).unwrap();
        assert!(
            matches!(&ended.outcome, Outcome::NotRun(why) if why.starts_with("no-such-program")),
            "{ended:?}"
        );
    }

    #[test]
    fn arguments_are_checked() {
        let args = ["--minutes", "30", "--out", "there", "--stages", "device"];
        let options = parse(&args).unwrap();
        assert_eq!(options.stages.len(), 1);
        assert_eq!(
            (options.minutes, options.out),
            (30.0, PathBuf::from("there"))
        );
        for bad in [
            &["--minutes", "0"][..],
            &["--minutes", "soon"],
            &["--minutes"],
            &["--what", "x"],
            &["--stages", "nothing"],
        ] {
            parse(bad).err().expect("a bad argument");
        }
    }
}
