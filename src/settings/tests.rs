//! Command lines and files against each other. What the environment adds is tested with processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use super::show::Report;
use super::*;
use crate::args::Command as Asked;

/// A working directory with a configuration file.
struct Dir(tempfile::TempDir);

impl Dir {
    fn with(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("palimpsest.toml"), text).expect("a file");
        Self(dir)
    }

    fn places(&self) -> Places {
        Places {
            working: Some(self.0.path().to_owned()),
            config_home: None,
        }
    }

    fn resolve(&self, line: &str) -> Result<Cli, Refusal> {
        let resolved = resolve(words(line), &self.places(), Strictness::Whole)?;
        Ok(resolved.into_cli()?.0)
    }

    /// What is said of the file, without its path.
    fn refusal(&self, line: &str) -> String {
        let said = match self.resolve(line) {
            Err(Refusal::File(error)) => error.to_string(),
            other => panic!("{line}: {other:?}"),
        };
        let path = format!("{}:", self.0.path().join("palimpsest.toml").display());
        said.strip_prefix(&path).expect("the path").to_owned()
    }

    fn report(&self, service: &str, flags: &str) -> Value {
        let shown = Shown {
            service: None,
            flags: flags.split_whitespace().map(OsString::from).collect(),
            config: None,
            json: true,
        };
        let report = Report::make(&[service], &shown, &self.places());
        report.expect("settings that can be").json()
    }
}

fn words(line: &str) -> Vec<OsString> {
    let words = std::iter::once("palimpsest").chain(line.split_whitespace());
    words.map(OsString::from).collect()
}

