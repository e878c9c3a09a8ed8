//! The client's states (RFC 2131 §4.4, figure 5), as a function of what happened and the time.
//!
//! The address that is held and the exchange that is under way are two things: after a cable was pulled and put back the client asks whether its
//! address is still good (INIT-REBOOT) or looks for a new one, and the old one stays in use until a server refuses it or it ends.
//!
//! Times are `CLOCK_BOOTTIME`; chance is an argument. Nothing waits without a deadline, and every deadline is [`Client::deadline`].

use std::net::Ipv4Addr;
use std::time::Duration;

use super::lease::Lease;
use super::message::{MessageType, Reply, Request, option};

/// The first delay before a message is sent again; doubles each time (RFC 2131 §4.1).
const FIRST_DELAY: Duration = Duration::from_secs(4);
/// The longest such delay.
const LONGEST_DELAY: Duration = Duration::from_secs(64);
/// Each delay is changed by at most this, either way (RFC 2131 §4.1: a uniform random number from −1 to +1 seconds).
const JITTER_MS: u64 = 1000;
/// How often a request for one address is sent before the client starts again.
const REQUEST_TRIES: u32 = 4;
/// How often it asks whether an address it had is still good: another network's server may stay silent.
const REBOOT_TRIES: u32 = 2;
/// RFC 2131 §3.1.5: after a DECLINE the client SHOULD wait at least ten seconds.
const DECLINE_DELAY: Duration = Duration::from_secs(10);
/// The least time between two requests while renewing or rebinding (RFC 2131 §4.4.5).
const LEAST_RENEW_DELAY: Duration = Duration::from_secs(60);

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// The link can send. A lease from earlier in this boot stays in use while the client asks whether it is still good.
    Carrier {
        /// The lease that another process of this role kept, if there is one.
        known: Option<Lease>,
    },
    /// The link cannot send.
    NoCarrier,
    /// A server's message came, meant for this client or not.
    Reply(&'a Reply),
    /// Somebody else on the link answers for our address.
    AddressInUse,
    /// [`Client::deadline`] has come; harmless when it has not.
    Deadline,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send to everybody on the link, from no address.
    Broadcast(Request),
    /// Send to the server, from the address that we have.
    Unicast {
        /// What.
        request: Request,
        /// Our address.
        from: Ipv4Addr,
        /// The server.
        to: Ipv4Addr,
    },
    /// Use what this lease says, in place of what an earlier one said.
    Use(Box<Lease>),
    /// Use it no more.
    Drop(Box<Lease>),
    /// For the log: the server refused, with its words.
    Refused {
        /// The server.
        server: Option<Ipv4Addr>,
        /// What it said.
        text: Option<String>,
    },
}

/// What the client is doing, with RFC 2131's names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// No carrier.
    Stopped,
    /// Waits before it starts again.
    Init,
    /// Has sent DISCOVER.
    Selecting,
    /// Has sent REQUEST for an offer.
    Requesting { address: Ipv4Addr, server: Ipv4Addr },
    /// Has sent REQUEST for an address that it had.
    Rebooting { address: Ipv4Addr },
    /// Nothing to do until T1.
    Bound,
    /// Asks its server.
    Renewing,
    /// Asks any server.
    Rebinding,
}

/// One link's client.
#[derive(Debug)]
pub struct Client {
    state: State,
    /// When the state has something to do by itself.
    wake: Option<Duration>,
    /// The lease in use.
    held: Option<Lease>,
    xid: u32,
    /// Messages sent in this state.
    sent: u32,
    /// When the exchange began, for the field `secs`.
    began: Duration,
    /// When the last REQUEST was sent: where a lease's time begins.
    requested_at: Duration,
    /// Refusals since the last lease, so that a server that always refuses is not asked without a pause.
    refusals: u32,
}

