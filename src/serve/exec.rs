//! A start-up hook in front of any engine command: warm, start, wait until it is ready, tell what was used, publish what is
//! new, for as long as the engine lives.

mod signals;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use self::signals::Signals;
use super::start::{Plan, Proof, Spec, Start};
use super::target::Say;
use crate::engine::{self, Engine, Exit, Output, Signal, StartError};

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    pub exit: Exit,
    /// Present if the engine was ready.
    pub proof: Option<Proof>,
}

/// Runs the engine to its end. The only error is that there is no engine to run.
pub async fn run(spec: Spec, say: Say) -> Result<Ended, StartError> {
    let begun = Instant::now();
    let mut signals = Signals::listen()?;
    let mut plan = Plan::new(&spec, &say);
    tokio::select! {
        () = plan.warm(&spec, begun, &say) => {}
        // Whoever wants us to end wants no engine any more.
        signal = signals.ends() => return Ok(Ended { exit: Exit::Signal(signal), proof: None }),
    }
    let grace = spec.grace;
    let start = plan.begin(Arc::new(spec), begun, say.clone()).await;
    let command = start.command();
    match Engine::start(command.clone(), Output::inherited(start.observer())).await {
        Ok(engine) => Ok(supervise(engine, &start, grace, &mut signals, &say).await),
        Err(error) => {
            start.excused().await;
            let StartError::Unwatchable(_) = error else { return Err(error) };
            say(&format!("{error}: until then it runs without warmd, and nothing is proven or published"));
            Err(engine::replace_by(&command))
        }
    }
}

async fn supervise(mut engine: Engine, start: &Start, grace: Duration, signals: &mut Signals, say: &Say) -> Ended {
    let exited = engine.exited();
    let follow = async move {
        if let Some(after) = start.ready(exited).await {
            start.follow(after).await;
        }
    };
    let mut follow = std::pin::pin!(follow);
    let mut patience = std::pin::pin!(sleep(Duration::MAX));
    let mut watching = std::pin::pin!(start.watch_trust());
    let (mut followed, mut ending) = (false, false);
    loop {
        tokio::select! {
            _ = engine.exited() => {
                start.crashed().await;
                break;
            }
            signal = signals.next() => {
                engine.signal(signal);
                if signal != Signal::User1 {
                    // Now: whoever ends us may not wait until the engine is gone.
                    start.excused().await;
                }
                if matches!(signal, Signal::Terminate | Signal::Interrupt) && !ending {
                    ending = true;
                    patience.set(sleep(grace));
                }
            }
            () = &mut patience, if ending => {
                say(&format!("the engine did not end within {grace:?}"));
                break;
            }
            () = &mut watching => {}
            () = &mut follow, if !followed && !ending => followed = true,
        }
    }
    let stopped = engine.stop(Duration::ZERO).await;
    if !stopped.killed.is_empty() {
        let names: Vec<String> =
            stopped.killed.iter().map(|member| format!("{} ({})", member.name, member.pid)).collect();
        say(&format!("killed what the engine left behind: {}", names.join(", ")));
    }
    start.over(ending).await;
    Ended { exit: stopped.exit, proof: start.proof() }
}
