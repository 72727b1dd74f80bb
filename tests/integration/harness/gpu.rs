//! GPUs that are not there.

use std::path::{Path, PathBuf};

/// A program in `directory` that tells of two GPUs, again and again, as `nvidia-smi` would.
pub fn program_in(directory: &Path) -> PathBuf {
    let script = "\
while :; do
    echo '0, GPU-8f1c5d2e-0b7a-4c1d-9e3f-2a6b7c8d9e0f, NVIDIA H100 80GB HBM3, 35, 62464, 81559, 41, 284.17'
    echo '1, GPU-1f1c5d2e-0b7a-4c1d-9e3f-2a6b7c8d9e0f, NVIDIA H100 80GB HBM3, [N/A], [N/A], [N/A], 40, 70.25'
    sleep 1
done";
    crate::exec::program(&directory.join("nvidia-smi"), script)
}
