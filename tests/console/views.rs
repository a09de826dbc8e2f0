//! What is looked at in the console. Each takes the page as the one before it left it.

use serde_json::{Value, json};

use crate::browser::Browser;
use crate::server::Server;

/// Draws of a large map, of which the middle one counts.
const DRAWS: usize = 15;
/// Milliseconds that drawing a map of 8,192 tokens may take, layout and style with it.
const DRAW_MILLIS: f64 = 50.0;
/// Tokens of the answers that are stopped.
const ENDLESS: u32 = 4000;

/// A document is read under a small budget: the map, the text and the figures follow what the
/// server tells, and the memory stays flat.
pub fn a_document_is_shaded_as_it_is_read(browser: &mut Browser) {
    browser.wait_for("document.getElementById('lamp').className === 'lamp good'");
    let text = "All that was written here is scraped off again.\n".repeat(40);
    browser.fill("text", &text);
    browser.fill("question", "What is left?");
    browser.eval(
        "(() => { const slider = document.getElementById('budget'); slider.value = 0;
                   slider.dispatchEvent(new Event('input')); })()",
    );
    for (id, value) in [("policy", "keydiff"), ("memory", "none"), ("most", "12")] {
        browser.fill(id, value);
    }
    // Every text that a figure ever had, also of those that were never painted.
    browser.eval(
        "window.told = {};
         for (const id of ['fact-read', 'held', 'full']) {
           told[id] = [];
           new MutationObserver((changes) => {
             for (const change of changes) told[id].push(change.addedNodes[0].data);
           }).observe(document.getElementById(id), {childList: true});
         }",
    );
    browser.click("#read");
    browser.wait_for("document.getElementById('answer-note').textContent");
    let error = browser.eval("document.getElementById('document-error').textContent");
    assert_eq!(error, json!(""));

    let told = browser.eval("told");
    let read = numbers(&told["fact-read"]);
    assert!(read.len() > 20, "{told}");
    assert!(read.is_sorted(), "{read:?}");
    let full = numbers(&told["full"]);
    assert!(full.is_sorted() && full.first() < full.last(), "{full:?}");
    // A budget of 64 entries and a stride of 16, whatever was read.
    let mut held = numbers(&told["held"]);
    held.dedup();
    let most = held.iter().copied().fold(0.0, f64::max);
    assert!(full.last() > Some(&(10.0 * most)), "{held:?} of {full:?}");

    let shown = browser.eval(
        "(async () => {
           const {drawn} = await import('./console/document.js');
           await new Promise(requestAnimationFrame);
           const spans = [...document.querySelectorAll('#tokens span')];
           const wrong = spans.filter((span, i) =>
             span.className !== 'k' + Math.ceil(drawn.shares[i] * 8 / 255));
           const kinds = new Set(drawn.shares);
           return {tokens: drawn.pieces.length, spans: spans.length, wrong: wrong.length,
                   kinds: kinds.size, kept: drawn.kept, last: drawn.shares.at(-1),
                   text: document.getElementById('tokens').textContent};
         })()",
    );
    assert_eq!(shown["spans"], shown["tokens"]);
    assert_eq!(shown["wrong"], 0, "{shown}");
    assert!(
        shown["kinds"].as_u64() > Some(2),
        "heads keep different tokens: {shown}"
    );
    assert!(
        shown["kept"].as_f64() < Some(0.1) && shown["last"] == 255,
        "{shown}"
    );
    let page = shown["text"].as_str().expect("a text");
    assert!(
        page.contains(&text) && page.contains("What is left?"),
        "{page}"
    );
}

/// The numbers at the beginning of texts, without those that have none.
fn numbers(texts: &Value) -> Vec<f64> {
    let texts = texts.as_array().expect("a list").iter();
    let number = |text: &Value| {
        let text = text.as_str()?;
        let mut words = text.split(' ');
        let number: f64 = words.next()?.replace(',', "").parse().ok()?;
        Some(match words.next() {
            Some("KB") => number * 1e3,
            Some("MB") => number * 1e6,
            _ => number,
        })
    };
    texts.filter_map(number).collect()
}

