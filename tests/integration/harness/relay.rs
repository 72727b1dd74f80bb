//! A stretch of bad network in front of an address: datagrams are lost, doubled, swapped and damaged, and connections cut,
//! by a seed.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use warmd::lifecycle::Tasks;

/// Of a thousand datagrams, how many fare so.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    pub lost: u32,
    pub doubled: u32,
    /// Held back until the next one has passed.
    pub swapped: u32,
    pub damaged: u32,
}

/// Ends when it is dropped.
pub struct Relay {
    pub addr: SocketAddr,
    faulty: Arc<AtomicU64>,
    cut: Arc<AtomicU64>,
    _tasks: Tasks,
}

impl Relay {
    /// Datagrams to a port of its own go to `behind`, and answers back.
    pub async fn udp(behind: SocketAddr, faults: Faults, seed: u64) -> Self {
        let (tasks, faulty) = (Tasks::new(), Arc::new(AtomicU64::new(0)));
        let front = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let addr = front.local_addr().unwrap();
        let (backs, count) = (tasks.child(), faulty.clone());
        tasks.spawn("relay", async move {
            let mut bad = Bad::new(faults, seed, count.clone());
            let mut known: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut buffer = vec![0; 65_536];
            loop {
                let Ok((len, from)) = front.recv_from(&mut buffer).await else { continue };
                let peers = known.len() as u64;
                let there = known.entry(from).or_insert_with(|| {
                    let back = Arc::new(connected(behind));
                    let bad = Bad::new(faults, seed + 1 + peers, count.clone());
                    backs.spawn("relay back", answers(back.clone(), front.clone(), from, bad));
                    back
                });
                for datagram in bad.pass(&buffer[..len]) {
                    // As a network does: what cannot be delivered is lost.
                    let _ = there.send(&datagram).await;
                }
            }
        });
        Self { addr, faulty, cut: Arc::default(), _tasks: tasks }
    }

    /// Connections to a port of its own go on to `behind`; the first `cuts` of them are cut after `bytes` of answers.
    pub async fn tcp(behind: SocketAddr, cuts: u64, bytes: u64) -> Self {
        let (tasks, cut) = (Tasks::new(), Arc::new(AtomicU64::new(0)));
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = front.local_addr().unwrap();
        let (lines, counted) = (tasks.child(), cut.clone());
        tasks.spawn("relay", async move {
            loop {
                let (near, _) = front.accept().await.unwrap();
                let far = TcpStream::connect(behind).await.unwrap();
                let most = if counted.load(Ordering::SeqCst) < cuts { bytes } else { u64::MAX };
                let counted = counted.clone();
                lines.spawn("relay line", async move {
                    let (mut from_near, mut to_near) = near.into_split();
                    let (from_far, mut to_far) = far.into_split();
                    let mut from_far = from_far.take(most);
                    let there = tokio::io::copy(&mut from_near, &mut to_far);
                    let back = tokio::io::copy(&mut from_far, &mut to_near);
                    tokio::select! {
                        _ = there => {}
                        copied = back => if copied.is_ok_and(|copied| copied == most) {
                            counted.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    let _ = to_near.shutdown().await;
                });
            }
        });
        Self { addr, faulty: Arc::default(), cut, _tasks: tasks }
    }

    /// Datagrams that did not pass as they were.
    pub fn faulty(&self) -> u64 {
        self.faulty.load(Ordering::SeqCst)
    }

    /// Connections that were cut.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::SeqCst)
    }
}

fn connected(behind: SocketAddr) -> UdpSocket {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(behind).unwrap();
    socket.set_nonblocking(true).unwrap();
    UdpSocket::from_std(socket).unwrap()
}

async fn answers(back: Arc<UdpSocket>, front: Arc<UdpSocket>, to: SocketAddr, mut bad: Bad) {
    let mut buffer = vec![0; 65_536];
    loop {
        let Ok(len) = back.recv(&mut buffer).await else { continue };
        for datagram in bad.pass(&buffer[..len]) {
            let _ = front.send_to(&datagram, to).await;
        }
    }
}

/// One direction.
struct Bad {
    faults: Faults,
    dice: StdRng,
    held: Option<Vec<u8>>,
    count: Arc<AtomicU64>,
}

impl Bad {
    fn new(faults: Faults, seed: u64, count: Arc<AtomicU64>) -> Self {
        Self { faults, dice: StdRng::seed_from_u64(seed), held: None, count }
    }

    /// What comes out for one datagram that goes in.
    fn pass(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        let Faults { lost, doubled, swapped, damaged } = self.faults;
        let dice = self.dice.random_range(0..1000);
        let mut datagram = datagram.to_vec();
        let held = self.held.take();
        let mut out = Vec::new();
        if dice < lost + doubled + swapped + damaged {
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        if dice < lost {
        } else if dice < lost + doubled {
            out.extend([datagram.clone(), datagram]);
        } else if dice < lost + doubled + swapped {
            self.held = Some(datagram);
        } else {
            if dice < lost + doubled + swapped + damaged {
                let at = self.dice.random_range(0..datagram.len());
                datagram[at] ^= 1 << self.dice.random_range(0..8);
            }
            out.push(datagram);
        }
        out.extend(held);
        out
    }
}
