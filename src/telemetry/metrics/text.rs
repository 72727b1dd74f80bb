//! The two text forms of a registry.

use hyper::header::HeaderMap;

use super::Registry;

/// What a scraper takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus's text format 0.0.4, for whoever does not ask for the other.
    Prometheus,
}

impl Format {
    /// By the `Accept` headers of a request.
    pub fn accepted(headers: &HeaderMap) -> Self {
        let ranges = headers.get_all(hyper::header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
        let mut ranges = ranges.flat_map(|value| value.split(','));
        match ranges.any(|range| range.trim_start().starts_with("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    pub fn encode(self, registry: &Registry) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &registry.metrics);
        match self {
            Self::OpenMetrics => text,
            Self::Prometheus => classic(&text),
        }
    }
}

/// In the older format a counter's name has its suffix in the head, too, and there are neither units nor an end.
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>
fn classic(text: &str) -> String {
    let mut classic = String::with_capacity(text.len());
    let mut help = "";
    for line in text.lines() {
        if let Some(about) = line.strip_prefix("# HELP ") {
            help = about.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|about| about.split_once(' ')) {
            let suffix = if kind == "counter" { "_total" } else { "" };
            classic.push_str(&format!("# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            classic.push_str(line);
            classic.push('\n');
        }
    }
    classic
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    fn accepting(accept: &'static str) -> Format {
        let value = hyper::header::HeaderValue::from_static(accept);
        Format::accepted(&[(hyper::header::ACCEPT, value)].into_iter().collect())
    }

    #[test]
    fn open_metrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(accepting(prometheus), Format::OpenMetrics);
        assert_eq!(accepting("text/plain;version=0.0.4, application/openmetrics-text"), Format::OpenMetrics);
        assert_eq!(accepting("text/plain;version=0.0.4;q=0.3,*/*;q=0.2"), Format::Prometheus);
        assert_eq!(Format::accepted(&HeaderMap::new()), Format::Prometheus);
    }

    #[test]
    fn in_the_older_format_a_counter_is_named_as_its_sample_is() {
        let mut registry = Registry::default();
        let counter: Counter = registry.add("warmd_read_bytes_total", "Bytes read");
        counter.inc_by(7);
        let expected = "# HELP warmd_read_bytes_total Bytes read.\n# TYPE warmd_read_bytes_total counter\n\
                        warmd_read_bytes_total 7\n";
        assert_eq!(Format::Prometheus.encode(&registry), expected);
    }
}
