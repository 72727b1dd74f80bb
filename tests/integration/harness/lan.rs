//! Hosts that have a network of their own, in namespaces: for firewalls, slow links, losses and partitions, which loopback
//! does not show. Needs root, `ip`, `tc` and `nft`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use super::engine::skipped;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Hosts on one switch. Gone when it is dropped, with whatever runs there.
pub struct Lan {
    prefix: String,
    hosts: Vec<&'static str>,
}

impl Lan {
    /// `None`, and why on standard error, where it cannot be had.
    pub fn new(hosts: &[&'static str]) -> Option<Self> {
        let can = |script: &str| shell(script).is_ok_and(|output| output.status.success());
        if !rustix::process::geteuid().is_root() || !can("command -v ip && command -v tc && command -v nft") {
            skipped("namespaces of the network need root, ip, tc and nft");
            return None;
        }
        let prefix = format!("wt{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let lan = Self { prefix, hosts: hosts.to_vec() };
        if !can(&lan.wiring()) {
            skipped("this kernel lets us make no namespaces of the network");
            return None;
        }
        Some(lan)
    }

    /// One bridge in a namespace of its own, a pair of interfaces for each host.
    fn wiring(&self) -> String {
        let switch = self.namespace("switch");
        let mut script = format!("set -e; ip netns add {switch}; ip -n {switch} link add name br0 type bridge\n");
        for (n, host) in self.hosts.iter().enumerate() {
            let (space, addr) = (self.namespace(host), self.addr(host));
            script += &format!(
                "ip netns add {space}; ip -n {space} link set lo up\n\
                 ip -n {space} link add eth0 type veth peer name port{n} netns {switch}\n\
                 ip -n {space} addr add {addr}/24 dev eth0; ip -n {space} link set eth0 up\n\
                 ip -n {switch} link set port{n} master br0 up\n"
            );
        }
        script + &format!("ip -n {switch} link set br0 up\n")
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}{host}", self.prefix)
    }

    pub fn addr(&self, host: &str) -> IpAddr {
        let place = self.hosts.iter().position(|known| *known == host).unwrap();
        Ipv4Addr::new(10, 77, 0, place as u8 + 1).into()
    }

    pub fn socket(&self, host: &str, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(host), port)
    }

    /// What runs a program on `host`.
    pub fn on(&self, host: &str) -> [String; 4] {
        ["ip".to_owned(), "netns".to_owned(), "exec".to_owned(), self.namespace(host)]
    }

    /// Runs a script on `host`; its output.
    pub fn run(&self, host: &str, script: &str) -> String {
        let [ip, more @ ..] = self.on(host);
        let output = Command::new(ip).args(more).args(["bash", "-ec", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Rules of a firewall for what reaches `host`, each dropped.
    pub fn drop_on(&self, host: &str, rules: &[&str]) {
        let rules: String = rules.iter().map(|rule| format!("nft add rule ip filter input '{rule} drop'\n")).collect();
        let chain = "nft add chain ip filter input '{ type filter hook input priority 0; }'";
        self.run(host, &format!("nft add table ip filter\n{chain}\n{rules}"));
    }

    pub fn heal(&self, host: &str) {
        self.run(host, "nft delete table ip filter");
    }

    /// The text of `/metrics` of a role on `host`.
    pub fn scrape(&self, host: &str, port: u16) -> String {
        let request = r"GET /metrics HTTP/1.0\r\n\r\n";
        self.run(host, &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf '{request}' >&3; cat <&3"))
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for host in self.hosts.iter().chain(&["switch"]) {
            // Never made, if the wiring failed half way.
            let _ = shell(&format!("ip netns del {}", self.namespace(host)));
        }
    }
}

fn shell(script: &str) -> std::io::Result<Output> {
    Command::new("bash").args(["-ec", script]).output()
}
