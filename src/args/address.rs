//! Addresses to listen on, as flags take them.

use std::net::{SocketAddr, ToSocketAddrs};

/// `address:port` or `host:port`. Of a host with several addresses one of IPv4 is taken, where it
/// has one: `localhost` is then what clients find under 127.0.0.1.
pub fn listening(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let names_port = text
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !names_port {
        return Err("give a host and a port, such as localhost:8000 or 0.0.0.0:8000".to_owned());
    }
    let found: Vec<SocketAddr> = text
        .to_socket_addrs()
        .map_err(|error| format!("this host is not known here: {error}"))?
        .collect();
    let first_choice = found.iter().find(|address| address.is_ipv4());
    first_choice
        .or(found.first())
        .copied()
        .ok_or_else(|| "this host has no address".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_taken_by_name() {
        for text in ["127.0.0.1:8000", "[::1]:8000", "0.0.0.0:0"] {
            assert_eq!(listening(text), Ok(text.parse().expect("an address")));
        }
        let local = listening("localhost:8000").expect("every machine has one");
        assert!(local.ip().is_loopback() && local.port() == 8000, "{local}");
        for bad in [
            "",
            ":8000",
            "8000",
            "localhost",
            "localhost:http",
            "localhost:70000",
        ] {
            let error = listening(bad).expect_err(bad);
            assert!(error.contains("localhost:8000"), "{bad}: {error}");
        }
        let unknown = listening("nowhere.invalid:80").expect_err("no such host");
        assert!(unknown.contains("not known here"), "{unknown}");
    }
}