fn serving(cli: Cli) -> crate::serve::Config {
    match cli.command {
        Asked::Serve(args) => args.config(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let dir = Dir::with(
        "log = 'info'\nkv-budget = 1024\nthreads = 3\n\n\
         [serve]\nkv-budget = 0x200\nstrict = true\ncuda-graphs = false\ngap-factor = 4\n\
         http = 'localhost:8123'\ncors = ['https://a.example', 'https://b.example']\n\
         served-model-name = 'one'\n\n[worker]\nrank = 1\nkv-budget = 7\n",
    );
    let cli = dir
        .resolve("serve --threads 2")
        .expect("settings that can be");
    assert_eq!(cli.log, "info");
    let config = serving(cli);
    assert_eq!(config.default_kv.budget, 512, "the service's table wins");
    assert_eq!(config.model.threads, Some(2), "a flag wins");
    assert_eq!(config.model.stride, 256, "the default");
    assert!(!config.model.cuda_graphs && config.front.strict);
    assert_eq!(config.front.company.gap, 4.0);
    assert_eq!(config.front.http.expect("an address").port(), 8123);
    assert_eq!(config.front.cors.len(), 2);
    assert_eq!(config.front.served_names, ["one"]);

    let cli = dir.resolve("worker").expect("its rank is in the file");
    let Asked::Worker(args) = cli.command else {
        panic!("another command")
    };
    assert_eq!(args.rank, 1);
    assert_eq!(args.kv.kv_budget, Some(7));
    assert_eq!(args.model.threads, Some(3));
    // Commands that are typed read no file.
    let cli = dir.resolve("bench decode").expect("a command");
    assert_eq!(cli.log, "warn");
}

#[test]
fn flags_of_the_file_stand_before_the_end_of_flags() {
    let dir = Dir::with("[serve]\nkv-budget = 512\n");
    let cli = dir.resolve("serve --").expect("settings that can be");
    assert_eq!(serving(cli).default_kv.budget, 512);
}

#[test]
fn what_a_file_cannot_say_is_told_with_its_place() {
    for (text, said) in [
        (
            "kv_budget = 1\n",
            "1:1: `kv_budget` is no option; did you mean `kv-budget`?",
        ),
        (
            "\n[serve]\n  kv-bugdet = 1\n",
            "3:3: `kv-bugdet` is no option of [serve]; did you mean `kv-budget`?",
        ),
        (
            "[serve]\nrank = 1\n",
            "2:1: `rank` is no option of [serve]: [worker] has it",
        ),
        (
            "[server]\nkv-budget = 1\n",
            "1:2: `[server]` is no service; did you mean `serve`?; tables are [coordinator], \
             [serve], [worker]",
        ),
        (
            "[worker]\nkv-budget = '1024'\n",
            "2:13: `kv-budget` takes a whole number, not a string",
        ),
        (
            "stride = 2.5\n",
            "1:10: `stride` takes a whole number, not a number with a fraction",
        ),
        (
            "strict = 1\n",
            "1:10: `strict` takes true or false, not a whole number",
        ),
        (
            "model = ['a', 'b']\n",
            "1:9: `model` takes a string, not an array",
        ),
        (
            "cors = [1]\n",
            "1:8: `cors` takes a string or an array of them, not a whole number",
        ),
        (
            "serve.model.name = 'a'\n",
            "1:7: `model` takes a string, not a table",
        ),
        // What clap knows of a value.
        (
            "[serve]\nstride = 1\n",
            "2:10: invalid value '1' for '--stride <STRIDE>': 1 is not in 16..=8192",
        ),
        (
            "inject-fault = 'hang@1'\n",
            "1:1: `inject-fault` is no option",
        ),
        ("config = 'other'\n", "1:1: `config` is no option"),
    ] {
        let refused = Dir::with(text).refusal("serve");
        assert!(refused.starts_with(said), "{text:?}: {refused}");
    }
    // What is no TOML has its place as well.
    for (text, place) in [("kv-budget = \n", "1:13: "), ("a = 1\na = 2\n", "2:1: ")] {
        let refused = Dir::with(text).refusal("serve");
        assert!(refused.starts_with(place), "{text:?}: {refused}");
    }
}

#[test]
fn options_that_exclude_or_need_each_other_do_so_across_the_file() {
    let dir = Dir::with("[serve]\napi-keys-file = 'keys'\n");
    match dir.resolve("serve --insecure-no-keys") {
        Err(Refusal::Usage { error, notes }) => {
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
            assert!(
                notes[0].ends_with("palimpsest.toml:2 sets `api-keys-file`"),
                "{notes:?}"
            );
        }
        other => panic!("{other:?}"),
    }
    let dir = Dir::with("[serve]\ntls-cert = 'cert.pem'\n");
    match dir.resolve("serve") {
        Err(Refusal::Usage { error, .. }) => {
            assert_eq!(
                error.kind(),
                clap::error::ErrorKind::MissingRequiredArgument
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_is_found_by_name_then_here_then_at_home() {
    let dir = Dir::with("kv-budget = 1\n");
    let home = dir.0.path().join("home");
    fs::create_dir_all(home.join("palimpsest")).expect("a directory");
    fs::write(home.join("palimpsest/palimpsest.toml"), "kv-budget = 2\n").expect("a file");
    let other = dir.0.path().join("other.toml");
    fs::write(&other, "kv-budget = 3\n").expect("a file");
    let budget = |line: &str, working: Option<&std::path::Path>| {
        let places = Places {
            working: working.map(ToOwned::to_owned),
            config_home: Some(home.clone()),
        };
        let resolved = resolve(words(line), &places, Strictness::Whole)?;
        Ok::<_, Refusal>(serving(resolved.into_cli()?.0).default_kv.budget)
    };
    let here = Some(dir.0.path());
    let named = format!("serve --config {}", other.display());
    assert_eq!(budget(&named, here).expect("a file"), 3);
    assert_eq!(budget("serve", here).expect("a file"), 1);
    assert_eq!(budget("serve", None).expect("a file"), 2);
    assert_eq!(budget("serve --config=", here).expect("no file"), 0);
    assert!(matches!(
        budget("serve --config /nope", here),
        Err(Refusal::File(_))
    ));
    // Anybody's file is not taken for the operator's, unless the operator names it.
    let path = dir.0.path().join("palimpsest.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("permissions");
    match budget("serve", here) {
        Err(Refusal::File(error)) => assert!(error.to_string().contains("everybody may write")),
        other => panic!("{other:?}"),
    }
    let named = format!("serve --config {}", path.display());
    assert_eq!(budget(&named, here).expect("a file"), 1);
}

#[test]
fn every_value_is_shown_with_where_it_comes_from() {
    let dir = Dir::with("kv-budget = 64\n[worker]\nstride = 512\ninsecure = false\n");
    let shown = dir.report("worker", "--threads 2");
    let values = &shown["services"]["worker"];
    let of = |key: &str| (values[key]["value"].clone(), values[key]["source"].clone());
    assert_eq!(of("kv-budget"), ("64".into(), "file".into()));
    assert_eq!(values["kv-budget"]["line"], 1);
    assert_eq!(of("stride"), ("512".into(), "file".into()));
    assert_eq!(of("insecure"), ("false".into(), "file".into()));
    assert_eq!(of("threads"), ("2".into(), "flag".into()));
    assert_eq!(of("device"), ("cpu".into(), "default".into()));
    assert_eq!(
        of("rank"),
        (Value::Null, "default".into()),
        "it is needed, and may be missing"
    );
    assert_eq!(values["etcd"]["value"], Value::Null);
    // All that the service takes is there.
    let keys = Keys::of(&SERVICES);
    let count = keys.options("worker").count();
    assert_eq!(values.as_object().expect("an object").len(), count);
    assert!(count > 30, "{count}");
}

/// Each option that can be set is one that clap takes back as `--key=value`.
#[test]
fn keys_are_those_of_the_command_line() {
    let keys = Keys::of(&SERVICES);
    for service in SERVICES {
        let command = Cli::command();
        let command = command.find_subcommand(service).expect("a service");
        for option in command
            .get_arguments()
            .filter(|option| !option.is_hide_set())
        {
            let long = option.get_long().expect("services have no positions");
            if !["help", "version"].contains(&long) {
                assert!(keys.get(service, long).is_some(), "{service}: {long}");
            }
        }
        assert!(
            keys.get(service, "log").is_some(),
            "options of the whole program"
        );
    }
}

/// The book's example is a file that services take.
#[test]
fn the_file_in_the_book_is_read() {
    let page = include_str!("../../docs/src/operating.md");
    let (_, rest) = page.split_once("```toml\n").expect("an example");
    let (example, _) = rest.split_once("```").expect("its end");
    let dir = Dir::with(example);
    let config = serving(dir.resolve("serve").expect("settings that can be"));
    assert_eq!(config.default_kv.budget, 2048);
    assert_eq!(config.model.model, "unsloth/Qwen3-8B-GGUF:Q4_K_M");
    assert_eq!(config.front.cors, ["https://app.example"]);
    let Asked::Worker(args) = dir.resolve("worker --rank 0").expect("a worker").command else {
        panic!("another command")
    };
    assert_eq!(args.model.threads, Some(8));
}

/// Pieces of a file, in any order.
const PIECES: &str = concat!(
    "(kv-budget|stride|cors|\\[serve\\]|\\[|\\]|=|0x|'|\"|\n",
    "|[0-9.-]|[a-z]|true|\\PC){0,24}"
);

proptest::proptest! {
    // The command line is built anew for each.
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    #[test]
    fn whatever_a_file_holds_is_read_or_refused(text in PIECES) {
        let _ = Dir::with(&text).resolve("serve");
    }
}