pub fn arrow_keys_and_the_map_say_what_is_kept(browser: &mut Browser) {
    browser.eval("document.getElementById('tokens').focus()");
    browser.press("ArrowRight", 39);
    browser.press("ArrowRight", 39);
    let said = browser.eval("document.getElementById('at').textContent");
    let said = said.as_str().expect("a text");
    assert!(
        said.starts_with("1: ") && said.contains("all KV heads"),
        "{said}"
    );
    browser.press("ArrowDown", 40);
    let marked = browser.eval(
        "[...document.querySelectorAll('#tokens span')].findIndex(
                               (span) => span.className.includes('here'))",
    );
    assert_eq!(marked, json!(17));
    let label = browser.eval("document.getElementById('map').getAttribute('aria-label')");
    let label = label.as_str().expect("a label");
    assert!(label.contains("tokens were read"), "{label}");
}

/// Has the answers of this page go on and on.
fn without_end(browser: &mut Browser) {
    browser.eval(
        "window.real ??= window.fetch;
         window.fetch = (path, options) => {
           if (!String(path).endsWith('completions')) return real(path, options);
           const body = {...JSON.parse(options.body), ignore_eos: true};
           return real(path, {...options, body: JSON.stringify(body)});
         }; 0",
    );
}

pub fn an_answer_stops_when_it_is_told_to(browser: &mut Browser) {
    without_end(browser);
    browser.fill("most", &ENDLESS.to_string());
    browser.click("#read");
    browser.wait_for("document.getElementById('answer').textContent.length > 3");
    browser.click("#stop");
    browser.wait_for("document.getElementById('answer-note').textContent === 'Stopped.'");
    let disabled =
        browser.eval("['stop', 'read'].map((id) => document.getElementById(id).disabled)");
    assert_eq!(disabled, json!([true, false]));
}

/// Every second draw changes every token, which is more than any boundary does.
pub fn a_map_of_8192_tokens_is_drawn_in_time(browser: &mut Browser) {
    let took = browser.eval(&format!(
        "(async () => {{
           const {{drawn}} = await import('./console/document.js');
           const words = Array.from({{length: 8192}}, (_, i) => i % 11 ? 'word ' : 'line\\n');
           drawn.begin(words);
           const maps = [0, 1].map((odd) =>
             Uint8Array.from(words, (_, i) => (i + odd) % 2 ? 255 : (i * 7) % 200));
           const took = [];
           for (let i = 0; i < {DRAWS}; i++) {{
             await new Promise(requestAnimationFrame);
             const from = performance.now();
             drawn.update(maps[i % 2]);
             // Style and layout of all that changed are part of it.
             document.body.offsetHeight;
             getComputedStyle(drawn.spans[0]).backgroundColor;
             took.push(performance.now() - from);
           }}
           return took;
         }})()"
    ));
    let mut took: Vec<f64> = took
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_f64)
        .collect();
    took.sort_by(f64::total_cmp);
    let middle = took[DRAWS / 2];
    println!(
        "a map of 8,192 tokens: {middle:.1} ms, {:.1} ms at most",
        took[DRAWS - 1]
    );
    assert!(middle < DRAW_MILLIS, "{took:?}");
}

pub fn a_conversation_goes_back_and_forth(browser: &mut Browser) {
    browser.click("nav a[href='#chat']");
    browser.wait_for("!document.getElementById('view-chat').hidden");
    browser.wait_for("document.activeElement.id === 'chat-title'");
    browser.fill("system", "Be brief.");
    browser.fill("chat-most", "6");
    for turn in 1..=2 {
        browser.fill("message", "<b>Who</b> goes there?");
        browser.eval("document.getElementById('message').focus()");
        browser.press("Enter", 13);
        browser.wait_for(&format!(
            "document.querySelectorAll('.turn .note').length === {turn}"
        ));
    }
    let shown = browser.eval("document.querySelector('.turn.mine .prose').textContent");
    assert_eq!(shown, json!("<b>Who</b> goes there?"));
    // The second question came with the first answer.
    let posts = browser.told("Network.requestWillBeSent").into_iter();
    let mut bodies = posts.filter_map(|post| post["request"]["postData"].as_str());
    let last: Value = serde_json::from_str(bodies.next_back().expect("a body")).expect("JSON");
    let messages = last["messages"].as_array().expect("a list").iter();
    let roles: Vec<&Value> = messages.map(|one| &one["role"]).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user"]);

    browser.fill("chat-most", &ENDLESS.to_string());
    browser.fill("message", "Go on.");
    browser.click("#send");
    browser
        .wait_for("[...document.querySelectorAll('.turn .prose')].at(-1).textContent.length > 3");
    browser.click("#chat-stop");
    browser.wait_for("!document.getElementById('send').hidden");
    let note = browser.eval("[...document.querySelectorAll('.turn .note')].at(-1).textContent");
    assert_eq!(note, json!("stopped"));
    browser.click("#forget");
    browser.wait_for("document.querySelectorAll('.turn').length === 0");
}

