//! `palimpsest quickstart`: a real model, a long real document and a question about it, over gRPC,
//! in one command.

use anyhow::{Context, bail};
use palimpsest_coordinator::Config;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::{self};

use crate::args::{ClientTlsArgs, QuickstartArgs};
use crate::{embedded, generate, term};

/// The GNU General Public License, version 3: a long document that may be copied verbatim.
const DOCUMENT: &str = include_str!("../assets/gpl-3.0.txt");
const QUESTION: &str = "When was the WIPO copyright treaty adopted?";
/// A model this small answers best when the answer is begun for it.
const ANSWER_PREFIX: &str = "The WIPO copyright treaty was adopted on";

/// About a fifth of the built-in document.
const BUDGET: u32 = 1536;

/// Runs the whole path once and prints what it cost.
pub async fn run(args: QuickstartArgs) -> anyhow::Result<()> {
    let (document, question) = match &args.document {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            (
                text,
                args.question
                    .clone()
                    .unwrap_or_else(|| "What is this document about?".into()),
            )
        }
        None => (DOCUMENT.to_string(), QUESTION.to_string()),
    };
    let ranks = tokio::task::block_in_place(|| {
        embedded::open_ranks(&args.model, &args.kv, args.tp.into())
    })?;
    let device = ranks.infos()[0].device.clone();
    let coordinator = embedded::start(ranks, Config::default())?;
    if !coordinator.ready().await {
        bail!("the first step failed; run with --log info for the reason");
    }
    let server = coordinator.serve_local().await?;
    let client = generate::connect(
        &format!("http://{}", server.address),
        &ClientTlsArgs::default(),
    )
    .await?;

    eprintln!(
        "{} on {device}, gRPC at {}",
        coordinator.service().model.info.name,
        server.address
    );
    eprintln!(
        "document: {} characters; question: {question}",
        document.chars().count()
    );
    let prefix = if args.document.is_none() {
        ANSWER_PREFIX
    } else {
        ""
    };
    let mut kv = args.kv.wire();
    if kv.budget == 0 && kv.policy.is_empty() {
        kv.budget = BUDGET;
    }
    let content = format!("{document}\n\n{question}");
    let request = v1::GenerateRequest {
        input: Some(Input::Chat(generate::question(content, prefix))),
        stopping: Some(v1::Stopping {
            max_tokens: Some(args.max_tokens),
            ..Default::default()
        }),
        kv: Some(kv),
        ..Default::default()
    };
    let spinner = if term::is_terminal() {
        indicatif::ProgressBar::new_spinner()
    } else {
        indicatif::ProgressBar::hidden()
    };
    spinner.set_message("reading the document");
    spinner.enable_steady_tick(std::time::Duration::from_millis(100));
    print!("{prefix}");
    let finished = generate::stream(client, request, false).await;
    spinner.finish_and_clear();
    eprintln!(
        "{}",
        generate::summary(&finished?.usage.unwrap_or_default())
    );
    server.shut_down().await;
    Ok(())
}
