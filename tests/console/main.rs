//! The console in a real browser, over the program itself. `cargo xtask test` installs Chromium and
//! names it by PALIMPSEST_TEST_CHROMIUM; without it the tests say that they are skipped.
#![forbid(unsafe_code)]

mod browser;
mod pictures;
mod server;
mod views;

use std::fs;

use palimpsest_tests::{STRIDE, tiny_model};

use self::browser::Browser;
use self::server::Server;

/// The browser, where there is one.
fn browser() -> Option<Browser> {
    let Ok(chromium) = std::env::var("PALIMPSEST_TEST_CHROMIUM") else {
        eprintln!(
            "SKIPPED: set PALIMPSEST_TEST_CHROMIUM to the program `chromium`, or run `cargo xtask \
             test`"
        );
        return None;
    };
    Some(Browser::start(&chromium))
}

/// Starting a browser and a server takes longer than most of what is looked at, so one pair of them
/// is looked at from all sides.
#[test]
fn the_console_does_in_a_browser_what_it_says() {
    let Some(mut browser) = browser() else {
        return;
    };
    let model = tiny_model(1);
    let stride = STRIDE.to_string();
    let args = [
        "--threads",
        "1",
        "--kv-memory-mib",
        "64",
        "--stride",
        stride.as_str(),
    ];
    let server = Server::start(model.path(), &args);
    browser.resize(1440, 900);
    browser.open(&server.console());
    views::a_document_is_shaded_as_it_is_read(&mut browser);
    views::arrow_keys_and_the_map_say_what_is_kept(&mut browser);
    views::an_answer_stops_when_it_is_told_to(&mut browser);
    views::a_map_of_8192_tokens_is_drawn_in_time(&mut browser);
    views::a_conversation_goes_back_and_forth(&mut browser);
    views::the_service_is_shown(&mut browser);
    views::sessions_are_listed_and_deleted(&mut browser);
    views::every_view_fits_and_has_names_and_contrast(&mut browser);
    let asked = browser.told("Network.requestWillBeSent");
    assert!(asked.len() > 20, "{} requests", asked.len());
    for request in asked {
        let url = request["request"]["url"].as_str().unwrap_or_default();
        let is_own = url.starts_with(&format!("{}/", server.address)) || url == "about:blank";
        assert!(is_own, "{url}");
    }
    for wrong in ["Runtime.exceptionThrown", "Log.entryAdded"] {
        let told = browser.told(wrong);
        assert!(told.is_empty(), "{told:?}");
    }
}

#[test]
fn a_key_is_asked_for_in_the_page_and_never_taken_from_the_address() {
    let Some(mut browser) = browser() else {
        return;
    };
    let model = tiny_model(1);
    let keys = model.path().join("keys");
    // sha256("secret")
    let digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    fs::write(&keys, format!("people:{digest}\n")).expect("a file");
    let keys = keys.to_str().expect("a path");
    let args = [
        "--threads",
        "1",
        "--kv-memory-mib",
        "64",
        "--api-keys-file",
        keys,
    ];
    let server = Server::start(model.path(), &args);
    views::an_address_is_cleaned(&mut browser, &server);
    views::a_key_is_asked_for(&mut browser, &server);
    views::no_other_page_shows_or_asks(&mut browser, &server);
}