pub fn the_service_is_shown(browser: &mut Browser) {
    browser.click("nav a[href='#service']");
    browser.wait_for("document.querySelectorAll('#ranks tr').length === 1");
    let tiles = browser.eval("document.getElementById('tiles').innerText");
    let tiles = tiles.as_str().expect("a text");
    assert!(
        tiles.contains("ready") && tiles.contains("First token"),
        "{tiles}"
    );
    // Both answers that were stopped.
    let stopped = "[...document.querySelectorAll('#outcomes tr')].some(
                   (row) => row.innerText.replace(/\\s+/g, ' ').trim() === 'cancelled 2')";
    browser.wait_for(stopped);
    let latency = browser.eval("document.getElementById('latency').innerText");
    let latency = latency.as_str().expect("a text");
    assert!(
        latency.contains("ms") && !latency.contains("NaN"),
        "{latency}"
    );
    browser.wait_for("document.querySelectorAll('#chart-tokens polyline').length === 2");
}

pub fn sessions_are_listed_and_deleted(browser: &mut Browser) {
    let made = browser.eval(
        "fetch('v1/sessions', {method: 'POST', headers: {'content-type': 'application/json'},
                               body: JSON.stringify({session_id: 'talk', kv_budget: 64})})
           .then((made) => made.status)",
    );
    assert_eq!(made, json!(200));
    browser.click("nav a[href='#sessions']");
    browser.wait_for("document.querySelectorAll('#sessions tr').length === 1");
    let row = browser.eval("document.getElementById('sessions').innerText");
    assert!(
        row.as_str()
            .is_some_and(|row| row.contains("talk") && row.contains("64")),
        "{row}"
    );
    browser.eval("window.confirm = () => true; 0");
    browser.click("button[aria-label='Delete talk']");
    browser.wait_for("document.querySelectorAll('#sessions tr').length === 0");
    browser.wait_for("!document.getElementById('no-sessions').hidden");
}

/// Colours that text has, each on what it stands on.
const PAIRS: [[&str; 2]; 8] = [
    ["--ink", "--paper"],
    ["--ink", "--card"],
    ["--soft", "--card"],
    ["--soft", "--paper"],
    ["--gone", "--card"],
    ["--shade-ink", "--shade"],
    ["--accent-ink", "--accent"],
    ["--bad", "--card"],
];

pub fn every_view_fits_and_has_names_and_contrast(browser: &mut Browser) {
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        contrasts(browser, scheme);
    }
    for width in [375, 1440] {
        browser.resize(width, 800);
        for view in ["document", "chat", "service", "sessions"] {
            browser.click(&format!("nav a[href='#{view}']"));
            browser.wait_for(&format!("!document.getElementById('view-{view}').hidden"));
            let wide = browser.eval("document.documentElement.scrollWidth");
            assert!(
                wide.as_u64() <= Some(u64::from(width)),
                "{view}: {wide} of {width}"
            );
            names(browser, view);
        }
    }
    browser.resize(1440, 900);
    browser.scheme("light");
}

/// Text has 4.5 times the light of what it stands on, or the reverse.
fn contrasts(browser: &mut Browser, scheme: &str) {
    let pairs = json!(PAIRS);
    let found = browser.eval(&format!(
        "(() => {{
           const light = (name) => {{
             const probe = document.body.appendChild(document.createElement('i'));
             probe.style.color = `var(${{name}})`;
             const parts = getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map((c) =>
               c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
             probe.remove();
             return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05;
           }};
           return {pairs}.map((pair) => {{
             const [one, other] = pair.map(light);
             return Math.max(one, other) / Math.min(one, other);
           }});
         }})()"
    ));
    let found = found.as_array().expect("a list");
    for (pair, contrast) in PAIRS.iter().zip(found) {
        assert!(
            contrast.as_f64() >= Some(4.5),
            "{scheme}: {pair:?} has {contrast}"
        );
    }
}

