//! The one task that owns the engine, and does what the machine says.

use std::future::{Future, pending};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::process::{Engine, Exit, Member, Stopped};
use super::cgroup::Cgroup;
use super::leftovers::Leftovers;
use super::machine::{Action, Event, Machine};
use super::metrics::{Metrics, Outcome};
use super::{End, Launch, Order, Starter, State, Status, SupervisionConfig, Wish};

/// For fork and exec.
const LAUNCH: Duration = Duration::from_secs(10);

/// For what follows an engine's end.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Between two looks at what the engine consists of.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// How what was under way has ended.
enum Done {
    Prepared(Box<Launch>),
    Stopped(Box<End>),
    Event(Event),
}

type Work = BoxFuture<'static, Done>;

pub(super) struct Owner {
    machine: Machine,
    starter: Arc<dyn Starter>,
    wishes: watch::Receiver<Wish>,
    wish: Wish,
    in_flight: watch::Receiver<usize>,
    status: watch::Sender<Status>,
    metrics: Metrics,
    leftovers: Arc<Leftovers>,
    /// Of the machine's latest action.
    work: Work,
    prepared: Option<Box<Launch>>,
    /// Until it is told to end; then the work owns it.
    engine: Option<Engine>,
    cgroup: Option<Cgroup>,
    exited: BoxFuture<'static, Exit>,
    begun: Instant,
    was_ready: bool,
    next_look: Instant,
    kill_at: watch::Sender<Instant>,
    leader: Option<i32>,
    last_exit: Option<Exit>,
}

impl Owner {
    pub(super) fn new(
        config: SupervisionConfig,
        starter: Arc<dyn Starter>,
        wishes: watch::Receiver<Wish>,
        in_flight: watch::Receiver<usize>,
        record: Option<PathBuf>,
        metrics: Metrics,
    ) -> (Self, watch::Receiver<Status>) {
        let (status, receiver) = watch::channel(Status { since: SystemTime::now(), ..Status::default() });
        let now = Instant::now();
        let owner = Self {
            machine: Machine::new(config),
            starter,
            wish: Wish { run: false, renewals: 0, shutdown: None },
            wishes,
            in_flight,
            status,
            metrics,
            leftovers: Arc::new(Leftovers::new(record)),
            work: pending().boxed(),
            prepared: None,
            engine: None,
            cgroup: None,
            exited: pending().boxed(),
            begun: now,
            was_ready: false,
            next_look: now,
            kill_at: watch::Sender::new(now),
            leader: None,
            last_exit: None,
        };
        (owner, receiver)
    }

    pub(super) async fn run(mut self) {
        self.wishes.mark_changed();
        while !self.machine.is_over() {
            let mut event = self.next().await;
            while let Some(now) = event.take() {
                let action = self.machine.on(now, Instant::now(), &mut rand::rng());
                // Before anything is done: who sees it asks the engine for nothing more.
                self.publish();
                if let Some(action) = action {
                    event = self.execute(action).await;
                }
            }
            self.publish();
        }
    }

    async fn next(&mut self) -> Option<Event> {
        let deadline = self.machine.deadline();
        let draining = self.machine.state() == State::Draining;
        tokio::select! {
            biased;
            wish = wished(&mut self.wishes) => self.wished(wish),
            exit = &mut self.exited => {
                self.exited = pending().boxed();
                Some(Event::Exited(format!("the engine ended by itself: {}", told(exit))))
            }
            done = &mut self.work => {
                self.work = pending().boxed();
                let event = self.done(done);
                if event == Event::Ready {
                    // All of its processes have come up.
                    self.look().await;
                }
                Some(event)
            }
            () = idle(&mut self.in_flight), if draining => Some(Event::Drained),
            () = sleep_until(deadline.unwrap_or(self.begun)), if deadline.is_some() => Some(Event::Elapsed),
            () = sleep_until(self.next_look), if self.engine.is_some() => {
                self.look().await;
                None
            }
        }
    }

    fn wished(&mut self, wish: Wish) -> Option<Event> {
        let before = std::mem::replace(&mut self.wish, wish);
        match wish.shutdown {
            Some(by) if before.shutdown != wish.shutdown => Some(Event::Shutdown(by)),
            _ if !wish.run => before.run.then_some(Event::Order(Order::Stop)),
            _ if wish.renewals != before.renewals => Some(Event::Order(Order::Restart)),
            _ => Some(Event::Order(Order::Run)),
        }
    }

