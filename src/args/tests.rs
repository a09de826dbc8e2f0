//! What the command line takes, and what it refuses.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::*;

fn parse(line: &str) -> Result<Cli, ErrorKind> {
    let words = std::iter::once("palimpsest").chain(line.split_whitespace());
    Cli::try_parse_from(words).map_err(|error| error.kind())
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn counts_that_would_do_nothing_are_refused() {
    for line in [
        "serve --max-running 0",
        "serve --threads 0",
        "serve --threads=-1",
        "worker --rank 0 --threads 0",
        "coordinator --max-running none",
        "serve --max-connections 0",
        "serve --allowed-host http://llm.example",
        "serve --cors app.example",
        "serve --cors https://app.example/path",
        "serve --served-model-name ,",
    ] {
        assert_eq!(
            parse(line).err(),
            Some(ErrorKind::ValueValidation),
            "{line}"
        );
    }
    assert!(parse("serve --max-running 1 --threads 1 --max-queued 0").is_ok());
}

#[test]
fn a_negative_temperature_reaches_the_server_which_says_what_it_takes() {
    let cli = parse("generate --prompt a --temperature -3").expect("parses");
    let Command::Generate(args) = cli.command else {
        panic!("{:?}", cli.command)
    };
    assert_eq!(args.temperature, Some(-3.0));
}

#[test]
fn every_flag_of_a_service_has_a_heading() {
    for name in ["serve", "coordinator", "worker"] {
        let command = Cli::command();
        let service = command.find_subcommand(name).expect("a command");
        let bare: Vec<_> = service
            .get_arguments()
            .filter(|flag| flag.get_help_heading().is_none() && !flag.is_hide_set())
            .map(|flag| flag.get_id().as_str())
            .filter(|id| !["help", "version"].contains(id))
            .collect();
        assert!(bare.is_empty(), "{name}: {bare:?}");
        assert!(service.get_after_help().is_some(), "{name} has no examples");
    }
}

#[test]
fn hosts_may_be_named_more_than_once() {
    let line = "serve --allowed-host a.example --allowed-host b.example,*";
    let Command::Serve(args) = parse(line).expect("parses").command else {
        panic!("another command")
    };
    assert_eq!(
        args.config().front.allowed_hosts,
        ["a.example", "b.example", "*"]
    );
}

#[test]
fn names_of_the_model_and_origins_of_pages_may_be_several() {
    let line = "serve --served-model-name a org/b,c --cors https://a.example http://b.example:3000";
    let Command::Serve(args) = parse(line).expect("parses").command else {
        panic!("another command")
    };
    let front = args.config().front;
    assert_eq!(front.served_names, ["a", "org/b", "c"]);
    assert_eq!(front.cors, ["https://a.example", "http://b.example:3000"]);
}
