//! The number of an agent's life. It grows with every start, also when the clock was set back in between.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::AgentError;
use crate::durable;
use crate::protocol::metadata::Epoch;

/// Microseconds since 1970, or one more than the last time.
pub(super) fn next(state: &Path) -> Result<Epoch, AgentError> {
    let path = state.join("epoch");
    let failed = |source| AgentError::Epoch { path: path.clone(), source };
    // A damaged record counts as none: the clock alone is right unless it was set back.
    let last: u64 = durable::read_record(&path).unwrap_or_default().and_then(|text| text.parse().ok()).unwrap_or(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(since.as_micros()).unwrap_or(0);
    let epoch = now.max(last.saturating_add(1));
    durable::replace_record(&path, &epoch.to_string(), 0o600).map_err(failed)?;
    Ok(Epoch(epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_although_the_clock_was_set_back() {
        let dir = tempfile::tempdir().unwrap();
        let future = u64::MAX / 2;
        durable::replace_record(&dir.path().join("epoch"), &future.to_string(), 0o600).unwrap();
        assert_eq!(next(dir.path()).unwrap(), Epoch(future + 1));
        assert_eq!(next(dir.path()).unwrap(), Epoch(future + 2));
        std::fs::write(dir.path().join("epoch"), "torn").unwrap();
        assert!(next(dir.path()).unwrap().0 > 0);
    }
}
