//! Sessions of conversations: what a template writes, and what the log holds of it.

use palimpsest_proto::internal::v1::ModelInfo;
use palimpsest_proto::v1::{Tool, ToolMode};

use super::*;

fn chat(content: &str) -> Option<Input> {
    Some(Input::Chat(user(content)))
}

/// A script whose model has another template.
fn with_template(mut script: Script, template: &str) -> Script {
    let model: &mut ModelInfo = script.rank.model.as_mut().unwrap();
    model.chat_template = template.into();
    script
}

/// The tokens of a conversation as the default rendering has them, in pieces as they came.
fn turns(server: &Server, pieces: &[&str]) -> Vec<u32> {
    pieces.iter().flat_map(|piece| ids(server, piece)).collect()
}

#[tokio::test]
async fn a_turn_adds_what_the_template_writes_beyond_the_log() {
    let server = Server::with(Script::saying("Hello.", 0, 1), Limits::default()).await;
    server.create("c").await;
    server
        .generate(request("c", chat("one"), 20))
        .await
        .unwrap();
    let said = server.generate(request("c", chat("two"), 3)).await.unwrap();
    assert_eq!(said.text, "Hel");
    assert!(said.finished.usage.unwrap().warnings.is_empty());
    server
        .generate(request("c", chat("three"), 20))
        .await
        .unwrap();

    let log = server.log("c").await;
    let expected = turns(
        &server,
        &[
            "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n",
            "H",
            "e",
            "l",
            "l",
            "o",
            ".",
            "<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
            "H",
            "e",
            "l",
            "<|im_end|>\n<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n",
            "H",
            "e",
            "l",
            "l",
            "o",
            ".",
        ],
    );
    // The answer came as single bytes, of which `Hello` tokenised anew would be fewer tokens.
    assert_eq!(log.tokens, expected);
    let roles: Vec<_> = log.messages.iter().map(|one| one.role.as_str()).collect();
    assert_eq!(roles, ["user", "assistant"].repeat(3));
    assert_eq!(log.messages[3].content, "Hel");
    assert_eq!(server.show("c").await.unwrap().messages, 6);
}

/// A request for no token reads like `Append`: nobody has said anything in it.
#[tokio::test]
async fn a_request_for_no_token_leaves_no_message_of_the_assistant() {
    let server = Server::with(Script::saying("Yes", 0, 1), Limits::default()).await;
    server.create("c").await;
    let read = server.generate(request("c", chat("one"), 0)).await.unwrap();
    assert_eq!(read.text, "");
    let log = server.log("c").await;
    let roles: Vec<_> = log.messages.iter().map(|one| one.role.as_str()).collect();
    assert_eq!(roles, ["user"]);
    assert_eq!(
        log.tokens,
        ids(&server, "<|im_start|>user\none<|im_end|>\n")
    );
}

#[tokio::test]
async fn messages_are_read_without_an_answer_and_answered_later() {
    let server = Server::with(Script::saying("Yes", 0, 1), Limits::default()).await;
    server.create("c").await;
    let system = Chat {
        messages: vec![message("system", "be brief")],
        ..Default::default()
    };
    server
        .append("c", append_request::Input::Chat(system))
        .await
        .unwrap();
    server
        .append("c", append_request::Input::Chat(user("well?")))
        .await
        .unwrap();
    let said = server.generate(request("c", None, 9)).await.unwrap();
    assert_eq!(said.text, "Yes");
    let expected = turns(
        &server,
        &[
            "<|im_start|>system\nbe brief<|im_end|>\n",
            "<|im_start|>user\nwell?<|im_end|>\n",
            "<|im_start|>assistant\n",
            "Y",
            "e",
            "s",
        ],
    );
    assert_eq!(server.log("c").await.tokens, expected);
}

#[tokio::test]
async fn what_an_answer_had_to_begin_with_is_part_of_its_message() {
    let server = Server::with(Script::saying(" more", 0, 1), Limits::default()).await;
    server.create("c").await;
    let begun = Chat {
        answer_prefix: "No".into(),
        ..user("yes?")
    };
    let said = server
        .generate(request("c", Some(Input::Chat(begun)), 9))
        .await
        .unwrap();
    assert_eq!(said.text, " more");
    let log = server.log("c").await;
    assert_eq!(log.messages[1].content, "No more");
    let said = server.generate(request("c", chat("so?"), 9)).await.unwrap();
    assert!(said.finished.usage.unwrap().warnings.is_empty());
    assert_eq!(
        server.log("c").await.tokens[..log.tokens.len()],
        log.tokens[..]
    );
}

/// A call that was begun for the model is part of its message, so the next turn goes on from it.
#[tokio::test]
async fn a_call_that_was_begun_is_part_of_its_message() {
    let script = Script::saying("{\"a\": 1}}", 0, 1);
    let server = Server::with(script, Limits::default()).await;
    server.create("c").await;
    let with_tool = |content: &str, mode: ToolMode| Chat {
        tools: vec![Tool {
            name: "add".into(),
            ..Default::default()
        }],
        tool_mode: mode.into(),
        ..user(content)
    };
    let forced = Chat {
        tool_name: "add".into(),
        ..with_tool("one", ToolMode::Required)
    };
    server
        .generate(request("c", Some(Input::Chat(forced)), 20))
        .await
        .unwrap();
    let log = server.log("c").await;
    let whole = "{\"name\": \"add\", \"arguments\": {\"a\": 1}}";
    assert_eq!(log.messages[1].content, whole);
    let next = with_tool("two", ToolMode::Auto);
    let said = server
        .generate(request("c", Some(Input::Chat(next)), 20))
        .await
        .unwrap();
    assert!(said.finished.usage.unwrap().warnings.is_empty());
    let grown = server.log("c").await.tokens;
    assert_eq!(grown[..log.tokens.len()], log.tokens[..]);
    let open = Chat {
        continue_final_message: true,
        ..user("three")
    };
    let refused = server.generate(request("c", Some(Input::Chat(open)), 9));
    let field = refused.await.unwrap_err().field;
    assert_eq!(field, Some("chat.continue_final_message"));
}

