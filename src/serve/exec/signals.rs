//! Signals that are meant for the engine.

use std::io;

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::engine::Signal;

pub(super) struct Signals {
    terminate: Stream,
    interrupt: Stream,
    hangup: Stream,
    user: Stream,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user: signal(SignalKind::user_defined1())?,
        })
    }

    pub(super) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.hangup.recv() => Signal::Hangup,
            _ = self.user.recv() => Signal::User1,
        }
    }

    /// The number of the first one that asks to end.
    pub(super) async fn ends(&mut self) -> i32 {
        loop {
            match self.next().await {
                Signal::Terminate => return SignalKind::terminate().as_raw_value(),
                Signal::Interrupt => return SignalKind::interrupt().as_raw_value(),
                Signal::Hangup => return SignalKind::hangup().as_raw_value(),
                Signal::User1 => {}
            }
        }
    }
}
