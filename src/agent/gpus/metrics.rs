//! GPUs on `/metrics`: read when somebody scrapes, so that what is not told any more is not there.

use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::{Gpus, Reading};
use crate::telemetry::{Registry, parts};

/// Name, help, labels, and the value, where it is known.
type Metric = (&'static str, &'static str, &'static [&'static str], fn(&Reading) -> Option<f64>);

const METRICS: [Metric; 6] = [
    ("warmd_gpu_info", "1 for each GPU that is told of, at most 64", &["gpu", "uuid", "name"], |_| Some(1.0)),
    ("warmd_gpu_utilization_ratio", "Of the time, how much of it something ran on the GPU", &["gpu"], |reading| {
        Some(reading.gpu.utilization?.ratio())
    }),
    ("warmd_gpu_memory_used_bytes", "Memory of the GPU in use", &["gpu"], |reading| {
        Some(reading.gpu.memory?.used as f64)
    }),
    ("warmd_gpu_memory_total_bytes", "Memory of the GPU", &["gpu"], |reading| Some(reading.gpu.memory?.total as f64)),
    ("warmd_gpu_temperature_celsius", "Temperature of the GPU", &["gpu"], |reading| reading.temperature),
    ("warmd_gpu_power_watts", "Power that the GPU draws", &["gpu"], |reading| reading.power),
];

impl Gpus {
    pub(in crate::agent) fn register(registry: &mut Registry) -> Self {
        let gpus = Self::default();
        let described = METRICS.map(|(name, help, labels, _)| (name, MetricType::Gauge, help, labels));
        registry.collect(&described, gpus.clone());
        gpus
    }
}

impl Collector for Gpus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (table, now) = (self.0.borrow(), Instant::now());
        for (name, help, labels, value) in METRICS {
            let samples = || table.at(now).filter_map(|reading| Some((reading, value(reading)?)));
            if samples().next().is_none() {
                continue;
            }
            let (stem, unit) = parts(name);
            let unit = unit.map(|unit| Unit::Other(unit.to_owned()));
            let help = format!("{help}.");
            let mut metric = encoder.encode_descriptor(stem, &help, unit.as_ref(), MetricType::Gauge)?;
            for (reading, value) in samples() {
                let labels: Vec<(&str, String)> = labels.iter().map(|label| (*label, of(reading, label))).collect();
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn of(reading: &Reading, label: &str) -> String {
    match label {
        "uuid" => reading.uuid.to_string(),
        "name" => reading.gpu.name.to_string(),
        _ => reading.gpu.index.to_string(),
    }
}
