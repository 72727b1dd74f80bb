//! How fast the network of this node is.

use std::fs;
use std::path::Path;

use super::AgentError;
use crate::transfer::ProvideConfig;

const INTERFACES: &str = "/sys/class/net";

/// Bytes a second of the fastest interface that is up, as the kernel tells; none if it does not tell.
pub(super) fn fastest() -> Option<u64> {
    fastest_of(Path::new(INTERFACES))
}

fn fastest_of(interfaces: &Path) -> Option<u64> {
    let speeds = fs::read_dir(interfaces).ok()?.flatten().filter_map(|entry| {
        let read = |name| fs::read_to_string(entry.path().join(name)).ok();
        // Reading the speed of one that is down is an error, and some that do not know theirs say -1.
        let is_up = read("operstate")?.trim() == "up";
        let megabits: u64 = read("speed")?.trim().parse().ok()?;
        is_up.then_some(megabits * 1_000_000 / 8)
    });
    speeds.max().filter(|speed| *speed > 0)
}

/// With `max_rate` no higher than the share of `link`.
pub(super) fn capped(mut provide: ProvideConfig, link: impl Fn() -> Option<u64>) -> Result<ProvideConfig, AgentError> {
    let Some(share) = provide.link_share else { return Ok(provide) };
    if !(share > 0.0 && share <= 1.0) {
        return Err(AgentError::LinkShare(share));
    }
    let rate = (link().ok_or(AgentError::LinkSpeed)? as f64 * share) as u64;
    tracing::info!(bytes_per_second = rate, "uploads are capped at {share} of the link");
    provide.max_rate = Some(provide.max_rate.map_or(rate, |most| most.min(rate)));
    Ok(provide)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_interface_that_is_up_and_knows_its_speed_counts() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fastest_of(dir.path()), None);
        for (name, state, speed) in
            [("lo", "unknown", ""), ("eth0", "up", "25000\n"), ("eth1", "down", "100000"), ("veth", "up", "-1")]
        {
            let interface = dir.path().join(name);
            fs::create_dir(&interface).unwrap();
            fs::write(interface.join("operstate"), state).unwrap();
            fs::write(interface.join("speed"), speed).unwrap();
        }
        assert_eq!(fastest_of(dir.path()), Some(25_000_000_000 / 8));
    }

    #[test]
    fn of_a_share_and_a_rate_the_lower_holds_and_nonsense_is_named() {
        let provide = |max_rate, link_share| ProvideConfig { max_rate, link_share, ..ProvideConfig::default() };
        let rate = |provide| capped(provide, || Some(1000)).map(|provide| provide.max_rate);
        assert_eq!(rate(provide(None, None)).unwrap(), None);
        assert_eq!(rate(provide(None, Some(0.25))).unwrap(), Some(250));
        assert_eq!(rate(provide(Some(100), Some(0.25))).unwrap(), Some(100));
        assert_eq!(rate(provide(Some(300), Some(0.25))).unwrap(), Some(250));
        for wrong in [0.0, -1.0, 1.5, f64::NAN] {
            let error = rate(provide(None, Some(wrong))).unwrap_err().to_string();
            assert!(error.contains("provide.link_share"), "{error}");
        }
        let error = capped(provide(None, Some(0.5)), || None).unwrap_err().to_string();
        assert!(error.contains("provide.max_rate"), "{error}");
    }
}