/// A source of chance.
pub type Random<'a> = &'a mut dyn FnMut() -> u32;

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that waits for [`Input::Carrier`].
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Stopped,
            wake: None,
            held: None,
            xid: 0,
            sent: 0,
            began: Duration::ZERO,
            requested_at: Duration::ZERO,
            refusals: 0,
        }
    }

    /// The lease in use.
    #[must_use]
    pub fn lease(&self) -> Option<&Lease> {
        self.held.as_ref()
    }

    /// How many times servers were asked in this exchange without an answer that helped.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match self.state {
            State::Selecting | State::Requesting { .. } | State::Rebooting { .. } => self.sent,
            _ => 0,
        }
    }

    /// When [`Input::Deadline`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        let end = self.held.as_ref().and_then(Lease::ends);
        match (self.wake, end) {
            (Some(wake), Some(end)) => Some(wake.min(end)),
            (wake, end) => wake.or(end),
        }
    }

    /// Takes what happened and says what to do, in this order.
    pub fn step(&mut self, input: Input<'_>, now: Duration, random: Random<'_>) -> Vec<Action> {
        let mut actions = Vec::new();
        self.expire(now, random, &mut actions);
        match input {
            Input::Carrier { known } => self.start(known, now, random, &mut actions),
            Input::NoCarrier => {
                self.state = State::Stopped;
                self.wake = None;
            }
            Input::Reply(reply) => self.reply(reply, now, random, &mut actions),
            Input::AddressInUse => self.decline(now, random, &mut actions),
            Input::Deadline => {
                if self.wake.is_some_and(|wake| wake <= now) {
                    self.wake_up(now, random, &mut actions);
                }
            }
        }
        actions
    }

    /// RFC 2131 §4.4.5: when the lease ends, the client MUST stop using the address at once.
    fn expire(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        if self
            .held
            .as_ref()
            .and_then(Lease::ends)
            .is_none_or(|end| end > now)
        {
            return;
        }
        actions.extend(self.held.take().map(|lease| Action::Drop(Box::new(lease))));
        if matches!(
            self.state,
            State::Bound | State::Renewing | State::Rebinding
        ) {
            self.discover(now, random, actions);
        }
    }

    fn start(
        &mut self,
        known: Option<Lease>,
        now: Duration,
        random: Random<'_>,
        actions: &mut Vec<Action>,
    ) {
        if self.state != State::Stopped {
            return;
        }
        if self.held.is_none()
            && let Some(lease) = known.filter(|lease| lease.ends().is_none_or(|end| end > now))
        {
            actions.push(Action::Use(Box::new(lease.clone())));
            self.held = Some(lease);
        }
        match &self.held {
            Some(lease) => {
                let address = lease.address;
                self.begin(State::Rebooting { address }, now, random);
                self.send(now, random, actions);
            }
            None => self.discover(now, random, actions),
        }
    }

    /// A new exchange, with a new number.
    fn begin(&mut self, state: State, now: Duration, random: Random<'_>) {
        self.state = state;
        self.xid = random();
        self.sent = 0;
        self.began = now;
    }

    fn discover(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        self.begin(State::Selecting, now, random);
        self.send(now, random, actions);
    }

    fn wake_up(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        match self.state {
            State::Stopped => self.wake = None,
            State::Init => self.discover(now, random, actions),
            State::Requesting { .. } if self.sent >= REQUEST_TRIES => {
                self.discover(now, random, actions)
            }
            State::Rebooting { .. } if self.sent >= REBOOT_TRIES => {
                self.discover(now, random, actions)
            }
            State::Selecting | State::Requesting { .. } | State::Rebooting { .. } => {
                self.send(now, random, actions)
            }
            State::Bound | State::Renewing | State::Rebinding => {
                // A machine that slept may wake up beyond T2.
                let rebinds = self.held.as_ref().and_then(Lease::rebinds);
                let due = if rebinds.is_some_and(|t2| t2 <= now) {
                    State::Rebinding
                } else {
                    State::Renewing
                };
                if self.state != due {
                    self.begin(due, now, random);
                }
                self.send(now, random, actions);
            }
        }
    }

    /// Sends what the state sends, and sets when to do so again.
    fn send(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        let seconds = now.saturating_sub(self.began).as_secs();
        let mut request = Request {
            kind: MessageType::Request,
            xid: self.xid,
            seconds: u16::try_from(seconds).unwrap_or(u16::MAX),
            client_address: None,
            requested: None,
            server: None,
        };
        self.requested_at = now;
        // RFC 2131 table 4: which fields each state MUST and MUST NOT fill.
        match self.state {
            State::Stopped | State::Init | State::Bound => return,
            State::Selecting => {
                request.kind = MessageType::Discover;
                // A hint: the address we have, so that a server that knows us gives the same.
                request.requested = self.held.as_ref().map(|lease| lease.address);
                actions.push(Action::Broadcast(request));
            }
            State::Requesting { address, server } => {
                request.requested = Some(address);
                request.server = Some(server);
                actions.push(Action::Broadcast(request));
            }
            State::Rebooting { address } => {
                request.requested = Some(address);
                actions.push(Action::Broadcast(request));
            }
            State::Renewing | State::Rebinding => {
                let Some(lease) = &self.held else {
                    return;
                };
                request.client_address = Some(lease.address);
                actions.push(if self.state == State::Renewing {
                    Action::Unicast {
                        request,
                        from: lease.address,
                        to: lease.server,
                    }
                } else {
                    Action::Broadcast(request)
                });
            }
        }
        self.wake = Some(match &self.held {
            Some(lease) if matches!(self.state, State::Renewing | State::Rebinding) => {
                // RFC 2131 §4.4.5: half of the time that is left, and not less than a minute. What comes next comes in its time.
                let next = if self.state == State::Renewing {
                    lease.rebinds()
                } else {
                    lease.ends()
                };
                let left = next.unwrap_or(Duration::MAX).saturating_sub(now);
                let pause = now.saturating_add((left / 2).max(LEAST_RENEW_DELAY));
                next.map_or(pause, |next| pause.min(next))
            }
            _ => now.saturating_add(delay(self.sent, random())),
        });
        self.sent = self.sent.saturating_add(1);
    }

    fn reply(
        &mut self,
        reply: &Reply,
        now: Duration,
        random: Random<'_>,
        actions: &mut Vec<Action>,
    ) {
        // RFC 2131 §4.4: any message whose xid is not that of the last one sent MUST be dropped.
        if reply.xid != self.xid {
            return;
        }
        let server = reply.address(option::SERVER);
        let state = self.state.clone();
        match (&state, reply.kind) {
            (State::Selecting, MessageType::Offer) => {
                let (Some(server), Some(offer)) = (server, Lease::from_ack(reply, now)) else {
                    return;
                };
                // RFC 2131 §4.3.2: the xid of the offer is kept.
                self.state = State::Requesting {
                    address: offer.address,
                    server,
                };
                self.sent = 0;
                self.send(now, random, actions);
            }
            (State::Requesting { server: asked, .. }, MessageType::Ack | MessageType::Nak)
                if server.is_some_and(|s| s != *asked) => {}
            (
                State::Requesting { .. }
                | State::Rebooting { .. }
                | State::Renewing
                | State::Rebinding,
                MessageType::Ack,
            ) => {
                let Some(lease) = Lease::from_ack(reply, self.requested_at)
                    .filter(|lease| lease.ends().is_none_or(|end| end > now))
                else {
                    return;
                };
                self.refusals = 0;
                self.state = State::Bound;
                self.wake = lease.renews();
                actions.push(Action::Use(Box::new(lease.clone())));
                self.held = Some(lease);
            }
            (
                State::Requesting { .. }
                | State::Rebooting { .. }
                | State::Renewing
                | State::Rebinding,
                MessageType::Nak,
            ) => {
                actions.push(Action::Refused {
                    server,
                    text: reply.text(option::TEXT),
                });
                self.start_again(now, random, actions);
            }
            _ => {}
        }
    }

    /// After a refusal: at once the first time, later with growing pauses.
    fn start_again(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        actions.extend(self.held.take().map(|lease| Action::Drop(Box::new(lease))));
        if self.refusals == 0 {
            self.discover(now, random, actions);
        } else {
            self.state = State::Init;
            self.wake = Some(now.saturating_add(delay(self.refusals - 1, random())));
        }
        self.refusals = self.refusals.saturating_add(1);
    }

    fn decline(&mut self, now: Duration, random: Random<'_>, actions: &mut Vec<Action>) {
        let Some(lease) = self.held.take() else {
            return;
        };
        // RFC 2131 table 5: ciaddr is 0, the address is option 50, the server MUST be named.
        actions.push(Action::Broadcast(Request {
            kind: MessageType::Decline,
            xid: random(),
            seconds: 0,
            client_address: None,
            requested: Some(lease.address),
            server: Some(lease.server),
        }));
        actions.push(Action::Drop(Box::new(lease)));
        if self.state != State::Stopped {
            self.state = State::Init;
            self.wake = Some(now.saturating_add(DECLINE_DELAY));
        }
    }
}

/// How long to wait after the message number `sent`, from 0.
fn delay(sent: u32, random: u32) -> Duration {
    let doubled = FIRST_DELAY
        .saturating_mul(1 << sent.min(8))
        .min(LONGEST_DELAY);
    let jitter = Duration::from_millis(u64::from(random) % (2 * JITTER_MS + 1));
    doubled - Duration::from_millis(JITTER_MS) + jitter
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
