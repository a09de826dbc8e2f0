//! Asks a running server one question over gRPC and prints the answer as it comes.
//!
//! ```text
//! palimpsest serve                                    # in another terminal
//! cargo run --example client -- "Name three colours."
//! ```
//!
//! The second argument is the server's address, if it is not the default one.

use std::error::Error;

use palimpsest_proto::v1::generate_event::Event;
use palimpsest_proto::v1::generate_request::Input;
use palimpsest_proto::v1::inference_client::InferenceClient;
use palimpsest_proto::v1::{Chat, ChatMessage, GenerateRequest, KvContract, Stopping};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let question = arguments.next().unwrap_or("Name three colours.".into());
    let server = arguments.next().unwrap_or("http://127.0.0.1:50051".into());

    // What is not set is the server's choice: model, sampling, the rest of the contract.
    let message = ChatMessage::new("user", question);
    let request = GenerateRequest {
        input: Some(Input::Chat(Chat {
            messages: vec![message],
            ..Default::default()
        })),
        stopping: Some(Stopping {
            max_tokens: Some(32),
            ..Default::default()
        }),
        kv: Some(KvContract {
            budget: 256,
            ..Default::default()
        }),
        ..Default::default()
    };
    // Started comes once, then a delta for each piece of text, then Finished once.
    let mut client = InferenceClient::connect(server).await?;
    let mut events = client.generate(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        match event.event {
            Some(Event::Started(started)) => {
                eprintln!("{} bytes reserved", started.reserved_bytes);
            }
            Some(Event::Delta(delta)) => print!("{}", delta.text),
            Some(Event::Finished(finished)) => {
                let usage = finished.usage.unwrap_or_default();
                println!("\n{} entries held per KV head", usage.held_slots);
            }
            Some(Event::PromptLogprobs(_) | Event::Embedding(_) | Event::RetentionMap(_))
            | None => {}
        }
    }
    Ok(())
}
