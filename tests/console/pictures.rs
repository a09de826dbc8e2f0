//! Pictures of the console for README.md and the book. `cargo xtask pictures` makes them.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::browser::Browser;
use crate::server::Server;

#[test]
#[ignore = "it makes files of the documents: `cargo xtask pictures` runs it"]
fn pictures_of_the_console() {
    let folder = PathBuf::from(std::env::var_os("PALIMPSEST_PICTURES").expect("a folder"));
    let model = PathBuf::from(std::env::var_os("PALIMPSEST_TEST_MODEL").expect("a model"));
    let mut browser = crate::browser().expect("a browser");
    let server = Server::start(&model, &["--kv-budget", "1536"]);
    browser.resize(1280, 800);
    browser.scheme("light");
    browser.open(&server.console());
    browser.wait_for("document.getElementById('lamp').className === 'lamp good'");
    read_the_example(&mut browser);
    // The part of the text that the question is about.
    browser.eval(
        "(async () => {
           const {drawn} = await import('./console/document.js');
           const at = drawn.pieces.join('').indexOf('WIPO copyright treaty');
           let token = 0;
           for (let read = 0; read < at; token++) read += drawn.pieces[token].length;
           drawn.reveal(token);
         })()",
    );
    take(&mut browser, &folder.join("console-light.png"));
    browser.scheme("dark");
    take(&mut browser, &folder.join("console-dark.png"));
    browser.scheme("light");
    browser.resize(375, 812);
    browser.eval("scrollTo(0, 0)");
    take(&mut browser, &folder.join("console-narrow.png"));
    browser.resize(1280, 800);
    talk(&mut browser);
    take(&mut browser, &folder.join("console-chat.png"));
    browser.click("nav a[href='#service']");
    browser.wait_for("document.querySelectorAll('#chart-tokens polyline').length === 2");
    ask_on(&mut browser);
    take(&mut browser, &folder.join("console-service.png"));
}

fn read_the_example(browser: &mut Browser) {
    browser.click("#example");
    browser.wait_for("document.getElementById('text').value.length > 30000");
    browser.fill("most", "24");
    browser.click("#read");
    browser.wait_for_long("document.getElementById('answer-note').textContent");
}

fn talk(browser: &mut Browser) {
    browser.click("nav a[href='#chat']");
    browser.fill(
        "system",
        "You are a helpful assistant. Answer in a few sentences.",
    );
    browser.fill("chat-warmth", "0");
    browser.fill("chat-most", "120");
    let questions = [
        "What is a palimpsest?",
        "Why did scribes write over older texts?",
    ];
    for (said, question) in questions.iter().enumerate() {
        browser.fill("message", question);
        browser.click("#send");
        let notes = said + 1;
        browser.wait_for_long(&format!(
            "document.querySelectorAll('.turn .note').length === {notes}"
        ));
    }
}

/// Some requests at once, so that the charts have something to draw.
fn ask_on(browser: &mut Browser) {
    browser.eval(
        "(async () => {
           const ask = (seed) => fetch('v1/completions', {
             method: 'POST', headers: {'content-type': 'application/json'},
             body: JSON.stringify({prompt: 'A story: ', max_tokens: 60, seed, ignore_eos: true}),
           }).then((answer) => answer.text());
           for (let round = 0; round < 6; round++) {
             await Promise.all(Array.from({length: 1 + (round * 3) % 5}, (_, i) => ask(i)));
             await new Promise((resolve) => setTimeout(resolve, 700));
           }
         })()",
    );
}

fn take(browser: &mut Browser, path: &Path) {
    // What was changed is painted before the picture.
    browser.eval(
        "new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))",
    );
    let taken = browser.call("Page.captureScreenshot", json!({"format": "png"}));
    let picture = STANDARD.decode(taken["data"].as_str().expect("a picture"));
    let picture = picture.expect("base64");
    println!("{}: {} bytes", path.display(), picture.len());
    fs::write(path, picture).expect("the folder can be written");
}
