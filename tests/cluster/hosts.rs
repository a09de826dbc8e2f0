//! Network namespaces as hosts of their own: a bridge in this one, and a pair of interfaces to each
//! of them.

use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

/// Hosts with addresses of their own; they are gone when it is dropped.
pub struct Hosts {
    bridge: String,
    names: Vec<String>,
    subnet: u8,
}

static NEXT: AtomicU8 = AtomicU8::new(0);

impl Hosts {
    /// So many hosts, or `None`, and why, where this is not allowed.
    pub fn new(count: usize) -> Option<Self> {
        let id = std::process::id() % 10_000;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let bridge = format!("pal{id}x{number}");
        let names = (0..count).map(|host| format!("{bridge}h{host}")).collect();
        // Other runs on this machine take other subnets, mostly.
        let hosts = Self {
            bridge,
            names,
            subnet: (id % 200) as u8 + number,
        };
        match hosts.set_up() {
            Ok(()) => Some(hosts),
            Err(why) => {
                eprintln!("SKIPPED: network namespaces need privileges and iproute2: {why}");
                None
            }
        }
    }

    fn set_up(&self) -> Result<(), String> {
        ip(&["link", "add", &self.bridge, "type", "bridge"])?;
        ip(&[
            "addr",
            "add",
            &format!("{}/24", self.address(None)),
            "dev",
            &self.bridge,
        ])?;
        ip(&["link", "set", &self.bridge, "up"])?;
        for (host, name) in self.names.iter().enumerate() {
            let (outer, inner) = (self.outer(host), format!("{name}i"));
            ip(&["netns", "add", name])?;
            ip(&[
                "link", "add", &outer, "type", "veth", "peer", "name", &inner,
            ])?;
            ip(&["link", "set", &inner, "netns", name])?;
            ip(&["link", "set", &outer, "master", &self.bridge, "up"])?;
            ip(&[
                "-n",
                name,
                "addr",
                "add",
                &format!("{}/24", self.address(Some(host))),
                "dev",
                &inner,
            ])?;
            ip(&["-n", name, "link", "set", &inner, "up"])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        Ok(())
    }

    fn outer(&self, host: usize) -> String {
        format!("{}o", self.names[host])
    }

    /// Address of a host, or of this one.
    pub fn address(&self, host: Option<usize>) -> String {
        format!(
            "10.77.{}.{}",
            self.subnet,
            host.map_or(254, |host| host + 1)
        )
    }

    /// Namespace of a host.
    pub fn name(&self, host: usize) -> &str {
        &self.names[host]
    }

    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Cuts a host off, without a word to anyone.
    pub fn cut(&self, host: usize) {
        ip(&["link", "set", &self.outer(host), "down"]).expect("the interface is there");
    }

    /// Ends the cut.
    pub fn heal(&self, host: usize) {
        ip(&["link", "set", &self.outer(host), "up"]).expect("the interface is there");
    }

    /// Delays what goes to every host. False where the kernel cannot.
    pub fn delay(&self, milliseconds: u32) -> bool {
        let delay = format!("{milliseconds}ms");
        (0..self.len()).all(|host| {
            let mut tc = Command::new("tc");
            tc.args([
                "qdisc",
                "add",
                "dev",
                &self.outer(host),
                "root",
                "netem",
                "delay",
                &delay,
            ]);
            tc.output().is_ok_and(|output| output.status.success())
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        // What was never made cannot be removed.
        for name in &self.names {
            let _ = ip(&["netns", "del", name]);
        }
        let _ = ip(&["link", "del", &self.bridge]);
    }
}

fn ip(args: &[&str]) -> Result<(), String> {
    let output = Command::new("ip")
        .args(args)
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "ip {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    ))
}
