//! Every metric of every role: the page of them, what linters of Prometheus say, and dashboards and alerts over a real
//! Prometheus.

mod expressions;
mod page;
mod prometheus;
mod promtool;
mod running;
mod scraped;

use std::path::{Path, PathBuf};

use warmd::telemetry::Registry;
use warmd::{agent, metadata, serve, web};

/// The jobs that scrape them, and what each tells.
pub(super) fn roles() -> [(&'static str, Registry); 3] {
    let registry = |register: fn(&mut Registry)| {
        let mut registry = Registry::of_process();
        register(&mut registry);
        registry
    };
    [
        ("warmd-agent", registry(|r| drop(agent::Metrics::register(r)))),
        (
            "warmd-metadata",
            registry(|r| {
                drop(metadata::ServerMetrics::register(r));
                drop(metadata::CompatibilityMetrics::register(r));
                drop(web::Metrics::register(r));
            }),
        ),
        ("warmd-serve", registry(|r| drop(serve::serving::Metrics::register(r, 20)))),
    ]
}

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// The program, or `None` and a line on standard error where it is not installed.
#[expect(clippy::print_stderr, reason = "why nothing was tested is worth reading")]
fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|place| place.join(program)).find(|program| program.is_file());
    if found.is_none() {
        eprintln!("skipped: {program} is not installed");
    }
    found
}
