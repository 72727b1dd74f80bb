//! What every part of warmd registers its metrics with, and words for their labels.
//!
//! Names are written as they are scraped. The registry remembers what it was told of each metric, so that
//! `deploy/metrics.md` is made from the code. Labels are closed sets: `label!` and `labels!` make their types.

mod process;
mod text;

use std::sync::atomic::AtomicU64;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Unit;

pub use self::text::Format;
use super::reloads;
use super::trace::TraceMetrics;

/// Units that names end with, the longer ones first.
const UNITS: [&str; 6] = ["bytes_per_second", "celsius", "seconds", "bytes", "ratio", "watts"];

/// The metrics of one role.
#[derive(Debug, Default)]
pub struct Registry {
    metrics: prometheus_client::registry::Registry,
    descriptions: Vec<Description>,
}

/// What is known of a metric before it has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As scraped; of a histogram without `_bucket`, `_count` and `_sum`.
    pub name: &'static str,
    pub kind: &'static str,
    /// A base unit. `None`: a count, a state or a version.
    pub unit: Option<&'static str>,
    /// Every label with its values; none where they come from outside, and are few.
    pub labels: Vec<(&'static str, Vec<String>)>,
    pub help: &'static str,
}

impl Registry {
    /// Of a process: with what every role tells of itself.
    pub fn of_process() -> Self {
        let mut registry = Self::default();
        process::register(&mut registry);
        reloads::register(&mut registry);
        TraceMetrics::register(&mut registry);
        registry
    }

    /// Registers a metric that begins at zero. The name of a counter ends with `_total`.
    pub fn add<M: Described + Default>(&mut self, name: &'static str, help: &'static str) -> M {
        self.insert(name, help, M::default())
    }

    /// Registers `metric`, and gives it back.
    pub fn insert<M: Described>(&mut self, name: &'static str, help: &'static str, metric: M) -> M {
        metric.begin();
        let labels = M::labels();
        let (stem, unit) = self.describe(name, help, metric.metric_type(), labels);
        match unit {
            Some(unit) => self.metrics.register_with_unit(stem, help, Unit::Other(unit.to_owned()), metric.clone()),
            None => self.metrics.register(stem, help, metric.clone()),
        }
        metric
    }

    /// Registers what is read when somebody scrapes. `descriptions` tell name, type, help and labels of what it encodes;
    /// values of the labels come from outside.
    pub(crate) fn collect(
        &mut self,
        descriptions: &[(&'static str, MetricType, &'static str, &'static [&'static str])],
        collector: impl Collector,
    ) {
        for (name, kind, help, labels) in descriptions {
            self.describe(name, help, *kind, labels.iter().map(|label| (*label, Vec::new())).collect());
        }
        self.metrics.register_collector(Box::new(collector));
    }

    /// The name without what encoding adds to it.
    fn describe(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: MetricType,
        labels: Vec<(&'static str, Vec<String>)>,
    ) -> (&'static str, Option<&'static str>) {
        let (stem, unit) = parts(name);
        let kind = match kind {
            MetricType::Counter => "counter",
            MetricType::Gauge => "gauge",
            MetricType::Histogram => "histogram",
            MetricType::Info | MetricType::Unknown => "unknown",
        };
        self.descriptions.push(Description { name, kind, unit, labels, help });
        (stem, unit)
    }

    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }
}

/// A name without suffix and unit, and the unit.
pub(crate) fn parts(name: &'static str) -> (&'static str, Option<&'static str>) {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let of = |unit: &&'static str| Some((name.strip_suffix(unit)?.strip_suffix('_')?, Some(*unit)));
    UNITS.iter().find_map(of).unwrap_or((name, None))
}

/// A metric that can tell which labels it has.
pub trait Described: EncodeMetric + std::fmt::Debug + Clone + Send + Sync + 'static {
    fn labels() -> Vec<(&'static str, Vec<String>)> {
        Vec::new()
    }

    /// Makes the series that are there before anything is counted: who divides by them, or waits for their first change,
    /// has to see their zero.
    fn begin(&self) {}
}

impl Described for Counter {}
impl Described for Counter<f64, AtomicU64> {}
impl Described for Gauge {}
impl Described for Gauge<f64, AtomicU64> {}
impl Described for Histogram {}

impl<L, M, C> Described for Family<L, M, C>
where
    L: LabelSet,
    M: Described,
    C: MetricConstructor<M> + Clone + Send + Sync + 'static,
    Self: EncodeMetric,
{
    fn labels() -> Vec<(&'static str, Vec<String>)> {
        L::labels()
    }

    fn begin(&self) {
        for labels in L::first() {
            drop(self.get_or_create(&labels));
        }
    }
}

