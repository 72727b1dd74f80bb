//! Requests' bodies, read whole: the model's name may be their last member. Bounded each, in sum, and in time.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::answer::Answer;
use super::config::Config;
use super::request::Asked;

/// What is reserved at a time, in bytes.
const UNIT: usize = 4096;

/// Larger bodies are read through on a thread of their own.
const LARGE: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Intake {
    max: usize,
    within: Duration,
    units: Arc<Semaphore>,
}

/// A body, and its share of what may be held.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) body: Bytes,
    pub(super) share: OwnedSemaphorePermit,
}

impl Intake {
    pub(super) fn new(config: &Config) -> Self {
        let units = (config.max_held_bytes / UNIT).clamp(1, u32::MAX as usize);
        Self { max: config.max_body_bytes, within: config.body, units: Arc::new(Semaphore::new(units)) }
    }

    pub(super) async fn take(&self, body: Incoming) -> Result<Taken, Answer> {
        if body.size_hint().lower() > self.max as u64 {
            return Err(Answer::BodyTooLarge { limit: self.max });
        }
        let deadline = Instant::now() + self.within;
        tokio::time::timeout_at(deadline, self.collect(body)).await.map_err(|_| Answer::BodyTimeout)?
    }

    async fn collect(&self, mut body: Incoming) -> Result<Taken, Answer> {
        // Told lengths are reserved at once, so that half of many bodies is never all that there is room for.
        let mut share = self.reserve(usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX))?;
        let (mut first, mut more) = (Bytes::new(), BytesMut::new());
        while let Some(frame) = body.frame().await {
            let broken = |_| Answer::BadRequest { message: "the body broke off".to_owned(), param: None };
            let Ok(data) = frame.map_err(broken)?.into_data() else { continue };
            let len = first.len() + more.len() + data.len();
            if len > self.max {
                return Err(Answer::BodyTooLarge { limit: self.max });
            }
            let held = share.num_permits() * UNIT;
            if len > held {
                share.merge(self.reserve(len - held)?);
            }
            if first.is_empty() && more.is_empty() {
                first = data;
                continue;
            }
            if more.is_empty() {
                let told = usize::try_from(body.size_hint().lower()).unwrap_or(0);
                more.reserve(len + told.min(self.max));
                more.extend_from_slice(&std::mem::take(&mut first));
            }
            more.extend_from_slice(&data);
        }
        let body = if more.is_empty() { first } else { more.freeze() };
        Ok(Taken { body, share })
    }

    fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Answer> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        self.units.clone().try_acquire_many_owned(units).map_err(|_| Answer::Overloaded { what: "bytes of requests" })
    }
}

pub(super) async fn parse(body: Bytes) -> Result<Asked, Answer> {
    let asked = if body.len() < LARGE {
        Asked::parse(body)
    } else {
        let parsing = tokio::task::spawn_blocking(|| Asked::parse(body));
        parsing.await.map_err(|_| Answer::Draining)?
    };
    asked.map_err(|bad| Answer::BadRequest { message: bad.to_string(), param: bad.param() })
}