    fn done(&mut self, done: Done) -> Event {
        match done {
            Done::Event(event) => event,
            Done::Prepared(launch) => {
                let epoch = self.machine.epoch();
                tracing::info!(epoch, program = %launch.command.program.display(), "starting the engine");
                self.prepared = Some(launch);
                // What an earlier engine left is gone.
                self.leader = None;
                Event::Prepared
            }
            Done::Stopped(end) => self.ended(&end),
        }
    }

    async fn execute(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Prepare => self.work = self.prepare(),
            Action::Cancel => self.work = pending().boxed(),
            Action::Launch => return self.launch().await,
            Action::Serve => {
                self.was_ready = true;
                self.metrics.ready(self.begun.elapsed());
                self.work = self.serve();
            }
            Action::Stop { kill_at, asked } => self.work = self.stop(kill_at, asked),
            Action::Hasten { kill_at } => drop(self.kill_at.send_replace(kill_at)),
        }
        None
    }

    fn prepare(&self) -> Work {
        let (starter, leftovers, epoch) = (self.starter.clone(), self.leftovers.clone(), self.machine.epoch());
        async move {
            if let Err(error) = leftovers.clear().await {
                return Done::Event(Event::Failed(error.to_string()));
            }
            match starter.prepare(epoch).await {
                Ok(launch) => Done::Prepared(Box::new(launch)),
                Err(reason) => Done::Event(Event::Failed(reason)),
            }
        }
        .boxed()
    }

    async fn launch(&mut self) -> Option<Event> {
        let launch = self.prepared.take()?;
        (self.begun, self.was_ready) = (Instant::now(), false);
        match timeout(LAUNCH, Engine::start(launch.command, launch.output)).await {
            Ok(Ok(engine)) => {
                self.leader = Some(engine.leader());
                self.cgroup = Cgroup::around(engine.leader());
                self.exited = engine.exited().boxed();
                self.engine = Some(engine);
            }
            Ok(Err(error)) => return Some(Event::Failed(error.to_string())),
            Err(_) => return Some(Event::Failed(format!("the engine's process did not start within {LAUNCH:?}"))),
        }
        self.look().await;
        let (starter, epoch) = (self.starter.clone(), self.machine.epoch());
        self.work = async move {
            match starter.ready(epoch).await {
                Ok(()) => Done::Event(Event::Ready),
                Err(reason) => Done::Event(Event::Lost(reason)),
            }
        }
        .boxed();
        None
    }

    fn serve(&self) -> Work {
        let (starter, epoch) = (self.starter.clone(), self.machine.epoch());
        async move {
            let running = async {
                starter.running(epoch).await;
                pending().await
            };
            tokio::select! {
                done = running => done,
                reason = starter.dead(epoch) => Done::Event(Event::Lost(reason)),
            }
        }
        .boxed()
    }

    fn stop(&mut self, kill_at: Instant, asked: bool) -> Work {
        self.exited = pending().boxed();
        self.kill_at = watch::Sender::new(kill_at);
        let (cgroup, engine, kill_at) = (self.cgroup.take(), self.engine.take(), self.kill_at.subscribe());
        let (starter, leftovers, epoch) = (self.starter.clone(), self.leftovers.clone(), self.machine.epoch());
        let (was_ready, reason) = (self.was_ready, self.machine.reason().filter(|_| !asked).map(str::to_owned));
        async move {
            let stopped = match engine {
                Some(engine) => Some(end(cgroup, engine, kill_at, &leftovers).await),
                None => None,
            };
            let end = End { asked, was_ready, reason, stopped };
            if timeout(AFTERWARDS, starter.ended(epoch, &end)).await.is_err() {
                tracing::warn!(epoch, "what follows the engine's end takes too long: it is cut off");
            }
            Done::Stopped(Box::new(end))
        }
        .boxed()
    }

    fn ended(&mut self, end: &End) -> Event {
        let outcome = match &end.stopped {
            None => Outcome::Failed,
            Some(_) if end.asked => Outcome::Stopped,
            Some(_) => Outcome::Crashed,
        };
        if !end.was_ready {
            self.metrics.started(outcome);
        }
        let Some(stopped) = &end.stopped else { return Event::Gone(None) };
        self.last_exit = Some(stopped.exit);
        let names = |members: &[Member]| {
            members.iter().map(|member| format!("{} ({})", member.name, member.pid)).collect::<Vec<_>>().join(", ")
        };
        if !stopped.killed.is_empty() {
            tracing::warn!(killed = names(&stopped.killed), "killed what did not end by itself");
        }
        if stopped.left.is_empty() {
            self.leader = None;
            return Event::Gone(None);
        }
        Event::Gone(Some(format!("what cannot be killed is still there: {}", names(&stopped.left))))
    }

    /// What the engine consists of now, for a life of warmd to come.
    async fn look(&mut self) {
        self.next_look = Instant::now() + LOOK_EVERY;
        let Some(engine) = &self.engine else { return };
        match engine.members() {
            Ok(members) => {
                let cgroup = self.cgroup.as_ref().map(Cgroup::directory);
                self.leftovers.remember(engine.leader(), &members, cgroup).await;
            }
            Err(error) => tracing::warn!(%error, "look at the engine's processes"),
        }
    }

    fn publish(&self) {
        let machine = &self.machine;
        let (state, epoch, reason) = (machine.state(), machine.epoch(), machine.reason());
        self.status.send_if_modified(|status| {
            let moved = (status.state, status.epoch) != (state, epoch);
            let next = Status {
                state,
                epoch,
                since: if moved { SystemTime::now() } else { status.since },
                restarts: machine.restarts(),
                last_exit: self.last_exit,
                reason: reason.map(str::to_owned),
                crash_loop: machine.crash_loop().map(str::to_owned),
                leader: self.leader,
            };
            let changed = *status != next;
            if (status.state, state) == (State::Warming, State::Backoff) {
                self.metrics.started(Outcome::Failed);
            }
            *status = next;
            if moved {
                self.metrics.tell(status);
                tell(status);
            }
            changed
        });
    }
}

