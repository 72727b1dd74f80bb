//! Datagrams that the kernel threw away, of all sockets of this network namespace; RFC 4113 and `/proc/net/snmp`.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use crate::telemetry::Registry;

const METRICS: [(&str, &str, &str); 2] = [
    (
        "warmd_udp_receive_buffer_errors_total",
        "Datagrams that found no room in the receive buffer of a socket of this network namespace, whoever's it is",
        "RcvbufErrors",
    ),
    (
        "warmd_udp_send_buffer_errors_total",
        "Datagrams that found no room in the send buffer of a socket of this network namespace, whoever's it is",
        "SndbufErrors",
    ),
];

pub(super) fn register(registry: &mut Registry) {
    let described = METRICS.map(|(name, help, _)| (name, MetricType::Counter, help, &[][..]));
    registry.collect(&described, Udp);
}

#[derive(Debug)]
struct Udp;

impl Collector for Udp {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/net/{name}")).unwrap_or_default();
        let (v4, v6) = (read("snmp"), read("snmp6"));
        for (name, help, counter) in METRICS {
            let Some(count) = of_v4(&v4, counter) else { continue };
            let count = ConstCounter::new(count + of_v6(&v6, counter).unwrap_or(0));
            let stem = name.trim_end_matches("_total");
            count.encode(encoder.encode_descriptor(stem, &format!("{help}."), None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

/// A line of names and one of numbers.
fn of_v4(snmp: &str, counter: &str) -> Option<u64> {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp:"));
    let (names, numbers) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == counter)?;
    numbers.split_whitespace().nth(at)?.parse().ok()
}

/// A line for each number.
fn of_v6(snmp6: &str, counter: &str) -> Option<u64> {
    let line = snmp6.lines().find_map(|line| line.strip_prefix("Udp6")?.strip_prefix(counter))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::encode;

    #[test]
    fn numbers_are_read_by_their_names() {
        let v4 = "Ip: Forwarding\nIp: 1\nUdp: InDatagrams NoPorts RcvbufErrors SndbufErrors\nUdp: 9 8 7 6\n\
                  UdpLite: InDatagrams RcvbufErrors\nUdpLite: 5 4\n";
        assert_eq!((of_v4(v4, "RcvbufErrors"), of_v4(v4, "SndbufErrors")), (Some(7), Some(6)));
        assert_eq!((of_v4(v4, "MemErrors"), of_v4("", "RcvbufErrors")), (None, None));
        let v6 = "Ip6InReceives   3\nUdp6RcvbufErrors                 \t12\nUdpLite6RcvbufErrors 1\n";
        assert_eq!((of_v6(v6, "RcvbufErrors"), of_v6(v6, "SndbufErrors")), (Some(12), None));
    }

    #[test]
    fn this_kernel_tells_them() {
        let mut registry = Registry::default();
        register(&mut registry);
        let text = encode(&registry);
        assert!(METRICS.iter().all(|(name, ..)| text.lines().any(|line| line.starts_with(name))), "{text}");
    }
}
