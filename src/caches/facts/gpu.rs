//! The GPU as the kernel driver tells it, without Python, libraries or CUDA.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// The product name of this node's NVIDIA GPUs, which is the name that NVML and torch tell; `None` without GPUs, or if
/// they differ.
pub fn name_of_gpu() -> Option<String> {
    let mut names = names(Path::new("/proc/driver/nvidia/gpus"));
    names.dedup();
    if names.len() == 1 { names.pop() } else { None }
}

/// Sorted. The kernel writes one `information` file a GPU, with a line `Model: NAME`.
fn names(gpus: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(gpus) else { return Vec::new() };
    let texts = entries.flatten().filter_map(|gpu| fs::read_to_string(gpu.path().join("information")).ok());
    let model = |text: String| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned());
    let mut names: Vec<String> = texts.filter_map(model).collect();
    names.sort();
    names
}

/// What changes with the GPUs of a node and with its drivers: a text to compare.
pub(super) fn set_of_gpus() -> String {
    let mut text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let devices =
        fs::read_dir("/dev").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut devices: Vec<String> = devices.filter(|name| name.starts_with("nvidia") || name == "kfd").collect();
    devices.sort();
    // Writing to a String cannot fail.
    let _ = write!(text, "\0{}\0{}", devices.join(" "), names(Path::new("/proc/driver/nvidia/gpus")).join("\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_files_name_the_gpus() {
        let dir = tempfile::tempdir().unwrap();
        for (bus, name) in [("0000:01:00.0", "NVIDIA H200"), ("0000:02:00.0", "NVIDIA H100 80GB HBM3")] {
            fs::create_dir(dir.path().join(bus)).unwrap();
            let text = format!("Model: \t\t {name}\nIRQ:   \t\t 31\nGPU UUID: \t GPU-0\n");
            fs::write(dir.path().join(bus).join("information"), text).unwrap();
        }
        assert_eq!(names(dir.path()), ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]);
        assert!(names(&dir.path().join("none")).is_empty());
    }
}
