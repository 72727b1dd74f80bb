//! GPUs that are not there.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A program in `directory` that tells of two GPUs, again and again, as `nvidia-smi` would.
pub fn program_in(directory: &Path) -> PathBuf {
    let script = "#!/bin/sh
while :; do
    echo '0, GPU-8f1c5d2e-0b7a-4c1d-9e3f-2a6b7c8d9e0f, NVIDIA H100 80GB HBM3, 35, 62464, 81559, 41, 284.17'
    echo '1, GPU-1f1c5d2e-0b7a-4c1d-9e3f-2a6b7c8d9e0f, NVIDIA H100 80GB HBM3, [N/A], [N/A], [N/A], 40, 70.25'
    sleep 1
done
";
    let path = directory.join("nvidia-smi");
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}
