//! A network that several guests share, each by a second card: a hub on the host's loopback, whose cables can be pulled.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// No frame is longer: QEMU's cards offer no offloading to such a network.
const FRAME_BYTES: usize = 65536;
/// How long the hub may take to notice that its owner is gone.
const TICK: Duration = Duration::from_millis(200);

/// The hub. Frames that come by one cable go out by all others; it ends with its owner.
#[derive(Debug)]
pub struct Lan {
    port: u16,
    sockets: Arc<Mutex<Vec<Socket>>>,
    ended: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

/// Where a cable is plugged in.
#[derive(Debug, Clone, Copy)]
struct Socket {
    card: SocketAddr,
    is_plugged: bool,
}

/// One guest's way to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cable {
    index: usize,
    card: u16,
    hub: u16,
}

impl Lan {
    /// A hub without cables.
    ///
    /// # Errors
    /// There is no port for it.
    pub fn new() -> Result<Self> {
        let hub = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("find a port for the hub")?;
        hub.set_read_timeout(Some(TICK))
            .context("prepare the hub")?;
        let port = hub.local_addr().context("prepare the hub")?.port();
        let sockets = Arc::new(Mutex::new(Vec::new()));
        let ended = Arc::new(AtomicBool::new(false));
        let worker = {
            let (sockets, ended) = (Arc::clone(&sockets), Arc::clone(&ended));
            std::thread::spawn(move || forward(&hub, &sockets, &ended))
        };
        Ok(Self {
            port,
            sockets,
            ended,
            worker: Some(worker),
        })
    }

    /// One more cable, plugged in. A machine keeps its own when it is switched off and on.
    ///
    /// # Errors
    /// There is no port for its card.
    pub fn cable(&self) -> Result<Cable> {
        let card = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
            .and_then(|socket| socket.local_addr())
            .context("find a port for a card")?;
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        sockets.push(Socket {
            card,
            is_plugged: true,
        });
        Ok(Cable {
            index: sockets.len() - 1,
            card: card.port(),
            hub: self.port,
        })
    }

    /// Pulls a cable out of the hub, or plugs it in again. The guest's card notices nothing, as behind a switch that fails.
    pub fn plug(&self, cable: &Cable, is_plugged: bool) {
        let mut sockets = self.sockets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = sockets.get_mut(cable.index) {
            socket.is_plugged = is_plugged;
        }
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(worker) = self.worker.take() {
            // It has nothing to tell.
            let _ = worker.join();
        }
    }
}

impl Cable {
    /// The card's hardware address: the last octet counts the cables from 1.
    #[must_use]
    pub fn mac(&self) -> String {
        format!("52:54:00:00:77:{:02x}", self.index + 1)
    }

    /// What QEMU is told of it.
    #[must_use]
    pub fn arguments(&self) -> [String; 4] {
        let end = |side, port| {
            format!("{side}.type=inet,{side}.host=127.0.0.1,{side}.port={port},{side}.ipv4=on")
        };
        [
            "-netdev".to_owned(),
            format!(
                "dgram,id=lan,{},{}",
                end("local", self.card),
                end("remote", self.hub)
            ),
            "-device".to_owned(),
            format!("virtio-net-pci,netdev=lan,mac={},romfile=", self.mac()),
        ]
    }
}

fn forward(hub: &UdpSocket, sockets: &Mutex<Vec<Socket>>, ended: &AtomicBool) {
    let mut frame = vec![0; FRAME_BYTES];
    while !ended.load(Ordering::Relaxed) {
        // Time-outs, and what loopback says of cards whose guest is off.
        let Ok((length, from)) = hub.recv_from(&mut frame) else {
            continue;
        };
        let sockets = sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let is_in = |socket: &&Socket| socket.card == from && socket.is_plugged;
        if sockets.iter().any(|socket| is_in(&socket)) {
            for to in &sockets {
                if to.is_plugged && to.card != from {
                    // A network loses frames.
                    let _ = hub.send_to(&frame[..length], to.card);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_reach_the_others_while_both_cables_are_plugged() {
        let lan = Lan::new().expect("a hub");
        let cables = [(); 3].map(|()| lan.cable().expect("a cable"));
        let cards = cables
            .each_ref()
            .map(|cable| UdpSocket::bind((Ipv4Addr::LOCALHOST, cable.card)).expect("a card"));
        let send = |from: usize, frame: &[u8]| {
            cards[from]
                .send_to(frame, (Ipv4Addr::LOCALHOST, lan.port))
                .expect("sent");
        };
        let receives = |card: usize, frame: &[u8]| {
            let mut got = [0; 16];
            let length = cards[card].recv(&mut got).expect("a frame");
            assert_eq!(&got[..length], frame);
        };
        send(0, b"one");
        receives(1, b"one");
        receives(2, b"one");
        lan.plug(&cables[1], false);
        send(1, b"lost");
        send(0, b"two");
        receives(2, b"two");
        lan.plug(&cables[1], true);
        send(2, b"three");
        // Neither its own frames nor those while it was pulled.
        receives(1, b"three");
        receives(0, b"three");
    }
}