/// The values of one label.
pub trait Label: EncodeLabelValue + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static {
    /// Whether series of every value are there from the beginning. Otherwise those that were counted are.
    const AT_FIRST: bool = true;

    /// Empty where values come from outside.
    fn all() -> Vec<Self>;

    /// As it is scraped.
    fn text(&self) -> String;
}

/// A label value from outside. Whoever uses it bounds how many there are, and lets no peer choose them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Bounded<T>(pub T);

impl<T> Label for Bounded<T>
where
    T: std::fmt::Display + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
{
    fn all() -> Vec<Self> {
        Vec::new()
    }

    fn text(&self) -> String {
        self.0.to_string()
    }
}

impl<T: std::fmt::Display> EncodeLabelValue for Bounded<T> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.to_string().encode(encoder)
    }
}

/// The labels of one metric.
pub trait LabelSet: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static {
    fn labels() -> Vec<(&'static str, Vec<String>)>;

    /// Those that are there from the beginning.
    fn first() -> Vec<Self>;
}

/// `NoHolder` as `no_holder`.
pub(crate) fn snake(name: &impl std::fmt::Debug) -> String {
    let name = format!("{name:?}");
    let mut snake = String::with_capacity(name.len() + 4);
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// An enum whose variants are the values of one label: `NoHolder` is `no_holder`.
macro_rules! label {
    ($(#[$meta:meta])* $vis:vis enum $name:ident { $($(#[$of:meta])* $value:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        $vis enum $name {
            $($(#[$of])* $value),+
        }

        impl $crate::telemetry::Label for $name {
            fn all() -> Vec<Self> {
                vec![$(Self::$value),+]
            }

            fn text(&self) -> String {
                $crate::telemetry::snake(self)
            }
        }

        impl prometheus_client::encoding::EncodeLabelValue for $name {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                std::fmt::Write::write_str(encoder, &$crate::telemetry::Label::text(self))
            }
        }
    };
}

/// A struct whose fields are the labels of a metric.
macro_rules! labels {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$about:meta])* $of:vis $label:ident: $kind:ty),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, prometheus_client::encoding::EncodeLabelSet)]
        $vis struct $name {
            $($(#[$about])* $of $label: $kind),+
        }

        impl $crate::telemetry::LabelSet for $name {
            fn labels() -> Vec<(&'static str, Vec<String>)> {
                use $crate::telemetry::Label;
                vec![$((stringify!($label), <$kind as Label>::all().iter().map(Label::text).collect())),+]
            }

            fn first() -> Vec<Self> {
                use $crate::telemetry::Label;
                let mut all = Vec::new();
                if true $(&& <$kind as Label>::AT_FIRST)+ {
                    $crate::telemetry::labels!(@each [$($label: $kind),+] all.push(Self { $($label: $label.clone()),+ }));
                }
                all
            }
        }
    };
    (@each [$label:ident: $kind:ty $(, $more:ident: $others:ty)*] $do:expr) => {
        for $label in <$kind as Label>::all() {
            $crate::telemetry::labels!(@each [$($more: $others),*] $do);
        }
    };
    (@each [] $do:expr) => {
        $do
    };
}

pub(crate) use {label, labels};

#[cfg(test)]
mod tests {
    use super::*;

    label! {
        enum End {
            Whole,
            NoHolder,
        }
    }

    labels! {
        struct Labels {
            end: End,
            other: End,
        }
    }

    #[test]
    fn names_are_scraped_as_they_are_written_and_every_series_is_there_from_the_beginning() {
        let mut registry = Registry::default();
        let read: Counter = registry.add("warmd_read_bytes_total", "Bytes read");
        let ends: Family<Labels, Counter> = registry.add("warmd_ends_total", "Ends");
        let _: Gauge<f64, AtomicU64> = registry.add("warmd_pace_seconds", "Pace");
        read.inc_by(7);
        ends.get_or_create(&Labels { end: End::NoHolder, other: End::Whole }).inc();
        let text = Format::OpenMetrics.encode(&registry);
        for line in [
            "# TYPE warmd_read_bytes counter",
            "# UNIT warmd_read_bytes bytes",
            "warmd_read_bytes_total 7",
            r#"warmd_ends_total{end="no_holder",other="whole"} 1"#,
            r#"warmd_ends_total{end="whole",other="whole"} 0"#,
            "# UNIT warmd_pace_seconds seconds",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}: {text}");
        }
        let values = vec!["whole".to_owned(), "no_holder".to_owned()];
        let described = &registry.descriptions()[1];
        assert_eq!((described.name, described.kind, described.unit), ("warmd_ends_total", "counter", None));
        assert_eq!(described.labels, [("end", values.clone()), ("other", values)]);
    }
}
