//! What `nvidia-smi --query-gpu` prints of one GPU with `--format=csv,noheader,nounits`.
//! <https://docs.nvidia.com/deploy/nvidia-smi/index.html>

use crate::protocol::report::{Gpu, GpuMemory, NAME, Percent, Text};

/// The fields, as they stand on a line.
pub(super) const QUERY: &str = "index,uuid,name,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw";

/// GPUs of a node: what has a higher index is not told of.
const MAX_GPUS: u8 = 64;

/// Bytes of an id: `GPU-` and a UUID.
const UUID: usize = 48;

const MIB: u64 = 1024 * 1024;

/// One GPU at one moment. What its driver does not know is absent.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Reading {
    pub(super) gpu: Gpu,
    pub(super) uuid: Text<UUID>,
    /// Degrees Celsius.
    pub(super) temperature: Option<f64>,
    /// Watts.
    pub(super) power: Option<f64>,
}

impl Reading {
    /// `None` if the line is something else: the program prints its troubles on the same output.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [index, uuid, name, utilization, used, total, temperature, power] = fields[..].try_into().ok()?;
        let index = index.parse().ok().filter(|index| *index < MAX_GPUS)?;
        let bytes = |mebibytes: &str| mebibytes.parse::<u64>().ok()?.checked_mul(MIB);
        let memory = bytes(used).zip(bytes(total)).filter(|(_, total)| *total > 0);
        Some(Self {
            gpu: Gpu {
                index,
                name: Text::<NAME>::cut(name),
                utilization: utilization.parse().ok().and_then(Percent::new),
                memory: memory.map(|(used, total)| GpuMemory { used, total }),
            },
            uuid: Text::cut(uuid),
            temperature: number(temperature),
            power: number(power),
        })
    }
}

/// `[N/A]`, `[Not Supported]` and the like are none; neither are infinity and NaN.
fn number(text: &str) -> Option<f64> {
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_line_is_a_gpu_with_its_numbers_in_base_units() {
        let uuid = "GPU-8f1c5d2e-0b7a-4c1d-9e3f-2a6b7c8d9e0f";
        let line = format!("3, {uuid}, NVIDIA H100 80GB HBM3, 35, 62464, 81559, 41, 284.17");
        let expected = Reading {
            gpu: Gpu {
                index: 3,
                name: Text::cut("NVIDIA H100 80GB HBM3"),
                utilization: Percent::new(35),
                memory: Some(GpuMemory { used: 62_464 * MIB, total: 81_559 * MIB }),
            },
            uuid: Text::cut(uuid),
            temperature: Some(41.0),
            power: Some(284.17),
        };
        assert_eq!(Reading::parse(&line), Some(expected));
    }

    #[test]
    fn what_a_driver_does_not_know_is_absent() {
        let line = "0, GPU-1, Tesla T4, [N/A], [Not Supported], 15360, N/A, [Unknown Error]";
        let reading = Reading::parse(line).unwrap();
        assert_eq!((reading.gpu.utilization, reading.gpu.memory), (None, None));
        assert_eq!((reading.temperature, reading.power), (None, None));
        let odd = Reading::parse("0, GPU-1, Tesla T4, 101, 99999999999999999999, 0, inf, NaN").unwrap();
        assert_eq!((odd.gpu.utilization, odd.gpu.memory, odd.temperature, odd.power), (None, None, None, None));
    }

    #[test]
    fn what_is_no_reading_is_none() {
        let troubles = [
            "",
            "No devices were found",
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver, or so, it, says, here, a, b",
            "64, GPU-1, Tesla T4, 1, 2, 3, 4, 5",
            "-1, GPU-1, Tesla T4, 1, 2, 3, 4, 5",
            "0, GPU-1, Tesla T4, 1, 2, 3, 4",
            "0, GPU-1, Tesla T4, 1, 2, 3, 4, 5, 6",
        ];
        for line in troubles {
            assert_eq!(Reading::parse(line), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd(fields in proptest::collection::vec(".{0,40}", 0..10)) {
            let numbered = format!("7, {}", fields.join(", "));
            for line in [fields.join(","), numbered] {
                if let Some(reading) = Reading::parse(&line) {
                    prop_assert!(reading.gpu.index < MAX_GPUS);
                    prop_assert!(reading.power.is_none_or(f64::is_finite));
                }
            }
        }
    }
}