/// A template that leaves out what earlier answers thought: the log must be what it writes.
#[tokio::test]
async fn a_template_that_changes_the_past_has_the_conversation_read_anew() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' \
                    and not loop.last %}{{ m.content.split('</t>')[-1] }}{% else %}{{ m.content \
                    }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                    %}<|im_start|>assistant\n{% endif %}";
    let script = with_template(Script::saying("<t>hm</t>ok", 0, 1), template);
    let server = Server::with(script, Limits::default()).await;
    server.create("c").await;
    let first = server
        .generate(request("c", chat("one"), 40))
        .await
        .unwrap();
    assert_eq!(first.text, "<t>hm</t>ok");
    let second = server
        .generate(request("c", chat("two"), 40))
        .await
        .unwrap();
    let warnings = second.finished.usage.unwrap().warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains("anew")),
        "{warnings:?}"
    );
    let expected = turns(
        &server,
        &[
            "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n\
             <|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n",
            "<",
            "t",
            ">",
            "h",
            "m",
            "<",
            "/",
            "t",
            ">",
            "o",
            "k",
        ],
    );
    assert_eq!(server.log("c").await.tokens, expected);
    // The messages are those that were said.
    assert_eq!(server.log("c").await.messages[1].content, "<t>hm</t>ok");
}

/// The template trims messages: an answer with blanks around it is read as the template has it.
#[tokio::test]
async fn a_template_that_trims_an_answer_is_followed() {
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}[/]{% endfor %}{% \
                    if add_generation_prompt %}[assistant]{% endif %}";
    let script = with_template(Script::saying("so \n", 0, 1), template);
    let server = Server::with(script, Limits::default()).await;
    server.create("c").await;
    server.generate(request("c", chat("a"), 9)).await.unwrap();
    let said = server.generate(request("c", chat("b"), 9)).await.unwrap();
    assert_eq!(said.finished.usage.unwrap().warnings.len(), 1);
    let tokens = server.log("c").await.tokens;
    let before = ids(&server, "[user]a[/][assistant]so[/][user]b[/][assistant]");
    assert_eq!(tokens[..before.len()], before[..]);
}

#[tokio::test]
async fn a_conversation_and_plain_text_do_not_mix() {
    let server = Server::start(Limits::default()).await;
    server.create("c").await;
    server.create("t").await;
    server.generate(request("c", chat("one"), 2)).await.unwrap();
    server.generate(request("t", text("one"), 2)).await.unwrap();
    let ids = Some(Input::TokenIds(TokenIds { ids: vec![1] }));
    for wrong in [
        request("c", text("two"), 2),
        request("c", ids, 2),
        request("t", chat("two"), 2),
    ] {
        assert_eq!(reason(server.generate(wrong).await), Reason::BadSession);
    }
    let prefixed = Chat {
        answer_prefix: "x".into(),
        ..user("two")
    };
    let refused = server
        .append("c", append_request::Input::Chat(prefixed))
        .await;
    assert_eq!(refused.unwrap_err().field, Some("chat.answer_prefix"));
    // The refused ones left nothing.
    assert_eq!(server.show("c").await.unwrap().messages, 2);
}

/// Templates as known models have them, and whether a second turn is tokenised anew.
#[tokio::test]
async fn templates_of_known_models_go_on_from_the_log() {
    // SmolLM2 and Qwen2: a system line of its own where there is none.
    let chatml = "{% for m in messages %}{% if loop.first and m.role != 'system' \
                  %}<|im_start|>system\nYou are helpful<|im_end|>\n{% endif %}<|im_start|>{{ \
                  m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt \
                  %}<|im_start|>assistant\n{% endif %}";
    // Llama 3.
    let headers = "{{ bos_token }}{% for m in messages %}(head){{ m.role }}(/head)\n\n{{ m.content \
                   | trim }}(eot){% endfor %}{% if add_generation_prompt \
                   %}(head)assistant(/head)\n\n{% endif %}";
    // Mistral: a blank stands before each answer, which the model does not make.
    let brackets = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ \
                    m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% \
                    endfor %}";
    for (template, is_anew) in [(chatml, false), (headers, false), (brackets, true)] {
        let script = with_template(Script::saying("fine", 0, 1), template);
        let server = Server::with(script, Limits::default()).await;
        server.create("c").await;
        server
            .generate(request("c", chat("one"), 20))
            .await
            .unwrap();
        let log = server.log("c").await.tokens;
        let said = server
            .generate(request("c", chat("two"), 20))
            .await
            .unwrap();
        let warnings = said.finished.usage.unwrap().warnings;
        assert_eq!(warnings.is_empty(), !is_anew, "{template}");
        let tokens = server.log("c").await.tokens;
        assert_eq!(tokens.starts_with(&log), !is_anew, "{template}");
    }
}
