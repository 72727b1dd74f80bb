//! What one end measured, and the hand-over of its address.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

/// User and system time of this process so far, in seconds.
pub fn cpu_seconds() -> f64 {
    // SAFETY: getrusage fills the structure that it is given; all zero bytes are a valid one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

pub fn print(mut report: Value, data_on_stdout: bool) {
    report["cpu_seconds"] = cpu_seconds().into();
    if data_on_stdout {
        eprintln!("{report}");
    } else {
        println!("{report}");
    }
}

/// Writes the file whole or not at all: the other side waits for its name.
pub fn ready(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    Ok(fs::rename(temporary, path)?)
}
