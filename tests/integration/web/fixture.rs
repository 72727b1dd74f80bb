//! A fleet on a board: as many nodes as asked for, always the same, some of them in trouble.

use serde_json::{Value, json};
use warmd::web::{Document, Key, LiveBoard};

/// Of the documents' times; what the page says of them depends on today.
fn now() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

pub fn node_key(n: usize) -> Key {
    format!("node/{}", id(n)).parse().unwrap()
}

pub fn id(n: usize) -> String {
    format!("{n:04}{}", "k7d2m0qv".repeat(6))
}

pub fn put(board: &LiveBoard, key: &Key, document: &Value) {
    board.set(key, Document::new(document).unwrap()).unwrap();
}

/// `nodes` nodes and `identities` identities.
pub fn fleet(nodes: usize, identities: usize) -> LiveBoard {
    let board = LiveBoard::default();
    let server = json!({
        "name": "metadata-0", "version": "0.1.0", "cluster": "eu-prod", "epoch": 3, "backend": "file",
        "started_at": now() - 86_400_000, "nodes": nodes, "ready": nodes, "draining": 0, "artifacts": identities,
        "identities": identities,
    });
    put(&board, &"server".parse().unwrap(), &server);
    for n in 0..nodes {
        put(&board, &node_key(n), &node(n, nodes));
    }
    for n in 0..identities {
        put(&board, &format!("identity/{n:08x}{}", "9f31c0de".repeat(7)).parse().unwrap(), &identity(n, nodes));
    }
    board
}

pub fn node(n: usize, nodes: usize) -> Value {
    let state = match n % 23 {
        7 => "draining",
        11 => "stale",
        _ => "ready",
    };
    let transfers: Vec<Value> = (n % 5 == 1).then(|| transfer(n, nodes)).into_iter().collect();
    json!({
        "id": id(n), "name": format!("gpu-{n:04}"), "endpoint": format!("10.0.{}.{}:4780", n / 250, n % 250),
        "zone": format!("eu-1{}", (b'a' + (n / 12 % 4) as u8) as char), "rack": format!("{}", n / 6 % 20), "region": "eu",
        "state": state, "seen_at": now() - 1000 * (n as u64 % 30), "version": "0.1.0",
        "started_at": now() - 3_600_000 * (n as u64 % 90), "discovery": "server",
        "carrier": if n % 17 == 5 { "tcp" } else { "quic" },
        "engine": {"state": "ready", "adapters": n % 4},
        "disk": {"used": (n as u64 % 90) << 30, "limit": 100_u64 << 30, "free": 400_u64 << 30},
        "totals": {"received": (n as u64 * 977) << 20, "sent": (n as u64 * 640) << 20, "hits": n % 40,
                   "misses": {"nobody-has-it": n % 3, "not-installed": n % 2, "not-used": usize::from(n.is_multiple_of(10))}},
        "skew_ms": n as i64 % 9 - 4, "network": {"mtu": 1452},
        "policy": {"version": 12, "expires_at": now() + 86_400_000 * 20},
        "starts": (0..n % 4 + 1).map(|at| start(n, at)).collect::<Vec<_>>(),
        "transfers": transfers,
        "gpus": (0..n % 3).map(|index| json!({
            "index": index, "name": "NVIDIA H100 80GB HBM3", "utilization": n * 7 % 101,
            "memory": {"used": (n as u64 % 80) << 30, "total": 80_u64 << 30},
        })).collect::<Vec<_>>(),
        "problems": problems(n),
    })
}

fn start(n: usize, at: usize) -> Value {
    let (outcome, reason) = match (n + at) % 6 {
        0 => ("cold", Value::from("nobody-has-it")),
        1 => ("partly", Value::from("not-installed")),
        _ => ("warm", Value::Null),
    };
    let installed = if outcome == "cold" { 0_u8 } else { 4 };
    json!({
        "at": now() - 600_000 * (n as u64 % 50 + 9 * at as u64), "outcome": outcome, "ready_s": 41.5 + n as f64 / 9.0,
        "saved_s": if outcome == "cold" { 0.0 } else { 31.25 },
        "families": [
            {"family": "vllm-aot", "offered": 1, "installed": installed, "used": installed, "recompiled": 0, "saved_s": 7.25 * f64::from(installed),
             "reason": reason},
            {"family": "triton", "offered": 2, "installed": 212, "used": 208, "recompiled": 4, "saved_s": 2.25, "reason": null},
        ],
    })
}

