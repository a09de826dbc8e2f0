//! Chromium without a window, driven by the protocol of its developer tools over a pipe.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Time for the browser to answer, or for a page to become what is expected.
const PATIENCE: Duration = Duration::from_secs(20);
/// The browser reads commands from descriptor 3 and writes answers to descriptor 4.
const SCRIPT: &str = r#"exec "$@" 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1"#;
const FLAGS: [&str; 11] = [
    "--headless=new",
    "--remote-debugging-pipe",
    // Tests may run as root, where its sandbox does not work.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--font-render-hinting=none",
    "--hide-scrollbars",
];

/// A browser with one page.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    next: u64,
    session: Option<String>,
    /// What the page's protocol told, in order.
    events: Vec<Value>,
    _profile: TempDir,
}

impl Browser {
    /// Starts the program `chromium`.
    pub fn start(chromium: &str) -> Self {
        let profile = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", chromium]).args(FLAGS);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a shell");
        let commands = child.stdin.take().expect("a pipe");
        let mut answers = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, messages) = channel();
        std::thread::spawn(move || {
            let mut message = Vec::new();
            // Each message ends with a zero byte.
            while answers
                .read_until(0, &mut message)
                .is_ok_and(|read| read > 0)
            {
                message.pop();
                let message = serde_json::from_slice(&std::mem::take(&mut message));
                if send.send(message.expect("JSON")).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            child,
            commands,
            messages,
            next: 0,
            session: None,
            events: Vec::new(),
            _profile: profile,
        };
        let page = browser.call("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": page["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", attach);
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and waits for its result.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let mut command = json!({"id": id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let text = format!("{command}\0");
        let sent = self.commands.write_all(text.as_bytes());
        sent.expect("the browser reads commands");
        loop {
            let mut message = self
                .messages
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|error| panic!("{method}: {error}"));
            if message["id"] != json!(id) {
                self.events.push(message);
                continue;
            }
            assert!(message.get("error").is_none(), "{method}: {message}");
            return message["result"].take();
        }
    }

    /// The value of an expression in the page, which may be a promise.
    pub fn eval(&mut self, expression: &str) -> Value {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true,
            "userGesture": true,
        });
        let mut found = self.call("Runtime.evaluate", parameters);
        let thrown = found.get("exceptionDetails");
        assert!(thrown.is_none(), "{expression}: {thrown:?}");
        found["result"]["value"].take()
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        self.wait_within(expression, PATIENCE);
    }

    /// The same, where a real model has to read and to answer first.
    pub fn wait_for_long(&mut self, expression: &str) {
        self.wait_within(expression, 30 * PATIENCE);
    }

    fn wait_within(&mut self, expression: &str, limit: Duration) {
        let started = Instant::now();
        while self.eval(&format!("Boolean({expression})")) != json!(true) {
            if started.elapsed() > limit {
                let text = self.eval("document.body.innerText");
                panic!("{expression} never becomes true:\n{text}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Opens an address, and waits until the console has shown a view.
    pub fn open(&mut self, address: &str) {
        // Another address of the same page would not be loaded anew.
        self.call("Page.navigate", json!({"url": "about:blank"}));
        self.call("Page.navigate", json!({"url": address}));
        self.wait_for("document.readyState === 'complete'");
        self.wait_for("document.querySelector('nav a[aria-current]')");
    }

    /// Clicks an element that a selector finds.
    pub fn click(&mut self, selector: &str) {
        self.eval(&format!("document.querySelector({selector:?}).click()"));
    }

    /// Gives a field a value, as typing does.
    pub fn fill(&mut self, id: &str, value: &str) {
        self.eval(&format!(
            "(() => {{ const field = document.getElementById({id:?}); field.value = {value:?};
              field.dispatchEvent(new Event('input', {{bubbles: true}})); }})()"
        ));
    }

    /// Presses a key that has no text, or Enter.
    pub fn press(&mut self, key: &str, code: u32) {
        let mut event = json!({
            "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code,
        });
        if key == "Enter" {
            event["text"] = json!("\r");
        }
        self.call("Input.dispatchKeyEvent", event.clone());
        event["type"] = json!("keyUp");
        self.call("Input.dispatchKeyEvent", event);
    }

    /// Makes the window so wide and high, in pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let size = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", size);
    }

    /// Takes the scheme `light` or `dark` for the system's.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// What has been told by this name so far.
    pub fn told(&self, name: &str) -> Vec<&Value> {
        let told = self.events.iter().filter(|event| event["method"] == name);
        told.map(|event| &event["params"]).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // One that has ended already is what we want.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