/// Everything that can be worked has a name for those who do not see it.
fn names(browser: &mut Browser, view: &str) {
    const WORKED: [&str; 10] = [
        "button",
        "textbox",
        "slider",
        "combobox",
        "checkbox",
        "link",
        "spinbutton",
        "image",
        "table",
        "log",
    ];
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let mut found = 0;
    for node in tree["nodes"].as_array().expect("a list") {
        let role = node["role"]["value"].as_str().unwrap_or_default();
        if node["ignored"] == json!(true) || !WORKED.contains(&role) {
            continue;
        }
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.is_empty(), "{view}: a {role} has no name: {node}");
        found += 1;
    }
    assert!(found > 5, "{view}: {found}");
}

/// Neither a query nor a fragment stays that is not a view's.
pub fn an_address_is_cleaned(browser: &mut Browser, server: &Server) {
    for foul in ["?key=secret", "#key=secret", "?api_key=secret#chat"] {
        browser.open(&format!("{}{foul}", server.console()));
        browser.wait_for("!document.getElementById('notice').hidden");
        assert_eq!(
            browser.eval("location.href"),
            json!(server.console()),
            "{foul}"
        );
        assert_eq!(browser.eval("sessionStorage.length"), json!(0), "{foul}");
        browser.wait_for("document.getElementById('key-dialog').open");
    }
}

pub fn a_key_is_asked_for(browser: &mut Browser, server: &Server) {
    browser.open(&server.console());
    browser.wait_for("document.getElementById('key-dialog').open");
    assert_eq!(browser.eval("document.activeElement.id"), json!("key"));
    browser.fill("key", "wrong");
    browser.press("Enter", 13);
    browser.wait_for("document.getElementById('key-why').textContent.includes('does not take')");
    browser.fill("key", "secret");
    browser.press("Enter", 13);
    browser.wait_for("document.getElementById('lamp').className === 'lamp good'");
    assert_eq!(browser.eval("sessionStorage.length"), json!(1));
    assert_eq!(
        browser.eval("localStorage.length + document.cookie.length"),
        json!(0)
    );
    assert_eq!(browser.eval("location.href"), json!(server.console()));
    let urls = browser.told("Network.requestWillBeSent").into_iter();
    let urls: Vec<&str> = urls
        .filter_map(|one| one["request"]["url"].as_str())
        .collect();
    let leaks = urls.iter().filter(|url| url.contains("secret")).count();
    // Those that were typed in as addresses: the two with a query.
    assert_eq!(leaks, 2, "{urls:?}");
}

/// A page of another origin can neither show the console nor ask the server: the same machine under
/// another name, because browsers let no page of another network come this far.
pub fn no_other_page_shows_or_asks(browser: &mut Browser, server: &Server) {
    let other = server.address.replace("127.0.0.1", "localhost");
    browser.call("Page.navigate", json!({"url": format!("{other}/health")}));
    browser.wait_for("document.body && document.body.innerText === 'ok'");
    let asked = browser.eval(&format!(
        "fetch('{}/v1/models', {{headers: {{authorization: 'Bearer secret'}}}})
           .then(() => 'answered', () => 'refused')",
        server.address
    ));
    assert_eq!(asked, json!("refused"));
    browser.eval(&format!(
        "(() => {{ const frame = document.createElement('iframe'); frame.src = '{}';
                   document.body.append(frame); }})()",
        server.console()
    ));
    let is_told = |browser: &Browser| {
        let told = browser.told("Log.entryAdded").into_iter();
        let mut texts = told.filter_map(|one| one["entry"]["text"].as_str().map(str::to_owned));
        texts.any(|text| text.contains("frame-ancestors"))
    };
    for _ in 0..100 {
        if is_told(browser) {
            return;
        }
        browser.eval("new Promise((resolve) => setTimeout(resolve, 20))");
    }
    panic!(
        "the console was not refused: {:?}",
        browser.told("Log.entryAdded")
    );
}