/// Also where the task ends by a panic: nobody is to believe in an engine that is gone.
impl Drop for Owner {
    fn drop(&mut self) {
        self.engine = None;
        self.work = pending().boxed();
        self.status.send_if_modified(|status| {
            let stale = status.state != State::Stopped;
            status.state = State::Stopped;
            stale
        });
    }
}

fn tell(status: &Status) {
    let Status { state, epoch, .. } = status;
    match (state, &status.reason) {
        (State::Backoff, Some(reason)) => tracing::error!(epoch, reason, "the engine has crashed"),
        _ => tracing::info!(epoch, ?state, "engine"),
    }
}

fn told(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
        Exit::Unseen => "nobody saw how".to_owned(),
    }
}

/// The next wish; never again once nobody can wish any more.
async fn wished(wishes: &mut watch::Receiver<Wish>) -> Wish {
    if wishes.changed().await.is_err() {
        return pending().await;
    }
    *wishes.borrow_and_update()
}

/// At once if nobody counts any more.
fn idle(in_flight: &mut watch::Receiver<usize>) -> impl Future<Output = ()> {
    in_flight.wait_for(|requests| *requests == 0).map(drop)
}

/// Stops it, however often the time of the kill is changed.
async fn end(
    cgroup: Option<Cgroup>,
    mut engine: Engine,
    mut kill_at: watch::Receiver<Instant>,
    leftovers: &Leftovers,
) -> Stopped {
    let stopped = loop {
        let at = *kill_at.borrow_and_update();
        tokio::select! {
            stopped = engine.stop(at.saturating_duration_since(Instant::now())) => break stopped,
            Ok(()) = kill_at.changed() => {}
        }
    };
    let directory = cgroup.as_ref().map(|cgroup| cgroup.directory().to_owned());
    if let Some(cgroup) = cgroup {
        cgroup.end().await;
    }
    if stopped.left.is_empty() {
        leftovers.forget().await;
    } else {
        leftovers.remember(engine.leader(), &stopped.left, directory.as_deref()).await;
    }
    stopped
}