fn transfer(n: usize, nodes: usize) -> Value {
    let holders: Vec<Value> =
        (1..5).map(|h| json!({"node": id((n + h) % nodes), "bytes": (h as u64 * 180) << 20})).collect();
    json!({
        "artifact": format!("{n:08x}a1b2c3d4e5f60718"), "family": "vllm-aot", "done": 1800_u64 << 20, "total": 4096_u64 << 20,
        "rate": 812.5e6, "eta_s": 2.9, "holders": holders,
    })
}

fn problems(n: usize) -> Value {
    match n % 17 {
        5 => json!([{"kind": "udp-blocked", "text": "QUIC does not get through: transfers go over TCP.",
                     "way_out": "Open UDP port 4780 between the nodes."}]),
        9 => json!([{"kind": "buffers", "text": format!("The kernel grants {} KiB of 7 MiB.", 200 + n),
                     "way_out": "Set net.core.rmem_max to 7340032 on the host."}]),
        _ => json!([]),
    }
}

fn identity(n: usize, nodes: usize) -> Value {
    let family = ["vllm-aot", "triton", "lora"][n % 3];
    let holders: Vec<String> = (0..10.min(nodes)).map(|h| id((n + 7 * h) % nodes)).collect();
    json!({
        "digest": format!("{n:08x}{}", "9f31c0de".repeat(7)), "family": family,
        "facts": {"vllm": "0.11.2", "torch": "2.9.0", "cuda": "13.0", "gpu": "NVIDIA H100", "model": format!("org/model-{n}")},
        "artifacts": [{"id": format!("{n:08x}a1b2c3d4e5f60718"), "bytes": (n as u64 % 64 + 1) << 26,
                       "signer": "s".repeat(52), "at": now() - 7_200_000, "holders": holders, "partial": [id(n % nodes)]}],
    })
}

/// Markup, marks of direction, and controls.
pub const HOSTILE: &str = "<img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>\u{202e}txt.\u{2066}\u{0}\u{7}\u{1b}[31m\u{200f}";

/// Every text of a node that says the worst.
pub fn hostile_node() -> Value {
    json!({
        "id": HOSTILE, "name": HOSTILE, "endpoint": HOSTILE, "zone": HOSTILE, "rack": HOSTILE, "region": HOSTILE,
        "state": HOSTILE, "seen_at": HOSTILE, "version": HOSTILE, "started_at": -1e300, "discovery": HOSTILE, "carrier": [],
        "engine": {"state": HOSTILE, "adapters": HOSTILE}, "disk": 7, "policy": {"version": {}, "expires_at": 1e300},
        "totals": {"received": -5, "sent": HOSTILE, "misses": {HOSTILE: 3, "__proto__": 1}},
        "starts": [{"at": null, "outcome": HOSTILE, "families": [{"family": HOSTILE, "reason": HOSTILE}, null]}, 3],
        "transfers": [{"artifact": HOSTILE, "family": HOSTILE, "done": 9e300, "total": 1, "rate": -1, "holders": [{"node": HOSTILE}]}],
        "gpus": [{"index": HOSTILE, "name": HOSTILE, "utilization": -1e300, "memory": {"used": HOSTILE, "total": 9e300}}, 7],
        "problems": [{"kind": HOSTILE, "text": HOSTILE.repeat(50), "way_out": HOSTILE}],
    })
}

pub fn hostile_identity() -> Value {
    json!({
        "family": HOSTILE, "facts": {HOSTILE: HOSTILE, "nested": {"a": [1, HOSTILE]}},
        "artifacts": [{"id": HOSTILE, "signer": HOSTILE, "bytes": "x", "at": 9e99, "holders": [HOSTILE, 1], "partial": {}}],
    })
}
