//! The signals that start a drain.

use crate::serving::Serving;

#[test]
fn sigterm_and_sighup_drain() {
    for signal in ["TERM", "HUP"] {
        let serving = Serving::start(&[]);
        serving.signal(signal);
        let ended = serving.ended();
        assert_eq!(ended.code, Some(0), "{signal}: {}", ended.log);
        assert!(ended.log.ends_with("drained\n"), "{signal}: {}", ended.log);
    }
}
